//! Snapshots and loads.

use std::sync::Arc;

use ledger_core::{ContextId, Sequence, Size};

use super::Ledger;
use crate::{
    EntryRange, IncomingLoad, Load, LoadDescriptor, Loaded, SnapshotStream, StoreError, engine::families,
    replicate::ranges,
};

impl Ledger {
    /// Begins a snapshot of the context as it is now.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the read meets damage; another [`StoreError`] if the database cannot be read, or
    /// is being reopened.
    pub fn snapshot(&self, context: &ContextId) -> Result<SnapshotStream, StoreError> {
        SnapshotStream::begin(Arc::clone(&self.store), context)
    }

    /// Estimates how many bytes of disk and memory the entries of a context take: about those of a snapshot.
    ///
    /// # Errors
    /// As [`Ledger::head`].
    pub fn snapshot_size(&self, context: &ContextId) -> Result<u64, StoreError> {
        let db = self.store.database.get()?;
        let Some((place, head)) = db.head(context)? else { return Ok(0) };
        db.size_of(families::ENTRIES, &place.entry(Sequence(1)), &place.entry(Sequence(head.size().0 + 1)))
    }

    /// Begins a load into a context: feed it the snapshot's bytes, then finish it.
    ///
    /// # Errors
    /// [`StoreError::ContextExists`] if the context has entries and `fail_if_exists`; another [`StoreError`] if the
    /// database cannot be read.
    pub fn load(&self, context: &ContextId, fail_if_exists: bool) -> Result<Load, StoreError> {
        Load::begin(Arc::clone(&self.store), context.clone(), fail_if_exists)
    }

    /// Loads a whole snapshot from a reader.
    ///
    /// # Errors
    /// As [`Ledger::load`], [`Load::feed`] and [`Load::finish`]; [`StoreError::Io`] if the reader fails.
    pub fn load_from(
        &self,
        context: &ContextId,
        fail_if_exists: bool,
        mut reader: impl std::io::Read,
    ) -> Result<Loaded, StoreError> {
        let mut load = self.load(context, fail_if_exists)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return load.finish(),
                Ok(read) => load.feed(&buffer[..read])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::Io(format!("the snapshot cannot be read: {error}"))),
            }
        }
    }

    /// Begins to stage a load from another node. Returns `None` if the context is not at the tree head that the load
    /// comes after.
    ///
    /// # Errors
    /// [`StoreError::Io`] if too many loads are being staged; any error of the database.
    pub fn stage_load(
        &self,
        context: &ContextId,
        descriptor: LoadDescriptor,
    ) -> Result<Option<IncomingLoad>, StoreError> {
        IncomingLoad::begin(&self.store, context, descriptor)
    }

    /// Does what [`Ledger::range`] does, for a load that is staged here and offered to other nodes under a number.
    ///
    /// # Errors
    /// [`StoreError`] if there is no such load, or it cannot be read.
    pub fn staged_range(
        &self,
        number: u64,
        context: &ContextId,
        after: Size,
        to: Size,
        max_bytes: usize,
    ) -> Result<EntryRange, StoreError> {
        let store = &self.store;
        let gone = || StoreError::Io(format!("no load of context {context} is staged here any more"));
        let known = store.shared.offered_loads.of(number).filter(|(of, ..)| of == context);
        let (_, place, head) = known.ok_or_else(gone)?;
        let db = store.database.get()?;
        ranges::read_at(&db.snapshot(), context, place, &head, after, to, max_bytes)
    }
}
