//! A group commit in its three states: staged, written, durable.
//!
//! ```text
//! Staged  ── one write of the batch ──▶  Written  ── one sync, for all that wait ──▶  acknowledged
//! ```
//!
//! Until a commit is durable no reader sees it and no caller is notified. In a cluster the commit is then split by
//! slot and waits in [`LaneReplication`](crate::replicate::lane_replication::LaneReplication): the owner's part until
//! it has its write quorum, and a replica's part until the owner's commit index reaches it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use foldhash::fast::RandomState;
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Head, Position, Size,
    digest::TreeHead,
    loads::LoadSpan,
    ownership::Claim,
    replication::{PeerSet, WriteQuorum},
    slot::Slot,
};
use rocksdb::WriteBatch;
use tokio::sync::{mpsc, oneshot};

use crate::{
    AppendConditions, Appended, BatchResult, BatchResults, EntryRange, StoreError,
    engine::db::Db,
    engine::families::RowLocation,
    engine::index,
    limited,
    replicate::replica::{Part, ReplicateOutcome},
    shared::Shared,
    write::committed_heads::Row,
    write::staging,
    write::state::ContextState,
};

/// Callers that wait for the results of a commit, and for which quorum.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "they live in a list that is emptied with the commit")]
pub(crate) enum Waiter {
    One(Result<Appended, StoreError>, oneshot::Sender<Result<Appended, StoreError>>, WaiterTerms),
    Many(Vec<BatchResult>, mpsc::UnboundedSender<BatchResults>, WaiterTerms),
    /// Waits until a loaded history of this slot is installed and committed.
    Load(Slot, Installed),
}

/// On which terms a caller waits.
#[derive(Debug, Clone)]
pub(crate) struct WaiterTerms {
    pub(crate) quorum: WriteQuorum,
    pub(crate) terms: AppendConditions,
}

/// Reports to the caller of a load, without blocking, whether it is installed.
pub(crate) type Installed = std::sync::mpsc::SyncSender<Result<bool, StoreError>>;

/// Sends a replica's response to a commit: one outcome for each part.
pub(crate) type ReplicateReply = oneshot::Sender<Result<Vec<ReplicateOutcome>, StoreError>>;

/// The contexts of a commit. The hasher is fast, and seeded because clients choose the names.
pub(crate) type States = HashMap<ContextId, StagedContext, RandomState>;

/// A commit being staged.
pub(crate) struct StagedCommit {
    /// Wall-clock time of the commit's entries, nanoseconds since the Unix epoch.
    pub(crate) now_ns: u64,
    pub(crate) batch: WriteBatch,
    pub(crate) contexts: States,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) entries: usize,
    /// Responses to owners whose parts are in this commit, to be sent once it is durable.
    pub(crate) replicate_replies: Vec<(Vec<ReplicateOutcome>, ReplicateReply)>,
}

/// A context that a commit touches.
pub(crate) struct StagedContext {
    pub(crate) state: ContextState,
    /// The context's row before this commit.
    pub(crate) before: Row,
    /// The context's tree head before this commit; `None`: it did not exist.
    pub(crate) tree_head_before: Option<TreeHead>,
    /// In a cluster: which node wrote these entries as owner.
    pub(crate) origin: WriteOrigin,
    /// The records of the new entries, kept only if they must be sent to replicas.
    pub(crate) records: Vec<u8>,
    /// The ids in this commit that clients chose.
    pub(crate) ids: HashMap<EntryId, Entry>,
    /// The new entries, kept only while the context is watched.
    pub(crate) watched: Option<Vec<Entry>>,
    pub(crate) appended: u64,
    /// In a cluster: the entries that a load brought.
    pub(crate) loaded: Option<LoadSpan>,
    /// Location of the rows that a load replaced: they are obsolete once this is committed.
    pub(crate) replaced_rows: Option<RowLocation>,
}

/// Which node wrote a context's new entries as owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteOrigin {
    /// This node, in an epoch; it sends them to these peers.
    Owner(Epoch, PeerSet),
    /// The owner of an epoch, in its commit of this number; 0: this node fetched them.
    Replicated(Epoch, u64),
}

