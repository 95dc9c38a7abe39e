//! Carries out what the replica's machine decides about messages from the owners of slots, on the node's disk and
//! streams, as `ledger_store::write::lane::{replicate, records}` and `ledger_cluster::replicate::replica_stream` do.

use ledger_core::{
    digest::NodeDigest,
    ownership::slot_manager::{LeaseRenewal, SyncOfferOutcome},
    replication::{
        replica::{
            Accepted, Admission, CheckpointAnswer, LocalHistory, PartContent, PartDecision, PartHeader,
            PartResult, PartSource, RecordBatch, RecordChange, RecordChangeOutcome, RenewalAnswer,
            ReplicateOutcome, SlotCondition, SyncOffer, refused_slots,
        },
        slot_commits::Visibility,
    },
};

use super::{prelude::*, streams::Incoming};

/// What a buffered part costs, in bytes: few find room, so that some are dropped.
pub const BUFFERED_PART: usize = 1 << 20;

impl Part {
    fn header(&self, source: PartSource) -> PartHeader<'_> {
        let Range { after, end, .. } = self.range;
        let content = if self.is_staged { PartContent::Staged } else { PartContent::Entries };
        let (count, root) = (end.size.0 - after.size.0, end.root);
        PartHeader { slot: self.slot, claim: &self.claim, after, count, root, source, content }
    }
}

impl Node {
    /// Handles a message from a slot's owner, on its stream.
    pub fn down(&mut self, from: Index, stream: u64, body: OwnerMessage) {
        if self.incoming.get(&from).is_none_or(|known| known.stream != stream) {
            // The stream is of an earlier life.
            return self.out.push(NodeOutput::Break { stream });
        }
        match body {
            OwnerMessage::Commit { number, parts } => {
                if !self.is_in_order(from, number, parts.iter().map(|part| &part.claim)) {
                    return self.break_stream(from);
                }
                let outcomes: Vec<_> = parts.into_iter().map(|part| self.apply_part(part, number)).collect();
                for refused in refused_slots(outcomes) {
                    self.trace(|_| format!("refuses a part of node {from}: {refused:?}"));
                    // It must not overtake the acceptance of an earlier offer, which waits for the disk.
                    let body = ReplicaMessage::PartRefused(refused);
                    self.after_sync(AfterSync::Output(NodeOutput::Up { stream, body }));
                }
                let body = ReplicaMessage::Durable(number);
                self.after_sync(AfterSync::Output(NodeOutput::Up { stream, body }));
            }
            OwnerMessage::SyncOffer(offer) => self.on_sync_offer(from, stream, *offer),
            OwnerMessage::LeaseRenewal(slots) => self.on_lease_renewal(from, &slots),
            OwnerMessage::DigestCheckpoint(slots, theirs) => self.on_digest_checkpoint(from, &slots, theirs),
            OwnerMessage::CommitIndex(index) => {
                self.step(|commits, effects| commits.advance_commit_index(&[index], effects));
            }
        }
    }

