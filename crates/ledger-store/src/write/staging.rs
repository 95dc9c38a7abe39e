//! Staging: a history written under a number of its own, invisible until a head points to it.
//!
//! A row in `meta` says that the number is being staged, so that what a crash leaves of it is removed
//! when the ledger is opened again.

use rocksdb::WriteBatch;

use ledger_core::{ContextId, slot::Slot};

use crate::{
    StoreError,
    engine::db::{Db, io_error},
    engine::families::{self, RowLocation},
};

const PREFIX: &[u8] = b"staging/";
/// First key beyond the prefix: '0' follows '/'.
const BEYOND: &[u8] = b"staging0";

fn key(place: RowLocation) -> Vec<u8> {
    [PREFIX, &place.slot.number().to_be_bytes(), &place.number.to_be_bytes()].concat()
}

/// Fails if what was staged was staged in another database: since this one was opened nobody knows what there is of it.
pub(crate) fn check(db: &Db, generation: u64, context: &ContextId) -> Result<(), StoreError> {
    if db.generation() == generation {
        return Ok(());
    }
    let message = format!("the disk failed while the history of context {context} was written: try again");
    Err(StoreError::Io(message))
}

/// Says that a number is being staged. Comes before any row under it in the same log.
pub(crate) fn begin(db: &Db, place: RowLocation) -> Result<(), StoreError> {
    let mut batch = WriteBatch::default();
    mark(db, &mut batch, place)?;
    db.write_unsynced(batch)
}

/// Says that what is under a number will not be used any more: should the node end before it is removed, it is when
/// the ledger is opened again.
pub(crate) fn mark(db: &Db, batch: &mut WriteBatch, place: RowLocation) -> Result<(), StoreError> {
    batch.put_cf(db.family(families::META)?, key(place), []);
    Ok(())
}

/// Says that a number is no longer being staged: it was installed, or its rows are removed with this.
pub(crate) fn forget(db: &Db, batch: &mut WriteBatch, place: RowLocation) -> Result<(), StoreError> {
    batch.delete_cf(db.family(families::META)?, key(place));
    Ok(())
}

/// Removes all rows under a number, but for the head.
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

/// Removes whatever a crash left staged.
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
