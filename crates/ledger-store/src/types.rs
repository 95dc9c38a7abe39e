//! The requests to and results of a [`Ledger`](crate::Ledger).

use std::{sync::Arc, time::Instant};

use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Key, Lineage, Position, Sequence, Size,
    clock::LamportClock, entry::Draft, replication::WriteQuorum,
};

use crate::{StoreError, budget::Permit};

/// One append request.
#[derive(Debug, Clone)]
pub struct Append {
    /// The context.
    pub context: ContextId,
    /// What to append.
    pub draft: Draft,
    /// Lamport time that the writer has seen elsewhere; 0 if none.
    pub received_lamport: u64,
    /// An id that makes a retry safe; without one the ledger generates an id.
    pub entry_id: Option<EntryId>,
    /// In a cluster: append only if the slot is owned in this epoch. Appends that are sent without waiting for each
    /// other keep their order if they name the epoch, because after a refused one all later ones are refused.
    pub epoch: Option<Epoch>,
    /// In a cluster: with how many copies the append is acknowledged. A standalone node has one copy.
    pub quorum: WriteQuorum,
}

impl Append {
    /// An append of a draft alone: the ledger generates the id, and the configured quorum applies.
    pub fn new(context: ContextId, draft: Draft) -> Self {
        let quorum = WriteQuorum::Configured;
        Self { context, draft, received_lamport: 0, entry_id: None, epoch: None, quorum }
    }
}

/// The conditions under which appends are accepted.
#[derive(Debug, Clone, Default)]
pub struct AppendConditions {
    /// In a cluster: until when the appends wait for their write quorum; `None`: without end. After the deadline the
    /// stored entries remain and may still be committed.
    pub deadline: Option<Instant>,
    /// The permit that the appends hold while they wait, even if the caller is gone.
    pub permit: Option<Arc<Permit>>,
}

impl AppendConditions {
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|until| until <= now)
    }
}

/// A stored entry and the position of the history after it.
#[derive(Debug, Clone)]
pub struct Appended {
    /// The entry as stored.
    pub entry: Entry,
    /// The position of the history up to and including the entry.
    pub position: Position,
    /// The entry id was known with the same content: this is the result of the first append.
    pub repeated: bool,
    /// Number of nodes that are known to have it on disk.
    pub copies: usize,
}

/// The outcome of one append of a batch. Unlike [`Appended`] it carries no position of its own.
#[derive(Debug)]
pub struct BatchResult {
    /// The caller's tag.
    pub tag: u64,
    /// The stored entry, or why it was not stored.
    pub result: Result<Receipt, StoreError>,
}

/// A stored entry without its content, because it may wait long to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The context.
    pub context_id: ContextId,
    /// Its sequence.
    pub sequence: Sequence,
    /// Its identity.
    pub id: EntryId,
    /// Its Lamport time.
    pub lamport: LamportClock,
    /// Wall-clock time of the append, nanoseconds since the Unix epoch.
    pub appended_at_ns: u64,
    /// Its hash.
    pub content_hash: Hash,
    /// The epoch in which it was written.
    pub epoch: Epoch,
    /// Size of its payload, in bytes.
    pub payload_bytes: usize,
    /// The id was known with the same content.
    pub is_repeated: bool,
}

impl Receipt {
    /// Makes the receipt of an entry.
    pub(crate) fn of(entry: Entry, is_repeated: bool) -> Self {
        let Entry { context_id, sequence, id, lamport, appended_at_ns, content_hash, epoch, payload, .. } =
            entry;
        let payload_bytes = payload.len();
        Self {
            context_id,
            sequence,
            id,
            lamport,
            appended_at_ns,
            content_hash,
            epoch,
            payload_bytes,
            is_repeated,
        }
    }
}

/// Results of one group commit, in the order of the appends of each context.
#[derive(Debug)]
pub struct BatchResults {
    /// One for each append.
    pub results: Vec<BatchResult>,
    /// The position of each acknowledged context after its newest entry.
    pub positions: Vec<(ContextId, Position)>,
    /// Number of nodes that are known to have all of them on disk; 0 if none was stored.
    pub copies: usize,
}

/// Which entries to read.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only entries of this key.
    pub key: Option<Key>,
    /// Only entries with a higher sequence.
    pub after: Sequence,
    /// Most entries.
    pub limit: usize,
    /// Stop before the page's entries exceed this many bytes (keys, payloads and metadata). The first entry is
    /// returned whatever its size, up to `max_first`.
    pub max_bytes: usize,
    /// Largest first entry of a page, in bytes. A larger one is not returned: [`Covered::larger`] gives its size.
    pub max_first: usize,
}

