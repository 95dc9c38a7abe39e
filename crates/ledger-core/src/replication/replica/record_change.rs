//! Changes of slots' records: what a replica promises, accepts and confirms, and what it answers.
//!
//! A change goes through the lane's queue. A promise therefore comes after every entry accepted before it and before every entry
//! refused because of it, and an offer covers exactly what its owner sent before it.

use std::{collections::BTreeMap, hash::Hash as MapKey};

use super::{Accepted, Replica};
use crate::{
    Epoch,
    digest::Digest,
    node::{ClusterId, Member, ReplicaSet, StorageId},
    ownership::{
        Claim, HigherClaimPromised, Placement, Promise, RefusedPart, ReplicaRefusal, SlotRecord, WhyRefused,
        slot_manager::{Event, MemberRequest, MemberResponse, SyncOfferOutcome},
    },
    slot::Slot,
};

/// A change of a slot's record, which a lane writes before it answers: a promise, an acceptance, a confirmation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordChange {
    /// Promise a claim.
    Promise(Claim),
    /// Accept an epoch.
    Accept {
        /// The claim of that epoch.
        claim: Claim,
        /// The members.
        members: ReplicaSet,
        /// Whether these members are confirmed.
        is_confirmed: bool,
        /// The members that these replace, until it is settled that these follow them.
        previous: Option<ReplicaSet>,
        /// The claimant's offer. `None`: this node is the claimant, and has nothing to compare.
        offer: Option<Offer>,
    },
    /// Record that all first members have accepted.
    Confirm(Claim),
    /// Record that the slot has members, which this node does not know.
    RecordFormed,
    /// Of the first slot only: record which cluster this node belongs to, as the member with this storage says.
    JoinCluster(ClusterId, StorageId),
}

/// What a sync offer says that the owner holds. The replica's lane compares it with what the replica holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The owner's digest of the slot at this place of its stream.
    pub digest: Digest,
    /// The number of the lane's newest commit before this place.
    pub number: u64,
}

/// What a replica's lane did with a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordChangeOutcome {
    /// The replica promised the claim.
    Promised(Promise),
    /// The replica recorded the change.
    Done,
    /// The replica promised this higher claim before.
    Refused(Claim),
    /// The replica accepted other first members before.
    OtherMembers(Placement),
    /// The replica holds something else of the slot than the owner offered. It shows readers nothing of the slot until it
    /// holds the same.
    Diverged {
        /// The replica was in sync with this very claim, whose owner may count on it: see [`Self::refused_part`].
        was_in_sync: bool,
    },
    /// The replica cannot make the change now.
    Unavailable(WhyUnavailable),
}

/// Why a replica cannot change a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyUnavailable {
    /// A promise makes a replica's history count, and an unreadable one could be the longest there is.
    #[error("some of the slot cannot be read here: it is restored from another member")]
    Damaged,
    /// The change comes before the acceptance, or follows one of another epoch.
    #[error("epoch {epoch} was not accepted here (this replica holds the history of epoch {accepted})")]
    NotAccepted {
        /// The change's epoch.
        epoch: Epoch,
        /// The epoch accepted.
        accepted: Epoch,
    },
    /// The slot has members, which this replica does not know: those offered are others.
    #[error("the slot was formed before, with other members: it is theirs to offer")]
    AlreadyFormed,
    /// The data directory belongs to another cluster.
    #[error("the data directory belongs to the cluster {0}")]
    OtherCluster(ClusterId),
    /// The node accepted first members of another cluster.
    #[error("the node is about to form another cluster")]
    FormingAnother,
}

/// What a lane knows of a slot beside its record when it decides a change.
#[derive(Debug, Clone, Copy)]
pub struct SlotCondition {
    /// Whether this node knows of something in the slot that it cannot read.
    pub has_damage: bool,
    /// The digest of what this node holds; `None`: it keeps no digests.
    pub digest: Option<Digest>,
}

/// Changes of slots' records that the lane makes durable with one write.
#[derive(Debug)]
pub struct RecordBatch {
    /// The slot whose members give the cluster its identity.
    first: Slot,
    known_cluster: Option<ClusterId>,
    cluster: Option<ClusterId>,
    records: BTreeMap<Slot, SlotRecord>,
    accepted: Vec<Accepted>,
}

impl RecordBatch {
    /// Makes an empty batch, of a node that belongs to this cluster, or to none yet.
    pub const fn new(first: Slot, cluster: Option<ClusterId>) -> Self {
        Self { first, known_cluster: cluster, cluster, records: BTreeMap::new(), accepted: Vec::new() }
    }

