//! The ledger: what an embedding program holds.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::Ordering, mpsc::RecvTimeoutError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::Sender as StopSender;
use ledger_core::{
    ContextId, Epoch, Head, Key, Position, Sequence, Size,
    clock::LamportClock,
    entry::{self, Draft},
    node::{ClusterId, Incarnation},
    ownership::SlotRecord,
    slot::Slot,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Append, AppendConditions, Appended, BatchResults, Checkpointed, ContextInfo, ContextList, Covered,
    Damage, Durability, EntryView, FamilyDamage, Filter, ForkCursor, ForkList, Load, Loaded, Options, Page,
    ProvenConsistency, ProvenInclusion, SnapshotStream, Stats, StoreError, Watch,
    budget::Share,
    directory::attributes,
    directory::data_dir::DataDir,
    directory::incarnation,
    directory::meta::{self, Meta, Numbers},
    directory::slot_records,
    engine::db::{Db, io_error},
    engine::durable_index::DurableIndex,
    engine::families,
    engine::index,
    engine::reopenable_db::{self, ReopenableDb},
    engine::space,
    engine::watermark::{self, Watermark},
    integrity::forks,
    integrity::quarantine::Quarantine,
    integrity::scrub,
    limited,
    read::pages,
    read::prove,
    read::visibility::SlotVisibility,
    replicate::digests::Digests,
    shared::{OpenedState, Shared},
    write::lane::{Command, Install, Lane, MAX_COMMAND_APPENDS, MAX_QUEUED_COMMANDS, lane_of},
    write::staging,
    write::syncer,
    write::uncommitted_loads::UncommittedLoads,
    write::waiters::Installed,
};

/// A page of a listing reads so many heads for each context that it may have, …
const HEADS_PER_CONTEXT: usize = 32;
/// … and so many in any case.
const LEAST_HEADS: usize = 10_000;
/// Length of an entry id that the ledger makes.
const GENERATED_ID_LENGTH: usize = 32;
/// How often those are looked for whose time is over, or who went.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a load waits for its copies.
const LOAD_COMMIT_TIMEOUT: Duration = Duration::from_mins(10);

/// A durable ledger in a data directory. Cheap to clone; all methods may be called from any thread.
///
/// Methods that are not `async` may wait for the disk: call them from a thread that may block.
#[derive(Debug, Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

/// What all clones share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) database: Arc<ReopenableDb>,
    pub(crate) shared: Arc<Shared>,
    /// True once the ledger closes; wakes watchers.
    pub(crate) closed: watch::Sender<bool>,
    /// The lanes' queues; empty once the ledger closes.
    lanes: RwLock<Vec<mpsc::Sender<Command>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stop: Mutex<Option<StopSender<()>>>,
}

