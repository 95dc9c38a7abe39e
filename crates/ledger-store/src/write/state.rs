//! What a lane caches of a context it writes: the head, the right edge of the tree, and the keys of the unfinished
//! block.
//!
//! The database is authoritative. A state is a copy of its newest rows, and the lane drops it whenever a write fails.

use std::collections::BTreeSet;

use bytes::Bytes;
use ledger_core::{
    ContextId, Entry, EntryId, Hash, Head, Sequence,
    digest::TreeHead,
    entry::Draft,
    log::Stamp,
    tree::{
        RightEdge, TileId,
        tile::{TILE_WIDTH, encode_hashes},
    },
    with_suite,
};
use rocksdb::WriteBatch;

use crate::{
    StoreError,
    engine::db::Db,
    engine::errors::read_error,
    engine::families::{self, RowLocation},
    engine::heads::read_head,
    engine::keys::{KeySet, key_hash},
    engine::record,
    error::damaged,
};

/// A context as its lane caches it.
#[derive(Debug, Clone)]
pub(crate) struct ContextState {
    pub(crate) place: RowLocation,
    pub(crate) head: Head,
    edge: RightEdge,
    keys: BTreeSet<u32>,
    /// The most recently computed root; computing it takes a hash for each peak of the tree.
    known: Option<TreeHead>,
}

/// Entries of another node that were verified on a copy of the head.
#[derive(Debug)]
pub(crate) struct VerifiedEntries {
    /// The head after them.
    pub(crate) head: Head,
    /// The root after them.
    pub(crate) root: Hash,
    /// Each entry with its record, and whether its writer chose its id.
    pub(crate) entries: Vec<(Bytes, Entry, bool)>,
    /// The subtrees that they complete and that tiles store: size, height and hash.
    pub(crate) completed: Vec<(u64, u32, Hash)>,
}

impl ContextState {
    /// The state of a new, empty context.
    pub(crate) fn new(place: RowLocation, head: Head) -> Self {
        Self { place, head, edge: RightEdge::default(), keys: BTreeSet::new(), known: None }
    }

    /// Reads the state of a context and checks the head against tiles and entries; `None` if there is no such
    /// context.
    pub(crate) fn load(db: &Db, context: &ContextId) -> Result<Option<Self>, StoreError> {
        let Some((place, head)) = read_head(db, context)? else { return Ok(None) };
        let size = head.frontier.size();
        let mut keys = BTreeSet::new();
        let mut levels = Vec::new();
        for level in 0..RightEdge::levels_of(size) as u8 {
            let width = RightEdge::width_of(size, level);
            levels.push(if level == 0 {
                leaf_hashes(db, context, place, &head, size - width as u64, width, |key| {
                    keys.insert(key_hash(key));
                })?
            } else {
                partial_tile(db, context, place, RightEdge::partial(size, level), width)?
            });
        }
        let edge = with_suite!(head.suite, H => RightEdge::restore::<H>(&head.frontier, levels)).ok_or_else(
            || {
                damaged(
                    context,
                    Sequence(size),
                    "the newest entries and tiles do not give the root in the head",
                )
            },
        )?;
        Ok(Some(Self { place, head, edge, keys, known: None }))
    }

    /// Returns the context's tree head.
    pub(crate) fn extent(&mut self) -> TreeHead {
        let size = self.head.size();
        match self.known {
            Some(known) if known.size == size => known,
            _ => *self.known.insert(self.head.tree_head()),
        }
    }

