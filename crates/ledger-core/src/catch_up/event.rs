//! What the shell tells a run of catching up.

use std::collections::BTreeMap;

use crate::{
    ContextId,
    compare::CompareResponse,
    digest::Digest,
    ownership::{Claim, WhyRefused},
    replication::replica::ReplicateOutcome,
    slot::Slot,
};

use super::{Failure, Missing};

/// What the shell tells a run of catching up. Most events answer an [`super::Effect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The digests that [`super::Effect::ReadDigests`] asked for.
    Digests(BTreeMap<Slot, Digest>),
    /// The source's answer to [`super::Effect::AskRemote`].
    Remote(CompareResponse),
    /// The answer of this node's own store to [`super::Effect::AskLocal`].
    Local(CompareResponse),
    /// The shell did [`super::Effect::Fork`], or could not.
    Forked(ContextId, ForkResult),
    /// The shell did [`super::Effect::Restore`], or could not.
    Restored(ContextId, RestoreResult),
    /// The source says why it sends nothing more of a context that this node asked for.
    Missing(ContextId, Missing),
    /// The response to [`super::Effect::Fetch`] ended, however it did.
    FetchEnded,
    /// The shell staged a range of a load ([`super::RangeUse::Stage`]), or could not.
    Loaded(ContextId, LoadResult),
    /// The shell could not write ranges of a slot ([`super::RangeUse::Write`]). It reports none that are durable.
    Written(Slot, WriteResult),
    /// The shell finished all writes, and reported each that failed.
    WritesFinished,
    /// This node promised the slot to a higher claim.
    HigherClaim(Slot, Claim),
    /// The source does not answer, or answers what nobody asked for.
    SourceLost(String),
    /// This node's disk takes no writes.
    DiskRefuses(String),
}

/// How moving a suffix to the forks ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkResult {
    /// The shell moved the suffix to the forks.
    Forked,
    /// The history is no longer what the comparison saw. The shell changed nothing.
    Moved,
    /// This node promised the slot to this higher claim. The shell changed nothing.
    Refused(Claim),
    /// The shell cannot read the suffix. It changed nothing.
    Unreadable,
    /// The shell failed.
    Failed(Failure),
}

/// How replacing a damaged history by the source's ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreResult {
    /// The history is in place, or something else replaced the damaged one meanwhile.
    Restored,
    /// The shell cannot restore it yet.
    NotYet,
}

/// How staging a range of a load ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadResult {
    /// The shell staged it; if it was the last range, the load is in place.
    Taken,
    /// The context is no longer what the load continues: the run compares it again.
    Moved,
    /// This node promised the slot to this higher claim.
    Refused(Claim),
    /// The shell failed.
    Failed(Failure),
}

/// Why a write did not become durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteResult {
    /// The range does not continue what this node has by now: the run compares the slot again.
    Moved,
    /// This node promised the slot to this higher claim.
    Refused(Claim),
    /// The shell failed.
    Failed(Failure),
}

impl WriteResult {
    /// Returns what to tell of a range that was written; `None` if it is simply durable.
    pub fn of(outcome: ReplicateOutcome) -> Option<Self> {
        match outcome {
            ReplicateOutcome::Durable(_) => None,
            ReplicateOutcome::Gap | ReplicateOutcome::Diverged => Some(Self::Moved),
            ReplicateOutcome::Refused(part) => Some(match part.why {
                WhyRefused::Promised(by) => Self::Refused(by),
                WhyRefused::Invalid(reason) => Self::Failed(Failure::Invalid(reason)),
            }),
        }
    }
}
