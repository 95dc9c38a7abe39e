//! A group commit in its three states: staged, written, durable.
//!
//! ```text
//! Staged  ── one write of the batch ──▶  Written  ── one sync, for all that wait ──▶  acknowledged
//! ```
//!
//! Until it is durable nobody reads it and nobody is told of it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use foldhash::fast::RandomState;
use ledger_core::{ContextId, Entry, EntryId, Head, Position};
use rocksdb::WriteBatch;
use tokio::sync::{mpsc, oneshot};

use crate::{
    Appended, BatchResult, BatchResults, StoreError, db::Db, families::Place, shared::Shared, stable::Row,
    state::ContextState,
};

/// Who waits for the results of a commit.
#[allow(clippy::large_enum_variant, reason = "they live in a list that is emptied with the commit")]
pub(crate) enum Waiting {
    One(Result<Appended, StoreError>, oneshot::Sender<Result<Appended, StoreError>>),
    Many(Vec<BatchResult>, mpsc::UnboundedSender<BatchResults>),
}

/// The contexts of a commit. The hasher is quick, and seeded: names come from clients.
pub(crate) type States = HashMap<ContextId, Touched, RandomState>;

/// A commit being staged.
pub(crate) struct Staged {
    /// Wall-clock time of the commit's entries, nanoseconds since the Unix epoch.
    pub(crate) now_ns: u64,
    pub(crate) batch: WriteBatch,
    pub(crate) states: States,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) entries: usize,
}

/// A context that a commit touches.
pub(crate) struct Touched {
    pub(crate) state: ContextState,
    /// What the context was before this commit.
    pub(crate) before: Row,
    /// Ids that clients chose, of entries in this commit.
    pub(crate) ids: HashMap<EntryId, Entry>,
    /// The new entries, kept only while the context is watched.
    pub(crate) watched: Option<Vec<Entry>>,
    pub(crate) appended: u64,
}

impl Touched {
    pub(crate) fn new(state: ContextState, is_watched: bool) -> Self {
        let before = (state.head.frontier.size() > 0).then(|| (state.place, state.head.clone()));
        Self { state, before, ids: HashMap::new(), watched: is_watched.then(Vec::new), appended: 0 }
    }
}

impl Staged {
    pub(crate) fn new() -> Self {
        Self {
            now_ns: Shared::now_ns(),
            batch: WriteBatch::default(),
            states: States::default(),
            waiting: Vec::new(),
            entries: 0,
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
    ) -> Option<(Written, Vec<(ContextId, ContextState)>)> {
        if let Err(error) = self.put(db, buffer, is_alone) {
            shared.commit_failed(&error);
            fail(self.waiting, &error);
            return None;
        }
        let mut contexts = Vec::with_capacity(self.states.len());
        let mut states = Vec::with_capacity(self.states.len());
        for (context, touched) in self.states {
            let Touched { state, watched, appended, .. } = touched;
            let head = state.head.clone();
            contexts.push(Reached { context: context.clone(), place: state.place, head, watched, appended });
            // A context that was only looked at may not exist: it is not kept.
            if state.head.frontier.size() > 0 {
                states.push((context, state));
            }
        }
        let written = Written { db: Arc::clone(db), contexts, waiting: self.waiting, entries: self.entries };
        Some((written, states))
    }

    fn put(&mut self, db: &Db, buffer: &mut Vec<u8>, is_alone: bool) -> Result<(), StoreError> {
        if self.entries == 0 {
            return Ok(());
        }
        for (context, touched) in self.states.iter().filter(|(_, touched)| touched.appended > 0) {
            touched.state.put_head(db, &mut self.batch, context, buffer)?;
        }
        for (context, touched) in self.states.iter_mut().filter(|(_, touched)| touched.appended > 0) {
            db.stable().hold(context, touched.before.take());
        }
        let batch = std::mem::take(&mut self.batch);
        if is_alone { db.write(batch) } else { db.write_unsynced(batch) }
    }
}

/// A commit that is in the database and not yet known to be on the disk.
pub(crate) struct Written {
    db: Arc<Db>,
    contexts: Vec<Reached>,
    waiting: Vec<Waiting>,
    entries: usize,
}

/// A context as a commit left it.
struct Reached {
    context: ContextId,
    place: Place,
    head: Head,
    watched: Option<Vec<Entry>>,
    appended: u64,
}

impl Written {
    /// The database it was written to.
    pub(crate) fn db(&self) -> &Arc<Db> {
        &self.db
    }

    /// It is durable: shows it to readers and watchers, and tells those who wait.
    pub(crate) fn acknowledge(self, shared: &Shared) {
        let Self { db, mut contexts, waiting, entries } = self;
        for reached in contexts.iter_mut().filter(|reached| reached.appended > 0) {
            let Reached { context, place, head, watched, .. } = reached;
            db.stable().settle(context, (*place, head.clone()));
            if let Some(entries) = watched.take() {
                shared.tails.committed(context, entries.into_iter(), head.size());
            } else if !shared.tails.is_idle()
                && let Some(tail) = shared.tails.find(context)
            {
                // Somebody began to watch after the commit was staged: it reads the store.
                tail.reach(head.size());
            }
        }
        if entries > 0 {
            shared.committed(entries as u64);
        }
        let mut positions = Positions::default();
        if waiting.iter().any(|waiting| matches!(waiting, Waiting::Many(..))) {
            positions.extend(contexts.iter().map(|reached| (&reached.context, reached.head.position())));
        }
        for waiting in waiting {
            match waiting {
                // Whoever asked may have gone: the entry is stored all the same.
                Waiting::One(result, reply) => _ = reply.send(result),
                Waiting::Many(results, reply) => {
                    let positions = newest(&positions, &results);
                    _ = reply.send(BatchResults { results, positions });
                }
            }
        }
    }

    /// It may not be durable: tells those who wait. Readers go on seeing what was before.
    pub(crate) fn fail(self, error: &StoreError) {
        fail(self.waiting, error);
    }
}

/// Where contexts stand after a commit.
type Positions<'a> = HashMap<&'a ContextId, Position, RandomState>;

/// Where each context that a message acknowledges entries of stands.
fn newest(positions: &Positions<'_>, results: &[BatchResult]) -> Vec<(ContextId, Position)> {
    let mut seen = HashSet::<&ContextId, RandomState>::default();
    let stored = results.iter().filter_map(|result| result.result.as_ref().ok());
    stored
        .map(|(entry, _)| &entry.context_id)
        .filter(|context| seen.insert(context))
        .filter_map(|context| Some((context.clone(), *positions.get(context)?)))
        .collect()
}

/// Tells everybody that nothing was stored.
fn fail(waiting: Vec<Waiting>, error: &StoreError) {
    for waiting in waiting {
        match waiting {
            // An append that was refused for its own sake keeps its own error.
            Waiting::One(result, reply) => _ = reply.send(result.and(Err(error.clone()))),
            Waiting::Many(mut results, reply) => {
                for result in &mut results {
                    if result.result.is_ok() {
                        result.result = Err(error.clone());
                    }
                }
                _ = reply.send(BatchResults { results, positions: Vec::new() });
            }
        }
    }
}
