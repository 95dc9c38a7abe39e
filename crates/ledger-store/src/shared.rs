//! What lanes and readers share.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use ledger_core::{EntryId, Epoch, node::ClusterId, slot::Slot};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Options, StoreError,
    budget::Share,
    directory::meta::{Meta, Numbers},
    engine::reopenable_db::ReopenableDb,
    integrity::quarantine::Quarantine,
    limited,
    read::tail::Tails,
    read::visibility::SlotVisibility,
    replicate::digests::Digests,
    replicate::incoming_load::{OfferedLoads, StagedLoads},
    replicate::lane_replication::{LaneReplication, OutboxCell},
    write::lane::lane_of,
    write::uncommitted_loads::UncommittedLoads,
};

/// What lanes and readers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    /// Memory for loads.
    pub(crate) loads: Arc<Share>,
    /// A snapshot of the predecessor is being loaded.
    pub(crate) legacy: Arc<AtomicBool>,
    pub(crate) meta: Meta,
    pub(crate) numbers: Numbers,
    pub(crate) tails: Arc<Tails>,
    pub(crate) quarantine: Quarantine,
    pub(crate) scrubbed: AtomicU64,
    pub(crate) database: Arc<ReopenableDb>,
    pub(crate) visibility: Arc<SlotVisibility>,
    /// In a cluster: what every slot holds.
    pub(crate) digests: Option<Digests>,
    /// In a cluster: loads of other nodes that are staged here.
    pub(crate) staged_loads: StagedLoads,
    /// In a cluster: loads that other nodes may stage.
    pub(crate) offered_loads: OfferedLoads,
    /// In a cluster: what loads brought that may not be stable.
    pub(crate) uncommitted_loads: UncommittedLoads,
    /// In a cluster: carries what lanes send.
    pub(crate) outbox: OutboxCell,
    /// The cluster that the directory belongs to, once it does.
    pub(crate) cluster: watch::Sender<Option<ClusterId>>,
    /// The thread that panicked, of those that the ledger cannot do without.
    pub(crate) broken: watch::Sender<Option<String>>,
    /// In a cluster: what waits of each lane.
    replication: OnceLock<Vec<Arc<LaneReplication>>>,
    appended: AtomicU64,
    commits: AtomicU64,
    failed: AtomicU64,
    /// The error of the last commit, if it failed.
    failure: Mutex<Option<StoreError>>,
    /// Whether there is none.
    writable: watch::Sender<bool>,
    /// Slots whose records cannot be read, and are not known from memory.
    damaged_slots: watch::Sender<BTreeSet<Slot>>,
}

/// What is known of a database from the moment it is opened.
#[derive(Debug, Default)]
pub(crate) struct OpenedState {
    pub(crate) digests: Option<Digests>,
    pub(crate) quarantine: Quarantine,
    pub(crate) loaded: UncommittedLoads,
}

impl Shared {
    pub(crate) fn new(
        options: Options,
        meta: Meta,
        numbers: Numbers,
        database: Arc<ReopenableDb>,
        visibility: Arc<SlotVisibility>,
        known: OpenedState,
    ) -> Self {
        let OpenedState { digests, quarantine, loaded: uncommitted_loads } = known;
        Self {
            staged_loads: StagedLoads::default(),
            offered_loads: OfferedLoads::default(),
            uncommitted_loads,
            database,
            visibility,
            digests,
            outbox: OutboxCell::new(),
            cluster: watch::Sender::default(),
            broken: watch::Sender::default(),
            replication: OnceLock::new(),
            loads: Share::new("loads", options.loads),
            legacy: Arc::default(),
            meta,
            numbers,
            tails: Tails::new(Share::new("tails", options.tails)),
            options,
            quarantine,
            damaged_slots: watch::Sender::default(),
            scrubbed: AtomicU64::new(0),
            appended: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failure: Mutex::new(None),
            writable: watch::Sender::new(true),
        }
    }

    /// In a cluster: what waits of each lane; made when first asked for.
    pub(crate) fn replication(&self) -> &[Arc<LaneReplication>] {
        self.replication.get_or_init(|| {
            let lanes = if self.options.clustered { self.options.lanes() } else { 0 };
            (0..lanes).map(|_| Arc::default()).collect()
        })
    }

