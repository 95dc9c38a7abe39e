//! What goes in and comes out of a [`Ledger`](crate::Ledger).

use std::{sync::Arc, time::Instant};

use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Key, Lineage, Position, Sequence, Size,
    clock::LamportClock, entry::Draft, replication::WriteQuorum,
};

use crate::{StoreError, budget::Permit};

/// One append as it is asked for.
#[derive(Debug, Clone)]
pub struct Append {
    /// The context.
    pub context: ContextId,
    /// What to append.
    pub draft: Draft,
    /// Lamport time the writer has seen elsewhere; 0 if none.
    pub received_lamport: u64,
    /// An id that makes a retry safe; without one the ledger makes an id.
    pub entry_id: Option<EntryId>,
    /// In a cluster: only if the slot is owned in this epoch. Appends that are sent without waiting for each other
    /// keep their order if they name the epoch: after one that is refused all are.
    pub epoch: Option<Epoch>,
    /// In a cluster: the copies that it is acknowledged with. A standalone node's one copy is all there are.
    pub quorum: WriteQuorum,
}

impl Append {
    /// An append of nothing but a draft: the ledger makes the id, and it is acknowledged with the configured copies.
    pub fn new(context: ContextId, draft: Draft) -> Self {
        let quorum = WriteQuorum::Configured;
        Self { context, draft, received_lamport: 0, entry_id: None, epoch: None, quorum }
    }
}

/// On what terms appends are taken.
#[derive(Debug, Clone, Default)]
pub struct AppendConditions {
    /// In a cluster: until when they may wait for their copies; `None`: as long as it takes. What is stored stays, and
    /// may get them later.
    pub deadline: Option<Instant>,
    /// What they hold while they wait, whoever goes on waiting for the answer.
    pub permit: Option<Arc<Permit>>,
}

impl AppendConditions {
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|until| until <= now)
    }
}

/// A stored entry and where the history stands with it.
#[derive(Debug, Clone)]
pub struct Appended {
    /// The entry as stored.
    pub entry: Entry,
    /// The history up to and including the entry.
    pub position: Position,
    /// The entry id was known with the same content: this is the first result.
    pub repeated: bool,
    /// How many nodes it is known to be durable on.
    pub copies: usize,
}

/// What became of one append of a batch. Unlike [`Appended`] it carries no position of its own.
#[derive(Debug)]
pub struct BatchResult {
    /// The caller's tag.
    pub tag: u64,
    /// What was stored.
    pub result: Result<Receipt, StoreError>,
}

/// What was stored of an append, without its content: it may wait for long until somebody takes it.
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
    /// In which epoch it was written.
    pub epoch: Epoch,
    /// Bytes of its payload.
    pub payload_bytes: usize,
    /// Its id was known with the same content.
    pub is_repeated: bool,
}

impl Receipt {
    /// Of an entry.
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
    /// Where each context acknowledged here stands after the newest of them.
    pub positions: Vec<(ContextId, Position)>,
    /// How many nodes all of them are known to be durable on; 0 if none was stored.
    pub copies: usize,
}

/// Which entries to read.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Only entries of this key.
    pub key: Option<Key>,
    /// Only entries with a higher sequence.
    pub after: Sequence,
    /// At most so many entries.
    pub limit: usize,
    /// Stop before the page's entries pass so many bytes (keys, payloads and metadata); the first entry
    /// is returned whatever its size, up to `max_first`.
    pub max_bytes: usize,
    /// Most bytes of a page's first entry. One that is larger is not returned: [`Covered::larger`] says how large it is.
    pub max_first: usize,
}

impl Default for Filter {
    /// Everything: mind the memory, and page through large contexts.
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

/// What a reading covered, beside the entries it visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// Number of entries of the context, whatever was filtered.
    pub latest: Size,
    /// Everything up to here was visited or filtered out: where to go on.
    pub covered: Sequence,
    /// There is more beyond.
    pub more: bool,
    /// The next entry has so many bytes, which are more than the first of a page may have: nothing was visited.
    pub larger: Option<usize>,
}

/// A page of entries.
#[derive(Debug, Clone)]
pub struct Page {
    /// The entries, in sequence order.
    pub entries: Vec<Entry>,
    /// Number of entries of the context, whatever was filtered.
    pub latest: Size,
    /// Everything up to here was returned or filtered out: where to go on.
    pub covered: Sequence,
    /// The page was cut by `limit` or `max_bytes`: entries may follow after `covered`.
    pub more: bool,
    /// As in [`Covered`].
    pub larger: Option<usize>,
}

/// A context as a listing shows it.
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
    /// Which history it is.
    pub lineage: Lineage,
    /// Wall-clock time of creation, nanoseconds since the Unix epoch.
    pub created_at_ns: u64,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextList {
    /// The contexts, in order of their ids.
    pub contexts: Vec<ContextInfo>,
    /// There may be more, after this id.
    pub next: Option<String>,
}

/// What a load did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Entries added.
    pub restored: u64,
    /// Entries the context has now.
    pub latest: Size,
}

/// A size and root that can be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpointed {
    /// The history at the size asked for.
    pub position: Position,
    /// Time of the context's newest entry.
    pub lamport: LamportClock,
    /// Hash suite.
    pub suite: HashSuite,
}

/// An inclusion proof with what it proves.
#[derive(Debug, Clone)]
pub struct ProvenInclusion {
    /// The proof.
    pub proof: ledger_core::tree::proof::InclusionProof,
    /// The entry's content hash: the leaf data.
    pub content_hash: Hash,
    /// The root it leads to.
    pub root: Hash,
    /// Hash suite.
    pub suite: HashSuite,
}

/// A consistency proof with what it proves.
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

/// What the store can say of itself, for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries appended since opening.
    pub appended: u64,
    /// Group commits since opening.
    pub commits: u64,
    /// Group commits that failed since opening.
    pub failed_commits: u64,
    /// Entries the scrub has checked since opening.
    pub scrubbed: u64,
    /// Contexts in quarantine: damaged, as found by reads or the scrub.
    pub quarantined: u64,
    /// Families of the database in which there is damage that is not of one context.
    pub damaged_families: u64,
    /// Slots of which the record of what was promised cannot be read, and is not known from elsewhere.
    pub damaged_slots: u64,
    /// Whether table files are compacted: not any more after RocksDB met a damaged one.
    pub compacts: bool,
    /// Number of contexts with entries; on a standalone node estimated, and too high for contexts that were just written to. `None`
    /// there while the database is reopened.
    pub contexts: Option<u64>,
    /// Bytes of table files on disk; `None` while the database is reopened.
    pub disk_bytes: Option<u64>,
    /// Bytes of memory used by RocksDB: block cache, write buffers, table readers; `None` while the database is reopened.
    pub memory_bytes: Option<u64>,
}

/// Damage of a family of the database that is not of one context: nothing that was acknowledged is lost with it alone,
/// and only a directory that is copied anew is without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FamilyDamage {
    /// The family.
    pub family: &'static str,
    /// What was met.
    pub reason: String,
}

/// Where damage was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The context.
    pub context: ContextId,
    /// The first sequence known to be damaged; 0 if it is the head.
    pub sequence: Sequence,
    /// What does not match.
    pub reason: String,
}