impl StagedContext {
    pub(crate) fn new(mut state: ContextState, is_watched: bool, origin: WriteOrigin) -> Self {
        let before = (state.head.frontier.size() > 0).then(|| (state.place, state.head.clone()));
        let tree_head_before = before.is_some().then(|| state.extent());
        Self {
            state,
            before,
            tree_head_before,
            origin,
            records: Vec::new(),
            ids: HashMap::new(),
            watched: is_watched.then(Vec::new),
            appended: 0,
            loaded: None,
            replaced_rows: None,
        }
    }

    /// Stages a loaded history in place of the context's.
    pub(crate) fn loaded(before: Row, state: ContextState, origin: WriteOrigin) -> Self {
        let tree_head_before = before.as_ref().map(|(_, head)| head.tree_head());
        let (after, to) =
            (tree_head_before.map_or(Size(0), |written_context| written_context.size), state.head.size());
        Self {
            replaced_rows: before.as_ref().map(|(place, _)| *place),
            before,
            tree_head_before,
            origin,
            records: Vec::new(),
            ids: HashMap::new(),
            // Watchers read the loaded entries from the store.
            watched: None,
            appended: to.0 - after.0,
            loaded: Some(LoadSpan { after, to }),
            state,
        }
    }

    /// Does the same when another node's part in this commit touched the context before.
    pub(crate) fn load(&mut self, state: ContextState) {
        let (after, to) = (self.state.head.size(), state.head.size());
        if after.0 > 0 {
            self.replaced_rows = Some(self.state.place);
        }
        (self.loaded, self.watched) = (Some(LoadSpan { after, to }), None);
        self.appended += to.0 - after.0;
        self.state = state;
    }
}

impl StagedCommit {
    pub(crate) fn new() -> Self {
        Self {
            now_ns: Shared::now_ns(),
            batch: WriteBatch::default(),
            contexts: States::default(),
            waiters: Vec::new(),
            entries: 0,
            replicate_replies: Vec::new(),
        }
    }

    /// Writes the commit: durably at once if it `is_alone`, otherwise for a later sync, while readers keep seeing the
    /// state before. Returns the contexts' states, on which the lane stages the next commit; `None` if the write
    /// failed.
    pub(crate) fn write(
        mut self,
        db: &Arc<Db>,
        shared: &Shared,
        buffer: &mut Vec<u8>,
        is_alone: bool,
    ) -> Option<(WrittenCommit, Vec<(ContextId, ContextState)>)> {
        if let Err(error) = self.put(db, shared, buffer, is_alone) {
            shared.commit_failed(&error);
            fail(self.waiters, &error);
            fail_replicate_replies(self.replicate_replies, &error);
            return None;
        }
        let mut contexts = Vec::with_capacity(self.contexts.len());
        let mut states = Vec::with_capacity(self.contexts.len());
        for (context, staged_context) in self.contexts {
            let StagedContext {
                mut state,
                watched,
                appended,
                origin,
                records,
                tree_head_before,
                loaded,
                replaced_rows,
                ..
            } = staged_context;
            let (head, rows, tree_head) = (state.head.clone(), state.place, state.extent());
            if loaded.is_some() {
                // The damaged rows are no longer in use.
                shared.quarantine.release(&context);
            }
            contexts.push(WrittenContext {
                context: context.clone(),
                rows,
                head,
                tree_head,
                watched,
                appended,
                origin,
                records,
                tree_head_before,
                is_load: loaded.is_some(),
                replaced_rows,
            });
            // A context that was only looked up may not exist: do not cache it.
            if state.head.frontier.size() > 0 {
                states.push((context, state));
            }
        }
        let written = WrittenCommit {
            db: Arc::clone(db),
            contexts,
            waiters: self.waiters,
            entries: self.entries,
            replicate_replies: self.replicate_replies,
            terms: Vec::new(),
        };
        Some((written, states))
    }

