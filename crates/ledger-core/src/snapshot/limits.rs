//! What a reader of snapshots accepts, and how much memory it takes.

use crate::limits::{
    CLIENT_MESSAGE, MAX_ENTRY_ID, MAX_KEY, MAX_METADATA, MAX_METADATA_PAIRS, MAX_PAYLOAD, MAX_SEQUENCE,
};

use super::{layout::MAX_FRAME, zstd_frame};

/// No entry without its payload encodes to more bytes.
const MAX_WITHOUT_PAYLOAD: usize =
    3 * 8 + 32 + (1 + 2 + MAX_ENTRY_ID) + (2 + MAX_KEY) + 4 + MAX_METADATA_PAIRS * 2 * 4 + MAX_METADATA + 4;

const _: () = assert!(MAX_PAYLOAD + MAX_WITHOUT_PAYLOAD <= u32::MAX as usize, "frames have 32-bit lengths");

/// The largest payload and the most entries that a reader of a snapshot accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload, bytes.
    pub max_payload: usize,
    /// Most entries.
    pub max_entries: u64,
}

impl Default for Limits {
    /// Payloads of [`CLIENT_MESSAGE`], any number of entries.
    fn default() -> Self {
        Self { max_payload: CLIENT_MESSAGE, max_entries: MAX_SEQUENCE }
    }
}

impl Limits {
    /// Returns the largest frame to accept, bytes before compression.
    pub(super) fn max_frame(self) -> usize {
        MAX_FRAME.max(self.max_payload.saturating_add(MAX_WITHOUT_PAYLOAD))
    }
}

/// Returns how many bytes of memory, at most, a frame takes with one entry of such a payload: see
/// [`Decoder::needs`](super::Decoder::needs).
pub const fn needs(max_payload: usize) -> usize {
    zstd_frame::needs(max_payload.saturating_add(MAX_WITHOUT_PAYLOAD))
}
