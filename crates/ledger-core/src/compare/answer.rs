//! The answering node's side: it makes its answers from a few reads of its store.
//!
//! What cannot be read is answered as [`ContextStatus::Unreadable`] and [`Roots::Unreadable`]; a read that fails for another reason
//! fails the whole answer. So nobody takes for absent what is only unknown.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ContextId,
    digest::{Bucket, Digest},
    slot::Slot,
};

use super::{
    CompareRequest, CompareRequestError, CompareResponse, ContextStatus, ListedContext, MAX_PAGE, Page,
    Roots, RootsRequest,
};

/// What [`respond`] reads from a node's store. The store answers for every slot, whether it has anything of it
/// or not. It should read all of one answer at one moment.
pub trait ComparedStore {
    /// Why a read failed.
    type Error: From<CompareRequestError>;

    /// Returns the digest of a slot.
    fn digest(&mut self, slot: Slot) -> Digest;

    /// Returns the digests of the buckets of a slot that hold something.
    fn buckets(&mut self, slot: Slot) -> BTreeMap<Bucket, Digest>;

    /// Returns the next contexts in these buckets of a slot, after one, in order: at most `limit`; fewer only if there are no
    /// more. They include contexts that the store cannot read.
    ///
    /// # Errors
    /// If the store cannot read the names.
    fn names(
        &mut self,
        slot: Slot,
        buckets: &BTreeSet<Bucket>,
        after: Option<&ContextId>,
        limit: usize,
    ) -> Result<Vec<ContextId>, Self::Error>;

    /// Returns what the store has of a context.
    ///
    /// # Errors
    /// If that is not known, for another reason than damage.
    fn status(&mut self, context: &ContextId) -> Result<ContextStatus, Self::Error>;

    /// Returns a context's roots at these sizes.
    ///
    /// # Errors
    /// If that is not known, for another reason than damage.
    fn roots(&mut self, request: &RootsRequest) -> Result<Roots, Self::Error>;
}

/// Answers a question.
///
/// # Errors
/// [`CompareRequestError`] if the question exceeds its bounds; the store's error if a read failed.
pub fn respond<S: ComparedStore>(
    store: &mut S,
    request: &CompareRequest,
) -> Result<CompareResponse, S::Error> {
    request.check()?;
    Ok(match request {
        CompareRequest::Node { slots, digest } => {
            let held: BTreeMap<_, _> = slots.iter().map(|slot| (*slot, store.digest(*slot))).collect();
            CompareResponse::to_node(slots, *digest, |slot| held.get(&slot).copied())
        }
        CompareRequest::Buckets { slots } => {
            CompareResponse::Buckets(slots.iter().map(|slot| (*slot, store.buckets(*slot))).collect())
        }
        CompareRequest::Contexts { buckets, after } => {
            CompareResponse::Contexts(page(store, buckets, after.as_ref())?)
        }
        CompareRequest::Roots(requests) => {
            let roots: Result<_, _> = requests.iter().map(|request| store.roots(request)).collect();
            CompareResponse::Roots(roots?)
        }
    })
}

/// Returns the next contexts in some buckets, by slot and then id.
fn page<S: ComparedStore>(
    store: &mut S,
    buckets: &BTreeMap<Slot, BTreeSet<Bucket>>,
    after: Option<&ContextId>,
) -> Result<Page, S::Error> {
    let mut page = Page::default();
    let from = after.map(Slot::of);
    for (slot, buckets) in buckets.iter().filter(|(slot, _)| from.is_none_or(|from| **slot >= from)) {
        let mut after = after.filter(|_| from == Some(*slot)).cloned();
        loop {
            // One more than fits shows whether there are more.
            let names = store.names(*slot, buckets, after.as_ref(), MAX_PAGE + 1)?;
            let next = names.last().filter(|_| names.len() > MAX_PAGE).cloned();
            for context in names {
                let listed = match store.status(&context)? {
                    ContextStatus::Absent => continue,
                    ContextStatus::Unreadable => ListedContext::Unreadable(context),
                    ContextStatus::Present(summary) => ListedContext::Present(summary),
                };
                if page.contexts.len() == MAX_PAGE {
                    page.more = true;
                    return Ok(page);
                }
                page.contexts.push(listed);
            }
            if next.is_none() {
                break;
            }
            after = next;
        }
    }
    Ok(page)
}
