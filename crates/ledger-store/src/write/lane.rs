//! A lane: the one writer of its share of the contexts, a thread with a queue.
//!
//! Invariants:
//! - A context belongs to one lane, so nothing here needs a lock.
//! - Durability precedes visibility: a commit is staged, written, synced, and only then shown to readers and
//!   watchers and acknowledged. The next one is staged on it while it is being synced.
//! - After a failed write or sync the states are dropped: the database is the truth and is read again.
//! - Every append gets exactly one result.

use std::{hash::BuildHasher as _, sync::Arc};

use foldhash::fast::RandomState;
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Head, Lineage, Sequence, Size,
    digest::{Digest, TreeHead},
    entry::Draft,
    log::Stamp,
    node::NodeId,
    ownership::{Claim, SlotRecord},
    replication::{Peer, PeerSet, replica::Replica},
    slot::Slot,
};
use quick_cache::unsync::Cache;
use rocksdb::WriteBatch;
use tokio::sync::{mpsc, oneshot};

use crate::{
    Append, AppendConditions, Appended, BatchResult, BatchResults, Durability, ForkOutcome, Receipt,
    StoreError,
    engine::db::{Db, read_error},
    engine::families::{self, RowLocation},
    engine::reopenable_db::ReopenableDb,
    engine::rows,
    integrity::forks,
    limited,
    read::pages::{self, damaged},
    read::prove,
    replicate::lane_replication::LaneReplication,
    replicate::replica::{
        Commit, CommitIndex, Outgoing, OwnerCommand, Part, RecordChange, RecordChanged, ReplicaStatus,
        ReplicateOutcome, SyncState, push_record,
    },
    shared::Shared,
    write::commit::{ReplicateReply, SlotPart, StagedCommit, StagedContext, WrittenCommit},
    write::staging,
    write::state::{ContextState, read_head},
    write::syncer::{OnDurable, SyncerHandle},
    write::waiters::{Installed, Waiter, WaiterTerms},
    write::written_context::WriteOrigin,
};

mod heal;
mod install;
mod records;
mod replicate;

pub(crate) use heal::{Heal, Healed};
pub(crate) use install::Install;
use records::SlotRecords;

/// Most commands that wait in a lane's queue: beyond it, those who append wait.
pub(crate) const MAX_QUEUED_COMMANDS: usize = 1024;
/// Most appends of one command.
pub(crate) const MAX_COMMAND_APPENDS: usize = 1024;
/// A group commit takes no further command at so many entries …
const MAX_COMMIT_ENTRIES: usize = 8192;
/// … or so many bytes of its batch.
const MAX_COMMIT_BYTES: usize = 16 << 20;

/// Commands of a commit, unless more than a few times that wait: small commits keep all stages of the
/// pipeline busy, and one sync is for all that wait for it.
const TARGET_BATCH_COMMANDS: usize = 16;
/// How often a lane gives up the processor for others to join its commit.
const MAX_BATCHING_YIELDS: usize = 5;

#[expect(clippy::panic, reason = "a test asked for it")]
fn panic_as_asked() -> ! {
    panic!("asked to panic by test_panic")
}

/// Which of several lanes a slot belongs to.
pub(crate) fn lane_of(slot: Slot, lanes: usize) -> usize {
    usize::from(slot.number()) % lanes
}

