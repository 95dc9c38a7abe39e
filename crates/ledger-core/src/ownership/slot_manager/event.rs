//! What a [`SlotManager`](super::SlotManager) is told: what gossip shows, what members answered, what this node's disk did.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Epoch,
    millis::Millis,
    node::Member,
    ownership::{Claim, DeclaredLosses, Placement, Promise, RefusedPart, SlotRecord},
    slot::Slot,
};

/// What the shell tells a slot manager. [`SlotManager::step`](super::SlotManager::step) takes it, and returns what the shell
/// does next.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time has passed. The shell sends this several times a second.
    Tick,
    /// Gossip shows these nodes, this one among them.
    NodesObserved(Vec<ObservedNode>),
    /// This node's record of a slot changed on disk. `None`: the node cannot read it, and the slot manager keeps what it knows.
    RecordChanged(Slot, Option<SlotRecord>),
    /// The stream to a node is up. What this node sends on it arrives in order, or the stream breaks.
    PeerConnected(Member),
    /// The stream to a node broke: stop counting the node as in sync.
    PeerDisconnected(Member),
    /// A member answered a request.
    Response {
        /// The member that answered.
        from: Member,
        /// The slot.
        slot: Slot,
        /// The claim that the request was for.
        claim: Claim,
        /// The answer.
        answer: MemberResponse,
    },
    /// A member answered an offer, [`Effect::OfferSync`](super::Effect::OfferSync).
    SyncOfferAnswered {
        /// The member that answered.
        from: Member,
        /// The slot.
        slot: Slot,
        /// The claim that the offer was for.
        claim: Claim,
        /// What the member made of the offer.
        outcome: SyncOfferOutcome,
    },
    /// A member refused a part of a commit of a slot that this node owns: the member is not in sync.
    PartRefused {
        /// The member.
        from: Member,
        /// What it refused, and why.
        refused: RefusedPart,
    },
    /// This node did [`Effect::CatchUp`](super::Effect::CatchUp), or could not.
    CaughtUp {
        /// The slot.
        slot: Slot,
        /// The claim that it caught up for.
        claim: Claim,
        /// Whether this node now holds the whole history.
        is_complete: bool,
    },
    /// This node did [`Effect::StopAppends`](super::Effect::StopAppends): all appends that it took before have their copies.
    AppendsStopped(Slot, Claim),
    /// The owner of a slot hands it over to this node.
    HandoverReceived(Slot, Claim),
    /// A replica of a slot caught up, and asks for another offer. Kafka: a follower rejoins the ISR.
    SyncRequested(Member, Slot),
    /// The owner of slots renewed this replica's leases, on its stream.
    LeaseRenewed {
        /// The owner.
        from: Member,
        /// The owner sent the renewal after this moment: this node had answered the renewal before, or accepted the stream.
        after: Millis,
        /// The slots that this replica is in sync with. For each, how old the owner's own lease was when it sent the renewal.
        slots: Vec<(Slot, Millis)>,
    },
    /// A replica answered [`Effect::RenewLeases`](super::Effect::RenewLeases).
    LeaseRenewalAnswered {
        /// The replica.
        from: Member,
        /// The slots that it promised to a higher claim. `None`: it does not know what it promised.
        refused: BTreeMap<Slot, Option<Claim>>,
    },
    /// The operator wants this node to own nothing (`true`), or to own its slots again.
    Drain(bool),
    /// This node's disk takes no writes (`false`), or takes them again. The shell says so in gossip too.
    Writable(bool),
    /// This node's disk failed: the node no longer owns the slot.
    OwnershipLost(Slot),
    /// Other slots than before have damage at this node. It replaces what the last one said.
    DamageChanged(DamagedSlots),
    /// Operators declared members lost for good: see [`recovery`](crate::ownership::recovery).
    LossesDeclared(DeclaredLosses),
}

/// The slots of which a node cannot read something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DamagedSlots {
    /// The slots with damage, the impaired ones among them.
    pub damaged: BTreeSet<Slot>,
    /// The slots with damage that the node could not restore for a while.
    pub impaired: BTreeSet<Slot>,
}

/// A node as gossip shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNode {
    /// The node and its data directory.
    pub member: Member,
    /// The zone that the node stands in; may be empty.
    pub zone: String,
    /// Whether this node hears it.
    pub is_alive: bool,
    /// Whether its operator wants it to own nothing.
    pub is_draining: bool,
    /// Whether its disk takes writes. If not, it cannot own anything.
    pub is_writable: bool,
    /// Whether it leaves the cluster for good: other nodes are to hold its copies then.
    pub decommission: Option<DecommissionMode>,
    /// The slots that it says it owns.
    pub owned: BTreeMap<Slot, Epoch>,
}

/// How a node leaves the cluster for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecommissionMode {
    /// It leaves once another node holds each of its copies.
    Replaced,
    /// Where no other node can take its place, a slot may go on with fewer members, though never with fewer than an append needs.
    AllowFewer,
}

/// A member's answer to a [`MemberRequest`](super::MemberRequest).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberResponse {
    /// To [`MemberRequest::Promise`](super::MemberRequest::Promise): the member promised, and has it on disk. Raft: a vote is
    /// granted; Paxos: promise (1b).
    Promised(Promise),
    /// To [`MemberRequest::QuerySlot`](super::MemberRequest::QuerySlot).
    SlotKnown {
        /// When the asking node sent the request, by its own clock.
        asked: Millis,
        /// What the member knows of the slot.
        known: SlotKnowledge,
    },
    /// To the other requests: the member did what they ask for.
    Done,
    /// The member refuses: it promised this higher claim.
    Refused(Claim),
    /// The member cannot do it now, or did not answer.
    Unavailable,
}

/// A member's answer to an offer. Raft: the answer to `AppendEntries`' consistency check, for a whole slot; Paxos: accepted
/// (2b).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncOfferOutcome {
    /// It accepted the epoch and the members, and has that on disk.
    Accepted,
    /// It refuses: it promised this higher claim.
    Refused(Claim),
    /// It refuses: it accepted other first members before.
    OtherMembers(Placement),
    /// It holds another history. It catches up, then asks for another offer.
    Diverged,
    /// It cannot accept now.
    Unavailable,
}

/// A node's answer to [`MemberRequest::QuerySlot`](super::MemberRequest::QuerySlot): what it has on record for the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotKnowledge {
    /// The epoch whose history it holds; 0: none.
    pub accepted: Epoch,
    /// The members in its record.
    pub placement: Option<Placement>,
    /// Whether it owns the slot, or heard the owner a moment ago.
    pub is_owned: bool,
}