    fn put(
        &mut self,
        db: &Db,
        shared: &Shared,
        buffer: &mut Vec<u8>,
        is_alone: bool,
    ) -> Result<(), StoreError> {
        if self.entries == 0 {
            // If the database failed, nobody knows whether the earlier entries that it returned are on the disk.
            return db.failure().map_or(Ok(()), Err);
        }
        // The little space that is left is for what the node itself must write.
        if let Some(full @ StoreError::DiskFull { .. }) = shared.failure() {
            return Err(full);
        }
        for (context, staged_context) in
            self.contexts.iter().filter(|(_, staged_context)| staged_context.appended > 0)
        {
            staged_context.state.put_head(db, &mut self.batch, context, buffer)?;
            if staged_context.before.is_none() {
                index::put(db, &mut self.batch, context)?;
            }
            let place = staged_context.state.place;
            if let Some(left) = staged_context.replaced_rows {
                // Readers use the previous rows until this is committed.
                staging::mark(db, &mut self.batch, left)?;
            }
            if let Some(span) = staged_context.loaded {
                staging::forget(db, &mut self.batch, place)?;
                if shared.options.clustered {
                    shared.uncommitted_loads.note(
                        db,
                        &mut self.batch,
                        place,
                        staged_context.replaced_rows,
                        span,
                    )?;
                }
            }
        }
        for (context, staged_context) in
            self.contexts.iter().filter(|(_, staged_context)| staged_context.appended > 0)
        {
            // Nobody reads a hidden slot here, so nothing needs pinning.
            if shared.visibility.is_withheld(staged_context.state.place.slot) {
                db.committed_heads().pin(context, staged_context.before.clone());
            }
        }
        let batch = std::mem::take(&mut self.batch);
        if is_alone { db.write(batch) } else { db.write_unsynced(batch) }
    }
}

/// A commit that is in the database and not yet known to be on the disk.
pub(crate) struct WrittenCommit {
    db: Arc<Db>,
    contexts: Vec<WrittenContext>,
    waiters: Vec<Waiter>,
    entries: usize,
    replicate_replies: Vec<(Vec<ReplicateOutcome>, ReplicateReply)>,
    /// The unexpired terms of its appends. Their permits account for the memory that this commit holds.
    terms: Vec<AppendConditions>,
}

/// A context as a commit left it.
#[derive(Debug)]
pub(crate) struct WrittenContext {
    pub(crate) context: ContextId,
    pub(crate) rows: RowLocation,
    pub(crate) head: Head,
    /// Its tree head, and the one before the commit.
    pub(crate) tree_head: TreeHead,
    pub(crate) watched: Option<Vec<Entry>>,
    pub(crate) appended: u64,
    pub(crate) origin: WriteOrigin,
    pub(crate) records: Vec<u8>,
    pub(crate) tree_head_before: Option<TreeHead>,
    /// Whether a load brought the entries.
    pub(crate) is_load: bool,
    /// Rows that are obsolete once this is committed.
    pub(crate) replaced_rows: Option<RowLocation>,
}

impl WrittenContext {
    fn position(&self) -> Position {
        let TreeHead { size, root } = self.tree_head;
        Position { size, root, epoch: self.head.epoch, lineage: self.head.lineage }
    }
}

