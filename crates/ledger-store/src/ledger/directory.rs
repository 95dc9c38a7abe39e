//! The data directory: its identity, and what it must not forget.

use std::{collections::BTreeMap, path::Path};

use ledger_core::{
    node::{ClusterId, Incarnation, StorageId},
    ownership::SlotRecord,
    slot::{SLOTS, Slot},
};
use tokio::sync::watch;

use super::Ledger;
use crate::{
    StoreError, directory::attributes, directory::incarnation, directory::reidentify, directory::slot_records,
};

impl Ledger {
    /// Returns the data directory's path.
    pub fn directory(&self) -> &Path {
        self.store.database.directory()
    }

    /// Returns the seed of the node's Ed25519 key, made when the directory was formatted and kept in it.
    pub fn signing_seed(&self) -> [u8; 32] {
        self.store.shared.meta.signing_seed
    }

    /// Returns the directory's own id, made when it was formatted, as 32 hex digits.
    pub fn storage_id(&self) -> String {
        hex::encode(self.store.shared.meta.storage_id)
    }

    /// Returns the data directory's identity.
    pub fn storage(&self) -> StorageId {
        StorageId(self.store.shared.meta.storage_id)
    }

    /// Watches which cluster the directory belongs to; `None` until it belongs to one. The value changes once.
    pub fn cluster_id(&self) -> watch::Receiver<Option<ClusterId>> {
        self.store.shared.cluster.subscribe()
    }

    /// Returns how far the directory is durable: a number that grows with every write as long as the directory lives.
    /// A directory that opens at a lower number than this ever returned is an older copy.
    pub fn durable_index(&self) -> u64 {
        self.store.database.durable_index().durable()
    }

    /// Returns [`Ledger::durable_index`] as it was when the current start began (see [`Ledger::next_incarnation`]).
    pub fn opening_index(&self) -> u64 {
        self.store.database.durable_index().opening()
    }

    /// Counts a start of the node and returns its number, which is higher at every call. The number is on disk when
    /// this returns. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if the number cannot be written to disk.
    pub fn next_incarnation(&self) -> Result<Incarnation, StoreError> {
        self.store.database.durable_index().start();
        incarnation::next(&*self.store.database.get()?)
            .inspect_err(|error| self.store.shared.commit_failed(error))
    }

    /// Records that another node knows a later start of this node, so that the next start here is later still. The
    /// record is on disk when this returns. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if the record cannot be written.
    pub fn record_incarnation(&self, heard: Incarnation) -> Result<(), StoreError> {
        incarnation::record(&*self.store.database.get()?, heard)
            .inspect_err(|error| self.store.shared.commit_failed(error))
    }

    /// Returns what the node recorded about itself under a name; `None`: nothing. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read, or is being reopened.
    pub fn node_attribute(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        attributes::read(&*self.store.database.get()?, name)
    }

    /// Replaces or removes what the node recorded about itself under a name. The change is on disk when this
    /// returns. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be written to disk: the earlier record stays.
    pub fn set_node_attribute(&self, name: &str, note: Option<&[u8]>) -> Result<(), StoreError> {
        attributes::write(&*self.store.database.get()?, name, note)
            .inspect_err(|error| self.store.shared.commit_failed(error))
    }

    /// Closes the ledger and re-identifies its directory: it gets a new storage id and forgets what it promised and
    /// accepted; contexts keep their entries. Opened again, it joins as a new member. Returns the new id once it is
    /// on disk. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if the directory cannot be written.
    pub fn reidentify(&self) -> Result<StorageId, StoreError> {
        let store = &self.store;
        if !store.stop() {
            return Err(StoreError::Closed);
        }
        let renewed = store.database.get().and_then(|db| reidentify::renew(&db));
        if let Err(error) = store.close_database() {
            tracing::warn!(%error, "the ledger could not be closed cleanly: the log is replayed at the next start");
        }
        renewed
    }

    /// Returns what this replica promised and accepted for a slot.
    ///
    /// # Errors
    /// [`StoreError::SlotDamaged`] if the record is damaged; another [`StoreError`] if the database cannot be read.
    pub fn slot_record(&self, slot: Slot) -> Result<SlotRecord, StoreError> {
        slot_records::read(&*self.store.database.get()?, slot)
    }

    /// Returns the records of all slots that were ever claimed here.
    ///
    /// # Errors
    /// [`StoreError`] if a record cannot be read.
    pub fn slot_records(&self) -> Result<Vec<(Slot, SlotRecord)>, StoreError> {
        let db = self.store.database.get()?;
        let mut records = Vec::new();
        for slot in (0..SLOTS).filter_map(Slot::new) {
            let record = slot_records::read(&db, slot)?;
            if record != SlotRecord::default() {
                records.push((slot, record));
            }
        }
        Ok(records)
    }

    /// Writes what this replica promised and accepted for slots, all or none. The records are on disk when this
    /// returns.
    ///
    /// # Errors
    /// [`StoreError`] if they cannot be written to disk: none is.
    pub fn keep_slot_records(&self, records: &BTreeMap<Slot, SlotRecord>) -> Result<(), StoreError> {
        slot_records::write(&*self.store.database.get()?, records, None)
            .inspect_err(|error| self.store.shared.commit_failed(error))
    }

    /// Watches the slots whose records are lost, on disk and in memory. The directory has forgotten what it promised
    /// for them, so it must join as a new member ([`Ledger::reidentify`]).
    pub fn watch_lost_slots(&self) -> tokio::sync::watch::Receiver<std::collections::BTreeSet<Slot>> {
        self.store.shared.watch_lost_slots()
    }
}
