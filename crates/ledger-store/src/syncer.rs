//! The syncer: the thread that makes commits durable, with one sync for all that wait.
//!
//! While it waits for the disk the lanes stage and write the next commits, so neither waits for the other.
//! This is group commit with flush pipelining, as in Johnson et al., "Aether: A Scalable Approach to
//! Logging" (VLDB 2010, §4).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::{
    StoreError,
    commit::{TakenReply, Written},
    copies::Copies,
    db::Db,
    replica::Taken,
    shared::Shared,
};

/// Most commits that wait for a sync: beyond it, lanes wait.
const QUEUE: usize = 64;

/// What is to be done when a commit is durable.
pub(crate) enum Durable {
    /// A lone node's: acknowledge it.
    Alone(Written),
    /// A node's of a cluster: it is one copy.
    Copy {
        /// The database it was written to.
        db: Arc<Db>,
        /// What waits of the lane.
        copies: Arc<Copies>,
        /// The number of this node's own commits in it.
        number: Option<u64>,
        /// Answers to owners.
        taken: Vec<(Vec<Taken>, TakenReply)>,
    },
}

impl Durable {
    fn db(&self) -> &Arc<Db> {
        match self {
            Self::Alone(written) => written.db(),
            Self::Copy { db, .. } => db,
        }
    }

    /// It is durable.
    pub(crate) fn done(self, shared: &Shared) {
        match self {
            Self::Alone(written) => written.acknowledge(shared, 1),
            Self::Copy { copies, number, taken, .. } => {
                for (outcome, reply) in taken {
                    // The owner may be gone.
                    let _ = reply.send(Ok(outcome));
                }
                if let Some(number) = number {
                    copies.synced(shared, number);
                }
            }
        }
    }

    /// It may not be durable: tells those who wait. Those who wait for copies were told with the failure.
    pub(crate) fn fail(self, error: &StoreError) {
        match self {
            Self::Alone(written) => drop(written.fail(error)),
            Self::Copy { taken, .. } => {
                for (_, reply) in taken {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// What a lane can ask of the syncer.
enum Queued {
    Commit(Durable),
    /// Say when everything before was acknowledged.
    Drain(Sender<()>),
}

/// The lanes' way to the syncer.
#[derive(Clone)]
pub(crate) struct ToSyncer {
    queue: Sender<Queued>,
    outstanding: Arc<AtomicUsize>,
}

/// The syncer's own things.
pub(crate) struct Syncer {
    queue: Receiver<Queued>,
    outstanding: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

/// A syncer to be run on a thread, and the way to it.
pub(crate) fn new(shared: Arc<Shared>) -> (ToSyncer, Syncer) {
    let (sender, queue) = bounded(QUEUE);
    let outstanding = Arc::new(AtomicUsize::new(0));
    (ToSyncer { queue: sender, outstanding: Arc::clone(&outstanding) }, Syncer { queue, outstanding, shared })
}

impl ToSyncer {
    /// Hands a commit over. Commits of one lane are acknowledged in order.
    pub(crate) fn send(&self, written: Durable) {
        self.outstanding.fetch_add(1, Ordering::SeqCst);
        if let Err(lost) = self.queue.send(Queued::Commit(written))
            && let Queued::Commit(written) = lost.into_inner()
        {
            written.fail(&StoreError::Closed);
        }
    }

    /// Waits until every commit handed over so far was acknowledged.
    pub(crate) fn drain(&self) {
        let (done, drained) = bounded(1);
        if self.queue.send(Queued::Drain(done)).is_ok() {
            // It ends either way: with the answer, or with the syncer.
            let _ = drained.recv();
        }
    }

    /// Whether every commit was acknowledged.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.load(Ordering::SeqCst) == 0
    }
}

impl Syncer {
    /// Serves until the last lane is gone.
    pub(crate) fn run(self) {
        let mut commits = Vec::with_capacity(QUEUE);
        while let Ok(first) = self.queue.recv() {
            let mut drain = None;
            for queued in std::iter::once(first).chain(self.queue.try_iter().take(QUEUE)) {
                match queued {
                    Queued::Commit(written) => commits.push(written),
                    Queued::Drain(done) => drain = Some(done),
                }
                if drain.is_some() {
                    break;
                }
            }
            let count = commits.len();
            sync(&mut commits, &self.shared);
            self.outstanding.fetch_sub(count, Ordering::SeqCst);
            if let Some(done) = drain {
                // Whoever asked is waiting for it.
                let _ = done.send(());
            }
        }
    }
}

/// Makes commits of one database durable and acknowledges them, in order.
fn sync(commits: &mut Vec<Durable>, shared: &Shared) {
    // All are of one database: it is replaced only when nobody holds it.
    let synced = match commits.last() {
        Some(newest) => newest.db().sync(),
        None => return,
    };
    match synced {
        Ok(()) => commits.drain(..).for_each(|written| written.done(shared)),
        Err(error) => {
            shared.commit_failed(&error);
            commits.drain(..).for_each(|written| written.fail(&error));
        }
    }
}
