//! The open store: its database, lanes and background threads. All clones of a [`Ledger`](crate::Ledger) share it.

use std::{
    sync::{Arc, mpsc::RecvTimeoutError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender as StopSender;
use ledger_core::{
    ContextId, Epoch,
    entry::{self, Draft},
    slot::Slot,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Append, AppendConditions, Appended, Covered, Durability, Filter, Page, StoreError, blocking,
    engine::db::Db,
    engine::families::RowLocation,
    engine::keep_open,
    engine::reopenable_db::ReopenableDb,
    integrity::scrub,
    limited,
    read::pages,
    shared::Shared,
    write::command::{Command, Install, Installed, lane_of},
    write::lane::{Lane, MAX_QUEUED_COMMANDS},
    write::staging,
    write::syncer,
};

/// Length of an entry id that the ledger generates.
const GENERATED_ID_LENGTH: usize = 32;
/// How often waiters are checked for passed deadlines and callers that are gone.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a load waits for its copies.
const LOAD_COMMIT_TIMEOUT: Duration = Duration::from_mins(10);

/// The open store.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) database: Arc<ReopenableDb>,
    pub(crate) shared: Arc<Shared>,
    /// True once the ledger closes; wakes watchers.
    pub(crate) closed: watch::Sender<bool>,
    /// The lanes' queues; empty once the ledger closes.
    pub(crate) lanes: RwLock<Vec<mpsc::Sender<Command>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop: Mutex<Option<StopSender<()>>>,
}

/// Dropped when a thread ends: reports whether the thread panicked.
struct PanicReport {
    name: String,
    is_essential: bool,
    shared: Arc<Shared>,
}

impl Drop for PanicReport {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(thread = self.name, "a thread of the store panicked");
            if self.is_essential {
                self.shared.broken.send_replace(Some(std::mem::take(&mut self.name)));
            }
        }
    }
}

impl Store {
    /// A store whose threads [`Store::start`] starts.
    pub(crate) fn new(database: Arc<ReopenableDb>, shared: Arc<Shared>) -> Self {
        Self {
            database,
            shared,
            closed: watch::Sender::new(false),
            lanes: RwLock::default(),
            threads: Mutex::default(),
            stop: Mutex::default(),
        }
    }

