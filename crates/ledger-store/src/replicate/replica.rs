//! What the lanes of nodes say to each other, and to whoever carries it between them.
//!
//! An owner's lane numbers its commits and puts each on the streams of the peers that keep its slots. A replica's
//! lanes check every part of it and write it as their own commits. What they decide is in
//! [`ledger_core::replication::replica`].

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

/// Carries what this node's lanes send. Called by lanes: must not block, and must keep the order for each peer.
pub trait Outbox: Send + Sync + fmt::Debug {
    /// Puts something on the stream to a peer. If that is impossible (the queue is full, or the stream is gone) the
    /// stream is lost, and the lanes are told so with [`crate::Ledger::lose_peer`].
    fn send(&self, peer: Peer, what: Outgoing);

    /// Has a peer stage a load: see [`StagingRequest`]. Must not block either.
    fn request_staging(&self, peer: Peer, spread: StagingRequest);

    /// Ends the stream to a peer: it begins anew, and the peer catches up with whatever it lacks.
    fn restart(&self, peer: Peer);

    /// Everything appended to a stopped slot has its copies.
    fn stopped(&self, slot: Slot, claim: Claim);

    /// The node gave up slots by itself: its disk failed.
    fn ownership_lost(&self, slots: Vec<Slot>);
}

/// Something for the stream to a peer.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// Part of a commit: the slots that the peer keeps.
    Commit(Arc<Commit>),
    /// The offer to accept an epoch.
    SyncOffer(SyncOffer),
    /// So much of each slot is stable.
    CommitIndex(Vec<CommitIndex>),
    /// Digests of slots as they are at this place of the stream.
    DigestCheckpoint(DigestCheckpoint),
    /// Leases of slots, after all that was committed before. Not from a lane.
    LeaseRenewal(Vec<LeaseRenewal>),
}

/// What a group commit of a lane wrote.
#[derive(Debug)]
pub struct Commit {
    /// The lane.
    pub lane: u16,
    /// Numbers rise within a lane.
    pub number: u64,
    /// The parts, by context.
    pub parts: Vec<Part>,
    /// What it takes of the memory for commits that wait for peers, from when it first does.
    pub held: OnceLock<Permit>,
}

impl Commit {
    /// A commit that waits nowhere yet.
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
    /// They are a load, in place together or not at all. Without records they are staged where this goes.
    pub is_load: bool,
}

impl Part {
    /// Whether the entries are not in it, but staged where it goes.
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

/// A load that is staged at its owner, to be staged at replicas as well before any of it is in place.
#[derive(Debug, Clone)]
pub struct StagingRequest {
    /// The number under which its entries are fetched: [`crate::Ledger::staged_range`].
    pub number: u64,
    /// The claim in which the slot is owned.
    pub claim: Claim,
    /// The context.
    pub context: ContextId,
    /// What it is.
    pub load: LoadDescriptor,
    /// Is told how the peer gets on.
    pub events: mpsc::Sender<(Peer, StagingProgress)>,
    /// Fails when the load is in place, or given up: what is staged then and not put in place is of no use.
    pub cancelled: watch::Receiver<()>,
}

/// Digests of a lane's slots, at one place of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestCheckpoint {
    /// The lane.
    pub lane: u16,
    /// Its newest commit.
    pub number: u64,
    /// The digests.
    pub digests: Vec<(Slot, Digest)>,
}

/// What became of a change. What it was is on disk.
#[derive(Debug, Clone)]
pub struct RecordChanged {
    /// The outcome; or why the record could not be read or written.
    pub outcome: Result<RecordChangeOutcome, StoreError>,
    /// The record as it is on disk now. `None`: it cannot be read, or nobody knows what of it was written.
    pub record: Option<SlotRecord>,
}

/// What an owner's lane does for a slot.
#[derive(Debug, Clone)]
pub enum OwnerCommand {
    /// Put a peer on the stream, and send it the offer.
    OfferSync {
        /// The peer.
        peer: Peer,
        /// The claim.
        claim: Claim,
        /// The members.
        members: ReplicaSet,
        /// Whether they were confirmed.
        is_confirmed: bool,
        /// The members that these are to follow, if that is not settled.
        previous: Option<ReplicaSet>,
    },
    /// Take appends, which need so many copies.
    BeginServing {
        /// The claim.
        claim: Claim,
        /// Copies needed.
        write_quorum: usize,
    },
    /// Count a peer's copies.
    AddInSync {
        /// The claim.
        claim: Claim,
        /// The peer.
        peer: Peer,
    },
    /// Send a peer nothing more of the slot.
    RemoveReplica {
        /// The claim.
        claim: Claim,
        /// The peer.
        peer: Peer,
    },
    /// Take no more appends, and say when those taken have their copies.
    StopAppends {
        /// The claim.
        claim: Claim,
    },
    /// Own it no more: whoever waits is told to try again.
    StepDown,
}

/// Adds a record to those of a range.
pub(crate) fn push_record(records: &mut Vec<u8>, record: &[u8]) {
    let len = u32::try_from(record.len()).unwrap_or(u32::MAX);
    records.extend_from_slice(&len.to_le_bytes());
    records.extend_from_slice(record);
}
