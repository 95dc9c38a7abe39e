//! A lane in a cluster: the records of its slots, and leading them.
//!
//! All of it goes through the lane's queue, so that a promise comes after every entry taken before it and before
//! every entry refused because of it, and an offer is of what the peer was sent before.

use super::{
    Arc, Change, Changed, Claim, ContextId, Db, Digest, Extent, Fork, Lane, Lead, NodeId, Outgoing, Peer,
    Size, Slot, SlotRecord, StoreError, forks, lane_of, read_head,
};
use std::collections::BTreeMap;

use ledger_core::{node::ClusterId, ownership::NotTaken, slot::SLOTS};

use crate::{
    Damage,
    cluster::LeftHistory,
    limited,
    replica::{ChangeOutcome, Held, Mark, Offer, SyncState},
    slots,
};

impl Lane {
    /// Changes slots' records, durably.
    pub(super) fn change(&mut self, db: &Arc<Db>, changes: Vec<(Slot, Change)>) -> Vec<(Slot, Changed)> {
        let mut changed = Vec::with_capacity(changes.len());
        let mut records = BTreeMap::new();
        // Places of offers that are accepted with these changes.
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
                    changed.push((slot, Changed { outcome: ChangeOutcome::Failed(error), record: None }));
                    continue;
                }
            };
            let (outcome, next) = match first_slot(slot, &record, &change, &mut cluster) {
                Ok(()) => self.changed(slot, &record, change, &mut accepted),
                Err(refused) => (ChangeOutcome::Failed(refused), None),
            };
            if slot == Slot::FIRST && cluster.is_none() {
                cluster = next.as_ref().and_then(|next| record.forms(next));
            }
            let record = next.inspect(|next| _ = records.insert(slot, next.clone())).unwrap_or(record);
            changed.push((slot, Changed { outcome, record: Some(record) }));
        }
        if records.is_empty() {
            return changed;
        }
        let joined = cluster.filter(|_| known.is_none());
        if let Err(error) = slots::write(db, &records, joined) {
            self.shared.commit_failed(&error);
            for (slot, changed) in &mut changed {
                if records.contains_key(slot) {
                    changed.outcome = ChangeOutcome::Failed(error.clone());
                    // What is on disk is not known.
                    changed.record = None;
                    self.records.remove(slot);
                }
            }
            return changed;
        }
        if joined.is_some() {
            self.shared.cluster.send_replace(joined);
        }
        if let Some(copies) = &self.copies {
            for (slot, record) in &records {
                if let Some(promised) = &record.promised {
                    copies.fence(*slot, promised);
                }
            }
        }
        self.records.extend(records);
        if let Some(copies) = &self.copies {
            for (slot, claim, number) in accepted {
                // What waited for copies of this node's own is part of the history accepted, or was not acknowledged.
                copies.step_down(&self.shared, slot);
                copies.accepted(&self.shared, slot, claim.epoch, number);
                self.in_step.insert(slot, claim);
            }
        }
        changed
    }

    fn changed(
        &mut self,
        slot: Slot,
        record: &SlotRecord,
        change: Change,
        accepted: &mut Vec<(Slot, Claim, u64)>,
    ) -> (ChangeOutcome, Option<SlotRecord>) {
        match change {
            Change::Promise(claim)
                if self.shared.quarantine.has(slot) && record.may_follow(&claim).is_ok() =>
            {
                // A promise says that what is here counts as a replica's history: what cannot be read could be the
                // longest there is.
                (ChangeOutcome::Failed(self.unreadable(slot)), None)
            }
            Change::Promise(claim) => match record.promise(&claim) {
                Ok((next, promise)) => (ChangeOutcome::Promised(promise), Some(next)),
                Err(refused) => (ChangeOutcome::Refused(refused.promised), None),
            },
            Change::Confirm(claim) => match record.confirm(&claim) {
                Ok(next) => (ChangeOutcome::Done, Some(next)),
                Err(refused) => (not_taken(refused), None),
            },
            Change::Formed => (ChangeOutcome::Done, Some(record.formed())),
            Change::Join(..) => (ChangeOutcome::Done, Some(record.clone())),
            Change::Accept { claim, set, is_confirmed, before, offer } => {
                let next = match record.accept(&claim, &set, is_confirmed, before.as_ref()) {
                    Ok(next) => next,
                    Err(refused) => return (not_taken(refused), None),
                };
                if let Some((digest, number)) = offer {
                    let ours = self.shared.digests.as_ref().map(|digests| digests.whole(slot));
                    if ours != Some(digest) || self.shared.quarantine.has(slot) {
                        self.in_step.remove(&slot);
                        if let Some(copies) = &self.copies {
                            copies.differs(&self.shared, slot);
                        }
                        // From now on nothing of a lower claim may be taken: what is here is about to change.
                        let promised = record.promise(&claim).ok().map(|(next, _)| next);
                        return (ChangeOutcome::Differs, promised);
                    }
                    accepted.push((slot, claim, number));
                }
                (ChangeOutcome::Done, Some(next))
            }
        }
    }

    /// A slot's record.
    pub(super) fn record(&mut self, db: &Db, slot: Slot) -> Result<SlotRecord, StoreError> {
        if let Some(record) = self.records.get(&slot) {
            return Ok(record.clone());
        }
        let record = slots::read(db, slot).inspect_err(|error| {
            if let StoreError::SlotDamaged { slot, .. } = error {
                self.shared.lost_slot(*slot);
            }
        })?;
        self.records.insert(slot, record.clone());
        Ok(record)
    }

    /// Reads the records of all slots of this lane: what is remembered can be written anew.
    pub(super) fn remember(&mut self) {
        let lanes = self.shared.copies().len();
        let Some(db) = self.database.get().ok().filter(|_| self.copies.is_some()) else { return };
        for slot in (0..SLOTS).filter_map(Slot::new) {
            if lane_of(slot, lanes) == usize::from(self.number) {
                // One that is lost is noted.
                let _ = self.record(&db, slot);
            }
        }
    }

    /// Writes a slot's record anew, that was found to be damaged on the disk.
    pub(super) fn restore(&mut self, db: &Db, slot: Slot) {
        let Some(record) = self.records.get(&slot).cloned() else { return self.shared.lost_slot(slot) };
        match slots::write(db, &[(slot, record)].into(), None) {
            Ok(()) => {
                limited!(warn, slot = slot.number(), "the damaged record of a slot was written anew");
            }
            Err(error) => self.shared.commit_failed(&error),
        }
    }

    /// Why nothing is promised of a slot.
    fn unreadable(&self, slot: Slot) -> StoreError {
        match self.shared.quarantine.any(slot) {
            Some(Damage { context, sequence, reason }) => StoreError::Damaged { context, sequence, reason },
            // It was restored a moment ago: whoever asks asks again.
            None => StoreError::Moving,
        }
    }

    /// Leads slots, or no more.
    pub(super) fn lead(&mut self, db: &Arc<Db>, leads: Vec<(Slot, Lead)>) {
        let Some(copies) = self.copies.clone() else { return };
        let mut shown = Vec::new();
        for (slot, lead) in leads {
            match lead {
                Lead::Offer { peer, claim, set, is_confirmed, before } => {
                    let number = copies.send_to(slot, &claim, peer);
                    let digest = self.shared.digests.as_ref().map(|digests| digests.whole(slot));
                    let digest = digest.unwrap_or_default();
                    let lane = self.number;
                    let offer = Offer { lane, number, slot, claim, set, is_confirmed, before, digest };
                    if let Some(outbox) = self.shared.carrier.get() {
                        outbox.send(peer, Outgoing::Offer(offer));
                    }
                }
                Lead::Own { claim, needed } => {
                    // Since it was decided, the slot may have been promised to another node, and its entries taken.
                    let record = self.record(db, slot).ok().filter(|record| record.takes(&claim).is_ok());
                    let members =
                        record.map(|record| record.placement.map_or(1, |placement| placement.set.len()));
                    if let Some(members) = members
                        && copies.own(&self.shared, slot, &claim, needed, members)
                    {
                        shown.push(slot);
                    }
                    self.in_step.remove(&slot);
                }
                Lead::Count { claim, peer } => copies.count(&self.shared, slot, &claim, peer),
                Lead::Release { claim, peer } => copies.release(slot, &claim, peer),
                Lead::Stop { claim } => copies.stop(&self.shared, slot, &claim),
                Lead::StepDown => copies.step_down(&self.shared, slot),
            }
        }
        self.wake(db, &shown);
    }

    /// Wakes the watchers of slots that are shown from now on.
    pub(super) fn wake(&self, db: &Db, shown: &[Slot]) {
        if shown.is_empty() || self.shared.tails.is_idle() {
            return;
        }
        for (context, tail) in self.shared.tails.of_slots(|slot| shown.contains(&slot)) {
            // Whoever reads it meets the error.
            if let Ok(Some((_, head))) = db.head(&context) {
                tail.reach(head.size());
            }
        }
    }

    pub(super) fn digests(&self, slots: &[Slot]) -> Vec<(Slot, Digest)> {
        let Some(digests) = &self.shared.digests else { return Vec::new() };
        slots.iter().map(|slot| (*slot, digests.whole(*slot))).collect()
    }

    /// What is held of an owner's slots.
    pub(super) fn held(&mut self, db: &Db, owner: &NodeId, slots: Vec<Slot>) -> Vec<(Slot, Held)> {
        let held = |slot: Slot| {
            if self.in_step.get(&slot).is_some_and(|claim| claim.claimant == *owner) {
                let digests = self.shared.digests.as_ref();
                return (slot, digests.map_or(Held::Otherwise, |all| Held::InStep(all.whole(slot))));
            }
            let promised = self.record(db, slot).ok().and_then(|record| record.promised);
            let promised = promised.filter(|claim| claim.claimant != *owner);
            (slot, promised.map_or(Held::Otherwise, Held::Promised))
        };
        slots.into_iter().map(held).collect()
    }

    /// How claims stand with this replica.
    pub(super) fn sync_states(&mut self, db: &Db, claims: Vec<(Slot, Claim)>) -> Vec<(Slot, SyncState)> {
        let state = |(slot, claim): (Slot, Claim)| {
            let state = match self.record(db, slot).map(|record| (record.may_follow(&claim), record)) {
                Err(_) => SyncState::Unknown,
                Ok((Err(refused), _)) => SyncState::Refused(refused.promised),
                Ok((Ok(()), record))
                    if record.takes(&claim).is_ok() && self.in_step.get(&slot) == Some(&claim) =>
                {
                    SyncState::InSync
                }
                Ok(_) => SyncState::Behind,
            };
            (slot, state)
        };
        claims.into_iter().map(state).collect()
    }

    pub(super) fn mark(&self, peer: Peer, slots: &[Slot]) {
        let (Some(copies), Some(outbox)) = (&self.copies, self.shared.carrier.get()) else { return };
        // Others are known to differ.
        let slots: Vec<Slot> = slots.iter().filter(|slot| copies.counts(**slot, peer)).copied().collect();
        if !slots.is_empty() {
            let (lane, number, digests) = (self.number, copies.number(), self.digests(&slots));
            outbox.send(peer, Outgoing::Mark(Mark { lane, number, digests }));
        }
    }

    /// How far a context goes.
    pub(super) fn extent(db: &Db, context: &ContextId) -> Result<Option<Extent>, StoreError> {
        let row = read_head(db, context)?;
        Ok(row.map(|(_, head)| head.extent()))
    }

    /// Leaves a history for the one that a claim's owner has.
    pub(super) fn fork(&mut self, db: &Arc<Db>, fork: Fork) -> Result<LeftHistory, StoreError> {
        let Fork { context, claim, common, ours, evidence } = fork;
        let slot = Slot::of(&context);
        if let Err(refused) = self.record(db, slot)?.may_follow(&claim) {
            return Ok(LeftHistory::Refused(refused.promised));
        }
        let now = Self::extent(db, &context)?;
        if now != Some(ours) || self.in_step.get(&slot) == Some(&claim) {
            // It changed since it was compared, or is in step by now: it is compared again.
            return Ok(LeftHistory::At(now.map_or(Size(0), |now| now.size)));
        }
        // Nobody is shown a history that is being left.
        if let Some(copies) = &self.copies {
            copies.differs(&self.shared, slot);
            self.in_step.remove(&slot);
        }
        self.cache.remove(&context);
        self.parked.forget(&context);
        let left = forks::leave(db, &context, common, &evidence).inspect_err(|error| match error {
            // What is there cannot be read: that is no failure to write.
            StoreError::Damaged { .. } | StoreError::OutOfRange { .. } => self.shared.quarantine.note(error),
            error => self.shared.commit_failed(error),
        })?;
        if let Some(digests) = &self.shared.digests {
            digests.replace(&context, left.was, left.now);
        }
        Ok(LeftHistory::At(common))
    }

    /// The database was opened anew, and shows nothing: what of the last commits is in it has to be read, and nothing is
    /// led.
    pub(super) fn opened_anew(&mut self, db: &Arc<Db>) -> Result<(), StoreError> {
        let Some(copies) = self.copies.clone() else { return Ok(()) };
        self.records.clear();
        self.remember();
        self.in_step.clear();
        self.parked = super::Parked::default();
        let led = copies.reset(&StoreError::NotAcknowledged);
        let lanes = self.shared.copies().len();
        let mine = |slot: Slot| lane_of(slot, lanes) == usize::from(self.number);
        if let Some(outbox) = self.shared.carrier.get() {
            outbox.gave_up(led);
        }
        self.shared
            .digests
            .as_ref()
            .map_or(Ok(()), |digests| digests.rescan(db, &self.shared.quarantine, mine))
    }
}

