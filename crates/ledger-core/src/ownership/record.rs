//! What a replica has promised and accepted of a slot: the part that must be on disk before an answer leaves.

use crate::{
    Epoch,
    node::{ClusterId, Member, NodeId, ReplicaSet, StorageId},
};

/// A claim to a slot: an epoch, and the member that claims it. Claims are totally ordered, by epoch first. Raft: term and
/// candidate; Paxos: ballot; Kafka: leader epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Claim {
    /// The epoch.
    pub epoch: Epoch,
    /// The node that claims it.
    pub claimant: NodeId,
    /// The data directory that it claims with. Two directories of one name are two claimants. `None`: not known, because a
    /// build that left it out wrote the record or sent the message.
    pub storage: Option<StorageId>,
}

impl Claim {
    /// Makes the claim of a member to an epoch.
    pub fn new(epoch: Epoch, claimant: &Member) -> Self {
        Self { epoch, claimant: claimant.node.clone(), storage: Some(claimant.storage) }
    }

    /// Returns the lowest claim of a member above an epoch.
    ///
    /// The epoch holds a hash of the claimant, so that two claimants rarely pick the same one. Where they do, the order of the
    /// claimants decides. The hash covers the storage as well as the name: a node that lost its disk does not know what it
    /// claimed with the old one, and perhaps no other node knows.
    pub fn lowest_above(epoch: Epoch, claimant: &Member) -> Option<Self> {
        let Member { node, storage } = claimant;
        let hash = blake3::Hasher::new().update(node.as_str().as_bytes()).update(&storage.0).finalize();
        let [first, second, third, ..] = *hash.as_bytes();
        let counter = epoch.counter().checked_add(1)?;
        let tag = u32::from_be_bytes([0, first, second, third]);
        Some(Self::new(Epoch::new(counter, tag), claimant))
    }

    /// Returns whether a member makes this claim, as far as this node knows.
    pub fn is_of(&self, member: &Member) -> bool {
        self.claimant == member.node && self.storage.is_none_or(|storage| storage == member.storage)
    }

    /// Returns the claim with the claimant's data directory, if the claim lacks it and this member is the claimant.
    #[must_use]
    pub fn completed_by(self, member: &Member) -> Self {
        let storage = self.storage.or_else(|| (self.claimant == member.node).then_some(member.storage));
        Self { storage, ..self }
    }

    /// Returns whether the same member may make another claim: the names are equal, and so are the data directories, if both
    /// are known.
    pub fn has_claimant_of(&self, other: &Self) -> bool {
        let differs = self.storage.zip(other.storage).is_some_and(|(one, two)| one != two);
        self.claimant == other.claimant && !differs
    }

    /// Returns whether another member makes the other claim to the same epoch: a replica promises the epoch to one of the two.
    pub fn is_rival_of(&self, other: &Self) -> bool {
        self.epoch == other.epoch && !self.has_claimant_of(other)
    }
}

/// The members of a slot, as a claimant recorded them in an epoch. Raft and Vertical Paxos: configuration; Kafka: replica
/// assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The epoch in which a claimant recorded them.
    pub epoch: Epoch,
    /// The members.
    pub members: ReplicaSet,
    /// Whether the members are confirmed: all of them accepted each other, or they replaced confirmed ones. Gossip finds the
    /// first members of a slot. Before all of them agree, other nodes may have found different ones, and no owner acknowledges
    /// anything.
    pub is_confirmed: bool,
    /// The members that these replace, until enough of both sets know of it. A takeover counts in both sets until then:
    /// otherwise some members could go on with these, and others with those.
    pub previous: Option<ReplicaSet>,
}

impl Placement {
    /// Returns the rank of the placement. Of two placements the higher one holds: first by being confirmed, then by epoch,
    /// then by being settled.
    pub fn rank(&self) -> (bool, Epoch, bool) {
        (self.is_confirmed, self.epoch, self.previous.is_none())
    }
}

/// What one replica promised and accepted for a slot. The methods return the next record, which holds once the shell has it on
/// disk. Raft: `currentTerm`, `votedFor`; Paxos: an acceptor's promised and accepted ballots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotRecord {
    /// The highest claim that this replica promised; `None`: nobody ever asked.
    pub promised: Option<Claim>,
    /// The epoch whose owner's history this replica holds; 0: none.
    pub accepted: Epoch,
    /// The members, as this replica last accepted them.
    pub placement: Option<Placement>,
    /// Whether this node saw another node own the slot. Then the slot has members, known to this replica or not, and nobody
    /// may form it anew.
    pub is_formed: bool,
}

