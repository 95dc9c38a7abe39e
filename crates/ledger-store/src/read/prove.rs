//! Computes roots and proofs at any size from stored tiles.

use ledger_core::{
    ContextId, Hash, HashSuite, Head, Lineage, Position, Sequence, Size,
    hash::Hasher as _,
    tree::{
        Frontier, Tile, TileId, TileReader,
        reader::{self, ReadError, consistency_proof, inclusion_proof, root_at},
        tile::TILE_WIDTH,
    },
    with_suite,
};

use crate::{
    Checkpointed, ProvenConsistency, ProvenInclusion, StoreError,
    engine::db::Db,
    engine::errors::read_error,
    engine::families::{self, RowLocation},
    engine::record,
    engine::rows::Rows,
    error::damaged,
    read::pages::{self, moved},
};

/// The tiles of one context.
struct Tiles<'a, R> {
    rows: &'a R,
    context: &'a ContextId,
    place: RowLocation,
    head: &'a Head,
    /// The hashes of the unfinished tile of level 0, once a proof needed them.
    newest: Vec<Hash>,
}

impl<R: Rows> TileReader for Tiles<'_, R> {
    type Error = StoreError;

    fn tile(&mut self, tile: TileId, width: usize) -> Result<Tile, StoreError> {
        let stored_width = tile.width_in(self.head.frontier.size());
        let first = Sequence((tile.index << (8 * (u32::from(tile.level) + 1))) + 1);
        if tile.level == 0 && stored_width < TILE_WIDTH {
            // The unfinished tile of level 0 is not stored: its hashes are those of the newest entries.
            if self.newest.is_empty() {
                self.newest = self.leaf_hashes(first, stored_width)?;
            }
            let hashes = self.newest.iter().take(width).copied().collect();
            return Tile::new(hashes).ok_or_else(|| damaged(self.context, first, "a tile is empty"));
        }
        let stored = self
            .rows
            .get(families::TILES, &self.place.tile(tile), Tile::decode)
            .map_err(|error| read_error(self.context, first, &error))?
            .flatten();
        stored.filter(|found| found.hashes().len() >= width).ok_or_else(|| {
            let reason = format!("tile {} of level {} is missing or malformed", tile.index, tile.level);
            damaged(self.context, first, &reason)
        })
    }

    fn frontier(&mut self, size: u64) -> Option<Frontier> {
        (size == self.head.frontier.size()).then(|| self.head.frontier.clone())
    }
}

/// Runs `prove` on a context's tiles, and retries if a load moved them meanwhile. An unknown context counts as an
/// empty one, so `prove` decides how it fails.
fn with_tiles<T>(
    db: &Db,
    context: &ContextId,
    prove: impl Fn(&mut Tiles<'_, Db>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    loop {
        let Some((place, head)) = db.head(context)? else {
            return Err(out_of_range(context, 0, "a proof of an empty context".to_owned()));
        };
        match prove(&mut Tiles::new(db, context, place, &head)) {
            Err(StoreError::Damaged { .. }) if moved(db, context, place, &head)? => {}
            proven => return proven,
        }
    }
}

fn out_of_range(context: &ContextId, size: u64, what: String) -> StoreError {
    StoreError::OutOfRange { context: context.clone(), size, what }
}

impl<'a, R: Rows> Tiles<'a, R> {
    fn new(rows: &'a R, context: &'a ContextId, place: RowLocation, head: &'a Head) -> Self {
        Self { rows, context, place, head, newest: Vec::new() }
    }

    /// Returns the leaf hashes of `width` entries from `first` on, from their records.
    fn leaf_hashes(&self, first: Sequence, width: usize) -> Result<Vec<Hash>, StoreError> {
        let mut hashes = Vec::with_capacity(width);
        let mut failure = None;
        let next = |done: usize| Sequence(first.0 + done as u64);
        let (row, beyond) = (self.place.entry(first), self.place.entry(next(width)));
        let read = self.rows.scan(families::ENTRIES, &row, &beyond, true, |row, value| {
            let sequence = next(hashes.len());
            match record::peek_entry(value) {
                Ok((_, hash)) if families::sequence_of(row) == Some(sequence) => {
                    hashes.push(with_suite!(self.head.suite, H => H::leaf(&hash)));
                    true
                }
                Ok(_) => false,
                Err(error) => {
                    failure = Some(damaged(self.context, sequence, &error.to_string()));
                    false
                }
            }
        });
        read.map_err(|error| read_error(self.context, next(hashes.len()), &error))?;
        match failure {
            Some(error) => Err(error),
            None if hashes.len() < width => {
                Err(damaged(self.context, next(hashes.len()), "the entry is missing"))
            }
            None => Ok(hashes),
        }
    }

    /// Returns the requested size, or the newest one.
    fn size(&self, size: Option<Size>) -> Result<u64, StoreError> {
        let newest = self.head.frontier.size();
        match size {
            None => Ok(newest),
            Some(Size(size)) if size <= newest => Ok(size),
            Some(Size(size)) => Err(out_of_range(self.context, newest, format!("size {size}"))),
        }
    }

    fn root(&mut self, size: u64) -> Result<Hash, StoreError> {
        if size == self.head.frontier.size() {
            return Ok(self.head.root());
        }
        with_suite!(self.head.suite, H => root_at::<H, _>(self, size)).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: ReadError<StoreError>) -> StoreError {
        match error {
            ReadError::Tile(error) => error,
            ReadError::Missing { .. } => damaged(self.context, Sequence(0), &error.to_string()),
            ReadError::NoSuchLeaf { .. } | ReadError::Shrinks { .. } | ReadError::TooLarge { .. } => {
                out_of_range(self.context, self.head.frontier.size(), error.to_string())
            }
        }
    }
}

