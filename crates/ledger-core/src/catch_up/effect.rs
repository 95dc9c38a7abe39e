//! What a run of catching up asks its caller to do.

use std::collections::BTreeSet;

use crate::{
    ContextId, Size,
    compare::CompareRequest,
    digest::{ContextSummary, TreeHead},
    ownership::Claim,
    slot::Slot,
};

use super::WantedRange;

/// What is to be done. Effects of one step are done in their order.
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
    /// Replace a context that cannot be read here by the whole history of the source, which owns its slot:
    /// [`super::Event::Restored`].
    Restore {
        /// The context.
        context: ContextId,
        /// The source's claim.
        claim: Claim,
        /// How far the source's history went.
        theirs: TreeHead,
    },
    /// Check what is stored of a context: the stored trees of both nodes contradict each other. No answer is needed.
    Scrub(ContextId),
    /// Fetch these, in this order: [`CatchUp::on_range`](super::CatchUp::on_range) for every range, then
    /// [`super::Event::FetchEnded`].
    Fetch(Vec<WantedRange>),
    /// Finish all writes that are under way: [`super::Event::WritesFinished`].
    FinishWrites,
    /// A slot is done.
    Done(Slot, SlotOutcome),
}

/// A suffix that is to be moved to the forks, with the evidence that the source holds another history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkOrder {
    /// The context.
    pub context: ContextId,
    /// The claim in which it is moved.
    pub claim: Claim,
    /// What both histories share: everything after it is moved.
    pub common: Size,
    /// What this node's history must still be.
    pub expected: TreeHead,
    /// What the source holds. `None`: nothing, and it could read that.
    pub theirs: Option<ContextSummary>,
}

/// How catching up ended for a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotOutcome {
    /// A comparison found nothing that the source holds and this node lacks.
    InSync,
    /// Little was fetched since the last comparison: ask the owner for a sync offer, which compares all of the slot.
    NearlyInSync,
    /// The slot was promised to this higher claim. It is unchanged since.
    Refused(Claim),
    /// One of the sides cannot read all of it, or the source does not keep it: this node's copy may be incomplete.
    Unreadable,
    /// It failed, and can be tried again.
    Failed(Failure),
}

/// Why catching up failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The source does not answer, or answers what nobody asked for.
    #[error("the other node cannot be asked: {0}")]
    Source(String),
    /// The source's response ended before everything had come.
    #[error("the response of the other node ended early: context {0} did not come whole")]
    EndedEarly(ContextId),
    /// What the source sent does not verify, or is not what was asked for.
    #[error("what the other node sends is refused: {0}")]
    Invalid(String),
    /// This node's store failed.
    #[error("it cannot be written here: {0}")]
    Store(String),
    /// The source is written to faster than this node fetches, or its history is replaced again and again.
    #[error("the other node writes faster than this one can fetch")]
    TooFast,
}
