//! The frontier: all of a tree that appending needs.

use crate::{Hash, hash::Hasher};

/// The roots of the full subtrees on the tree's right edge, largest first: one for each one-bit of the
/// size. Appending costs O(1) amortised hashes, the root O(log n); nothing is ever rebuilt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    pub(super) size: u64,
    pub(super) peaks: Vec<Hash>,
}

impl Frontier {
    /// The frontier of a size, from its peaks; `None` if their number does not fit the size.
    pub fn from_peaks(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (size.count_ones() as usize == peaks.len()).then_some(Self { size, peaks })
    }

    /// Number of leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The full subtrees' roots, largest first.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Appends a leaf hash. Calls `completed(height, hash)` for each full subtree this completes,
    /// the leaf itself (height 0) first.
    pub fn push<H: Hasher>(&mut self, leaf: Hash, mut completed: impl FnMut(u32, Hash)) {
        let mut hash = leaf;
        completed(0, hash);
        for height in 1..=self.size.trailing_ones() {
            // The invariant (one peak per one-bit) says there is one; a default is never used.
            let left = self.peaks.pop().unwrap_or(hash);
            hash = H::node(&left, &hash);
            completed(height, hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// The root: the peaks folded from the right (RFC 9162 §2.1.1).
    pub fn root<H: Hasher>(&self) -> Hash {
        self.peaks
            .iter()
            .rev()
            .copied()
            .reduce(|right, left| H::node(&left, &right))
            .unwrap_or_else(H::empty_root)
    }
}
