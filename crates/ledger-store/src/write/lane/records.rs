//! A lane in a cluster: the records of its slots, and the slots that this node owns.
//!
//! Every change goes through the lane's queue. A promise therefore comes after every entry accepted before it and
//! before every entry refused because of it, and a sync offer covers exactly what the peer was sent before it.

use super::{
    Arc, Claim, ContextId, Db, Digest, ForkRequest, Lane, NodeId, Outgoing, OwnerCommand, Peer, RecordChange,
    RecordChanged, Size, Slot, SlotRecord, StoreError, TreeHead, forks, lane_of, read_head,
};
use std::collections::BTreeMap;

use ledger_core::{node::ClusterId, ownership::ReplicaRefusal, slot::SLOTS};

use crate::{
    Damage,
    directory::slot_records,
    limited,
    replicate::cluster_api::ForkOutcome,
    replicate::replica::{DigestCheckpoint, RecordChangeOutcome, ReplicaStatus, SyncOffer, SyncState},
};

impl Lane {
    /// Changes the records of slots, durably.
    pub(super) fn change(
        &mut self,
        db: &Arc<Db>,
        changes: Vec<(Slot, RecordChange)>,
    ) -> Vec<(Slot, RecordChanged)> {
        let mut changed = Vec::with_capacity(changes.len());
        let mut records = BTreeMap::new();
        // The numbers in the owner's stream of the offers that these changes accept.
        let mut accepted = Vec::new();
        let known = *self.shared.cluster.borrow();
        let mut cluster = known;
        for (slot, change) in changes {
            let record = match records
                .get(&slot)
                .map_or_else(|| self.record(db, slot), |known: &SlotRecord| Ok(known.clone()))
            {
                Ok(record) => record,
                Err(error) => {
                    changed.push((
                        slot,
                        RecordChanged { outcome: RecordChangeOutcome::Failed(error), record: None },
                    ));
                    continue;
                }
            };
            let (outcome, next) = match first_slot(slot, &record, &change, &mut cluster) {
                Ok(()) => self.changed(slot, &record, change, &mut accepted),
                Err(refused) => (RecordChangeOutcome::Failed(refused), None),
            };
            if slot == Slot::FIRST && cluster.is_none() {
                cluster = next.as_ref().and_then(|next| record.cluster_formed_by(next));
            }
            let record = next.inspect(|next| _ = records.insert(slot, next.clone())).unwrap_or(record);
            changed.push((slot, RecordChanged { outcome, record: Some(record) }));
        }
        if records.is_empty() {
            return changed;
        }
        let joined = cluster.filter(|_| known.is_none());
        if let Err(error) = slot_records::write(db, &records, joined) {
            self.shared.commit_failed(&error);
            for (slot, changed) in &mut changed {
                if records.contains_key(slot) {
                    changed.outcome = RecordChangeOutcome::Failed(error.clone());
                    // Nobody knows what is on disk.
                    changed.record = None;
                    self.records.remove(slot);
                }
            }
            return changed;
        }
        if joined.is_some() {
            self.shared.cluster.send_replace(joined);
        }
        if let Some(copies) = &self.replication {
            for (slot, record) in &records {
                if let Some(promised) = &record.promised {
                    copies.fence(*slot, promised);
                }
            }
        }
        self.records.extend(records);
        if let Some(copies) = &self.replication {
            for (slot, claim, number) in accepted {
                copies.record_accepted(&self.shared, slot, claim.epoch, number);
                self.in_sync_claims.insert(slot, claim);
            }
        }
        changed
    }

    fn changed(
        &mut self,
        slot: Slot,
        record: &SlotRecord,
        change: RecordChange,
        accepted: &mut Vec<(Slot, Claim, u64)>,
    ) -> (RecordChangeOutcome, Option<SlotRecord>) {
        match change {
            RecordChange::Promise(claim)
                if self.shared.quarantine.has(slot) && record.check_replicate(&claim).is_ok() =>
            {
                // A promise makes this replica's history count, and an unreadable one could be the longest there is.
                (RecordChangeOutcome::Failed(self.unreadable(slot)), None)
            }
            RecordChange::Promise(claim) => match record.promise(&claim) {
                Ok((next, promise)) => (RecordChangeOutcome::Promised(promise), Some(next)),
                Err(refused) => (RecordChangeOutcome::Refused(refused.promised), None),
            },
            RecordChange::Confirm(claim) => match record.confirm(&claim) {
                Ok(next) => (RecordChangeOutcome::Done, Some(next)),
                Err(refused) => (not_taken(refused), None),
            },
            RecordChange::RecordFormed => (RecordChangeOutcome::Done, Some(record.record_formed())),
            RecordChange::JoinCluster(..) => (RecordChangeOutcome::Done, Some(record.clone())),
            RecordChange::Accept { claim, members, is_confirmed, previous, offer } => {
                let next = match record.accept(&claim, &members, is_confirmed, previous.as_ref()) {
                    Ok(next) => next,
                    Err(refused) => return (not_taken(refused), None),
                };
                if let Some((digest, number)) = offer {
                    let ours = self.shared.digests.as_ref().map(|digests| digests.whole(slot));
                    if ours != Some(digest) || self.shared.quarantine.has(slot) {
                        self.in_sync_claims.remove(&slot);
                        if let Some(copies) = &self.replication {
                            copies.hide_diverged(&self.shared, slot);
                        }
                        // From now on this replica must refuse every lower claim, because its history is about to
                        // change.
                        let promised = record.promise(&claim).ok().map(|(next, _)| next);
                        return (RecordChangeOutcome::Diverged, promised);
                    }
                    accepted.push((slot, claim, number));
                }
                (RecordChangeOutcome::Done, Some(next))
            }
        }
    }

