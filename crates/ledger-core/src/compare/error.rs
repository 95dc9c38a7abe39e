//! What can be wrong with a question or an answer.

use std::fmt;

use crate::{ContextId, limits::MAX_SEQUENCE, slot::Slot};

use super::limits::{MAX_BUCKET_SLOTS, MAX_COMPARED, MAX_PAGE, MAX_ROUNDS, MAX_SIZES};

/// Which of the two nodes of a comparison gave an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The node that compares.
    Local,
    /// The peer that it compares with.
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

/// Why a node does not answer a question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompareRequestError {
    /// Too many slots at once.
    #[error("the question is about {slots} slots: ask about at most {MAX_BUCKET_SLOTS} at a time")]
    TooManySlots {
        /// The number of them in the question.
        slots: usize,
    },
    /// Too many contexts at once.
    #[error("the question is about {contexts} contexts: ask about at most {MAX_COMPARED} at a time")]
    TooManyContexts {
        /// The number of them in the question.
        contexts: usize,
    },
    /// Too many sizes of a context.
    #[error("the question is about {sizes} sizes of context {context}: ask about 1 to {MAX_SIZES}")]
    WrongNumberOfSizes {
        /// The context.
        context: ContextId,
        /// The number of them in the question.
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

/// Why this node gives up a comparison. What the comparison found until then holds; the next one starts afresh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// An answer to another question.
    #[error("{side} answered with {answer} when asked for {asked}: the comparison is given up")]
    WrongResponse {
        /// Which side answered.
        side: Side,
        /// What the question asks for.
        asked: &'static str,
        /// What the answer holds instead.
        answer: &'static str,
    },
    /// An answer when there is no question, or a second one to the same.
    #[error("{side} answered without being asked: the comparison is given up")]
    UnexpectedResponse {
        /// Which side answered.
        side: Side,
    },
    /// A slot that was not asked about.
    #[error("{side} answered about slot {}, which was not asked about: the comparison is given up", .slot.number())]
    WrongSlot {
        /// Which side answered.
        side: Side,
        /// The slot.
        slot: Slot,
    },
    /// More contexts than fit a page.
    #[error("{side} listed {contexts} contexts in a page of at most {MAX_PAGE}: the comparison is given up")]
    LongPage {
        /// Which side answered.
        side: Side,
        /// The number of contexts in the page.
        contexts: usize,
    },
    /// An empty page that is not the last: the listing would not move on.
    #[error("{side} listed no context and said that there are more: the comparison is given up")]
    EmptyPage {
        /// Which side answered.
        side: Side,
    },
    /// A context that does not belong where the side listed it.
    #[error("{side} listed context {context} where it does not belong: {reason}; the comparison is given up")]
    Misplaced {
        /// Which side answered.
        side: Side,
        /// The context.
        context: ContextId,
        /// Why it does not belong there.
        reason: &'static str,
    },
    /// Roots of fewer or more contexts than were asked about.
    #[error("{side} answered about {actual} contexts when asked about {asked}: the comparison is given up")]
    WrongNumberOfContexts {
        /// Which side answered.
        side: Side,
        /// The number of contexts in the question.
        asked: usize,
        /// How many came.
        actual: usize,
    },
    /// More roots of a context than were asked for.
    #[error("{side} gave {actual} roots of a context when asked for {asked}: the comparison is given up")]
    TooManyRoots {
        /// Which side answered.
        side: Side,
        /// The number of roots that the question asks for.
        asked: usize,
        /// How many came.
        actual: usize,
    },
    /// The limit on rounds is reached.
    #[error("the comparison is not done after {MAX_ROUNDS} rounds: repair what it found, then compare again")]
    TooManyRounds,
}
