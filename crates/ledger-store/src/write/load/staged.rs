//! Stages a history: compares it with the existing one, and writes it beside that.

use std::{cell::Cell, collections::VecDeque, sync::Arc};

use ledger_core::{ContextId, Entry, Epoch, Head, Lineage, Sequence, Size, log::Stamp, slot::Slot};
use rocksdb::WriteBatch;

use super::snapshot_entry::{SnapshotEntry, SnapshotOrigin};
use crate::{
    Filter, Loaded, StoreError,
    engine::bulk_writer::{BulkWriter, CHUNK_BYTES},
    engine::families::RowLocation,
    engine::heads::read_head,
    engine::record,
    error::damaged,
    ids,
    read::pages,
    store::Store,
    write::staging,
    write::state::ContextState,
};

/// Bytes of existing entries that are read at a time, for comparison.
const PAGE_BYTES: usize = 1 << 20;

/// A history that is staged beside the existing one.
pub(super) struct StagedHistory {
    pub(super) store: Arc<Store>,
    pub(super) context: ContextId,
    /// In a cluster: the epoch in which this node owns the context.
    pub(super) epoch: Option<Epoch>,
    origin: SnapshotOrigin,
    pub(super) base: Option<(RowLocation, Head)>,
    pub(super) state: ContextState,
    batch: WriteBatch,
    bulk_writer: BulkWriter,
    buffer: Vec<u8>,
    existing: VecDeque<Entry>,
    /// Whether existing entries are read one by one, because a page of them has a damaged one.
    one_by_one: bool,
    /// Whether the snapshot's entry replaced a damaged one.
    healed: bool,
    /// Whether the lane installs it, or removes it.
    pub(super) is_handed_over: Cell<bool>,
    /// Generation of the database that holds the staged rows.
    pub(super) generation: u64,
}

impl StagedHistory {
    pub(super) fn begin(
        store: Arc<Store>,
        context: ContextId,
        origin: SnapshotOrigin,
    ) -> Result<Self, StoreError> {
        let slot = Slot::of(&context);
        // Only the owner loads; it sends the replicas what it installs.
        let epoch = match store.shared.replication_of(slot) {
            Some(copies) => Some(copies.serving_epoch(slot)?.0),
            None => None,
        };
        let db = store.database.get()?;
        let base = read_head(&db, &context)?;
        // The load builds on the existing entries, or reports that it found them: make them durable first.
        db.sync()?;
        let is_apart = store.shared.quarantine.had_damage(slot);
        let place = store.shared.numbers.place(&db, slot, is_apart)?;
        staging::begin(&db, place)?;
        let shared = &store.shared;
        let head = match &base {
            Some((_, head)) => Head::new(head.suite, head.lineage, head.created_at_ns),
            None => Head::new(
                origin.suite.unwrap_or(shared.options.suite),
                origin.lineage.unwrap_or_else(|| Lineage(ids::new_id())),
                origin.created_at_ns.unwrap_or_else(ids::now_ns),
            ),
        };
        Ok(Self {
            state: ContextState::new(place, head),
            store,
            context,
            epoch,
            origin,
            base,
            batch: WriteBatch::default(),
            bulk_writer: BulkWriter::default(),
            buffer: Vec::new(),
            existing: VecDeque::new(),
            one_by_one: false,
            healed: false,
            is_handed_over: Cell::new(false),
            generation: db.generation(),
        })
    }

    fn base_size(&self) -> u64 {
        self.base.as_ref().map_or(0, |(_, head)| head.frontier.size())
    }

    /// Takes the snapshot's next entry: compares it with the existing one, if there is one, and stages
    /// whichever is to stay.
    pub(super) fn take(&mut self, incoming: SnapshotEntry) -> Result<(), StoreError> {
        let sequence = Sequence(self.state.head.frontier.size() + 1);
        if sequence.0 > self.base_size() {
            return self.stage_incoming(incoming);
        }
        match self.existing(sequence) {
            Ok(existing) if self.is_same(&existing, &incoming) => self.accept(&existing),
            Ok(_) => Err(StoreError::HistoryDiffers { context: self.context.clone(), sequence }),
            // The snapshot's entry heals the damage; the root proves that it belongs there.
            Err(StoreError::Damaged { .. }) if self.can_heal(&incoming) => {
                self.healed = true;
                self.stage_incoming(incoming)
            }
            Err(error) => Err(error),
        }?;
        self.check_root_at_base()
    }

    /// Returns whether an incoming entry may be the one that is damaged here.
    fn can_heal(&self, incoming: &SnapshotEntry) -> bool {
        incoming.native.as_ref().is_some_and(|entry| self.is_ours(entry))
    }

    /// Returns whether an entry's content hash is valid in this context.
    fn is_ours(&self, entry: &Entry) -> bool {
        self.origin.same_context && entry.is_intact(self.state.head.suite)
    }

