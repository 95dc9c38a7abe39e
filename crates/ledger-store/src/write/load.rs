//! Loads a snapshot: verifies it while it is staged, then installs it at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ledger_core::{
    ContextId,
    entry::Draft,
    legacy,
    snapshot::{self, Decoder, Item},
};

use crate::{Loaded, StoreError, engine::heads::read_head, store::Store};

mod coordinator;
pub(crate) mod memory;
mod snapshot_entry;
mod staged;

use memory::{LoadMemory, with_frame};
use snapshot_entry::{SnapshotEntry, SnapshotOrigin};
use staged::StagedHistory;

pub use memory::LOAD;

/// Bytes that are fed to the decoder at a time.
const PIECE: usize = 256 << 10;

/// A load in progress: nothing is visible until [`Load::finish`] returns. Dropping it undoes it.
#[derive(Debug)]
pub struct Load {
    store: Arc<Store>,
    context: ContextId,
    fail_if_exists: bool,
    source: Source,
    memory: LoadMemory,
    /// Bytes of the largest frame so far.
    frame: usize,
}

/// The format of the snapshot, once its first bytes are known, and what was read of it.
enum Source {
    Unknown(Vec<u8>),
    Native(Box<Decoder>, Option<Box<StagedHistory>>),
    Legacy(Vec<u8>, LegacyLoadGuard),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown(_) => "Unknown",
            Self::Native(..) => "Native",
            Self::Legacy(..) => "Legacy",
        })
    }
}

impl Load {
    pub(crate) fn begin(
        store: Arc<Store>,
        context: ContextId,
        fail_if_exists: bool,
    ) -> Result<Self, StoreError> {
        let memory = LoadMemory::of(&store.shared.loads);
        let load =
            Self { store, context, fail_if_exists, source: Source::Unknown(Vec::new()), memory, frame: 0 };
        load.refuse_existing()?;
        Ok(load)
    }

