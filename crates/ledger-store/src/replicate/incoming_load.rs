//! Stages loads that another node sends. The entries are stored beside the context's rows, each checked against its
//! hash, until the lane installs all of them at once.
//!
//! | step | by | on disk |
//! | --- | --- | --- |
//! | [`Ledger::stage_load`], [`IncomingLoad::take`] | the fetching task | rows under a new number, recorded as staged |
//! | [`IncomingLoad::finish`] | the fetching task | all of them, synced; the lane can find them by context and tree head |
//! | the part of a commit that refers to the load | the lane | the head that points to the rows |

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use ledger_core::{ContextId, Hash, HashSuite, Head, Lineage, Size, digest::TreeHead, slot::Slot};
use parking_lot::Mutex;
use rocksdb::WriteBatch;

use crate::{
    EntryRange, Ledger, StoreError,
    engine::bulk_writer::{BulkWriter, CHUNK_BYTES},
    engine::families::RowLocation,
    ledger::Inner,
    limited,
    replicate::ranges,
    replicate::verify::{RangeCheck, check},
    write::staging,
    write::state::{ContextState, read_head},
};

/// Most loads that are staged, or being staged, for other nodes at a time.
const MAX_STAGED_LOADS: usize = 64;

/// A load of another node, as that node describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadDescriptor {
    /// Lineage of the history that it belongs to.
    pub lineage: Lineage,
    /// Its hash suite.
    pub suite: HashSuite,
    /// Wall-clock time of the context's creation, nanoseconds since the Unix epoch.
    pub created_at_ns: u64,
    /// Tree head that it comes after. At size 0 the root is ignored.
    pub after: TreeHead,
    /// The size with it.
    pub to: Size,
    /// The root with it, if it is known already.
    pub root: Option<Hash>,
}

impl LoadDescriptor {
    /// Describes the load that begins with a range.
    pub fn of_range(range: &EntryRange, to: Size, root: Option<Hash>) -> Self {
        let EntryRange { lineage, suite, created_at_ns, after, .. } = *range;
        Self { lineage, suite, created_at_ns, after, to, root }
    }
}

/// A load that is being staged. Its methods block; dropping it removes the staged rows.
pub struct IncomingLoad {
    inner: Arc<Inner>,
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
        f.debug_struct("Arriving")
            .field("context", &self.context)
            .field("to", &self.descriptor.to)
            .finish_non_exhaustive()
    }
}

/// A completely staged load.
#[derive(Debug)]
pub(crate) struct ReadyLoad {
    pub(crate) after: TreeHead,
    pub(crate) state: ContextState,
    /// Generation of the database that holds the staged rows.
    pub(crate) generation: u64,
    _counted: Arc<()>,
}

/// The completely staged loads, for the lanes.
#[derive(Debug, Default)]
pub(crate) struct StagedLoads {
    contexts: Mutex<HashMap<ContextId, ReadyLoad, RandomState>>,
    counted: Arc<()>,
}

impl StagedLoads {
    /// Takes the load that brings a context from one tree head to another.
    pub(crate) fn take(&self, context: &ContextId, after: &TreeHead, to: &TreeHead) -> Option<ReadyLoad> {
        let mut contexts = self.contexts.lock();
        let known = contexts.get(context)?;
        let is_it = same(&known.after, after) && known.state.head.tree_head() == *to;
        if is_it { contexts.remove(context) } else { None }
    }

    fn put(&self, context: ContextId, arrived: ReadyLoad) -> Option<ReadyLoad> {
        self.contexts.lock().insert(context, arrived)
    }

    fn remove(&self, context: &ContextId, number: u64) -> Option<ReadyLoad> {
        let mut contexts = self.contexts.lock();
        contexts.get(context).filter(|known| known.state.place.number == number)?;
        contexts.remove(context)
    }
}

/// Returns whether two tree heads are equal. At size 0 the roots are ignored.
fn same(one: &TreeHead, other: &TreeHead) -> bool {
    one.size == other.size && (one.size.0 == 0 || one.root == other.root)
}

