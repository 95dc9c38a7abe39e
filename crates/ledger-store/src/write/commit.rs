//! A group commit in its three states: staged, written, durable.
//!
//! ```text
//! Staged  ── one write of the batch ──▶  Written  ── one sync, for all that wait ──▶  acknowledged
//! ```
//!
//! Until a commit is durable no reader sees it and no caller is notified. In a cluster the commit is then split by
//! slot and waits in [`LaneReplication`](crate::replicate::lane_replication::LaneReplication): the owner's part until
//! it has its write quorum, and a replica's part until the owner's commit index reaches it.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use ledger_core::{ContextId, Entry, EntryId, Size, digest::TreeHead, loads::LoadSpan, slot::Slot};
use rocksdb::WriteBatch;

use crate::{
    StoreError,
    engine::db::Db,
    engine::families::RowLocation,
    engine::index,
    ids,
    replicate::replica::ReplicateOutcome,
    shared::Shared,
    write::command::ReplicateReply,
    write::committed_heads::Row,
    write::staging,
    write::state::ContextState,
    write::waiters::{self, Answers, QuorumWaiter, SlotPart, Waiter},
    write::written_context::{WriteOrigin, WrittenContext},
};

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
            now_ns: ids::now_ns(),
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
            waiters::fail(self.waiters, &shared.answer_to_failed(&error));
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
        let answers = Answers::new(Arc::clone(db), self.waiters);
        let written = WrittenCommit { contexts, answers, replicate_replies: self.replicate_replies };
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
                    shared.publisher.uncommitted_loads.note(
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
            if shared.publisher.visibility.is_withheld(staged_context.state.place.slot) {
                db.committed_heads().pin(context, staged_context.before.clone());
            }
        }
        let batch = std::mem::take(&mut self.batch);
        if is_alone { db.write(batch) } else { db.write_unsynced(batch) }
    }
}

/// A commit that is in the database and not yet known to be on the disk.
pub(crate) struct WrittenCommit {
    contexts: Vec<WrittenContext>,
    answers: Answers,
    replicate_replies: Vec<(Vec<ReplicateOutcome>, ReplicateReply)>,
}

impl WrittenCommit {
    /// Returns the database that it was written to.
    pub(crate) fn db(&self) -> &Arc<Db> {
        self.answers.db()
    }

    /// Returns the contexts as it left them.
    pub(crate) fn contexts(&self) -> &[WrittenContext] {
        &self.contexts
    }

    /// Takes the responses to be sent when it is durable.
    pub(crate) fn take_replies(&mut self) -> Vec<(Vec<ReplicateOutcome>, ReplicateReply)> {
        std::mem::take(&mut self.replicate_replies)
    }

    /// Splits it into what this node wrote as owner, by slot, and what it wrote as replica.
    pub(crate) fn split(self) -> (Vec<SlotPart>, Vec<WrittenContext>) {
        let Self { contexts, answers, .. } = self;
        let (db, waiters) = answers.into_parts();
        let mut parts: Vec<SlotPart> = Vec::new();
        let mut replicated = Vec::new();
        let part = |parts: &mut Vec<SlotPart>, slot: Slot| -> usize {
            parts.iter().position(|part| part.slot == slot).unwrap_or_else(|| {
                let answers = Answers::new(Arc::clone(&db), Vec::new());
                parts.push(SlotPart { slot, write: None, answers, waiters: Vec::new() });
                parts.len() - 1
            })
        };
        for written_context in contexts.into_iter().filter(|written_context| written_context.appended > 0) {
            match written_context.origin {
                WriteOrigin::Replicated(..) => replicated.push(written_context),
                WriteOrigin::Owner(..) => {
                    let at = part(&mut parts, written_context.rows.slot);
                    parts[at].write.get_or_insert_default().push(written_context);
                }
            }
        }
        for (slot, waiter) in waiters.into_iter().flat_map(Waiter::by_slot) {
            let at = part(&mut parts, slot);
            if let Some(waiter) = parts[at].answers.push(waiter) {
                let contexts = parts[at].write.as_deref().unwrap_or_default();
                let waiter = QuorumWaiter::new(waiter, contexts);
                parts[at].waiters.push(waiter);
            }
        }
        (parts, replicated)
    }

    /// Publishes the committed commit to readers and watchers, and notifies its waiters. `copies` is the number of
    /// nodes that have it on disk.
    pub(crate) fn acknowledge(self, shared: &Shared, copies: usize) {
        self.answers.acknowledge(&shared.publisher, self.contexts, copies);
        for (outcome, reply) in self.replicate_replies {
            // The owner's stream may be gone.
            let _ = reply.send(Ok(outcome));
        }
    }

    /// Notifies the waiters that the commit may not be durable. Readers keep seeing the state before.
    pub(crate) fn fail(self, error: &StoreError) {
        self.answers.fail(error);
        fail_replicate_replies(self.replicate_replies, error);
    }
}

/// Notifies owners that none of their parts was stored.
fn fail_replicate_replies(taken: Vec<(Vec<ReplicateOutcome>, ReplicateReply)>, error: &StoreError) {
    for (_, reply) in taken {
        let _ = reply.send(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ledger, Options, testing};

    #[test]
    fn a_commit_that_only_repeats_is_not_acknowledged_by_a_database_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open_with(dir.path().join("ledger"), testing::options()).unwrap();
        let shared = &ledger.store().shared;
        let db = testing::open(&dir.path().join("db"));
        assert!(StagedCommit::new().put(&db, shared, &mut Vec::new(), true).is_ok());
        // The appends that it repeats may have been written earlier and not be on the disk.
        db.fail(StoreError::Io("the disk failed".to_owned()));
        assert!(StagedCommit::new().put(&db, shared, &mut Vec::new(), true).is_err());
    }

    #[test]
    fn what_waits_for_a_commit_that_failed_is_told_to_repeat_it_at_the_next_owner() {
        let dir = tempfile::tempdir().unwrap();
        for (clustered, expected) in
            [(true, StoreError::NotAcknowledged), (false, StoreError::Io("the disk failed".to_owned()))]
        {
            let options = Options { clustered, ..testing::options() };
            let ledger = Ledger::open_with(dir.path().join(format!("ledger-{clustered}")), options).unwrap();
            let shared = Arc::clone(&ledger.store().shared);
            let db = Arc::new(testing::open(&dir.path().join(format!("db-{clustered}"))));
            db.fail(StoreError::Io("the disk failed".to_owned()));
            let (done, answer) = std::sync::mpsc::sync_channel(1);
            let waiters = vec![Waiter::Load(Slot::FIRST, done)];
            let staged = StagedCommit { waiters, ..StagedCommit::new() };
            assert!(staged.write(&db, &shared, &mut Vec::new(), false).is_none());
            assert_eq!(answer.recv().unwrap().unwrap_err().to_string(), expected.to_string());
        }
    }
}