/// Whether a change of the first slot fits the cluster that the directory belongs to, or comes to belong to with it.
fn first_slot(
    slot: Slot,
    record: &SlotRecord,
    change: &Change,
    cluster: &mut Option<ClusterId>,
) -> Result<(), StoreError> {
    let belongs = |cluster: Option<ClusterId>| match cluster {
        Some(id) => StoreError::Io(format!("the data directory belongs to the cluster {id}")),
        None => StoreError::Io("the node is about to form another cluster".to_owned()),
    };
    match change {
        Change::Join(id, _) if cluster.is_some_and(|known| known == *id) => Ok(()),
        Change::Join(id, said_by) => {
            if slot != Slot::FIRST || cluster.is_some() || !record.may_join(*id, said_by) {
                return Err(belongs(*cluster));
            }
            *cluster = Some(*id);
            Ok(())
        }
        Change::Accept { set, is_confirmed, .. }
            if slot == Slot::FIRST && !SlotRecord::may_form(*cluster, set, *is_confirmed) =>
        {
            Err(belongs(*cluster))
        }
        _ => Ok(()),
    }
}

fn not_taken(refused: NotTaken) -> ChangeOutcome {
    match refused {
        NotTaken::Refused(refused) => ChangeOutcome::Refused(refused.promised),
        NotTaken::OtherMembers(placement) => ChangeOutcome::OtherMembers(placement),
        // It comes before the acceptance, or after one of another epoch.
        NotTaken::NotAccepted { .. } | NotTaken::Formed => {
            ChangeOutcome::Failed(StoreError::Io(refused.to_string()))
        }
    }
}