/// What a lane can be asked.
#[derive(Debug)]
pub(crate) enum Command {
    /// Append one entry.
    Append(Append, oneshot::Sender<Result<Appended, StoreError>>, AppendConditions),
    /// Append several, each with its caller's tag.
    Batch(Vec<(u64, Append)>, mpsc::UnboundedSender<BatchResults>, AppendConditions),
    /// Put another copy of a context's history in place.
    Install(Box<Install>, Installed),
    /// Say when all that was written of a slot has its copies, if it is owned in this epoch.
    AwaitCommitted(Slot, Epoch, Installed),
    /// Take what another node's lane wrote, or what was fetched. With the number of the commit, 0 if fetched.
    Replicate(Vec<Part>, u64, ReplicateReply),
    /// Change slots' records.
    Change(Vec<(Slot, RecordChange)>, oneshot::Sender<Vec<(Slot, RecordChanged)>>),
    /// Lead slots, or no more.
    Own(Vec<(Slot, OwnerCommand)>),
    /// A peer's stream is lost.
    PeerDisconnected(Peer),
    /// A node's stream begins anew: nothing is in sync with it until it says so.
    StreamStarted(NodeId),
    /// Owners say what is stable.
    AdvanceCommitIndex(Vec<CommitIndex>),
    /// The digests of slots at this place.
    Digests(Vec<Slot>, oneshot::Sender<Vec<(Slot, Digest)>>),
    /// What is held here of an owner's slots.
    ReplicaStatus(NodeId, Vec<Slot>, oneshot::Sender<Vec<(Slot, ReplicaStatus)>>),
    /// How claims stand with this replica.
    SyncStates(Vec<(Slot, Claim)>, oneshot::Sender<Vec<(Slot, SyncState)>>),
    /// Send a peer the digests of slots at this place.
    SendDigestCheckpoint(Peer, Vec<Slot>),
    /// Leave a history for that of a claim's owner.
    Fork(Box<ForkRequest>, oneshot::Sender<Result<ForkOutcome, StoreError>>),
    /// Write the record of a slot anew as it is known here: it cannot be read any more.
    RewriteRecord(Slot),
    /// Put a damaged context's history, staged anew, in place of its rows.
    Heal(Box<Heal>, oneshot::Sender<Result<Healed, StoreError>>),
}

/// A history to leave.
#[derive(Debug)]
pub(crate) struct ForkRequest {
    pub(crate) context: ContextId,
    pub(crate) claim: Claim,
    /// What the histories have in common.
    pub(crate) common: Size,
    /// Only if it is still what was compared.
    pub(crate) expected: TreeHead,
    pub(crate) evidence: forks::Evidence,
}

impl Command {
    /// Tells whoever asked that nothing was done.
    fn fail(self, error: &StoreError) {
        match self {
            Self::Append(_, reply, _) => _ = reply.send(Err(error.clone())),
            Self::Install(_, done) | Self::AwaitCommitted(_, _, done) => {
                _ = done.try_send(Err(error.clone()));
            }
            Self::Replicate(_, _, reply) => _ = reply.send(Err(error.clone())),
            Self::Fork(_, reply) => _ = reply.send(Err(error.clone())),
            Self::Heal(_, reply) => _ = reply.send(Err(error.clone())),
            // Whoever waits for an answer sees that there is none.
            Self::Change(..)
            | Self::Own(_)
            | Self::PeerDisconnected(_)
            | Self::StreamStarted(_)
            | Self::AdvanceCommitIndex(_)
            | Self::Digests(..)
            | Self::ReplicaStatus(..)
            | Self::RewriteRecord(_)
            | Self::SyncStates(..)
            | Self::SendDigestCheckpoint(..) => {}
            Self::Batch(appends, reply, _) => {
                let failed = |(tag, _)| BatchResult { tag, result: Err(error.clone()) };
                let results = appends.into_iter().map(failed).collect();
                _ = reply.send(BatchResults { results, positions: Vec::new(), copies: 0 });
            }
        }
    }
}

/// A lane's cache weighs states by their bytes.
#[derive(Debug, Clone)]
struct StateWeighter;

impl quick_cache::Weighter<ContextId, ContextState> for StateWeighter {
    fn weight(&self, context: &ContextId, state: &ContextState) -> u64 {
        (context.as_str().len() + state.weight()) as u64
    }
}

/// The thread's own things.
pub(crate) struct Lane {
    number: u16,
    /// In a cluster: what waits for copies.
    replication: Option<Arc<LaneReplication>>,
    records: SlotRecords,
    /// What this node is in sync with, and what it decides as a replica.
    replica: Replica<ContextId, Part>,
    database: Arc<ReopenableDb>,
    /// Of the database that the cached states were read from.
    generation: u64,
    shared: Arc<Shared>,
    syncer: SyncerHandle,
    cache: Cache<ContextId, ContextState, StateWeighter>,
    buffer: Vec<u8>,
    hasher: RandomState,
}