    /// Appends a draft and adds the entry's rows to the batch; [`Self::put_head`] adds the head's row. Leaves the
    /// entry's record in the buffer.
    #[allow(clippy::too_many_arguments, reason = "what an append is made of, and where it goes")]
    pub(crate) fn append(
        &mut self,
        db: &Db,
        batch: &mut WriteBatch,
        context: &ContextId,
        draft: Draft,
        stamp: Stamp,
        is_id_chosen: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<Entry, StoreError> {
        let tiles = db.family(families::TILES)?;
        let place = self.place;
        let entry = self.head.append(&mut self.edge, context, draft, stamp, &mut |tile, hashes| {
            put_tile(batch, tiles, place, tile, hashes);
        })?;
        record::encode_entry(&entry, is_id_chosen, buffer)
            .map_err(|error| StoreError::Io(error.to_string()))?;
        self.put_entry(db, batch, &entry, is_id_chosen, buffer)?;
        Ok(entry)
    }

    /// Takes an entry that another node wrote, with its record, if it continues the history, and adds its rows to the
    /// batch.
    pub(crate) fn accept(
        &mut self,
        db: &Db,
        batch: &mut WriteBatch,
        context: &ContextId,
        entry: &Entry,
        is_id_chosen: bool,
        record: &[u8],
    ) -> Result<(), StoreError> {
        let tiles = db.family(families::TILES)?;
        let place = self.place;
        self.head.accept(&mut self.edge, context, entry, &mut |tile, hashes| {
            put_tile(batch, tiles, place, tile, hashes);
        })?;
        self.put_entry(db, batch, entry, is_id_chosen, record)
    }

    /// Takes entries that were verified on a copy of this state's head.
    pub(crate) fn accept_verified(
        &mut self,
        db: &Db,
        batch: &mut WriteBatch,
        verified: VerifiedEntries,
        mut taken: impl FnMut(Entry),
    ) -> Result<(), StoreError> {
        let tiles = db.family(families::TILES)?;
        let place = self.place;
        for (size, height, hash) in verified.completed {
            self.edge.completed(size, height, hash, &mut |tile, hashes| {
                put_tile(batch, tiles, place, tile, hashes);
            });
        }
        for (record, entry, is_id_chosen) in verified.entries {
            self.put_entry(db, batch, &entry, is_id_chosen, &record)?;
            taken(entry);
        }
        self.known = Some(TreeHead { size: verified.head.size(), root: verified.root });
        self.head = verified.head;
        Ok(())
    }

    /// Adds the head's row to the batch.
    pub(crate) fn put_head(
        &self,
        db: &Db,
        batch: &mut WriteBatch,
        context: &ContextId,
        buffer: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        record::encode_head(self.place.number, &self.head, buffer)
            .map_err(|e| StoreError::Io(e.to_string()))?;
        batch.put_cf(db.family(families::HEADS)?, context.as_str(), &buffer);
        Ok(())
    }

    /// Adds an entry id's row to the batch.
    fn put_id(
        &self,
        db: &Db,
        batch: &mut WriteBatch,
        id: &EntryId,
        sequence: Sequence,
    ) -> Result<(), StoreError> {
        batch.put_cf(db.family(families::IDS)?, self.place.id(id), sequence.0.to_be_bytes());
        Ok(())
    }

    /// Returns the bytes that this state occupies, for the cache.
    pub(crate) fn weight(&self) -> usize {
        256 + self.edge.weight() + self.head.frontier.peaks().len() * 32 + self.keys.len() * 16
    }

    fn put_entry(
        &mut self,
        db: &Db,
        batch: &mut WriteBatch,
        entry: &Entry,
        is_id_chosen: bool,
        record: &[u8],
    ) -> Result<(), StoreError> {
        batch.put_cf(db.family(families::ENTRIES)?, self.place.entry(entry.sequence), record);
        if is_id_chosen {
            self.put_id(db, batch, &entry.id, entry.sequence)?;
        }
        self.keys.insert(key_hash(entry.key.as_str()));
        if entry.sequence.0.is_multiple_of(TILE_WIDTH as u64) {
            let index = entry.sequence.0 / TILE_WIDTH as u64 - 1;
            batch.put_cf(db.family(families::TILES)?, self.place.keys(index), KeySet::encode(&self.keys));
            self.keys.clear();
        }
        Ok(())
    }
}

fn put_tile(
    batch: &mut WriteBatch,
    tiles: &rocksdb::ColumnFamily,
    place: RowLocation,
    tile: TileId,
    hashes: &[Hash],
) {
    batch.put_cf(tiles, place.tile(tile), encode_hashes(hashes));
}

/// The leaf hashes of `width` entries after `before`, from their records.
pub(crate) fn leaf_hashes(
    db: &Db,
    context: &ContextId,
    place: RowLocation,
    head: &Head,
    before: u64,
    width: usize,
    mut key_of: impl FnMut(&str),
) -> Result<Vec<Hash>, StoreError> {
    use ledger_core::hash::Hasher as _;
    let mut hashes = Vec::with_capacity(width);
    let mut failure = None;
    let first = place.entry(Sequence(before + 1));
    let beyond = place.entry(Sequence(before + 1 + width as u64));
    let next = |done: usize| Sequence(before + 1 + done as u64);
    let scanned = db.scan(families::ENTRIES, &first, &beyond, true, |row, value| {
        let sequence = next(hashes.len());
        match record::peek_entry(value) {
            Ok((key, hash)) if families::sequence_of(row) == Some(sequence) => {
                key_of(key);
                hashes.push(with_suite!(head.suite, H => H::leaf(&hash)));
                true
            }
            Ok(_) => false,
            Err(error) => {
                failure = Some(damaged(context, sequence, &error.to_string()));
                false
            }
        }
    });
    scanned.map_err(|error| read_error(context, next(hashes.len()), &error))?;
    match failure {
        Some(error) => Err(error),
        None if hashes.len() < width => Err(damaged(context, next(hashes.len()), "the entry is missing")),
        None => Ok(hashes),
    }
}

/// Returns the first `width` hashes of a stored tile of level 1 or higher.
fn partial_tile(
    db: &Db,
    context: &ContextId,
    place: RowLocation,
    tile: TileId,
    width: usize,
) -> Result<Vec<Hash>, StoreError> {
    if width == 0 {
        return Ok(Vec::new());
    }
    let row = db
        .get(families::TILES, &place.tile(tile), |bytes| {
            bytes.chunks_exact(32).take(width).filter_map(Hash::from_slice).collect::<Vec<_>>()
        })
        .map_err(|error| read_error(context, Sequence(0), &error))?;
    match row {
        Some(hashes) if hashes.len() == width => Ok(hashes),
        _ => Err(damaged(
            context,
            Sequence(0),
            &format!("tile {} of level {} is missing", tile.index, tile.level),
        )),
    }
}
