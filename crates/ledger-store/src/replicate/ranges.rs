//! Reads ranges of stored entries for a node that catches up.

use bytes::Bytes;
use ledger_core::{
    ContextId, Hash, HashSuite, Head, Lineage, Sequence, Size,
    catch_up::RangeRead,
    compare::ContextStatus,
    digest::{ContextSummary, TreeHead},
};

use crate::{
    StoreError,
    engine::db::Db,
    engine::errors::read_error,
    engine::families::{self, RowLocation},
    engine::heads,
    engine::record,
    engine::rows::{Rows as _, Snapshot},
    error::damaged,
    read::prove,
    write::uncommitted_loads::UncommittedLoads,
};

/// Reads at most this many entries one by one, through the cache: contexts of few entries share a block.
const LOOKUP_LIMIT: u64 = 8;

/// Consecutive entries, with the tree heads before and after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRange {
    /// Lineage of the history that they belong to.
    pub lineage: Lineage,
    /// Its hash suite.
    pub suite: HashSuite,
    /// Wall-clock time of the context's creation, nanoseconds since the Unix epoch.
    pub created_at_ns: u64,
    /// Tree head that the entries come after.
    pub after: TreeHead,
    /// Number of entries, at least 1.
    pub count: u64,
    /// Root of the tree with the entries.
    pub root: Hash,
    /// The stored records, each after its length as four bytes, little-endian.
    pub records: Bytes,
}

/// A range, as it is sent to a node that installs the entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentRange {
    /// The entries.
    pub range: EntryRange,
    /// If a load brought them that may be uncommitted: the size up to which they are installed together.
    pub together_to: Option<Size>,
    /// If there are more up to where they were asked for: the tree head with all of them.
    pub whole: Option<TreeHead>,
}

impl EntryRange {
    /// Counts records; `None` if their framing is wrong.
    pub fn count_of(records: &[u8]) -> Option<u64> {
        let mut count = 0;
        let mut rest = records;
        while !rest.is_empty() {
            let (len, more) = rest.split_first_chunk::<4>()?;
            let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
            rest = more.get(len..)?;
            count += 1;
        }
        Some(count)
    }

    /// Iterates over the records, in order.
    pub fn each_record(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (len, _) = self.records.get(at..)?.split_first_chunk::<4>()?;
            let begin = at + 4;
            let end = begin.checked_add(usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
            (end <= self.records.len()).then(|| {
                at = end;
                self.records.slice(begin..end)
            })
        })
    }

    /// Returns the size of the history with the entries.
    pub fn end(&self) -> Size {
        Size(self.after.size.0.saturating_add(self.count))
    }
}

/// Reads entries after one size up to another, committed or not: at least one, then as many as fit into `max_bytes`
/// of records with their length prefixes. Reads them from one snapshot.
///
/// Fails with [`StoreError::OutOfRange`] if the context has fewer than `to` entries (0 if there is no such context)
/// or if `to` is not above `after`. Fails with [`StoreError::Damaged`] if a record is not what was written.
pub(crate) fn read(
    db: &Db,
    context: &ContextId,
    after: Size,
    to: Size,
    max_bytes: usize,
) -> Result<EntryRange, StoreError> {
    let rows = db.snapshot();
    match heads::head(&rows, context)? {
        Some((place, head)) => read_at(&rows, context, place, &head, after, to, max_bytes),
        None => Err(out_of_range(context, Size(0), after, to)),
    }
}

fn out_of_range(context: &ContextId, size: Size, after: Size, to: Size) -> StoreError {
    let what = format!("the range after {after} up to {to}");
    StoreError::OutOfRange { context: context.clone(), size: size.0, what }
}

/// Does what [`read`] does, at a context's row location, and also returns the head after the entries.
pub(crate) fn read_at(
    rows: &Snapshot<'_>,
    context: &ContextId,
    place: RowLocation,
    head: &Head,
    after: Size,
    to: Size,
    max_bytes: usize,
) -> Result<EntryRange, StoreError> {
    let (records, end) = read_records(rows, context, place, head.size(), after, to, max_bytes)?;
    let roots = prove::roots_at(rows, context, place, head, &[after, end])?;
    let [after_root, root] = roots.as_slice() else {
        return Err(out_of_range(context, head.size(), after, to));
    };
    Ok(EntryRange {
        lineage: head.lineage,
        suite: head.suite,
        created_at_ns: head.created_at_ns,
        after: TreeHead { size: after, root: *after_root },
        count: end.0 - after.0,
        root: *root,
        records: records.into(),
    })
}

