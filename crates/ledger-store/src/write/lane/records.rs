//! A lane in a cluster: the records of its slots, and the slots that this node owns.
//!
//! Every change goes through the lane's queue. A promise therefore comes after every entry accepted before it and
//! before every entry refused because of it, and a sync offer covers exactly what the peer was sent before it. What
//! becomes of a change [`RecordBatch`] decides; the lane writes the records.

use std::sync::Arc;

use ledger_core::{
    ContextId, Size,
    digest::{Digest, TreeHead},
    node::NodeId,
    ownership::{Claim, SlotRecord},
    replication::{
        Peer,
        replica::{Accepted, ForkDecision, RecordBatch, SlotCondition},
    },
    slot::{SLOTS, Slot},
};

use super::{Lane, slot_records::SlotRecords};
use crate::{
    ForkOutcome, StoreError,
    directory::slot_records,
    engine::db::Db,
    engine::heads::read_head,
    integrity::forks,
    limited,
    replicate::replica::{
        DigestCheckpoint, Outgoing, OwnerCommand, RecordChange, RecordChangeOutcome, RecordChanged,
        ReplicaStatus, SyncOffer, SyncState,
    },
    write::command::{ForkRequest, lane_of},
};

impl Lane {
    /// Changes the records of slots, durably.
    pub(super) fn change(
        &mut self,
        db: &Arc<Db>,
        changes: Vec<(Slot, RecordChange)>,
    ) -> Vec<(Slot, RecordChanged)> {
        let mut changed = Vec::with_capacity(changes.len());
        let mut batch = RecordBatch::new(Slot::FIRST, *self.shared.cluster.borrow());
        for (slot, change) in changes {
            let known = batch.record(slot).cloned();
            let record = match known.map_or_else(|| self.record(db, slot).cloned(), Ok) {
                Ok(record) => record,
                Err(error) => {
                    changed.push((slot, RecordChanged { outcome: Err(error), record: None }));
                    continue;
                }
            };
            let condition =
                SlotCondition { has_damage: self.shared.quarantine.has(slot), digest: self.digest(slot) };
            let outcome = batch.change(&mut self.replica, slot, &record, change, condition);
            if matches!(outcome, RecordChangeOutcome::Diverged { .. })
                && let Some(copies) = &self.replication
            {
                copies.hide_diverged(&self.shared.publisher, slot);
            }
            let record = batch.record(slot).cloned().unwrap_or(record);
            changed.push((slot, RecordChanged { outcome: Ok(outcome), record: Some(record) }));
        }
        if batch.records().is_empty() {
            return changed;
        }
        let joined = batch.joined();
        if let Err(error) = slot_records::write(db, batch.records(), joined) {
            self.shared.commit_failed(&error);
            for (slot, changed) in &mut changed {
                if batch.record(*slot).is_some() {
                    // Nobody knows what is on disk.
                    *changed = RecordChanged { outcome: Err(error.clone()), record: None };
                    self.records.0.remove(slot);
                }
            }
            return changed;
        }
        if joined.is_some() {
            self.shared.cluster.send_replace(joined);
        }
        let (records, accepted) = batch.into_parts();
        if let Some(copies) = &self.replication {
            for (slot, record) in &records {
                if let Some(promised) = &record.promised {
                    copies.fence(*slot, promised);
                }
            }
        }
        self.records.0.extend(records);
        let accepted = self.replica.on_written(accepted);
        if let Some(copies) = &self.replication {
            for Accepted { slot, claim, number } in accepted {
                copies.record_accepted(&self.shared.publisher, slot, claim.epoch, number);
            }
        }
        changed
    }

    /// Returns a slot's record.
    pub(super) fn record(&mut self, db: &Db, slot: Slot) -> Result<&SlotRecord, StoreError> {
        self.records.of(db, &self.shared, slot)
    }

