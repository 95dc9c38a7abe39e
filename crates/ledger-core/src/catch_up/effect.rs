//! What the shell does for a run of catching up.

use std::collections::BTreeSet;

use crate::{
    ContextId, Size,
    compare::CompareRequest,
    digest::{ContextSummary, TreeHead},
    ownership::Claim,
    slot::Slot,
};

use super::WantedRange;

/// What the shell does for a run. It does the effects of one step in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read this node's digests of these slots, after everything written before: [`super::Event::Digests`].
    ReadDigests(BTreeSet<Slot>),
    /// Put a question to the source: [`super::Event::Remote`].
    AskRemote(CompareRequest),
    /// Put a question to this node's own store: [`super::Event::Local`].
    AskLocal(CompareRequest),
    /// Move a suffix to the forks: [`super::Event::Forked`].
    Fork(ForkOrder),
    /// Replace a context that this node cannot read by the whole history of the source, which owns the slot:
    /// [`super::Event::Restored`].
    Restore {
        /// The context.
        context: ContextId,
        /// The source's claim.
        claim: Claim,
        /// How far the source's history went.
        theirs: TreeHead,
    },
    /// Scrub a context on this node: the stored trees of both nodes contradict each other. The run waits for no answer.
    Scrub(ContextId),
    /// Fetch these, in this order: [`CatchUp::on_range`](super::CatchUp::on_range) for every range, then
    /// [`super::Event::FetchEnded`].
    Fetch(Vec<WantedRange>),
    /// Finish all writes that are under way: [`super::Event::WritesFinished`].
    FinishWrites,
    /// The run is done with a slot.
    Done(Slot, SlotOutcome),
}

/// A suffix that the shell moves to the forks, with the evidence that the source holds another history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkOrder {
    /// The context.
    pub context: ContextId,
    /// The claim in which the shell moves it.
    pub claim: Claim,
    /// The size that both histories share: the suffix is everything after it.
    pub common: Size,
    /// The tree head that this node's history must still have.
    pub expected: TreeHead,
    /// The source's history. `None`: it has none, and could read that.
    pub theirs: Option<ContextSummary>,
}

/// How catching up ended for a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotOutcome {
    /// A comparison found nothing that the source holds and this node lacks.
    InSync,
    /// The run fetched little since its last comparison: ask the owner for a sync offer, which compares all of the slot.
    NearlyInSync,
    /// This node promised the slot to this higher claim. The run changed nothing of it since.
    Refused(Claim),
    /// One of the sides cannot read all of it, or the source does not keep it: this node's copy may be incomplete.
    Unreadable,
    /// The run failed for the slot, and another may succeed.
    Failed(Failure),
}

/// Why a run failed for a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The source does not answer, or answers what nobody asked for.
    #[error("the other node cannot be asked: {0}")]
    Source(String),
    /// The source's response ended before everything had come.
    #[error("the response of the other node ended early: context {0} did not come whole")]
    EndedEarly(ContextId),
    /// What the source sent does not verify, or is not what this node asked for.
    #[error("what the other node sends is refused: {0}")]
    Invalid(String),
    /// This node's store failed.
    #[error("it cannot be written here: {0}")]
    Store(String),
    /// The source's history grows faster than this node fetches, or is replaced again and again.
    #[error("the other node writes faster than this one can fetch")]
    TooFast,
}
