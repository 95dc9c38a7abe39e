//! The tree against the definitions of RFC 9162 §2.1, written as they stand there.

mod edge;
mod proofs;
mod vectors;

use std::collections::{BTreeMap, BTreeSet};

use super::{reader::*, tile::*, *};
use crate::{Hash, hash::Hasher};

/// MTH (§2.1.1), over leaf hashes.
fn mth<H: Hasher>(d: &[Hash]) -> Hash {
    match d {
        [] => H::empty_root(),
        [leaf] => *leaf,
        _ => {
            let k = split(d.len());
            H::node(&mth::<H>(&d[..k]), &mth::<H>(&d[k..]))
        }
    }
}

/// PATH (§2.1.3.1).
fn path<H: Hasher>(m: usize, d: &[Hash]) -> Vec<Hash> {
    if d.len() == 1 {
        return vec![];
    }
    let k = split(d.len());
    if m < k {
        [path::<H>(m, &d[..k]), vec![mth::<H>(&d[k..])]].concat()
    } else {
        [path::<H>(m - k, &d[k..]), vec![mth::<H>(&d[..k])]].concat()
    }
}

/// PROOF (§2.1.4.1).
fn proof<H: Hasher>(m: usize, d: &[Hash]) -> Vec<Hash> {
    subproof::<H>(m, d, true)
}

fn subproof<H: Hasher>(m: usize, d: &[Hash], b: bool) -> Vec<Hash> {
    if m == d.len() {
        return if b { vec![] } else { vec![mth::<H>(d)] };
    }
    let k = split(d.len());
    if m <= k {
        [subproof::<H>(m, &d[..k], b), vec![mth::<H>(&d[k..])]].concat()
    } else {
        [subproof::<H>(m - k, &d[k..], false), vec![mth::<H>(&d[..k])]].concat()
    }
}

/// The largest power of two smaller than `n`.
fn split(n: usize) -> usize {
    n.next_power_of_two() / 2
}

fn data(n: usize) -> Vec<Hash> {
    (0..n as u64).map(|i| crate::hash::Blake3::digest(&i.to_be_bytes())).collect()
}

fn leaves<H: Hasher>(n: usize) -> Vec<Hash> {
    data(n).iter().map(H::leaf).collect()
}

/// A tree as a store has it: full tiles of level 0, all tiles of the others, and the leaves.
#[derive(Debug, Default, Clone, PartialEq)]
struct Stored {
    leaves: Vec<Hash>,
    frontier: Frontier,
    edge: RightEdge,
    tiles: BTreeMap<TileId, Vec<Hash>>,
    read: Vec<TileId>,
    /// Whether the frontier is at hand, as in a store with the context's head.
    has_head: bool,
}

impl Stored {
    fn of<H: Hasher>(leaves: &[Hash]) -> Self {
        let mut stored = Self::default();
        for leaf in leaves {
            stored.push::<H>(*leaf);
        }
        stored
    }

    fn push<H: Hasher>(&mut self, leaf: Hash) {
        self.leaves.push(leaf);
        let Self { frontier, edge, tiles, .. } = self;
        let size = frontier.size() + 1;
        frontier.push::<H>(leaf, |height, hash| {
            edge.completed(size, height, hash, &mut |tile, hashes| {
                assert!(tile.level > 0 || hashes.len() == TILE_WIDTH, "level 0 is stored when full");
                assert_eq!(tile.width_in(size), hashes.len());
                tiles.insert(tile, hashes.to_vec());
            });
        });
    }

    /// The partial tile of each level, as a store reads them to resume.
    fn levels(&self) -> Vec<Vec<Hash>> {
        let size = self.frontier.size();
        let level = |level: usize| {
            let tile = RightEdge::partial(size, level as u8);
            match tile.width_in(size) {
                0 => vec![],
                width if level == 0 => self.leaves[self.leaves.len() - width..].to_vec(),
                width => self.tiles[&tile][..width].to_vec(),
            }
        };
        (0..RightEdge::levels_of(size)).map(level).collect()
    }

    fn read_each_tile_once(&mut self) -> usize {
        let read = std::mem::take(&mut self.read);
        assert_eq!(read.iter().collect::<BTreeSet<_>>().len(), read.len(), "{read:?}");
        read.len()
    }
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("tile {0:?} is not stored")]
struct NotStored(TileId);

impl TileReader for Stored {
    type Error = NotStored;

    fn tile(&mut self, tile: TileId, width: usize) -> Result<Tile, NotStored> {
        assert!((1..=TILE_WIDTH).contains(&width));
        self.read.push(tile);
        if let Some(hashes) = self.tiles.get(&tile) {
            return Tile::new(hashes.clone()).ok_or(NotStored(tile));
        }
        let start = (tile.index as usize) << TILE_HEIGHT;
        let leaves = self.leaves.get(start..start + width).filter(|_| tile.level == 0 && width < TILE_WIDTH);
        Tile::new(leaves.unwrap_or_default().to_vec()).ok_or(NotStored(tile))
    }

    fn frontier(&mut self, size: u64) -> Option<Frontier> {
        Some(self.frontier.clone()).filter(|frontier| self.has_head && frontier.size() == size)
    }
}