/// A replica's answer when it promises a claim. Raft: a granted vote; Paxos: promise (1b).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// The epoch whose history the replica holds; 0: none.
    pub accepted: Epoch,
    /// The members, as the replica knows them.
    pub placement: Option<Placement>,
}

/// A replica refuses a claim, an acceptance or an append, because it promised the slot to a higher claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the slot was promised to node {} for epoch {}: it owns the slot, or is about to", promised.claimant, promised.epoch)]
pub struct HigherClaimPromised {
    /// The claim that the replica promised.
    pub promised: Claim,
}

/// Why a replica does not take an append.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaRefusal {
    /// The replica promised the slot to a higher claim.
    #[error(transparent)]
    HigherClaimPromised(#[from] HigherClaimPromised),
    /// The replica has accepted other first members of the slot, and nobody has confirmed these.
    #[error("this replica accepted other members for the slot, in epoch {}: start nodes that do not know each other with the same list of first nodes", .0.epoch)]
    OtherMembers(Placement),
    /// The slot has members already, which this replica does not know.
    #[error("the slot was formed before, with other members: it is theirs to offer")]
    AlreadyFormed,
    /// The replica has not accepted the epoch yet: it has to catch up first.
    #[error(
        "epoch {epoch} was not accepted here yet (this replica holds the history of epoch {accepted}): catch up first"
    )]
    NotAccepted {
        /// The append's epoch.
        epoch: Epoch,
        /// The epoch accepted.
        accepted: Epoch,
    },
}

impl SlotRecord {
    /// Returns the highest epoch this replica has heard of.
    pub fn highest_epoch(&self) -> Epoch {
        let placed = self.placement.as_ref().map_or(Epoch::default(), |placement| placement.epoch);
        let promised = self.promised.as_ref().map_or(Epoch::default(), |claim| claim.epoch);
        promised.max(self.accepted).max(placed)
    }

    /// Promises a claim, unless a higher one was promised. Promising the same again is the same promise.
    ///
    /// # Errors
    ///
    /// [`HigherClaimPromised`] if this replica promised a higher claim, or the same epoch to another node.
    pub fn promise(&self, claim: &Claim) -> Result<(Self, Promise), HigherClaimPromised> {
        self.check_not_above(claim)?;
        let promise = Promise { accepted: self.accepted, placement: self.placement.clone() };
        Ok((Self { promised: Some(claim.clone()), ..self.clone() }, promise))
    }

    /// Accepts a claim's epoch, with its members. The caller has seen that the replica's history of the slot is the
    /// claimant's.
    ///
    /// `previous` are the members that these replace, if the move is not settled yet.
    ///
    /// A replica gives up first members that it accepted only for confirmed ones. In two sets of first members it would let
    /// both believe that all of theirs accepted.
    ///
    /// # Errors
    ///
    /// [`ReplicaRefusal::HigherClaimPromised`] as for [`SlotRecord::promise`]. For members that are not confirmed:
    /// [`ReplicaRefusal::OtherMembers`] if this replica accepted others, [`ReplicaRefusal::AlreadyFormed`] if it knows none and saw
    /// another node own the slot.
    pub fn accept(
        &self,
        claim: &Claim,
        set: &ReplicaSet,
        is_confirmed: bool,
        before: Option<&ReplicaSet>,
    ) -> Result<Self, ReplicaRefusal> {
        self.check_not_above(claim)?;
        let known = self.placement.as_ref();
        if known.is_none() && self.is_formed && !is_confirmed {
            return Err(ReplicaRefusal::AlreadyFormed);
        }
        if let Some(other) = known.filter(|known| known.members != *set && !is_confirmed) {
            return Err(ReplicaRefusal::OtherMembers(other.clone()));
        }
        let is_confirmed = is_confirmed || known.is_some_and(|known| known.is_confirmed);
        // A move that this replica recorded as settled in this epoch stays settled.
        let is_settled = known.is_some_and(|known| {
            known.epoch == claim.epoch && known.members == *set && known.previous.is_none()
        });
        let previous = before.filter(|_| !is_settled).cloned();
        let placement = Placement { epoch: claim.epoch, members: set.clone(), is_confirmed, previous };
        let (promised, placement) = (Some(claim.clone()), Some(placement));
        Ok(Self { promised, accepted: claim.epoch, placement, ..self.clone() })
    }