    /// Starts the lanes and the background threads.
    pub(crate) fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let options = &self.shared.options;
        let (to_syncer, syncer) = syncer::new(Arc::clone(&self.shared));
        let lanes = options.lanes();
        let mut threads = self.threads.lock();
        for number in 0..lanes {
            let (queue, commands) = mpsc::channel(MAX_QUEUED_COMMANDS);
            let (database, shared) = (Arc::clone(&self.database), Arc::clone(&self.shared));
            let lane = Lane::new(number, database, shared, to_syncer.clone(), options.head_cache / lanes);
            threads.push(self.thread(format!("lane-{number}"), true, move || lane.run(commands))?);
            self.lanes.write().push(queue);
        }
        // The lanes hold the other senders: the syncer ends after the last lane.
        drop(to_syncer);
        threads.push(self.thread("syncer".to_owned(), true, move || syncer.run())?);
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        if options.scrub_rate > 0 {
            let (database, shared, stopped) =
                (Arc::clone(&self.database), Arc::clone(&self.shared), stopped.clone());
            let lanes: Vec<_> = self.lanes.read().iter().map(mpsc::Sender::downgrade).collect();
            let run = move || scrub::run(&database, &shared, &lanes, &stopped);
            threads.push(self.thread("scrub".to_owned(), false, run)?);
        }
        if let Durability::Interval(interval) = options.durability {
            let database = Arc::clone(&self.database);
            let stopped = stopped.clone();
            threads.push(self.thread("sync".to_owned(), true, move || {
                use crossbeam_channel::RecvTimeoutError::Timeout;
                while stopped.recv_timeout(interval) == Err(Timeout) {
                    if let Err(error) = database.get().and_then(|db| db.sync()) {
                        limited!(error, %error, "the periodic sync failed");
                    }
                }
            })?);
        }
        if options.clustered {
            let (shared, stopped) = (Arc::clone(&self.shared), stopped.clone());
            threads.push(self.thread("deadlines".to_owned(), true, move || {
                while stopped.recv_timeout(EXPIRY_INTERVAL)
                    == Err(crossbeam_channel::RecvTimeoutError::Timeout)
                {
                    let now = Instant::now();
                    shared.replication().iter().for_each(|copies| copies.expire(now));
                }
            })?);
        }
        let (database, shared) = (Arc::clone(&self.database), Arc::clone(&self.shared));
        let run = move || keep_open::run(&database, &shared, &stopped);
        threads.push(self.thread("keep-open".to_owned(), true, run)?);
        *self.stop.lock() = Some(stop);
        Ok(())
    }

    /// Starts a thread. A panic of an essential one breaks the ledger: see [`Ledger::broken`](crate::Ledger::broken).
    fn thread(
        &self,
        name: String,
        is_essential: bool,
        work: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let report = PanicReport { name: name.clone(), is_essential, shared: Arc::clone(&self.shared) };
        std::thread::Builder::new().name(name).spawn(move || {
            let _report = report;
            work();
        })
    }

    /// Visits the entries of a page; quarantines the context if they are damaged.
    pub(crate) fn visit(
        &self,
        context: &ContextId,
        filter: &Filter,
        visit: &mut pages::Visit<'_>,
    ) -> Result<Covered, StoreError> {
        self.with_quarantine(context, |db| pages::visit(db, context, filter, visit))
    }

    /// Reads a page; quarantines the context if it is damaged.
    pub(crate) fn page(&self, context: &ContextId, filter: &Filter) -> Result<Page, StoreError> {
        self.with_quarantine(context, |db| pages::page(db, context, filter))
    }

    /// Installs a staged history. Returns false if a replica that came in sync meanwhile has not staged it. Blocks.
    pub(crate) fn install(&self, install: Install) -> Result<bool, StoreError> {
        let slot = Slot::of(&install.context);
        self.installed(slot, |done| Command::Install(Box::new(install), done))
    }

    /// Waits until everything written to a slot is committed, if this node owns it in that epoch. Blocks.
    pub(crate) fn await_committed(&self, slot: Slot, epoch: Epoch) -> Result<(), StoreError> {
        self.installed(slot, |done| Command::AwaitCommitted(slot, epoch, done)).map(|_| ())
    }

    fn installed(&self, slot: Slot, command: impl FnOnce(Installed) -> Command) -> Result<bool, StoreError> {
        let (done, result) = std::sync::mpsc::sync_channel(1);
        let queue = self.queue(slot)?;
        queue.blocking_send(command(done)).map_err(|_| StoreError::Closed)?;
        drop(queue);
        match result.recv_timeout(LOAD_COMMIT_TIMEOUT) {
            Ok(installed) => installed,
            Err(RecvTimeoutError::Timeout) => Err(StoreError::NotAcknowledged),
            Err(RecvTimeoutError::Disconnected) => Err(StoreError::Closed),
        }
    }

    /// Returns the number of lanes; 0 once the ledger closes.
    pub(crate) fn lane_count(&self) -> usize {
        self.lanes.read().len()
    }

    /// Returns the queue of a lane. Drop it before waiting for a reply: a lane ends when it has no more senders, so a
    /// caller that kept one could wait for a lane that waits for it.
    pub(crate) fn queue_of(&self, lane: usize) -> Result<mpsc::Sender<Command>, StoreError> {
        self.lanes.read().get(lane).cloned().ok_or(StoreError::Closed)
    }

    /// Returns the queue of a slot's lane.
    pub(crate) fn queue(&self, slot: Slot) -> Result<mpsc::Sender<Command>, StoreError> {
        let lanes = self.lanes.read();
        if lanes.is_empty() {
            return Err(StoreError::Closed);
        }
        Ok(lanes[lane_of(slot, lanes.len())].clone())
    }

    pub(crate) fn command(
        &self,
        append: Append,
        terms: AppendConditions,
        reply: oneshot::Sender<Result<Appended, StoreError>>,
    ) -> Result<(mpsc::Sender<Command>, Command), StoreError> {
        self.check(&append)?;
        Ok((self.queue(Slot::of(&append.context))?, Command::Append(append, reply, terms)))
    }

    /// Refuses an append that no context could take.
    pub(crate) fn check(&self, append: &Append) -> Result<(), StoreError> {
        let id_len = append.entry_id.as_ref().map_or(GENERATED_ID_LENGTH, |id| id.with_text(str::len));
        self.check_size(&append.context, id_len, &append.draft)?;
        ledger_core::entry::check_metadata(&append.draft.metadata)?;
        Ok(())
    }

    /// Refuses an entry that is too large for a message.
    pub(crate) fn check_size(
        &self,
        context: &ContextId,
        id_len: usize,
        draft: &Draft,
    ) -> Result<(), StoreError> {
        let (payload, max) = (draft.payload.len(), self.shared.options.max_entry);
        let len = entry::message_len(context, id_len, draft.key.as_str(), payload, &draft.metadata);
        if len > max { Err(StoreError::EntryTooLarge { len, payload, max }) } else { Ok(()) }
    }

    /// Reads a context unless it is quarantined, and quarantines it if the read meets damage.
    pub(crate) fn with_quarantine<T>(
        &self,
        context: &ContextId,
        read: impl FnOnce(&Db) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.shared.quarantine.check(context)?;
        self.quarantine_damage(self.database.get().and_then(|db| read(&db)))
    }

    /// Removes staged rows that nobody installs. Does not wait on a runtime's worker.
    pub(crate) fn abandon(self: &Arc<Self>, context: &ContextId, place: RowLocation) {
        let (store, context) = (Arc::clone(self), context.clone());
        blocking::run(move || {
            if let Err(error) = store.database.get().and_then(|db| staging::abandon(&db, place)) {
                // Opening the database again removes them.
                limited!(warn, %context, %error, "what was staged of a history stays until the database is opened anew");
            }
        });
    }

    /// Quarantines the context whose damage a read met.
    pub(crate) fn quarantine_damage<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|error| self.shared.quarantine.record(error))
    }

    pub(crate) fn close(&self) -> Result<(), StoreError> {
        if self.stop() { self.close_database() } else { Ok(()) }
    }

    /// Closes the database, once everything that writes has stopped.
    pub(crate) fn close_database(&self) -> Result<(), StoreError> {
        for copies in self.shared.replication() {
            // Pending commits hold the database: fail them. This node does not learn any more whether they commit.
            copies.on_write_failed(&self.shared.publisher, &StoreError::NotAcknowledged);
        }
        self.database.close()
    }

    /// Stops everything that writes. Returns false if it was stopped before.
    pub(crate) fn stop(&self) -> bool {
        {
            let mut lanes = self.lanes.write();
            if *self.closed.borrow() {
                return false;
            }
            lanes.clear();
            self.closed.send_replace(true);
        }
        *self.stop.lock() = None;
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
        true
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !*self.closed.borrow()
            && let Err(error) = self.close()
        {
            tracing::error!(%error, "the ledger could not be closed cleanly: the log is replayed at the next start");
        }
    }
}
