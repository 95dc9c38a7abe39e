//! What can be wrong with a question or an answer.

use std::fmt;

use crate::{ContextId, limits::MAX_SEQUENCE, slot::Slot};

use super::limits::{MAX_BUCKET_SLOTS, MAX_COMPARED, MAX_PAGE, MAX_ROUNDS, MAX_SIZES};

/// Who gave an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The node that compares.
    Local,
    /// Its peer.
    Remote,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "this node's own store",
            Self::Remote => "the peer",
        })
    }
}

/// Why a question is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompareRequestError {
    /// Too many slots at once.
    #[error("the question is about {slots} slots: ask about at most {MAX_BUCKET_SLOTS} at a time")]
    TooManySlots {
        /// How many were named.
        slots: usize,
    },
    /// Too many contexts at once.
    #[error("the question is about {contexts} contexts: ask about at most {MAX_COMPARED} at a time")]
    TooManyContexts {
        /// How many were named.
        contexts: usize,
    },
    /// Too many sizes of a context.
    #[error("the question is about {sizes} sizes of context {context}: ask about 1 to {MAX_SIZES}")]
    WrongNumberOfSizes {
        /// The context.
        context: ContextId,
        /// How many were named.
        sizes: usize,
    },
    /// Sizes that are not in order, or that no context has.
    #[error(
        "the sizes asked for of context {context} are not in order, or not all of 1 to {MAX_SEQUENCE}: \
         name each once, the smallest first"
    )]
    Sizes {
        /// The context.
        context: ContextId,
    },
}

/// Why a comparison was given up. What it found until then holds; the next one starts afresh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// An answer to another question.
    #[error("{side} answered with {answer} when asked for {asked}: the comparison is given up")]
    WrongResponse {
        /// Who.
        side: Side,
        /// What was asked for.
        asked: &'static str,
        /// What came.
        answer: &'static str,
    },
    /// An answer when there is no question, or a second one to the same.
    #[error("{side} answered without being asked: the comparison is given up")]
    UnexpectedResponse {
        /// Who.
        side: Side,
    },
    /// A slot that was not asked about.
    #[error("{side} answered about slot {}, which was not asked about: the comparison is given up", .slot.number())]
    WrongSlot {
        /// Who.
        side: Side,
        /// The slot.
        slot: Slot,
    },
    /// More contexts than fit a page.
    #[error("{side} listed {contexts} contexts in a page of at most {MAX_PAGE}: the comparison is given up")]
    LongPage {
        /// Who.
        side: Side,
        /// How many were listed.
        contexts: usize,
    },
    /// An empty page that is not the last: the listing would not move on.
    #[error("{side} listed no context and said that there are more: the comparison is given up")]
    EmptyPage {
        /// Who.
        side: Side,
    },
    /// A context that does not belong where it was listed.
    #[error("{side} listed context {context} where it does not belong: {reason}; the comparison is given up")]
    Misplaced {
        /// Who.
        side: Side,
        /// The context.
        context: ContextId,
        /// What does not fit.
        reason: &'static str,
    },
    /// Roots of fewer or more contexts than were asked about.
    #[error("{side} answered about {actual} contexts when asked about {asked}: the comparison is given up")]
    WrongNumberOfContexts {
        /// Who.
        side: Side,
        /// How many were asked about.
        asked: usize,
        /// How many came.
        actual: usize,
    },
    /// More roots of a context than were asked for.
    #[error("{side} gave {actual} roots of a context when asked for {asked}: the comparison is given up")]
    TooManyRoots {
        /// Who.
        side: Side,
        /// How many were asked for.
        asked: usize,
        /// How many came.
        actual: usize,
    },
    /// The limit on rounds is reached.
    #[error("the comparison is not done after {MAX_ROUNDS} rounds: repair what it found, then compare again")]
    TooManyRounds,
}
