//! What a snapshot of the predecessor holds, and how much of it a reader accepts.

use bytes::Bytes;

use crate::{
    ContextId, EntryId, Hash, Key, Sequence,
    clock::LamportClock,
    entry::Metadata,
    limits::{CLIENT_MESSAGE, MAX_SEQUENCE},
};

/// The newest version of the predecessor's snapshots.
pub const VERSION: u64 = 2;

/// First byte of Erlang's external term format.
pub(super) const FORMAT_TAG: u8 = 131;

/// The largest blob, the largest payload and the most entries that a reader of the predecessor's snapshots accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest blob after decompression, bytes.
    pub max_uncompressed: usize,
    /// Largest payload, bytes.
    pub max_payload: usize,
    /// Most entries.
    pub max_entries: u64,
}

impl Default for Limits {
    /// Blobs of 1 GiB, payloads of [`CLIENT_MESSAGE`], any number of entries.
    fn default() -> Self {
        Self { max_uncompressed: 1 << 30, max_payload: CLIENT_MESSAGE, max_entries: MAX_SEQUENCE }
    }
}

/// A snapshot the predecessor wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The context.
    pub context_id: ContextId,
    /// Version of the blob: 1 or 2.
    pub version: u64,
    /// The sequence of the newest entry; 0 if there is none.
    pub sequence: Sequence,
    /// The predecessor's Merkle root; version 1 has none.
    pub merkle_root: Option<Hash>,
    /// The entries by sequence: 1, 2, 3, … up to [`sequence`](Self::sequence).
    pub entries: Vec<LegacyEntry>,
}

/// An entry the predecessor wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyEntry {
    /// The entry's position: 1, 2, 3, …
    pub sequence: Sequence,
    /// Its identity.
    pub id: EntryId,
    /// What kind of entry it is.
    pub key: Key,
    /// The content.
    pub payload: Bytes,
    /// Wall-clock time of the append, nanoseconds since the Unix epoch.
    pub appended_at_ns: u64,
    /// Pairs that describe it.
    pub metadata: Metadata,
    /// Lamport time of the append; version 1 has none.
    pub lamport: Option<LamportClock>,
    /// The predecessor's [`content_hash`](super::content_hash); version 1 has none.
    pub content_hash: Option<Hash>,
}
