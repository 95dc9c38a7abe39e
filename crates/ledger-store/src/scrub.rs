//! The scrub: re-reads everything at a bounded rate and compares entries with tiles and heads.
//!
//! What it finds is quarantined and reported with context and sequence; nothing is deleted.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use ledger_core::{
    ContextId, Hash, Head, Sequence,
    hash::Hasher,
    slot::Slot,
    tree::{Frontier, TileId, tile::TILE_WIDTH},
    with_suite,
};

use crate::{
    Filter, StoreError,
    database::Database,
    db::{Db, read_error},
    families::{self, Place},
    read::{self, damaged, moved, weight},
    record,
    shared::Shared,
    state::read_head,
};

/// Contexts are listed so many at once.
const CONTEXTS: usize = 256;
/// Entries are read so many bytes at once.
const PAGE_BYTES: usize = 256 << 10;

/// The thread: scrubs until told to stop. It begins after one pause of a second, so that opening a ledger is not
/// slowed down.
pub(crate) fn run(database: &Database, shared: &Shared, stop: &Receiver<()>) {
    let options = &shared.options;
    let mut pause = Duration::from_secs(1).min(options.scrub_pause);
    while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let mut scrub = Scrub { database, shared, stop, budget: Budget::new(options.scrub_rate) };
        match scrub.everything() {
            Ok(Pass::Stopped) => return,
            Ok(Pass::Done { contexts, entries }) => {
                tracing::info!(
                    contexts,
                    entries,
                    damaged = shared.quarantine.list().len(),
                    "scrub pass done"
                );
            }
            Err(error) => tracing::error!(%error, "the scrub could not read the store"),
        }
        pause = options.scrub_pause;
    }
}

