//! Finding what differs between two nodes: anti-entropy, and the first step of every catch-up.
//!
//! One node asks, its peer answers ([`respond`]). The one who asks runs a [`DrillDown`]; it puts every question to its peer
//! and, because it needs both sides of it, to its own store. Each answer is read at one moment, but no two
//! answers need be of the same moment: appends go on meanwhile.
//!
//! | step | question | answer | what differs goes on to |
//! | --- | --- | --- | --- |
//! | 1 | slots that both keep, and one digest of all | "in sync", or the digest of each | 2, 64 slots at a time |
//! | 2 | up to 64 slots | digests of their buckets | 3 |
//! | 3 | buckets of these slots, and where to go on | a page of up to 512 contexts | 4, for this page |
//! | 4 | up to 128 contexts, and up to 17 sizes of each | the roots at these sizes | 4 again; then 3 for the next page |
//!
//! Two nodes in sync exchange one question of some 160 bytes and an answer of one. One context that differs
//! is found in four round trips, or up to six more if its histories forked ([`HistorySearch`]).
//!
//! Invariants:
//!
//! - Every step leaves less to do: a listing only moves forward, a search only narrows. Since a peer could
//!   list contexts for ever, the number of rounds is limited as well ([`MAX_ROUNDS`]).
//! - Memory is bounded by the tables above, not by what differs: a page is compared before the next is asked for.
//! - Whatever the peer says, the outcome is a [`Finding`] or a [`CompareError`]. A finding is where to look,
//!   never a fact about entries: whoever acts on it checks it against the present head, and checks what it
//!   fetches against roots.
//! - What changed while it was looked at is left alone. The next round compares it again.
//! - What a side cannot read is unreadable, never absent or shorter ([`ContextStatus`]): no verdict is made of it.

mod answer;
mod drill_down;
mod error;
mod limits;
mod message;
mod search;

#[cfg(test)]
mod tests;

pub use answer::{ComparedStore, respond};
pub use drill_down::{DrillDown, Effect, Event, Finding};
pub use error::{CompareError, CompareRequestError, Side};
pub use limits::{
    MAX_BUCKET_SLOTS, MAX_COMPARE_ROUNDS, MAX_COMPARED, MAX_PAGE, MAX_PIVOTS, MAX_ROUNDS, MAX_SIZES,
};
pub use message::{CompareRequest, CompareResponse, ContextStatus, ListedContext, Page, Roots, RootsRequest};
pub use search::{HistorySearch, Verdict};
