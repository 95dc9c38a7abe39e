//! A group commit in its three states: staged, written, durable.
//!
//! ```text
//! Staged  ── one write of the batch ──▶  Written  ── one sync, for all that wait ──▶  acknowledged
//! ```
//!
//! Until it is durable nobody reads it and nobody is told of it. In a cluster an owner's part of it is acknowledged when
//! it has its copies, and a replica's is shown when the owner says so: then it is split by slot, and waits in
//! [`Copies`](crate::copies::Copies).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use foldhash::fast::RandomState;
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Head, Position, Size,
    digest::Extent,
    ownership::Claim,
    replication::{Needed, PeerSet},
    slot::Slot,
};
use rocksdb::WriteBatch;
use tokio::sync::{mpsc, oneshot};

use crate::{
    Appended, BatchResult, BatchResults, Range, StoreError, Terms,
    db::Db,
    families::Place,
    index, limited,
    loaded::Span,
    replica::{Part, Taken},
    shared::Shared,
    stable::Row,
    staging,
    state::ContextState,
};

/// Who waits for the results of a commit, and for which copies.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "they live in a list that is emptied with the commit")]
pub(crate) enum Waiting {
    One(Result<Appended, StoreError>, oneshot::Sender<Result<Appended, StoreError>>, Asked),
    Many(Vec<BatchResult>, mpsc::UnboundedSender<BatchResults>, Asked),
    /// A loaded history was put in place, of this slot.
    Load(Slot, Installed),
}

/// What those who wait asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) needed: Needed,
    pub(crate) terms: Terms,
}

/// To whoever waits for a load, without waiting for them: whether it is in place.
pub(crate) type Installed = std::sync::mpsc::SyncSender<Result<bool, StoreError>>;

/// A replica's answer to what it was sent: one for each part.
pub(crate) type TakenReply = oneshot::Sender<Result<Vec<Taken>, StoreError>>;

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
    /// Answers to owners whose commits are in this one, to be given when it is durable.
    pub(crate) taken: Vec<(Vec<Taken>, TakenReply)>,
}

/// A context that a commit touches.
pub(crate) struct Touched {
    pub(crate) state: ContextState,
    /// What the context was before this commit.
    pub(crate) before: Row,
    /// How far it went before this commit; `None`: it did not exist.
    pub(crate) reached: Option<Extent>,
    /// In a cluster: whose entries these are.
    pub(crate) origin: Origin,
    /// The records of the new entries, kept only while they are to be sent on.
    pub(crate) records: Vec<u8>,
    /// Ids that clients chose, of entries in this commit.
    pub(crate) ids: HashMap<EntryId, Entry>,
    /// The new entries, kept only while the context is watched.
    pub(crate) watched: Option<Vec<Entry>>,
    pub(crate) appended: u64,
    /// In a cluster: what a load brought.
    pub(crate) loaded: Option<Span>,
    /// Where its rows were before a load: they are of no use once this is stable.
    pub(crate) left: Option<Place>,
}

/// Whose a context's new entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This node's own, written in an epoch and sent to these peers.
    Own(Epoch, PeerSet),
    /// The owner's of an epoch, of its commit of this number; 0: fetched.
    Followed(Epoch, u64),
}

impl Touched {
    pub(crate) fn new(mut state: ContextState, is_watched: bool, origin: Origin) -> Self {
        let before = (state.head.frontier.size() > 0).then(|| (state.place, state.head.clone()));
        let reached = before.is_some().then(|| state.extent());
        Self {
            state,
            before,
            reached,
            origin,
            records: Vec::new(),
            ids: HashMap::new(),
            watched: is_watched.then(Vec::new),
            appended: 0,
            loaded: None,
            left: None,
        }
    }

    /// A history that was staged takes the place of what there was.
    pub(crate) fn loaded(before: Row, state: ContextState, origin: Origin) -> Self {
        let reached = before.as_ref().map(|(_, head)| head.extent());
        let (after, to) = (reached.map_or(Size(0), |reached| reached.size), state.head.size());
        Self {
            left: before.as_ref().map(|(place, _)| *place),
            before,
            reached,
            origin,
            records: Vec::new(),
            ids: HashMap::new(),
            // Whoever watches reads it from the store.
            watched: None,
            appended: to.0 - after.0,
            loaded: Some(Span { after, to }),
            state,
        }
    }

