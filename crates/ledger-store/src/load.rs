//! Loading a snapshot: verified while it is staged, then installed at once.

use std::{collections::VecDeque, sync::Arc};

use ledger_core::{
    ContextId, Entry, EntryId, Epoch, HashSuite, Head, Lineage, Sequence, Size,
    clock::LamportClock,
    entry::Draft,
    legacy,
    log::Stamp,
    slot::Slot,
    snapshot::{self, Decoder, Item},
};
use rocksdb::WriteBatch;

use crate::{
    Filter, Loaded, StoreError,
    families::Place,
    lane::Install,
    ledger::Inner,
    read::{self, damaged},
    record,
    shared::Shared,
    staging,
    state::{ContextState, read_head},
};

/// A staged batch is written when it has so many bytes.
const BATCH_BYTES: usize = 4 << 20;
/// Existing entries are read so many bytes at once, for comparison.
const PAGE_BYTES: usize = 1 << 20;
/// The largest blob of the predecessor that is taken, bytes: its format is not read in pieces.
const MAX_LEGACY: usize = 1 << 30;

/// A load in progress: nothing is visible until [`Load::finish`] returns. Dropping it undoes it.
#[derive(Debug)]
pub struct Load {
    inner: Arc<Inner>,
    context: ContextId,
    fail_if_exists: bool,
    source: Source,
}

/// What is being read, once its first bytes are known.
enum Source {
    Unknown(Vec<u8>),
    Native(Box<Decoder>, Option<Box<Staging>>),
    Legacy(Vec<u8>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown(_) => "Unknown",
            Self::Native(..) => "Native",
            Self::Legacy(_) => "Legacy",
        })
    }
}

impl Load {
    pub(crate) fn begin(
        inner: Arc<Inner>,
        context: ContextId,
        fail_if_exists: bool,
    ) -> Result<Self, StoreError> {
        let load = Self { inner, context, fail_if_exists, source: Source::Unknown(Vec::new()) };
        load.refuse_existing()?;
        Ok(load)
    }

    /// Takes the next bytes, in pieces of any size. May write to disk.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        match &mut self.source {
            Source::Unknown(start) => {
                start.extend_from_slice(chunk);
                if start.len() >= snapshot::MAGIC.len() {
                    self.recognise()?;
                }
                Ok(())
            }
            Source::Legacy(blob) => {
                if blob.len() + chunk.len() > MAX_LEGACY {
                    return Err(snapshot_limit(
                        "the blob",
                        (blob.len() + chunk.len()) as u64,
                        MAX_LEGACY as u64,
                    ));
                }
                blob.extend_from_slice(chunk);
                Ok(())
            }
            Source::Native(decoder, _) => {
                decoder.feed(chunk);
                self.advance()
            }
        }
    }

    /// Verifies the whole and installs it.
    pub fn finish(mut self) -> Result<Loaded, StoreError> {
        self.recognise()?;
        let staging = match std::mem::replace(&mut self.source, Source::Unknown(Vec::new())) {
            Source::Native(decoder, staging) => {
                decoder.finish()?;
                staging
            }
            Source::Legacy(blob) => Some(Box::new(self.stage_legacy(&blob)?)),
            Source::Unknown(_) => None,
        };
        match staging {
            Some(staging) => staging.install(self.fail_if_exists),
            None => Err(snapshot::SnapshotError::NotASnapshot.into()),
        }
    }

    fn refuse_existing(&self) -> Result<(), StoreError> {
        match read_head(&*self.inner.database.get()?, &self.context)? {
            Some((_, head)) if self.fail_if_exists && head.size().0 > 0 => {
                Err(StoreError::ContextExists { context: self.context.clone(), size: head.size().0 })
            }
            _ => Ok(()),
        }
    }

    /// Decides what the first bytes are of.
    fn recognise(&mut self) -> Result<(), StoreError> {
        let Source::Unknown(start) = &mut self.source else { return Ok(()) };
        let start = std::mem::take(start);
        if legacy::is_legacy(&start) {
            self.source = Source::Legacy(start);
            return Ok(());
        }
        let max_payload = self.inner.shared.options.max_payload;
        let mut decoder = Decoder::new(snapshot::Limits { max_payload, ..snapshot::Limits::default() });
        decoder.feed(&start);
        self.source = Source::Native(Box::new(decoder), None);
        self.advance()
    }

    /// Stages what the decoder has.
    fn advance(&mut self) -> Result<(), StoreError> {
        let Source::Native(decoder, staging) = &mut self.source else { return Ok(()) };
        while let Some(item) = decoder.next()? {
            match (item, staging.as_mut()) {
                (Item::Header(header), _) => {
                    let same = header.context_id == self.context;
                    let origin = Origin {
                        lineage: same.then_some(header.lineage),
                        created_at_ns: same.then_some(header.created_at_ns),
                        suite: same.then_some(header.suite),
                        same_context: same,
                    };
                    *staging = Some(Box::new(Staging::begin(
                        Arc::clone(&self.inner),
                        self.context.clone(),
                        origin,
                    )?));
                }
                (Item::Entry(entry), Some(staging)) => staging.take(Incoming::of(entry))?,
                (Item::Entry(_), None) | (Item::End, _) => {}
            }
        }
        Ok(())
    }

    fn stage_legacy(&self, blob: &[u8]) -> Result<Staging, StoreError> {
        let max_payload = self.inner.shared.options.max_payload;
        let found =
            legacy::Snapshot::decode(blob, legacy::Limits { max_payload, ..legacy::Limits::default() })?;
        found.verify()?;
        let same_context = found.context_id == self.context;
        let origin = Origin { lineage: None, created_at_ns: None, suite: None, same_context };
        let mut staging = Staging::begin(Arc::clone(&self.inner), self.context.clone(), origin)?;
        for entry in found.entries {
            staging.take(Incoming {
                id: entry.id,
                draft: Draft { key: entry.key, payload: entry.payload, metadata: entry.metadata },
                appended_at_ns: entry.appended_at_ns,
                lamport: entry.lamport,
                native: None,
            })?;
        }
        Ok(staging)
    }
}

