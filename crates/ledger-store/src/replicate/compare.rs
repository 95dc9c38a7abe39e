//! Answers what nodes that compare ask each other: see [`ledger_core::compare`].
//!
//! Digests are answered from memory. Contexts and roots are read at one moment each, from heads as they are: what
//! is not stable yet is compared as well. What cannot be read, or is in quarantine, is said to be unreadable.

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

/// Answers a question about the slots that this node `keeps`.
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
            let held = |slot| keeps(slot).then(|| digests.whole(slot));
            Ok(CompareResponse::to_node(slots, *digest, held))
        }
        CompareRequest::Buckets { slots } => {
            let kept = slots.iter().filter(|slot| keeps(**slot));
            Ok(CompareResponse::Buckets(kept.map(|slot| (*slot, digests.buckets(*slot))).collect()))
        }
        CompareRequest::Contexts { buckets, after } => {
            let kept = buckets.iter().filter(|(slot, _)| keeps(**slot));
            contexts(&db.snapshot(), quarantine, kept, after.as_ref()).map(CompareResponse::Contexts)
        }
        CompareRequest::Roots(asked) => {
            let rows = db.snapshot();
            let of = |asked: &RootsRequest| {
                if keeps(Slot::of(&asked.context)) {
                    roots(&rows, quarantine, asked)
                } else {
                    Ok(Roots::Absent)
                }
            };
            asked.iter().map(of).collect::<Result<_, _>>().map(CompareResponse::Roots)
        }
    }
}

/// A page of the contexts in buckets, by slot and then id.
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

/// The next names in some buckets of a slot, in order: at most one more than fit a page.
///
/// Of each bucket only those are read that come before the last of the best so far, so that memory is bounded
/// whatever the buckets hold, and hardly more is read than is returned: ids are spread evenly over buckets.
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
        // The heads have the same names, and take longer to read.
        quarantine.record_family(families::SLOTS, &reason);
        best = Best::default();
        index::scan_heads(rows, slot, buckets, after, |name| best.take(name))?;
    } else {
        read?;
    }
    Ok(best.0.into_iter().collect())
}

/// The first names of those taken.
#[derive(Default)]
struct Best(BTreeSet<ContextId>);

impl Best {
    /// Takes a name if it is one of the first; whether later ones in order may be, too.
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

/// A context of the index as it is compared; `None` if there is nothing in it.
fn listed(
    rows: &impl Rows,
    quarantine: &Quarantine,
    context: ContextId,
) -> Result<Option<ListedContext>, StoreError> {
    // At another moment than the index, if that is damaged.
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

/// What is known of the roots of a context at the sizes asked for.
fn roots(rows: &impl Rows, quarantine: &Quarantine, asked: &RootsRequest) -> Result<Roots, StoreError> {
    let RootsRequest { context, sizes } = asked;
    let read = || {
        let Some((place, head)) = rows::head(rows, context)? else { return Ok(Roots::Absent) };
        prove::roots_at(rows, context, place, &head, sizes).map(Roots::At)
    };
    Ok(readable(quarantine, context, read())?.unwrap_or(Roots::Unreadable))
}

/// `None` of a context that cannot be read, now or as it was found before: it goes into quarantine, and does not keep
/// others from being compared.
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