    /// Returns whether a commit or an offer may come now on a node's stream.
    fn is_in_order<'a>(
        &mut self,
        from: Index,
        number: u64,
        claims: impl IntoIterator<Item = &'a Claim>,
    ) -> bool {
        self.incoming.get_mut(&from).is_some_and(|known| known.received.on_sent(0, number, claims).is_ok())
    }

    /// Handles a lease renewal, after everything that the owner sent before it.
    fn on_lease_renewal(&mut self, from: Index, slots: &[LeaseRenewal]) {
        let state = |of: &LeaseRenewal| {
            (of.slot, self.replica.sync_state(of.slot, &of.claim, Some(&self.record(of.slot))))
        };
        let RenewalAnswer { refused, in_sync } = RenewalAnswer::of(slots, &slots.iter().map(state).collect());
        let Some(Incoming { stream, from, received }) = self.incoming.get_mut(&from) else { return };
        let after = received.on_renewal_answered(self.now);
        let body = ReplicaMessage::LeaseRenewed(refused);
        self.out.push(NodeOutput::Up { stream: *stream, body });
        self.events.push_back(Event::LeaseRenewed { from: from.clone(), after, slots: in_sync });
    }

    /// Compares what this replica holds with the owner's digest, at its place in the stream.
    fn on_digest_checkpoint(&mut self, from: Index, slots: &[Slot], theirs: NodeDigest) {
        let Some(Incoming { stream, from: owner, .. }) = self.incoming.get(&from) else { return };
        let (stream, owner) = (*stream, owner.node.clone());
        let status = |slot: &Slot| {
            let (record, digest) = (self.record(*slot), Some(self.digest(*slot)));
            (*slot, self.replica.status(*slot, &owner, Some(&record), digest))
        };
        let CheckpointAnswer { promised, is_same } =
            CheckpointAnswer::of(slots.iter().map(status).collect(), theirs);
        for (slot, by) in promised {
            let (claim, outcome) = (by.clone(), SyncOfferOutcome::Refused(by));
            let body = ReplicaMessage::SyncOfferAnswered { slot, claim, outcome };
            self.out.push(NodeOutput::Up { stream, body });
        }
        self.count(Counted::Checkpoints, is_same.is_some().into());
        if is_same == Some(false) {
            // One that claims the slot itself may have fetched what the stream is yet to bring.
            let follows = |slot: &Slot| self.record(*slot).promised.is_some_and(|by| by.claimant == owner);
            if self.is_broken(DisabledRule::Nothing)
                && slots.iter().all(|slot| follows(slot) && !self.has_damage(*slot))
            {
                self.note(Note::Violated("a replica in sync has something else than its owner".to_owned()));
            }
            self.break_stream(from);
        }
    }

    /// Applies a part of a commit or, with number 0, a fetched range; then the parts that waited for it.
    pub(super) fn apply_part(&mut self, part: Part, number: u64) -> ReplicateOutcome {
        let (slot, context) = (part.slot, part.range.context);
        let outcome = self.apply_one(part, PartSource::of_number(number));
        self.trace(|_| format!("part of {slot:?}, context {context}, commit {number}: {outcome:?}"));
        while matches!(outcome, ReplicateOutcome::Durable(_))
            && let size = self.history(context).head().size
            && let Some((part, number)) = self.replica.next_buffered(slot, &context, size)
        {
            self.apply_one(part, PartSource::Buffered(number));
        }
        outcome
    }

    fn apply_one(&mut self, part: Part, source: PartSource) -> ReplicateOutcome {
        let (slot, context) = (part.slot, part.range.context);
        let header = part.header(source);
        let is_withheld = self.commits.visibility(slot) != Visibility::Hidden;
        let admitted = match self.replica.admit(&header, &self.heeded_record(slot), is_withheld) {
            Admission::Admitted(admitted) => admitted,
            Admission::Settled(outcome) => return outcome,
        };
        if admitted.hides() {
            self.hide(slot);
        }
        let local = if self.fails(context, Read::Head) {
            LocalHistory::Unreadable
        } else {
            LocalHistory::Readable(self.history(context).head())
        };
        let result = match admitted.place(&header, local) {
            PartDecision::Append { skip } => self.write_part(&part, &part.range.entries, skip, source),
            PartDecision::Install => match self.arrived.get(&context) {
                Some(arrived) if (arrived.after, arrived.end) == (part.range.after, part.range.end) => {
                    let entries = Rc::clone(&arrived.entries);
                    self.write_part(&part, &entries, 0, source)
                }
                _ => PartResult::Gap,
            },
            PartDecision::Nothing(result) => result,
            PartDecision::Buffer => {
                let (after, number) = (header.after.size, source.number());
                return self.replica.buffer(slot, context, after, BUFFERED_PART, number, part);
            }
        };
        self.replica.settle(&header, &context, admitted, result)
    }

    /// Verifies and writes the entries of a part but the first ones.
    fn write_part(&mut self, part: &Part, entries: &[Entry], skip: u64, source: PartSource) -> PartResult {
        let (slot, context) = (part.slot, part.range.context);
        let skipped = skip.checked_sub(1).and_then(|last| entries.get(last as usize));
        if self.history(context).root() != skipped.map_or(part.range.after.root, |entry| entry.root) {
            return PartResult::Diverged;
        }
        if !self.can_write() {
            return PartResult::Invalid("the disk is full".to_owned());
        }
        self.pin(context);
        let new = &entries[skip as usize..];
        if part.is_load {
            self.put_in_place(context, new);
        } else {
            self.extend(context, new);
        }
        let size = self.history(context).head().size;
        let (epoch, write) = (part.claim.epoch, vec![(context, size.0)]);
        let number = source.number();
        self.step(|commits, effects| commits.record_replicated(slot, epoch, number, write, effects));
        self.show_uncommitted(context);
        PartResult::Reaches(size)
    }

    /// Returns the record that this replica goes by.
    fn heeded_record(&self, slot: Slot) -> SlotRecord {
        let mut record = self.record(slot);
        if self.is_broken(DisabledRule::NoPromiseCheck) {
            record.promised = None;
        }
        record
    }

    /// Changes a slot's record. It governs this node's actions from now on; the slot manager learns of it once it is
    /// durable, and so must others.
    pub(super) fn change(&mut self, slot: Slot, change: RecordChange) -> RecordChangeOutcome {
        let first = self.slot_manager.first_slot().unwrap_or(Slot::FIRST);
        let mut batch = RecordBatch::new(first, self.disk.now.cluster);
        let condition = SlotCondition { has_damage: self.has_damage(slot), digest: Some(self.digest(slot)) };
        let record = match &change {
            RecordChange::Promise(_) | RecordChange::Accept { .. } => self.heeded_record(slot),
            _ => self.record(slot),
        };
        let outcome = batch.change(&mut self.replica, slot, &record, change, condition);
        if matches!(outcome, RecordChangeOutcome::Diverged { .. }) {
            self.hide(slot);
        }
        if let Some(id) = batch.joined() {
            self.belongs(id);
        }
        let (records, accepted) = batch.into_parts();
        for (slot, record) in records {
            if let Some(promised) =
                record.promised.as_ref().filter(|_| !self.is_broken(DisabledRule::StaleOwner))
            {
                self.commits.fence(slot, promised);
            }
            if record != self.record(slot) {
                self.disk.write(Write::Record(slot, record));
            }
            self.after_sync(AfterSync::Recorded(slot));
        }
        for Accepted { slot, claim, number } in self.replica.on_written(accepted) {
            self.step(|commits, effects| commits.record_accepted(slot, claim.epoch, number, effects));
        }
        outcome
    }

    /// Handles a sync offer at its place in the stream.
    fn on_sync_offer(&mut self, from: Index, stream: u64, offer: SyncOffer) {
        if !self.is_in_order(from, offer.number, [&offer.claim]) || !self.can_write() {
            return self.break_stream(from);
        }
        let (number, slot, claim) = (offer.number, offer.slot, offer.claim.clone());
        let outcome = self.change(slot, offer.into_change());
        let refused = outcome.refused_part(slot, &claim);
        let outcome = outcome.offer_outcome();
        if let Some(refused) = refused {
            for body in [ReplicaMessage::PartRefused(refused), ReplicaMessage::Durable(number)] {
                self.after_sync(AfterSync::Output(NodeOutput::Up { stream, body }));
            }
            return;
        }
        if outcome == SyncOfferOutcome::Diverged
            && let Some(owner) = self.incoming.get(&from).map(|known| known.from.clone())
        {
            self.follow_owner(slot, &claim, owner);
        }
        // This write also covers everything sent before the offer, so acknowledge it: no later message may.
        for body in
            [ReplicaMessage::Durable(number), ReplicaMessage::SyncOfferAnswered { slot, claim, outcome }]
        {
            self.after_sync(AfterSync::Output(NodeOutput::Up { stream, body }));
        }
    }

    /// Hides a slot whose content differs from the owner's, until this replica is in sync again.
    pub(super) fn hide(&mut self, slot: Slot) {
        self.step(|commits, effects| commits.hide_diverged(slot, effects));
    }

    /// Moves what comes after a common size to a fork.
    pub(super) fn fork_tail(&mut self, context: Context, common: u64, theirs: TreeHead) {
        let slot = self.slot(context);
        self.hide(slot);
        self.replica.on_history_replaced(slot, &context);
        let history = self.history(context);
        let (entries, heads) = (history.0[common as usize..].to_vec(), [history.head(), theirs]);
        let is_kept = !self.is_broken(DisabledRule::ForksDropped);
        self.write(context, Write::Fork(Fork { context, common, entries, heads }, is_kept));
        self.trace(|_| format!("leaves what comes after {common} entries of context {context}"));
        self.count(Counted::Forked, 1);
    }
}