impl Ledger {
    /// Opens or creates a ledger with the default options.
    ///
    /// # Errors
    /// As [`Ledger::open_with`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(dir, Options::default())
    }

    /// Opens or creates a ledger.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`] if something of the directory is lost or damaged that it cannot do without;
    /// [`StoreError::Open`] if it cannot be used for another reason.
    pub fn open_with(dir: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        Self::try_open(dir, options).map_err(|error| match error {
            StoreError::FileDamaged(_) => {
                StoreError::NotWhole { path: dir.display().to_string(), reason: error.to_string() }
            }
            other => other,
        })
    }

    fn try_open(dir: &Path, options: Options) -> Result<Self, StoreError> {
        let open = |reason: String| StoreError::Open { path: dir.display().to_string(), reason };
        let home = DataDir::new(dir)?;
        let opening = home.prepare()?;
        let watermark = Watermark::open(dir).map_err(|error| {
            let remedy = if space::is_no_space_io(&error) {
                "free some space and start again"
            } else {
                "give this user the right to write there"
            };
            open(format!("its file {} cannot be written ({error}); {remedy}", watermark::FILE))
        })?;
        let readable = Arc::new(SlotVisibility::new(options.clustered));
        let (path, marks) = (home.database(), DurableIndex::new(watermark));
        let database = ReopenableDb::open(path, options.clone(), Arc::clone(&readable), marks, opening)?;
        let database = Arc::new(database);
        let db = database.get()?;
        let meta = Meta::open(&db, dir)?;
        home.is_in_use()?;
        staging::clean_up(&db)?;
        forks::clean_up(&db);
        index::ensure(&db)?;
        let numbers = Numbers::open(&db)?;
        let quarantine = Quarantine::default();
        let digests = options.clustered.then(|| Digests::scan(&db, &quarantine)).transpose()?;
        let known = OpenedState { digests, quarantine, loaded: UncommittedLoads::open(&db)? };
        let shared = Shared::new(options, meta, numbers, Arc::clone(&database), readable, known);
        if database.was_short_of_space() {
            shared.commit_failed(&StoreError::DiskFull { needed: Some(database.needed()) });
        }
        shared.cluster.send_replace(meta::read(&db, meta::CLUSTER_ID_KEY)?.map(ClusterId));
        let shared = Arc::new(shared);
        let ledger = Self {
            inner: Arc::new(Inner {
                database,
                shared,
                closed: watch::Sender::new(false),
                lanes: RwLock::default(),
                threads: Mutex::default(),
                stop: Mutex::default(),
            }),
        };
        ledger.inner.start().map_err(|error| open(format!("a thread cannot be started: {error}")))?;
        Ok(ledger)
    }

    /// Appends an entry; returns when it is durable. Blocks: async code calls [`Ledger::append_async`].
    ///
    /// # Errors
    /// Why nothing was appended; with [`StoreError::NotCopied`] and [`StoreError::Closed`] it may have been.
    /// Retrying is safe with an entry id.
    pub fn append(&self, context: &ContextId, draft: Draft) -> Result<Appended, StoreError> {
        self.append_received(context, draft, LamportClock(0))
    }

    /// As [`Ledger::append`], with a Lamport time received from elsewhere: the entry's time becomes
    /// `max(local, received) + 1`.
    ///
    /// # Errors
    /// As [`Ledger::append`].
    pub fn append_received(
        &self,
        context: &ContextId,
        draft: Draft,
        received: LamportClock,
    ) -> Result<Appended, StoreError> {
        let append = Append { received_lamport: received.0, ..Append::new(context.clone(), draft) };
        let (reply, result) = oneshot::channel();
        let (queue, command) = self.inner.command(append, AppendConditions::default(), reply)?;
        queue.blocking_send(command).map_err(|_| StoreError::Closed)?;
        drop(queue);
        result.blocking_recv().map_err(|_| StoreError::Closed)?
    }

    /// As [`Ledger::append`], for async code and with all options. Dropping the future does not undo the
    /// append.
    ///
    /// # Errors
    /// As [`Ledger::append`].
    pub async fn append_async(&self, append: Append) -> Result<Appended, StoreError> {
        self.append_on(append, AppendConditions::default()).await
    }

    /// As [`Ledger::append_async`], on terms.
    ///
    /// # Errors
    /// As [`Ledger::append`], and if it was not done before the deadline of the terms.
    pub async fn append_on(&self, append: Append, terms: AppendConditions) -> Result<Appended, StoreError> {
        let (reply, result) = oneshot::channel();
        let (queue, command) = self.inner.command(append, terms, reply)?;
        queue.send(command).await.map_err(|_| StoreError::Closed)?;
        drop(queue);
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Hands over a batch of tagged appends. Each gets exactly one result, in order for each context, in
    /// one message to `results` for every lane and group commit. Waits while the lanes' queues are full. The permit of
    /// the terms is held until the last of them is done.
    ///
    /// # Errors
    /// [`StoreError::Closed`], only if nothing was handed over; results of what was are sent.
    pub async fn submit(
        &self,
        appends: Vec<(u64, Append)>,
        terms: AppendConditions,
        results: mpsc::UnboundedSender<BatchResults>,
    ) -> Result<(), StoreError> {
        let queues = self.inner.lanes.read().clone();
        if queues.is_empty() {
            return Err(StoreError::Closed);
        }
        let mut refused = Vec::new();
        let mut shares: Vec<Vec<(u64, Append)>> = queues.iter().map(|_| Vec::new()).collect();
        for (tag, append) in appends {
            match self.inner.check(&append) {
                Ok(()) => shares[lane_of(Slot::of(&append.context), queues.len())].push((tag, append)),
                Err(error) => refused.push(crate::BatchResult { tag, result: Err(error) }),
            }
        }
        if !refused.is_empty() {
            // Whoever waits for results may have gone.
            let _ = results.send(BatchResults { results: refused, positions: Vec::new(), copies: 0 });
        }
        for (queue, mut share) in queues.iter().zip(shares) {
            while !share.is_empty() {
                let rest = share.split_off(share.len().min(MAX_COMMAND_APPENDS));
                let command = Command::Batch(share, results.clone(), terms.clone());
                share = rest;
                if let Err(mpsc::error::SendError(Command::Batch(batch, ..))) = queue.send(command).await {
                    let failed = batch.into_iter().chain(std::mem::take(&mut share));
                    let failed =
                        failed.map(|(tag, _)| crate::BatchResult { tag, result: Err(StoreError::Closed) });
                    let _ = results.send(BatchResults {
                        results: failed.collect(),
                        positions: Vec::new(),
                        copies: 0,
                    });
                }
            }
        }
        Ok(())
    }

    /// The context's head; `None` if it was never written.
    ///
    /// # Errors
    /// Damage that is met ([`StoreError::Damaged`]); the database cannot be read, or is being reopened.
    pub fn head(&self, context: &ContextId) -> Result<Option<Head>, StoreError> {
        self.inner
            .quarantine_damage(self.inner.database.get().and_then(|db| db.head(context)))
            .map(|found| found.map(|(_, head)| head))
    }

    /// Sequence of the newest entry; 0 if there is none.
    ///
    /// # Errors
    /// As [`Ledger::head`].
    pub fn sequence(&self, context: &ContextId) -> Result<Sequence, StoreError> {
        Ok(self.head(context)?.map_or(Sequence(0), |head| head.size().newest()))
    }

    /// The context's Lamport time; 0 if it was never written.
    ///
    /// # Errors
    /// As [`Ledger::head`].
    pub fn lamport(&self, context: &ContextId) -> Result<LamportClock, StoreError> {
        Ok(self.head(context)?.map_or(LamportClock(0), |head| head.lamport))
    }

    /// As [`Ledger::get`], without copying: calls `visit` with each entry where it lies. What was visited before
    /// an error is good.
    ///
    /// # Errors
    /// Damage that is met ([`StoreError::Damaged`]); the database cannot be read, or is being reopened.
    pub fn visit(
        &self,
        context: &ContextId,
        filter: &Filter,
        mut visit: impl FnMut(EntryView<'_>),
    ) -> Result<Covered, StoreError> {
        let mut visit = |view: EntryView<'_>| {
            visit(view);
            Ok(())
        };
        self.inner.visit(context, filter, &mut visit)
    }

    /// Reads a page. Every record is checked against its checksum; the scrub checks the content hashes.
    ///
    /// # Errors
    /// As [`Ledger::visit`].
    pub fn get(&self, context: &ContextId, filter: &Filter) -> Result<Page, StoreError> {
        self.inner.page(context, filter)
    }

    /// Watches a context: every entry after a sequence, then the live tail.
    pub fn watch(&self, context: &ContextId, key: Option<Key>, after: Sequence) -> Watch {
        Watch::new(Arc::clone(&self.inner), context.clone(), key, after)
    }

    /// Begins a snapshot of the context as it is now.
    ///
    /// # Errors
    /// Damage that is met ([`StoreError::Damaged`]); the database cannot be read, or is being reopened.
    pub fn snapshot(&self, context: &ContextId) -> Result<SnapshotStream, StoreError> {
        SnapshotStream::begin(Arc::clone(&self.inner), context)
    }

    /// About how many bytes of disk and memory the entries of a context take: those of a snapshot, give or take.
    ///
    /// # Errors
    /// As [`Ledger::head`].
    pub fn snapshot_size(&self, context: &ContextId) -> Result<u64, StoreError> {
        let db = self.inner.database.get()?;
        let Some((place, head)) = db.head(context)? else { return Ok(0) };
        db.size_of(families::ENTRIES, &place.entry(Sequence(1)), &place.entry(Sequence(head.size().0 + 1)))
    }

    /// Begins a load into a context: feed it the snapshot's bytes, then finish it.
    ///
    /// # Errors
    /// [`StoreError::ContextExists`] if the context has entries and `fail_if_exists`; the database cannot be
    /// read.
    pub fn load(&self, context: &ContextId, fail_if_exists: bool) -> Result<Load, StoreError> {
        Load::begin(Arc::clone(&self.inner), context.clone(), fail_if_exists)
    }

    /// The memory that loads and the tails of watched contexts take.
    pub fn shares(&self) -> [Arc<Share>; 2] {
        let shared = &self.inner.shared;
        [Arc::clone(&shared.loads), Arc::clone(shared.tails.share())]
    }

    /// Loads a whole snapshot from a reader.
    ///
    /// # Errors
    /// As [`Ledger::load`], [`Load::feed`] and [`Load::finish`]; [`StoreError::Io`] if the reader fails.
    pub fn load_from(
        &self,
        context: &ContextId,
        fail_if_exists: bool,
        mut reader: impl std::io::Read,
    ) -> Result<Loaded, StoreError> {
        let mut load = self.load(context, fail_if_exists)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return load.finish(),
                Ok(read) => load.feed(&buffer[..read])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::Io(format!("the snapshot cannot be read: {error}"))),
            }
        }
    }

    /// The position at a size; `None`: the newest. A context that was never written has size 0, the root of the
    /// empty tree and a lineage of zeros.
    ///
    /// # Errors
    /// The context never had that size; damage that is met; the database cannot be read.
    pub fn checkpoint(&self, context: &ContextId, size: Option<Size>) -> Result<Checkpointed, StoreError> {
        self.inner.with_quarantine(context, |db| {
            prove::checkpoint(db, context, size, self.inner.shared.options.suite)
        })
    }

    /// Proves that an entry is in the tree of a size; `None`: the newest.
    ///
    /// # Errors
    /// The context has no such entry, or never had that size; damage that is met; the database cannot be
    /// read.
    pub fn prove_inclusion(
        &self,
        context: &ContextId,
        sequence: Sequence,
        size: Option<Size>,
    ) -> Result<ProvenInclusion, StoreError> {
        self.inner.with_quarantine(context, |db| prove::inclusion(db, context, sequence, size))
    }

    /// Proves that the tree of one size is a prefix of the tree of another; `None`: the newest.
    ///
    /// # Errors
    /// The context never had one of the sizes; damage that is met; the database cannot be read.
    pub fn prove_consistency(
        &self,
        context: &ContextId,
        old: Size,
        new: Option<Size>,
    ) -> Result<ProvenConsistency, StoreError> {
        self.inner.with_quarantine(context, |db| prove::consistency(db, context, old, new))
    }

    /// Checks that the context's history passes through a position: [`StoreError::HistoryChanged`] if not.
    ///
    /// # Errors
    /// [`StoreError::HistoryChanged`] if it does not; damage that is met; the database cannot be read.
    pub fn check_position(&self, context: &ContextId, position: &Position) -> Result<(), StoreError> {
        self.inner.with_quarantine(context, |db| {
            prove::check_position(db, context, position, self.inner.shared.options.suite)
        })
    }

    /// Contexts in order of their ids: those that begin with `prefix`, after `after`, at most `limit`.
    ///
    /// # Errors
    /// The database cannot be read, or is being reopened.
    pub fn contexts(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<ContextInfo>, StoreError> {
        let mut contexts = Vec::new();
        let mut after = after.to_owned();
        while contexts.len() < limit {
            let page = self.list(prefix, &after, limit - contexts.len(), |_| true)?;
            contexts.extend(page.contexts);
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        Ok(contexts)
    }

    /// A page of the contexts of some slots, in order of their ids: those that begin with `prefix`, after `after`, at most
    /// `limit` (at least 1). Reads a bounded number of heads, so there may be few or none though more follow.
    ///
    /// # Errors
    /// The database cannot be read, or is being reopened.
    pub fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        slots: impl Fn(Slot) -> bool,
    ) -> Result<ContextList, StoreError> {
        let (mut contexts, mut read) = (Vec::new(), 0);
        let most = limit.saturating_mul(HEADS_PER_CONTEXT).max(LEAST_HEADS);
        let after_key = [after.as_bytes(), &[0]].concat();
        let first = if after.is_empty() { prefix.as_bytes() } else { prefix.as_bytes().max(&after_key) };
        let db = self.inner.database.get()?;
        let (mut newest, mut is_whole) = (Vec::new(), true);
        db.scan(families::HEADS, first, &[0xff], true, |key, value| {
            if !key.starts_with(prefix.as_bytes()) {
                return false;
            }
            if contexts.len() >= limit.max(1) || read >= most {
                is_whole = false;
                return false;
            }
            read += 1;
            key.clone_into(&mut newest);
            if let Some((context, place, head)) = scrub::decode_row(&self.inner.shared, key, value)
                && slots(place.slot)
                && let Some((_, head)) = db.committed_heads().of(&context, Some((place, head)))
            {
                contexts.push(ContextInfo {
                    size: head.size(),
                    context,
                    lamport: head.lamport,
                    epoch: head.epoch,
                    suite: head.suite,
                    lineage: head.lineage,
                    created_at_ns: head.created_at_ns,
                });
            }
            true
        })
        .map_err(|error| io_error(&error))?;
        let next = (!is_whole).then(|| String::from_utf8_lossy(&newest).into_owned());
        Ok(ContextList { contexts, next })
    }

    /// Commands that wait for the writer threads: none if these keep up easily.
    pub fn waiting(&self) -> usize {
        self.inner.lanes.read().iter().map(|queue| queue.max_capacity() - queue.capacity()).sum()
    }

    /// Entries appended since opening.
    pub fn appended(&self) -> u64 {
        self.inner.shared.counts().0
    }

    /// What the store can say of itself, at once: what only the database knows is unknown while that is reopened.
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let db = self.inner.database.if_open();
        let db = db.as_deref();
        let (appended, commits, failed_commits) = shared.counts();
        Stats {
            appended,
            commits,
            failed_commits,
            scrubbed: shared.scrubbed.load(Ordering::Relaxed),
            quarantined: shared.quarantine.list().len() as u64,
            damaged_families: shared.quarantine.families().len() as u64,
            damaged_slots: shared.damaged_slots() as u64,
            compacts: self.inner.database.compacts(),
            contexts: match &shared.digests {
                Some(digests) => Some(digests.contexts(|slot| shared.visibility.is_member(slot))),
                None => db.map(|db| db.family_property(families::HEADS, "rocksdb.estimate-num-keys")),
            },
            disk_bytes: db.map(|db| db.property("rocksdb.total-sst-files-size")),
            memory_bytes: db.map(|db| {
                db.cache_usage()
                    + db.property("rocksdb.cur-size-all-mem-tables")
                    + db.property("rocksdb.estimate-table-readers-mem")
            }),
        }
    }

    /// Histories that were left, of a context or of all, in no particular but a lasting order: after a cursor, at
    /// most `limit` (at least 1).
    ///
    /// # Errors
    /// The database cannot be read, or is being reopened.
    pub fn forks(
        &self,
        context: Option<&ContextId>,
        after: Option<ForkCursor>,
        limit: usize,
    ) -> Result<ForkList, StoreError> {
        forks::list(&*self.inner.database.get()?, context, after, limit)
    }

    /// Reads a page of the entries of a fork, which come after what it has in common with the history that took its
    /// place. The page's `latest` is the size that the history had when it was left.
    ///
    /// # Errors
    /// [`StoreError::NoSuchFork`] if the context has no fork of that number; the database cannot be read.
    pub fn fork_entries(&self, context: &ContextId, fork: u64, filter: &Filter) -> Result<Page, StoreError> {
        forks::entries(&*self.inner.database.get()?, context, fork, filter)
    }

    /// Completes when a thread that the ledger cannot do without has panicked: gives its name. What it is asked for from then
    /// on fails with [`StoreError::Closed`], and nothing that was acknowledged is lost: open the ledger anew.
    pub async fn broken(&self) -> String {
        let mut broken = self.inner.shared.broken.subscribe();
        match broken.wait_for(Option::is_some).await.map(|name| name.clone()) {
            Ok(Some(name)) => name,
            // It is closed.
            _ => std::future::pending().await,
        }
    }

    /// Damage found so far, by reads and by the scrub.
    pub fn damage(&self) -> Vec<Damage> {
        self.inner.shared.quarantine.list()
    }

    /// Damage found so far of what is not of one context.
    pub fn damaged_families(&self) -> Vec<FamilyDamage> {
        self.inner.shared.quarantine.families()
    }

    /// Whether a context is known to be damaged.
    pub fn is_damaged(&self, context: &ContextId) -> bool {
        self.inner.shared.quarantine.check(context).is_err()
    }

    /// Checks all that is stored of a context, now: damage is quarantined, and reported by [`Ledger::damage`]. Blocks.
    ///
    /// # Errors
    /// The database cannot be read, or is being reopened.
    pub fn scrub(&self, context: &ContextId) -> Result<(), StoreError> {
        scrub::check(&self.inner.database, &self.inner.shared, context)
    }

    /// Whether appends can be acknowledged: the last commit's error, if it failed.
    ///
    /// # Errors
    /// The last commit's error; [`StoreError::Closed`].
    pub fn writable(&self) -> Result<(), StoreError> {
        if self.inner.lanes.read().is_empty() {
            return Err(StoreError::Closed);
        }
        self.inner.shared.failure().map_or(Ok(()), Err)
    }

    /// Whether commits can be written, from now on: false after one failed, until the database was reopened.
    pub fn watch_writable(&self) -> watch::Receiver<bool> {
        self.inner.shared.watch_writable()
    }

    /// An entry id as the ledger makes them: for whoever sends an append on and may have to send it again.
    pub fn new_entry_id() -> ledger_core::EntryId {
        Shared::new_entry_id()
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        self.inner.database.directory()
    }

    /// Seed of the node's Ed25519 key: made when the directory was formatted, and kept in it.
    pub fn signing_seed(&self) -> [u8; 32] {
        self.inner.shared.meta.signing_seed
    }

    /// The directory's own id, made when it was formatted: 32 hex digits.
    pub fn storage_id(&self) -> String {
        hex::encode(self.inner.shared.meta.storage_id)
    }

    /// Counts a start of the node, and gives its number: higher at every call than at any before. It is on disk when
    /// this returns. Blocks.
    ///
    /// # Errors
    /// The number cannot be written to disk.
    pub fn next_incarnation(&self) -> Result<Incarnation, StoreError> {
        self.inner.database.durable_index().start();
        incarnation::next(&*self.inner.database.get()?)
            .inspect_err(|error| self.inner.shared.commit_failed(error))
    }

    /// Notes that a later start of this node was heard of: the next one here is later still. It is on disk when this
    /// returns. Blocks.
    ///
    /// # Errors
    /// If the note cannot be written.
    pub fn record_incarnation(&self, heard: Incarnation) -> Result<(), StoreError> {
        incarnation::record(&*self.inner.database.get()?, heard)
            .inspect_err(|error| self.inner.shared.commit_failed(error))
    }

    /// What the node noted under a name about itself; `None`: nothing. Blocks.
    ///
    /// # Errors
    /// The database cannot be read, or is being reopened.
    pub fn node_attribute(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        attributes::read(&*self.inner.database.get()?, name)
    }

    /// Notes something under a name in place of what was noted before, or nothing; it is on disk when this returns. Blocks.
    ///
    /// # Errors
    /// It cannot be written to disk: what was noted before stays.
    pub fn set_node_attribute(&self, name: &str, note: Option<&[u8]>) -> Result<(), StoreError> {
        attributes::write(&*self.inner.database.get()?, name, note)
            .inspect_err(|error| self.inner.shared.commit_failed(error))
    }

    /// What this replica promised and accepted of a slot.
    ///
    /// # Errors
    /// The record is damaged, or the database cannot be read.
    pub fn slot_record(&self, slot: Slot) -> Result<SlotRecord, StoreError> {
        slot_records::read(&*self.inner.database.get()?, slot)
    }

    /// Keeps what this replica promised and accepted of slots, all or none; returns when it is on disk.
    ///
    /// # Errors
    /// They cannot be written to disk: none is kept.
    pub fn keep_slot_records(&self, records: &BTreeMap<Slot, SlotRecord>) -> Result<(), StoreError> {
        slot_records::write(&*self.inner.database.get()?, records, None)
            .inspect_err(|error| self.inner.shared.commit_failed(error))
    }

    /// Finishes what was accepted, syncs and closes. Appends and watchers fail with
    /// [`StoreError::Closed`] from then on, and so does whatever reads. The directory is free when this returns, unless
    /// something goes on reading for seconds.
    ///
    /// # Errors
    /// What is left cannot be written, or a thread panicked.
    pub fn close(&self) -> Result<(), StoreError> {
        self.inner.close()
    }
}