impl std::fmt::Debug for WrittenCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Written").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl WrittenCommit {
    /// Returns the database that it was written to.
    pub(crate) fn db(&self) -> &Arc<Db> {
        &self.db
    }

    /// Returns whether it wrote any entry.
    pub(crate) fn has_entries(&self) -> bool {
        self.entries > 0
    }

    /// Returns the contexts as it left them.
    pub(crate) fn contexts(&self) -> &[WrittenContext] {
        &self.contexts
    }

    /// Returns what it wrote to a slot, to be sent in a claim.
    pub(crate) fn parts(&mut self, slot: Slot, claim: &Claim) -> impl Iterator<Item = Part> {
        self.contexts.iter_mut().filter(|written_context| written_context.appended > 0).map(
            move |written_context| {
                let head = &written_context.head;
                let empty =
                    || TreeHead { size: Size(0), root: Head::new(head.suite, head.lineage, 0).root() };
                Part {
                    slot,
                    claim: claim.clone(),
                    context: written_context.context.clone(),
                    range: EntryRange {
                        lineage: head.lineage,
                        suite: head.suite,
                        created_at_ns: head.created_at_ns,
                        after: written_context.tree_head_before.unwrap_or_else(empty),
                        root: written_context.tree_head.root,
                        count: written_context.appended,
                        records: std::mem::take(&mut written_context.records).into(),
                    },
                    is_load: written_context.is_load,
                }
            },
        )
    }

    /// Takes the responses to be sent when it is durable.
    pub(crate) fn take_replies(&mut self) -> Vec<(Vec<ReplicateOutcome>, ReplicateReply)> {
        std::mem::take(&mut self.replicate_replies)
    }

    /// Splits it into what this node wrote as owner, by slot, and what it wrote as replica.
    pub(crate) fn split(self) -> (Vec<(Slot, Self)>, Vec<WrittenContext>) {
        let Self { db, contexts, waiters, .. } = self;
        let mut parts: Vec<(Slot, Self)> = Vec::new();
        let mut replicated = Vec::new();
        let mut part = |slot: Slot| -> usize {
            if let Some(at) = parts.iter().position(|(of, _)| *of == slot) {
                return at;
            }
            let (contexts, waiters, replicate_replies, terms) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let db = Arc::clone(&db);
            parts.push((slot, Self { db, contexts, waiters, entries: 0, replicate_replies, terms }));
            parts.len() - 1
        };
        let mut placed: Vec<(usize, WrittenContext)> = Vec::new();
        for written_context in contexts {
            match written_context.origin {
                WriteOrigin::Replicated(..) => replicated.push(written_context),
                WriteOrigin::Owner(..) if written_context.appended > 0 => {
                    placed.push((part(written_context.rows.slot), written_context));
                }
                WriteOrigin::Owner(..) => {}
            }
        }
        let mut answers: Vec<(usize, Waiter)> = Vec::new();
        for waiting in waiters {
            for (slot, waiting) in waiting.by_slot() {
                answers.push((part(slot), waiting));
            }
        }
        for (at, written_context) in placed {
            parts[at].1.entries += usize::try_from(written_context.appended).unwrap_or(usize::MAX);
            parts[at].1.contexts.push(written_context);
        }
        for (at, waiting) in answers {
            parts[at].1.terms.extend(waiting.terms().cloned());
            parts[at].1.waiters.push(waiting);
        }
        (parts, replicated)
    }

    /// Takes the waiters that asked for a quorum other than the configured one.
    pub(crate) fn take_quorum_waiters(&mut self) -> Vec<(WriteQuorum, QuorumWaiter)> {
        if self.waiters.iter().all(|waiting| waiting.needed() == WriteQuorum::Configured) {
            return Vec::new();
        }
        let (own_quorum, rest): (Vec<_>, Vec<_>) =
            self.waiters.drain(..).partition(|waiting| waiting.needed() != WriteQuorum::Configured);
        self.waiters = rest;
        let positions: Vec<_> = self
            .contexts
            .iter()
            .map(|written_context| (written_context.context.clone(), written_context.position()))
            .collect();
        let answer =
            |waiter: Waiter| (waiter.needed(), QuorumWaiter { waiter, positions: positions.clone() });
        own_quorum.into_iter().map(answer).collect()
    }

    /// Takes the waiters whose deadline passed or whose caller is gone. What the commit then still holds is small.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<Waiter> {
        let (over, rest): (Vec<_>, Vec<_>) =
            self.waiters.drain(..).partition(|waiting| waiting.is_expired(now));
        self.waiters = rest;
        let before = self.terms.len();
        self.terms.retain(|terms| !terms.is_expired(now));
        if before > 0 && self.terms.is_empty() {
            // Watchers read these entries from the store instead.
            self.contexts.iter_mut().for_each(|written_context| written_context.watched = None);
        }
        over
    }

    /// Publishes the committed commit to readers and watchers, and notifies its waiters. `copies` is the number of
    /// nodes that have it on disk.
    pub(crate) fn acknowledge(self, shared: &Shared, copies: usize) {
        let Self { db, mut contexts, waiters, entries, replicate_replies, terms: _terms } = self;
        for written_context in contexts.iter_mut().filter(|written_context| written_context.appended > 0) {
            publish_context(&db, shared, written_context);
        }
        if entries > 0 {
            shared.count_commit(entries as u64);
        }
        for (outcome, reply) in replicate_replies {
            // The owner's stream may be gone.
            let _ = reply.send(Ok(outcome));
        }
        let mut positions = Positions::default();
        if waiters.iter().any(|waiting| matches!(waiting, Waiter::Many(..))) {
            positions.extend(
                contexts.iter().map(|written_context| (&written_context.context, written_context.position())),
            );
        }
        for waiting in waiters {
            waiting.answer(&positions, copies);
        }
    }

    /// Notifies the waiters that the commit may not be durable, or may lack its quorum. Readers keep seeing the state
    /// before. Returns the contexts.
    pub(crate) fn fail(self, error: &StoreError) -> Vec<WrittenContext> {
        fail(self.waiters, error);
        fail_replicate_replies(self.replicate_replies, error);
        self.contexts
    }
}