impl Tiles<'_, Db> {
    fn position(&mut self, size: u64) -> Result<Position, StoreError> {
        let epoch = match size {
            0 => ledger_core::Epoch::default(),
            size if size == self.head.frontier.size() => self.head.epoch,
            size => pages::one(self.rows, self.context, self.place, self.head, Sequence(size))?.epoch,
        };
        Ok(Position { size: Size(size), root: self.root(size)?, epoch, lineage: self.head.lineage })
    }
}

/// Returns the position of a history at an earlier size.
pub(crate) fn position_at(
    db: &Db,
    context: &ContextId,
    place: RowLocation,
    head: &Head,
    size: Size,
) -> Result<Position, StoreError> {
    let mut tiles = Tiles::new(db, context, place, head);
    let size = tiles.size(Some(size))?;
    tiles.position(size)
}

/// Returns the roots of the history that a head describes, at rising sizes, as far as the history goes.
pub(crate) fn roots_at(
    rows: &impl Rows,
    context: &ContextId,
    place: RowLocation,
    head: &Head,
    sizes: &[Size],
) -> Result<Vec<Hash>, StoreError> {
    let mut tiles = Tiles::new(rows, context, place, head);
    let known = sizes.iter().take_while(|size| **size <= head.size());
    known.map(|size| tiles.root(size.0)).collect()
}

/// Returns the frontier of the history that a head describes, at an earlier size.
pub(crate) fn frontier_at(
    db: &Db,
    context: &ContextId,
    place: RowLocation,
    head: &Head,
    size: Size,
) -> Result<Frontier, StoreError> {
    let mut tiles = Tiles::new(db, context, place, head);
    with_suite!(head.suite, H => reader::frontier_at::<H, _>(&mut tiles, size.0)).map_err(|e| tiles.failed(e))
}

/// Returns a context's position at a size.
pub(crate) fn checkpoint(
    db: &Db,
    context: &ContextId,
    size: Option<Size>,
    suite: HashSuite,
) -> Result<Checkpointed, StoreError> {
    if size.is_none_or(|size| size.0 == 0) && db.head(context)?.is_none() {
        // An unknown context reads as empty.
        let empty = Head::new(suite, Lineage([0; 16]), 0);
        return Ok(Checkpointed { position: empty.position(), lamport: empty.lamport, suite });
    }
    with_tiles(db, context, |tiles| {
        let size = tiles.size(size)?;
        Ok(Checkpointed {
            position: tiles.position(size)?,
            lamport: tiles.head.lamport,
            suite: tiles.head.suite,
        })
    })
}

/// Proves that an entry is in the tree of a size.
pub(crate) fn inclusion(
    db: &Db,
    context: &ContextId,
    sequence: Sequence,
    size: Option<Size>,
) -> Result<ProvenInclusion, StoreError> {
    with_tiles(db, context, |tiles| {
        let size = tiles.size(size)?;
        let index = sequence
            .leaf_index()
            .filter(|index| *index < size)
            .ok_or_else(|| out_of_range(context, size, format!("sequence {sequence}")))?;
        let suite = tiles.head.suite;
        let root = tiles.root(size)?;
        let proof = with_suite!(suite, H => inclusion_proof::<H, _>(tiles, index, size))
            .map_err(|e| tiles.failed(e))?;
        let entry = pages::one(db, context, tiles.place, tiles.head, sequence)?;
        let content_hash = entry.content_hash;
        // Verify the proof first: a wrong one must never be returned.
        proof
            .verify_in(suite, &content_hash, &root)
            .map_err(|error| damaged(context, sequence, &error.to_string()))?;
        Ok(ProvenInclusion { proof, content_hash, root, suite })
    })
}

/// Proves that one size's tree is a prefix of another's.
pub(crate) fn consistency(
    db: &Db,
    context: &ContextId,
    old: Size,
    new: Option<Size>,
) -> Result<ProvenConsistency, StoreError> {
    with_tiles(db, context, |tiles| {
        let new_size = tiles.size(new)?;
        let old_size = tiles.size(Some(old))?;
        let suite = tiles.head.suite;
        let proof = with_suite!(suite, H => consistency_proof::<H, _>(tiles, old_size, new_size))
            .map_err(|e| tiles.failed(e))?;
        let (old_root, new_root) = (tiles.root(old_size)?, tiles.root(new_size)?);
        proof
            .verify_in(suite, &old_root, &new_root)
            .map_err(|error| damaged(context, Sequence(0), &error.to_string()))?;
        Ok(ProvenConsistency { proof, old_root, new_root, suite })
    })
}

/// Fails unless the context's history passes through `position`.
pub(crate) fn check_position(
    db: &Db,
    context: &ContextId,
    position: &Position,
    suite: HashSuite,
) -> Result<(), StoreError> {
    let changed = || StoreError::HistoryChanged { context: context.clone(), size: position.size.0 };
    match checkpoint(db, context, Some(position.size), suite) {
        Ok(ours) if ours.position.root == position.root && ours.position.lineage == position.lineage => {
            Ok(())
        }
        Ok(_) | Err(StoreError::OutOfRange { .. }) => Err(changed()),
        Err(error) => Err(error),
    }
}