impl Ledger {
    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

/// Dropped when a thread ends: tells whether that was by a panic.
struct TellPanic {
    name: String,
    is_essential: bool,
    shared: Arc<Shared>,
}

impl Drop for TellPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(thread = self.name, "a thread of the store panicked");
            if self.is_essential {
                self.shared.broken.send_replace(Some(std::mem::take(&mut self.name)));
            }
        }
    }
}

impl Inner {
    fn start(self: &Arc<Self>) -> std::io::Result<()> {
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
        // The lanes hold the way to it: it ends after the last of them.
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
        let run = move || reopenable_db::keep_open(&database, &shared, &stopped);
        threads.push(self.thread("keep-open".to_owned(), true, run)?);
        *self.stop.lock() = Some(stop);
        Ok(())
    }

    /// Starts a thread, whose panic is told at once. Whether the ledger cannot do without it: see [`Ledger::broken`].
    fn thread(
        &self,
        name: String,
        is_essential: bool,
        work: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let told = TellPanic { name: name.clone(), is_essential, shared: Arc::clone(&self.shared) };
        std::thread::Builder::new().name(name).spawn(move || {
            let _told = told;
            work();
        })
    }

    /// Visits the entries of a page, and remembers damage it meets.
    pub(crate) fn visit(
        &self,
        context: &ContextId,
        filter: &Filter,
        visit: &mut pages::Visit<'_>,
    ) -> Result<Covered, StoreError> {
        self.with_quarantine(context, |db| pages::visit(db, context, filter, visit))
    }

