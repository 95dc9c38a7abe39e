//! The records of a lane's slots, in memory.

use std::collections::{HashMap, hash_map::Entry};

use foldhash::fast::RandomState;
use ledger_core::{ownership::SlotRecord, slot::Slot};

use crate::{StoreError, directory::slot_records, engine::db::Db, shared::Shared};

/// The records of a lane's slots that were read so far.
#[derive(Debug, Default)]
pub(super) struct SlotRecords(pub(super) HashMap<Slot, SlotRecord, RandomState>);

impl SlotRecords {
    /// Returns a slot's record, and reads it if it is not known.
    pub(super) fn of(&mut self, db: &Db, shared: &Shared, slot: Slot) -> Result<&SlotRecord, StoreError> {
        match self.0.entry(slot) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(unknown) => {
                let record = slot_records::read(db, slot).inspect_err(|error| {
                    if let StoreError::SlotDamaged { slot, .. } = error {
                        shared.lost_slot(*slot);
                    }
                })?;
                Ok(unknown.insert(record))
            }
        }
    }
}
