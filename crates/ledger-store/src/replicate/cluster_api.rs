//! What a node of a cluster asks of its ledger, beside what everybody does.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use ledger_core::{
    ContextId, Size,
    compare::{CompareRequest, CompareResponse},
    digest::{Digest, TreeHead},
    node::{ClusterId, NodeId, StorageId},
    ownership::{Claim, SlotRecord},
    replication::Peer,
    slot::{SLOTS, Slot},
};
use tokio::sync::{oneshot, watch};

use crate::{
    Ledger, StoreError,
    directory::reidentify,
    directory::slot_records,
    engine::db::io_error,
    engine::families,
    integrity::forks,
    integrity::scrub,
    replicate::compare,
    replicate::ranges,
    replicate::replica::{
        CommitIndex, Outbox, OwnerCommand, Part, RecordChange, RecordChanged, ReplicaStatus,
        ReplicateOutcome, SyncState,
    },
    write::lane::{Command, ForkRequest, lane_of},
};

/// What was sent is being written: the outcome of each part, once it is durable.
#[derive(Debug)]
pub struct PendingReplication(Vec<oneshot::Receiver<Result<Vec<ReplicateOutcome>, StoreError>>>);

impl PendingReplication {
    /// Waits until all of it is durable. The outcomes are in no particular order.
    pub async fn durable(self) -> Result<Vec<ReplicateOutcome>, StoreError> {
        let mut all = Vec::new();
        for lane in self.0 {
            all.extend(lane.await.map_err(|_| StoreError::Closed)??);
        }
        Ok(all)
    }
}

/// How claims stand with this replica.
#[derive(Debug)]
pub struct SyncStates(Vec<oneshot::Receiver<Vec<(Slot, SyncState)>>>);

impl SyncStates {
    /// Waits for all lanes.
    pub async fn all(self) -> Result<BTreeMap<Slot, SyncState>, StoreError> {
        all_of(self.0).await
    }
}

/// What became of leaving a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkOutcome {
    /// The context goes so far now: to where it was to be cut, or it was no longer what had been compared.
    Forked(Size),
    /// Nothing was done: the slot was promised to this claim.
    Refused(Claim),
}

/// What several lanes answered.
async fn all_of<T>(waiting: Vec<oneshot::Receiver<Vec<(Slot, T)>>>) -> Result<BTreeMap<Slot, T>, StoreError> {
    let mut all = BTreeMap::new();
    for answer in waiting {
        all.extend(answer.await.map_err(|_| StoreError::Closed)?);
    }
    Ok(all)
}

impl Ledger {
    /// Hands over who carries what this node's lanes send. Once, before anything is led.
    pub fn set_outbox(&self, outbox: Arc<dyn Outbox>) {
        // A second one is a mistake of the program's; the first stays.
        let _ = self.inner().shared.outbox.set(outbox);
    }

    /// The data directory's identity.
    pub fn storage(&self) -> StorageId {
        StorageId(self.inner().shared.meta.storage_id)
    }

    /// The cluster that the directory belongs to, from now on; `None`: to none yet. It changes once.
    pub fn cluster_id(&self) -> watch::Receiver<Option<ClusterId>> {
        self.inner().shared.cluster.subscribe()
    }

    /// How far the directory is durable: a number that grows as long as the directory lives, whatever is written. A
    /// directory that is opened at a lower one than was ever given here is an older copy of it.
    pub fn durable_index(&self) -> u64 {
        self.inner().database.durable_index().durable()
    }

    /// How far the directory went when the present start began (see [`Ledger::next_incarnation`]), in terms of
    /// [`Ledger::durable_index`].
    pub fn opening_index(&self) -> u64 {
        self.inner().database.durable_index().opening()
    }

    /// Closes the ledger, and makes its directory another one: of a new storage id, without what it promised and accepted
    /// of slots, with all that contexts hold. Opened again, it joins as a new member. Gives the new id once it is on
    /// disk. Blocks.
    pub fn reidentify(&self) -> Result<StorageId, StoreError> {
        let inner = self.inner();
        if !inner.stop() {
            return Err(StoreError::Closed);
        }
        let renewed = inner.database.get().and_then(|db| reidentify::renew(&db));
        if let Err(error) = inner.close_database() {
            tracing::warn!(%error, "the ledger could not be closed cleanly: the log is replayed at the next start");
        }
        renewed
    }

    /// The records of all slots that were ever asked about.
    pub fn slot_records(&self) -> Result<Vec<(Slot, SlotRecord)>, StoreError> {
        let db = self.inner().database.get()?;
        let mut records = Vec::new();
        for slot in (0..SLOTS).filter_map(Slot::new) {
            let record = slot_records::read(&db, slot)?;
            if record != SlotRecord::default() {
                records.push((slot, record));
            }
        }
        Ok(records)
    }

