//! Digests: whether two nodes hold the same, in a few bytes.
//!
//! | digest | of | size |
//! | --- | --- | --- |
//! | [`NodeDigest`] | the slots that two nodes share | 32 bytes |
//! | [`SlotDigest`] | a slot: its [`Digest`], and that of each of its 256 [`Bucket`]s | 40 bytes, and 40 each |
//! | [`Digest`] | a set of contexts, by id, size and root | 40 bytes |
//!
//! A [`Digest`] is `AdHash`: the sum modulo 2^256 of a hash of every element (Bellare and Micciancio, "A new
//! paradigm for collision-free hashing: incrementality at reduced cost", Eurocrypt 1997; for sets: Clarke
//! et al., "Incremental multiset hash functions and their application to memory integrity checking",
//! Asiacrypt 2003). So an append changes it by one subtraction and one addition, whatever the slot holds,
//! and the order of changes does not matter.
//!
//! What it is good for: two honest nodes whose contexts differ have equal digests with a chance of 2^-256.
//! What it is not: a commitment. Who chooses many elements can find two sets of equal sum far below 2^128
//! steps (Wagner, "A generalized birthday problem", Crypto 2002, gives about 2^32 at this modulus), the key is
//! no secret, and a peer that lies about its digest needs no collision at all. It finds differences between
//! nodes that trust each other. What a context holds is proved by its Merkle root, which is checked
//! whenever entries are taken, never by a digest.
//!
//! The lineage is not in it: it names a history, and says nothing about what is in it.

use std::{collections::BTreeMap, fmt};

use crate::{ContextId, Epoch, Hash, Size, slot::Slot};

#[cfg(test)]
mod tests;

/// Number of buckets of a slot.
pub const BUCKETS: usize = 256;

// Keys separate these hashes from all others of the ledger; they are no secret.
const ELEMENT_KEY: &[u8; 32] = b"converge-ledger context digest 1";
const NODE_KEY: &[u8; 32] = b"converge-ledger shared digest. 1";

/// The size and the Merkle root of a history: how far it goes. A digest covers these and the context's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TreeHead {
    /// Number of entries.
    pub size: Size,
    /// Merkle root at that size.
    pub root: Hash,
}

/// What two nodes compare of a context: its size, root and epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextSummary {
    /// The context.
    pub context: ContextId,
    /// Number of entries.
    pub size: Size,
    /// Merkle root at that size.
    pub root: Hash,
    /// The epoch of the newest entry; 0 if there is none. Not in the digest: the root covers it.
    pub epoch: Epoch,
}

impl ContextSummary {
    /// Returns the size and the Merkle root.
    pub const fn tree_head(&self) -> TreeHead {
        TreeHead { size: self.size, root: self.root }
    }
}

/// The digest of a set of contexts. The default is that of the empty set.
///
/// Digests are a group: adding and removing commute, and removing what was never added is undone by adding it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Digest {
    // The least significant first.
    sum: [u64; 4],
    count: u64,
}

impl Digest {
    /// Adds a context.
    pub fn add(&mut self, context: &ContextId, extent: TreeHead) {
        self.add_all(&Self::of(context, extent));
    }

    /// Removes a context.
    pub fn remove(&mut self, context: &ContextId, extent: TreeHead) {
        self.remove_all(&Self::of(context, extent));
    }

    /// Adds all contexts of another digest.
    pub fn add_all(&mut self, other: &Self) {
        let mut carry = false;
        for (limb, more) in self.sum.iter_mut().zip(other.sum) {
            (*limb, carry) = limb.carrying_add(more, carry);
        }
        self.count = self.count.wrapping_add(other.count);
    }

    /// Removes all contexts of another digest.
    pub fn remove_all(&mut self, other: &Self) {
        let mut borrow = false;
        for (limb, less) in self.sum.iter_mut().zip(other.sum) {
            (*limb, borrow) = limb.borrowing_sub(less, borrow);
        }
        self.count = self.count.wrapping_sub(other.count);
    }

    /// Returns the number of contexts.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the sum, big-endian, then the count, big-endian: 40 bytes.
    pub fn to_bytes(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        let words = self.sum.iter().rev().chain([&self.count]);
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// Reads what [`Digest::to_bytes`] wrote. Any 40 bytes are a digest.
    pub fn from_bytes(bytes: &[u8; 40]) -> Self {
        let mut words = [0; 5];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        let [first, second, third, fourth, count] = words;
        Self { sum: [fourth, third, second, first], count }
    }

    /// Returns the digest of one context: BLAKE3, keyed, of size ‖ root ‖ id. The id is last because it alone has no fixed
    /// length.
    fn of(context: &ContextId, extent: TreeHead) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(ELEMENT_KEY);
        hasher.update(&extent.size.0.to_be_bytes());
        hasher.update(&extent.root.0);
        hasher.update(context.as_str().as_bytes());
        let mut bytes = [0; 40];
        bytes[..32].copy_from_slice(hasher.finalize().as_bytes());
        Self { count: 1, ..Self::from_bytes(&bytes) }
    }
}