    /// The same, of what another commit's part may have brought before in this one.
    pub(crate) fn load(&mut self, state: ContextState) {
        let (after, to) = (self.state.head.size(), state.head.size());
        if after.0 > 0 {
            self.left = Some(self.state.place);
        }
        (self.loaded, self.watched) = (Some(Span { after, to }), None);
        self.appended += to.0 - after.0;
        self.state = state;
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
            taken: Vec::new(),
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
        if let Err(error) = self.put(db, shared, buffer, is_alone) {
            shared.commit_failed(&error);
            fail(self.waiting, &error);
            fail_taken(self.taken, &error);
            return None;
        }
        let mut contexts = Vec::with_capacity(self.states.len());
        let mut states = Vec::with_capacity(self.states.len());
        for (context, touched) in self.states {
            let Touched {
                mut state, watched, appended, origin, records, reached: before, loaded, left, ..
            } = touched;
            let (head, place, now) = (state.head.clone(), state.place, state.extent());
            if loaded.is_some() {
                // Whatever was damaged is not read any more.
                shared.quarantine.lift(&context);
            }
            contexts.push(Reached {
                context: context.clone(),
                place,
                head,
                now,
                watched,
                appended,
                origin,
                records,
                before,
                is_load: loaded.is_some(),
                left,
            });
            // A context that was only looked at may not exist: it is not kept.
            if state.head.frontier.size() > 0 {
                states.push((context, state));
            }
        }
        let written = Written {
            db: Arc::clone(db),
            contexts,
            waiting: self.waiting,
            entries: self.entries,
            taken: self.taken,
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
        for (context, touched) in self.states.iter().filter(|(_, touched)| touched.appended > 0) {
            touched.state.put_head(db, &mut self.batch, context, buffer)?;
            if touched.before.is_none() {
                index::put(db, &mut self.batch, context)?;
            }
            let place = touched.state.place;
            if let Some(left) = touched.left {
                // Until this is stable, readers are at the rows of before.
                staging::mark(db, &mut self.batch, left)?;
            }
            if let Some(span) = touched.loaded {
                staging::forget(db, &mut self.batch, place)?;
                if shared.options.clustered {
                    shared.loaded.note(db, &mut self.batch, place, touched.left, span)?;
                }
            }
        }
        for (context, touched) in self.states.iter().filter(|(_, touched)| touched.appended > 0) {
            // Of a slot that nobody reads here nothing has to be held back.
            if shared.readable.is_held(touched.state.place.slot) {
                db.stable().hold(context, touched.before.clone());
            }
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
    taken: Vec<(Vec<Taken>, TakenReply)>,
    /// On which it was taken, as long as one of them lasts: what they hold is held for what is kept here.
    terms: Vec<Terms>,
}

/// A context as a commit left it.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) context: ContextId,
    pub(crate) place: Place,
    pub(crate) head: Head,
    /// How far it goes, and how far it went before.
    pub(crate) now: Extent,
    pub(crate) watched: Option<Vec<Entry>>,
    pub(crate) appended: u64,
    pub(crate) origin: Origin,
    pub(crate) records: Vec<u8>,
    pub(crate) before: Option<Extent>,
    /// A load brought the entries.
    pub(crate) is_load: bool,
    /// Rows that nobody reads any more once it is stable.
    pub(crate) left: Option<Place>,
}

impl Reached {
    fn position(&self) -> Position {
        let Extent { size, root } = self.now;
        Position { size, root, epoch: self.head.epoch, lineage: self.head.lineage }
    }
}

impl std::fmt::Debug for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Written").field("entries", &self.entries).finish_non_exhaustive()
    }
}

impl Written {
    /// The database it was written to.
    pub(crate) fn db(&self) -> &Arc<Db> {
        &self.db
    }

    /// Whether it wrote any entry.
    pub(crate) fn has_entries(&self) -> bool {
        self.entries > 0
    }

    /// The contexts as it left them.
    pub(crate) fn contexts(&self) -> &[Reached] {
        &self.contexts
    }