    /// In a cluster: what waits of a slot's lane.
    pub(crate) fn replication_of(&self, slot: Slot) -> Option<&Arc<LaneReplication>> {
        let copies = self.replication();
        if copies.is_empty() { None } else { copies.get(lane_of(slot, copies.len())) }
    }

    /// A standalone node's own epoch: the first, told apart by its storage id.
    pub(crate) fn epoch(&self) -> Epoch {
        let [first, second, third, ..] = self.meta.storage_id;
        Epoch::new(1, u32::from_be_bytes([0, first, second, third]))
    }

    /// Wall-clock time, nanoseconds since the Unix epoch.
    pub(crate) fn now_ns() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// 128 bits that occur once: a UUID of version 7 (RFC 9562 §5.7).
    pub(crate) fn new_id() -> [u8; 16] {
        uuid::Uuid::now_v7().into_bytes()
    }

    /// An id for an entry whose writer gave none.
    pub(crate) fn new_entry_id() -> EntryId {
        EntryId::from_bits(Self::new_id())
    }

    /// Counts a commit.
    pub(crate) fn count_commit(&self, entries: u64) {
        self.appended.fetch_add(entries, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// The database was reopened: there is reason to hope.
    pub(crate) fn on_reopened(&self) {
        *self.failure.lock() = None;
        self.writable.send_replace(true);
    }

    /// Counts and remembers a commit that failed.
    pub(crate) fn commit_failed(&self, error: &StoreError) {
        {
            let mut failure = self.failure.lock();
            match (&*failure, error) {
                // How much is needed was found out since.
                (Some(StoreError::DiskFull { needed: Some(_) }), StoreError::DiskFull { needed: None }) => {}
                (None, error) => {
                    limited!(error, %error, "a commit failed: nothing of it is acknowledged");
                    *failure = Some(error.clone());
                }
                (Some(_), error) => *failure = Some(error.clone()),
            }
        }
        self.writable.send_if_modified(|writable| std::mem::replace(writable, false));
        // Nothing may go on holding the database: it is reopened.
        let error = &self.answer_to_failed(error);
        let led: Vec<_> = self
            .replication
            .get()
            .into_iter()
            .flatten()
            .flat_map(|copies| copies.on_write_failed(self, error))
            .collect();
        if !led.is_empty()
            && let Some(outbox) = self.outbox.get()
        {
            outbox.ownership_lost(led);
        }
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// What those who wait for a commit that failed are answered. A node of a cluster loses its slots with the failure, and
    /// their next owner may have received the commit: whoever waits is to repeat it there, whatever this disk's error is.
    pub(crate) fn answer_to_failed(&self, error: &StoreError) -> StoreError {
        if self.options.clustered { StoreError::NotAcknowledged } else { error.clone() }
    }

    /// The disk is full, and so many free bytes are needed, if that is known: whoever is refused is told.
    pub(crate) fn is_short_of(&self, needed: Option<u64>) {
        let mut failure = self.failure.lock();
        if let Some(StoreError::DiskFull { needed: told }) = &mut *failure
            && std::mem::replace(told, needed) != needed
        {
            limited!(warn, needed, "the disk is full: appends go on once so many bytes are free");
        }
    }

    /// The error of the last commit, if it failed.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.failure.lock().clone()
    }

    /// Whether commits can be written, from now on.
    pub(crate) fn watch_writable(&self) -> watch::Receiver<bool> {
        self.writable.subscribe()
    }

    /// A slot's record cannot be read, and is not known from memory: what was promised of it is forgotten.
    pub(crate) fn lost_slot(&self, slot: Slot) {
        if self.damaged_slots.send_if_modified(|slots| slots.insert(slot)) {
            limited!(
                error,
                slot = slot.number(),
                "the record of what was promised of a slot is damaged and lost"
            );
        }
    }

    /// Slots whose records are lost, from now on.
    pub(crate) fn watch_lost_slots(&self) -> watch::Receiver<BTreeSet<Slot>> {
        self.damaged_slots.subscribe()
    }

    /// How many they are.
    pub(crate) fn damaged_slots(&self) -> usize {
        self.damaged_slots.borrow().len()
    }

    /// Entries appended, commits, commits that failed.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.appended), load(&self.commits), load(&self.failed))
    }
}
