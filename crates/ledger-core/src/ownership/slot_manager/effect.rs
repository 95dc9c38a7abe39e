//! What a [`SlotManager`](super::SlotManager) asks its shell to do: requests to members, records, and when to take appends.

use crate::{
    millis::Millis,
    node::{Member, ReplicaSet},
    ownership::{Claim, Recovery},
    slot::Slot,
};

/// What the shell does for a slot manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send a request to a member, which may be this node. Its answer comes back as [`Event::Response`](super::Event::Response).
    SendRequest {
        /// The member.
        to: Member,
        /// The slot.
        slot: Slot,
        /// The claim that this node makes.
        claim: Claim,
        /// The request.
        request: MemberRequest,
    },
    /// Begin to send a member, which may be this node, the slot's commits on its stream. At that place of the stream, offer it
    /// the slot's history, for it to accept. Raft: `AppendEntries`' consistency check, for a whole slot; Paxos: accept (2a).
    OfferSync {
        /// The member.
        to: Member,
        /// The slot.
        slot: Slot,
        /// The claim that this node makes.
        claim: Claim,
        /// The slot's members.
        members: ReplicaSet,
        /// Whether these members were confirmed.
        is_confirmed: bool,
        /// The members before them, while the move between them is not settled.
        previous: Option<ReplicaSet>,
    },
    /// Fetch, of every context of the slot, the longest history that these members have.
    CatchUp {
        /// The slot.
        slot: Slot,
        /// The claim that this node makes.
        claim: Claim,
        /// The members with the best history; this node may be one of them.
        from: Vec<Member>,
    },
    /// Record that the slot goes on without members that operators declared lost. Do it before anything that follows.
    RecordRecovery {
        /// The slot.
        slot: Slot,
        /// The claim that this node makes.
        claim: Claim,
        /// The members that the slot goes on without, and those that answered.
        recovery: Recovery,
    },
    /// Take appends to the slot.
    BeginServing {
        /// The slot.
        slot: Slot,
        /// The claim that this node owns the slot with.
        claim: Claim,
        /// How many members in sync, this node included, must have an append on disk before this node acknowledges it.
        write_quorum: usize,
    },
    /// Count a member's copies from now on. Kafka: the replica is in the ISR.
    AddInSync {
        /// The slot.
        slot: Slot,
        /// The claim that this node owns the slot with.
        claim: Claim,
        /// The member.
        member: Member,
    },
    /// Send a node nothing more of the slot: it is no member any more.
    RemoveReplica {
        /// The slot.
        slot: Slot,
        /// The claim that this node owns the slot with.
        claim: Claim,
        /// The node.
        member: Member,
    },
    /// Renew a replica's leases: put this on its stream, after all that was committed.
    RenewLeases {
        /// The replica.
        to: Member,
        /// The slots that this node owns and the replica is a member of.
        slots: Vec<LeaseRenewal>,
    },
    /// Take no more appends to the slot. Say [`Event::AppendsStopped`](super::Event::AppendsStopped) once those taken have their
    /// copies.
    StopAppends {
        /// The slot.
        slot: Slot,
        /// The claim that this node owns the slot with.
        claim: Claim,
    },
    /// Answer the owner that handed the slot over that this node does not take it
    /// ([`MemberResponse::Unavailable`](super::MemberResponse::Unavailable)).
    DeclineHandover {
        /// The slot.
        slot: Slot,
        /// The claim of the owner that handed it over.
        claim: Claim,
    },
    /// Record that the slot has members: [`SlotRecord::record_formed`](crate::ownership::SlotRecord::record_formed).
    RecordFormed {
        /// The slot.
        slot: Slot,
    },
    /// Take no more appends to the slot, and refuse those that wait for copies.
    StepDown {
        /// The slot.
        slot: Slot,
    },
}

/// A request to a member. [`MemberResponse`](super::MemberResponse) is the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRequest {
    /// Promise the claim: refuse every lower one from now on. Raft: `RequestVote`; Paxos: prepare (1a).
    Promise,
    /// Record that enough have accepted the members. Raft: the new configuration is committed; Paxos: learn.
    ConfirmMembers,
    /// Take the slot over from this node, its owner. Raft: `TimeoutNow`, which transfers leadership.
    TakeOver,
    /// Say what you know of the slot.
    QuerySlot {
        /// When this node asks, by its own clock. The answer carries it back.
        sent_at: Millis,
    },
}

/// An owner's word to a replica that the replica is a member of a slot, and that the owner sent everything committed before
/// this on the stream. Raft: a heartbeat with a read lease (Ongaro, "Consensus: Bridging Theory and Practice", 2014, §6.4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRenewal {
    /// The slot.
    pub slot: Slot,
    /// The owner's claim.
    pub claim: Claim,
    /// How old the owner's own lease is; `None`: it has none.
    pub age: Option<Millis>,
}
