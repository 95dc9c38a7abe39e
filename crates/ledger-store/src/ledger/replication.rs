//! What only a node of a cluster uses: replication between lanes of different nodes, leases and ownership.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use ledger_core::{
    ContextId, Size,
    compare::{CompareRequest, CompareResponse},
    digest::{Digest, TreeHead},
    node::NodeId,
    ownership::{Claim, slot_manager::SyncOfferOutcome},
    replication::Peer,
    slot::Slot,
};
use tokio::sync::oneshot;

use super::Ledger;
use crate::{
    ForkOutcome, PendingFetched, PendingReplication, StoreError, SyncStates,
    engine::errors::io_error,
    engine::families,
    integrity::forks,
    integrity::scrub,
    replicate::compare,
    replicate::pending::all_of,
    replicate::ranges,
    replicate::replica::{
        CommitIndex, Outbox, OwnerCommand, Part, RecordChange, RecordChanged, ReplicaStatus,
    },
    write::command::{Command, ForkRequest, lane_of},
};

impl Ledger {
    /// Attaches the outbox that carries what this node's lanes send. Call it once, before this node owns any slot.
    pub fn set_outbox(&self, outbox: Arc<dyn Outbox>) {
        // A second call is a programming error; the first outbox is kept.
        let _ = self.store.shared.publisher.outbox.set(outbox);
    }

    /// Calls `each` with the tree head of every context that has entries, in name order. Skips a context whose head
    /// cannot be decoded, and quarantines it. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if the heads cannot be read.
    pub fn heads(&self, mut each: impl FnMut(&ContextId, TreeHead)) -> Result<(), StoreError> {
        let shared = &self.store.shared;
        let db = self.store.database.get()?;
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

    /// Changes the records of slots. The changes are on disk before this returns.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed; a change that fails by itself says so in its outcome.
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

    /// Applies the cluster's ownership decisions, in order for each slot.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn apply_owner_commands(&self, commands: Vec<(Slot, OwnerCommand)>) -> Result<(), StoreError> {
        for (lane, commands) in self.by_lane(commands, |(slot, _)| *slot)? {
            self.to_lane(lane, Command::Own(commands)).await?;
        }
        Ok(())
    }

