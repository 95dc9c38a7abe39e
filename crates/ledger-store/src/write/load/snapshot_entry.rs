//! An entry of a snapshot of either format, and what the snapshot says of its context.

use ledger_core::{Entry, EntryId, HashSuite, Lineage, clock::LamportClock, entry::Draft};

/// What a snapshot says of its context, as far as it holds for the one loaded into.
#[derive(Debug, Clone, Copy)]
pub(super) struct SnapshotOrigin {
    pub(super) lineage: Option<Lineage>,
    pub(super) created_at_ns: Option<u64>,
    pub(super) suite: Option<HashSuite>,
    pub(super) same_context: bool,
}

/// An entry of a snapshot.
pub(super) struct SnapshotEntry {
    pub(super) id: EntryId,
    pub(super) draft: Draft,
    pub(super) appended_at_ns: u64,
    pub(super) lamport: Option<LamportClock>,
    /// The entry itself, if it comes from one of our snapshots.
    pub(super) native: Option<Entry>,
}

impl SnapshotEntry {
    pub(super) fn of(entry: Entry) -> Self {
        Self {
            id: entry.id.clone(),
            draft: entry.draft(),
            appended_at_ns: entry.appended_at_ns,
            lamport: Some(entry.lamport),
            native: Some(entry),
        }
    }
}