    /// Records that enough members accepted what this replica accepted: all of the first members, or enough of those that a
    /// slot moves from and to.
    ///
    /// # Errors
    ///
    /// As [`SlotRecord::check_append`].
    pub fn confirm(&self, claim: &Claim) -> Result<Self, ReplicaRefusal> {
        self.check_append(claim)?;
        let placement = self.placement.clone().map(|placement| Placement {
            is_confirmed: true,
            previous: None,
            ..placement
        });
        Ok(Self { placement, ..self.clone() })
    }

    /// Returns the identity that the cluster has from a change of its first slot's record on: the change that shows that the
    /// slot's first members are its members.
    pub fn cluster_formed_by(&self, next: &Self) -> Option<ClusterId> {
        let (before, after) = (self.placement.as_ref()?, next.placement.as_ref()?);
        let is_now = !before.is_confirmed && after.is_confirmed && before.members == after.members;
        is_now.then(|| ClusterId::of(&after.members))
    }

    /// Returns the identity of the cluster that a node with this record of the first slot is about to form, or has formed as
    /// far as other nodes know. A node that names this identity knows these members: it is made of their data directories'
    /// identities.
    pub fn forming(&self) -> Option<ClusterId> {
        self.placement
            .as_ref()
            .filter(|placement| !placement.is_confirmed)
            .map(|placement| ClusterId::of(&placement.members))
    }

    /// Returns whether a node that belongs to a cluster, or to none yet, may accept a set of first members of the first slot.
    pub fn may_accept_first_members(of: Option<ClusterId>, set: &ReplicaSet, is_confirmed: bool) -> bool {
        is_confirmed || of.is_none_or(|id| id == ClusterId::of(set))
    }

    /// Returns whether a node with this record of the first slot may join a cluster. It may not while it is about to form
    /// another one, unless a member that is to form that one with it belongs to this cluster.
    pub fn may_join_cluster(&self, id: ClusterId, said_by: &StorageId) -> bool {
        match &self.placement {
            Some(Placement { members, is_confirmed: false, .. }) => {
                id == ClusterId::of(members)
                    || members.members().iter().any(|member| member.storage == *said_by)
            }
            _ => true,
        }
    }

    /// Records that this node saw another node own the slot.
    #[must_use]
    pub fn record_formed(&self) -> Self {
        Self { is_formed: true, ..self.clone() }
    }

    /// Returns what a data directory keeps of a slot's record when it gets a new identity, because it forgot what it promised.
    /// It keeps only that the slot was formed: a fact about the cluster, not about the directory. `None`: the node cannot read
    /// the record, which may have said so; to form the slot again would fork it from the cluster.
    pub fn after_new_identity(known: Option<&Self>) -> Self {
        let is_formed = known.is_none_or(|known| {
            known.is_formed || known.placement.as_ref().is_some_and(|placement| placement.is_confirmed)
        });
        Self { is_formed, ..Self::default() }
    }

    /// Checks that this replica may take an append of a claim's owner.
    ///
    /// # Errors
    ///
    /// [`ReplicaRefusal::HigherClaimPromised`] as for [`SlotRecord::promise`]; [`ReplicaRefusal::NotAccepted`] if this replica
    /// has not promised and accepted this claim.
    pub fn check_append(&self, claim: &Claim) -> Result<(), ReplicaRefusal> {
        self.check_not_above(claim)?;
        // The promised claim is not above this one, and no rival of it: if it has this epoch, it is this claim.
        let is_promised = self.promised.as_ref().is_some_and(|promised| promised.epoch == claim.epoch);
        if self.accepted == claim.epoch && is_promised {
            return Ok(());
        }
        Err(ReplicaRefusal::NotAccepted { epoch: claim.epoch, accepted: self.accepted })
    }

    /// Checks that this replica may take what the claim's owner holds, whether it accepted the claim or not.
    ///
    /// # Errors
    ///
    /// [`HigherClaimPromised`] as for [`SlotRecord::promise`].
    pub fn check_replicate(&self, claim: &Claim) -> Result<(), HigherClaimPromised> {
        self.check_not_above(claim)
    }

    fn check_not_above(&self, claim: &Claim) -> Result<(), HigherClaimPromised> {
        match &self.promised {
            // An epoch has one claimant: the second one has to pick a higher epoch.
            Some(promised) if promised.epoch > claim.epoch || promised.is_rival_of(claim) => {
                Err(HigherClaimPromised { promised: promised.clone() })
            }
            _ => Ok(()),
        }
    }
}