    /// Takes the next bytes, in pieces of any size. May write to disk.
    ///
    /// # Errors
    /// [`StoreError`] if the bytes are no snapshot, or one that is damaged or over a limit;
    /// [`StoreError::NoLoadMemory`]; another [`StoreError`] if the entries cannot be written to disk.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let mut rest = chunk;
        if let Source::Unknown(start) = &mut self.source {
            let known = rest.len().min(snapshot::MAGIC.len() - start.len());
            start.extend_from_slice(&rest[..known]);
            rest = &rest[known..];
            if start.len() == snapshot::MAGIC.len() {
                self.recognise()?;
            }
        }
        match &mut self.source {
            Source::Unknown(_) => {}
            Source::Legacy(blob, _) => {
                let len = blob.len() + rest.len();
                if len > blob.capacity() {
                    // Grow by a part of the current size, so that the blob does not move with every chunk.
                    let capacity = len.max(blob.len() + blob.len() / 8);
                    self.memory.hold(capacity).or_else(|_| self.memory.hold(len))?;
                    blob.reserve_exact(self.memory.amount().max(len) - blob.len());
                }
                blob.extend_from_slice(rest);
            }
            Source::Native(..) => {
                for piece in rest.chunks(PIECE) {
                    if let Source::Native(decoder, _) = &mut self.source {
                        decoder.feed(piece);
                    }
                    self.advance()?;
                }
            }
        }
        Ok(())
    }

    /// Verifies the whole history and installs it.
    ///
    /// # Errors
    /// [`StoreError`] if the snapshot is incomplete or does not verify, the context has entries by now, or the
    /// entries cannot be written to disk. Nothing is installed then.
    pub fn finish(mut self) -> Result<Loaded, StoreError> {
        self.recognise()?;
        let staging = match std::mem::replace(&mut self.source, Source::Unknown(Vec::new())) {
            Source::Native(decoder, staging) => {
                decoder.finish()?;
                staging
            }
            Source::Legacy(blob, _turn) => Some(Box::new(self.stage_legacy(blob)?)),
            Source::Unknown(_) => None,
        };
        // Installing may take a while and no longer needs what was read: give its memory back.
        self.memory.shrink(LOAD);
        match staging {
            Some(staging) => staging.install(self.fail_if_exists),
            None => Err(snapshot::SnapshotError::NotASnapshot.into()),
        }
    }

    fn refuse_existing(&self) -> Result<(), StoreError> {
        let head = self.store.database.get().and_then(|db| read_head(&db, &self.context));
        match self.store.quarantine_damage(head)? {
            Some((_, head)) if self.fail_if_exists && head.size().0 > 0 => {
                Err(StoreError::ContextExists { context: self.context.clone(), size: head.size().0 })
            }
            _ => Ok(()),
        }
    }

    /// Recognises the format by the first bytes.
    fn recognise(&mut self) -> Result<(), StoreError> {
        let Source::Unknown(start) = &mut self.source else { return Ok(()) };
        let start = std::mem::take(start);
        if legacy::is_legacy(&start) {
            let turn = LegacyLoadGuard::take(&self.store.shared.legacy).ok_or(StoreError::OneAtATime)?;
            self.source = Source::Legacy(start, turn);
            return Ok(());
        }
        self.memory.hold(LOAD)?;
        let max_payload = self.store.shared.options.max_loaded_payload();
        let mut decoder = Decoder::new(snapshot::Limits { max_payload, ..snapshot::Limits::default() });
        decoder.set_room(0);
        decoder.feed(&start);
        self.source = Source::Native(Box::new(decoder), None);
        self.advance()
    }

    /// Stages the entries that the decoder has read.
    fn advance(&mut self) -> Result<(), StoreError> {
        let Source::Native(decoder, staging) = &mut self.source else { return Ok(()) };
        loop {
            let Some(item) = decoder.next()? else {
                let needed = decoder.needs();
                if needed == 0 || needed <= self.frame {
                    return Ok(());
                }
                // The decoder reads the next frame once there is memory for it.
                self.memory.hold(with_frame(needed))?;
                self.frame = needed;
                decoder.set_room(needed);
                continue;
            };
            match (item, staging.as_mut()) {
                (Item::Header(header), _) => {
                    let same = header.context_id == self.context;
                    let origin = SnapshotOrigin {
                        lineage: same.then_some(header.lineage),
                        created_at_ns: same.then_some(header.created_at_ns),
                        suite: same.then_some(header.suite),
                        same_context: same,
                    };
                    *staging = Some(Box::new(StagedHistory::begin(
                        Arc::clone(&self.store),
                        self.context.clone(),
                        origin,
                    )?));
                }
                (Item::Entry(entry), Some(staging)) => staging.take(SnapshotEntry::of(entry))?,
                (Item::Entry(_), None) | (Item::End, _) => {}
            }
        }
    }

    /// Stages a snapshot of the predecessor. All of it is in memory: first the blob, then what it decompressed to,
    /// which the payloads are slices of, and the entries.
    fn stage_legacy(&mut self, blob: Vec<u8>) -> Result<StagedHistory, StoreError> {
        let declared = legacy::declared_size(&blob).unwrap_or_default();
        self.memory.hold(blob.capacity().saturating_add(declared))?;
        let max_payload = self.store.shared.options.max_loaded_payload();
        let max_uncompressed = self.memory.capacity();
        let limits = legacy::Limits { max_payload, max_uncompressed, ..legacy::Limits::default() };
        let (mut asked, mut refused) = (0, None);
        let room = |bytes: usize| {
            asked += bytes;
            let added = if asked < PIECE { Ok(()) } else { self.memory.add(std::mem::take(&mut asked)) };
            refused = added.err();
            refused.is_none()
        };
        let found = match legacy::Snapshot::decode_within(blob, limits, room) {
            Err(legacy::LegacyError::NoRoom) => {
                let all = max_uncompressed;
                return Err(refused.unwrap_or(StoreError::NoLoadMemory { needed: all, all }));
            }
            found => found?,
        };
        found.verify()?;
        let same_context = found.context_id == self.context;
        let origin = SnapshotOrigin { lineage: None, created_at_ns: None, suite: None, same_context };
        let mut staging = StagedHistory::begin(Arc::clone(&self.store), self.context.clone(), origin)?;
        for entry in found.entries {
            staging.take(SnapshotEntry {
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

/// The exclusive right to load a snapshot of the predecessor, which is held whole in memory.
#[derive(Debug)]
struct LegacyLoadGuard(Arc<AtomicBool>);

impl LegacyLoadGuard {
    fn take(is_taken: &Arc<AtomicBool>) -> Option<Self> {
        (!is_taken.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(is_taken)))
    }
}

impl Drop for LegacyLoadGuard {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
