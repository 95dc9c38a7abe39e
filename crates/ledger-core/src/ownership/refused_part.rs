//! What an owner hears from a replica that does not take a part of a commit.

use super::Claim;
use crate::slot::Slot;

/// A part that a replica refuses. Its slot is not in sync with the part's claim, and the owner must know that before it is told
/// that the part's commit is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPart {
    /// The slot.
    pub slot: Slot,
    /// The claim in which the part was sent.
    pub claim: Claim,
    /// Why the replica refuses it.
    pub why: WhyRefused,
}

/// Why a replica refuses a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyRefused {
    /// It promised the slot to this higher claim.
    Promised(Claim),
    /// It is not what a node of ours would send, it could not be written, or the owner counts on an entry that is missing here.
    Invalid(String),
}