fn snapshot_limit(what: &'static str, value: u64, max: u64) -> StoreError {
    snapshot::SnapshotError::Limit { place: snapshot::Place::Header, what, value, max }.into()
}

/// What a snapshot says of its context, as far as it holds for the one loaded into.
#[derive(Debug, Clone, Copy)]
struct Origin {
    lineage: Option<Lineage>,
    created_at_ns: Option<u64>,
    suite: Option<HashSuite>,
    same_context: bool,
}

/// An entry of a snapshot.
struct Incoming {
    id: EntryId,
    draft: Draft,
    appended_at_ns: u64,
    lamport: Option<LamportClock>,
    /// The entry itself, if it comes from one of our snapshots.
    native: Option<Entry>,
}

impl Incoming {
    fn of(entry: Entry) -> Self {
        Self {
            id: entry.id.clone(),
            draft: entry.draft(),
            appended_at_ns: entry.appended_at_ns,
            lamport: Some(entry.lamport),
            native: Some(entry),
        }
    }
}

/// A history being staged beside the one that is there.
#[derive(Debug)]
struct Staging {
    inner: Arc<Inner>,
    context: ContextId,
    /// In a cluster: the epoch in which this node owns the context.
    epoch: Option<Epoch>,
    origin: Origin,
    base: Option<(Place, Head)>,
    state: ContextState,
    batch: Batch,
    buffer: Vec<u8>,
    existing: VecDeque<Entry>,
    /// Existing entries cannot be read in pages: one of them is damaged.
    one_by_one: bool,
    /// A damaged entry was replaced by the snapshot's.
    healed: bool,
    installed: bool,
    /// The database it is staged in.
    generation: u64,
}

#[derive(Default)]
struct Batch(WriteBatch);

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch({} bytes)", self.0.size_in_bytes())
    }
}

impl Staging {
    fn begin(inner: Arc<Inner>, context: ContextId, origin: Origin) -> Result<Self, StoreError> {
        let slot = Slot::of(&context);
        // Only at the owner: the replicas are sent what it puts in place.
        let epoch = match inner.shared.copies_of(slot) {
            Some(copies) => Some(copies.serves(slot)?.0),
            None => None,
        };
        let db = inner.database.get()?;
        let base = read_head(&db, &context)?;
        // What it builds on, or finds to be there already, must not be taken back.
        db.sync()?;
        let is_apart = inner.shared.quarantine.is_scarred(slot);
        let place = inner.shared.numbers.place(&db, slot, is_apart)?;
        staging::begin(&db, place)?;
        let shared = &inner.shared;
        let head = match &base {
            Some((_, head)) => Head::new(head.suite, head.lineage, head.created_at_ns),
            None => Head::new(
                origin.suite.unwrap_or(shared.options.suite),
                origin.lineage.unwrap_or_else(|| Lineage(Shared::new_id())),
                origin.created_at_ns.unwrap_or_else(Shared::now_ns),
            ),
        };
        Ok(Self {
            state: ContextState::new(place, head),
            inner,
            context,
            epoch,
            origin,
            base,
            batch: Batch::default(),
            buffer: Vec::new(),
            existing: VecDeque::new(),
            one_by_one: false,
            healed: false,
            installed: false,
            generation: db.generation(),
        })
    }

    fn base_size(&self) -> u64 {
        self.base.as_ref().map_or(0, |(_, head)| head.frontier.size())
    }

    /// Takes the snapshot's next entry: compares it with the existing one, if there is one, and stages
    /// whichever is to stay.
    fn take(&mut self, incoming: Incoming) -> Result<(), StoreError> {
        let sequence = Sequence(self.state.head.frontier.size() + 1);
        if sequence.0 > self.base_size() {
            return self.stage_incoming(incoming);
        }
        match self.existing(sequence) {
            Ok(existing) if self.is_same(&existing, &incoming) => self.accept(&existing),
            Ok(_) => Err(StoreError::HistoryDiffers { context: self.context.clone(), sequence }),
            // The snapshot's entry heals the damage; that it belongs there is checked by the root.
            Err(StoreError::Damaged { .. }) if self.can_heal(&incoming) => {
                self.healed = true;
                self.stage_incoming(incoming)
            }
            Err(error) => Err(error),
        }?;
        self.check_root_at_base()
    }