    /// What it wrote, to be sent in a claim.
    pub(crate) fn parts(&mut self, slot: Slot, claim: &Claim) -> impl Iterator<Item = Part> {
        self.contexts.iter_mut().filter(|reached| reached.appended > 0).map(move |reached| {
            let head = &reached.head;
            let empty = || Extent { size: Size(0), root: Head::new(head.suite, head.lineage, 0).root() };
            Part {
                slot,
                claim: claim.clone(),
                context: reached.context.clone(),
                range: Range {
                    lineage: head.lineage,
                    suite: head.suite,
                    created_at_ns: head.created_at_ns,
                    after: reached.before.unwrap_or_else(empty),
                    root: reached.now.root,
                    count: reached.appended,
                    records: std::mem::take(&mut reached.records).into(),
                },
                is_load: reached.is_load,
            }
        })
    }

    /// What is to be answered when it is durable.
    pub(crate) fn take_replies(&mut self) -> Vec<(Vec<Taken>, TakenReply)> {
        std::mem::take(&mut self.taken)
    }

    /// Parts it: what this node wrote as the owner of slots, by slot; and what it wrote as a replica.
    pub(crate) fn split(self) -> (Vec<(Slot, Self)>, Vec<Reached>) {
        let Self { db, contexts, waiting, .. } = self;
        let mut parts: Vec<(Slot, Self)> = Vec::new();
        let mut followed = Vec::new();
        let mut part = |slot: Slot| -> usize {
            if let Some(at) = parts.iter().position(|(of, _)| *of == slot) {
                return at;
            }
            let (contexts, waiting, taken, terms) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let db = Arc::clone(&db);
            parts.push((slot, Self { db, contexts, waiting, entries: 0, taken, terms }));
            parts.len() - 1
        };
        let mut placed: Vec<(usize, Reached)> = Vec::new();
        for reached in contexts {
            match reached.origin {
                Origin::Followed(..) => followed.push(reached),
                Origin::Own(..) if reached.appended > 0 => placed.push((part(reached.place.slot), reached)),
                Origin::Own(..) => {}
            }
        }
        let mut answers: Vec<(usize, Waiting)> = Vec::new();
        for waiting in waiting {
            for (slot, waiting) in waiting.by_slot() {
                answers.push((part(slot), waiting));
            }
        }
        for (at, reached) in placed {
            parts[at].1.entries += usize::try_from(reached.appended).unwrap_or(usize::MAX);
            parts[at].1.contexts.push(reached);
        }
        for (at, waiting) in answers {
            parts[at].1.terms.extend(waiting.terms().cloned());
            parts[at].1.waiting.push(waiting);
        }
        (parts, followed)
    }

    /// Takes what is to be answered with other than the configured number of copies.
    pub(crate) fn take_asked(&mut self) -> Vec<(Needed, Answer)> {
        if self.waiting.iter().all(|waiting| waiting.needed() == Needed::Configured) {
            return Vec::new();
        }
        let (asked, rest): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|waiting| waiting.needed() != Needed::Configured);
        self.waiting = rest;
        let positions: Vec<_> =
            self.contexts.iter().map(|reached| (reached.context.clone(), reached.position())).collect();
        let answer = |waiting: Waiting| (waiting.needed(), Answer { waiting, positions: positions.clone() });
        asked.into_iter().map(answer).collect()
    }

    /// Takes those who wait no longer: their time is over, or they went. What is kept of it then is small.
    pub(crate) fn take_over(&mut self, now: Instant) -> Vec<Waiting> {
        let (over, rest): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|waiting| waiting.is_over(now));
        self.waiting = rest;
        let before = self.terms.len();
        self.terms.retain(|terms| !terms.is_over(now));
        if before > 0 && self.terms.is_empty() {
            // Watchers read the store instead.
            self.contexts.iter_mut().for_each(|reached| reached.watched = None);
        }
        over
    }

    /// It is stable, with so many copies: shows it to readers and watchers, and tells those who wait.
    pub(crate) fn acknowledge(self, shared: &Shared, copies: usize) {
        let Self { db, mut contexts, waiting, entries, taken, terms: _terms } = self;
        for reached in contexts.iter_mut().filter(|reached| reached.appended > 0) {
            shown(&db, shared, reached);
        }
        if entries > 0 {
            shared.committed(entries as u64);
        }
        for (outcome, reply) in taken {
            // The owner may be gone.
            let _ = reply.send(Ok(outcome));
        }
        let mut positions = Positions::default();
        if waiting.iter().any(|waiting| matches!(waiting, Waiting::Many(..))) {
            positions.extend(contexts.iter().map(|reached| (&reached.context, reached.position())));
        }
        for waiting in waiting {
            waiting.answer(&positions, copies);
        }
    }

    /// It may not be durable, or not have its copies: tells those who wait. Readers go on seeing what was before;
    /// gives back the contexts.
    pub(crate) fn fail(self, error: &StoreError) -> Vec<Reached> {
        fail(self.waiting, error);
        fail_taken(self.taken, error);
        self.contexts
    }
}

