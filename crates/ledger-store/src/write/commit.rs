//! A group commit in its three states: staged, written, durable.
//!
//! ```text
//! Staged  ── one write of the batch ──▶  Written  ── one sync, for all that wait ──▶  acknowledged
//! ```
//!
//! Until it is durable nobody reads it and nobody is told of it. In a cluster an owner's part of it is acknowledged when
//! it has its copies, and a replica's is shown when the owner says so: then it is split by slot, and waits in
//! [`Copies`](crate::replicate::lane_replication::LaneReplication).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use foldhash::fast::RandomState;
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Head, Position, Size,
    digest::TreeHead,
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
    write::uncommitted_loads::LoadSpan,
};

/// Who waits for the results of a commit, and for which copies.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "they live in a list that is emptied with the commit")]
pub(crate) enum Waiter {
    One(Result<Appended, StoreError>, oneshot::Sender<Result<Appended, StoreError>>, WaiterTerms),
    Many(Vec<BatchResult>, mpsc::UnboundedSender<BatchResults>, WaiterTerms),
    /// A loaded history was put in place, of this slot.
    Load(Slot, Installed),
}

/// What those who wait asked for.
#[derive(Debug, Clone)]
pub(crate) struct WaiterTerms {
    pub(crate) quorum: WriteQuorum,
    pub(crate) terms: AppendConditions,
}

/// To whoever waits for a load, without waiting for them: whether it is in place.
pub(crate) type Installed = std::sync::mpsc::SyncSender<Result<bool, StoreError>>;

/// A replica's answer to what it was sent: one for each part.
pub(crate) type ReplicateReply = oneshot::Sender<Result<Vec<ReplicateOutcome>, StoreError>>;

/// The contexts of a commit. The hasher is quick, and seeded: names come from clients.
pub(crate) type States = HashMap<ContextId, StagedContext, RandomState>;

/// A commit being staged.
pub(crate) struct StagedCommit {
    /// Wall-clock time of the commit's entries, nanoseconds since the Unix epoch.
    pub(crate) now_ns: u64,
    pub(crate) batch: WriteBatch,
    pub(crate) contexts: States,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) entries: usize,
    /// Answers to owners whose commits are in this one, to be given when it is durable.
    pub(crate) replicate_replies: Vec<(Vec<ReplicateOutcome>, ReplicateReply)>,
}

/// A context that a commit touches.
pub(crate) struct StagedContext {
    pub(crate) state: ContextState,
    /// What the context was before this commit.
    pub(crate) before: Row,
    /// How far it went before this commit; `None`: it did not exist.
    pub(crate) tree_head_before: Option<TreeHead>,
    /// In a cluster: whose entries these are.
    pub(crate) origin: WriteOrigin,
    /// The records of the new entries, kept only while they are to be sent on.
    pub(crate) records: Vec<u8>,
    /// Ids that clients chose, of entries in this commit.
    pub(crate) ids: HashMap<EntryId, Entry>,
    /// The new entries, kept only while the context is watched.
    pub(crate) watched: Option<Vec<Entry>>,
    pub(crate) appended: u64,
    /// In a cluster: what a load brought.
    pub(crate) loaded: Option<LoadSpan>,
    /// Where its rows were before a load: they are of no use once this is stable.
    pub(crate) replaced_rows: Option<RowLocation>,
}

/// Whose a context's new entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteOrigin {
    /// This node's own, written in an epoch and sent to these peers.
    Owner(Epoch, PeerSet),
    /// The owner's of an epoch, of its commit of this number; 0: fetched.
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

    /// A history that was staged takes the place of what there was.
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
            // Whoever watches reads it from the store.
            watched: None,
            appended: to.0 - after.0,
            loaded: Some(LoadSpan { after, to }),
            state,
        }
    }

    /// The same, of what another commit's part may have brought before in this one.
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

    /// Writes it, durably at once if it `is_alone`, else not yet: readers go on seeing what was before. Hands
    /// back the states, which the next commit is staged on; if the write failed there are none.
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
                // Whatever was damaged is not read any more.
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
            // A context that was only looked at may not exist: it is not kept.
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
            // Of a database that failed nobody knows whether what it says of earlier entries is on the disk.
            return db.failure().map_or(Ok(()), Err);
        }
        // What little space there is, is for what the node itself must write.
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
                // Until this is stable, readers are at the rows of before.
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
            // Of a slot that nobody reads here nothing has to be held back.
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
    /// On which it was taken, as long as one of them lasts: what they hold is held for what is kept here.
    terms: Vec<AppendConditions>,
}

