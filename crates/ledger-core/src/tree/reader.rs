//! Roots and proofs at any size the tree ever had, from tiles.
//!
//! A node of the tree is named by its height and its place in the level of that height; its hash covers
//! the leaves from `place << height` up to the next node, or to the end of the tree. Such a range is one
//! full subtree, or on the tree's right edge a few of them, and a full subtree of height *h* is one of
//! 2^(h mod 8) hashes in a tile of level ⌊h / 8⌋. What a proof needs never overlaps, so no hash is
//! computed twice; each tile is read once.

use crate::{Hash, hash::Hasher, limits::MAX_SEQUENCE};

use super::{
    ConsistencyProof, Frontier, InclusionProof, Tile, TileId,
    tile::{TILE_HEIGHT, TILE_WIDTH, full_subtree},
};

/// Reads the stored tiles of a tree.
pub trait TileReader {
    /// Why reading failed.
    type Error;

    /// Reads the first `width` hashes (1 to 256) of a tile. A tile that is longer because the tree has
    /// grown since is as good: the first `width` of it are taken.
    ///
    /// A partial tile of level 0 (`width` below 256) is asked for only when nothing else will do.
    ///
    /// # Errors
    ///
    /// The reader's own error, if it cannot read the tile.
    fn tile(&mut self, tile: TileId, width: usize) -> Result<Tile, Self::Error>;

    /// Returns the frontier of the tree of `size` leaves, if it is at hand: that of the newest size is in the context's head.
    /// It spares the reading and hashing of the tree's right edge.
    fn frontier(&mut self, size: u64) -> Option<Frontier> {
        _ = size;
        None
    }
}

/// Why a root or a proof could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError<E> {
    /// The reader failed.
    #[error(transparent)]
    Tile(#[from] E),
    /// The reader returned fewer hashes than the tree has.
    #[error(
        "tile {index} of level {level} has {actual} hashes where {needed} are needed: the stored tree is incomplete; \
         rebuild its tiles from the entries",
        index = .tile.index,
        level = .tile.level
    )]
    Missing {
        /// The tile.
        tile: TileId,
        /// The number of hashes that the tree has there.
        needed: usize,
        /// The number of hashes that the reader returned.
        actual: usize,
    },
    /// There is no such leaf in the tree of this size.
    #[error("there is no leaf {index} in a tree of {size} leaves: ask for an index below the size")]
    NoSuchLeaf {
        /// The index asked for, from 0.
        index: u64,
        /// The size asked for.
        size: u64,
    },
    /// The earlier tree is larger than the later one.
    #[error(
        "there is no proof from {old_size} leaves to {new_size}: the earlier size must not be the larger"
    )]
    Shrinks {
        /// The earlier size asked for.
        old_size: u64,
        /// The later size asked for.
        new_size: u64,
    },
    /// No tree is that large.
    #[error("a size of {size} leaves is more than the {MAX_SEQUENCE} a context can have")]
    TooLarge {
        /// The size asked for.
        size: u64,
    },
}

/// Returns the root of the tree when it had `size` leaves.
///
/// The reader must know at least that many leaves.
///
/// # Errors
///
/// [`ReadError::Tile`] if the reader failed; [`ReadError::Missing`] if a tile has fewer hashes than the tree has there;
/// [`ReadError::TooLarge`] if no context can have that size.
pub fn root_at<H: Hasher, R: TileReader>(reader: &mut R, size: u64) -> Result<Hash, ReadError<R::Error>> {
    Ok(frontier_at::<H, R>(reader, size)?.root::<H>())
}

/// Returns the frontier of the tree when it had `size` leaves.
///
/// # Errors
///
/// As [`root_at`].
pub fn frontier_at<H: Hasher, R: TileReader>(
    reader: &mut R,
    size: u64,
) -> Result<Frontier, ReadError<R::Error>> {
    let mut tree = Tree::at(reader, size)?;
    let mut peaks = Vec::with_capacity(size.count_ones() as usize);
    tree.full_subtrees::<H>(0, size, |peak| peaks.push(peak))?;
    Ok(Frontier { size, peaks })
}

/// Returns the proof that leaf `index` (from 0) is in the tree of `size` leaves (RFC 9162 §2.1.3.1).
///
/// # Errors
///
/// As [`root_at`]; [`ReadError::NoSuchLeaf`] if the index is not below the size.
pub fn inclusion_proof<H: Hasher, R: TileReader>(
    reader: &mut R,
    index: u64,
    size: u64,
) -> Result<InclusionProof, ReadError<R::Error>> {
    let mut tree = Tree::at(reader, size)?;
    if index >= size {
        return Err(ReadError::NoSuchLeaf { index, size });
    }
    let mut hashes = Vec::new();
    tree.siblings::<H>(0, index, &mut hashes)?;
    Ok(InclusionProof { index, size, hashes })
}

