//! The messages between the lanes of different nodes, and the outbox that carries them.
//!
//! An owner's lane numbers its commits and puts each on the streams of the peers that replicate its slots. A
//! replica's lanes check every part and write it as their own commits. [`ledger_core::replication::replica`] decides
//! for them.

use std::{
    fmt,
    sync::{Arc, OnceLock, mpsc},
};

pub use ledger_core::replication::replica::{
    RecordChange, RecordChangeOutcome, ReplicaStatus, ReplicateOutcome, SyncOffer, SyncState,
};
use ledger_core::{
    ContextId,
    digest::Digest,
    loads::StagingProgress,
    node::ReplicaSet,
    ownership::{Claim, SlotRecord, slot_manager::LeaseRenewal},
    replication::{
        Peer,
        replica::{PartContent, PartHeader, PartSource},
    },
    slot::Slot,
};

pub use ledger_core::replication::CommitIndex;
use tokio::sync::watch;

use crate::{EntryRange, LoadDescriptor, StoreError, budget::Permit};

/// Most bytes of records in one part.
pub const MAX_PART: usize = 32 << 20;

/// Carries what this node's lanes send. Lanes call it, so it must not block, and it must keep the order for each
/// peer.
pub trait Outbox: Send + Sync + fmt::Debug {
    /// Puts a message on the stream to a peer. If that is impossible (the queue is full, or the stream is gone),
    /// ends the stream and calls [`crate::Ledger::peer_disconnected`].
    fn send(&self, peer: Peer, what: Outgoing);

    /// Asks a peer to stage a load; see [`StagingRequest`].
    fn request_staging(&self, peer: Peer, spread: StagingRequest);

    /// Restarts the stream to a peer: the peer catches up with whatever it lacks.
    fn restart(&self, peer: Peer);

    /// Reports that everything appended to a stopped slot is committed.
    fn stopped(&self, slot: Slot, claim: Claim);

    /// Reports that this node lost the ownership of slots, because its disk failed.
    fn ownership_lost(&self, slots: Vec<Slot>);
}

/// The outbox of the cluster layer, once it is attached.
pub(crate) type OutboxCell = OnceLock<Arc<dyn Outbox>>;

/// A message on the stream to a peer.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// The parts of a commit that the peer replicates.
    Commit(Arc<Commit>),
    /// An offer to accept an epoch.
    SyncOffer(SyncOffer),
    /// The commit index of each slot.
    CommitIndex(Vec<CommitIndex>),
    /// Digests of slots, at a defined number of the stream.
    DigestCheckpoint(DigestCheckpoint),
    /// Leases of slots. The cluster layer sends them, after everything committed before.
    LeaseRenewal(Vec<LeaseRenewal>),
}

/// What a group commit of a lane wrote.
#[derive(Debug)]
pub struct Commit {
    /// Number of the lane.
    pub lane: u16,
    /// Number of the commit; it rises within the lane.
    pub number: u64,
    /// The parts, one for each context.
    pub parts: Vec<Part>,
    /// The permit for its memory, from when it first waits for a peer.
    pub held: OnceLock<Permit>,
}

impl Commit {
    /// Creates a commit that holds no memory permit yet.
    pub const fn new(lane: u16, number: u64, parts: Vec<Part>) -> Self {
        Self { lane, number, parts, held: OnceLock::new() }
    }
}

/// Entries of one context: part of a commit, or a range that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The slot of the context.
    pub slot: Slot,
    /// The claim in which the entries are sent.
    pub claim: Claim,
    /// The context.
    pub context: ContextId,
    /// The entries.
    pub range: EntryRange,
    /// Whether the entries are a load, to be installed whole or not at all. Without records, the receiver has staged
    /// them.
    pub is_load: bool,
}

impl Part {
    /// Returns whether the receiver has staged the entries, so that the part does not hold them.
    pub fn is_staged(&self) -> bool {
        self.is_load && self.range.records.is_empty()
    }

    /// Returns what the replica decides by.
    pub(crate) fn header(&self, source: PartSource) -> PartHeader<'_> {
        let content = if self.is_staged() { PartContent::Staged } else { PartContent::Entries };
        let (after, count, root) = (self.range.after, self.range.count, self.range.root);
        PartHeader { slot: self.slot, claim: &self.claim, after, count, root, source, content }
    }
}

/// A load that is staged at its owner, and that replicas stage too before any node installs it.
#[derive(Debug, Clone)]
pub struct StagingRequest {
    /// The number under which its entries are fetched: [`crate::Ledger::staged_range`].
    pub number: u64,
    /// The claim in which the slot is owned.
    pub claim: Claim,
    /// The context.
    pub context: ContextId,
    /// Its description.
    pub load: LoadDescriptor,
    /// Receives the peer's progress.
    pub events: mpsc::Sender<(Peer, StagingProgress)>,
    /// Closes when the load is installed or was given up: what is staged and not installed by then is useless.
    pub cancelled: watch::Receiver<()>,
}

/// Digests of a lane's slots, at one number of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestCheckpoint {
    /// Number of the lane.
    pub lane: u16,
    /// Number of the lane's newest commit.
    pub number: u64,
    /// The digests.
    pub digests: Vec<(Slot, Digest)>,
}

/// The outcome of a change, which is on disk.
#[derive(Debug, Clone)]
pub struct RecordChanged {
    /// The outcome; or why the record could not be read or written.
    pub outcome: Result<RecordChangeOutcome, StoreError>,
    /// The record as it is on disk now. `None`: it cannot be read, or nobody knows what of it was written.
    pub record: Option<SlotRecord>,
}

/// An ownership decision that the owner's lane applies to a slot.
#[derive(Debug, Clone)]
pub enum OwnerCommand {
    /// Add a peer to the slot's stream, and send it an offer.
    OfferSync {
        /// The peer.
        peer: Peer,
        /// The claim.
        claim: Claim,
        /// The members.
        members: ReplicaSet,
        /// Whether the members were confirmed.
        is_confirmed: bool,
        /// The members that these replace, while the change is unconfirmed.
        previous: Option<ReplicaSet>,
    },
    /// Begin to take appends.
    BeginServing {
        /// The claim.
        claim: Claim,
        /// Number of copies after which an append is committed.
        write_quorum: usize,
    },
    /// Count the acknowledgements of a peer.
    AddInSync {
        /// The claim.
        claim: Claim,
        /// The peer.
        peer: Peer,
    },
    /// Stop sending the slot to a peer.
    RemoveReplica {
        /// The claim.
        claim: Claim,
        /// The peer.
        peer: Peer,
    },
    /// Stop taking appends, and report when everything appended is committed.
    StopAppends {
        /// The claim.
        claim: Claim,
    },
    /// End the ownership: fail pending appends, so that their callers retry.
    StepDown,
}
