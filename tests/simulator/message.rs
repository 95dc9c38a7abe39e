//! The messages between nodes, and between clients and nodes.

use std::{collections::BTreeMap, rc::Rc};

use ledger_core::{
    ContextId, Hash, Size,
    catch_up::{Missing, WantedRange},
    compare,
    digest::{NodeDigest, TreeHead},
    node::{ClusterId, Member, StorageId},
    ownership::{Claim, RefusedPart, slot_manager},
    replication::{CommitIndex, WriteQuorum, replica::SyncOffer},
    slot::Slot,
};

use super::{
    gossip::Published,
    history::{Context, Entry, History},
};

/// A node's number in the simulation.
pub type Index = usize;

/// A message that may be lost, delayed, duplicated and overtaken.
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
    /// A request, sent again until it is answered.
    Question {
        number: u64,
        to: Member,
        question: PeerRequest,
    },
    Reply {
        number: u64,
        reply: PeerResponse,
    },
}

/// What a node asks another one.
#[derive(Debug, Clone)]
pub enum PeerRequest {
    Compare(compare::CompareRequest),
    /// Asks for the next part of a response to a fetch with this number.
    Fetch {
        number: u64,
        wanted: Rc<[WantedRange]>,
        part: u64,
    },
    /// Asks the owner to offer slots.
    SyncOffers(Member, Vec<Slot>),
    /// Asks a member of a slot to stage a load beside its entries.
    Stage(Slot, Claim, Range),
}

#[derive(Debug, Clone)]
pub enum PeerResponse {
    Compare(compare::CompareResponse),
    /// A part of a response to a fetch.
    Ranges(Rc<[FetchItem]>),
    /// The response to a fetch was cut short: with an error, or as if it had ended.
    Cut {
        is_clean: bool,
    },
    Done,
    Refused,
}

/// What a source sends in a response to a fetch.
#[derive(Debug, Clone)]
pub enum FetchItem {
    Range {
        range: Range,
        together_to: Option<Size>,
        /// If more ranges of the context follow: the tree head with all of them.
        whole: Option<TreeHead>,
    },
    Missing(ContextId, Missing),
    End,
}

/// Entries of one context, between two tree heads.
#[derive(Debug, Clone)]
pub struct Range {
    pub context: Context,
    pub after: TreeHead,
    pub entries: Rc<[Entry]>,
    pub end: TreeHead,
}

/// A range, as the slot's owner or claimant sends it.
#[derive(Debug, Clone)]
pub struct Part {
    pub slot: Slot,
    pub claim: Claim,
    pub range: Range,
    /// Whether it must be installed as a whole.
    pub is_load: bool,
    /// Whether its entries are not in it, but staged at the receiver.
    pub is_staged: bool,
}

/// From an owner to a replica: delivered in order, or the stream breaks.
#[derive(Debug, Clone)]
pub enum OwnerMessage {
    Commit {
        number: u64,
        parts: Vec<Part>,
    },
    SyncOffer(Box<SyncOffer>),
    CommitIndex(CommitIndex),
    /// The digest of slots as they are at this place.
    DigestCheckpoint(Vec<Slot>, NodeDigest),
    LeaseRenewal(Vec<slot_manager::LeaseRenewal>),
}

/// From the replica, on the same stream.
#[derive(Debug, Clone)]
pub enum ReplicaMessage {
    Durable(u64),
    /// A part was refused: its slot is not in sync any more. It comes before the commit is said to be durable.
    PartRefused(RefusedPart),
    SyncOfferAnswered {
        slot: Slot,
        claim: Claim,
        outcome: slot_manager::SyncOfferOutcome,
    },
    /// Answers a lease renewal, with the slots that were promised to a higher claim.
    LeaseRenewed(BTreeMap<Slot, Option<Claim>>),
}

/// A client's request to a node.
#[derive(Debug, Clone)]
pub enum Request {
    Append(Append),
    /// Gives up what it asked for, up to a number.
    Cancel {
        up_to: u64,
    },
    /// A history to install, whether it fits one commit or not.
    Load {
        context: Context,
        snapshot: Rc<History>,
        is_large: bool,
    },
    /// A writer that attaches to a node, with the entries that it knows were stored.
    Attach {
        context: Context,
        kept: Vec<u64>,
    },
    Read {
        context: Context,
    },
    /// Asks for the entries after a size, at which the root was this.
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
    /// The quorum with which it is acknowledged.
    pub quorum: WriteQuorum,
}

#[derive(Debug, Clone)]
pub enum Response {
    Appended {
        id: u64,
        is_stable: bool,
    },
    /// The history has this size, including what was loaded.
    Loaded {
        size: u64,
    },
    /// The existing history is not a prefix of what was to be loaded.
    Differs,
    /// The node does not know whether it is stored.
    Unknown,
    NotOwner {
        hint: Option<Index>,
    },
    /// The writer's entries that are missing.
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