    /// A record that the batch changes, as it is afterwards.
    pub fn record(&self, slot: Slot) -> Option<&SlotRecord> {
        self.records.get(&slot)
    }

    /// Returns the records to write.
    pub const fn records(&self) -> &BTreeMap<Slot, SlotRecord> {
        &self.records
    }

    /// Returns the cluster that the node belongs to from this write on, if it belonged to none before: write it with the
    /// records.
    pub fn joined(&self) -> Option<ClusterId> {
        self.cluster.filter(|_| self.known_cluster.is_none())
    }

    /// Returns the records, and what [`Replica::on_written`] takes once they are on disk.
    pub fn into_parts(self) -> (BTreeMap<Slot, SlotRecord>, Vec<Accepted>) {
        (self.records, self.accepted)
    }

    /// Adds a change of a slot with this record. If the outcome is [`RecordChangeOutcome::Diverged`] the slot is out of sync: hide
    /// it.
    ///
    /// # Panics
    ///
    /// If a promise would be taken back, which no change does.
    pub fn change<C: MapKey + Eq + Clone, P>(
        &mut self,
        replica: &mut Replica<C, P>,
        slot: Slot,
        record: &SlotRecord,
        change: RecordChange,
        condition: SlotCondition,
    ) -> RecordChangeOutcome {
        if let Err(why) = self.fits_cluster(slot, record, &change) {
            return RecordChangeOutcome::Unavailable(why);
        }
        let (outcome, next) = self.decide(replica, slot, record, change, condition);
        if let Some(next) = next {
            let promised = |record: &SlotRecord| record.promised.as_ref().map(|claim| claim.epoch);
            assert!(promised(&next) >= promised(record), "a promise is never taken back");
            if slot == self.first && self.cluster.is_none() {
                self.cluster = record.cluster_formed_by(&next);
            }
            self.records.insert(slot, next);
        }
        outcome
    }

    fn decide<C: MapKey + Eq + Clone, P>(
        &mut self,
        replica: &mut Replica<C, P>,
        slot: Slot,
        record: &SlotRecord,
        change: RecordChange,
        SlotCondition { has_damage, digest }: SlotCondition,
    ) -> (RecordChangeOutcome, Option<SlotRecord>) {
        match change {
            RecordChange::Promise(claim) if has_damage && record.check_replicate(&claim).is_ok() => {
                (RecordChangeOutcome::Unavailable(WhyUnavailable::Damaged), None)
            }
            RecordChange::Promise(claim) => match record.promise(&claim) {
                Ok((next, promise)) => (RecordChangeOutcome::Promised(promise), Some(next)),
                Err(HigherClaimPromised { promised }) => (RecordChangeOutcome::Refused(promised), None),
            },
            RecordChange::Confirm(claim) => match record.confirm(&claim) {
                Ok(next) => (RecordChangeOutcome::Done, Some(next)),
                Err(refused) => (refused.into(), None),
            },
            RecordChange::RecordFormed => (RecordChangeOutcome::Done, Some(record.record_formed())),
            RecordChange::JoinCluster(..) => (RecordChangeOutcome::Done, Some(record.clone())),
            RecordChange::Accept { claim, members, is_confirmed, previous, offer } => {
                let next = match record.accept(&claim, &members, is_confirmed, previous.as_ref()) {
                    Ok(next) => next,
                    Err(refused) => return (refused.into(), None),
                };
                let Some(Offer { digest: offered, number }) = offer else {
                    return (RecordChangeOutcome::Done, Some(next));
                };
                if digest != Some(offered) || has_damage {
                    let was_in_sync = replica.is_in_sync(slot, &claim);
                    replica.in_sync.remove(&slot);
                    // From now on this replica must refuse every lower claim, because its history is about to change.
                    let promised = record.promise(&claim).ok().map(|(next, _)| next);
                    return (RecordChangeOutcome::Diverged { was_in_sync }, promised);
                }
                self.accepted.push(Accepted { slot, claim, number });
                (RecordChangeOutcome::Done, Some(next))
            }
        }
    }

    /// Returns whether a change of the first slot fits the node's cluster, or determines it.
    fn fits_cluster(
        &mut self,
        slot: Slot,
        record: &SlotRecord,
        change: &RecordChange,
    ) -> Result<(), WhyUnavailable> {
        let belongs = |cluster: Option<ClusterId>| {
            cluster.map_or(WhyUnavailable::FormingAnother, WhyUnavailable::OtherCluster)
        };
        match change {
            RecordChange::JoinCluster(id, _) if self.cluster == Some(*id) => Ok(()),
            RecordChange::JoinCluster(id, said_by) => {
                if slot != self.first || self.cluster.is_some() || !record.may_join_cluster(*id, said_by) {
                    return Err(belongs(self.cluster));
                }
                self.cluster = Some(*id);
                Ok(())
            }
            RecordChange::Accept { members, is_confirmed, .. }
                if slot == self.first
                    && !SlotRecord::may_accept_first_members(self.cluster, members, *is_confirmed) =>
            {
                Err(belongs(self.cluster))
            }
            _ => Ok(()),
        }
    }
}

