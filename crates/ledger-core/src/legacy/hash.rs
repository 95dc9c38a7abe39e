//! The predecessor's hashes: SHA-256 over Erlang terms, and a Merkle tree without domain separation.

use crate::{
    ContextId, Hash, Key, Sequence,
    hash::{Hasher as _, Sha256},
};

use super::{format::FORMAT_TAG, term::tag};

/// Returns the predecessor's content hash: SHA-256 of `:erlang.term_to_binary([context_id, key, payload, sequence,
/// appended_at_ns])`.
pub fn content_hash(
    context_id: &ContextId,
    key: &Key,
    payload: &[u8],
    sequence: Sequence,
    appended_at_ns: u64,
) -> Hash {
    let texts = [context_id.as_str().as_bytes(), key.as_str().as_bytes(), payload];
    let mut term = Vec::with_capacity(64 + texts.iter().map(|text| text.len()).sum::<usize>());
    term.extend_from_slice(&[FORMAT_TAG, tag::LIST, 0, 0, 0, 5]);
    for text in texts {
        term.push(tag::BINARY);
        // Limits keep each of them far below 4 GiB.
        term.extend_from_slice(&(text.len() as u32).to_be_bytes());
        term.extend_from_slice(text);
    }
    put_integer(&mut term, sequence.0);
    put_integer(&mut term, appended_at_ns);
    term.push(tag::NIL);
    Sha256::digest(&term)
}

/// An integer as Erlang writes it: in the shortest of its three forms.
fn put_integer(term: &mut Vec<u8>, value: u64) {
    if let Ok(byte) = u8::try_from(value) {
        term.extend_from_slice(&[tag::SMALL_INTEGER, byte]);
    } else if let Ok(value) = i32::try_from(value) {
        term.push(tag::INTEGER);
        term.extend_from_slice(&value.to_be_bytes());
    } else {
        let len = 8 - value.leading_zeros() as usize / 8;
        term.extend_from_slice(&[tag::SMALL_BIG, len as u8, 0]);
        term.extend_from_slice(&value.to_le_bytes()[..len]);
    }
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut input = [0; 64];
    input[..32].copy_from_slice(&left.0);
    input[32..].copy_from_slice(&right.0);
    Sha256::digest(&input)
}

/// Returns the predecessor's Merkle root over content hashes: `SHA-256(left ‖ right)` level by level, an odd node paired with
/// itself. A single leaf is combined with itself too; without leaves it is SHA-256 of nothing.
pub fn root(leaves: &[Hash]) -> Hash {
    if leaves.is_empty() {
        return Sha256::digest(b"");
    }
    let mut level = leaves.to_vec();
    loop {
        level = level.chunks(2).map(|pair| node(&pair[0], pair.get(1).unwrap_or(&pair[0]))).collect();
        if let [root] = level[..] {
            return root;
        }
    }
}

/// A node on the way from a leaf to the root, and the side it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sibling {
    /// The sibling stands to the left.
    Left(Hash),
    /// The sibling stands to the right. An odd node has its own copy there.
    Right(Hash),
}

/// The predecessor's proof that a leaf is in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyProof {
    /// The index of the leaf, from 0.
    pub index: u64,
    /// The siblings, lowest first.
    pub siblings: Vec<Sibling>,
}

/// Returns whether the proof leads from the content hash to the root, along the way of its index.
pub fn verify_proof(content_hash: &Hash, proof: &LegacyProof, root: &Hash) -> bool {
    let mut index = proof.index;
    let mut hash = *content_hash;
    for sibling in &proof.siblings {
        hash = match (index & 1, sibling) {
            (0, Sibling::Right(right)) => node(&hash, right),
            (1, Sibling::Left(left)) => node(left, &hash),
            _ => return false,
        };
        index >>= 1;
    }
    // Even a tree of one leaf has one sibling: its copy.
    !proof.siblings.is_empty() && index == 0 && hash == *root
}
