//! The replica's end of an owner's stream: in what order things may come, when to break it, and what to answer.

use std::collections::BTreeMap;

use super::ReplicateOutcome;
use crate::{
    node::{Member, NodeId},
    ownership::{Claim, RefusedPart, slot_manager::Millis},
    plausible::Implausible,
};

/// Why a stream must break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The numbers of a lane's commits fell.
    #[error(transparent)]
    Number(#[from] Implausible),
    /// An owner sends in its own claims only.
    #[error("what was sent is in the claim of another node, {0}")]
    ForeignClaim(NodeId),
}

/// The stream of one owner, from when this replica took it.
#[derive(Debug, Clone)]
pub struct ReplicaStream {
    owner: Member,
    /// The number of the newest commit that arrived, by the owner's lane.
    lanes: BTreeMap<u16, u64>,
    /// When this replica took the stream, or answered the newest renewal.
    answered: Millis,
}

impl ReplicaStream {
    /// Begins with a stream that this replica takes now: the owner sends everything on it after this moment.
    pub const fn begin(owner: Member, now: Millis) -> Self {
        Self { owner, lanes: BTreeMap::new(), answered: now }
    }

    /// Checks a commit or an offer that arrives: its number in the lane, and the claims of its parts.
    ///
    /// # Errors
    ///
    /// [`StreamError`] if the stream must break: what is said of commits goes by their numbers, which never fall, and only the
    /// owner of a claim sends in it.
    pub fn on_sent<'a>(
        &mut self,
        lane: u16,
        number: u64,
        claims: impl IntoIterator<Item = &'a Claim>,
    ) -> Result<(), StreamError> {
        let known = self.lanes.entry(lane).or_insert(0);
        if number < *known {
            return Err(Implausible::Number { number, known: *known }.into());
        }
        *known = number;
        match claims.into_iter().find(|claim| !claim.is_of(&self.owner)) {
            Some(foreign) => Err(StreamError::ForeignClaim(foreign.claimant.clone())),
            None => Ok(()),
        }
    }

    /// This replica answers a lease renewal now. Returns a moment before the owner sent that renewal: the owner sends each after
    /// it had the answer to the one before, or after the stream was taken.
    pub const fn on_renewal_answered(&mut self, now: Millis) -> Millis {
        std::mem::replace(&mut self.answered, now)
    }
}

/// Returns the slots that this replica must name to the owner before it acknowledges a commit with these outcomes, each with the
/// first part that it refused.
pub fn refused_slots(outcomes: impl IntoIterator<Item = ReplicateOutcome>) -> Vec<RefusedPart> {
    let mut refused = BTreeMap::new();
    for outcome in outcomes {
        if let ReplicateOutcome::Refused(part) = outcome {
            refused.entry(part.slot).or_insert(part);
        }
    }
    refused.into_values().collect()
}