/// One of the 256 parts of a slot, by the hash of a context's name. A comparison lists only the buckets whose digests differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket(pub u8);

impl Bucket {
    /// Returns the bucket of a context: the third byte of BLAKE3 of its id. The first two gave its slot.
    pub fn of(context: &ContextId) -> Self {
        let hash = blake3::hash(context.as_str().as_bytes());
        let [_, _, third, ..] = *hash.as_bytes();
        Self(third)
    }
}

/// The digest of a slot, and of each of its buckets, kept up to date with every append.
///
/// Invariant: the digest of the slot is the sum of those of its buckets. A slot that never held anything
/// takes no memory for buckets, any other 10 KiB.
#[derive(Debug, Clone, Default)]
pub struct SlotDigest {
    whole: Digest,
    // Empty, or one for each bucket.
    buckets: Box<[Digest]>,
}

impl SlotDigest {
    /// Makes the slot of these buckets' digests, as read from disk. Adds up those that come twice.
    pub fn from_buckets(buckets: impl IntoIterator<Item = (Bucket, Digest)>) -> Self {
        let mut slot = Self::default();
        for (bucket, digest) in buckets {
            slot.whole.add_all(&digest);
            slot.bucket_mut(bucket).add_all(&digest);
        }
        slot
    }

    /// Notes that a context of this slot went from `old` (`None`: it was not there) to `new` (`None`: it
    /// is no more). A context without entries does not count, so that it equals an absent one.
    pub fn replace(&mut self, context: &ContextId, old: Option<TreeHead>, new: Option<TreeHead>) {
        let is_counted = |head: &TreeHead| head.size.0 > 0;
        let (old, new) = (old.filter(is_counted), new.filter(is_counted));
        if old == new {
            return;
        }
        let mut change = Digest::default();
        if let Some(old) = old {
            change.remove(context, old);
        }
        if let Some(new) = new {
            change.add(context, new);
        }
        self.whole.add_all(&change);
        self.bucket_mut(Bucket::of(context)).add_all(&change);
    }

    /// Counts a bucket anew, from all contexts in it.
    pub fn recount(&mut self, bucket: Bucket, contexts: impl IntoIterator<Item = (ContextId, TreeHead)>) {
        let mut digest = Digest::default();
        for (context, head) in contexts.into_iter().filter(|(_, head)| head.size.0 > 0) {
            digest.add(&context, head);
        }
        let known = *self.bucket_mut(bucket);
        self.whole.remove_all(&known);
        self.whole.add_all(&digest);
        *self.bucket_mut(bucket) = digest;
    }

    /// Returns the digest of the whole slot.
    pub const fn whole(&self) -> Digest {
        self.whole
    }

    /// Returns the digest of a bucket.
    pub fn bucket(&self, bucket: Bucket) -> Digest {
        self.buckets.get(usize::from(bucket.0)).copied().unwrap_or_default()
    }

    /// Returns the buckets that hold something, in order, with their digests.
    pub fn buckets(&self) -> impl Iterator<Item = (Bucket, Digest)> + '_ {
        let all = (0..=u8::MAX).map(Bucket).zip(self.buckets.iter().copied());
        all.filter(|(_, digest)| *digest != Digest::default())
    }

    fn bucket_mut(&mut self, bucket: Bucket) -> &mut Digest {
        if self.buckets.is_empty() {
            self.buckets = vec![Digest::default(); BUCKETS].into_boxed_slice();
        }
        &mut self.buckets[usize::from(bucket.0)]
    }
}

/// One hash for all slots that two nodes share: if it is equal on both, they are in sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeDigest(pub Hash);

impl NodeDigest {
    /// Returns the digest of these slots: BLAKE3, keyed, of slot ‖ digest for each in order.
    pub fn of(slots: &BTreeMap<Slot, Digest>) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(NODE_KEY);
        for (slot, digest) in slots {
            hasher.update(&slot.number().to_be_bytes());
            hasher.update(&digest.to_bytes());
        }
        Self(Hash(*hasher.finalize().as_bytes()))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.to_bytes();
        write!(f, "Digest({} of {})", hex::encode(&bytes[..32]), self.count)
    }
}
