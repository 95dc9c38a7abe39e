//! Forks off a history: moves the part of a context that differs from its owner's history aside, with the evidence
//! why. Nothing of it is dropped, and nothing is merged.
//!
//! | step | what is written | after a crash |
//! | --- | --- | --- |
//! | begin | the fork's number; a row in `meta` that says it is in progress | nothing to undo |
//! | copy, in pieces | entries into `forks` unchanged, their ids out of `ids` | the ids are restored, the copy is removed |
//! | switch, in one synced batch | evidence in; entries out; head and tiles as of the common size; no longer in progress | the fork is complete |
//!
//! Until the switch only the ids of the context change, and they are restored before anything reads them: when the
//! database is opened ([`clean_up`]), or at once if forking fails.

use ledger_core::{
    ContextId, EntryId, Head, Sequence, Size,
    digest::TreeHead,
    tree::{RightEdge, TileId, tile::TILE_WIDTH},
};
use rocksdb::WriteBatch;

use crate::{
    IdView, StoreError,
    directory::meta,
    engine::db::Db,
    engine::errors::{io_error, read_error},
    engine::families::{self, RowLocation},
    engine::heads::read_head,
    engine::index,
    engine::record::{self, RecordError},
    error::damaged,
    ids, limited,
    read::pages,
    read::prove,
};

mod evidence;
mod listing;
mod rows;
#[cfg(test)]
mod tests;

pub use evidence::{Evidence, ForkInfo, Tip};
pub use listing::{ForkCursor, ForkList};
pub(crate) use listing::{entries, list};
use rows::{ForkRows, LEAVING};

/// Size of one write while copying, in bytes.
const BATCH_BYTES: usize = 4 << 20;

/// In `meta`: the highest number of any fork.
const NUMBERS: &[u8] = b"forks";
/// The first key beyond these rows: '0' follows '/'.
const LEAVING_BEYOND: &[u8] = b"leaving0";
/// The outcome of forking off a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "it is what happened, whoever reads which part of it")]
pub(crate) struct ForkResult {
    /// Number of the fork; `None` if there was nothing to move.
    pub(crate) fork: Option<u64>,
    /// Tree head of the context before.
    pub(crate) was: Option<TreeHead>,
    /// Tree head of the context now; `None` if no entry is left.
    pub(crate) now: Option<TreeHead>,
}

/// Moves the entries after `common` out of a context's history and ends the history there. The change is durable when
/// this returns. The caller must invalidate its own caches, and nothing else may write to the context meanwhile.
///
/// Fails with [`StoreError::OutOfRange`] if the context has fewer than `common` entries. After any other error the
/// context is unchanged, or will be once the database is reopened.
pub(crate) fn fork_off(
    db: &Db,
    context: &ContextId,
    common: Size,
    evidence: &Evidence,
) -> Result<ForkResult, StoreError> {
    let found = read_head(db, context)?;
    let size = found.as_ref().map_or(Size(0), |(_, head)| head.size());
    if common > size {
        let what = format!("size {common}, to go back to");
        return Err(StoreError::OutOfRange { context: context.clone(), size: size.0, what });
    }
    let was = found.as_ref().map(|(_, head)| extent(head));
    let Some((place, head)) = found.filter(|_| common < size) else {
        return Ok(ForkResult { fork: None, was, now: was });
    };
    let fork = begin(db, place)?;
    let left = copy(db, context, &head, common, fork)
        .and_then(|()| switch(db, context, &head, common, fork, evidence));
    match left {
        Ok(now) => {
            let (fork, entries) = (fork.number, size.0 - common.0);
            let Evidence { theirs, reason } = evidence;
            limited!(
                warn,
                %context,
                fork,
                entries,
                %common,
                our_size = %size,
                our_epoch = %head.epoch,
                their_size = %theirs.size,
                their_epoch = %theirs.epoch,
                reason,
                "a history was left: read it on this node with ledgerctl forks {context} --export {fork}"
            );
            Ok(ForkResult { fork: Some(fork), was, now })
        }
        Err(error) => {
            if let Err(error) = undo(db, fork) {
                limited!(error, %context, %error, "a history that could not be left is put right when the database is opened anew");
            }
            Err(error)
        }
    }
}

