//! An owner's offer to a replica, in its stream.

use super::{Offer, RecordChange};
use crate::{digest::Digest, node::ReplicaSet, ownership::Claim, slot::Slot};

/// The offer to accept a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncOffer {
    /// The lane whose stream it is in.
    pub lane: u16,
    /// The commits of that lane up to this number come before it.
    pub number: u64,
    /// The slot.
    pub slot: Slot,
    /// The claim.
    pub claim: Claim,
    /// The slot's members.
    pub members: ReplicaSet,
    /// Whether they were confirmed.
    pub is_confirmed: bool,
    /// The members that these are to follow, if that is not settled.
    pub previous: Option<ReplicaSet>,
    /// The digest of what the claimant holds of the slot at this place.
    pub digest: Digest,
}

impl SyncOffer {
    /// Returns what accepting it changes.
    pub fn into_change(self) -> RecordChange {
        let Self { number, claim, members, is_confirmed, previous, digest, .. } = self;
        let offer = Some(Offer { digest, number });
        RecordChange::Accept { claim, members, is_confirmed, previous, offer }
    }
}
