//! Which contexts one request fetches.

use std::collections::VecDeque;

use crate::{ContextId, Size};

/// Most contexts of one fetch.
pub const MAX_FETCH: usize = 512;
/// Most entries of all contexts of a fetch but the last: few enough that a broken connection does not cost much.
const MAX_FETCH_ENTRIES: u64 = 65_536;

/// Entries of a context to fetch: after one size, up to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedRange {
    /// The context.
    pub context: ContextId,
    /// The size before them.
    pub after: Size,
    /// The size with them.
    pub to: Size,
}

/// The ranges of contexts that wait for a fetch.
#[derive(Debug, Default)]
pub(super) struct FetchPlan(VecDeque<WantedRange>);

impl FetchPlan {
    pub(super) fn push(&mut self, wanted: WantedRange) {
        self.0.push_back(wanted);
    }

    /// Takes the ranges that the next request asks for; none if nothing waits.
    pub(super) fn next(&mut self, is_open: impl Fn(&ContextId) -> bool) -> Vec<WantedRange> {
        let (mut batch, mut entries) = (Vec::new(), 0);
        while batch.len() < MAX_FETCH && entries < MAX_FETCH_ENTRIES {
            let Some(wanted) = self.0.pop_front() else { break };
            if is_open(&wanted.context) {
                entries += wanted.to.0.saturating_sub(wanted.after.0);
                batch.push(wanted);
            }
        }
        batch
    }
}
