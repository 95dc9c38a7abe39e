//! Key summaries record which keys occur in a block of 256 entries, so that a filtered read can skip blocks.

use std::collections::BTreeSet;

/// Returns how a summary represents a key: 32 bits of its hash. A collision costs one extra read, and never hides an
/// entry.
pub(crate) fn key_hash(key: &str) -> u32 {
    // FNV-1a, 32 bits (draft-eastlake-fnv). It costs a few nanoseconds per append; the summaries are small and need
    // no secrecy.
    key.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Encodes a summary: the hashes in ascending order, 4 bytes each, big-endian.
pub(crate) struct KeySet;

impl KeySet {
    pub(crate) fn encode(keys: &BTreeSet<u32>) -> Vec<u8> {
        keys.iter().flat_map(|key| key.to_be_bytes()).collect()
    }

    /// Returns whether a stored summary may have the key. A malformed summary counts as having every key, so its
    /// block is read.
    pub(crate) fn may_contain(bytes: &[u8], key: u32) -> bool {
        !bytes.len().is_multiple_of(4) || bytes.chunks_exact(4).any(|chunk| chunk == key.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_has_the_keys_put_in_and_no_others() {
        let keys = ["facts", "traces"].map(key_hash).into();
        let bytes = KeySet::encode(&keys);
        assert_eq!(bytes.len(), 8);
        assert!(KeySet::may_contain(&bytes, key_hash("facts")));
        assert!(!KeySet::may_contain(&bytes, key_hash("evals")));
        assert!(KeySet::may_contain(&bytes[..7], key_hash("evals")));
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(key_hash(""), 0x811c_9dc5);
        assert_eq!(key_hash("foobar"), 0xbf9c_f968);
    }
}
