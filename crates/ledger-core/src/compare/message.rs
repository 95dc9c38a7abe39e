//! What two nodes that compare say to each other. Plain data: a transport carries it, and pairs every answer
//! with its question.
//!
//! Sets and maps of slots and buckets are bounded by their types (1024 and 256). The other bounds are checked:
//! of a question by [`CompareRequest::check`], before it is answered; of an answer by [`super::DrillDown`].

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ContextId, Hash, Size,
    digest::{Bucket, ContextSummary, Digest, NodeDigest},
    limits::MAX_SEQUENCE,
    slot::Slot,
};

use super::{
    CompareRequestError,
    limits::{MAX_BUCKET_SLOTS, MAX_COMPARED, MAX_SIZES},
};

/// A question of a comparison, to the peer and to this node's own store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareRequest {
    /// Are both nodes in sync in these slots? The answer is [`CompareResponse::InSync`] if the answering node's digest of
    /// those that it keeps is equal (see [`CompareResponse::to_node`]), else [`CompareResponse::Slots`].
    Node {
        /// The slots that both nodes keep, as far as the asking node knows.
        slots: BTreeSet<Slot>,
        /// The digest of these slots.
        digest: NodeDigest,
    },
    /// The digests of these slots' buckets: [`CompareResponse::Buckets`]. At most [`MAX_BUCKET_SLOTS`] slots.
    Buckets {
        /// The slots.
        slots: BTreeSet<Slot>,
    },
    /// The contexts in these buckets, in the order of slot and then id: [`CompareResponse::Contexts`]. At most
    /// [`MAX_BUCKET_SLOTS`] slots.
    Contexts {
        /// The buckets of each slot.
        buckets: BTreeMap<Slot, BTreeSet<Bucket>>,
        /// List only contexts after this one, in that order: its slot comes from its id. `None`: list from the start.
        after: Option<ContextId>,
    },
    /// Roots at earlier sizes: [`CompareResponse::Roots`]. At most [`MAX_COMPARED`] contexts.
    Roots(Vec<RootsRequest>),
}

/// A context, and the sizes at which the question asks for its roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootsRequest {
    /// The context.
    pub context: ContextId,
    /// The sizes: 1 to [`MAX_SIZES`] of them, rising, from 1 up.
    pub sizes: Vec<Size>,
}

/// A node's answer to a [`CompareRequest`]. The node reads all of it at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompareResponse {
    /// The digests are equal.
    InSync,
    /// The digests of those of the slots that the answering node keeps.
    Slots(BTreeMap<Slot, Digest>),
    /// The digests of the buckets that hold something. The answering node leaves out slots that it does not keep, and lists
    /// empty ones without buckets.
    Buckets(BTreeMap<Slot, BTreeMap<Bucket, Digest>>),
    /// Contexts.
    Contexts(Page),
    /// The roots of each context, in the order of the question.
    Roots(Vec<Roots>),
}

/// What a node has of a context. What it cannot read is not absent: nobody may conclude that there is less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextStatus {
    /// The node could read that it has no such context, or nothing in it.
    Absent,
    /// The node has something of the context, and cannot read what: its disk is damaged.
    Unreadable,
    /// The node has this history.
    Present(ContextSummary),
}

impl ContextStatus {
    /// Returns the history, if the node has one and can read it.
    pub const fn summary(&self) -> Option<&ContextSummary> {
        match self {
            Self::Present(summary) => Some(summary),
            Self::Absent | Self::Unreadable => None,
        }
    }

    /// Returns the size of the history, 0 if there is none; `None` if the node cannot read it.
    pub fn size(&self) -> Option<Size> {
        match self {
            Self::Absent => Some(Size(0)),
            Self::Present(summary) => Some(summary.size),
            Self::Unreadable => None,
        }
    }
}

/// A context in a listing: never absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListedContext {
    /// The node can read it.
    Present(ContextSummary),
    /// The node cannot read it.
    Unreadable(ContextId),
}

