//! The Elixir predecessor's hashes, Merkle tree, proofs and snapshots: only to verify what is imported.
//!
//! Its snapshots are blobs in Erlang's external term format (<https://www.erlang.org/doc/apps/erts/erl_ext_dist>),
//! often compressed with zlib: a map with the atom keys `version`, `context_id`, `entries`, `sequence` and, in
//! version 2, `merkle_root`. An entry is a map with `id`, `key`, `payload`, `sequence`, `appended_at_ns`,
//! `metadata` and, in version 2, `lamport_clock` and `content_hash`. Keys it doesn't know a reader skips.
//!
//! A blob is untrusted: nothing is allocated because a length says so, terms nest to a bounded depth,
//! decompression stops at the size the blob declares, and atoms are compared, never created.

mod decode;
mod error;
mod format;
mod hash;
mod inflate;
mod term;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use bytes::Bytes;

pub use error::{FieldOwner, FoundInstead, LegacyError};
pub use format::{LegacyEntry, Limits, Snapshot, VERSION};
pub use hash::{LegacyProof, Sibling, content_hash, root, verify_proof};

/// Returns whether bytes start as a snapshot of the predecessor does.
pub fn is_legacy(first_bytes: &[u8]) -> bool {
    first_bytes.first() == Some(&format::FORMAT_TAG)
}

/// Returns the size that a compressed blob says it has when it is decompressed; `None` if it is not compressed.
pub fn declared_size(blob: &[u8]) -> Option<usize> {
    inflate::declared(blob)
}

impl Snapshot {
    /// Reads a blob, of which the payloads are parts. The entries may be stored in any order; they come sorted by sequence.
    ///
    /// # Errors
    ///
    /// The blob is not a snapshot of version 1 or 2, is over a limit, has a field that is not valid here, or
    /// its sequences are not 1, 2, 3, … up to `sequence`.
    pub fn decode(blob: impl Into<Bytes>, limits: Limits) -> Result<Self, LegacyError> {
        decode::decode(blob.into(), limits, &mut |_| true)
    }

    /// Does what [`decode`](Self::decode) does within bounded memory: asks `room` for the bytes of each entry beside its payload,
    /// which may refuse them.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode), or there was no room.
    pub fn decode_within(
        blob: impl Into<Bytes>,
        limits: Limits,
        mut room: impl FnMut(usize) -> bool,
    ) -> Result<Self, LegacyError> {
        decode::decode(blob.into(), limits, &mut room)
    }

    /// Recomputes every hash the snapshot carries, and checks that no id comes twice. A snapshot of version 1
    /// carries no hashes.
    ///
    /// Neither hash covers `id`, `metadata` or `lamport`: the predecessor never protected them.
    ///
    /// # Errors
    ///
    /// The first entry that does not match, or the root.
    pub fn verify(&self) -> Result<(), LegacyError> {
        let mut ids = HashMap::with_capacity(self.entries.len());
        let mut hashes = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            if let Some(first) = ids.insert(&entry.id, entry.sequence) {
                return Err(LegacyError::DuplicateId { id: entry.id.clone(), first, second: entry.sequence });
            }
            let computed = content_hash(
                &self.context_id,
                &entry.key,
                &entry.payload,
                entry.sequence,
                entry.appended_at_ns,
            );
            if let Some(stored) = entry.content_hash.filter(|stored| *stored != computed) {
                return Err(LegacyError::HashMismatch { sequence: entry.sequence, stored, computed });
            }
            hashes.push(computed);
        }
        let computed = root(&hashes);
        match self.merkle_root {
            Some(stored) if stored != computed => Err(LegacyError::RootMismatch { stored, computed }),
            _ => Ok(()),
        }
    }
}