    /// Stops sending to a peer whose stream broke, until it is offered slots again.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn peer_disconnected(&self, peer: Peer) -> Result<(), StoreError> {
        self.to_all(|| Command::PeerDisconnected(peer)).await
    }

    /// Takes all slots of a node out of sync, because its stream restarted. Each is in sync again once this
    /// node accepts an offer on the new stream.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn stream_started(&self, node: &NodeId) -> Result<(), StoreError> {
        self.to_all(|| Command::StreamStarted(node.clone())).await
    }

    /// Passes parts of another node's commit (with its number), or fetched ranges (with 0), to the lanes. Returns
    /// when they are queued, and therefore ordered with everything sent to the lanes later.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn replicate(&self, parts: Vec<Part>, number: u64) -> Result<PendingReplication, StoreError> {
        let follow = |parts, reply| Command::Replicate(parts, number, reply);
        Ok(PendingReplication(self.ask_lanes(parts, |part| part.slot, follow).await?))
    }

    /// Passes fetched ranges to the lanes. Returns when they are queued.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn replicate_fetched(&self, parts: Vec<Part>) -> Result<PendingFetched, StoreError> {
        let mut waiting = Vec::new();
        for (lane, parts) in self.by_lane(parts, |part| part.slot)? {
            let slots = parts.iter().map(|part| part.slot).collect();
            let (reply, answer) = oneshot::channel();
            self.to_lane(lane, Command::Replicate(parts, 0, reply)).await?;
            waiting.push((slots, answer));
        }
        Ok(PendingFetched(waiting))
    }

    /// Applies commit indexes that owners sent.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn advance_commit_index(&self, slots: Vec<CommitIndex>) -> Result<(), StoreError> {
        for (lane, slots) in self.by_lane(slots, |index| index.slot)? {
            self.to_lane(lane, Command::AdvanceCommitIndex(slots)).await?;
        }
        Ok(())
    }

    /// Returns the digests of slots, after the lanes wrote everything sent to them before.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn digests(&self, slots: Vec<Slot>) -> Result<BTreeMap<Slot, Digest>, StoreError> {
        all_of(self.ask_lanes(slots, |slot| *slot, Command::Digests).await?).await
    }

    /// Reports, for slots of one owner, the claim promised here and whether this replica is in sync, after the lanes
    /// wrote everything sent to them before.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn replica_status(
        &self,
        owner: &NodeId,
        slots: Vec<Slot>,
    ) -> Result<BTreeMap<Slot, ReplicaStatus>, StoreError> {
        let command = |slots, reply| Command::ReplicaStatus(owner.clone(), slots, reply);
        all_of(self.ask_lanes(slots, |slot| *slot, command).await?).await
    }

    /// Sends a peer the digests of the slots that it replicates, each at a defined number of the lane's stream.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn send_digest_checkpoint(&self, peer: Peer, slots: Vec<Slot>) -> Result<(), StoreError> {
        for (lane, slots) in self.by_lane(slots, |slot| *slot)? {
            self.to_lane(lane, Command::SendDigestCheckpoint(peer, slots)).await?;
        }
        Ok(())
    }

    /// Records that a peer's disk holds everything of a lane up to a number.
    ///
    /// # Errors
    /// The newest number that was sent, if `number` is higher.
    pub fn advance_peer_durable(&self, peer: Peer, lane: u16, number: u64) -> Result<(), u64> {
        let shared = &self.store.shared;
        match shared.replication().get(usize::from(lane)) {
            Some(copies) => copies.advance_durable_at(&shared.publisher, peer, number),
            None => Err(0),
        }
    }

    /// Records what a peer answered to an offer of a slot, in the order of its answers. Returns the answer for the slot manager.
    pub fn record_offer_answer(
        &self,
        slot: Slot,
        claim: &Claim,
        peer: Peer,
        outcome: SyncOfferOutcome,
    ) -> SyncOfferOutcome {
        match self.store.shared.replication_of(slot) {
            Some(replication) => replication.record_offer_answer(slot, claim, peer, outcome),
            None => outcome,
        }
    }

    /// Stops sending a slot to a peer, and counting it, because the peer refused a part of it. It takes effect before this
    /// returns: call it before anything that the peer says next.
    pub fn remove_refusing_peer(&self, slot: Slot, claim: &Claim, peer: Peer) {
        if let Some(replication) = self.store.shared.replication_of(slot) {
            replication.remove_peer(slot, claim, peer);
        }
    }

    /// Moves what a context has after `common` to its forks, if the context is still what was compared.
    ///
    /// # Errors
    /// [`StoreError`] if the history cannot be read or moved, or the ledger closed.
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

    /// Answers a comparison request. Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read.
    pub fn compare(&self, ask: &CompareRequest) -> Result<CompareResponse, StoreError> {
        let shared = &self.store.shared;
        let db = self.store.database.get()?;
        let digests = shared.digests.as_ref().ok_or(StoreError::Closed)?;
        compare::respond(&db, digests, &shared.quarantine, ask)
    }

    /// Returns stored entries of a context, to be sent in a claim: after one size, up to another, at most `max_bytes`
    /// (the first entry comes whatever its size). Blocks.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] if the context has fewer entries; [`StoreError::Damaged`] if a record is not what
    /// was written.
    pub fn range(
        &self,
        context: &ContextId,
        after: Size,
        to: Size,
        max_bytes: usize,
    ) -> Result<ranges::EntryRange, StoreError> {
        let db = self.store.database.get()?;
        let read = ranges::read(&db, context, after, to, max_bytes);
        read.inspect_err(|error| self.store.shared.quarantine.record(error))
    }

    /// Sets until when readers may see a slot; `None` means without end, which is also the initial state. `is_kept`
    /// says whether this node is a member of the slot, so that its copy counts.
    pub fn set_lease(&self, slot: Slot, until: Option<Instant>, is_kept: bool) {
        let readable = &self.store.shared.publisher.visibility;
        readable.set_lease(slot, until);
        readable.set_member(slot, is_kept);
    }

    /// Asks the lanes for the state of claims at this replica, after they wrote everything sent to them before. The
    /// result does not wait for what is sent to them later.
    ///
    /// # Errors
    /// [`StoreError`] if the ledger closed.
    pub async fn sync_states(&self, claims: Vec<(Slot, Claim)>) -> Result<SyncStates, StoreError> {
        Ok(SyncStates(self.ask_lanes(claims, |(slot, _)| *slot, Command::SyncStates).await?))
    }

    /// Does what [`Ledger::range`] does, for a node that will install the entries.
    ///
    /// # Errors
    /// As for [`Ledger::range`].
    pub fn range_to_send(
        &self,
        context: &ContextId,
        after: Size,
        to: Size,
        max_bytes: usize,
    ) -> Result<ranges::SentRange, StoreError> {
        let shared = &self.store.shared;
        let db = self.store.database.get()?;
        let read =
            ranges::read_to_send(&db, &shared.publisher.uncommitted_loads, context, after, to, max_bytes);
        read.inspect_err(|error| shared.quarantine.record(error))
    }

    /// Returns whether readers may see a slot here.
    pub fn is_visible(&self, slot: Slot) -> bool {
        self.store.shared.publisher.visibility.is_visible(slot)
    }

    fn lane_of(&self, slot: Slot) -> Result<usize, StoreError> {
        let lanes = self.store.lane_count();
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

    /// Sends each lane the request for its slots; returns the receivers of the responses.
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
        let queue = self.store.queue_of(lane)?;
        queue.send(command).await.map_err(|_| StoreError::Closed)
    }

    async fn to_all(&self, command: impl Fn() -> Command) -> Result<(), StoreError> {
        for lane in 0..self.store.lane_count() {
            self.to_lane(lane, command()).await?;
        }
        Ok(())
    }
}
