//! What can go wrong, as a caller can act on it.

use ledger_core::{
    ContextId, EntryId, Sequence, clock::TooFarAhead, compare::CompareRequestError, entry::MetadataTooLarge,
    id::IdError, legacy::LegacyError, log::LogError, slot::Slot, snapshot::SnapshotError,
};

/// Why the store refused or failed. The message says what happened, to what, and what to do.
///
/// Cloneable, because one failed group commit fails every append in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The data directory cannot be used as it is: locked, of a newer format, unwritable, without space.
    #[error("cannot open the data directory {path}: {reason}")]
    Open {
        /// The directory.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Something of the data directory is lost or damaged, so that it cannot be opened: trying again does not help.
    #[error("cannot open the data directory {path}: {reason}")]
    NotWhole {
        /// The directory.
        path: String,
        /// What is lost, and what to do.
        reason: String,
    },
    /// A name is not valid.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Metadata is over a limit.
    #[error(transparent)]
    Metadata(#[from] MetadataTooLarge),
    /// The entry is over the configured limit.
    #[error(
        "the entry has {len} bytes with a payload of {payload}: this node accepts at most {max} (max_entry), so that clients \
         can read it"
    )]
    EntryTooLarge {
        /// Its length in bytes, in a message of the contract.
        len: usize,
        /// The length of its payload in bytes.
        payload: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// The rules of the log refuse it (overflow of the clock or the sequence).
    #[error(transparent)]
    Log(#[from] LogError),
    /// The Lamport time received with an append is too far above the context's own.
    #[error(transparent)]
    Lamport(#[from] TooFarAhead),
    /// The entry id was used in this context before, for other content.
    #[error(
        "entry_id {id} of context {context} is taken: entry {sequence} has it with other content; use a new id"
    )]
    EntryIdTaken {
        /// The context.
        context: ContextId,
        /// The id.
        id: EntryId,
        /// The entry that has it.
        sequence: Sequence,
    },
    /// The context is damaged on this node of a cluster, and is being restored from another one: try again.
    #[error(
        "context {context} is damaged on this node ({reason}) and is being restored from another one: try again"
    )]
    Restoring {
        /// The context.
        context: ContextId,
        /// What does not match.
        reason: String,
    },
    /// Another snapshot of the predecessor is being loaded: they are held whole, so that it is one at a time.
    #[error(
        "another snapshot of the predecessor is being loaded, and they are taken one at a time: try again"
    )]
    OneAtATime,
    /// There is no memory left for a load, or never enough.
    #[error("{}", no_room(*.needed, *.all))]
    NoLoadMemory {
        /// Bytes that it needs at once.
        needed: usize,
        /// Bytes that there are for all loads.
        all: usize,
    },
    /// A load was told to fail if the context has entries, and it has.
    #[error("context {context} has {size} entries already, and fail_if_exists was set")]
    ContextExists {
        /// The context.
        context: ContextId,
        /// How many entries it has.
        size: u64,
    },
    /// A load's history is not the context's.
    #[error(
        "the snapshot's history differs from context {context} at sequence {sequence}: nothing was written; \
         load it into another context id to keep both"
    )]
    HistoryDiffers {
        /// The context.
        context: ContextId,
        /// The first sequence that differs.
        sequence: Sequence,
    },
    /// A resume position is not on the context's history.
    #[error(
        "context {context} does not pass through the position to resume from (size {size}): its history changed; \
         read it again from the beginning"
    )]
    HistoryChanged {
        /// The context.
        context: ContextId,
        /// The size of the position.
        size: u64,
    },
    /// A snapshot of ours was refused.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A snapshot of the predecessor was refused.
    #[error(transparent)]
    Legacy(#[from] LegacyError),
    /// A size or sequence beyond what the context has was asked for.
    #[error("context {context} has {size} entries: {what} is out of range")]
    OutOfRange {
        /// The context.
        context: ContextId,
        /// How many entries it has.
        size: u64,
        /// What was asked for.
        what: String,
    },
    /// Stored data does not match its hashes; it is never served as good.
    #[error(
        "context {context} is damaged at sequence {sequence}: {reason}; the context is quarantined and will not \
         be served past its damage until it is restored from a snapshot or a replica"
    )]
    Damaged {
        /// The context.
        context: ContextId,
        /// The first sequence known to be damaged; 0 if it is the head itself.
        sequence: Sequence,
        /// What does not match.
        reason: String,
    },
    /// The record of what was promised of a slot does not match its checksum.
    #[error(
        "the record of slot {} is damaged ({reason}): if it is not known from memory the directory has to join as a new \
         replica, for it has forgotten what it promised",
        .slot.number()
    )]
    SlotDamaged {
        /// The slot.
        slot: Slot,
        /// What does not match.
        reason: String,
    },
    /// In a cluster: another node owns the slot, or none does.
    #[error("this node does not own slot {}: append at its owner", .slot.number())]
    NotOwner {
        /// The slot.
        slot: Slot,
    },
    /// In a cluster: the slot is being handed over, or moved.
    #[error("the slot is being handed over to another node: try again in a moment")]
    Moving,
    /// In a cluster: the entry may be stored, and did not get its copies before this node lost the slot.
    #[error(
        "the append was not acknowledged before this node lost the slot: repeat it with the same entry_id at the new owner"
    )]
    NotAcknowledged,
    /// In a cluster: the entry is stored here, and did not get its copies in the time there was.
    #[error(
        "the entry is stored at the owner and did not get its copies in time: repeat it with the same entry_id to learn \
         what became of it"
    )]
    NotCopied {
        /// The slot.
        slot: Slot,
    },
    /// In a cluster: this replica does not know what of the context is stable, or heard nothing of it for too long.
    #[error(
        "this replica cannot tell whether what it has of context {context} is the newest: read it at the owner"
    )]
    NotInStep {
        /// The context.
        context: ContextId,
    },
    /// A peer's question when comparing is over its bounds.
    #[error(transparent)]
    Ask(#[from] CompareRequestError),
    /// There is no such fork of the context.
    #[error("context {context} has no fork {fork}: list its forks")]
    NoSuchFork {
        /// The context.
        context: ContextId,
        /// The fork's number.
        fork: u64,
    },
    /// The disk is full. Reads go on; appends work again once there is space.
    #[error(
        "no space left in the data directory: nothing was appended; appends go on by themselves once {} free",
        needed.map_or_else(|| "some is".to_owned(), |needed| format!("{} are", crate::engine::space::mebibytes(needed)))
    )]
    DiskFull {
        /// Free bytes that there must be.
        needed: Option<u64>,
    },
    /// A file of the database is not what was written to it.
    #[error(
        "storage failed: a file of the database is damaged ({0}); keep a copy of it, then restore it from snapshots or \
         let a replica copy it anew"
    )]
    FileDamaged(String),
    /// An I/O error or another failure of RocksDB.
    #[error("storage failed: {0}")]
    Io(String),
    /// The ledger is closing or closed.
    #[error("the ledger is shutting down")]
    Closed,
}

/// Returns the error for stored data of a context that is not what was written.
pub(crate) fn damaged(context: &ContextId, sequence: Sequence, reason: &str) -> StoreError {
    StoreError::Damaged { context: context.clone(), sequence, reason: reason.to_owned() }
}

fn no_room(needed: usize, all: usize) -> String {
    if needed > all {
        format!(
            "the load needs {needed} bytes of memory, and this node has {all} for loads (a part of memory): give it more \
             memory, or load this through a node that has more"
        )
    } else {
        format!(
            "the load needs {needed} bytes of memory, and other loads hold too much of the {all} that there are for loads (a \
             part of memory): try again"
        )
    }
}
