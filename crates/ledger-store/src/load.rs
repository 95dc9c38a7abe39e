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

use crate::{Loaded, StoreError, ledger::Inner, state::read_head};

mod spread;
mod staged;

use staged::Staging;

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
    Legacy(Vec<u8>, LegacyTurn),
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
            Source::Legacy(blob, _) => {
                check_legacy(&self.inner, blob.len() + chunk.len())?;
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
            Source::Legacy(blob, _turn) => Some(Box::new(self.stage_legacy(&blob)?)),
            Source::Unknown(_) => None,
        };
        match staging {
            Some(staging) => staging.install(self.fail_if_exists),
            None => Err(snapshot::SnapshotError::NotASnapshot.into()),
        }
    }

    fn refuse_existing(&self) -> Result<(), StoreError> {
        let head = self.inner.database.get().and_then(|db| read_head(&db, &self.context));
        match self.inner.noted(head)? {
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
            check_legacy(&self.inner, start.len())?;
            let turn = LegacyTurn::take(&self.inner.shared.legacy).ok_or(StoreError::OneAtATime)?;
            self.source = Source::Legacy(start, turn);
            return Ok(());
        }
        let max_payload = self.inner.shared.options.max_loaded_payload();
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
        let max_payload = self.inner.shared.options.max_loaded_payload();
        let max_uncompressed = self.inner.shared.options.max_legacy;
        let limits = legacy::Limits { max_payload, max_uncompressed, ..legacy::Limits::default() };
        let found = legacy::Snapshot::decode(blob, limits)?;
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

/// The turn of a snapshot of the predecessor, which is held whole: one at a time.
#[derive(Debug)]
struct LegacyTurn(Arc<AtomicBool>);

impl LegacyTurn {
    fn take(is_taken: &Arc<AtomicBool>) -> Option<Self> {
        (!is_taken.swap(true, Ordering::AcqRel)).then(|| Self(Arc::clone(is_taken)))
    }
}

impl Drop for LegacyTurn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn check_legacy(inner: &Inner, len: usize) -> Result<(), StoreError> {
    let max = inner.shared.options.max_legacy;
    if len > max { Err(snapshot_limit("the blob", len as u64, max as u64)) } else { Ok(()) }
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