    /// Reads the records of all slots of this lane: a record in memory can be rewritten if it gets damaged on disk.
    pub(super) fn load_records(&mut self) {
        let lanes = self.shared.replication().len();
        let Some(db) = self.database.get().ok().filter(|_| self.replication.is_some()) else { return };
        for slot in (0..SLOTS).filter_map(Slot::new) {
            if lane_of(slot, lanes) == usize::from(self.number) {
                // `record` reports a lost one itself.
                let _ = self.record(&db, slot);
            }
        }
    }

    /// Rewrites a slot's record from memory, because the scrub found it damaged on disk.
    pub(super) fn rewrite_record(&mut self, db: &Db, slot: Slot) {
        let Some(record) = self.records.0.get(&slot).cloned() else { return self.shared.lost_slot(slot) };
        match slot_records::write(db, &[(slot, record)].into(), None) {
            Ok(()) => {
                limited!(warn, slot = slot.number(), "the damaged record of a slot was written anew");
            }
            Err(error) => self.shared.commit_failed(&error),
        }
    }

    /// Applies ownership decisions to slots.
    pub(super) fn apply_owner_commands(&mut self, db: &Arc<Db>, commands: Vec<(Slot, OwnerCommand)>) {
        let Some(copies) = self.replication.clone() else { return };
        let mut published = Vec::new();
        for (slot, command) in commands {
            match command {
                OwnerCommand::OfferSync { peer, claim, members: set, is_confirmed, previous } => {
                    let number = copies.add_stream_peer(slot, &claim, peer);
                    let digest = self.digest(slot).unwrap_or_default();
                    let lane = self.number;
                    let offer =
                        SyncOffer { lane, number, slot, claim, members: set, is_confirmed, previous, digest };
                    if let Some(outbox) = self.shared.publisher.outbox.get() {
                        outbox.send(peer, Outgoing::SyncOffer(offer));
                    }
                }
                OwnerCommand::BeginServing { claim, write_quorum } => {
                    if let Ok(record) = self.records.of(db, &self.shared, slot) {
                        let shown =
                            copies.begin_serving(&self.shared.publisher, slot, &claim, write_quorum, record);
                        published.extend(shown);
                    }
                    self.replica.on_serving(slot, &claim);
                }
                OwnerCommand::AddInSync { claim, peer } => {
                    copies.add_in_sync(&self.shared.publisher, slot, &claim, peer);
                }
                OwnerCommand::RemoveReplica { claim, peer } => copies.remove_peer(slot, &claim, peer),
                OwnerCommand::StopAppends { claim } => {
                    copies.stop_appends(&self.shared.publisher, slot, &claim);
                }
                OwnerCommand::StepDown => copies.step_down(&self.shared.publisher, slot),
            }
        }
        self.wake_watchers(db, &published);
    }

    /// Wakes the watchers of slots that became visible.
    pub(super) fn wake_watchers(&self, db: &Db, published: &[Slot]) {
        if published.is_empty() || self.shared.publisher.tails.is_idle() {
            return;
        }
        for (context, tail) in self.shared.publisher.tails.of_slots(|slot| published.contains(&slot)) {
            // A watcher that reads the context gets the error.
            if let Ok(Some((_, head))) = db.head(&context) {
                tail.reach(head.size());
            }
        }
    }

    /// Returns the digest of what is held of a slot; `None` on a standalone node.
    fn digest(&self, slot: Slot) -> Option<Digest> {
        self.shared.digests.as_ref().map(|digests| digests.whole(slot))
    }

    pub(super) fn digests(&self, slots: &[Slot]) -> Vec<(Slot, Digest)> {
        slots.iter().filter_map(|slot| Some((*slot, self.digest(*slot)?))).collect()
    }

    /// Reports, for slots of one owner, whether this replica is in sync, or the higher claim that it promised.
    pub(super) fn replica_status(
        &mut self,
        db: &Db,
        owner: &NodeId,
        slots: Vec<Slot>,
    ) -> Vec<(Slot, ReplicaStatus)> {
        let status = |slot: Slot| {
            let digest = self.digest(slot);
            let record = self.records.of(db, &self.shared, slot).ok();
            (slot, self.replica.status(slot, owner, record, digest))
        };
        slots.into_iter().map(status).collect()
    }

