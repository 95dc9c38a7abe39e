//! What nodes say to each other, and clients to nodes.

use std::{collections::BTreeMap, rc::Rc};

use ledger_core::{
    Epoch, Hash, compare,
    digest::Digest,
    node::{ClusterId, Member, ReplicaSet, StorageId},
    ownership::{Claim, slot_manager},
    replication::WriteQuorum,
    slot::Slot,
};

use super::{
    disk::Span,
    gossip::Published,
    history::{Context, Entry, History},
};

/// A node, as the simulation numbers it.
pub type Index = usize;

/// A message that may be lost, late, doubled and overtaken.
#[derive(Debug, Clone)]
pub enum Message {
    Gossip {
        /// The sender's cluster and data directory.
        cluster: Option<ClusterId>,
        said_by: StorageId,
        all: Vec<Rc<Published>>,
    },
    /// Opens a stream.
    Hello {
        stream: u64,
        from: Member,
        to: Member,
    },
    Welcome {
        stream: u64,
    },
    Ask {
        from: Member,
        to: Member,
        slot: Slot,
        claim: Claim,
        ask: slot_manager::MemberRequest,
    },
    Answer {
        from: Member,
        slot: Slot,
        claim: Claim,
        answer: slot_manager::MemberResponse,
    },
    SyncRequest {
        from: Member,
        to: Member,
        slot: Slot,
    },
    Question {
        number: u64,
        to: Member,
        question: CatchUpRequest,
    },
    Reply {
        number: u64,
        reply: CatchUpResponse,
    },
    /// A load that a member of its slot is to stage beside what is there.
    Stage {
        number: u64,
        to: Member,
        slot: Slot,
        claim: Claim,
        range: Range,
    },
    Staged {
        number: u64,
    },
}

/// A question of a node that catches up.
#[derive(Debug, Clone)]
pub enum CatchUpRequest {
    Compare(compare::CompareRequest),
    Fetch {
        context: Context,
        after: u64,
        to: u64,
        /// With one answer, to be put in the place of what cannot be read.
        is_whole: bool,
    },
    /// How far a context goes, and its root at a size, if it goes so far.
    RootAt {
        context: Context,
        size: u64,
    },
}

#[derive(Debug, Clone)]
pub enum CatchUpResponse {
    Compare(compare::CompareResponse),
    /// And what of it is to be put in place together or not at all.
    Fetched(Range, Option<Span>),
    RootAt {
        size: u64,
        root: Option<Hash>,
    },
    /// What was asked for is there, and cannot be read.
    Unreadable,
}

/// Entries of one context, between two roots.
#[derive(Debug, Clone)]
pub struct Range {
    pub context: Context,
    pub after: u64,
    pub after_root: Hash,
    pub entries: Rc<[Entry]>,
    pub root: Hash,
}

/// A range, as its slot's owner or claimant sends it.
#[derive(Debug, Clone)]
pub struct Part {
    pub slot: Slot,
    pub claim: Claim,
    pub range: Range,
    /// It is put in place whole.
    pub is_load: bool,
    /// Its entries are not in it: they are staged, up to this size.
    pub staged_to: Option<u64>,
}

/// From an owner to a replica: in order, or the stream is lost.
#[derive(Debug, Clone)]
pub enum OwnerMessage {
    Commit { number: u64, parts: Vec<Part> },
    SyncOffer(Box<SyncOffer>),
    CommitIndex { slot: Slot, epoch: Epoch, number: u64 },
    LeaseRenewal(Vec<slot_manager::LeaseRenewal>),
}

#[derive(Debug, Clone)]
pub struct SyncOffer {
    pub number: u64,
    pub slot: Slot,
    pub claim: Claim,
    pub members: ReplicaSet,
    pub is_confirmed: bool,
    pub previous: Option<ReplicaSet>,
    pub digest: Digest,
}

/// From the replica, on the same stream.
#[derive(Debug, Clone)]
pub enum ReplicaMessage {
    Durable(u64),
    SyncOfferAnswered {
        slot: Slot,
        claim: Claim,
        outcome: slot_manager::SyncOfferOutcome,
    },
    /// To a renewal: slots that were promised to a higher claim.
    LeaseRenewed(BTreeMap<Slot, Option<Claim>>),
}

/// What a client asks of a node.
#[derive(Debug, Clone)]
pub enum Request {
    Append(Append),
    /// A history to be put in place, small enough for one commit or not.
    Load {
        context: Context,
        snapshot: Rc<History>,
        is_large: bool,
    },
    /// A writer that comes to a node, with what it knows was stored.
    Attach {
        context: Context,
        kept: Vec<u64>,
    },
    Read {
        context: Context,
    },
    /// The entries after a size, at which the root was this.
    Watch {
        context: Context,
        after: u64,
        root: Hash,
    },
}

#[derive(Debug, Clone, Copy)]
pub struct Append {
    pub context: Context,
    pub id: u64,
    /// Copies that it is acknowledged with.
    pub quorum: WriteQuorum,
}

#[derive(Debug, Clone)]
pub enum Response {
    Appended {
        id: u64,
        is_stable: bool,
    },
    /// The history goes so far, with what was loaded.
    Loaded {
        size: u64,
    },
    /// What is there is not the beginning of what was to be loaded.
    Differs,
    /// It is not known whether it is stored.
    Unknown,
    NotOwner {
        hint: Option<Index>,
    },
    /// These are not there.
    Attached {
        missing: Vec<u64>,
    },
    Read {
        context: Context,
        size: u64,
        root: Hash,
    },
    Watched {
        entries: Rc<[Entry]>,
    },
    /// The history is another one.
    Changed,
    NotReadable,
}
