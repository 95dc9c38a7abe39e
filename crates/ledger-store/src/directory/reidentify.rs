//! Another identity for a directory that has forgotten what it promised.

use ledger_core::{
    node::StorageId,
    ownership::SlotRecord,
    slot::{SLOTS, Slot},
};
use rocksdb::WriteBatch;

use crate::{
    StoreError, directory::meta, directory::slot_records, engine::db::Db, engine::families, engine::record,
};

/// Gives the directory a new storage id, and forgets what slots were promised and accepted, and who their members
/// are: all or nothing, on disk when this returns. What contexts hold stays. That a slot was formed stays, too: it is
/// true of the cluster, and not of this directory.
pub(crate) fn renew(db: &Db) -> Result<StorageId, StoreError> {
    let storage_id = meta::random()?;
    let mut batch = WriteBatch::default();
    batch.put_cf(db.family(families::META)?, meta::STORAGE_ID_KEY, storage_id);
    let family = db.family(families::SLOTS)?;
    let mut buffer = Vec::new();
    for slot in (0..SLOTS).filter_map(Slot::new) {
        let key = slot.number().to_be_bytes();
        let known = match slot_records::read(db, slot) {
            // It may have said so. A slot that was formed must not be formed anew, beside what the cluster has of it.
            Err(StoreError::SlotDamaged { .. }) => SlotRecord { is_formed: true, ..SlotRecord::default() },
            known => known?,
        };
        let is_confirmed = known.placement.is_some_and(|placement| placement.is_confirmed);
        if known.is_formed || is_confirmed {
            let formed = SlotRecord { is_formed: true, ..SlotRecord::default() };
            record::encode_slot(&formed, &mut buffer).map_err(|error| StoreError::Io(error.to_string()))?;
            batch.put_cf(family, key, &buffer);
        } else {
            batch.delete_cf(family, key);
        }
    }
    db.write_unsynced(batch)?;
    db.sync()?;
    Ok(StorageId(storage_id))
}
