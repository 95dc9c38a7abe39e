//! Tiles: the tree cut into pieces of 256 hashes, as tlog-tiles does (<https://c2sp.org/tlog-tiles>,
//! height 8).
//!
//! Level 0 holds leaf hashes; level *n* holds the roots of the full tiles of level *n* − 1. The last
//! tile of a level may be partial.

use crate::{Hash, hash::Hasher};

use super::Frontier;

/// Height of a tile: it spans this many levels of the tree.
pub const TILE_HEIGHT: u32 = 8;
/// Hashes of a full tile.
pub const TILE_WIDTH: usize = 1 << TILE_HEIGHT;
/// More levels than a tree of [`MAX_SEQUENCE`](crate::limits::MAX_SEQUENCE) leaves can have.
pub const MAX_LEVELS: u8 = 8;

/// A tile's place in a tree: its level, and its index from the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TileId {
    /// 0: leaf hashes; *n*: roots of the full tiles of level *n* − 1.
    pub level: u8,
    /// From the left, 0 first.
    pub index: u64,
}

impl TileId {
    /// Returns how many hashes this tile has in a tree of `size` leaves: 0 to 256.
    pub const fn width_in(self, size: u64) -> usize {
        // Not `index << 8`: an index from outside may be any number.
        let at_level = count_at(size, self.level);
        let full = at_level >> TILE_HEIGHT;
        if self.index < full {
            TILE_WIDTH
        } else if self.index == full {
            (at_level % TILE_WIDTH as u64) as usize
        } else {
            0
        }
    }
}

/// Returns how many hashes all tiles of a level have together in a tree of `size` leaves.
const fn count_at(size: u64, level: u8) -> u64 {
    if level < MAX_LEVELS { size >> (TILE_HEIGHT * level as u32) } else { 0 }
}

/// A tile's hashes, 1 to 256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tile(Vec<Hash>);

impl Tile {
    /// Makes a tile of 1 to 256 hashes.
    pub fn new(hashes: Vec<Hash>) -> Option<Self> {
        (1..=TILE_WIDTH).contains(&hashes.len()).then_some(Self(hashes))
    }

    /// Decodes the hashes, 32 bytes each, one after the other.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > TILE_WIDTH * 32 || !bytes.len().is_multiple_of(32) {
            return None;
        }
        Self::new(bytes.chunks_exact(32).filter_map(Hash::from_slice).collect())
    }

    /// Returns the hashes one after the other, 32 bytes each.
    pub fn encode(&self) -> Vec<u8> {
        encode_hashes(&self.0)
    }

    /// Returns the hashes from the left.
    pub fn hashes(&self) -> &[Hash] {
        &self.0
    }
}

/// Hashes one after the other, 32 bytes each.
pub fn encode_hashes(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The partial tile of each level: what a writer keeps of a growing tree beside its [`Frontier`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RightEdge {
    levels: Vec<Vec<Hash>>,
}

impl RightEdge {
    /// Makes the right edge of a tree of `size` leaves, with the partial tile of each level, level 0 first. Checks it against
    /// the frontier: `None` if any width or hash does not fit.
    pub fn restore<H: Hasher>(frontier: &Frontier, levels: Vec<Vec<Hash>>) -> Option<Self> {
        let size = frontier.size();
        let fits = levels.len() == Self::levels_of(size)
            && levels
                .iter()
                .enumerate()
                .all(|(level, hashes)| hashes.len() == Self::width_of(size, level as u8));
        let edge = Self { levels };
        (fits && edge.peaks::<H>() == frontier.peaks()).then_some(edge)
    }

    /// Returns how many levels a tree of `size` leaves has tiles at.
    pub const fn levels_of(size: u64) -> usize {
        let bits = u64::BITS - size.leading_zeros();
        bits.div_ceil(TILE_HEIGHT) as usize
    }

    /// Returns the partial tile of a level in a tree of `size` leaves.
    pub const fn partial(size: u64, level: u8) -> TileId {
        TileId { level, index: count_at(size, level) >> TILE_HEIGHT }
    }

    /// Returns how many hashes the partial tile of a level has: 0 to 255.
    pub const fn width_of(size: u64, level: u8) -> usize {
        Self::partial(size, level).width_in(size)
    }

    /// Records that a full subtree was completed; call it from [`Frontier::push`]. Calls
    /// `write(tile, hashes)` for each tile to be stored: of level 0 when full, of the others whenever
    /// they change. `size` is the number of leaves including the one being pushed, so never 0.
    pub fn completed(&mut self, size: u64, height: u32, hash: Hash, write: &mut impl FnMut(TileId, &[Hash])) {
        if !height.is_multiple_of(TILE_HEIGHT) {
            return;
        }
        let level = (height / TILE_HEIGHT) as usize;
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Vec::new);
        }
        let hashes = &mut self.levels[level];
        hashes.push(hash);
        let full = hashes.len() == TILE_WIDTH;
        if full || level > 0 {
            let count = size >> (TILE_HEIGHT * level as u32);
            write(TileId { level: level as u8, index: count.saturating_sub(1) >> TILE_HEIGHT }, hashes);
        }
        if full {
            hashes.clear();
        }
    }

    /// Returns the leaf hashes of the partial tile of level 0.
    pub fn leaves(&self) -> &[Hash] {
        self.levels.first().map_or(&[], Vec::as_slice)
    }

    /// Returns how many bytes of memory this holds, for cache weights.
    pub fn weight(&self) -> usize {
        self.levels.iter().map(|level| 24 + level.capacity() * 32).sum()
    }

    /// Returns the frontier's peaks as the partial tiles give them, largest first.
    fn peaks<H: Hasher>(&self) -> Vec<Hash> {
        let mut peaks = Vec::new();
        for hashes in self.levels.iter().rev() {
            let mut rest = hashes.as_slice();
            while !rest.is_empty() {
                let largest = 1 << rest.len().ilog2();
                let (subtree, tail) = rest.split_at(largest);
                peaks.push(full_subtree::<H>(subtree));
                rest = tail;
            }
        }
        peaks
    }
}

/// Returns the root of a full subtree over `hashes`, whose number is a power of two.
pub(crate) fn full_subtree<H: Hasher>(hashes: &[Hash]) -> Hash {
    if let [one] = hashes {
        return *one;
    }
    let (left, right) = hashes.split_at(hashes.len() / 2);
    H::node(&full_subtree::<H>(left), &full_subtree::<H>(right))
}
