//! What a [`SlotManager`](super::SlotManager) remembers of each slot and of each node.

use std::collections::{BTreeMap, BTreeSet};

use super::ObservedNode;
use crate::{
    Epoch,
    millis::Millis,
    node::{Member, NodeId, ReplicaSet},
    ownership::{Claim, Phase, Placement, SlotRecord, Takeover, TakeoverFailure},
    slot::Slot,
};

/// What this node knows of one slot.
#[derive(Debug, Default)]
pub(super) struct SlotState {
    /// This node's record, as it is on disk.
    pub(super) record: SlotRecord,
    pub(super) role: Role,
    /// Since when this node sees nobody own the slot.
    pub(super) unowned_since: Option<Millis>,
    /// Claims of other nodes that this node promised since it last owned the slot or saw an owner.
    pub(super) claims_promised: u32,
    /// When this node last promised such a claim, or accepted it.
    pub(super) candidate_heard_at: Millis,
    /// This node does not claim the slot before this moment.
    pub(super) not_before: Millis,
    /// This node does not try a move or handover again before this moment: the last one came to nothing.
    pub(super) no_transfer_before: Millis,
    /// A member that declined to take the slot over, and until when this node asks others first.
    pub(super) declined_by: Option<(NodeId, Millis)>,
    /// Claims of this node that came to nothing, since it last owned the slot or saw an owner.
    pub(super) attempts: u32,
    /// Whether the slot has members, whether this node knows them or not: it saw another node own the slot.
    pub(super) is_formed: bool,
    /// The highest epoch that this node heard another node claim. Members may have promised it: a claim of this node has to be
    /// higher.
    pub(super) highest_heard: Epoch,
    /// Why this node does not own the slot, if its last claim or ownership failed.
    pub(super) unowned_reason: Option<TakeoverFailure>,
    pub(super) lease: Lease,
}

/// How recent this node's state of a slot is, as far as the node knows: it decides until when the node shows the slot. Raft: a
/// read lease.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// A moment at which this node showed all that was committed. It knows that from an owner, or as the owner.
    pub(super) since: Option<Millis>,
    /// A moment at which this node knew of no owner, and neither did a majority of the members.
    pub(super) unowned_since: Option<Millis>,
    /// Newer members than those in this node's record, without this node.
    pub(super) superseded: Option<Placement>,
    /// Since when another node owns the slot in an epoch that this node has not accepted.
    pub(super) behind_since: Option<Millis>,
    /// This node asks no member about the slot before this moment.
    pub(super) next_query: Millis,
    /// When this node sent its newest query, and the members that answered it.
    pub(super) query: (Millis, BTreeSet<Member>),
}

impl Lease {
    /// An owner, or this node as the owner, says that at this moment this node showed all that was committed.
    pub(super) fn extend(&mut self, at: Millis) {
        self.since = self.since.max(Some(at));
    }
}

/// The newest renewal that this node sent a replica.
#[derive(Debug)]
pub(super) struct SentRenewal {
    pub(super) sent_at: Millis,
    pub(super) slots: Vec<(Slot, Epoch)>,
    pub(super) is_answered: bool,
}

/// What this node is for a slot. Raft: follower, candidate, leader.
#[derive(Debug, Default)]
pub(super) enum Role {
    #[default]
    Replica,
    Candidate(Box<CandidateState>),
    Owner(Box<OwnerState>),
}

/// What a candidate knows: this node is taking the slot.
#[derive(Debug)]
pub(super) struct CandidateState {
    pub(super) takeover: Takeover,
    /// Nodes that accepted, and whose streams have been up since. A node whose stream broke accepted all the same, but this node
    /// sends it nothing more.
    pub(super) in_sync: BTreeSet<Member>,
    /// Nodes that this node made an offer, on streams that have been up since.
    pub(super) offered: BTreeSet<Member>,
    /// The phase that the deadline is for.
    pub(super) phase: Phase,
    /// When the takeover times out in this phase.
    pub(super) deadline: Millis,
    /// The epoch in which this node owned the slot until now, if it takes the slot from itself.
    pub(super) owned_epoch: Option<Epoch>,
    /// When the takeover began.
    pub(super) since: Millis,
}

/// What an owner knows: this node owns the slot. Raft: the leader's volatile state.
#[derive(Debug)]
pub(super) struct OwnerState {
    pub(super) claim: Claim,
    /// When this node came to own the slot; 0 if it owned the slot in the epoch before.
    pub(super) since: Millis,
    pub(super) members: ReplicaSet,
    /// Nodes that accepted the epoch, and whose streams have been up since. Kafka: the ISR.
    pub(super) in_sync: BTreeSet<Member>,
    /// Since when fewer members are in sync than an append needs copies.
    pub(super) short_since: Option<Millis>,
    /// Why the owner takes no appends: too few members were in sync for too long. It takes the slot again, in a higher epoch,
    /// once there are enough.
    pub(super) is_halted_for_quorum: Option<TakeoverFailure>,
    /// Nodes that this node made an offer and that have not accepted it: they have not answered yet, or catch up.
    pub(super) offered: BTreeSet<Member>,
    /// A node that is to become a member once it is in sync. Raft: a non-voting member.
    pub(super) learner: Option<Member>,
    /// The handover or move that this node stopped appends for.
    pub(super) transferring: Option<Transferring>,
    /// Whether this node made every node an offer that is due one and connected.
    pub(super) is_offered: bool,
    /// When this node sent the newest renewal that each member has answered with: no higher claim was promised.
    pub(super) promises_checked_at: BTreeMap<Member, Millis>,
}

impl OwnerState {
    /// Returns whether an append would wait for members that are not in sync yet, or be refused.
    pub(super) fn is_halted(&self, write_quorum: usize) -> bool {
        let in_sync = self.members.members().iter().filter(|member| self.in_sync.contains(member)).count();
        self.is_halted_for_quorum.is_some() || in_sync < write_quorum.clamp(1, self.members.len())
    }
}

/// Why an owner stopped appends: to give the slot to another node, or to other members.
#[derive(Debug)]
pub(super) enum Transferring {
    /// A member takes the slot over.
    Handover { to: Member, until: Millis },
    /// This node takes the slot again, with other members.
    Move { target: ReplicaSet, until: Millis },
}

/// A node that gossip shows, or showed a while ago.
#[derive(Debug)]
pub(super) struct KnownNode {
    pub(super) observed: ObservedNode,
    /// Since when it is alive or away, and able or unable to write, as it is now.
    pub(super) since: Millis,
}
