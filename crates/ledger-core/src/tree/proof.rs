//! Inclusion and consistency proofs (RFC 9162 §2.1.3 and §2.1.4), and their verification.
//!
//! Both verifiers climb from a node to the root, one level at a time. With `node` the place of the
//! current node in its level and `last` that of the level's last node:
//!
//! | node | its sibling is | the proof has |
//! | --- | --- | --- |
//! | odd | to the left | its hash |
//! | even, before `last` | to the right | its hash |
//! | even, equal to `last` | missing: the node moves up as it is | nothing |
//!
//! That is at most 64 steps whatever the input. Hashes too few or too many are errors.

use crate::{Hash, HashSuite, hash::Hasher, with_suite};

/// Why a proof does not prove the statement that a verifier checks it against.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// There is no such leaf.
    #[error("the proof is for leaf {index}, but a tree of {size} leaves has none at that index")]
    NoSuchLeaf {
        /// The leaf's index, from 0.
        index: u64,
        /// Number of leaves.
        size: u64,
    },
    /// A later tree cannot be smaller.
    #[error(
        "the proof is from {old_size} leaves to {new_size}: a tree that is only appended to never shrinks"
    )]
    Shrinks {
        /// Leaves of the earlier tree.
        old_size: u64,
        /// Leaves of the later tree.
        new_size: u64,
    },
    /// A hash is missing.
    #[error("the proof is too short: it has {hashes} hashes, and its sizes ask for more")]
    TooShort {
        /// Hashes in the proof.
        hashes: usize,
    },
    /// A hash is left over.
    #[error("the proof is too long: it has {hashes} hashes, and its sizes ask for {needed}")]
    TooLong {
        /// Hashes in the proof.
        hashes: usize,
        /// Hashes it should have.
        needed: usize,
    },
    /// The proof gives another root for the tree (of a consistency proof: the later one).
    #[error("the proof gives root {computed}, not {expected}: the data, the proof or the root was changed")]
    Root {
        /// The root that the verifier knows.
        expected: Hash,
        /// The root the proof gives.
        computed: Hash,
    },
    /// The proof gives another root for the earlier tree.
    #[error(
        "the proof gives the earlier root {computed}, not {expected}: the later tree does not continue it"
    )]
    OldRoot {
        /// The root that the verifier knows.
        expected: Hash,
        /// The root the proof gives.
        computed: Hash,
    },
}

/// A proof that a leaf is in a tree: the hashes beside its way up to the root (RFC 9162 §2.1.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InclusionProof {
    /// The leaf's index: 0 for the entry with sequence 1.
    pub index: u64,
    /// Leaves of the tree.
    pub size: u64,
    /// Hashes of the siblings, the lowest first.
    pub hashes: Vec<Hash>,
}

impl InclusionProof {
    /// Checks that `data` (an entry's content hash) is the leaf at `index` of the tree of `size` leaves
    /// with this root (RFC 9162 §2.1.3.2).
    ///
    /// Size and root belong together and must come from one trusted statement, such as a checkpoint: a
    /// proof does not show that the size is the root's, only that the leaf is where the size puts it.
    ///
    /// # Errors
    ///
    /// [`ProofError::NoSuchLeaf`] if the index is not below the size; [`ProofError::TooShort`] or [`ProofError::TooLong`] if the
    /// number of hashes does not fit the sizes; [`ProofError::Root`] if the proof gives another root.
    pub fn verify<H: Hasher>(&self, data: &Hash, root: &Hash) -> Result<(), ProofError> {
        self.verify_leaf::<H>(H::leaf(data), root)
    }

    /// Does what [`InclusionProof::verify`] does, with the suite known at run time.
    ///
    /// # Errors
    ///
    /// As [`InclusionProof::verify`].
    pub fn verify_in(&self, suite: HashSuite, data: &Hash, root: &Hash) -> Result<(), ProofError> {
        with_suite!(suite, H => self.verify::<H>(data, root))
    }

    /// Does what [`InclusionProof::verify`] does, for the hash of a leaf instead of its data.
    pub(super) fn verify_leaf<H: Hasher>(&self, leaf: Hash, root: &Hash) -> Result<(), ProofError> {
        if self.index >= self.size {
            return Err(ProofError::NoSuchLeaf { index: self.index, size: self.size });
        }
        let mut hashes = Hashes::new(&self.hashes);
        let mut hash = leaf;
        let (mut node, mut last) = (self.index, self.size - 1);
        while last > 0 {
            if node % 2 == 1 {
                hash = H::node(hashes.take()?, &hash);
            } else if node < last {
                hash = H::node(&hash, hashes.take()?);
            }
            node /= 2;
            last /= 2;
        }
        hashes.finish()?;
        same_root(root, hash)
    }
}