impl Ledger {
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
        let inner = Arc::clone(self.inner());
        let arrivals = &inner.shared.staged_loads;
        let counted = Arc::clone(&arrivals.counted);
        if Arc::strong_count(&counted) > MAX_STAGED_LOADS + 1 {
            return Err(StoreError::Io(format!(
                "{MAX_STAGED_LOADS} loads of other nodes are staged here: too many"
            )));
        }
        let db = inner.database.get()?;
        let row = inner.quarantine_damage(read_head(&db, context))?.filter(|(_, head)| head.size().0 > 0);
        let empty = Head::new(descriptor.suite, descriptor.lineage, descriptor.created_at_ns);
        let here = row.as_ref().map_or_else(|| empty.tree_head(), |(_, head)| head.tree_head());
        if !same(&here, &descriptor.after) {
            return Ok(None);
        }
        let slot = Slot::of(context);
        let is_apart = inner.shared.quarantine.had_damage(slot);
        let place = inner.shared.numbers.place(&db, slot, is_apart)?;
        staging::begin(&db, place)?;
        let head =
            row.as_ref().map_or(empty, |(_, head)| Head::new(head.suite, head.lineage, head.created_at_ns));
        let mut arriving = IncomingLoad {
            context: context.clone(),
            descriptor,
            state: ContextState::new(place, head),
            batch: WriteBatch::default(),
            bulk_writer: BulkWriter::default(),
            is_handed_over: false,
            generation: db.generation(),
            counted,
            inner: Arc::clone(&inner),
        };
        if let Some((from, head)) = row {
            // Copy the existing entries too: all rows of a context are under one number.
            while arriving.state.head.size() < head.size() {
                let (after, to) = (arriving.state.head.size(), head.size());
                let range = ranges::read_at(&db.snapshot(), context, from, &head, after, to, CHUNK_BYTES)?;
                arriving.stage(&range)?;
            }
        }
        Ok(Some(arriving))
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
        let inner = self.inner();
        let gone = || StoreError::Io(format!("no load of context {context} is staged here any more"));
        let known = inner.shared.offered_loads.of(number).filter(|(of, ..)| of == context);
        let (_, place, head) = known.ok_or_else(gone)?;
        let db = inner.database.get()?;
        ranges::read_at(&db.snapshot(), context, place, &head, after, to, max_bytes)
    }
}

impl IncomingLoad {
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
        let db = self.inner.database.get()?;
        staging::check(&db, self.generation, &self.context)?;
        self.state.accept_verified(&db, &mut self.batch, verified, |_| ())?;
        self.bulk_writer.write_large(&db, &self.inner.shared, &mut self.batch)
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
        let db = self.inner.database.get()?;
        staging::check(&db, self.generation, &self.context)?;
        self.bulk_writer.write(&db, &self.inner.shared, &mut self.batch)?;
        let arrived = ReadyLoad {
            after: self.descriptor.after,
            state: self.state.clone(),
            generation: self.generation,
            _counted: Arc::clone(&self.counted),
        };
        self.is_handed_over = true;
        if let Some(before) = self.inner.shared.staged_loads.put(self.context.clone(), arrived) {
            abandon(&self.inner, &self.context, before.state.place);
        }
        let number = self.state.place.number;
        Ok(StagedLoad { inner: Arc::clone(&self.inner), context: self.context.clone(), number, to })
    }

    fn refused(&self, reason: &str) -> StoreError {
        StoreError::Io(format!("the load of context {} is refused: {reason}", self.context))
    }
}

impl Drop for IncomingLoad {
    fn drop(&mut self) {
        if !self.is_handed_over {
            abandon(&self.inner, &self.context, self.state.place);
        }
    }
}

/// A completely staged load. Dropping it removes the staged rows, unless the lane installed them. Dropping blocks.
#[must_use]
pub struct StagedLoad {
    inner: Arc<Inner>,
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
        if let Some(arrived) = self.inner.shared.staged_loads.remove(&self.context, self.number) {
            abandon(&self.inner, &self.context, arrived.state.place);
        }
    }
}

/// Removes staged rows.
fn abandon(inner: &Inner, context: &ContextId, place: RowLocation) {
    if let Err(error) = inner.database.get().and_then(|db| staging::abandon(&db, place)) {
        // Opening the database again removes them.
        limited!(warn, %context, %error, "what was staged of another node's load stays until the database is opened anew");
    }
}

/// Loads that are staged here and offered to other nodes, by the number of their rows.
#[derive(Debug, Default)]
pub(crate) struct OfferedLoads(Mutex<HashMap<u64, (ContextId, RowLocation, Head), RandomState>>);

impl OfferedLoads {
    /// Offers a load to other nodes, until the returned value is dropped.
    pub(crate) fn offer<'a>(
        &'a self,
        context: &ContextId,
        place: RowLocation,
        head: &Head,
    ) -> OfferedLoad<'a> {
        self.0.lock().insert(place.number, (context.clone(), place, head.clone()));
        OfferedLoad(self, place.number)
    }

    fn of(&self, number: u64) -> Option<(ContextId, RowLocation, Head)> {
        self.0.lock().get(&number).cloned()
    }
}

/// A load that is offered to other nodes; dropping it withdraws the offer.
pub(crate) struct OfferedLoad<'a>(&'a OfferedLoads, u64);

impl Drop for OfferedLoad<'_> {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}