impl Default for Filter {
    /// Selects everything. Mind the memory: page through large contexts.
    fn default() -> Self {
        Self {
            key: None,
            after: Sequence(0),
            limit: usize::MAX,
            max_bytes: usize::MAX,
            max_first: usize::MAX,
        }
    }
}

/// What a read covered, in addition to the entries that it visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// Number of entries of the context, regardless of the filter.
    pub latest: Size,
    /// Everything up to here was visited or filtered out: continue after it.
    pub covered: Sequence,
    /// Entries follow after `covered`.
    pub more: bool,
    /// Size in bytes of the next entry, if it exceeds the largest first entry: then nothing was visited.
    pub larger: Option<usize>,
}

/// A page of entries.
#[derive(Debug, Clone)]
pub struct Page {
    /// The entries, in sequence order.
    pub entries: Vec<Entry>,
    /// Number of entries of the context, regardless of the filter.
    pub latest: Size,
    /// Everything up to here was returned or filtered out: continue after it.
    pub covered: Sequence,
    /// `limit` or `max_bytes` ended the page: entries may follow after `covered`.
    pub more: bool,
    /// As in [`Covered`].
    pub larger: Option<usize>,
}

/// A context as a listing returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextInfo {
    /// Its name.
    pub context: ContextId,
    /// Number of entries.
    pub size: Size,
    /// Time of the newest entry.
    pub lamport: LamportClock,
    /// Epoch of the newest entry.
    pub epoch: ledger_core::Epoch,
    /// Hash suite.
    pub suite: HashSuite,
    /// Lineage of its history.
    pub lineage: Lineage,
    /// Wall-clock time of creation, nanoseconds since the Unix epoch.
    pub created_at_ns: u64,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextList {
    /// The contexts, in order of their ids.
    pub contexts: Vec<ContextInfo>,
    /// Where the listing continues: there may be contexts after this id.
    pub next: Option<String>,
}

/// The outcome of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Entries added.
    pub restored: u64,
    /// Entries the context has now.
    pub latest: Size,
}

/// A size and root for a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpointed {
    /// The history at the requested size.
    pub position: Position,
    /// Lamport time of the context's newest entry.
    pub lamport: LamportClock,
    /// Hash suite.
    pub suite: HashSuite,
}

/// An inclusion proof and what it proves.
#[derive(Debug, Clone)]
pub struct ProvenInclusion {
    /// The proof.
    pub proof: ledger_core::tree::proof::InclusionProof,
    /// The entry's content hash: the leaf data.
    pub content_hash: Hash,
    /// The root that it leads to.
    pub root: Hash,
    /// Hash suite.
    pub suite: HashSuite,
}

/// A consistency proof and what it proves.
#[derive(Debug, Clone)]
pub struct ProvenConsistency {
    /// The proof.
    pub proof: ledger_core::tree::proof::ConsistencyProof,
    /// The root at the old size.
    pub old_root: Hash,
    /// The root at the new size.
    pub new_root: Hash,
    /// Hash suite.
    pub suite: HashSuite,
}

/// The store's figures for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries appended since opening.
    pub appended: u64,
    /// Group commits since opening.
    pub commits: u64,
    /// Group commits that failed since opening.
    pub failed_commits: u64,
    /// Entries that the scrub has checked since opening.
    pub scrubbed: u64,
    /// Contexts in quarantine, because a read or the scrub found them damaged.
    pub quarantined: u64,
    /// Column families with damage that belongs to no context.
    pub damaged_families: u64,
    /// Slots whose record of promises is damaged on disk and unknown in memory.
    pub damaged_slots: u64,
    /// Whether RocksDB compacts table files: it stops after it met a damaged one.
    pub compacts: bool,
    /// Number of contexts with entries. A standalone node estimates it, too high if contexts were just written to,
    /// and has `None` while the database is reopened.
    pub contexts: Option<u64>,
    /// Size of the table files on disk, in bytes; `None` while the database is reopened.
    pub disk_bytes: Option<u64>,
    /// Memory that RocksDB uses, in bytes: block cache, write buffers, table readers; `None` while the database is
    /// reopened.
    pub memory_bytes: Option<u64>,
}

/// Damage of a column family that belongs to no context. By itself it loses nothing acknowledged, but only a new copy
/// of the directory removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyDamage {
    /// The family.
    pub family: &'static str,
    /// What was found.
    pub reason: String,
}

/// The location of damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The context.
    pub context: ContextId,
    /// The first damaged sequence; 0 if it is the head.
    pub sequence: Sequence,
    /// What does not match.
    pub reason: String,
}