/// A context as a commit left it.
#[derive(Debug)]
pub(crate) struct WrittenContext {
    pub(crate) context: ContextId,
    pub(crate) rows: RowLocation,
    pub(crate) head: Head,
    /// How far it goes, and how far it went before.
    pub(crate) tree_head: TreeHead,
    pub(crate) watched: Option<Vec<Entry>>,
    pub(crate) appended: u64,
    pub(crate) origin: WriteOrigin,
    pub(crate) records: Vec<u8>,
    pub(crate) tree_head_before: Option<TreeHead>,
    /// A load brought the entries.
    pub(crate) is_load: bool,
    /// Rows that nobody reads any more once it is stable.
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
    /// The database it was written to.
    pub(crate) fn db(&self) -> &Arc<Db> {
        &self.db
    }

    /// Whether it wrote any entry.
    pub(crate) fn has_entries(&self) -> bool {
        self.entries > 0
    }

    /// The contexts as it left them.
    pub(crate) fn contexts(&self) -> &[WrittenContext] {
        &self.contexts
    }

    /// What it wrote, to be sent in a claim.
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

    /// What is to be answered when it is durable.
    pub(crate) fn take_replies(&mut self) -> Vec<(Vec<ReplicateOutcome>, ReplicateReply)> {
        std::mem::take(&mut self.replicate_replies)
    }

    /// Parts it: what this node wrote as the owner of slots, by slot; and what it wrote as a replica.
    pub(crate) fn split(self) -> (Vec<(Slot, Self)>, Vec<WrittenContext>) {
        let Self { db, contexts, waiters, .. } = self;
        let mut parts: Vec<(Slot, Self)> = Vec::new();
        let mut followed = Vec::new();
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
                WriteOrigin::Replicated(..) => followed.push(written_context),
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
        (parts, followed)
    }

    /// Takes what is to be answered with other than the configured number of copies.
    pub(crate) fn take_quorum_waiters(&mut self) -> Vec<(WriteQuorum, QuorumWaiter)> {
        if self.waiters.iter().all(|waiting| waiting.needed() == WriteQuorum::Configured) {
            return Vec::new();
        }
        let (asked, rest): (Vec<_>, Vec<_>) =
            self.waiters.drain(..).partition(|waiting| waiting.needed() != WriteQuorum::Configured);
        self.waiters = rest;
        let positions: Vec<_> = self
            .contexts
            .iter()
            .map(|written_context| (written_context.context.clone(), written_context.position()))
            .collect();
        let answer =
            |waiter: Waiter| (waiter.needed(), QuorumWaiter { waiter, positions: positions.clone() });
        asked.into_iter().map(answer).collect()
    }

    /// Takes those who wait no longer: their time is over, or they went. What is kept of it then is small.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Vec<Waiter> {
        let (over, rest): (Vec<_>, Vec<_>) =
            self.waiters.drain(..).partition(|waiting| waiting.is_expired(now));
        self.waiters = rest;
        let before = self.terms.len();
        self.terms.retain(|terms| !terms.is_expired(now));
        if before > 0 && self.terms.is_empty() {
            // Watchers read the store instead.
            self.contexts.iter_mut().for_each(|written_context| written_context.watched = None);
        }
        over
    }

    /// It is stable, with so many copies: shows it to readers and watchers, and tells those who wait.
    pub(crate) fn acknowledge(self, shared: &Shared, copies: usize) {
        let Self { db, mut contexts, waiters, entries, replicate_replies, terms: _terms } = self;
        for written_context in contexts.iter_mut().filter(|written_context| written_context.appended > 0) {
            publish_context(&db, shared, written_context);
        }
        if entries > 0 {
            shared.count_commit(entries as u64);
        }
        for (outcome, reply) in replicate_replies {
            // The owner may be gone.
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

    /// It may not be durable, or not have its copies: tells those who wait. Readers go on seeing what was before;
    /// gives back the contexts.
    pub(crate) fn fail(self, error: &StoreError) -> Vec<WrittenContext> {
        fail(self.waiters, error);
        fail_replicate_replies(self.replicate_replies, error);
        self.contexts
    }
}

/// Holds back no more of contexts of a slot that is not shown. Nobody is told: it may be about to be left.
pub(crate) fn unpin(shared: &Shared, written_context: Vec<WrittenContext>) {
    let Ok(db) = shared.database.get() else { return };
    for WrittenContext { context, rows, head, replaced_rows: mut left, .. } in written_context {
        db.committed_heads().unpin(&context, (rows, head));
        remove_replaced_rows(&db, &mut left);
    }
}

/// Shows what was held back of contexts to readers and watchers.
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
        // Somebody began to watch after the commit was staged: it reads the store.
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
        // They are removed when the ledger is opened again.
        limited!(warn, %error, "rows that a load replaced stay until restart");
    }
}

