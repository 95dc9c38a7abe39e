//! Carries out what the replica's machine decides about messages from the owners of slots, on the node's disk and
//! streams, as `ledger_store::write::lane::{replicate, records}` and `ledger_cluster::replicate::replica_stream` do.

use std::rc::Rc;

use ledger_core::{
    Hash, Size,
    digest::TreeHead,
    ownership::{
        Claim, SlotRecord,
        slot_manager::{Event, LeaseRenewal, SyncOfferOutcome},
    },
    replication::replica::{
        Accepted, Admission, CommitAnswer, LocalHistory, Offer, PartContent, PartDecision, PartHeader,
        PartResult, PartSource, RecordBatch, RecordChange, RecordChangeOutcome, RenewalAnswer,
        ReplicateOutcome, SlotCondition,
    },
    replication::slot_commits::Visibility,
    slot::Slot,
};

use super::{
    broken::DisabledRule,
    counts::Counted,
    disk::{Fork, Write},
    history::{Context, Entry},
    message::{Index, OwnerMessage, Part, ReplicaMessage, SyncOffer},
    node::Node,
    node_output::{AfterSync, NodeOutput, Note},
};

/// What a buffered part costs, in bytes: few find room, so that some are dropped.
const BUFFERED_PART: usize = 1 << 20;

impl Part {
    fn header(&self, source: PartSource) -> PartHeader<'_> {
        let range = &self.range;
        let after = TreeHead { size: Size(range.after), root: range.after_root };
        let (content, count) = match self.staged_to {
            Some(to) => (PartContent::Staged, to.saturating_sub(range.after)),
            None => (PartContent::Entries, range.entries.len() as u64),
        };
        PartHeader { slot: self.slot, claim: &self.claim, after, count, root: range.root, source, content }
    }
}