/// Checks one context at once.
pub(crate) fn check(database: &Database, shared: &Shared, context: &ContextId) -> Result<(), StoreError> {
    let (_keep, stop) = crossbeam_channel::bounded(0);
    let mut scrub = Scrub { database, shared, stop: &stop, budget: Budget::new(u64::MAX) };
    match scrub.context(context) {
        Ok(_) => Ok(()),
        Err(error @ StoreError::Damaged { .. }) => {
            shared.quarantine.note(&error);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

enum Pass {
    Done { contexts: u64, entries: u64 },
    Stopped,
}

struct Scrub<'a> {
    database: &'a Database,
    shared: &'a Shared,
    stop: &'a Receiver<()>,
    budget: Budget,
}

impl Scrub<'_> {
    fn everything(&mut self) -> Result<Pass, StoreError> {
        let (mut after, mut contexts, mut entries) = (String::new(), 0, 0);
        loop {
            let names = context_ids(&*self.database.get()?, &after, CONTEXTS)?;
            let Some(last) = names.last() else { return Ok(Pass::Done { contexts, entries }) };
            last.as_str().clone_into(&mut after);
            for context in names {
                contexts += 1;
                match self.context(&context) {
                    Ok(Some(checked)) => entries += checked,
                    Ok(None) => return Ok(Pass::Stopped),
                    Err(error) => self.shared.quarantine.note(&error),
                }
            }
        }
    }

    /// Checks one context; `None` when told to stop.
    fn context(&mut self, context: &ContextId) -> Result<Option<u64>, StoreError> {
        loop {
            let Some((place, head)) = read_head(&*self.database.get()?, context)? else { return Ok(Some(0)) };
            let checked = with_suite!(head.suite, H => self.history::<H>(context, place, &head));
            match checked {
                // A load put another copy in place meanwhile, or its end was left: what is there now is checked.
                Err(StoreError::Damaged { .. }) if moved(&*self.database.get()?, context, place, &head)? => {}
                checked => return checked,
            }
        }
    }

    fn history<H: Hasher>(
        &mut self,
        context: &ContextId,
        place: Place,
        head: &Head,
    ) -> Result<Option<u64>, StoreError> {
        let mut frontier = Frontier::default();
        let mut leaves = Vec::with_capacity(TILE_WIDTH);
        let mut done = Sequence(0);
        while done < head.size().newest() {
            let filter = Filter { after: done, max_bytes: PAGE_BYTES, ..Filter::default() };
            let page = read::page_at(&*self.database.get()?, context, place, head, &filter)?;
            let mut bytes = 0;
            for entry in &page.entries {
                bytes += weight(entry);
                if entry.computed_hash_with::<H>() != entry.content_hash {
                    let reason = "its content does not match its content hash";
                    return Err(damaged(context, entry.sequence, reason));
                }
                let leaf = H::leaf(&entry.content_hash);
                frontier.push::<H>(leaf, |_, _| ());
                leaves.push(leaf);
                if leaves.len() == TILE_WIDTH {
                    self.compare_tile(context, place, entry.sequence, &leaves)?;
                    leaves.clear();
                }
            }
            self.shared.scrubbed.fetch_add(page.entries.len() as u64, Ordering::Relaxed);
            done = page.covered;
            if self.budget.spend(bytes, self.stop) {
                return Ok(None);
            }
        }
        if frontier != head.frontier {
            return Err(damaged(context, done, "its entries do not give the root in its head"));
        }
        Ok(Some(done.0))
    }

    /// Compares 256 leaves with the stored tile that ends with entry `last`.
    fn compare_tile(
        &self,
        context: &ContextId,
        place: Place,
        last: Sequence,
        leaves: &[Hash],
    ) -> Result<(), StoreError> {
        let index = last.0 / TILE_WIDTH as u64 - 1;
        let first = Sequence(index * TILE_WIDTH as u64 + 1);
        let differs = self
            .database
            .get()?
            .get(families::TILES, &place.tile(TileId { level: 0, index }), |bytes| {
                let stored = bytes.chunks_exact(32);
                let len = stored.len();
                stored
                    .zip(leaves)
                    .position(|(stored, leaf)| stored != leaf.0)
                    .or((len != TILE_WIDTH).then_some(len))
            })
            .map_err(|error| read_error(context, first, &error))?;
        match differs {
            None => Err(damaged(context, first, "the tile over it is missing")),
            Some(None) => Ok(()),
            Some(Some(at)) => {
                Err(damaged(context, Sequence(first.0 + at as u64), "it does not match the tile over it"))
            }
        }
    }
}

/// The next contexts in order of their ids.
fn context_ids(db: &Db, after: &str, limit: usize) -> Result<Vec<ContextId>, StoreError> {
    let mut names = Vec::new();
    let first = [after.as_bytes(), &[0]].concat();
    db.scan(families::HEADS, if after.is_empty() { &[] } else { &first }, &[0xff], false, |key, value| {
        if let Some(context) = std::str::from_utf8(key).ok().and_then(|text| ContextId::new(text).ok()) {
            names.push(context);
        } else {
            tracing::error!(?key, bytes = value.len(), "a head has a malformed name");
        }
        names.len() < limit
    })
    .map_err(|error| crate::db::io_error(&error))?;
    Ok(names)
}

/// Keeps the scrub at its rate.
struct Budget {
    rate: u64,
    begun: Instant,
    spent: u64,
}

impl Budget {
    fn new(rate: u64) -> Self {
        Self { rate, begun: Instant::now(), spent: 0 }
    }

    /// Waits until `bytes` more are within the rate; true when told to stop.
    fn spend(&mut self, bytes: usize, stop: &Receiver<()>) -> bool {
        self.spent += bytes as u64;
        let due = Duration::from_secs_f64(self.spent as f64 / self.rate.max(1) as f64);
        let wait = due.saturating_sub(self.begun.elapsed());
        stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout)
    }
}

/// Decodes whatever a head's row holds, for listings.
pub(crate) fn decode_row(key: &[u8], value: &[u8]) -> Option<(ContextId, Place, Head)> {
    let context = ContextId::new(std::str::from_utf8(key).ok()?).ok()?;
    let (number, head) = record::decode_head(value).ok()?;
    Some((context.clone(), Place { slot: Slot::of(&context), number }, head))
}