fn extent(head: &Head) -> TreeHead {
    TreeHead { size: head.size(), root: head.root() }
}

/// Takes a fork number and records that the fork is in progress.
fn begin(db: &Db, place: RowLocation) -> Result<ForkRows, StoreError> {
    // Forks must reach the log in the order of their numbers: the last row in the log has the highest number.
    let _held = db.fork_numbers();
    let number = meta::read::<8>(db, NUMBERS)?.map_or(0, u64::from_be_bytes) + 1;
    let fork = ForkRows { place, number };
    let family = db.family(families::META)?;
    let mut batch = WriteBatch::default();
    batch.put_cf(family, NUMBERS, number.to_be_bytes());
    batch.put_cf(family, fork.leaving(), []);
    db.write_unsynced(batch)?;
    Ok(fork)
}

/// Copies the entries unchanged, and removes their ids.
fn copy(db: &Db, context: &ContextId, head: &Head, common: Size, fork: ForkRows) -> Result<(), StoreError> {
    let (forks, ids) = (db.family(families::FORKS)?, db.family(families::IDS)?);
    let ForkRows { place, .. } = fork;
    let size = head.size();
    let (first, beyond) = (place.entry(Sequence(common.0 + 1)), place.entry(Sequence(size.0 + 1)));
    let mut batch = WriteBatch::default();
    let (mut next, mut copied) = (Sequence(common.0 + 1), Ok(()));
    let mut take = |row: &[u8], value: &[u8], next: Sequence| {
        if families::sequence_of(row) != Some(next) {
            return Err(damaged(context, next, "the entry is missing"));
        }
        let id = id_of(next, value).map_err(|error| damaged(context, next, &error.to_string()))?;
        batch.put_cf(forks, fork.row(next), value);
        // Remove every id, because older records do not say whether the writer chose it.
        batch.delete_cf(ids, place.id(&id));
        if batch.size_in_bytes() >= BATCH_BYTES {
            db.write_unsynced(std::mem::take(&mut batch))?;
        }
        Ok(())
    };
    db.scan(families::ENTRIES, &first, &beyond, false, |row, value| {
        copied = take(row, value, next);
        next.0 += 1;
        copied.is_ok()
    })
    .map_err(|error| read_error(context, next, &error))?;
    copied?;
    if next.0 <= size.0 {
        return Err(damaged(context, next, "the entry is missing"));
    }
    db.write_unsynced(batch)
}

/// Turns the copy into a fork and ends the context at the common size, in one batch.
fn switch(
    db: &Db,
    context: &ContextId,
    head: &Head,
    common: Size,
    fork: ForkRows,
    why: &Evidence,
) -> Result<Option<TreeHead>, StoreError> {
    let place = fork.place;
    let (mut batch, mut buffer) = (WriteBatch::default(), Vec::new());
    let unencodable = |error: RecordError| StoreError::Io(error.to_string());

    let info = ForkInfo {
        context: context.clone(),
        fork: fork.number,
        common,
        ours: Tip { size: head.size(), root: head.root(), epoch: head.epoch },
        theirs: why.theirs,
        lineage: head.lineage,
        suite: head.suite,
        left_at_ns: ids::now_ns(),
        reason: why.reason.clone(),
    };
    evidence::encode(&info, &mut buffer).map_err(unencodable)?;
    batch.put_cf(db.family(families::FORKS)?, fork.row(Sequence(0)), &buffer);
    batch.delete_cf(db.family(families::META)?, fork.leaving());

    let (first, (_, beyond)) = (place.entry(Sequence(common.0 + 1)), place.range());
    batch.delete_range_cf(db.family(families::ENTRIES)?, &first[..], &beyond[..]);
    cut_tiles(db, &mut batch, context, head, common, place)?;

    let now = if common.0 == 0 {
        batch.delete_cf(db.family(families::HEADS)?, context.as_str());
        index::remove(db, &mut batch, context)?;
        None
    } else {
        let newest = pages::one(db, context, place, head, common.newest())?;
        let frontier = prove::frontier_at(db, context, place, head, common)?;
        let head = Head { lamport: newest.lamport, epoch: newest.epoch, frontier, ..head.clone() };
        record::encode_head(place.number, &head, &mut buffer).map_err(unencodable)?;
        batch.put_cf(db.family(families::HEADS)?, context.as_str(), &buffer);
        Some(extent(&head))
    };
    // This sync also covers the copied entries, whatever durability is configured.
    db.write_unsynced(batch)?;
    db.sync()?;
    Ok(now)
}

