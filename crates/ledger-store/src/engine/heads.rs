//! Reads the heads of contexts: as the rows have them, and as far as they are committed.

use ledger_core::{ContextId, Sequence, slot::Slot};

use crate::{
    StoreError,
    engine::db::Db,
    engine::errors::read_error,
    engine::families::{self, RowLocation},
    engine::index,
    engine::record,
    engine::rows::Rows,
    error::damaged,
    write::committed_heads::Row,
};

impl Db {
    /// Returns a context's head and row location, as far as they are committed.
    pub(crate) fn head(&self, context: &ContextId) -> Result<Row, StoreError> {
        let slot = Slot::of(context);
        let not_in_step = || StoreError::NotInStep { context: context.clone() };
        let shown = self.visibility().visible_since(slot).ok_or_else(not_in_step)?;
        // Read the row first: if it holds an uncommitted commit, the committed head was pinned before the row could
        // be read.
        let row = read_head(self, context)?;
        let row = self.committed_heads().of(context, row);
        // The slot may have been hidden meanwhile, which unpins its heads: then the row may be ahead of what is
        // committed.
        if self.visibility().visible_since(slot) == Some(shown) { Ok(row) } else { Err(not_in_step()) }
    }
}

/// Returns a context's head and row location, committed or not; `None` if there is no such context.
///
/// Fails with [`StoreError::Damaged`] if the index has the context but its head is lost. A caller that took it for
/// absent would start again at sequence 1 and overwrite acknowledged entries.
pub(crate) fn head(rows: &impl Rows, context: &ContextId) -> Result<Row, StoreError> {
    match row(rows, context)? {
        // Another thread may create or remove the context between the two reads, so check both in one snapshot.
        None if index::has(rows, context)? => rows.at_once(|rows| match row(rows, context)? {
            None if index::has(rows, context)? => Err(lost_head(context)),
            row => Ok(row),
        }),
        row => Ok(row),
    }
}

/// Reads a context's head and row location; see [`head`].
pub(crate) fn read_head(db: &Db, context: &ContextId) -> Result<Row, StoreError> {
    head(db, context)
}

/// Returns the damage of a context that the index has and that has no head.
pub(crate) fn lost_head(context: &ContextId) -> StoreError {
    damaged(context, Sequence(0), "its head is missing")
}

fn row(rows: &impl Rows, context: &ContextId) -> Result<Row, StoreError> {
    let row = rows
        .get(families::HEADS, context.as_str().as_bytes(), record::decode_head)
        .map_err(|error| read_error(context, Sequence(0), &error))?;
    match row {
        None => Ok(None),
        Some(Err(error)) => Err(damaged(context, Sequence(0), &error.to_string())),
        Some(Ok((number, head))) => Ok(Some((RowLocation { slot: Slot::of(context), number }, head))),
    }
}