/// Returns the proof that the tree of `new_size` leaves begins with the tree of `old_size` leaves (RFC 9162 §2.1.4.1).
///
/// # Errors
///
/// As [`root_at`]; [`ReadError::Shrinks`] if the earlier size is larger than the later one.
pub fn consistency_proof<H: Hasher, R: TileReader>(
    reader: &mut R,
    old_size: u64,
    new_size: u64,
) -> Result<ConsistencyProof, ReadError<R::Error>> {
    let mut tree = Tree::at(reader, new_size)?;
    if old_size > new_size {
        return Err(ReadError::Shrinks { old_size, new_size });
    }
    let mut hashes = Vec::new();
    if old_size > 0 && old_size < new_size {
        // As in verification: from the last full subtree of the earlier tree, which is left out if it is
        // all of the earlier tree.
        let height = (old_size - 1).trailing_ones();
        let node = (old_size - 1) >> height;
        if node > 0 {
            hashes.push(tree.node::<H>(height, node)?);
        }
        tree.siblings::<H>(height, node, &mut hashes)?;
    }
    Ok(ConsistencyProof { old_size, new_size, hashes })
}

/// The tree at one size, and the tiles read of it so far.
struct Tree<'a, R> {
    reader: &'a mut R,
    size: u64,
    frontier: Option<Frontier>,
    // Few enough (two per level at most) to be searched one by one.
    tiles: Vec<(TileId, Tile)>,
}

impl<'a, R: TileReader> Tree<'a, R> {
    fn at(reader: &'a mut R, size: u64) -> Result<Self, ReadError<R::Error>> {
        if size > MAX_SEQUENCE {
            return Err(ReadError::TooLarge { size });
        }
        let frontier = reader.frontier(size).filter(|frontier| frontier.size() == size);
        Ok(Self { reader, size, frontier, tiles: Vec::new() })
    }

    /// Appends the hashes of the siblings on the way from a node to the root, the lowest first.
    fn siblings<H: Hasher>(
        &mut self,
        height: u32,
        node: u64,
        hashes: &mut Vec<Hash>,
    ) -> Result<(), ReadError<R::Error>> {
        let (mut height, mut node) = (height, node);
        loop {
            let last = (self.size - 1) >> height;
            if last == 0 {
                return Ok(());
            }
            let sibling = node ^ 1;
            if sibling <= last {
                hashes.push(self.node::<H>(height, sibling)?);
            }
            node /= 2;
            height += 1;
        }
    }

    /// Returns the hash of a node, which must begin before the tree's end.
    fn node<H: Hasher>(&mut self, height: u32, node: u64) -> Result<Hash, ReadError<R::Error>> {
        let begin = node << height;
        let end = self.size.min((node + 1) << height);
        let mut subtrees = Frontier { size: end - begin, peaks: Vec::new() };
        self.full_subtrees::<H>(begin, end, |peak| subtrees.peaks.push(peak))?;
        Ok(subtrees.root::<H>())
    }

    /// Returns the roots of the full subtrees that make up the leaves from `begin` (where a subtree of at least that size
    /// begins) to `end`, the largest first.
    fn full_subtrees<H: Hasher>(
        &mut self,
        begin: u64,
        end: u64,
        mut each: impl FnMut(Hash),
    ) -> Result<(), ReadError<R::Error>> {
        let mut begin = begin;
        while begin < end {
            let height = (end - begin).ilog2();
            each(self.full_subtree::<H>(height, begin >> height)?);
            begin += 1 << height;
        }
        Ok(())
    }

    /// Returns the root of the full subtree of a height at a place in the level of that height.
    fn full_subtree<H: Hasher>(&mut self, height: u32, node: u64) -> Result<Hash, ReadError<R::Error>> {
        if let Some(peak) = self.peak(height, node) {
            return Ok(peak);
        }
        let level = height / TILE_HEIGHT;
        let height_in_tile = height % TILE_HEIGHT;
        let first = node << height_in_tile;
        let tile = TileId { level: level as u8, index: first >> TILE_HEIGHT };
        let start = (first % TILE_WIDTH as u64) as usize;
        let hashes = self.tile(tile)?;
        Ok(full_subtree::<H>(&hashes[start..start + (1 << height_in_tile)]))
    }

    /// Returns the root of a full subtree if it is one of the tree's peaks, and they are known: for each one-bit of the size,
    /// the last subtree of that height.
    fn peak(&self, height: u32, node: u64) -> Option<Hash> {
        let frontier = self.frontier.as_ref()?;
        let subtrees = self.size >> height;
        let is_peak = subtrees % 2 == 1 && node == subtrees - 1;
        let larger = (subtrees / 2).count_ones() as usize;
        frontier.peaks().get(larger).copied().filter(|_| is_peak)
    }

    /// Returns the hashes of a tile: exactly as many as the tree has there.
    fn tile(&mut self, tile: TileId) -> Result<&[Hash], ReadError<R::Error>> {
        let needed = tile.width_in(self.size);
        let at = if let Some(at) = self.tiles.iter().position(|(id, _)| *id == tile) {
            at
        } else {
            let read = self.reader.tile(tile, needed)?;
            let actual = read.hashes().len();
            if actual < needed {
                return Err(ReadError::Missing { tile, needed, actual });
            }
            self.tiles.push((tile, read));
            self.tiles.len() - 1
        };
        Ok(&self.tiles[at].1.hashes()[..needed])
    }
}