impl From<ReplicaRefusal> for RecordChangeOutcome {
    fn from(refused: ReplicaRefusal) -> Self {
        match refused {
            ReplicaRefusal::HigherClaimPromised(refused) => Self::Refused(refused.promised),
            ReplicaRefusal::OtherMembers(placement) => Self::OtherMembers(placement),
            ReplicaRefusal::NotAccepted { epoch, accepted } => {
                Self::Unavailable(WhyUnavailable::NotAccepted { epoch, accepted })
            }
            ReplicaRefusal::AlreadyFormed => Self::Unavailable(WhyUnavailable::AlreadyFormed),
        }
    }
}

impl RecordChangeOutcome {
    /// Returns the answer to a member's request.
    pub fn response(self) -> MemberResponse {
        match self {
            Self::Promised(promise) => MemberResponse::Promised(promise),
            Self::Done => MemberResponse::Done,
            Self::Refused(by) => MemberResponse::Refused(by),
            Self::OtherMembers(_) | Self::Diverged { .. } | Self::Unavailable(_) => {
                MemberResponse::Unavailable
            }
        }
    }

    /// Returns what to tell the owner instead of the answer to its offer, if it may count on this replica: the same as if the
    /// replica had refused a part. The owner then makes another offer.
    pub fn refused_part(&self, slot: Slot, claim: &Claim) -> Option<RefusedPart> {
        (*self == Self::Diverged { was_in_sync: true }).then(|| RefusedPart {
            slot,
            claim: claim.clone(),
            why: WhyRefused::Invalid("it does not hold what was offered".to_owned()),
        })
    }

    /// Returns the answer to an owner's offer.
    pub fn offer_outcome(self) -> SyncOfferOutcome {
        match self {
            Self::Done | Self::Promised(_) => SyncOfferOutcome::Accepted,
            Self::Refused(by) => SyncOfferOutcome::Refused(by),
            Self::OtherMembers(placement) => SyncOfferOutcome::OtherMembers(placement),
            Self::Diverged { .. } => SyncOfferOutcome::Diverged,
            Self::Unavailable(_) => SyncOfferOutcome::Unavailable,
        }
    }
}

/// The reason for which a node changes its own record. From it the shell tells the slot manager how the change ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangedFor {
    /// A request that the slot manager made for a claim.
    Request(Claim),
    /// An offer that it made for a claim.
    Offer(Claim),
    /// Nobody waits for it.
    Nobody,
}

impl RecordChange {
    /// Makes the change that a member's request asks for; `None`: it asks the slot manager.
    pub fn requested(request: MemberRequest, claim: Claim) -> Option<Self> {
        match request {
            MemberRequest::Promise => Some(Self::Promise(claim)),
            MemberRequest::ConfirmMembers => Some(Self::Confirm(claim)),
            MemberRequest::TakeOver | MemberRequest::QuerySlot { .. } => None,
        }
    }

    /// Returns for whom a node makes this change to its own record.
    pub fn changed_for(&self) -> ChangedFor {
        match self {
            Self::Accept { claim, .. } => ChangedFor::Offer(claim.clone()),
            Self::Promise(claim) | Self::Confirm(claim) => ChangedFor::Request(claim.clone()),
            Self::RecordFormed | Self::JoinCluster(..) => ChangedFor::Nobody,
        }
    }
}

impl ChangedFor {
    /// Returns what the shell tells the node's slot manager, beside the record. `outcome` is `None` if the shell could not
    /// read or write the record.
    pub fn event(self, me: Member, slot: Slot, outcome: Option<RecordChangeOutcome>) -> Option<Event> {
        match self {
            Self::Nobody => None,
            Self::Offer(claim) => {
                // A node does not differ from itself.
                let outcome = outcome.map(RecordChangeOutcome::offer_outcome);
                let outcome = outcome.filter(|outcome| *outcome != SyncOfferOutcome::Diverged);
                let outcome = outcome.unwrap_or(SyncOfferOutcome::Unavailable);
                Some(Event::SyncOfferAnswered { from: me, slot, claim, outcome })
            }
            Self::Request(claim) => {
                let answer = outcome.map_or(MemberResponse::Unavailable, RecordChangeOutcome::response);
                Some(Event::Response { from: me, slot, claim, answer })
            }
        }
    }
}