    /// Whether an incoming entry could be the very entry that is damaged here.
    fn can_heal(&self, incoming: &Incoming) -> bool {
        incoming.native.as_ref().is_some_and(|entry| self.is_ours(entry))
    }

    /// Whether an entry has a content hash that holds in this context.
    fn is_ours(&self, entry: &Entry) -> bool {
        self.origin.same_context && entry.is_intact(self.state.head.suite)
    }

    fn is_same(&self, existing: &Entry, incoming: &Incoming) -> bool {
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

    /// Once as many entries are staged as the context has, the roots must agree.
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

    fn stage_incoming(&mut self, incoming: Incoming) -> Result<(), StoreError> {
        match incoming.native {
            Some(entry) if self.origin.same_context && self.origin.suite == Some(self.state.head.suite) => {
                self.accept(&entry)
            }
            _ => {
                let shared = &self.inner.shared;
                let stamp = Stamp {
                    id: if self.origin.same_context { incoming.id } else { Shared::new_entry_id() },
                    now_ns: incoming.appended_at_ns,
                    // The clock adds one again.
                    received_lamport: incoming.lamport.map_or(0, |time| time.0.saturating_sub(1)),
                    epoch: self.epoch.unwrap_or(shared.epoch()).max(self.state.head.epoch),
                };
                let (db, context) = (self.inner.database.get()?, &self.context);
                self.state.append(
                    &db,
                    &mut self.batch.0,
                    context,
                    incoming.draft,
                    stamp,
                    // Which ids clients chose is not known any more: all of them make a retry safe.
                    true,
                    &mut self.buffer,
                )?;
                self.staged()
            }
        }
    }

    fn accept(&mut self, entry: &Entry) -> Result<(), StoreError> {
        let db = self.inner.database.get()?;
        record::encode_entry(entry, true, &mut self.buffer)
            .map_err(|error| StoreError::Io(error.to_string()))?;
        self.state.accept(&db, &mut self.batch.0, &self.context, entry, true, &self.buffer)?;
        self.staged()
    }

    fn staged(&mut self) -> Result<(), StoreError> {
        if self.batch.0.size_in_bytes() >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.inner.database.get()?.write_unsynced(std::mem::take(&mut self.batch.0))
    }

    /// The existing entry of a sequence; they are asked for in order.
    fn existing(&mut self, sequence: Sequence) -> Result<Entry, StoreError> {
        let Some((place, head)) = &self.base else {
            return Err(damaged(&self.context, sequence, "the entry is missing"));
        };
        if self.existing.is_empty() && !self.one_by_one {
            let after = Sequence(sequence.0 - 1);
            let filter = Filter { after, max_bytes: PAGE_BYTES, ..Filter::default() };
            match read::page_at(&*self.inner.database.get()?, &self.context, *place, head, &filter) {
                Ok(page) => self.existing.extend(page.entries),
                Err(StoreError::Damaged { .. }) => self.one_by_one = true,
                Err(error) => return Err(error),
            }
        }
        match self.existing.pop_front() {
            Some(entry) => Ok(entry),
            None => read::one(&*self.inner.database.get()?, &self.context, *place, head, sequence),
        }
    }

    /// Puts the staged history in place, if it is longer than what is there, or heals it.
    fn install(mut self: Box<Self>, fail_if_exists: bool) -> Result<Loaded, StoreError> {
        let (base, count) = (self.base_size(), self.state.head.frontier.size());
        let quarantined = self.inner.shared.quarantine.check(&self.context).is_err();
        if count <= base && !self.healed && !(quarantined && count > 0) {
            return Ok(Loaded { restored: 0, latest: Size(base) });
        }
        for sequence in count + 1..=base {
            let entry = self.existing(Sequence(sequence))?;
            self.accept(&entry)?;
        }
        self.check_root_at_base()?;
        self.flush()?;
        let latest = self.state.head.size();
        let install = Install {
            context: self.context.clone(),
            base: self.base.as_ref().map(|(place, head)| (*place, head.frontier.size())),
            state: self.state.clone(),
            epoch: self.epoch,
            generation: self.generation,
        };
        let installed = self.inner.install(install);
        if let Err(StoreError::HistoryDiffers { context, sequence }) = &installed
            && fail_if_exists
        {
            return Err(StoreError::ContextExists { context: context.clone(), size: sequence.0 });
        }
        installed?;
        self.installed = true;
        Ok(Loaded { restored: latest.0.saturating_sub(base), latest })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.installed
            && let Err(error) =
                self.inner.database.get().and_then(|db| staging::abandon(&db, self.state.place))
        {
            // It is removed when the ledger is opened again.
            tracing::warn!(context = %self.context, %error, "what an unfinished load staged stays until restart");
        }
    }
}