/// An entry that is stored if the commit succeeds.
struct Stored {
    entry: Entry,
    /// The entry is an earlier one with the same id.
    repeated_from: Option<RepeatedFrom>,
}

/// Where an earlier entry with the same id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RepeatedFrom {
    /// In the commit that is being staged.
    Staged,
    Stored,
}

impl Stored {
    /// With where the history stood with it.
    fn appended(self, db: &Db, commit: &StagedCommit) -> Result<Appended, StoreError> {
        let Self { entry, repeated_from } = self;
        let context = &entry.context_id;
        let position = if repeated_from == Some(RepeatedFrom::Stored) {
            let Some((place, head)) = read_head(db, context)? else {
                return Err(rows::lost_head(context));
            };
            prove::position_at(db, context, place, &head, Size(entry.sequence.0))?
        } else {
            // Not written yet, so its own position cannot be read; the newest one passes through it.
            let Some(staged_context) = commit.contexts.get(context) else { return Err(StoreError::Closed) };
            staged_context.state.head.position()
        };
        Ok(Appended { entry, position, repeated: repeated_from.is_some(), copies: 1 })
    }
}

/// Appends for one commit.
#[derive(Default)]
struct CommitBatch {
    appends: Vec<QueuedAppend>,
    replies: Vec<Reply>,
    /// Bytes of the payloads.
    bytes: usize,
    /// What other nodes wrote, in the order it came.
    replicated: Vec<(Vec<Part>, u64, ReplicateReply)>,
}

/// An append of a round, and which reply its result is for.
struct QueuedAppend {
    context_hash: u64,
    reply: usize,
    tag: u64,
    append: Append,
}

/// Who waits, and the results so far.
#[allow(clippy::large_enum_variant, reason = "they live in a list that is emptied with the round")]
enum Reply {
    One(Option<Result<Appended, StoreError>>, oneshot::Sender<Result<Appended, StoreError>>, WaiterTerms),
    Many(Vec<BatchResult>, mpsc::UnboundedSender<BatchResults>, WaiterTerms),
}

impl CommitBatch {
    fn push(
        &mut self,
        append: Append,
        reply: oneshot::Sender<Result<Appended, StoreError>>,
        terms: AppendConditions,
        hasher: &RandomState,
    ) {
        let quorum = append.quorum;
        self.add(0, append, self.replies.len(), hasher);
        self.replies.push(Reply::One(None, reply, WaiterTerms { quorum, terms }));
    }

    fn extend(
        &mut self,
        appends: Vec<(u64, Append)>,
        reply: &mpsc::UnboundedSender<BatchResults>,
        terms: &AppendConditions,
        hasher: &RandomState,
    ) {
        let first = self.replies.len();
        let count = appends.len();
        for (tag, append) in appends {
            // One answer for all that need the same copies, which nearly always is all of them.
            let is_same =
                |of: &Reply| matches!(of, Reply::Many(_, _, asked) if asked.quorum == append.quorum);
            let at = self.replies[first..].iter().position(is_same).unwrap_or_else(|| {
                let results = Vec::with_capacity(count);
                let asked = WaiterTerms { quorum: append.quorum, terms: terms.clone() };
                self.replies.push(Reply::Many(results, reply.clone(), asked));
                self.replies.len() - 1 - first
            });
            self.add(tag, append, first + at, hasher);
        }
    }

    fn replicate(&mut self, parts: Vec<Part>, number: u64, reply: ReplicateReply) {
        self.bytes += parts.iter().map(|part| part.range.records.len()).sum::<usize>();
        self.replicated.push((parts, number, reply));
    }

    fn add(&mut self, tag: u64, append: Append, reply: usize, hasher: &RandomState) {
        self.bytes += append.draft.payload.len();
        let context_hash = hasher.hash_one(&append.context);
        self.appends.push(QueuedAppend { context_hash, reply, tag, append });
    }
}

impl Reply {
    fn waiting(self) -> Option<Waiter> {
        match self {
            Self::One(result, reply, asked) => Some(Waiter::One(result?, reply, asked)),
            Self::Many(results, reply, asked) => Some(Waiter::Many(results, reply, asked)),
        }
    }
}