    /// The slots whose records cannot be read, nor are known from memory, from now on: what was promised of them is
    /// forgotten, so this directory must join as a new one ([`Ledger::reidentify`]).
    pub fn watch_lost_slots(&self) -> tokio::sync::watch::Receiver<std::collections::BTreeSet<Slot>> {
        self.inner().shared.watch_lost_slots()
    }

    /// How far each context goes that has entries, in order of their names. A head that cannot be decoded is left out, and
    /// its context quarantined. Blocks.
    pub fn heads(&self, mut each: impl FnMut(&ContextId, TreeHead)) -> Result<(), StoreError> {
        let shared = &self.inner().shared;
        let db = self.inner().database.get()?;
        db.scan(families::HEADS, &[], &[0xff], false, |key, value| {
            if let Some((context, _, head)) = scrub::decode_row(shared, key, value)
                && head.size() > Size::default()
            {
                each(&context, head.tree_head());
            }
            true
        })
        .map_err(|error| io_error(&error))
    }

    /// Changes the records of slots; what is answered is on disk.
    pub async fn change_slots(
        &self,
        changes: Vec<(Slot, RecordChange)>,
    ) -> Result<Vec<(Slot, RecordChanged)>, StoreError> {
        let waiting = self.ask_lanes(changes, |(slot, _)| *slot, Command::Change).await?;
        let mut all = Vec::new();
        for changed in waiting {
            all.extend(changed.await.map_err(|_| StoreError::Closed)?);
        }
        Ok(all)
    }

    /// Leads slots, or no more; in order for each slot.
    pub async fn apply_owner_commands(&self, leads: Vec<(Slot, OwnerCommand)>) -> Result<(), StoreError> {
        for (lane, leads) in self.by_lane(leads, |(slot, _)| *slot)? {
            self.to_lane(lane, Command::Own(leads)).await?;
        }
        Ok(())
    }

    /// A peer's stream is lost: it is sent nothing more until it is offered slots again.
    pub async fn peer_disconnected(&self, peer: Peer) -> Result<(), StoreError> {
        self.to_all(|| Command::PeerDisconnected(peer)).await
    }

    /// A node's stream begins anew: no slot is in sync with it until it accepts an offer on the new stream.
    pub async fn stream_started(&self, node: &NodeId) -> Result<(), StoreError> {
        self.to_all(|| Command::StreamStarted(node.clone())).await
    }

    /// Takes parts of another node's commit (with its number), or ranges that were fetched (with 0). Returns when they
    /// are in the lanes' queues, and so in order with what else is sent there.
    pub async fn replicate(&self, parts: Vec<Part>, number: u64) -> Result<PendingReplication, StoreError> {
        let follow = |parts, reply| Command::Replicate(parts, number, reply);
        Ok(PendingReplication(self.ask_lanes(parts, |part| part.slot, follow).await?))
    }

    /// Owners say what is stable.
    pub async fn advance_commit_index(&self, slots: Vec<CommitIndex>) -> Result<(), StoreError> {
        for (lane, slots) in self.by_lane(slots, |stable| stable.slot)? {
            self.to_lane(lane, Command::AdvanceCommitIndex(slots)).await?;
        }
        Ok(())
    }

    /// The digests of slots, as they are when everything sent to the lanes before is written.
    pub async fn digests(&self, slots: Vec<Slot>) -> Result<BTreeMap<Slot, Digest>, StoreError> {
        all_of(self.ask_lanes(slots, |slot| *slot, Command::Digests).await?).await
    }

    /// What is held here of an owner's slots, when everything sent to the lanes before is written.
    pub async fn replica_status(
        &self,
        owner: &NodeId,
        slots: Vec<Slot>,
    ) -> Result<BTreeMap<Slot, ReplicaStatus>, StoreError> {
        let command = |slots, reply| Command::ReplicaStatus(owner.clone(), slots, reply);
        all_of(self.ask_lanes(slots, |slot| *slot, command).await?).await
    }

    /// Sends a peer the digests of those of the slots that it is sent, at this place of each lane's stream.
    pub async fn send_digest_checkpoint(&self, peer: Peer, slots: Vec<Slot>) -> Result<(), StoreError> {
        for (lane, slots) in self.by_lane(slots, |slot| *slot)? {
            self.to_lane(lane, Command::SendDigestCheckpoint(peer, slots)).await?;
        }
        Ok(())
    }

    /// Everything that a peer was sent of a lane up to a number is durable there. Refused is a number that nobody can have
    /// been sent: `Err` is the highest there is.
    pub fn advance_peer_durable(&self, peer: Peer, lane: u16, number: u64) -> Result<(), u64> {
        let shared = &self.inner().shared;
        match shared.replication().get(usize::from(lane)) {
            Some(copies) => copies.advance_durable_at(shared, peer, number),
            None => Err(0),
        }
    }