/// An answer that waits for copies by itself.
#[derive(Debug)]
pub(crate) struct QuorumWaiter {
    waiter: Waiter,
    positions: Vec<(ContextId, Position)>,
}

impl QuorumWaiter {
    /// There are so many copies.
    pub(crate) fn succeed(self, copies: usize) {
        let positions = self.positions.iter().map(|(context, position)| (context, *position)).collect();
        self.waiter.answer(&positions, copies);
    }

    /// There may never be enough.
    pub(crate) fn fail(self, error: &StoreError) {
        fail(vec![self.waiter], error);
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.waiter.is_expired(now)
    }

    /// Tells those who wait that their time is over.
    pub(crate) fn expire(self) {
        self.waiter.expire();
    }
}

impl Waiter {
    fn needed(&self) -> WriteQuorum {
        match self {
            Self::One(_, _, asked) | Self::Many(_, _, asked) => asked.quorum,
            Self::Load(..) => WriteQuorum::Configured,
        }
    }

    fn terms(&self) -> Option<&AppendConditions> {
        match self {
            Self::One(_, _, asked) | Self::Many(_, _, asked) => Some(&asked.terms),
            Self::Load(..) => None,
        }
    }

    /// Whether the time is over, or nobody is there any more.
    fn is_expired(&self, now: Instant) -> bool {
        match self {
            Self::One(_, reply, asked) => reply.is_closed() || asked.terms.is_expired(now),
            Self::Many(_, reply, asked) => reply.is_closed() || asked.terms.is_expired(now),
            Self::Load(..) => false,
        }
    }

    /// Tells those who wait that their time is over.
    pub(crate) fn expire(self) {
        for (slot, waiting) in self.by_slot() {
            fail(vec![waiting], &StoreError::NotCopied { slot });
        }
    }

    fn answer(self, positions: &Positions<'_>, copies: usize) {
        match self {
            // Whoever asked may have gone: the entry is stored all the same.
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

    /// Its parts by slot: results of a batch are of several.
    fn by_slot(self) -> Vec<(Slot, Self)> {
        match self {
            Self::One(result, reply, asked) => {
                let Ok(appended) = &result else {
                    // It waits for nothing.
                    let _ = reply.send(result);
                    return Vec::new();
                };
                let slot = Slot::of(&appended.entry.context_id);
                vec![(slot, Self::One(result, reply, asked))]
            }
            Self::Load(slot, done) => vec![(slot, Self::Load(slot, done))],
            Self::Many(results, reply, asked) => {
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
                    .map(|(slot, results)| (slot, Self::Many(results, reply.clone(), asked.clone())))
                    .collect()
            }
        }
    }
}

/// Where contexts stand after a commit.
type Positions<'a> = HashMap<&'a ContextId, Position, RandomState>;

/// Where each context that a message acknowledges entries of stands.
fn newest(positions: &Positions<'_>, results: &[BatchResult]) -> Vec<(ContextId, Position)> {
    let mut seen = HashSet::<&ContextId, RandomState>::default();
    let stored = results.iter().filter_map(|result| result.result.as_ref().ok());
    stored
        .map(|entry| &entry.context_id)
        .filter(|context| seen.insert(context))
        .filter_map(|context| Some((context.clone(), *positions.get(context)?)))
        .collect()
}

/// Tells owners that nothing of theirs was stored.
fn fail_replicate_replies(taken: Vec<(Vec<ReplicateOutcome>, ReplicateReply)>, error: &StoreError) {
    for (_, reply) in taken {
        let _ = reply.send(Err(error.clone()));
    }
}

/// Tells everybody that nothing was stored.
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
        // What it repeats may have been written to it before, and not be on the disk.
        db.fail(StoreError::Io("the disk failed".to_owned()));
        assert!(StagedCommit::new().put(&db, shared, &mut Vec::new(), true).is_err());
    }
}
