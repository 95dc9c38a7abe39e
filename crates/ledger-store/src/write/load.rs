//! Loading a snapshot: verified while it is staged, then installed at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ledger_core::{
    ContextId, Entry, EntryId, HashSuite, Lineage,
    clock::LamportClock,
    entry::Draft,
    legacy,
    snapshot::{self, Decoder, Item},
};

use crate::{
    Loaded, StoreError,
    budget::{Permit, Share},
    ledger::Inner,
    write::state::read_head,
};

mod coordinator;
mod staged;

use staged::StagedHistory;

/// What a load of our own snapshots takes: what was fed and not read, an ordinary frame, what it writes at once, and what is
/// compared with it. More is taken for larger entries.
pub const LOAD: usize = 2 << 20;
/// What of it is for a frame.
const ORDINARY: usize = 4 * snapshot::FRAME_TARGET;
/// So much is fed at once.
const PIECE: usize = 256 << 10;

/// What a load of our own snapshots takes at most whose payloads are no larger than this.
pub(crate) const fn largest(payload: usize) -> usize {
    LOAD + snapshot::needs(payload)
}

/// A load in progress: nothing is visible until [`Load::finish`] returns. Dropping it undoes it.
#[derive(Debug)]
pub struct Load {
    inner: Arc<Inner>,
    context: ContextId,
    fail_if_exists: bool,
    source: Source,
    room: Room,
    /// What the largest frame took so far.
    frame: usize,
}

/// The memory that a load holds. It never waits for more: what others wait for may be what it holds.
#[derive(Debug)]
struct Room {
    share: Arc<Share>,
    held: Permit,
}

impl Room {
    fn of(share: &Arc<Share>) -> Self {
        Self { share: Arc::clone(share), held: share.charge(0) }
    }

    /// Holds so much at least.
    fn hold(&mut self, needed: usize) -> Result<(), StoreError> {
        let all = self.share.capacity();
        let more = needed.saturating_sub(self.held.amount());
        match self.share.try_acquire(more).filter(|_| needed <= all) {
            Some(more) => self.held.merge(more),
            None => return Err(StoreError::NoLoadMemory { needed, all }),
        }
        Ok(())
    }

    fn add(&mut self, more: usize) -> Result<(), StoreError> {
        self.hold(self.held.amount() + more)
    }
}

/// What is being read, once its first bytes are known.
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
        inner: Arc<Inner>,
        context: ContextId,
        fail_if_exists: bool,
    ) -> Result<Self, StoreError> {
        let room = Room::of(&inner.shared.loads);
        let load =
            Self { inner, context, fail_if_exists, source: Source::Unknown(Vec::new()), room, frame: 0 };
        load.refuse_existing()?;
        Ok(load)
    }

    /// Takes the next bytes, in pieces of any size. May write to disk.
    ///
    /// # Errors
    /// The snapshot is not one, is damaged, or is over a limit; [`StoreError::NoLoadMemory`]; it cannot be
    /// written to disk.
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
                    // By parts of what there is, so that it is not moved with every chunk.
                    let capacity = len.max(blob.len() + blob.len() / 8);
                    self.room.hold(capacity).or_else(|_| self.room.hold(len))?;
                    blob.reserve_exact(self.room.held.amount().max(len) - blob.len());
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

    /// Verifies the whole and installs it.
    ///
    /// # Errors
    /// The snapshot is not whole or does not verify; the context has entries by now; it cannot be written to
    /// disk. Nothing is installed then.
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
        // What was read is gone: putting it in place may take a while.
        self.room.held.resize(self.room.held.amount().min(LOAD));
        match staging {
            Some(staging) => staging.install(self.fail_if_exists),
            None => Err(snapshot::SnapshotError::NotASnapshot.into()),
        }
    }

    fn refuse_existing(&self) -> Result<(), StoreError> {
        let head = self.inner.database.get().and_then(|db| read_head(&db, &self.context));
        match self.inner.quarantine_damage(head)? {
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
            let turn = LegacyLoadGuard::take(&self.inner.shared.legacy).ok_or(StoreError::OneAtATime)?;
            self.source = Source::Legacy(start, turn);
            return Ok(());
        }
        self.room.hold(LOAD)?;
        let max_payload = self.inner.shared.options.max_loaded_payload();
        let mut decoder = Decoder::new(snapshot::Limits { max_payload, ..snapshot::Limits::default() });
        decoder.set_room(0);
        decoder.feed(&start);
        self.source = Source::Native(Box::new(decoder), None);
        self.advance()
    }

    /// Stages what the decoder has.
    fn advance(&mut self) -> Result<(), StoreError> {
        let Source::Native(decoder, staging) = &mut self.source else { return Ok(()) };
        loop {
            let Some(item) = decoder.next()? else {
                let needed = decoder.needs();
                if needed == 0 || needed <= self.frame {
                    return Ok(());
                }
                // The next frame is read, and its bytes gathered, once there is memory for it.
                self.room.hold(LOAD + needed.saturating_sub(ORDINARY))?;
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
                        Arc::clone(&self.inner),
                        self.context.clone(),
                        origin,
                    )?));
                }
                (Item::Entry(entry), Some(staging)) => staging.take(SnapshotEntry::of(entry))?,
                (Item::Entry(_), None) | (Item::End, _) => {}
            }
        }
    }

    /// The whole of it is in memory: the blob until it is decompressed, then what it decompressed to, of which the payloads
    /// are parts, and the entries.
    fn stage_legacy(&mut self, blob: Vec<u8>) -> Result<StagedHistory, StoreError> {
        let declared = legacy::declared_size(&blob).unwrap_or_default();
        self.room.hold(blob.capacity().saturating_add(declared))?;
        let max_payload = self.inner.shared.options.max_loaded_payload();
        let max_uncompressed = self.room.share.capacity();
        let limits = legacy::Limits { max_payload, max_uncompressed, ..legacy::Limits::default() };
        let (mut asked, mut refused) = (0, None);
        let room = |bytes: usize| {
            asked += bytes;
            let added = if asked < PIECE { Ok(()) } else { self.room.add(std::mem::take(&mut asked)) };
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
        let mut staging = StagedHistory::begin(Arc::clone(&self.inner), self.context.clone(), origin)?;
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

/// The turn of a snapshot of the predecessor, which is held whole: one at a time.
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

/// What a snapshot says of its context, as far as it holds for the one loaded into.
#[derive(Debug, Clone, Copy)]
struct SnapshotOrigin {
    lineage: Option<Lineage>,
    created_at_ns: Option<u64>,
    suite: Option<HashSuite>,
    same_context: bool,
}

/// An entry of a snapshot.
struct SnapshotEntry {
    id: EntryId,
    draft: Draft,
    appended_at_ns: u64,
    lamport: Option<LamportClock>,
    /// The entry itself, if it comes from one of our snapshots.
    native: Option<Entry>,
}

impl SnapshotEntry {
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