    /// Leaves what a context has after `common`, if the context still is what was compared: it goes to the forks.
    pub async fn fork_history(
        &self,
        context: ContextId,
        claim: Claim,
        common: Size,
        expected: TreeHead,
        evidence: forks::Evidence,
    ) -> Result<ForkOutcome, StoreError> {
        let lane = self.lane_of(Slot::of(&context))?;
        let (reply, left) = oneshot::channel();
        let fork = ForkRequest { context, claim, common, expected, evidence };
        self.to_lane(lane, Command::Fork(Box::new(fork), reply)).await?;
        left.await.map_err(|_| StoreError::Closed)?
    }

    /// Answers a question of a comparison. Blocks.
    pub fn compare(
        &self,
        ask: &CompareRequest,
        keeps: impl Fn(Slot) -> bool,
    ) -> Result<CompareResponse, StoreError> {
        let shared = &self.inner().shared;
        let db = self.inner().database.get()?;
        let digests = shared.digests.as_ref().ok_or(StoreError::Closed)?;
        compare::respond(&db, digests, &shared.quarantine, ask, keeps)
    }

    /// Entries of a context as they are stored, to be sent in a claim: after a size, up to another, at most so many
    /// bytes (the first entry comes whatever its size). Blocks.
    pub fn range(
        &self,
        context: &ContextId,
        after: Size,
        to: Size,
        max_bytes: usize,
    ) -> Result<ranges::EntryRange, StoreError> {
        let db = self.inner().database.get()?;
        let read = ranges::read(&db, context, after, to, max_bytes);
        read.inspect_err(|error| self.inner().shared.quarantine.record(error))
    }

    /// Readers may see a slot until a moment; `None`: without end, as before it was ever said. `is_kept`: this node is a member
    /// of the slot, and what it has of it counts.
    pub fn set_lease(&self, slot: Slot, until: Option<Instant>, is_kept: bool) {
        let readable = &self.inner().shared.visibility;
        readable.set_lease(slot, until);
        readable.set_member(slot, is_kept);
    }

    /// How claims stand with this replica, when everything sent to the lanes before is written: answered in no particular
    /// order. What is sent to the lanes afterwards is not waited for.
    pub async fn sync_states(&self, claims: Vec<(Slot, Claim)>) -> Result<SyncStates, StoreError> {
        Ok(SyncStates(self.ask_lanes(claims, |(slot, _)| *slot, Command::SyncStates).await?))
    }

    /// As [`Ledger::range`], for another node to put in place. With the size up to which what comes must be put in place
    /// together, if a load that may not be stable brought it.
    pub fn range_together(
        &self,
        context: &ContextId,
        after: Size,
        to: Size,
        max_bytes: usize,
    ) -> Result<(ranges::EntryRange, Option<Size>), StoreError> {
        let shared = &self.inner().shared;
        let db = self.inner().database.get()?;
        let read = ranges::read_together(&db, &shared.uncommitted_loads, context, after, to, max_bytes);
        read.inspect_err(|error| shared.quarantine.record(error))
    }

    /// Whether readers may see a slot here.
    pub fn is_visible(&self, slot: Slot) -> bool {
        self.inner().shared.visibility.is_visible(slot)
    }

    fn lane_of(&self, slot: Slot) -> Result<usize, StoreError> {
        let lanes = self.inner().lane_count();
        if lanes == 0 { Err(StoreError::Closed) } else { Ok(lane_of(slot, lanes)) }
    }

    fn by_lane<T>(
        &self,
        items: Vec<T>,
        slot: impl Fn(&T) -> Slot,
    ) -> Result<BTreeMap<usize, Vec<T>>, StoreError> {
        let mut lanes: BTreeMap<usize, Vec<T>> = BTreeMap::new();
        for item in items {
            lanes.entry(self.lane_of(slot(&item))?).or_default().push(item);
        }
        Ok(lanes)
    }

    /// Asks each lane about what is of it; gives what is to be waited for.
    async fn ask_lanes<T, A>(
        &self,
        items: Vec<T>,
        slot: impl Fn(&T) -> Slot,
        command: impl Fn(Vec<T>, oneshot::Sender<A>) -> Command,
    ) -> Result<Vec<oneshot::Receiver<A>>, StoreError> {
        let mut waiting = Vec::new();
        for (lane, items) in self.by_lane(items, slot)? {
            let (reply, answer) = oneshot::channel();
            self.to_lane(lane, command(items, reply)).await?;
            waiting.push(answer);
        }
        Ok(waiting)
    }

    async fn to_lane(&self, lane: usize, command: Command) -> Result<(), StoreError> {
        let queue = self.inner().queue_of(lane)?;
        queue.send(command).await.map_err(|_| StoreError::Closed)
    }

    async fn to_all(&self, command: impl Fn() -> Command) -> Result<(), StoreError> {
        for lane in 0..self.inner().lane_count() {
            self.to_lane(lane, command()).await?;
        }
        Ok(())
    }
}
