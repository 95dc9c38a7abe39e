//! Keeps calls that may wait off the workers of an asynchronous runtime.
//!
//! A store call that reads or writes may wait for the disk, for a lock of RocksDB, or for a database that is being
//! reopened. On a runtime's worker it would stop everything else that the worker serves. A runtime marks its threads
//! ([`mark_runtime_thread`]), [`spawn`] is the way to those that may wait, and the store checks every use of the
//! database. Threads that no runtime marked may always wait.

use std::cell::Cell;

use tokio::{runtime::Handle, task::JoinHandle};

use crate::limited;

/// What a thread is, for the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thread {
    /// Not of a runtime.
    Own,
    /// Of a runtime, and not known to run work that may wait.
    Runtime,
    /// Of a runtime, running work that [`spawn`] passed to it.
    Blocking,
}

thread_local! {
    static THREAD: Cell<Thread> = const { Cell::new(Thread::Own) };
}

/// Marks this thread as one of a runtime. Call it when the runtime starts a thread, whether that is a worker or one of
/// those that run blocking work: runtimes do not say which.
pub fn mark_runtime_thread() {
    THREAD.set(Thread::Runtime);
}

/// Runs work that may wait, on a thread of the runtime for such work.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(move || {
        let _restored = Restored(THREAD.replace(Thread::Blocking));
        work()
    })
}

/// Runs work that may wait and that nobody waits for: here if this thread may wait, else by [`spawn`]. For destructors: a
/// future that is dropped drops what it holds wherever it is.
pub(crate) fn run(work: impl FnOnce() + Send + 'static) {
    if THREAD.get() == Thread::Runtime && Handle::try_current().is_ok() {
        // Nobody waits for the work.
        drop(spawn(work));
    } else {
        work();
    }
}

/// Restores what the thread was, even if the work panics: the runtime may use the thread as a worker next.
struct Restored(Thread);

impl Drop for Restored {
    fn drop(&mut self) {
        THREAD.set(self.0);
    }
}

/// Reports a use of the database on a worker: panics in debug builds, logs an error in others.
pub(crate) fn check() {
    if THREAD.get() == Thread::Runtime {
        debug_assert!(false, "a store call that may wait runs on a worker of the runtime");
        let backtrace = std::backtrace::Backtrace::capture();
        limited!(error, %backtrace, "a store call that may wait runs on a worker of the runtime");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_spawned_work_may_wait_on_the_threads_of_a_runtime() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(mark_runtime_thread)
            .build()
            .unwrap();
        assert_eq!(THREAD.get(), Thread::Own);
        run(|| assert_eq!(THREAD.get(), Thread::Own));
        runtime.block_on(async {
            assert_eq!(tokio::spawn(async { THREAD.get() }).await.unwrap(), Thread::Runtime);
            assert_eq!(spawn(|| THREAD.get()).await.unwrap(), Thread::Blocking);
            assert!(spawn(|| panic!("asked to")).await.is_err());
            let (sender, ran_on) = tokio::sync::oneshot::channel();
            tokio::spawn(async { run(move || sender.send(THREAD.get()).unwrap()) }).await.unwrap();
            assert_eq!(ran_on.await.unwrap(), Thread::Blocking);
            assert_eq!(tokio::spawn(async { THREAD.get() }).await.unwrap(), Thread::Runtime);
        });
    }
}
