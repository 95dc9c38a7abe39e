//! The scrub re-reads everything at a bounded rate and compares entries with tiles and heads.
//!
//! It quarantines and reports damage with context and sequence, and deletes nothing. One pass reads:
//!
//! | what | how | damage is |
//! | --- | --- | --- |
//! | contexts | heads, entries, tiles, ids: each entry against its hashes, the whole history against the head | the context's |
//! | records of slots | decoded | repaired by the lane from memory, or else the directory's |
//! | the slot index, forks, `meta`, heads and ids no longer in use | the checksums of their blocks | the family's |

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use ledger_core::{
    ContextId, Hash, Head, Sequence,
    digest::Bucket,
    hash::Hasher,
    slot::{SLOTS, Slot},
    tree::{Frontier, TileId, tile::TILE_WIDTH},
    with_suite,
};
use tokio::sync::mpsc::WeakSender;

use crate::{
    Filter, StoreError,
    directory::slot_records,
    engine::db::Db,
    engine::errors::read_error,
    engine::families::{self, RowLocation},
    engine::heads::read_head,
    engine::index,
    engine::record,
    engine::reopenable_db::ReopenableDb,
    error::damaged,
    limited,
    read::pages::{self, moved, weight},
    shared::Shared,
    write::command::{Command, lane_of},
};

/// Number of contexts listed at a time.
const CONTEXTS: usize = 256;
/// Bytes of entries, or of a family's rows, read at a time.
const PAGE_BYTES: usize = 256 << 10;
/// Bytes that even the smallest context counts against the rate: reading it touches four families, in blocks of 4
/// KiB.
const CONTEXT_BYTES: usize = 4 << 10;
/// Families of which the scrub reads every block, because reading the contexts does not cover them.
const WHOLE: [&str; 5] = [families::HEADS, families::IDS, families::FORKS, families::SLOTS, families::META];

/// Runs the scrub's thread until `stop`. It starts after a pause of one second, so that it does not slow down opening
/// the ledger.
pub(crate) fn run(
    database: &ReopenableDb,
    shared: &Shared,
    lanes: &[WeakSender<Command>],
    stop: &Receiver<()>,
) {
    let options = &shared.options;
    let mut pause = Duration::from_secs(1).min(options.scrub_pause);
    while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let budget = Budget::new(options.scrub_rate);
        let mut scrub = Scrub { database, shared, lanes, stop, budget };
        match scrub.everything() {
            Ok(Pass::Stopped) => return,
            Ok(Pass::Done { contexts, entries }) => {
                tracing::info!(
                    contexts,
                    entries,
                    damaged = shared.quarantine.list().len(),
                    damaged_families = ?shared.quarantine.families(),
                    "scrub pass done"
                );
            }
            Err(error) => limited!(error, %error, "the scrub could not read the store"),
        }
        pause = options.scrub_pause;
    }
}