impl Lane {
    pub(crate) fn new(
        number: usize,
        database: Arc<ReopenableDb>,
        shared: Arc<Shared>,
        syncer: SyncerHandle,
        cache_bytes: usize,
    ) -> Self {
        let contexts = (cache_bytes / 2048).max(64);
        let cache = Cache::with_weighter(contexts, cache_bytes as u64, StateWeighter);
        let hasher = RandomState::default();
        Self {
            number: u16::try_from(number).unwrap_or(u16::MAX),
            replication: shared.replication().get(number).cloned(),
            records: SlotRecords::default(),
            replica: Replica::default(),
            database,
            generation: 0,
            shared,
            syncer,
            cache,
            buffer: Vec::new(),
            hasher,
        }
    }

    /// Serves the queue until every sender is gone.
    pub(crate) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut commands = Vec::with_capacity(MAX_QUEUED_COMMANDS);
        let mut batched = 0;
        self.load_records();
        while queue.blocking_recv_many(&mut commands, TARGET_BATCH_COMMANDS) > 0 {
            let rest = queue.len() / 4;
            while commands.len() < rest
                && let Ok(command) = queue.try_recv()
            {
                commands.push(command);
            }
            wait_for_batch(&mut queue, &mut commands, batched.min(TARGET_BATCH_COMMANDS));
            batched = commands.len();
            let is_alone = batched == 1 && queue.is_empty();
            match self.database.get() {
                Ok(db) => self.serve(&db, commands.drain(..), is_alone),
                Err(error) => commands.drain(..).for_each(|command| command.fail(&error)),
            }
        }
    }

    /// Serves what was in the queue, in as few commits as its bounds allow.
    fn serve(&mut self, db: &Arc<Db>, commands: impl Iterator<Item = Command>, is_alone: bool) {
        if self.database.has_failed_for_good() {
            let error = self.shared.failure().unwrap_or(StoreError::Closed);
            return commands.for_each(|command| command.fail(&error));
        }
        if db.generation() != self.generation {
            // A write that was reported as failed may have been kept after all.
            self.cache.clear();
            if let Err(error) = self.on_reopened(db) {
                // It will be opened once more.
                self.shared.commit_failed(&error);
                return commands.for_each(|command| command.fail(&error));
            }
            self.generation = db.generation();
        }
        let mut round = CommitBatch::default();
        for command in commands {
            if !matches!(command, Command::Append(..) | Command::Batch(..) | Command::Replicate(..)) {
                self.commit(db, std::mem::take(&mut round), false);
            }
            match command {
                Command::Append(append, ..)
                    if self.shared.options.test_panic && append.draft.key.as_str() == "test-panic" =>
                {
                    panic_as_asked();
                }
                // Nobody waits for them any more: they were never begun.
                Command::Append(_, reply, _) if reply.is_closed() => {}
                Command::Batch(_, reply, _) if reply.is_closed() => {}
                Command::Append(append, reply, terms) => round.push(append, reply, terms, &self.hasher),
                Command::Batch(appends, reply, terms) => round.extend(appends, &reply, &terms, &self.hasher),
                Command::Replicate(parts, number, reply) => round.replicate(parts, number, reply),
                Command::Change(changes, reply) => {
                    // Whoever asked may have gone: what was promised is promised.
                    let _ = reply.send(self.change(db, changes));
                }
                Command::Own(leads) => self.apply_owner_commands(db, leads),
                Command::PeerDisconnected(peer) => {
                    if let Some(copies) = &self.replication {
                        copies.peer_disconnected(peer);
                    }
                }
                Command::StreamStarted(node) => self.replica.on_stream_started(&node),
                Command::AdvanceCommitIndex(slots) => {
                    if let Some(copies) = &self.replication {
                        let shown = copies.advance_commit_index(&self.shared, &slots);
                        self.wake_watchers(db, &shown);
                    }
                }
                Command::Digests(slots, reply) => _ = reply.send(self.digests(&slots)),
                Command::ReplicaStatus(owner, slots, reply) => {
                    _ = reply.send(self.replica_status(db, &owner, slots));
                }
                Command::SyncStates(claims, reply) => _ = reply.send(self.sync_states(db, claims)),
                Command::SendDigestCheckpoint(peer, slots) => self.send_digest_checkpoint(peer, &slots),
                Command::RewriteRecord(slot) => self.rewrite_record(db, slot),
                Command::Fork(fork, reply) => {
                    self.syncer.drain();
                    let _ = reply.send(self.fork(db, *fork));
                }
                Command::Heal(heal, reply) => {
                    self.syncer.drain();
                    let _ = reply.send(self.heal(db, *heal));
                }
                Command::Install(install, done) => self.install(db, *install, done),
                Command::AwaitCommitted(slot, epoch, done) => self.await_committed(db, slot, epoch, done),
            }
            if round.appends.len() >= MAX_COMMIT_ENTRIES || round.bytes >= MAX_COMMIT_BYTES {
                self.commit(db, std::mem::take(&mut round), false);
            }
        }
        self.commit(db, round, is_alone);
    }

    /// Stages a round of appends, writes it, and has it synced and acknowledged.
    fn commit(&mut self, db: &Arc<Db>, round: CommitBatch, is_alone: bool) {
        let CommitBatch { mut appends, mut replies, replicated, .. } = round;
        if replies.is_empty() && replicated.is_empty() {
            return;
        }
        // Those of a context one after the other, in the order they came: their rows are neighbours.
        appends.sort_by_key(|append| append.context_hash);
        let mut staged = StagedCommit::new();
        for QueuedAppend { reply, tag, append, .. } in appends {
            let result = self.stage(db, &mut staged, append).map_err(|error| {
                self.shared.quarantine.record(&error);
                if self.replication.is_some() { self.shared.quarantine.restoring(error) } else { error }
            });
            match &mut replies[reply] {
                Reply::One(slot, ..) => *slot = Some(result.and_then(|stored| stored.appended(db, &staged))),
                Reply::Many(results, ..) => {
                    let result =
                        result.map(|stored| Receipt::of(stored.entry, stored.repeated_from.is_some()));
                    results.push(BatchResult { tag, result });
                }
            }
        }
        staged.waiters = replies.into_iter().filter_map(Reply::waiting).collect();
        for (parts, number, reply) in replicated {
            let taken =
                parts.into_iter().map(|part| self.apply_part(db, &mut staged, part, number)).collect();
            staged.replicate_replies.push((taken, reply));
        }
        self.write(db, staged, is_alone);
    }

    /// Writes what was staged, and has it synced, copied and acknowledged.
    fn write(&mut self, db: &Arc<Db>, staged: StagedCommit, is_alone: bool) {
        // Nothing would overlap: spare this one the way to another thread.
        let is_alone = is_alone && self.syncer.is_idle();
        let is_durable = is_alone && self.replication.is_none();
        let Some((written, states)) = staged.write(db, &self.shared, &mut self.buffer, is_durable) else {
            return;
        };
        for (context, state) in states {
            self.cache.insert(context, state);
        }
        let durable = match &self.replication {
            None => OnDurable::Standalone(written),
            Some(copies) => self.replicate(db, &Arc::clone(copies), written),
        };
        if is_durable || self.shared.options.durability != Durability::Always {
            durable.durable(&self.shared);
        } else if is_alone {
            match db.sync() {
                Ok(()) => durable.durable(&self.shared),
                Err(error) => {
                    self.shared.commit_failed(&error);
                    durable.fail(&error);
                }
            }
        } else {
            self.syncer.send(durable);
        }
    }

    /// In a cluster a commit is one copy: sends this node's own to the peers, and keeps it until there are enough.
    fn replicate(
        &mut self,
        db: &Arc<Db>,
        copies: &Arc<LaneReplication>,
        mut written: WrittenCommit,
    ) -> OnDurable {
        if let Some(digests) = &self.shared.digests {
            for written_context in
                written.contexts().iter().filter(|written_context| written_context.appended > 0)
            {
                digests.replace(
                    &written_context.context,
                    written_context.tree_head_before,
                    Some(written_context.tree_head),
                );
            }
        }
        let replicate_replies = written.take_replies();
        let (mut own, replicated) = written.split();
        if !replicated.is_empty() {
            copies.record_replicated(&self.shared, replicated);
        }
        let mut sent = Vec::new();
        for SlotPart { slot, write, .. } in &mut own {
            let Some((claim, peers)) = copies.ownership(*slot) else { continue };
            if !peers.is_empty() {
                let written = write.iter_mut().flatten();
                sent.extend(written.map(|written_context| (peers, written_context.part(*slot, &claim))));
            }
        }
        let has_own = !own.is_empty();
        let number = copies.record_own_commit(&self.shared, own);
        self.send(number, sent);
        OnDurable::Clustered {
            db: Arc::clone(db),
            replication: Arc::clone(copies),
            number: has_own.then_some(number),
            replicate_replies,
        }
    }

    /// Puts a commit on the streams of its peers.
    fn send(&self, number: u64, parts: Vec<(PeerSet, Part)>) {
        let Some(outbox) = self.shared.outbox.get() else { return };
        let mut everybody = PeerSet::default();
        for (peers, _) in &parts {
            everybody.extend(*peers);
        }
        let is_same = parts.iter().all(|(peers, _)| *peers == everybody);
        let commit = |parts| Arc::new(Commit::new(self.number, number, parts));
        if is_same {
            let commit = commit(parts.into_iter().map(|(_, part)| part).collect());
            for peer in everybody.iter() {
                outbox.send(peer, Outgoing::Commit(Arc::clone(&commit)));
            }
            return;
        }
        for peer in everybody.iter() {
            let of = parts.iter().filter(|(peers, _)| peers.contains(peer)).map(|(_, part)| part.clone());
            outbox.send(peer, Outgoing::Commit(commit(of.collect())));
        }
    }

    /// Stages one append.
    fn stage(&mut self, db: &Db, commit: &mut StagedCommit, append: Append) -> Result<Stored, StoreError> {
        let Append { context, draft, received_lamport, entry_id, epoch: expected, quorum: _ } = append;
        if !commit.contexts.contains_key(&context) {
            let origin = self.origin(&context)?;
            let staged_context = self.context_state(db, &context, origin)?;
            commit.contexts.insert(context.clone(), staged_context);
        }
        let Some(staged_context) = commit.contexts.get_mut(&context) else { return Err(StoreError::Closed) };
        let WriteOrigin::Owner(epoch, peers) = staged_context.origin else {
            return Err(StoreError::NotOwner { slot: staged_context.state.place.slot });
        };
        if expected.is_some_and(|expected| expected != epoch) {
            return Err(StoreError::NotOwner { slot: staged_context.state.place.slot });
        }
        if let Some(id) = &entry_id
            && let Some(stored) = find_by_entry_id(db, staged_context, &context, id)?
        {
            return check_repeated(stored, &draft);
        }
        let max_ahead = self.shared.options.max_lamport_ahead;
        staged_context.state.head.lamport.check_received(received_lamport, max_ahead)?;
        let stamp = Stamp {
            id: entry_id.clone().unwrap_or_else(Shared::new_entry_id),
            now_ns: commit.now_ns,
            received_lamport,
            // A loaded history may carry a higher epoch than this node's own.
            epoch: epoch.max(staged_context.state.head.epoch),
        };
        let buffer = &mut self.buffer;
        let is_chosen = entry_id.is_some();
        let entry =
            staged_context.state.append(db, &mut commit.batch, &context, draft, stamp, is_chosen, buffer)?;
        if is_chosen {
            staged_context.ids.insert(entry.id.clone(), entry.clone());
        }
        if !peers.is_empty() {
            push_record(&mut staged_context.records, buffer);
        }
        if let Some(watched) = &mut staged_context.watched {
            watched.push(entry.clone());
        }
        staged_context.appended += 1;
        commit.entries += 1;
        Ok(Stored { entry, repeated_from: None })
    }

    /// In what epoch appends to a context are written, and to whom they are sent.
    fn origin(&self, context: &ContextId) -> Result<WriteOrigin, StoreError> {
        match &self.replication {
            None => Ok(WriteOrigin::Owner(self.shared.epoch(), PeerSet::default())),
            Some(copies) => {
                let (epoch, peers) = copies.serving_epoch(Slot::of(context))?;
                Ok(WriteOrigin::Owner(epoch, peers))
            }
        }
    }

    /// A context's state, out of the cache or the database, or new.
    fn context_state(
        &mut self,
        db: &Db,
        context: &ContextId,
        origin: WriteOrigin,
    ) -> Result<StagedContext, StoreError> {
        let state = match self.cache.remove(context) {
            Some((_, state)) => state,
            None => match ContextState::load(db, context) {
                Ok(Some(state)) => state,
                Ok(None) => self.create(db, context)?,
                Err(error) => {
                    self.shared.quarantine.record(&error);
                    return Err(error);
                }
            },
        };
        let is_watched = !self.shared.tails.is_idle() && self.shared.tails.find(context).is_some();
        Ok(StagedContext::new(state, is_watched, origin))
    }

    /// A place for the rows of a new context.
    fn allocate_rows(&self, db: &Db, slot: Slot) -> Result<RowLocation, StoreError> {
        self.shared.numbers.place(db, slot, self.shared.quarantine.had_damage(slot))
    }

    fn create(&self, db: &Db, context: &ContextId) -> Result<ContextState, StoreError> {
        let place = self.allocate_rows(db, Slot::of(context))?;
        let lineage = Lineage(Shared::new_id());
        Ok(ContextState::new(place, Head::new(self.shared.options.suite, lineage, Shared::now_ns())))
    }
}