impl ListedContext {
    /// Returns the context.
    pub const fn context(&self) -> &ContextId {
        match self {
            Self::Present(ContextSummary { context, .. }) | Self::Unreadable(context) => context,
        }
    }
}

impl From<ListedContext> for ContextStatus {
    fn from(listed: ListedContext) -> Self {
        match listed {
            ListedContext::Present(summary) => Self::Present(summary),
            ListedContext::Unreadable(_) => Self::Unreadable,
        }
    }
}

/// A context's roots at a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The node could read that it has no such context.
    Absent,
    /// The node cannot read the context, or what it makes the roots of.
    Unreadable,
    /// The roots at the sizes asked for, in their order. The list ends early where the history is shorter.
    At(Vec<Hash>),
}

impl Roots {
    /// Returns whether the node could read its history, and the history is shorter than the largest of so many sizes.
    pub const fn is_shorter_than(&self, asked: usize) -> bool {
        match self {
            Self::Absent => true,
            Self::Unreadable => false,
            Self::At(roots) => roots.len() < asked,
        }
    }
}

/// A part of the listing of the contexts in buckets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The next contexts, at most [`super::MAX_PAGE`], by slot and then id: what is left out is not there.
    pub contexts: Vec<ListedContext>,
    /// Whether there are more contexts after the last of these.
    pub more: bool,
}

impl CompareRequest {
    /// Checks that the question keeps its bounds. A node does so before it reads anything for the answer.
    ///
    /// # Errors
    ///
    /// [`CompareRequestError`] names the bound that the request exceeds, or the context whose sizes are not in order.
    pub fn check(&self) -> Result<(), CompareRequestError> {
        let slots = match self {
            Self::Node { .. } => 0,
            Self::Buckets { slots } => slots.len(),
            Self::Contexts { buckets, .. } => buckets.len(),
            Self::Roots(prefixes) if prefixes.len() > MAX_COMPARED => {
                return Err(CompareRequestError::TooManyContexts { contexts: prefixes.len() });
            }
            Self::Roots(prefixes) => return prefixes.iter().try_for_each(RootsRequest::check),
        };
        if slots > MAX_BUCKET_SLOTS { Err(CompareRequestError::TooManySlots { slots }) } else { Ok(()) }
    }

    /// Names what the question asks for, in messages.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Node { .. } => "digests of slots",
            Self::Buckets { .. } => "digests of buckets",
            Self::Contexts { .. } => "contexts",
            Self::Roots(_) => "roots",
        }
    }
}

impl RootsRequest {
    fn check(&self) -> Result<(), CompareRequestError> {
        let Self { context, sizes } = self;
        if !(1..=MAX_SIZES).contains(&sizes.len()) {
            return Err(CompareRequestError::WrongNumberOfSizes {
                context: context.clone(),
                sizes: sizes.len(),
            });
        }
        let possible = sizes.iter().all(|size| (1..=MAX_SEQUENCE).contains(&size.0));
        let rising = sizes.is_sorted_by(|smaller, larger| smaller < larger);
        if possible && rising { Ok(()) } else { Err(CompareRequestError::Sizes { context: context.clone() }) }
    }
}

impl CompareResponse {
    /// Makes the answer to [`CompareRequest::Node`] of a node that keeps these slots, from `held(slot)`: the slot's digest, or
    /// `None` if the node does not keep it.
    pub fn to_node(
        slots: &BTreeSet<Slot>,
        digest: NodeDigest,
        held: impl Fn(Slot) -> Option<Digest>,
    ) -> Self {
        let held = slots.iter().filter_map(|slot| Some((*slot, held(*slot)?))).collect();
        if NodeDigest::of(&held) == digest { Self::InSync } else { Self::Slots(held) }
    }

    /// Names what the answer holds, in messages.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::InSync => "\"in step\"",
            Self::Slots(_) => "digests of slots",
            Self::Buckets(_) => "digests of buckets",
            Self::Contexts(_) => "contexts",
            Self::Roots(_) => "roots",
        }
    }
}
