//! Gives a new identity to a directory that has forgotten what it promised.

use ledger_core::{
    node::StorageId,
    ownership::SlotRecord,
    slot::{SLOTS, Slot},
};
use rocksdb::WriteBatch;

use crate::{
    StoreError, directory::meta, directory::slot_records, engine::db::Db, engine::families, engine::record,
};

/// Gives the directory a new storage id and erases the promises, acceptances and members of all slots, atomically;
/// the change is on disk when this returns. Contexts keep their entries. Slots also remain recorded as formed,
/// because that is a fact about the cluster and not about this directory.
pub(crate) fn renew(db: &Db) -> Result<StorageId, StoreError> {
    let storage_id = meta::random()?;
    let mut batch = WriteBatch::default();
    batch.put_cf(db.family(families::META)?, meta::STORAGE_ID_KEY, storage_id);
    let family = db.family(families::SLOTS)?;
    let mut buffer = Vec::new();
    for slot in (0..SLOTS).filter_map(Slot::new) {
        let key = slot.number().to_be_bytes();
        let known = match slot_records::read(db, slot) {
            // The lost record may have said that the slot was formed. Assume so: forming the slot twice would fork it
            // from the cluster.
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