/// Unpins the heads of contexts of a hidden slot. Does not notify watchers: the history may be forked off.
pub(crate) fn unpin(shared: &Shared, written_context: Vec<WrittenContext>) {
    let Ok(db) = shared.database.get() else { return };
    for WrittenContext { context, rows, head, replaced_rows: mut left, .. } in written_context {
        db.committed_heads().unpin(&context, (rows, head));
        remove_replaced_rows(&db, &mut left);
    }
}

/// Publishes pinned commits to readers and watchers.
pub(crate) fn publish(shared: &Shared, written_context: Vec<WrittenContext>) {
    let Ok(db) = shared.database.get() else { return };
    for mut written_context in written_context {
        publish_context(&db, shared, &mut written_context);
    }
}

fn publish_context(db: &Db, shared: &Shared, written_context: &mut WrittenContext) {
    let WrittenContext { context, rows, head, watched, is_load, replaced_rows, .. } = written_context;
    db.committed_heads().unpin(context, (*rows, head.clone()));
    let size: Size = head.size();
    if let Some(entries) = watched.take() {
        shared.tails.committed(context, entries.into_iter(), size);
    } else if !shared.tails.is_idle()
        && let Some(tail) = shared.tails.find(context)
    {
        // A watcher joined after the commit was staged: it reads the entries from the store.
        tail.reach(size);
    }
    if *is_load {
        shared.uncommitted_loads.forget(db, *rows);
    }
    remove_replaced_rows(db, replaced_rows);
}

/// Removes the rows that a load replaced.
fn remove_replaced_rows(db: &Db, left: &mut Option<RowLocation>) {
    if let Some(place) = left.take()
        && let Err(error) = staging::abandon(db, place)
    {
        // Opening the ledger again removes them.
        limited!(warn, %error, "rows that a load replaced stay until restart");
    }
}

/// A waiter that asked for its own quorum.
#[derive(Debug)]
pub(crate) struct QuorumWaiter {
    waiter: Waiter,
    positions: Vec<(ContextId, Position)>,
}

impl QuorumWaiter {
    /// Acknowledges the append with the number of copies.
    pub(crate) fn succeed(self, copies: usize) {
        let positions = self.positions.iter().map(|(context, position)| (context, *position)).collect();
        self.waiter.answer(&positions, copies);
    }

    /// Fails the append: its quorum may never be reached.
    pub(crate) fn fail(self, error: &StoreError) {
        fail(vec![self.waiter], error);
    }

    /// Returns whether the deadline passed or the caller is gone.
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.waiter.is_expired(now)
    }

    /// Notifies the callers that the deadline passed.
    pub(crate) fn expire(self) {
        self.waiter.expire();
    }
}

impl Waiter {
    fn needed(&self) -> WriteQuorum {
        match self {
            Self::One(_, _, wanted) | Self::Many(_, _, wanted) => wanted.quorum,
            Self::Load(..) => WriteQuorum::Configured,
        }
    }

    fn terms(&self) -> Option<&AppendConditions> {
        match self {
            Self::One(_, _, wanted) | Self::Many(_, _, wanted) => Some(&wanted.terms),
            Self::Load(..) => None,
        }
    }

    /// Returns whether the deadline passed or the caller is gone.
    fn is_expired(&self, now: Instant) -> bool {
        match self {
            Self::One(_, reply, wanted) => reply.is_closed() || wanted.terms.is_expired(now),
            Self::Many(_, reply, wanted) => reply.is_closed() || wanted.terms.is_expired(now),
            Self::Load(..) => false,
        }
    }

    /// Notifies the callers that the deadline passed.
    pub(crate) fn expire(self) {
        for (slot, waiting) in self.by_slot() {
            fail(vec![waiting], &StoreError::NotCopied { slot });
        }
    }

