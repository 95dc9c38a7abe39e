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
            Err(StoreError::SlotDamaged { .. }) => None,
            known => Some(known?),
        };
        let left = SlotRecord::after_new_identity(known.as_ref());
        if left.is_formed {
            record::encode_slot(&left, &mut buffer).map_err(|error| StoreError::Io(error.to_string()))?;
            batch.put_cf(family, key, &buffer);
        } else {
            batch.delete_cf(family, key);
        }
    }
    db.write_unsynced(batch)?;
    db.sync()?;
    Ok(StorageId(storage_id))
}