/// Reads the records of entries, and nothing else. Returns them and the size with the last one.
pub(crate) fn read_records(
    rows: &Snapshot<'_>,
    context: &ContextId,
    place: RowLocation,
    size: Size,
    after: Size,
    to: Size,
    max_bytes: usize,
) -> Result<(Vec<u8>, Size), StoreError> {
    if after >= to || to > size {
        return Err(out_of_range(context, size, after, to));
    }
    let (mut records, mut end) = (Vec::new(), after);
    let mut failure = None;
    let visit = |row: &[u8], value: &[u8]| {
        let sequence = next(end);
        if families::sequence_of(row) != Some(sequence) {
            return false;
        }
        let is_first = end == after;
        if !is_first && records.len() + 4 + value.len() > max_bytes {
            return false;
        }
        // A peer would refuse a damaged record and could not tell why.
        if let Err(error) = record::peek_entry(value) {
            failure = Some(damaged(context, sequence, &error.to_string()));
            return false;
        }
        if is_first {
            // Entries of one context have similar sizes.
            let estimate =
                (4 + value.len()).saturating_mul(usize::try_from(to.0 - after.0).unwrap_or(usize::MAX));
            records.reserve(estimate.min(max_bytes));
        }
        push_record(&mut records, value);
        end = Size(sequence.0);
        true
    };
    let read = if to.0 - after.0 <= LOOKUP_LIMIT {
        each(rows, place, after, to, visit)
    } else {
        let (first, beyond) = (place.entry(next(after)), place.entry(Sequence(to.0 + 1)));
        rows.read_through(families::ENTRIES, &first, &beyond, visit)
    };
    read.map_err(|error| read_error(context, next(end), &error))?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    if end == after {
        return Err(damaged(context, next(end), "the entry is missing"));
    }
    Ok((records, end))
}

/// Looks up entries one by one, until `visit` returns false or one is missing.
fn each(
    rows: &Snapshot<'_>,
    place: RowLocation,
    after: Size,
    to: Size,
    mut visit: impl FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), rocksdb::Error> {
    for sequence in after.0..to.0 {
        let row = place.entry(next(Size(sequence)));
        if rows.get(families::ENTRIES, &row, |value| visit(&row, value))? != Some(true) {
            break;
        }
    }
    Ok(())
}

/// Does what [`read`] does, for another node that installs the entries: see [`RangeRead`]. A range of entries that a load brought
/// comes with the size up to which they belong together, and contains nothing from before the load.
pub(crate) fn read_to_send(
    db: &Db,
    loaded: &UncommittedLoads,
    context: &ContextId,
    after: Size,
    to: Size,
    max_bytes: usize,
) -> Result<SentRange, StoreError> {
    let rows = db.snapshot();
    let Some((place, head)) = heads::head(&rows, context)? else {
        return Err(out_of_range(context, Size(0), after, to));
    };
    let status = ContextStatus::Present(ContextSummary {
        context: context.clone(),
        size: head.size(),
        root: head.root(),
        epoch: head.epoch,
    });
    let load = loaded.of(db, context, place, head.size());
    let read = RangeRead::of(&status, load, after, to);
    let RangeRead { after, to, together_to } =
        read.map_err(|_| out_of_range(context, head.size(), after, to))?;
    let range = read_at(&rows, context, place, &head, after, to, max_bytes)?;
    let whole = if range.end() >= to {
        None
    } else if to == head.size() {
        Some(head.tree_head())
    } else {
        let roots = prove::roots_at(&rows, context, place, &head, &[to])?;
        roots.first().map(|root| TreeHead { size: to, root: *root })
    };
    Ok(SentRange { range, together_to, whole })
}

fn next(end: Size) -> Sequence {
    Sequence(end.0 + 1)
}

/// Adds a record to those of a range.
pub(crate) fn push_record(records: &mut Vec<u8>, record: &[u8]) {
    let len = u32::try_from(record.len()).unwrap_or(u32::MAX);
    records.extend_from_slice(&len.to_le_bytes());
    records.extend_from_slice(record);
}

#[cfg(test)]
mod tests;
