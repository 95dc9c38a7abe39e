//! The state that lanes, readers and background threads share.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use ledger_core::{Epoch, node::ClusterId, slot::Slot};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Options, StoreError,
    budget::Share,
    directory::meta::{Meta, Numbers},
    engine::reopenable_db::ReopenableDb,
    integrity::quarantine::Quarantine,
    limited,
    read::visibility::SlotVisibility,
    replicate::digests::Digests,
    replicate::lane_replication::LaneReplication,
    replicate::staged_loads::{OfferedLoads, StagedLoads},
    write::command::lane_of,
    write::publish::Publisher,
    write::uncommitted_loads::UncommittedLoads,
};

/// The state that lanes, readers and background threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    /// Memory for loads.
    pub(crate) loads: Arc<Share>,
    /// In a cluster: memory for parts that arrived before what they continue, of all lanes.
    pub(crate) out_of_order: Arc<Share>,
    /// Whether a snapshot of the predecessor is being loaded.
    pub(crate) legacy: Arc<AtomicBool>,
    pub(crate) meta: Meta,
    pub(crate) numbers: Numbers,
    pub(crate) quarantine: Quarantine,
    pub(crate) scrubbed: AtomicU64,
    pub(crate) database: Arc<ReopenableDb>,
    /// What commits have to reach to be published.
    pub(crate) publisher: Publisher,
    /// In a cluster: the digests of all slots.
    pub(crate) digests: Option<Digests>,
    /// In a cluster: loads of other nodes, completely staged here.
    pub(crate) staged_loads: StagedLoads,
    /// In a cluster: loads of this node that others may stage.
    pub(crate) offered_loads: OfferedLoads,
    /// The cluster that the directory belongs to; `None` until it belongs to one.
    pub(crate) cluster: watch::Sender<Option<ClusterId>>,
    /// The name of an essential thread that panicked.
    pub(crate) broken: watch::Sender<Option<String>>,
    /// In a cluster: each lane's commits that wait for replication.
    replication: OnceLock<Vec<Arc<LaneReplication>>>,
    failed: AtomicU64,
    /// The error of the last commit, if it failed.
    failure: Mutex<Option<StoreError>>,
    /// Whether `failure` is empty.
    writable: watch::Sender<bool>,
    /// Slots whose records are lost on disk and in memory.
    damaged_slots: watch::Sender<BTreeSet<Slot>>,
}

/// What opening the database found.
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
            publisher: Publisher::new(Arc::clone(&database), visibility, uncommitted_loads, options.tails),
            database,
            digests,
            cluster: watch::Sender::default(),
            broken: watch::Sender::default(),
            replication: OnceLock::new(),
            loads: Share::new("loads", options.loads),
            out_of_order: Share::new("out_of_order", options.out_of_order),
            legacy: Arc::default(),
            meta,
            numbers,
            options,
            quarantine,
            damaged_slots: watch::Sender::default(),
            scrubbed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failure: Mutex::new(None),
            writable: watch::Sender::new(true),
        }
    }

    /// Returns each lane's commits that wait for replication; empty on a standalone node.
    pub(crate) fn replication(&self) -> &[Arc<LaneReplication>] {
        self.replication.get_or_init(|| {
            let lanes = if self.options.clustered { self.options.lanes() } else { 0 };
            (0..lanes).map(|_| Arc::default()).collect()
        })
    }

    /// Returns the same for the lane of one slot; `None` on a standalone node.
    pub(crate) fn replication_of(&self, slot: Slot) -> Option<&Arc<LaneReplication>> {
        let copies = self.replication();
        if copies.is_empty() { None } else { copies.get(lane_of(slot, copies.len())) }
    }

    /// Returns the epoch in which a standalone node writes: the first one, with bits of the storage id as tie-breaker.
    pub(crate) fn epoch(&self) -> Epoch {
        let [first, second, third, ..] = self.meta.storage_id;
        Epoch::new(1, u32::from_be_bytes([0, first, second, third]))
    }

    /// Forgets the failure, because the database was reopened.
    pub(crate) fn on_reopened(&self) {
        *self.failure.lock() = None;
        self.writable.send_replace(true);
    }

    /// Records that a commit failed: the node refuses appends and loses its slots until the database is reopened.
    pub(crate) fn commit_failed(&self, error: &StoreError) {
        {
            let mut failure = self.failure.lock();
            match (&*failure, error) {
                // The known failure says how much space is needed; keep it.
                (Some(StoreError::DiskFull { needed: Some(_) }), StoreError::DiskFull { needed: None }) => {}
                (None, error) => {
                    limited!(error, %error, "a commit failed: nothing of it is acknowledged");
                    *failure = Some(error.clone());
                }
                (Some(_), error) => *failure = Some(error.clone()),
            }
        }
        self.writable.send_if_modified(|writable| std::mem::replace(writable, false));
        // Pending commits hold the database, and it cannot be reopened before they let it go: fail them.
        let error = &self.answer_to_failed(error);
        let led: Vec<_> = self
            .replication
            .get()
            .into_iter()
            .flatten()
            .flat_map(|copies| copies.on_write_failed(&self.publisher, error))
            .collect();
        if !led.is_empty()
            && let Some(outbox) = self.publisher.outbox.get()
        {
            outbox.ownership_lost(led);
        }
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the error for callers that wait for a commit that failed. A node of a cluster loses its slots with the
    /// failure, and their next owner may have received the commit: the callers must repeat it there, whatever the
    /// error of this disk is.
    pub(crate) fn answer_to_failed(&self, error: &StoreError) -> StoreError {
        if self.options.clustered { StoreError::NotAcknowledged } else { error.clone() }
    }

    /// Records how many free bytes the full disk needs, if that is known, for the errors of refused appends.
    pub(crate) fn is_short_of(&self, needed: Option<u64>) {
        let mut failure = self.failure.lock();
        if let Some(StoreError::DiskFull { needed: told }) = &mut *failure
            && std::mem::replace(told, needed) != needed
        {
            limited!(warn, needed, "the disk is full: appends go on once so many bytes are free");
        }
    }

    /// Returns the error of the last commit, if it failed.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.failure.lock().clone()
    }

    /// Watches whether commits can be written.
    pub(crate) fn watch_writable(&self) -> watch::Receiver<bool> {
        self.writable.subscribe()
    }

    /// Records that a slot's record is lost on disk and in memory: this directory has forgotten its promises.
    pub(crate) fn lost_slot(&self, slot: Slot) {
        if self.damaged_slots.send_if_modified(|slots| slots.insert(slot)) {
            limited!(
                error,
                slot = slot.number(),
                "the record of what was promised of a slot is damaged and lost"
            );
        }
    }

    /// Watches the slots whose records are lost.
    pub(crate) fn watch_lost_slots(&self) -> watch::Receiver<BTreeSet<Slot>> {
        self.damaged_slots.subscribe()
    }

    /// Returns the number of slots whose records are lost.
    pub(crate) fn damaged_slots(&self) -> usize {
        self.damaged_slots.borrow().len()
    }

    /// Returns the number of entries appended, of commits, and of commits that failed.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let (appended, commits) = self.publisher.counts();
        (appended, commits, self.failed.load(Ordering::Relaxed))
    }
}
