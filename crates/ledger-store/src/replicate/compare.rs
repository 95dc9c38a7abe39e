//! Answers the requests of nodes that compare their content with this one's: see [`ledger_core::compare`].
//!
//! Digests come from memory. Contexts and roots are read from one snapshot each, from the heads in the database, so
//! uncommitted entries are compared too. Whatever cannot be read or is in quarantine is reported as unreadable.

use std::collections::BTreeSet;

use ledger_core::{
    ContextId,
    compare::{CompareRequest, CompareResponse, ListedContext, MAX_PAGE, Page, Roots, RootsRequest},
    digest::{Bucket, ContextSummary},
    slot::Slot,
};

use crate::{
    StoreError,
    engine::db::Db,
    engine::families,
    engine::index,
    engine::rows::{self, Rows, Snapshot},
    integrity::quarantine::Quarantine,
    limited,
    read::prove,
    replicate::digests::Digests,
};

/// Answers a request about the slots that this node `keeps`.
pub(crate) fn respond(
    db: &Db,
    digests: &Digests,
    quarantine: &Quarantine,
    ask: &CompareRequest,
    keeps: impl Fn(Slot) -> bool,
) -> Result<CompareResponse, StoreError> {
    ask.check()?;
    match ask {
        CompareRequest::Node { slots, digest } => {
            let digest_of = |slot| keeps(slot).then(|| digests.whole(slot));
            Ok(CompareResponse::to_node(slots, *digest, digest_of))
        }
        CompareRequest::Buckets { slots } => {
            let kept = slots.iter().filter(|slot| keeps(**slot));
            Ok(CompareResponse::Buckets(kept.map(|slot| (*slot, digests.buckets(*slot))).collect()))
        }
        CompareRequest::Contexts { buckets, after } => {
            let kept = buckets.iter().filter(|(slot, _)| keeps(**slot));
            contexts(&db.snapshot(), quarantine, kept, after.as_ref()).map(CompareResponse::Contexts)
        }
        CompareRequest::Roots(request) => {
            let rows = db.snapshot();
            let of = |request: &RootsRequest| {
                if keeps(Slot::of(&request.context)) {
                    roots(&rows, quarantine, request)
                } else {
                    Ok(Roots::Absent)
                }
            };
            request.iter().map(of).collect::<Result<_, _>>().map(CompareResponse::Roots)
        }
    }
}

/// Returns a page of the contexts in some buckets, ordered by slot and then id.
fn contexts<'a>(
    rows: &Snapshot<'_>,
    quarantine: &Quarantine,
    buckets: impl Iterator<Item = (&'a Slot, &'a BTreeSet<Bucket>)>,
    after: Option<&ContextId>,
) -> Result<Page, StoreError> {
    let mut page = Page::default();
    let from = after.map(Slot::of);
    for (slot, buckets) in buckets.filter(|(slot, _)| from.is_none_or(|from| **slot >= from)) {
        let mut after = after.filter(|_| from == Some(*slot)).cloned();
        loop {
            let names = next_names(rows, quarantine, *slot, buckets, after.as_ref())?;
            let Some(last) = names.last().cloned() else { break };
            for context in names {
                let Some(listed) = listed(rows, quarantine, context)? else { continue };
                if page.contexts.len() == MAX_PAGE {
                    page.more = true;
                    return Ok(page);
                }
                page.contexts.push(listed);
            }
            after = Some(last);
        }
    }
    Ok(page)
}

/// Returns the next names in some buckets of a slot, in order: at most one more than fit into a page.
///
/// In each bucket it stops at the last of the best names so far. Memory is therefore bounded whatever the buckets
/// hold, and little more is read than returned, because ids spread evenly over buckets.
fn next_names(
    rows: &Snapshot<'_>,
    quarantine: &Quarantine,
    slot: Slot,
    buckets: &BTreeSet<Bucket>,
    after: Option<&ContextId>,
) -> Result<Vec<ContextId>, StoreError> {
    let mut best = Best::default();
    let read = index::scan(rows, slot, buckets, after, |name| best.take(name));
    if let Err(StoreError::FileDamaged(reason)) = read {
        // The heads hold the same names, but take longer to read.
        quarantine.record_family(families::SLOTS, &reason);
        best = Best::default();
        index::scan_heads(rows, slot, buckets, after, |name| best.take(name))?;
    } else {
        read?;
    }
    Ok(best.0.into_iter().collect())
}

/// The smallest names seen so far.
#[derive(Default)]
struct Best(BTreeSet<ContextId>);

impl Best {
    /// Takes a name if it is among the smallest. Returns whether later names of the same order can be, too.
    fn take(&mut self, name: &str) -> bool {
        const MOST: usize = MAX_PAGE + 1;
        if self.0.len() == MOST {
            if self.0.last().is_some_and(|last: &ContextId| last.as_str() <= name) {
                return false;
            }
            self.0.pop_last();
        }
        match ContextId::new(name) {
            Ok(context) => _ = self.0.insert(context),
            Err(error) => limited!(error, name, %error, "the slot index has a malformed name"),
        }
        true
    }
}

/// Describes a context of the index for the comparison; `None` if it is empty.
fn listed(
    rows: &impl Rows,
    quarantine: &Quarantine,
    context: ContextId,
) -> Result<Option<ListedContext>, StoreError> {
    // If the index is damaged, the head may be of another moment than the name.
    let head = rows::head(rows, &context).and_then(|row| row.ok_or_else(|| rows::lost_head(&context)));
    Ok(match readable(quarantine, &context, head)? {
        None => Some(ListedContext::Unreadable(context)),
        Some((_, head)) if head.size().0 == 0 => None,
        Some((_, head)) => Some(ListedContext::Present(ContextSummary {
            context,
            size: head.size(),
            root: head.root(),
            epoch: head.epoch,
        })),
    })
}

/// Returns what is known of a context's roots at the requested sizes.
fn roots(rows: &impl Rows, quarantine: &Quarantine, request: &RootsRequest) -> Result<Roots, StoreError> {
    let RootsRequest { context, sizes } = request;
    let read = || {
        let Some((place, head)) = rows::head(rows, context)? else { return Ok(Roots::Absent) };
        prove::roots_at(rows, context, place, &head, sizes).map(Roots::At)
    };
    Ok(readable(quarantine, context, read())?.unwrap_or(Roots::Unreadable))
}

/// Returns `None` if the context cannot be read or is in quarantine. It goes into quarantine then, and the comparison
/// of the others continues.
fn readable<T>(
    quarantine: &Quarantine,
    context: &ContextId,
    read: Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    match read {
        Ok(read) => Ok(quarantine.check(context).is_ok().then_some(read)),
        Err(error @ StoreError::Damaged { .. }) => {
            quarantine.record(&error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