/// Holds back no more of contexts of a slot that is not shown. Nobody is told: it may be about to be left.
pub(crate) fn let_go(shared: &Shared, reached: Vec<Reached>) {
    let Ok(db) = shared.database.get() else { return };
    for Reached { context, place, head, mut left, .. } in reached {
        db.stable().settle(&context, (place, head));
        remove_left(&db, &mut left);
    }
}

/// Shows what was held back of contexts to readers and watchers.
pub(crate) fn show(shared: &Shared, reached: Vec<Reached>) {
    let Ok(db) = shared.database.get() else { return };
    for mut reached in reached {
        shown(&db, shared, &mut reached);
    }
}

fn shown(db: &Db, shared: &Shared, reached: &mut Reached) {
    let Reached { context, place, head, watched, is_load, left, .. } = reached;
    db.stable().settle(context, (*place, head.clone()));
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
        shared.loaded.forget(db, *place);
    }
    remove_left(db, left);
}

/// Removes the rows that a load replaced.
fn remove_left(db: &Db, left: &mut Option<Place>) {
    if let Some(place) = left.take()
        && let Err(error) = staging::abandon(db, place)
    {
        // They are removed when the ledger is opened again.
        limited!(warn, %error, "rows that a load replaced stay until restart");
    }
}

/// An answer that waits for copies by itself.
#[derive(Debug)]
pub(crate) struct Answer {
    waiting: Waiting,
    positions: Vec<(ContextId, Position)>,
}

impl Answer {
    /// There are so many copies.
    pub(crate) fn give(self, copies: usize) {
        let positions = self.positions.iter().map(|(context, position)| (context, *position)).collect();
        self.waiting.answer(&positions, copies);
    }

    /// There may never be enough.
    pub(crate) fn fail(self, error: &StoreError) {
        fail(vec![self.waiting], error);
    }

    /// Whether nobody waits for it any more.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.waiting.is_over(now)
    }

    /// Tells those who wait that their time is over.
    pub(crate) fn expire(self) {
        self.waiting.expire();
    }
}

impl Waiting {
    fn needed(&self) -> Needed {
        match self {
            Self::One(_, _, asked) | Self::Many(_, _, asked) => asked.needed,
            Self::Load(..) => Needed::Configured,
        }
    }

    fn terms(&self) -> Option<&Terms> {
        match self {
            Self::One(_, _, asked) | Self::Many(_, _, asked) => Some(&asked.terms),
            Self::Load(..) => None,
        }
    }

    /// Whether the time is over, or nobody is there any more.
    fn is_over(&self, now: Instant) -> bool {
        match self {
            Self::One(_, reply, asked) => reply.is_closed() || asked.terms.is_over(now),
            Self::Many(_, reply, asked) => reply.is_closed() || asked.terms.is_over(now),
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
fn fail_taken(taken: Vec<(Vec<Taken>, TakenReply)>, error: &StoreError) {
    for (_, reply) in taken {
        let _ = reply.send(Err(error.clone()));
    }
}

/// Tells everybody that nothing was stored.
fn fail(waiting: Vec<Waiting>, error: &StoreError) {
    for waiting in waiting {
        match waiting {
            // An append that was refused for its own sake keeps its own error.
            Waiting::One(result, reply, _) => _ = reply.send(result.and(Err(error.clone()))),
            Waiting::Load(_, done) => _ = done.try_send(Err(error.clone())),
            Waiting::Many(mut results, reply, _) => {
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
        assert!(Staged::new().put(&db, shared, &mut Vec::new(), true).is_ok());
        // What it repeats may have been written to it before, and not be on the disk.
        db.fail(StoreError::Io("the disk failed".to_owned()));
        assert!(Staged::new().put(&db, shared, &mut Vec::new(), true).is_err());
    }
}
