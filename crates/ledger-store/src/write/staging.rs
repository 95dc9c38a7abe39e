//! Stages a history: writes it under a new number, invisible until a head points to it.
//!
//! A row in `meta` records that the number is being staged, so that opening the ledger removes what a crash left of
//! it.

use rocksdb::WriteBatch;

use ledger_core::{ContextId, slot::Slot};

use crate::{
    StoreError,
    engine::db::Db,
    engine::errors::io_error,
    engine::families::{self, RowLocation},
};

const PREFIX: &[u8] = b"staging/";
/// The first key beyond the prefix: '0' follows '/'.
const BEYOND: &[u8] = b"staging0";

fn key(place: RowLocation) -> Vec<u8> {
    [PREFIX, &place.slot.number().to_be_bytes(), &place.number.to_be_bytes()].concat()
}

/// Fails if the history was staged in an earlier generation of the database: nobody knows what of it survived the
/// reopening.
pub(crate) fn check(db: &Db, generation: u64, context: &ContextId) -> Result<(), StoreError> {
    if db.generation() == generation {
        return Ok(());
    }
    let message = format!("the disk failed while the history of context {context} was written: try again");
    Err(StoreError::Io(message))
}

/// Records that a number is being staged. Must precede every row of the number in the log.
pub(crate) fn begin(db: &Db, place: RowLocation) -> Result<(), StoreError> {
    let mut batch = WriteBatch::default();
    mark(db, &mut batch, place)?;
    db.write_unsynced(batch)
}

/// Records that the rows of a number are obsolete. If the node ends before it removes them, opening the ledger does.
pub(crate) fn mark(db: &Db, batch: &mut WriteBatch, place: RowLocation) -> Result<(), StoreError> {
    batch.put_cf(db.family(families::META)?, key(place), []);
    Ok(())
}

/// Removes the record of a number that was installed, or whose rows the same batch removes.
pub(crate) fn forget(db: &Db, batch: &mut WriteBatch, place: RowLocation) -> Result<(), StoreError> {
    batch.delete_cf(db.family(families::META)?, key(place));
    Ok(())
}

/// Removes all rows of a number except for the head.
pub(crate) fn remove_rows(db: &Db, batch: &mut WriteBatch, place: RowLocation) -> Result<(), StoreError> {
    let (first, beyond) = place.range();
    batch.delete_range_cf(db.family(families::ENTRIES)?, first, beyond);
    batch.delete_range_cf(db.family(families::TILES)?, first, beyond);
    let (first, beyond) = place.id_range();
    batch.delete_range_cf(db.family(families::IDS)?, first, beyond);
    Ok(())
}

/// Removes what was staged under a number.
pub(crate) fn abandon(db: &Db, place: RowLocation) -> Result<(), StoreError> {
    let mut batch = WriteBatch::default();
    remove_rows(db, &mut batch, place)?;
    forget(db, &mut batch, place)?;
    db.write_unsynced(batch)
}

/// Removes everything that a crash left staged.
pub(crate) fn clean_up(db: &Db) -> Result<(), StoreError> {
    let mut places = Vec::new();
    db.scan(families::META, PREFIX, BEYOND, true, |row, _| {
        let place = row.strip_prefix(PREFIX).and_then(|rest| {
            let (slot, number) = rest.split_first_chunk::<2>()?;
            let slot = Slot::new(u16::from_be_bytes(*slot))?;
            Some(RowLocation { slot, number: u64::from_be_bytes(number.try_into().ok()?) })
        });
        places.extend(place);
        true
    })
    .map_err(|error| io_error(&error))?;
    for place in places {
        tracing::info!(number = place.number, "removing what an interrupted load left");
        abandon(db, place)?;
    }
    Ok(())
}
