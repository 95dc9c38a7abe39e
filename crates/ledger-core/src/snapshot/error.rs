//! What can be wrong with a snapshot.

use std::fmt;

use crate::{Hash, Sequence};

use super::VERSION;

/// Why a snapshot was refused, or could not be written.
///
/// [`NotASnapshot`](Self::NotASnapshot), [`NewerVersion`](Self::NewerVersion),
/// [`Truncated`](Self::Truncated), [`TrailingBytes`](Self::TrailingBytes) and [`Limit`](Self::Limit) say
/// that the wrong thing was handed in; [`Corrupt`](Self::Corrupt), [`RootMismatch`](Self::RootMismatch) and
/// [`Checksum`](Self::Checksum) that data was damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The bytes do not start with the magic.
    #[error("this is not a snapshot: it does not start with \"CVGLSNAP\"")]
    NotASnapshot,
    /// A newer build wrote the snapshot.
    #[error(
        "the snapshot has format version {version}, but this build reads up to {VERSION}: load it with a newer build"
    )]
    NewerVersion {
        /// The snapshot's version.
        version: u16,
    },
    /// The bytes ended too soon.
    #[error("the snapshot is cut off after {bytes} bytes and {entries} entries: transfer it again")]
    Truncated {
        /// Bytes received.
        bytes: u64,
        /// Entries read.
        entries: u64,
    },
    /// More bytes came after the end.
    #[error("bytes follow the end of the snapshot, which is {bytes} bytes long: send one snapshot alone")]
    TrailingBytes {
        /// Length of the snapshot.
        bytes: u64,
    },
    /// Something is larger than allowed.
    #[error("{place} of the snapshot has {what} of {value}: at most {max} is allowed")]
    Limit {
        /// The section that it is in.
        place: SnapshotSection,
        /// Name and unit of the number that is too large.
        what: &'static str,
        /// The number.
        value: u64,
        /// The most that the reader accepts.
        max: u64,
    },
    /// The snapshot is not as its writer wrote it.
    #[error("{place} of the snapshot is damaged: {reason}")]
    Corrupt {
        /// The section that it is in.
        place: SnapshotSection,
        /// What is wrong.
        reason: String,
    },
    /// The entries give another Merkle root.
    #[error("the snapshot's entries have Merkle root {computed}, but its {claimed_by} says {claimed}")]
    RootMismatch {
        /// Who claims another root: the header or the trailer.
        claimed_by: SnapshotSection,
        /// The claimed root.
        claimed: Hash,
        /// The root over the entries.
        computed: Hash,
    },
    /// The checksum does not match.
    #[error("the snapshot is damaged: its checksum is {computed}, but its trailer says {claimed}")]
    Checksum {
        /// The checksum in the trailer.
        claimed: Hash,
        /// The checksum of the bytes.
        computed: Hash,
    },
    /// The compression library refused to work, for want of memory.
    #[error("zstd failed: {0}")]
    Zstd(String),
}

/// The part of a snapshot that an error is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotSection {
    /// The header.
    Header,
    /// A frame, the first is 1.
    Frame(u64),
    /// An entry.
    Entry(Sequence),
    /// The trailer.
    Trailer,
}

impl fmt::Display for SnapshotSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Frame(number) => write!(f, "frame {number}"),
            Self::Entry(sequence) => write!(f, "entry {sequence}"),
            Self::Trailer => f.write_str("trailer"),
        }
    }
}

impl SnapshotSection {
    /// Makes the error of damage in this section.
    pub(super) fn corrupt(self, reason: impl Into<String>) -> SnapshotError {
        SnapshotError::Corrupt { place: self, reason: reason.into() }
    }

    /// Something at this place is larger than allowed, if it is.
    pub(super) fn limit(self, what: &'static str, value: u64, max: u64) -> Result<(), SnapshotError> {
        if value > max {
            return Err(SnapshotError::Limit { place: self, what, value, max });
        }
        Ok(())
    }
}
