//! The snapshot format: one context as a self-verifying stream, written and read in constant memory.
//!
//! Neither side does I/O. The [`Encoder`] appends bytes to a buffer the caller empties; the [`Decoder`]
//! is fed bytes as they come, in pieces of any size, and hands out what they hold.
//!
//! # Layout of version 1
//!
//! Integers are big-endian. `len16 x` is the length of `x` in bytes as 16 bits, then `x`; `len32 x` alike.
//!
//! ```text
//! snapshot = "CVGLSNAP" ‖ version16 ‖ len32 header ‖ frame* ‖ trailer
//! header   = len16 context_id ‖ suite8 ‖ count64 ‖ root[32] ‖ lamport64 ‖ epoch64 ‖ lineage[16]
//!            ‖ created_at_ns64 ‖ taken_at_ns64
//! frame    = "F" ‖ compressed32 ‖ uncompressed32 ‖ one zstd frame of `compressed` bytes
//!            that holds `uncompressed` bytes: entries, one after the other
//! entry    = lamport64 ‖ appended_at_ns64 ‖ epoch64 ‖ content_hash[32] ‖ id ‖ len16 key
//!            ‖ pairs32 ‖ (len32 key ‖ len32 value)* ‖ len32 payload
//! id       = 0x00 ‖ bits[16]  or  0x01 ‖ len16 text
//! trailer  = "T" ‖ root[32] ‖ blake3 of every byte before[32]
//! ```
//!
//! An entry's sequence is its position in the stream, the first is 1. Metadata is sorted by key. A frame is
//! at most [`FRAME_TARGET`] bytes before compression, or one entry that is larger; readers take frames of
//! up to [`MAX_FRAME`] bytes, or of one entry of the largest payload they accept. The zstd window is at
//! most 8 MiB. The header's Lamport time and epoch are those of the newest entry, 0 if there is none.
//!
//! # What a reader may believe
//!
//! Each entry has been verified when it is handed out: it continues the history (sequence, Lamport time,
//! epoch) and matches its content hash. The header is verified only by [`Item::End`], which comes after
//! count, root and checksum have been compared. Nothing read may become visible before that.

use crate::{ContextId, Epoch, Hash, HashSuite, Head, Lineage, Size, clock::LamportClock};

mod decoder;
mod encoder;
mod entry;
mod error;
mod fields;
mod history;
mod layout;
mod limits;
#[cfg(test)]
mod tests;
mod zstd_frame;

pub use decoder::{Decoder, Item};
pub use encoder::Encoder;
pub use error::{SnapshotError, SnapshotSection};
pub use layout::{FRAME_TARGET, MAGIC, MAX_FRAME, VERSION};
pub use limits::{Limits, needs};

/// The header of a snapshot: what the snapshot says of its context before the entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The context.
    pub context_id: ContextId,
    /// Its hash suite.
    pub suite: HashSuite,
    /// Number of entries.
    pub count: Size,
    /// The Merkle root over them.
    pub root: Hash,
    /// The time of the newest entry; 0 if there is none.
    pub lamport: LamportClock,
    /// The epoch of the newest entry; 0 if there is none.
    pub epoch: Epoch,
    /// The lineage of the context.
    pub lineage: Lineage,
    /// Wall-clock time of the context's creation, nanoseconds since the Unix epoch.
    pub created_at_ns: u64,
    /// Wall-clock time of the snapshot, nanoseconds since the Unix epoch.
    pub taken_at_ns: u64,
}

impl Header {
    /// Makes the header of a snapshot of a context with this head, taken at `taken_at_ns`.
    pub fn of(context_id: &ContextId, head: &Head, taken_at_ns: u64) -> Self {
        Self {
            context_id: context_id.clone(),
            suite: head.suite,
            count: head.size(),
            root: head.root(),
            lamport: head.lamport,
            epoch: head.epoch,
            lineage: head.lineage,
            created_at_ns: head.created_at_ns,
            taken_at_ns,
        }
    }
}

/// Returns whether bytes start as a snapshot of this format does, of any version.
pub fn is_snapshot(prefix: &[u8]) -> bool {
    prefix.starts_with(MAGIC)
}
