//! Answers what nodes that compare ask each other: see [`ledger_core::compare`].
//!
//! Digests are answered from memory. Contexts and roots are read at one moment each, from heads as they are: what
//! is not stable yet is compared as well.

use std::collections::BTreeSet;

use ledger_core::{
    ContextId, Hash,
    compare::{Answer, Ask, MAX_PAGE, Page, Prefixes},
    digest::{Bucket, ContextSummary},
    slot::Slot,
};

use crate::{
    StoreError,
    db::Db,
    digests::Digests,
    index, prove,
    rows::{self, Rows, Snapshot},
};

/// Answers a question about the slots that this node `keeps`.
pub(crate) fn answer(
    db: &Db,
    digests: &Digests,
    ask: &Ask,
    keeps: impl Fn(Slot) -> bool,
) -> Result<Answer, StoreError> {
    ask.check()?;
    match ask {
        Ask::Node { slots, digest } => {
            let held = |slot| keeps(slot).then(|| digests.whole(slot));
            Ok(Answer::to_node(slots, *digest, held))
        }
        Ask::Buckets { slots } => {
            let kept = slots.iter().filter(|slot| keeps(**slot));
            Ok(Answer::Buckets(kept.map(|slot| (*slot, digests.buckets(*slot))).collect()))
        }
        Ask::Contexts { buckets, after } => {
            let kept = buckets.iter().filter(|(slot, _)| keeps(**slot));
            contexts(&db.snapshot(), kept, after.as_ref()).map(Answer::Contexts)
        }
        Ask::Roots(asked) => {
            let rows = db.snapshot();
            let kept = |prefixes: &Prefixes| keeps(Slot::of(&prefixes.context));
            let roots =
                asked.iter().map(|asked| if kept(asked) { roots(&rows, asked) } else { Ok(Vec::new()) });
            roots.collect::<Result<_, _>>().map(Answer::Roots)
        }
    }
}

/// A page of the contexts in buckets, by slot and then id.
fn contexts<'a>(
    rows: &Snapshot<'_>,
    buckets: impl Iterator<Item = (&'a Slot, &'a BTreeSet<Bucket>)>,
    after: Option<&ContextId>,
) -> Result<Page, StoreError> {
    let mut page = Page::default();
    let from = after.map(Slot::of);
    for (slot, buckets) in buckets.filter(|(slot, _)| from.is_none_or(|from| **slot >= from)) {
        let mut after = after.filter(|_| from == Some(*slot)).cloned();
        loop {
            let names = next_names(rows, *slot, buckets, after.as_ref())?;
            let Some(last) = names.last().cloned() else { break };
            for context in names {
                let Some(summary) = summary(rows, context)? else { continue };
                if page.contexts.len() == MAX_PAGE {
                    page.more = true;
                    return Ok(page);
                }
                page.contexts.push(summary);
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
    slot: Slot,
    buckets: &BTreeSet<Bucket>,
    after: Option<&ContextId>,
) -> Result<Vec<ContextId>, StoreError> {
    const MOST: usize = MAX_PAGE + 1;
    let mut best = BTreeSet::new();
    index::scan(rows, slot, buckets, after, |name| {
        if best.len() == MOST {
            if best.last().is_some_and(|last: &ContextId| last.as_str() <= name) {
                return false;
            }
            best.pop_last();
        }
        match ContextId::new(name) {
            Ok(context) => _ = best.insert(context),
            Err(error) => tracing::error!(name, %error, "the slot index has a malformed name"),
        }
        true
    })?;
    Ok(best.into_iter().collect())
}

/// A context as it is compared; `None` if there is none, or nothing in it.
fn summary(rows: &impl Rows, context: ContextId) -> Result<Option<ContextSummary>, StoreError> {
    let row = known(&context, rows::head(rows, &context))?.flatten();
    let found = row.filter(|(_, head)| head.size().0 > 0);
    Ok(found.map(|(_, head)| ContextSummary {
        context,
        size: head.size(),
        root: head.root(),
        epoch: head.epoch,
    }))
}

/// The roots of a context at the sizes asked for; fewer if it is shorter, or what they are made of is damaged.
fn roots(rows: &impl Rows, asked: &Prefixes) -> Result<Vec<Hash>, StoreError> {
    let Prefixes { context, sizes } = asked;
    let Some(Some((place, head))) = known(context, rows::head(rows, context))? else {
        return Ok(Vec::new());
    };
    let roots = prove::roots_at(rows, context, place, &head, sizes);
    Ok(known(context, roots)?.unwrap_or_default())
}

/// `None` of a context that is damaged: it must not keep others from being compared. The scrub reports it, and
/// whoever reads it.
fn known<T>(context: &ContextId, read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::warn!(%context, %error, "a damaged context is left out of a comparison");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