    /// Reads a page, and remembers damage it meets.
    pub(crate) fn page(&self, context: &ContextId, filter: &Filter) -> Result<Page, StoreError> {
        self.with_quarantine(context, |db| pages::page(db, context, filter))
    }

    /// Puts a staged history in place; false if a replica that counts by now has not staged it. Blocks.
    pub(crate) fn install(&self, install: Install) -> Result<bool, StoreError> {
        let slot = Slot::of(&install.context);
        self.installed(slot, |done| Command::Install(Box::new(install), done))
    }

    /// Waits until all that was written of a slot has its copies, if this node owns it in that epoch. Blocks.
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

    /// Number of lanes; 0 once the ledger closes.
    pub(crate) fn lane_count(&self) -> usize {
        self.lanes.read().len()
    }

    /// The queue of a lane. Whoever waits for what comes of a command drops it before: a lane ends once it has no more
    /// senders, and what is waited for may never come.
    pub(crate) fn queue_of(&self, lane: usize) -> Result<mpsc::Sender<Command>, StoreError> {
        self.lanes.read().get(lane).cloned().ok_or(StoreError::Closed)
    }

    /// The queue of the lane of a slot.
    pub(crate) fn queue(&self, slot: Slot) -> Result<mpsc::Sender<Command>, StoreError> {
        let lanes = self.lanes.read();
        if lanes.is_empty() {
            return Err(StoreError::Closed);
        }
        Ok(lanes[lane_of(slot, lanes.len())].clone())
    }

