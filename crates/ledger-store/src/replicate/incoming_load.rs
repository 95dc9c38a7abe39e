//! Stages loads that another node sends. The entries are stored beside the context's rows, each checked against its
//! hash, until the lane installs all of them at once.
//!
//! | step | by | on disk |
//! | --- | --- | --- |
//! | [`IncomingLoad::begin`], [`IncomingLoad::take`] | the fetching task | rows under a new number, recorded as staged |
//! | [`IncomingLoad::finish`] | the fetching task | all of them, synced; the lane can find them by context and tree head |
//! | the part of a commit that refers to the load | the lane | the head that points to the rows |

use std::sync::Arc;

use ledger_core::{ContextId, Head, Size, digest::TreeHead, slot::Slot};
use rocksdb::WriteBatch;

use crate::{
    EntryRange, LoadDescriptor, StoreError,
    engine::bulk_writer::{BulkWriter, CHUNK_BYTES},
    engine::heads::read_head,
    replicate::ranges,
    replicate::staged_loads::{ReadyLoad, same},
    replicate::verify::{RangeCheck, check},
    store::Store,
    write::staging,
    write::state::ContextState,
};

/// Most loads that are staged, or being staged, for other nodes at a time.
const MAX_STAGED_LOADS: usize = 64;

/// A load that is being staged. Its methods block; dropping it removes the staged rows.
pub struct IncomingLoad {
    store: Arc<Store>,
    context: ContextId,
    descriptor: LoadDescriptor,
    state: ContextState,
    batch: WriteBatch,
    bulk_writer: BulkWriter,
    /// The lane knows the load, and installs or removes it.
    is_handed_over: bool,
    /// Generation of the database that holds the staged rows.
    generation: u64,
    counted: Arc<()>,
}

impl std::fmt::Debug for IncomingLoad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IncomingLoad")
            .field("context", &self.context)
            .field("to", &self.descriptor.to)
            .finish_non_exhaustive()
    }
}

impl IncomingLoad {
    /// Begins to stage a load; see [`Ledger::stage_load`](crate::Ledger::stage_load).
    pub(crate) fn begin(
        store: &Arc<Store>,
        context: &ContextId,
        descriptor: LoadDescriptor,
    ) -> Result<Option<Self>, StoreError> {
        let staged_loads = &store.shared.staged_loads;
        let counted = Arc::clone(&staged_loads.counted);
        if Arc::strong_count(&counted) > MAX_STAGED_LOADS + 1 {
            return Err(StoreError::Io(format!(
                "{MAX_STAGED_LOADS} loads of other nodes are staged here: too many"
            )));
        }
        let db = store.database.get()?;
        let row = store.quarantine_damage(read_head(&db, context))?.filter(|(_, head)| head.size().0 > 0);
        let empty = Head::new(descriptor.suite, descriptor.lineage, descriptor.created_at_ns);
        let here = row.as_ref().map_or_else(|| empty.tree_head(), |(_, head)| head.tree_head());
        if !same(&here, &descriptor.after) {
            return Ok(None);
        }
        let slot = Slot::of(context);
        let is_apart = store.shared.quarantine.had_damage(slot);
        let place = store.shared.numbers.place(&db, slot, is_apart)?;
        staging::begin(&db, place)?;
        let head =
            row.as_ref().map_or(empty, |(_, head)| Head::new(head.suite, head.lineage, head.created_at_ns));
        let mut incoming = Self {
            context: context.clone(),
            descriptor,
            state: ContextState::new(place, head),
            batch: WriteBatch::default(),
            bulk_writer: BulkWriter::default(),
            is_handed_over: false,
            generation: db.generation(),
            counted,
            store: Arc::clone(store),
        };
        if let Some((from, head)) = row {
            // Copy the existing entries too: all rows of a context are under one number.
            while incoming.state.head.size() < head.size() {
                let (after, to) = (incoming.state.head.size(), head.size());
                let range = ranges::read_at(&db.snapshot(), context, from, &head, after, to, CHUNK_BYTES)?;
                incoming.stage(&range)?;
            }
        }
        Ok(Some(incoming))
    }

    /// Returns what to fetch next: the entries after the first size, up to the second. `None` if everything is
    /// staged.
    pub fn missing(&self) -> Option<(Size, Size)> {
        let after = self.state.head.size();
        (after < self.descriptor.to).then_some((after, self.descriptor.to))
    }

    /// Stages the next entries that another node sent.
    ///
    /// # Errors
    /// [`StoreError::Io`] if they do not verify or do not come next; any error of the database.
    pub fn take(&mut self, range: &EntryRange) -> Result<(), StoreError> {
        if range.end() > self.descriptor.to {
            return Err(self.refused("it has more entries than were announced"));
        }
        self.stage(range)
    }

    fn stage(&mut self, range: &EntryRange) -> Result<(), StoreError> {
        let here = self.state.extent();
        if !same(&range.after, &here) {
            return Err(self.refused("its parts do not follow each other"));
        }
        let RangeCheck::Continues(verified) = check(&self.context, &self.state.head, range, 0)? else {
            return Err(self.refused("its entries do not give its root"));
        };
        let db = self.store.database.get()?;
        staging::check(&db, self.generation, &self.context)?;
        self.state.accept_verified(&db, &mut self.batch, verified, |_| ())?;
        self.bulk_writer.write_large(&db, &self.store.shared, &mut self.batch)
    }

    /// Completes the staging: makes the rows durable and lets the lane install them, as long as the returned value is
    /// kept.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the load is incomplete; any error of the database.
    pub fn finish(mut self) -> Result<StagedLoad, StoreError> {
        let to = self.state.extent();
        if self.missing().is_some() || self.descriptor.root.is_some_and(|root| root != to.root) {
            return Err(self.refused("it is not what was announced"));
        }
        let db = self.store.database.get()?;
        staging::check(&db, self.generation, &self.context)?;
        self.bulk_writer.write(&db, &self.store.shared, &mut self.batch)?;
        let arrived = ReadyLoad {
            after: self.descriptor.after,
            state: self.state.clone(),
            generation: self.generation,
            _counted: Arc::clone(&self.counted),
        };
        self.is_handed_over = true;
        if let Some(before) = self.store.shared.staged_loads.put(self.context.clone(), arrived) {
            self.store.abandon(&self.context, before.state.place);
        }
        let number = self.state.place.number;
        Ok(StagedLoad { store: Arc::clone(&self.store), context: self.context.clone(), number, to })
    }

    fn refused(&self, reason: &str) -> StoreError {
        StoreError::Io(format!("the load of context {} is refused: {reason}", self.context))
    }
}

impl Drop for IncomingLoad {
    fn drop(&mut self) {
        if !self.is_handed_over {
            self.store.abandon(&self.context, self.state.place);
        }
    }
}

/// A completely staged load. Dropping it removes the staged rows, unless the lane installed them.
#[must_use]
pub struct StagedLoad {
    store: Arc<Store>,
    context: ContextId,
    /// Number of its rows.
    number: u64,
    to: TreeHead,
}

impl StagedLoad {
    /// Returns the tree head of the context with it.
    pub const fn to(&self) -> TreeHead {
        self.to
    }
}

impl std::fmt::Debug for StagedLoad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StagedLoad")
            .field("context", &self.context)
            .field("to", &self.to)
            .finish_non_exhaustive()
    }
}

impl Drop for StagedLoad {
    fn drop(&mut self) {
        if let Some(arrived) = self.store.shared.staged_loads.remove(&self.context, self.number) {
            self.store.abandon(&self.context, arrived.state.place);
        }
    }
}
