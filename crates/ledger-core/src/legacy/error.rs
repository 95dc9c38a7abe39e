//! What can be wrong with a snapshot of the predecessor.

use crate::{EntryId, Hash, Sequence};

use super::VERSION;

/// Why a snapshot of the predecessor was refused.
///
/// [`HashMismatch`](Self::HashMismatch) and [`RootMismatch`](Self::RootMismatch) say that data was damaged;
/// the others that the wrong thing was handed in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LegacyError {
    /// The bytes are not in Erlang's external term format.
    #[error(
        "this is not a snapshot of the predecessor: it does not start with 131, as Erlang's external terms do"
    )]
    NotLegacy,
    /// A newer predecessor wrote the snapshot.
    #[error("the predecessor's snapshot has version {version}, but this build reads up to {VERSION}")]
    NewerVersion {
        /// The snapshot's version.
        version: u64,
    },
    /// The bytes end within a term.
    #[error("the predecessor's snapshot is cut off: it ends within the term at byte {at}")]
    Truncated {
        /// Offset of the term in the decompressed blob.
        at: usize,
    },
    /// Bytes follow the term.
    #[error("{count} bytes follow the predecessor's snapshot: send one snapshot alone")]
    TrailingBytes {
        /// The number of them.
        count: usize,
    },
    /// Something is larger than allowed.
    #[error("the predecessor's snapshot has {what} of {value}: at most {max} is allowed")]
    Limit {
        /// Name and unit of the number that is too large.
        what: &'static str,
        /// The number.
        value: u64,
        /// The most that the reader accepts.
        max: u64,
    },
    /// There was no memory for its entries.
    #[error("there is no memory left for the entries of the predecessor's snapshot")]
    NoRoom,
    /// The compressed part cannot be decompressed to the size it declares.
    #[error("the predecessor's snapshot cannot be decompressed: {reason}")]
    Compression {
        /// What is wrong.
        reason: String,
    },
    /// A term is not what belongs there.
    #[error("the predecessor's snapshot has {found} at byte {at}, where {expected} belongs")]
    Unexpected {
        /// Its offset in the decompressed blob.
        at: usize,
        /// The term that the reader found.
        found: String,
        /// The kind of term that belongs there.
        expected: &'static str,
    },
    /// A key is missing or comes twice, or its value is not valid here.
    #[error("{field} of {owner} in the predecessor's snapshot is not valid: {reason}")]
    Field {
        /// The key.
        field: &'static str,
        /// Whose key: the snapshot, or an entry by its position in the blob or its sequence.
        owner: FieldOwner,
        /// What is wrong.
        reason: String,
    },
    /// The sequences are not 1, 2, 3, … up to the snapshot's.
    #[error("the predecessor's snapshot has {found} where entry {expected} belongs: its history has a gap")]
    Gap {
        /// The sequence that belongs there.
        expected: Sequence,
        /// What the reader found.
        found: FoundInstead,
    },
    /// Two entries have one id.
    #[error("entries {first} and {second} of the predecessor's snapshot have the same id {id}")]
    DuplicateId {
        /// The id.
        id: EntryId,
        /// The first of them.
        first: Sequence,
        /// The second of them.
        second: Sequence,
    },
    /// An entry does not match its hash.
    #[error(
        "entry {sequence} of the predecessor's snapshot is damaged: its content hash is {computed}, but {stored} is stored"
    )]
    HashMismatch {
        /// The entry.
        sequence: Sequence,
        /// The stored hash.
        stored: Hash,
        /// The hash of what is there.
        computed: Hash,
    },
    /// The entries do not give the stored root.
    #[error(
        "the predecessor's snapshot is damaged: its entries have Merkle root {computed}, but {stored} is stored"
    )]
    RootMismatch {
        /// The stored root.
        stored: Hash,
        /// The root over the entries.
        computed: Hash,
    },
}

/// What of a predecessor's snapshot a field belongs to: the snapshot itself, or one of its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldOwner {
    /// The field is the snapshot's own.
    Snapshot,
    /// The field is of the entry at this position of the blob, from 1.
    Entry(u64),
}

impl std::fmt::Display for FieldOwner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot => f.write_str("the map"),
            Self::Entry(position) => write!(f, "entry {position}"),
        }
    }
}

/// What the reader found where it expected an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundInstead {
    /// Another entry: later, or the one before again.
    Entry(Sequence),
    /// Nothing: the snapshot's sequence is higher than that of its newest entry.
    End,
    /// An entry, though the snapshot's sequence says that there are no more.
    Beyond(Sequence),
}

impl std::fmt::Display for FoundInstead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Entry(sequence) => write!(f, "entry {sequence}"),
            Self::End => f.write_str("the end"),
            Self::Beyond(sequence) => write!(f, "entry {sequence} after its last one"),
        }
    }
}