    fn command(
        &self,
        append: Append,
        terms: AppendConditions,
        reply: oneshot::Sender<Result<Appended, StoreError>>,
    ) -> Result<(mpsc::Sender<Command>, Command), StoreError> {
        self.check(&append)?;
        Ok((self.queue(Slot::of(&append.context))?, Command::Append(append, reply, terms)))
    }

    /// Refuses what no context could take.
    fn check(&self, append: &Append) -> Result<(), StoreError> {
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

    /// Reads of a context that is not quarantined, and quarantines it if it turns out damaged.
    pub(crate) fn with_quarantine<T>(
        &self,
        context: &ContextId,
        read: impl FnOnce(&Db) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.shared.quarantine.check(context)?;
        self.quarantine_damage(self.database.get().and_then(|db| read(&db)))
    }

    /// Remembers damage that a reading met.
    pub(crate) fn quarantine_damage<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|error| self.shared.quarantine.record(error))
    }

    fn close(&self) -> Result<(), StoreError> {
        if self.stop() { self.close_database() } else { Ok(()) }
    }

    /// Closes the database, once everything that writes has stopped.
    pub(crate) fn close_database(&self) -> Result<(), StoreError> {
        for copies in self.shared.replication() {
            // What still waits for copies holds the database. Whether it gets them is not known here any more.
            copies.on_write_failed(&self.shared, &StoreError::NotAcknowledged);
        }
        self.database.close()
    }

    /// Stops everything that writes; false if that was done before.
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

impl Drop for Inner {
    fn drop(&mut self) {
        if !*self.closed.borrow()
            && let Err(error) = self.close()
        {
            tracing::error!(%error, "the ledger could not be closed cleanly: the log is replayed at the next start");
        }
    }
}