    fn is_same(&self, existing: &Entry, incoming: &SnapshotEntry) -> bool {
        match &incoming.native {
            Some(entry) if self.origin.same_context && self.origin.suite == Some(self.state.head.suite) => {
                entry.content_hash == existing.content_hash
            }
            _ => {
                existing.draft() == incoming.draft
                    && existing.appended_at_ns == incoming.appended_at_ns
                    && (!self.origin.same_context || existing.id == incoming.id)
            }
        }
    }

    /// Fails if as many entries are staged as the context has, and the roots differ.
    fn check_root_at_base(&self) -> Result<(), StoreError> {
        let Some((_, base)) = &self.base else { return Ok(()) };
        let size = self.state.head.size();
        if size == base.size() && self.state.head.root() != base.root() {
            return Err(damaged(
                &self.context,
                size.newest(),
                "its entries do not give the root in its head",
            ));
        }
        Ok(())
    }

    fn stage_incoming(&mut self, incoming: SnapshotEntry) -> Result<(), StoreError> {
        match incoming.native {
            Some(entry) if self.origin.same_context && self.origin.suite == Some(self.state.head.suite) => {
                self.accept(&entry)
            }
            _ => {
                let shared = &self.store.shared;
                let stamp = Stamp {
                    id: if self.origin.same_context { incoming.id } else { ids::new_entry_id() },
                    now_ns: incoming.appended_at_ns,
                    // The clock adds one again.
                    received_lamport: incoming.lamport.map_or(0, |time| time.0.saturating_sub(1)),
                    epoch: self.epoch.unwrap_or(shared.epoch()).max(self.state.head.epoch),
                };
                let (db, context) = (self.store.database.get()?, &self.context);
                self.state.append(
                    &db,
                    &mut self.batch,
                    context,
                    incoming.draft,
                    stamp,
                    // The snapshot does not say which ids clients chose: record all of them, so that a retry is
                    // safe.
                    true,
                    &mut self.buffer,
                )?;
                self.staged()
            }
        }
    }

    fn accept(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let db = self.store.database.get()?;
        record::encode_entry(entry, true, &mut self.buffer)
            .map_err(|error| StoreError::Io(error.to_string()))?;
        self.state.accept(&db, &mut self.batch, &self.context, entry, true, &self.buffer)?;
        self.staged()
    }

    fn staged(&mut self) -> Result<(), StoreError> {
        if self.batch.size_in_bytes() < CHUNK_BYTES {
            return Ok(());
        }
        self.flush()
    }

    /// Writes the staged entries durably.
    fn flush(&mut self) -> Result<(), StoreError> {
        let db = self.store.database.get()?;
        self.bulk_writer.write(&db, &self.store.shared, &mut self.batch)
    }

    /// Returns the existing entry of a sequence; the caller asks in order.
    fn existing(&mut self, sequence: Sequence) -> Result<Entry, StoreError> {
        let Some((place, head)) = &self.base else {
            return Err(damaged(&self.context, sequence, "the entry is missing"));
        };
        if self.existing.is_empty() && !self.one_by_one {
            let after = Sequence(sequence.0 - 1);
            let filter = Filter { after, max_bytes: PAGE_BYTES, ..Filter::default() };
            match pages::page_at(&*self.store.database.get()?, &self.context, *place, head, &filter) {
                Ok(page) => self.existing.extend(page.entries),
                Err(StoreError::Damaged { .. }) => self.one_by_one = true,
                Err(error) => return Err(error),
            }
        }
        match self.existing.pop_front() {
            Some(entry) => Ok(entry),
            None => pages::one(&*self.store.database.get()?, &self.context, *place, head, sequence),
        }
    }

    /// Installs the staged history if it is longer than the existing one, or heals it.
    pub(super) fn install(mut self: Box<Self>, fail_if_exists: bool) -> Result<Loaded, StoreError> {
        let (base, count) = (self.base_size(), self.state.head.frontier.size());
        let quarantined = self.store.shared.quarantine.check(&self.context).is_err();
        if count <= base && !self.healed && !(quarantined && count > 0) {
            self.settle()?;
            return Ok(Loaded { restored: 0, latest: Size(base) });
        }
        for sequence in count + 1..=base {
            let entry = self.existing(Sequence(sequence))?;
            self.accept(&entry)?;
        }
        self.check_root_at_base()?;
        self.flush()?;
        let latest = self.state.head.size();
        let installed = self.put_in_place();
        if let Err(StoreError::HistoryDiffers { context, sequence }) = &installed
            && fail_if_exists
        {
            return Err(StoreError::ContextExists { context: context.clone(), size: sequence.0 });
        }
        installed?;
        if latest.0 == base {
            self.settle()?;
        }
        Ok(Loaded { restored: latest.0.saturating_sub(base), latest })
    }
}

impl StagedHistory {
    /// Waits until the existing entries are committed: they may have been loaded or appended a moment ago.
    fn settle(&self) -> Result<(), StoreError> {
        self.epoch.map_or(Ok(()), |epoch| self.store.await_committed(Slot::of(&self.context), epoch))
    }
}

impl Drop for StagedHistory {
    fn drop(&mut self) {
        if !self.is_handed_over.get() {
            self.store.abandon(&self.context, self.state.place);
        }
    }
}
