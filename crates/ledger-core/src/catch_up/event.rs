//! What happens to a run of catching up.

use std::collections::BTreeMap;

use crate::{ContextId, compare::CompareResponse, digest::Digest, ownership::Claim, slot::Slot};

use super::{Failure, Missing};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The digests that [`super::Effect::ReadDigests`] asked for.
    Digests(BTreeMap<Slot, Digest>),
    /// The source's answer to [`super::Effect::AskRemote`].
    Remote(CompareResponse),
    /// The answer of this node's own store to [`super::Effect::AskLocal`].
    Local(CompareResponse),
    /// What became of [`super::Effect::Fork`].
    Forked(ContextId, ForkResult),
    /// What became of [`super::Effect::Restore`].
    Restored(ContextId, RestoreResult),
    /// The source says why it sends nothing more of a context that was asked for.
    Missing(ContextId, Missing),
    /// The response to [`super::Effect::Fetch`] ended, however it did.
    FetchEnded,
    /// What became of a range of a load that was to be staged ([`super::RangeUse::Stage`]).
    Loaded(ContextId, LoadResult),
    /// What became of ranges of a slot that were to be written. Nothing need be told of those that are durable.
    Written(Slot, WriteResult),
    /// All writes are finished, and what became of each was told.
    WritesFinished,
    /// The slot was promised to a higher claim.
    HigherClaim(Slot, Claim),
    /// The source does not answer, or answers what nobody asked for.
    SourceLost(String),
    /// This node's disk takes no writes.
    DiskRefuses(String),
}

/// What became of a fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkResult {
    /// The suffix is in the forks.
    Forked,
    /// The history is not what was compared any more. Nothing was changed.
    Moved,
    /// The slot was promised to this higher claim. Nothing was changed.
    Refused(Claim),
    /// The suffix cannot be read. Nothing was changed.
    Unreadable,
    /// It failed.
    Failed(Failure),
}

/// What became of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreResult {
    /// The history is in place, or something else replaced the damaged one meanwhile.
    Restored,
    /// It cannot be restored yet.
    NotYet,
}

/// What became of a range of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadResult {
    /// It is staged; or the load is whole, and in place.
    Taken,
    /// The context is not what the load comes after any more: it is compared again.
    Moved,
    /// The slot was promised to this higher claim.
    Refused(Claim),
    /// It failed.
    Failed(Failure),
}

/// What became of a write that is not simply durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteResult {
    /// It does not continue what is here by now: the slot is compared again.
    Moved,
    /// The slot was promised to this higher claim.
    Refused(Claim),
    /// It failed.
    Failed(Failure),
}
