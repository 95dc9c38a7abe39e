//! The frontier: all of a tree that appending needs.

use super::InclusionProof;
use crate::{Hash, hash::Hasher};

/// The roots of the full subtrees on the tree's right edge, largest first: one for each one-bit of the
/// size. Appending costs O(1) amortised hashes, the root O(log n); nothing is ever rebuilt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    pub(super) size: u64,
    pub(super) peaks: Vec<Hash>,
}

impl Frontier {
    /// Makes the frontier of a size, from its peaks; `None` if their number does not fit the size.
    pub fn from_peaks(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (size.count_ones() as usize == peaks.len()).then_some(Self { size, peaks })
    }

    /// Makes the frontier of a tree, from the inclusion proof of its last leaf: the hashes beside the way of the last leaf to
    /// the root are all peaks but the last one, and what the last one is made of. `None` if the proof is of another leaf, or
    /// does not have as many hashes.
    ///
    /// Made from a claim, it is a claim. Once leaves were appended and the root is a trusted one, all of it is
    /// proven: no other peaks and leaves give that root at that size.
    pub fn of_last_leaf<H: Hasher>(proof: &InclusionProof, data: &Hash) -> Option<Self> {
        if proof.index.checked_add(1)? != proof.size {
            return None;
        }
        let (own, others) = proof.hashes.split_at_checked(proof.size.trailing_zeros() as usize)?;
        let last = own.iter().fold(H::leaf(data), |right, left| H::node(left, &right));
        let peaks = others.iter().rev().copied().chain([last]).collect();
        Self::from_peaks(proof.size, peaks)
    }

    /// Returns the number of leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the full subtrees' roots, largest first.
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

    /// Returns the root: the peaks folded from the right (RFC 9162 §2.1.1).
    pub fn root<H: Hasher>(&self) -> Hash {
        self.peaks
            .iter()
            .rev()
            .copied()
            .reduce(|right, left| H::node(&left, &right))
            .unwrap_or_else(H::empty_root)
    }
}