/// Checks one context immediately.
pub(crate) fn check(database: &ReopenableDb, shared: &Shared, context: &ContextId) -> Result<(), StoreError> {
    let (_keep, stop) = crossbeam_channel::bounded(0);
    let mut scrub = Scrub { database, shared, lanes: &[], stop: &stop, budget: Budget::new(u64::MAX) };
    match scrub.context(context) {
        Ok(_) => Ok(()),
        Err(error @ StoreError::Damaged { .. }) => {
            shared.quarantine.record(&error);
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
    database: &'a ReopenableDb,
    shared: &'a Shared,
    lanes: &'a [WeakSender<Command>],
    stop: &'a Receiver<()>,
    budget: Budget,
}

impl Scrub<'_> {
    fn everything(&mut self) -> Result<Pass, StoreError> {
        let (mut contexts, mut entries) = (0, 0);
        // List by the index: a context whose head is in a damaged block appears in no listing of heads.
        for slot in (0..SLOTS).filter_map(Slot::new) {
            let mut after = None;
            loop {
                let names = context_ids(&*self.database.get()?, self.shared, slot, after.as_ref())?;
                let Some(last) = names.last() else { break };
                after = Some(last.clone());
                for context in names {
                    contexts += 1;
                    match self.context(&context) {
                        Ok(Some(checked)) => entries += checked,
                        Ok(None) => return Ok(Pass::Stopped),
                        Err(error @ StoreError::Damaged { .. }) => self.shared.quarantine.record(&error),
                        Err(error) => limited!(error, %context, %error, "a context could not be scrubbed"),
                    }
                }
            }
            self.record(slot)?;
        }
        for family in WHOLE {
            if self.family(family)?.is_none() {
                return Ok(Pass::Stopped);
            }
        }
        Ok(Pass::Done { contexts, entries })
    }

    /// Checks the record of what was promised for a slot.
    fn record(&mut self, slot: Slot) -> Result<(), StoreError> {
        let read = slot_records::read(&*self.database.get()?, slot);
        let Err(StoreError::SlotDamaged { .. }) = read else { return read.map(|_| ()) };
        if let Some(lane) =
            self.lanes.get(lane_of(slot, self.lanes.len().max(1))).and_then(WeakSender::upgrade)
        {
            // If the lane does not take the command, the ledger is closing.
            let _ = lane.blocking_send(Command::RewriteRecord(slot));
        }
        Ok(())
    }

    /// Reads every block of a family, to its end or its first damage; `None` if stopped.
    fn family(&mut self, family: &'static str) -> Result<Option<()>, StoreError> {
        let mut after: Vec<u8> = Vec::new();
        loop {
            let (mut bytes, mut is_end) = (0, true);
            let first = std::mem::take(&mut after);
            let read = self.database.get()?.scan(family, &first, &[0xff; 32], false, |key, value| {
                if bytes >= PAGE_BYTES {
                    // The next piece begins here.
                    key.clone_into(&mut after);
                    is_end = false;
                    return false;
                }
                bytes += key.len() + value.len() + 32;
                true
            });
            if let Err(error) = read {
                if error.kind() != rocksdb::ErrorKind::Corruption {
                    return Err(crate::engine::errors::io_error(&error));
                }
                self.shared.quarantine.record_family(family, error.as_ref());
                return Ok(Some(()));
            }
            if self.budget.spend(bytes, self.stop) {
                return Ok(None);
            }
            if is_end {
                self.shared.quarantine.release_family(family);
                return Ok(Some(()));
            }
        }
    }

    /// Checks one context; `None` if stopped.
    fn context(&mut self, context: &ContextId) -> Result<Option<u64>, StoreError> {
        loop {
            let Some((place, head)) = read_head(&*self.database.get()?, context)? else { return Ok(Some(0)) };
            let checked = with_suite!(head.suite, H => self.history::<H>(context, place, &head));
            match checked {
                // Meanwhile a load installed another copy, or the end of the history was forked off: check what is
                // there now.
                Err(StoreError::Damaged { .. }) if moved(&*self.database.get()?, context, place, &head)? => {}
                checked => return checked,
            }
        }
    }

    fn history<H: Hasher>(
        &mut self,
        context: &ContextId,
        place: RowLocation,
        head: &Head,
    ) -> Result<Option<u64>, StoreError> {
        let mut frontier = Frontier::default();
        let mut leaves = Vec::with_capacity(TILE_WIDTH);
        let mut done = Sequence(0);
        while done < head.size().newest() {
            let filter = Filter { after: done, max_bytes: PAGE_BYTES, ..Filter::default() };
            let page = pages::page_at(&*self.database.get()?, context, place, head, &filter)?;
            let mut bytes = if done == Sequence(0) { CONTEXT_BYTES } else { 0 };
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
        self.rest(context, place)?;
        Ok(Some(done.0))
    }

    /// Reads the rows of a context that the comparison did not need: tiles of higher levels, key summaries, ids.
    fn rest(&self, context: &ContextId, place: RowLocation) -> Result<(), StoreError> {
        let db = self.database.get()?;
        let failed = |error: rocksdb::Error| read_error(context, Sequence(0), &error);
        let (first, beyond) = place.range();
        db.scan(families::TILES, &first, &beyond, false, |_, _| true).map_err(failed)?;
        let (first, beyond) = place.id_range();
        db.scan(families::IDS, &first, &beyond, false, |_, _| true).map_err(failed)
    }

    /// Compares 256 leaf hashes with the stored tile that ends with entry `last`.
    fn compare_tile(
        &self,
        context: &ContextId,
        place: RowLocation,
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

/// Returns the next contexts of a slot.
fn context_ids(
    db: &Db,
    shared: &Shared,
    slot: Slot,
    after: Option<&ContextId>,
) -> Result<Vec<ContextId>, StoreError> {
    // Do not use a snapshot: RocksDB schedules compactions for what was written before each snapshot that is
    // released.
    let buckets = (0..=u8::MAX).map(Bucket).collect();
    let mut names = std::collections::BTreeSet::new();
    let mut take = |name: &str| {
        if names.len() == CONTEXTS {
            if names.last().is_some_and(|last: &ContextId| last.as_str() <= name) {
                return false;
            }
            names.pop_last();
        }
        names.extend(ContextId::new(name));
        true
    };
    match index::scan(db, slot, &buckets, after, &mut take) {
        Err(StoreError::FileDamaged(reason)) => {
            shared.quarantine.record_family(families::SLOTS, &reason);
            index::scan_heads(db, slot, &buckets, after, &mut take)?;
        }
        read => read?,
    }
    Ok(names.into_iter().collect())
}

/// Limits the scrub to its rate.
struct Budget {
    rate: u64,
    begun: Instant,
    spent: u64,
}

impl Budget {
    fn new(rate: u64) -> Self {
        Self { rate, begun: Instant::now(), spent: 0 }
    }

    /// Waits until `bytes` more are within the rate. Returns true if stopped.
    fn spend(&mut self, bytes: usize, stop: &Receiver<()>) -> bool {
        self.spent += bytes as u64;
        let due = Duration::from_secs_f64(self.spent as f64 / self.rate.max(1) as f64);
        let wait = due.saturating_sub(self.begun.elapsed());
        stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout)
    }
}

/// Decodes a head's row for a listing. A row that cannot be decoded is not absent: its context goes into quarantine.
pub(crate) fn decode_row(
    shared: &Shared,
    key: &[u8],
    value: &[u8],
) -> Option<(ContextId, RowLocation, Head)> {
    let context = ContextId::new(std::str::from_utf8(key).ok()?).ok()?;
    match record::decode_head(value) {
        Ok((number, head)) => Some((context.clone(), RowLocation { slot: Slot::of(&context), number }, head)),
        Err(error) => {
            shared.quarantine.record(&damaged(&context, Sequence(0), &error.to_string()));
            None
        }
    }
}