impl Node {
    /// Handles a message from a slot's owner, on its stream.
    pub fn down(&mut self, from: Index, stream: u64, body: OwnerMessage) {
        if self.incoming.get(&from).is_none_or(|(known, _)| *known != stream) {
            // The stream is of an earlier life.
            return self.out.push(NodeOutput::Break { stream });
        }
        match body {
            OwnerMessage::Commit { number, parts } => {
                if !self.is_in_order(from, number, parts.iter().map(|part| &part.claim)) {
                    return self.break_stream(from);
                }
                let outcomes: Vec<_> = parts.into_iter().map(|part| self.apply_part(part, number)).collect();
                match CommitAnswer::of(outcomes) {
                    CommitAnswer::Durable => {
                        let body = ReplicaMessage::Durable(number);
                        self.after_sync(AfterSync::Up { to: from, stream, body });
                    }
                    CommitAnswer::Refused(refusals) => {
                        for (slot, claim, by) in refusals {
                            self.answer_offer(stream, slot, claim, SyncOfferOutcome::Refused(by));
                        }
                        self.break_stream(from);
                    }
                    CommitAnswer::Invalid(reason) => {
                        self.trace(|_| format!("breaks the stream of node {from}: {reason}"));
                        self.break_stream(from);
                    }
                }
            }
            OwnerMessage::SyncOffer(offer) => self.on_sync_offer(from, stream, *offer),
            OwnerMessage::LeaseRenewal(slots) => self.renewal(from, stream, &slots),
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
        self.received.get_mut(&from).is_some_and(|stream| stream.on_sent(0, number, claims).is_ok())
    }

    fn answer_offer(&mut self, stream: u64, slot: Slot, claim: Claim, outcome: SyncOfferOutcome) {
        let body = ReplicaMessage::SyncOfferAnswered { slot, claim, outcome };
        self.out.push(NodeOutput::Up { stream, body });
    }

    /// Handles a lease renewal, after everything that the owner sent before it.
    fn renewal(&mut self, from: Index, stream: u64, slots: &[LeaseRenewal]) {
        let Some((_, owner)) = self.incoming.get(&from) else { return };
        let owner = owner.clone();
        let state = |of: &LeaseRenewal| {
            let record = self.record(of.slot);
            (of.slot, self.replica.sync_state(of.slot, &of.claim, Some(&record)))
        };
        let RenewalAnswer { refused, in_sync } = RenewalAnswer::of(slots, &slots.iter().map(state).collect());
        let now = self.now;
        let after = self.received.get_mut(&from).map_or(0, |stream| stream.on_renewal_answered(now));
        self.out.push(NodeOutput::Up { stream, body: ReplicaMessage::LeaseRenewed(refused) });
        self.events.push_back(Event::LeaseRenewed { from: owner, after, slots: in_sync });
    }

    /// Brings a slot in sync with its owner, unless that is under way.
    fn follow(&mut self, slot: Slot, claim: &Claim, from: Index) {
        if let Some((_, owner)) = self.incoming.get(&from).cloned() {
            self.follow_owner(slot, claim, &owner);
        }
    }

    /// Applies a part of a commit or, with number 0, a fetched range; then the parts that waited for it.
    pub(super) fn apply_part(&mut self, part: Part, number: u64) -> ReplicateOutcome {
        let (slot, context) = (part.slot, part.range.context);
        let outcome = self.apply_one(part, PartSource::of_number(number));
        if !matches!(outcome, ReplicateOutcome::Durable(_)) {
            self.trace(|_| format!("part of {slot:?}, context {context}, commit {number}: {outcome:?}"));
            return outcome;
        }
        while let Some((part, number)) =
            self.replica.next_buffered(slot, &context, Size(self.disk.now.histories[context].size()))
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
        let local = if self.lacks_head(context) {
            LocalHistory::Unreadable
        } else {
            let history = &self.disk.now.histories[context];
            LocalHistory::Readable(TreeHead { size: Size(history.size()), root: history.root() })
        };
        let result = match admitted.place(&header, local) {
            PartDecision::Append { skip } => self.write_part(&part, &part.range.entries, skip, source),
            PartDecision::Install => match self.arrived.get(&context) {
                Some(arrived) if (arrived.after, arrived.root) == (part.range.after, part.range.root) => {
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
        let context = part.range.context;
        if self.disk.now.histories[context].root() != root_after(part.range.after_root, entries, skip) {
            return PartResult::Diverged;
        }
        if !self.can_write() {
            return PartResult::Invalid("the disk is full".to_owned());
        }
        let new = &entries[skip as usize..];
        self.pin(context);
        if part.is_load {
            self.put_in_place(context, new);
        } else {
            self.extend(context, new);
        }
        let size = self.disk.now.histories[context].size();
        let (slot, epoch, number, write) =
            (part.slot, part.claim.epoch, source.number(), vec![(context, size)]);
        self.step(|commits, effects| commits.record_replicated(slot, epoch, number, write, effects));
        self.show_uncommitted(context);
        PartResult::Reaches(Size(size))
    }

    /// Returns the record that this replica goes by.
    fn heeded_record(&self, slot: Slot) -> SlotRecord {
        let mut record = self.record(slot);
        if self.config.broken == DisabledRule::NoPromiseCheck {
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
            if let Some(promised) = &record.promised
                && self.config.broken != DisabledRule::StaleOwner
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
        let SyncOffer { number, slot, claim, members, is_confirmed, digest, previous } = offer;
        let offer = Some(Offer { digest, number });
        let accept = RecordChange::Accept { claim: claim.clone(), members, is_confirmed, previous, offer };
        let outcome = self.change(slot, accept);
        let is_counted = outcome == RecordChangeOutcome::Diverged { was_in_sync: true };
        let outcome = outcome.offer_outcome();
        if outcome == SyncOfferOutcome::Diverged {
            self.follow(slot, &claim, from);
        }
        // This write also covers everything sent before the offer, so acknowledge it: no later message may.
        self.after_sync(AfterSync::Up { to: from, stream, body: ReplicaMessage::Durable(number) });
        if matches!(outcome, SyncOfferOutcome::Accepted | SyncOfferOutcome::Diverged) {
            let body = ReplicaMessage::SyncOfferAnswered { slot, claim, outcome };
            self.after_sync(AfterSync::Up { to: from, stream, body });
        } else {
            self.answer_offer(stream, slot, claim, outcome);
        }
        if is_counted {
            self.break_stream(from);
        }
    }

    /// Hides a slot whose content differs from the owner's, until this replica is in sync again.
    pub(super) fn hide(&mut self, slot: Slot) {
        self.step(|commits, effects| commits.hide_diverged(slot, effects));
    }

    /// Moves what comes after a common size to a fork.
    pub(super) fn fork_tail(&mut self, context: Context, common: u64, theirs: (u64, Hash)) {
        let slot = self.config.contexts.slot(context);
        self.hide(slot);
        self.replica.on_history_replaced(slot, &context);
        let history = &self.disk.now.histories[context];
        let (before, ours) = (history.extent(), (history.size(), history.root()));
        let entries = history.0[common as usize..].to_vec();
        for entry in &entries {
            self.ids[context].remove(&entry.id);
        }
        if self.config.broken == DisabledRule::ForksDropped {
            self.disk.write(Write::Drop { context, common });
        } else {
            self.disk.write(Write::Fork(Fork { context, common, entries, heads: [ours, theirs] }));
        }
        self.changed(context, before);
        self.trace(|_| format!("leaves what comes after {common} entries of context {context}"));
        self.out.push(NodeOutput::Note(Note::Counted(Counted::Forked, 1)));
    }

    /// Updates the digest of a slot.
    pub(super) fn changed(&mut self, context: Context, before: Option<TreeHead>) {
        let now = self.disk.now.histories[context].extent();
        let config = Rc::clone(&self.config);
        let digest = self.digests.entry(config.contexts.slot(context)).or_default();
        digest.replace(config.contexts.id(context), before, now);
    }

    /// Reads the disk when the node starts. What cannot be read is in no digest, and known to be damaged from then
    /// on.
    pub(super) fn scan(&mut self) {
        for context in 0..self.config.contexts.len() {
            self.lacks_head(context);
            let ids = self.disk.now.histories[context].0.iter().map(|entry| (entry.id, entry.sequence));
            self.ids[context] = ids.collect();
            self.changed(context, None);
        }
    }
}

/// Returns the root after some of the entries that follow a root.
fn root_after(root: Hash, entries: &[Entry], count: u64) -> Hash {
    count.checked_sub(1).and_then(|last| entries.get(last as usize)).map_or(root, |entry| entry.root)
}