    fn answer(self, positions: &Positions<'_>, copies: usize) {
        match self {
            // The caller may be gone; the entry is stored nevertheless.
            Self::One(result, reply, _) => {
                _ = reply.send(result.map(|appended| Appended { copies, ..appended }));
            }
            Self::Many(results, reply, _) => {
                let positions = newest(positions, &results);
                _ = reply.send(BatchResults { results, positions, copies });
            }
            Self::Load(_, done) => _ = done.try_send(Ok(true)),
        }
    }

    /// Splits it by slot: the results of a batch belong to several.
    fn by_slot(self) -> Vec<(Slot, Self)> {
        match self {
            Self::One(result, reply, wanted) => {
                let Ok(appended) = &result else {
                    // A failed append waits for nothing.
                    let _ = reply.send(result);
                    return Vec::new();
                };
                let slot = Slot::of(&appended.entry.context_id);
                vec![(slot, Self::One(result, reply, wanted))]
            }
            Self::Load(slot, done) => vec![(slot, Self::Load(slot, done))],
            Self::Many(results, reply, wanted) => {
                let mut refused = Vec::new();
                let mut parts: Vec<(Slot, Vec<BatchResult>)> = Vec::new();
                let mut last: Option<(ContextId, usize)> = None;
                for result in results {
                    let Ok(entry) = &result.result else {
                        refused.push(result);
                        continue;
                    };
                    let at = match &last {
                        Some((context, at)) if *context == entry.context_id => *at,
                        _ => {
                            let slot = Slot::of(&entry.context_id);
                            let at = parts.iter().position(|(of, _)| *of == slot).unwrap_or_else(|| {
                                parts.push((slot, Vec::new()));
                                parts.len() - 1
                            });
                            last = Some((entry.context_id.clone(), at));
                            at
                        }
                    };
                    parts[at].1.push(result);
                }
                if !refused.is_empty() {
                    let _ = reply.send(BatchResults { results: refused, positions: Vec::new(), copies: 0 });
                }
                parts
                    .into_iter()
                    .map(|(slot, results)| (slot, Self::Many(results, reply.clone(), wanted.clone())))
                    .collect()
            }
        }
    }
}

/// The positions of contexts after a commit.
type Positions<'a> = HashMap<&'a ContextId, Position, RandomState>;

/// Returns the position of each context that a message acknowledges entries of.
fn newest(positions: &Positions<'_>, results: &[BatchResult]) -> Vec<(ContextId, Position)> {
    let mut seen = HashSet::<&ContextId, RandomState>::default();
    let stored = results.iter().filter_map(|result| result.result.as_ref().ok());
    stored
        .map(|entry| &entry.context_id)
        .filter(|context| seen.insert(context))
        .filter_map(|context| Some((context.clone(), *positions.get(context)?)))
        .collect()
}

/// Notifies owners that none of their parts was stored.
fn fail_replicate_replies(taken: Vec<(Vec<ReplicateOutcome>, ReplicateReply)>, error: &StoreError) {
    for (_, reply) in taken {
        let _ = reply.send(Err(error.clone()));
    }
}

/// Notifies all waiters that nothing was stored.
fn fail(waiting: Vec<Waiter>, error: &StoreError) {
    for waiting in waiting {
        match waiting {
            // An append that was refused for its own sake keeps its own error.
            Waiter::One(result, reply, _) => _ = reply.send(result.and(Err(error.clone()))),
            Waiter::Load(_, done) => _ = done.try_send(Err(error.clone())),
            Waiter::Many(mut results, reply, _) => {
                for result in &mut results {
                    if result.result.is_ok() {
                        result.result = Err(error.clone());
                    }
                }
                _ = reply.send(BatchResults { results, positions: Vec::new(), copies: 0 });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ledger, testing};

    #[test]
    fn a_commit_that_only_repeats_is_not_acknowledged_by_a_database_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open_with(dir.path().join("ledger"), testing::options()).unwrap();
        let shared = &ledger.inner().shared;
        let db = testing::open(&dir.path().join("db"));
        assert!(StagedCommit::new().put(&db, shared, &mut Vec::new(), true).is_ok());
        // The appends that it repeats may have been written earlier and not be on the disk.
        db.fail(StoreError::Io("the disk failed".to_owned()));
        assert!(StagedCommit::new().put(&db, shared, &mut Vec::new(), true).is_err());
    }
}