    /// Reports the state of claims at this replica.
    pub(super) fn sync_states(&mut self, db: &Db, claims: Vec<(Slot, Claim)>) -> Vec<(Slot, SyncState)> {
        let state = |(slot, claim): (Slot, Claim)| {
            let record = self.records.of(db, &self.shared, slot).ok();
            (slot, self.replica.sync_state(slot, &claim, record))
        };
        claims.into_iter().map(state).collect()
    }

    pub(super) fn send_digest_checkpoint(&self, peer: Peer, slots: &[Slot]) {
        let (Some(copies), Some(outbox)) = (&self.replication, self.shared.publisher.outbox.get()) else {
            return;
        };
        // The slots that are out of sync are known to differ.
        let slots: Vec<Slot> = slots.iter().filter(|slot| copies.is_in_sync(**slot, peer)).copied().collect();
        if !slots.is_empty() {
            let (lane, number, digests) = (self.number, copies.number(), self.digests(&slots));
            outbox.send(peer, Outgoing::DigestCheckpoint(DigestCheckpoint { lane, number, digests }));
        }
    }

    /// Returns a context's tree head.
    pub(super) fn tree_head(db: &Db, context: &ContextId) -> Result<Option<TreeHead>, StoreError> {
        let row = read_head(db, context)?;
        Ok(row.map(|(_, head)| head.tree_head()))
    }

    /// Forks off a history for the one that a claim's owner has.
    pub(super) fn fork(&mut self, db: &Arc<Db>, fork: ForkRequest) -> Result<ForkOutcome, StoreError> {
        let ForkRequest { context, claim, common, expected, evidence } = fork;
        let slot = Slot::of(&context);
        let now = Self::tree_head(db, &context);
        let is_unchanged = now.as_ref().is_ok_and(|now| *now == Some(expected));
        let record = self.records.of(db, &self.shared, slot)?;
        match self.replica.leave_history(slot, &context, &claim, record, is_unchanged) {
            ForkDecision::Leave => {}
            ForkDecision::Refused(by) => return Ok(ForkOutcome::Refused(by)),
            // The caller compares again.
            ForkDecision::Changed => return Ok(ForkOutcome::Forked(now?.map_or(Size(0), |now| now.size))),
        }
        // Hide the slot, so that no reader sees a history that is being replaced.
        if let Some(copies) = &self.replication {
            copies.hide_diverged(&self.shared.publisher, slot);
        }
        self.cache.remove(&context);
        let left = forks::fork_off(db, &context, common, &evidence).inspect_err(|error| match error {
            // Reading the existing rows failed, which is no write failure.
            StoreError::Damaged { .. } | StoreError::OutOfRange { .. } => {
                self.shared.quarantine.record(error);
            }
            error => self.shared.commit_failed(error),
        })?;
        if let Some(digests) = &self.shared.digests {
            digests.replace(&context, left.was, left.now);
        }
        Ok(ForkOutcome::Forked(common))
    }

    /// Prepares the lane after the database was reopened with all slots hidden: it rereads the records, because the
    /// last commits may be lost, and ends the ownership of all slots.
    pub(super) fn on_reopened(&mut self, db: &Arc<Db>) -> Result<(), StoreError> {
        let Some(copies) = self.replication.clone() else { return Ok(()) };
        self.records = SlotRecords::default();
        self.load_records();
        self.replica.on_reopened();
        let lost = copies.on_reopened(&self.shared.publisher, &StoreError::NotAcknowledged);
        let lanes = self.shared.replication().len();
        let mine = |slot: Slot| lane_of(slot, lanes) == usize::from(self.number);
        if let Some(outbox) = self.shared.publisher.outbox.get() {
            outbox.ownership_lost(lost);
        }
        self.shared
            .digests
            .as_ref()
            .map_or(Ok(()), |digests| digests.rescan(db, &self.shared.quarantine, mine))
    }
}
