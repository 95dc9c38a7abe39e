//! Records what this replica promised and accepted for each slot. A promise is on disk before any response mentions
//! it.

use std::collections::BTreeMap;

use ledger_core::{node::ClusterId, ownership::SlotRecord, slot::Slot};
use rocksdb::{ErrorKind, WriteBatch};

use crate::{
    StoreError, directory::meta, engine::db::Db, engine::errors::io_error, engine::families, engine::record,
};

/// Reads a slot's record; a slot that nobody claimed has the empty one.
pub(crate) fn read(db: &Db, slot: Slot) -> Result<SlotRecord, StoreError> {
    // Without its record the replica does not know what it promised, so it must not answer for the slot.
    let damaged = |reason: String| StoreError::SlotDamaged { slot, reason };
    let row = db.get(families::SLOTS, &slot.number().to_be_bytes(), record::decode_slot);
    match row {
        Ok(None) => Ok(SlotRecord::default()),
        Ok(Some(Ok(record))) => Ok(record),
        Ok(Some(Err(error))) => Err(damaged(error.to_string())),
        Err(error) if error.kind() == ErrorKind::Corruption => Err(damaged(error.as_ref().to_owned())),
        Err(error) => Err(io_error(&error)),
    }
}

/// Writes records, and the directory's cluster if it is new, atomically. They are on disk when this returns, whatever
/// durability entries have.
pub(crate) fn write(
    db: &Db,
    records: &BTreeMap<Slot, SlotRecord>,
    cluster: Option<ClusterId>,
) -> Result<(), StoreError> {
    let family = db.family(families::SLOTS)?;
    let (mut batch, mut buffer) = (WriteBatch::default(), Vec::new());
    for (slot, record) in records {
        record::encode_slot(record, &mut buffer).map_err(|error| StoreError::Io(error.to_string()))?;
        batch.put_cf(family, slot.number().to_be_bytes(), &buffer);
    }
    if let Some(cluster) = cluster {
        batch.put_cf(db.family(families::META)?, meta::CLUSTER_ID_KEY, cluster.0);
    }
    db.write_unsynced(batch)?;
    db.sync()
}