/// Removes the tiles beyond a size, and shortens those that the size ends in.
fn cut_tiles(
    db: &Db,
    batch: &mut WriteBatch,
    context: &ContextId,
    head: &Head,
    size: Size,
    place: RowLocation,
) -> Result<(), StoreError> {
    let family = db.family(families::TILES)?;
    for level in 0..RightEdge::levels_of(head.frontier.size()) as u8 {
        let mut first = RightEdge::partial(size.0, level);
        let width = RightEdge::width_of(size.0, level);
        // The unfinished tile of level 0 is not stored.
        if level > 0 && width > 0 {
            let cut = db
                .get(families::TILES, &place.tile(first), |bytes| bytes.get(..width * 32).map(<[u8]>::to_vec))
                .map_err(|error| read_error(context, Sequence(0), &error))?;
            let missing = || {
                let reason = format!("tile {} of level {level} is missing or too short", first.index);
                damaged(context, Sequence(0), &reason)
            };
            batch.put_cf(family, place.tile(first), cut.flatten().ok_or_else(missing)?);
            first.index += 1;
        }
        let beyond = place.tile(TileId { level: level + 1, index: 0 });
        batch.delete_range_cf(family, &place.tile(first)[..], &beyond[..]);
    }
    let (_, beyond) = place.range();
    batch.delete_range_cf(family, &place.keys(size.0 / TILE_WIDTH as u64)[..], &beyond[..]);
    Ok(())
}

/// Undoes forks that were in progress when the database was last open. If that fails, opening the database again
/// retries it; until then a repeated append with a known entry id may append to such a context twice.
pub(crate) fn clean_up(db: &Db) {
    let mut under_way = Vec::new();
    let found = db.scan(families::META, LEAVING, LEAVING_BEYOND, true, |row, _| {
        let first = row.strip_prefix(LEAVING).unwrap_or_default();
        let fork = families::fork_of(&[first, &[0; 8]].concat());
        under_way.extend(fork.map(|(place, number, _)| ForkRows { place, number }));
        true
    });
    let undone = found.map_err(|error| io_error(&error)).and_then(|()| {
        under_way.into_iter().try_for_each(|fork| {
            tracing::info!(fork = fork.number, "undoing what an interrupted leaving of a history left");
            undo(db, fork)
        })
    });
    if let Err(error) = undone {
        limited!(error, %error, "what an interrupted leaving of a history left cannot be undone yet");
    }
}

/// Restores the ids of the copied entries and removes the copy, in pieces; a crash between two pieces is harmless.
fn undo(db: &Db, fork: ForkRows) -> Result<(), StoreError> {
    let (forks, ids) = (db.family(families::FORKS)?, db.family(families::IDS)?);
    let mut batch = WriteBatch::default();
    let mut written = Ok(());
    let (first, beyond) = fork.range();
    db.scan(families::FORKS, &first, &beyond, false, |row, value| {
        let Some((place, _, sequence)) = families::fork_of(row) else { return true };
        // An entry without an id had no row in `ids`.
        if let Ok(id) = id_of(sequence, value) {
            batch.put_cf(ids, place.id(&id), sequence.0.to_be_bytes());
        }
        batch.delete_cf(forks, row);
        if batch.size_in_bytes() >= BATCH_BYTES {
            written = db.write_unsynced(std::mem::take(&mut batch));
        }
        written.is_ok()
    })
    .map_err(|error| io_error(&error))?;
    written?;
    batch.delete_cf(db.family(families::META)?, fork.leaving());
    db.write_unsynced(batch)
}

/// Returns the id in an entry's record.
fn id_of(sequence: Sequence, record: &[u8]) -> Result<EntryId, RecordError> {
    match record::view_entry(sequence, record)?.id {
        IdView::Bits(bits) => Ok(EntryId::from_bits(bits)),
        IdView::Text(text) => EntryId::new(text).map_err(RecordError::new),
    }
}
