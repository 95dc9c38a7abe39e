//! A lane: the one writer of its share of the contexts, a thread with a queue.
//!
//! Invariants:
//! - A context belongs to one lane, so nothing here needs a lock.
//! - Durability precedes visibility: a commit is staged, written, synced, and only then shown to readers and
//!   watchers and acknowledged. The next one is staged on it while it is being synced.
//! - After a failed write or sync the states are dropped: the database is the truth and is read again.
//! - Every append gets exactly one result.

use std::sync::Arc;

use foldhash::fast::RandomState;
use ledger_core::{ContextId, replication::replica::Replica};
use quick_cache::unsync::Cache;
use tokio::sync::mpsc;

use crate::{
    StoreError, budget::Permit, engine::db::Db, engine::reopenable_db::ReopenableDb,
    replicate::lane_replication::LaneReplication, replicate::replica::Part, shared::Shared,
    write::command::Command, write::state::ContextState, write::syncer::SyncerHandle,
};

mod append;
mod batch;
mod commit;
mod heal;
mod install;
mod records;
mod replicate;
mod slot_records;

use batch::CommitBatch;
use slot_records::SlotRecords;

/// Most commands in a lane's queue; beyond that, callers wait.
pub(crate) const MAX_QUEUED_COMMANDS: usize = 1024;
/// Most appends of one command.
pub(crate) const MAX_COMMAND_APPENDS: usize = 1024;
/// A group commit takes no further command once it has this many entries …
const MAX_COMMIT_ENTRIES: usize = 8192;
/// … or this many bytes of payloads and records.
const MAX_COMMIT_BYTES: usize = 16 << 20;

/// The number of commands of a commit, unless a few times as many wait: small commits keep all stages of the pipeline
/// busy, and one sync covers all commits that wait for it.
const TARGET_BATCH_COMMANDS: usize = 16;
/// How often a lane yields the processor, so that others can join its commit.
const MAX_BATCHING_YIELDS: usize = 5;

#[expect(clippy::panic, reason = "a test asked for it")]
fn panic_as_asked() -> ! {
    panic!("asked to panic by test_panic")
}

/// A part that waits for what it continues, and the memory that it takes meanwhile.
#[derive(Debug)]
struct BufferedPart {
    part: Part,
    _held: Permit,
}

/// Weighs the cached states by their bytes.
#[derive(Debug, Clone)]
struct StateWeighter;

impl quick_cache::Weighter<ContextId, ContextState> for StateWeighter {
    fn weight(&self, context: &ContextId, state: &ContextState) -> u64 {
        (context.as_str().len() + state.weight()) as u64
    }
}

/// The state of a lane's thread.
pub(crate) struct Lane {
    number: u16,
    /// In a cluster: the lane's commits that wait for replication.
    replication: Option<Arc<LaneReplication>>,
    records: SlotRecords,
    /// What this node decides as replica, and the claims it is in sync with.
    replica: Replica<ContextId, BufferedPart>,
    database: Arc<ReopenableDb>,
    /// Generation of the database that the cached states were read from.
    generation: u64,
    shared: Arc<Shared>,
    syncer: SyncerHandle,
    cache: Cache<ContextId, ContextState, StateWeighter>,
    buffer: Vec<u8>,
    hasher: RandomState,
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
            // The reopened database may hold a write that was reported as failed: read everything again.
            self.cache.clear();
            if let Err(error) = self.on_reopened(db) {
                // The database will be reopened again.
                self.shared.commit_failed(&error);
                return commands.for_each(|command| command.fail(&error));
            }
            self.generation = db.generation();
        }
        let mut batch = CommitBatch::default();
        for command in commands {
            if !matches!(command, Command::Append(..) | Command::Batch(..) | Command::Replicate(..)) {
                self.commit(db, std::mem::take(&mut batch), false);
            }
            match command {
                Command::Append(append, ..)
                    if self.shared.options.test_panic && append.draft.key.as_str() == "test-panic" =>
                {
                    panic_as_asked();
                }
                // The caller is gone, and nothing of the append was done: skip it.
                Command::Append(_, reply, _) if reply.is_closed() => {}
                Command::Batch(_, reply, _) if reply.is_closed() => {}
                Command::Append(append, reply, terms) => batch.push(append, reply, terms, &self.hasher),
                Command::Batch(appends, reply, terms) => batch.extend(appends, &reply, &terms, &self.hasher),
                Command::Replicate(parts, number, reply) => batch.replicate(parts, number, reply),
                Command::Change(changes, reply) => {
                    // The caller may be gone; the promise holds nevertheless.
                    let _ = reply.send(self.change(db, changes));
                }
                Command::Own(commands) => self.apply_owner_commands(db, commands),
                Command::PeerDisconnected(peer) => {
                    if let Some(copies) = &self.replication {
                        copies.peer_disconnected(peer);
                    }
                }
                Command::StreamStarted(node) => self.replica.on_stream_started(&node),
                Command::AdvanceCommitIndex(slots) => {
                    if let Some(copies) = &self.replication {
                        let shown = copies.advance_commit_index(&self.shared.publisher, &slots);
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
            if batch.appends.len() >= MAX_COMMIT_ENTRIES || batch.bytes >= MAX_COMMIT_BYTES {
                self.commit(db, std::mem::take(&mut batch), false);
            }
        }
        self.commit(db, batch, is_alone);
    }
}

/// Yields to callers that are about to append, because a commit costs one sync whatever is in it. Waits for at most as
/// many commands as the previous commit had, so a caller that appends alone never waits.
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