/// Lets those run who are about to append: a commit costs a sync, whatever is in it. Nobody who appends alone
/// waits, and nobody waits for more than came with the commit before.
fn wait_for_batch(queue: &mut mpsc::Receiver<Command>, commands: &mut Vec<Command>, before: usize) {
    let mut turns = 0;
    while commands.len() < before && turns < MAX_BATCHING_YIELDS {
        if let Ok(command) = queue.try_recv() {
            commands.push(command);
        } else {
            turns += 1;
            std::thread::yield_now();
        }
    }
}

/// The entry that has a client's id already. Whoever sends much again sends it while everybody waits for it, so nothing
/// is read of the tree.
fn find_by_entry_id(
    db: &Db,
    staged_context: &StagedContext,
    context: &ContextId,
    id: &EntryId,
) -> Result<Option<Stored>, StoreError> {
    if let Some(entry) = staged_context.ids.get(id) {
        return Ok(Some(Stored { entry: entry.clone(), repeated_from: Some(RepeatedFrom::Staged) }));
    }
    let ContextState { place, head, .. } = &staged_context.state;
    let sequence = db
        .get(families::IDS, &place.id(id), |bytes| bytes.try_into().map(u64::from_be_bytes))
        .map_err(|error| read_error(context, Sequence(0), &error))?;
    let sequence = match sequence {
        None => return Ok(None),
        // Taken for absence, the append would be stored twice.
        Some(Err(_)) => {
            return Err(damaged(context, Sequence(0), &format!("the row of entry id {id} is malformed")));
        }
        Some(Ok(sequence)) => Sequence(sequence),
    };
    if sequence > head.size().newest() {
        // Writes were lost, and the row of one of them was not: nothing is stored at its sequence. What is appended now
        // writes it anew.
        limited!(warn, %context, %id, %sequence, "an entry id is known of an entry beyond the context's end");
        return Ok(None);
    }
    let entry = pages::one(db, context, *place, head, sequence)?;
    if entry.id != *id {
        // The same, and others were appended since.
        limited!(warn, %context, %id, %sequence, "an entry id is known of an entry that has another one");
        return Ok(None);
    }
    Ok(Some(Stored { entry, repeated_from: Some(RepeatedFrom::Stored) }))
}

/// The first result of a repeated append, or the refusal of an id that is taken.
fn check_repeated(stored: Stored, draft: &Draft) -> Result<Stored, StoreError> {
    let Entry { context_id, id, sequence, .. } = &stored.entry;
    if stored.entry.draft() != *draft {
        let (context, id) = (context_id.clone(), id.clone());
        return Err(StoreError::EntryIdTaken { context, id, sequence: *sequence });
    }
    Ok(stored)
}
