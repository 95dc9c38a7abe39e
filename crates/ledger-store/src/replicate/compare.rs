//! Answers the requests of nodes that compare their content with this one's: see [`ledger_core::compare`].
//!
//! Digests come from memory. Contexts and roots are read from one snapshot each, from the heads in the database, so
//! uncommitted entries are compared too. Whatever cannot be read or is in quarantine is reported as unreadable.

use std::collections::{BTreeMap, BTreeSet};

use ledger_core::{
    ContextId,
    compare::{self, CompareRequest, CompareResponse, ComparedStore, ContextStatus, Roots, RootsRequest},
    digest::{Bucket, ContextSummary, Digest},
    slot::Slot,
};

use crate::{
    StoreError, engine::db::Db, engine::families, engine::heads, engine::index, engine::rows::Snapshot,
    integrity::quarantine::Quarantine, limited, read::prove, replicate::digests::Digests,
};

/// Answers a request.
pub(crate) fn respond(
    db: &Db,
    digests: &Digests,
    quarantine: &Quarantine,
    ask: &CompareRequest,
) -> Result<CompareResponse, StoreError> {
    compare::respond(&mut Reads { db, digests, quarantine, rows: None }, ask)
}

/// The reads of one answer.
struct Reads<'a> {
    db: &'a Db,
    digests: &'a Digests,
    quarantine: &'a Quarantine,
    /// Taken when the first row is read.
    rows: Option<Snapshot<'a>>,
}

impl<'a> Reads<'a> {
    fn rows(&mut self) -> &Snapshot<'a> {
        let db = self.db;
        self.rows.get_or_insert_with(|| db.snapshot())
    }
}

impl ComparedStore for Reads<'_> {
    type Error = StoreError;

    fn digest(&mut self, slot: Slot) -> Digest {
        self.digests.whole(slot)
    }

    fn buckets(&mut self, slot: Slot) -> BTreeMap<Bucket, Digest> {
        self.digests.buckets(slot)
    }

    fn names(
        &mut self,
        slot: Slot,
        buckets: &BTreeSet<Bucket>,
        after: Option<&ContextId>,
        limit: usize,
    ) -> Result<Vec<ContextId>, StoreError> {
        let quarantine = self.quarantine;
        next_names(self.rows(), quarantine, slot, buckets, after, limit)
    }

    fn status(&mut self, context: &ContextId) -> Result<ContextStatus, StoreError> {
        let quarantine = self.quarantine;
        let rows = self.rows();
        // If the index is damaged, the head may be of another moment than the name.
        let head = heads::head(rows, context).and_then(|row| row.ok_or_else(|| heads::lost_head(context)));
        Ok(match readable(quarantine, context, head)? {
            None => ContextStatus::Unreadable,
            Some((_, head)) if head.size().0 == 0 => ContextStatus::Absent,
            Some((_, head)) => ContextStatus::Present(ContextSummary {
                context: context.clone(),
                size: head.size(),
                root: head.root(),
                epoch: head.epoch,
            }),
        })
    }

    fn roots(&mut self, RootsRequest { context, sizes }: &RootsRequest) -> Result<Roots, StoreError> {
        let quarantine = self.quarantine;
        let rows = self.rows();
        let read = || {
            let Some((place, head)) = heads::head(rows, context)? else { return Ok(Roots::Absent) };
            prove::roots_at(rows, context, place, &head, sizes).map(Roots::At)
        };
        Ok(readable(quarantine, context, read())?.unwrap_or(Roots::Unreadable))
    }
}

/// Returns the next names in some buckets of a slot, in order.
///
/// In each bucket it stops at the last of the best names so far. Memory is therefore bounded whatever the buckets
/// hold, and little more is read than returned, because ids spread evenly over buckets.
fn next_names(
    rows: &Snapshot<'_>,
    quarantine: &Quarantine,
    slot: Slot,
    buckets: &BTreeSet<Bucket>,
    after: Option<&ContextId>,
    limit: usize,
) -> Result<Vec<ContextId>, StoreError> {
    let mut best = Best::new(limit);
    let read = index::scan(rows, slot, buckets, after, |name| best.take(name));
    if let Err(StoreError::FileDamaged(reason)) = read {
        // The heads hold the same names, but take longer to read.
        quarantine.record_family(families::SLOTS, &reason);
        best = Best::new(limit);
        index::scan_heads(rows, slot, buckets, after, |name| best.take(name))?;
    } else {
        read?;
    }
    Ok(best.names.into_iter().collect())
}

/// The smallest names seen so far, up to a limit.
struct Best {
    names: BTreeSet<ContextId>,
    limit: usize,
}

impl Best {
    fn new(limit: usize) -> Self {
        Self { names: BTreeSet::new(), limit }
    }

    /// Takes a name if it is among the smallest. Returns whether later names of the same order can be, too.
    fn take(&mut self, name: &str) -> bool {
        if self.names.len() == self.limit {
            if self.names.last().is_some_and(|last: &ContextId| last.as_str() <= name) {
                return false;
            }
            self.names.pop_last();
        }
        match ContextId::new(name) {
            Ok(context) => _ = self.names.insert(context),
            Err(error) => limited!(error, name, %error, "the slot index has a malformed name"),
        }
        true
    }
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