    /// Returns a slot's record.
    pub(super) fn record(&mut self, db: &Db, slot: Slot) -> Result<SlotRecord, StoreError> {
        if let Some(record) = self.records.get(&slot) {
            return Ok(record.clone());
        }
        let record = slot_records::read(db, slot).inspect_err(|error| {
            if let StoreError::SlotDamaged { slot, .. } = error {
                self.shared.lost_slot(*slot);
            }
        })?;
        self.records.insert(slot, record.clone());
        Ok(record)
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
        let Some(record) = self.records.get(&slot).cloned() else { return self.shared.lost_slot(slot) };
        match slot_records::write(db, &[(slot, record)].into(), None) {
            Ok(()) => {
                limited!(warn, slot = slot.number(), "the damaged record of a slot was written anew");
            }
            Err(error) => self.shared.commit_failed(&error),
        }
    }

    /// Returns why this replica promises nothing for a slot.
    fn unreadable(&self, slot: Slot) -> StoreError {
        match self.shared.quarantine.any(slot) {
            Some(Damage { context, sequence, reason }) => StoreError::Damaged { context, sequence, reason },
            // The context was restored a moment ago: the claimant retries.
            None => StoreError::Moving,
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
                    let digest = self.shared.digests.as_ref().map(|digests| digests.whole(slot));
                    let digest = digest.unwrap_or_default();
                    let lane = self.number;
                    let offer =
                        SyncOffer { lane, number, slot, claim, members: set, is_confirmed, previous, digest };
                    if let Some(outbox) = self.shared.outbox.get() {
                        outbox.send(peer, Outgoing::SyncOffer(offer));
                    }
                }
                OwnerCommand::BeginServing { claim, write_quorum } => {
                    if let Ok(record) = self.record(db, slot) {
                        let shown = copies.begin_serving(&self.shared, slot, &claim, write_quorum, &record);
                        published.extend(shown);
                    }
                    self.in_sync_claims.remove(&slot);
                }
                OwnerCommand::AddInSync { claim, peer } => {
                    copies.add_in_sync(&self.shared, slot, &claim, peer);
                }
                OwnerCommand::RemoveReplica { claim, peer } => copies.remove_peer(slot, &claim, peer),
                OwnerCommand::StopAppends { claim } => copies.stop_appends(&self.shared, slot, &claim),
                OwnerCommand::StepDown => copies.step_down(&self.shared, slot),
            }
        }
        self.wake_watchers(db, &published);
    }

    /// Wakes the watchers of slots that became visible.
    pub(super) fn wake_watchers(&self, db: &Db, published: &[Slot]) {
        if published.is_empty() || self.shared.tails.is_idle() {
            return;
        }
        for (context, tail) in self.shared.tails.of_slots(|slot| published.contains(&slot)) {
            // A watcher that reads the context gets the error.
            if let Ok(Some((_, head))) = db.head(&context) {
                tail.reach(head.size());
            }
        }
    }

    pub(super) fn digests(&self, slots: &[Slot]) -> Vec<(Slot, Digest)> {
        let Some(digests) = &self.shared.digests else { return Vec::new() };
        slots.iter().map(|slot| (*slot, digests.whole(*slot))).collect()
    }

    /// Reports, for slots of one owner, whether this replica is in sync, or the higher claim that it promised.
    pub(super) fn replica_status(
        &mut self,
        db: &Db,
        owner: &NodeId,
        slots: Vec<Slot>,
    ) -> Vec<(Slot, ReplicaStatus)> {
        let status = |slot: Slot| {
            if self.in_sync_claims.get(&slot).is_some_and(|claim| claim.claimant == *owner) {
                let digests = self.shared.digests.as_ref();
                return (
                    slot,
                    digests.map_or(ReplicaStatus::NotInSync, |all| ReplicaStatus::InSync(all.whole(slot))),
                );
            }
            let promised = self.record(db, slot).ok().and_then(|record| record.promised);
            let promised = promised.filter(|claim| claim.claimant != *owner);
            (slot, promised.map_or(ReplicaStatus::NotInSync, ReplicaStatus::Promised))
        };
        slots.into_iter().map(status).collect()
    }

    /// Reports the state of claims at this replica.
    pub(super) fn sync_states(&mut self, db: &Db, claims: Vec<(Slot, Claim)>) -> Vec<(Slot, SyncState)> {
        let state = |(slot, claim): (Slot, Claim)| {
            let state = match self.record(db, slot).map(|record| (record.check_replicate(&claim), record)) {
                Err(_) => SyncState::Unknown,
                Ok((Err(refused), _)) => SyncState::Refused(refused.promised),
                Ok((Ok(()), record))
                    if record.check_append(&claim).is_ok()
                        && self.in_sync_claims.get(&slot) == Some(&claim) =>
                {
                    SyncState::InSync
                }
                Ok(_) => SyncState::Behind,
            };
            (slot, state)
        };
        claims.into_iter().map(state).collect()
    }

    pub(super) fn send_digest_checkpoint(&self, peer: Peer, slots: &[Slot]) {
        let (Some(copies), Some(outbox)) = (&self.replication, self.shared.outbox.get()) else { return };
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
        if let Err(refused) = self.record(db, slot)?.check_replicate(&claim) {
            return Ok(ForkOutcome::Refused(refused.promised));
        }
        let now = Self::tree_head(db, &context)?;
        if now != Some(expected) || self.in_sync_claims.get(&slot) == Some(&claim) {
            // It changed since the comparison, or is in sync by now: the caller compares again.
            return Ok(ForkOutcome::Forked(now.map_or(Size(0), |now| now.size)));
        }
        // Hide the slot, so that no reader sees a history that is being replaced.
        if let Some(copies) = &self.replication {
            copies.hide_diverged(&self.shared, slot);
            self.in_sync_claims.remove(&slot);
        }
        self.cache.remove(&context);
        self.out_of_order.forget(&context);
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
        self.records.clear();
        self.load_records();
        self.in_sync_claims.clear();
        self.out_of_order = super::OutOfOrderBuffer::default();
        let lost = copies.on_reopened(&self.shared, &StoreError::NotAcknowledged);
        let lanes = self.shared.replication().len();
        let mine = |slot: Slot| lane_of(slot, lanes) == usize::from(self.number);
        if let Some(outbox) = self.shared.outbox.get() {
            outbox.ownership_lost(lost);
        }
        self.shared
            .digests
            .as_ref()
            .map_or(Ok(()), |digests| digests.rescan(db, &self.shared.quarantine, mine))
    }
}

