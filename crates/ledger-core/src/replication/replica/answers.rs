//! What a replica answers to lease renewals and to digests.

use std::collections::BTreeMap;

use crate::{
    digest::{Digest, NodeDigest},
    ownership::{
        Claim,
        slot_manager::{LeaseRenewal, Millis},
    },
    slot::Slot,
};

/// Whether a replica is in sync with a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncState {
    /// It accepted the claim and holds what its owner holds.
    InSync,
    /// It promised no higher claim, and is not in sync.
    Behind,
    /// It promised this higher claim.
    Refused(Claim),
    /// It cannot read what it promised.
    Unknown,
}

/// The answer to lease renewals of one owner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenewalAnswer {
    /// For the owner: the slots that this replica promised to a higher claim. `None`: it cannot read what it promised.
    pub refused: BTreeMap<Slot, Option<Claim>>,
    /// For this node's slot manager: the slots in sync, whose leases this renews, each with the age of the owner's own lease.
    pub in_sync: Vec<(Slot, Millis)>,
}

impl RenewalAnswer {
    /// Answers renewals, given how each claim stands here after everything that the owner sent before.
    pub fn of(renewals: &[LeaseRenewal], states: &BTreeMap<Slot, SyncState>) -> Self {
        let mut answer = Self::default();
        for LeaseRenewal { slot, age, .. } in renewals {
            match states.get(slot) {
                Some(SyncState::InSync) => answer.in_sync.extend(age.map(|age| (*slot, age))),
                Some(SyncState::Refused(by)) => _ = answer.refused.insert(*slot, Some(by.clone())),
                Some(SyncState::Unknown) => _ = answer.refused.insert(*slot, None),
                Some(SyncState::Behind) | None => {}
            }
        }
        answer
    }
}

/// A replica's state of a slot, for the slot's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaStatus {
    /// It is in sync with a claim of that owner, and this is its digest.
    InSync(Digest),
    /// It promised the slot to another node's claim.
    Promised(Claim),
    /// It is not in sync.
    NotInSync,
}

/// The answer to an owner's digests of slots at one place of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointAnswer {
    /// Slots that this replica promised to another node. An owner that appends nothing to them would otherwise never hear of
    /// it.
    pub promised: Vec<(Slot, Claim)>,
    /// Whether both hold the same; `None`: not all slots are in sync, they moved since the digests were made.
    pub is_same: Option<bool>,
}

impl CheckpointAnswer {
    /// Compares what this replica holds with the owner's digest. If it is not the same, the stream must break: the owner counts on
    /// this replica.
    pub fn of(statuses: BTreeMap<Slot, ReplicaStatus>, theirs: NodeDigest) -> Self {
        let (mut promised, mut local) = (Vec::new(), Some(BTreeMap::new()));
        for (slot, status) in statuses {
            match status {
                ReplicaStatus::InSync(digest) => _ = local.as_mut().map(|local| local.insert(slot, digest)),
                ReplicaStatus::NotInSync => local = None,
                ReplicaStatus::Promised(by) => {
                    local = None;
                    promised.push((slot, by));
                }
            }
        }
        Self { promised, is_same: local.map(|local| NodeDigest::of(&local) == theirs) }
    }
}