/// A proof that a tree continues an earlier one, so that nobody changed, removed or moved a leaf before `old_size` (RFC 9162
/// §2.1.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsistencyProof {
    /// Leaves of the earlier tree.
    pub old_size: u64,
    /// Leaves of the later tree.
    pub new_size: u64,
    /// The hashes, the lowest first. Empty if the earlier tree is empty or the sizes are equal.
    pub hashes: Vec<Hash>,
}

impl ConsistencyProof {
    /// Checks that the tree of `new_size` leaves with `new_root` begins with all of the tree of `old_size`
    /// leaves with `old_root` (RFC 9162 §2.1.4.2). The empty tree begins every tree.
    ///
    /// As with [`InclusionProof::verify`], each size must come with its root from one trusted statement.
    ///
    /// # Errors
    ///
    /// [`ProofError::Shrinks`] if the earlier tree is larger than the later one; [`ProofError::TooShort`] or
    /// [`ProofError::TooLong`] if the number of hashes does not fit the sizes; [`ProofError::Root`] or [`ProofError::OldRoot`]
    /// if the proof gives another root for the later or the earlier tree.
    pub fn verify<H: Hasher>(&self, old_root: &Hash, new_root: &Hash) -> Result<(), ProofError> {
        let Self { old_size, new_size, .. } = *self;
        if old_size > new_size {
            return Err(ProofError::Shrinks { old_size, new_size });
        }
        let mut hashes = Hashes::new(&self.hashes);
        if old_size == 0 {
            hashes.finish()?;
            same_old_root(old_root, H::empty_root())?;
            return if new_size == 0 { same_root(new_root, H::empty_root()) } else { Ok(()) };
        }
        if old_size == new_size {
            hashes.finish()?;
            return same_root(new_root, *old_root);
        }

        // The climb begins at the last full subtree of the earlier tree. If that is all of the earlier
        // tree, its hash is the earlier root, and the proof leaves it out.
        let skipped = (old_size - 1).trailing_ones();
        let (mut node, mut last) = ((old_size - 1) >> skipped, (new_size - 1) >> skipped);
        let mut old = if node == 0 { *old_root } else { *hashes.take()? };
        let mut new = old;
        while last > 0 {
            if node % 2 == 1 {
                let left = hashes.take()?;
                old = H::node(left, &old);
                new = H::node(left, &new);
            } else if node < last {
                new = H::node(&new, hashes.take()?);
            }
            node /= 2;
            last /= 2;
        }
        hashes.finish()?;
        same_old_root(old_root, old)?;
        same_root(new_root, new)
    }

    /// Does what [`ConsistencyProof::verify`] does, with the suite known at run time.
    ///
    /// # Errors
    ///
    /// As [`ConsistencyProof::verify`].
    pub fn verify_in(&self, suite: HashSuite, old_root: &Hash, new_root: &Hash) -> Result<(), ProofError> {
        with_suite!(suite, H => self.verify::<H>(old_root, new_root))
    }
}

/// The hashes of a proof, taken one by one and all of them.
struct Hashes<'a> {
    all: &'a [Hash],
    taken: usize,
}

impl<'a> Hashes<'a> {
    fn new(all: &'a [Hash]) -> Self {
        Self { all, taken: 0 }
    }

    fn take(&mut self) -> Result<&'a Hash, ProofError> {
        let hash = self.all.get(self.taken).ok_or(ProofError::TooShort { hashes: self.all.len() })?;
        self.taken += 1;
        Ok(hash)
    }

    fn finish(&self) -> Result<(), ProofError> {
        if self.taken < self.all.len() {
            return Err(ProofError::TooLong { hashes: self.all.len(), needed: self.taken });
        }
        Ok(())
    }
}

fn same_root(expected: &Hash, computed: Hash) -> Result<(), ProofError> {
    if computed == *expected { Ok(()) } else { Err(ProofError::Root { expected: *expected, computed }) }
}

fn same_old_root(expected: &Hash, computed: Hash) -> Result<(), ProofError> {
    if computed == *expected { Ok(()) } else { Err(ProofError::OldRoot { expected: *expected, computed }) }
}
