//! Those who wait for a commit, and how they are answered.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use foldhash::fast::RandomState;
use ledger_core::{
    ContextId, Position,
    replication::{WriteQuorum, slot_commits::CommitPart},
    slot::Slot,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    AppendConditions, Appended, BatchResult, BatchResults, StoreError,
    engine::db::Db,
    write::command::Installed,
    write::publish::{Publisher, publish},
    write::written_context::WrittenContext,
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

/// Those who wait for a commit, or for its part of a slot.
pub(crate) struct Answers {
    /// The database that the commit was written to.
    db: Arc<Db>,
    waiters: Vec<Waiter>,
    /// The unexpired terms of its appends. Their permits account for the memory that the commit holds.
    terms: Vec<AppendConditions>,
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("waiters", &self.waiters.len()).finish_non_exhaustive()
    }
}

impl Answers {
    pub(crate) fn new(db: Arc<Db>, waiters: Vec<Waiter>) -> Self {
        Self { db, waiters, terms: Vec::new() }
    }

    /// Returns the database that the commit was written to.
    pub(crate) fn db(&self) -> &Arc<Db> {
        &self.db
    }

    /// Returns the database that the commit was written to, and those who wait.
    pub(crate) fn into_parts(self) -> (Arc<Db>, Vec<Waiter>) {
        (self.db, self.waiters)
    }

    /// Publishes what the committed commit wrote to readers and watchers, and notifies those who wait. `copies` is the
    /// number of nodes that have it on disk.
    pub(crate) fn acknowledge(self, publisher: &Publisher, mut contexts: Vec<WrittenContext>, copies: usize) {
        let entries = publish(&self.db, publisher, &mut contexts);
        if entries > 0 {
            publisher.count_commit(entries);
        }
        let mut positions = Positions::default();
        if self.waiters.iter().any(|waiting| matches!(waiting, Waiter::Many(..))) {
            positions.extend(
                contexts.iter().map(|written_context| (&written_context.context, written_context.position())),
            );
        }
        for waiting in self.waiters {
            waiting.answer(&positions, copies);
        }
    }

    /// Notifies those who wait that the commit may not be durable, or may lack its quorum.
    pub(crate) fn fail(self, error: &StoreError) {
        fail(self.waiters, error);
    }

    /// Takes the waiters whose deadline passed or whose caller is gone. What the commit then still holds is small.
    pub(crate) fn take_expired(&mut self, now: Instant, contexts: &mut [WrittenContext]) -> Vec<Waiter> {
        let over = self.waiters.extract_if(.., |waiting| waiting.is_expired(now)).collect();
        let before = self.terms.len();
        self.terms.retain(|terms| !terms.is_expired(now));
        if before > 0 && self.terms.is_empty() {
            // Watchers read these entries from the store instead.
            for written_context in contexts {
                written_context.watched = None;
            }
        }
        over
    }

    /// Adds a waiter, unless it waits for a write quorum of its own: that one it returns.
    pub(crate) fn push(&mut self, waiter: Waiter) -> Option<Waiter> {
        self.terms.extend(waiter.terms().cloned());
        if waiter.quorum() != WriteQuorum::Configured {
            return Some(waiter);
        }
        self.waiters.push(waiter);
        None
    }
}

/// The part of a commit of this node's own that is for one slot.
pub(crate) type SlotPart = CommitPart<Vec<WrittenContext>, Answers, QuorumWaiter>;

/// A waiter that asked for its own quorum.
#[derive(Debug)]
pub(crate) struct QuorumWaiter {
    waiter: Waiter,
    positions: Vec<(ContextId, Position)>,
}

impl QuorumWaiter {
    /// Creates the waiter for a commit that left contexts as they are.
    pub(crate) fn new(waiter: Waiter, contexts: &[WrittenContext]) -> (WriteQuorum, Self) {
        let position = |of: &WrittenContext| (of.context.clone(), of.position());
        (waiter.quorum(), Self { positions: contexts.iter().map(position).collect(), waiter })
    }

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
    fn quorum(&self) -> WriteQuorum {
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
    pub(crate) fn by_slot(self) -> Vec<(Slot, Self)> {
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

/// Notifies all waiters that nothing was stored.
pub(crate) fn fail(waiting: Vec<Waiter>, error: &StoreError) {
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