/// Returns whether a change of the first slot fits the directory's cluster, or determines it.
fn first_slot(
    slot: Slot,
    record: &SlotRecord,
    change: &RecordChange,
    cluster: &mut Option<ClusterId>,
) -> Result<(), StoreError> {
    let belongs = |cluster: Option<ClusterId>| match cluster {
        Some(id) => StoreError::Io(format!("the data directory belongs to the cluster {id}")),
        None => StoreError::Io("the node is about to form another cluster".to_owned()),
    };
    match change {
        RecordChange::JoinCluster(id, _) if cluster.is_some_and(|known| known == *id) => Ok(()),
        RecordChange::JoinCluster(id, said_by) => {
            if slot != Slot::FIRST || cluster.is_some() || !record.may_join_cluster(*id, said_by) {
                return Err(belongs(*cluster));
            }
            *cluster = Some(*id);
            Ok(())
        }
        RecordChange::Accept { members, is_confirmed, .. }
            if slot == Slot::FIRST
                && !SlotRecord::may_accept_first_members(*cluster, members, *is_confirmed) =>
        {
            Err(belongs(*cluster))
        }
        _ => Ok(()),
    }
}

fn not_taken(refused: ReplicaRefusal) -> RecordChangeOutcome {
    match refused {
        ReplicaRefusal::HigherClaimPromised(refused) => RecordChangeOutcome::Refused(refused.promised),
        ReplicaRefusal::OtherMembers(placement) => RecordChangeOutcome::OtherMembers(placement),
        // The change precedes the acceptance, or follows one of another epoch.
        ReplicaRefusal::NotAccepted { .. } | ReplicaRefusal::AlreadyFormed => {
            RecordChangeOutcome::Failed(StoreError::Io(refused.to_string()))
        }
    }
}
