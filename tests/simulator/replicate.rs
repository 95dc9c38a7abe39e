//! What a store's lane does with messages from the owners of slots, as in `ledger_store::write::lane::{replicate,
//! records}`.

use std::rc::Rc;

use ledger_core::{
    Hash, Size,
    digest::TreeHead,
    ownership::{
        Claim, ReplicaRefusal,
        slot_manager::{Event, LeaseRenewal, SyncOfferOutcome},
    },
    replication::{RangeFit, fit, slot_commits::Visibility},
    slot::Slot,
};

use super::{
    broken::DisabledRule,
    disk::{Fork, Write},
    history::{Context, Entry},
    message::{Index, OwnerMessage, Part, ReplicaMessage, SyncOffer},
    node::Node,
    node_output::{AfterSync, NodeOutput, Note},
};

/// Most parts of a context that wait for what comes before them.
const MAX_OUT_OF_ORDER: usize = 32;

/// The outcome of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicateOutcome {
    Durable,
    Gap,
    Diverged,
    Refused(Claim),
    /// The disk refuses writes.
    Failed,
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
                for part in parts {
                    if !self.take_commit(from, stream, part, number) {
                        return self.break_stream(from);
                    }
                }
                self.after_sync(AfterSync::Up { to: from, stream, body: ReplicaMessage::Durable(number) });
            }
            OwnerMessage::SyncOffer(offer) => self.on_sync_offer(from, stream, *offer),
            OwnerMessage::LeaseRenewal(slots) => self.renewal(from, stream, &slots),
            OwnerMessage::CommitIndex(index) => {
                self.step(|commits, effects| commits.advance_commit_index(&[index], effects));
            }
        }
    }

    /// Handles a lease renewal, after everything that the owner sent before it.
    fn renewal(&mut self, from: Index, stream: u64, slots: &[LeaseRenewal]) {
        let Some((_, owner)) = self.incoming.get(&from) else { return };
        let owner = owner.clone();
        let refused = slots.iter().filter_map(|of| {
            let refused = self.record(of.slot).check_replicate(&of.claim).err()?;
            Some((of.slot, Some(refused.promised)))
        });
        let refused = refused.collect();
        let is_in_step = |of: &LeaseRenewal| {
            self.in_sync.get(&of.slot) == Some(&of.claim)
                && self.record(of.slot).check_append(&of.claim).is_ok()
        };
        let in_step = slots.iter().filter(|of| is_in_step(of)).filter_map(|of| Some((of.slot, of.age?)));
        let slots = in_step.collect();
        let after = self.renewed.insert(from, self.now).unwrap_or_default();
        self.out.push(NodeOutput::Up { stream, body: ReplicaMessage::LeaseRenewed(refused) });
        self.events.push_back(Event::LeaseRenewed { from: owner, after, slots });
    }

    /// Applies a commit. Returns false if the stream must break.
    fn take_commit(&mut self, from: Index, stream: u64, part: Part, number: u64) -> bool {
        let (slot, claim) = (part.slot, part.claim.clone());
        let is_strict = self.in_sync.get(&slot) == Some(&claim);
        match self.apply_part(part, number) {
            ReplicateOutcome::Durable => {}
            ReplicateOutcome::Refused(promised) => {
                let outcome = SyncOfferOutcome::Refused(promised);
                self.out.push(NodeOutput::Up {
                    stream,
                    body: ReplicaMessage::SyncOfferAnswered { slot, claim, outcome },
                });
            }
            ReplicateOutcome::Failed => return false,
            ReplicateOutcome::Gap | ReplicateOutcome::Diverged if is_strict => return false,
            ReplicateOutcome::Gap | ReplicateOutcome::Diverged => self.follow(slot, &claim, from),
        }
        true
    }

    /// Brings a slot in sync with its owner, unless that is under way.
    fn follow(&mut self, slot: Slot, claim: &Claim, from: Index) {
        if let Some((_, owner)) = self.incoming.get(&from).cloned() {
            self.follow_owner(slot, claim, &owner);
        }
    }

    /// Applies a part of a commit or, with number 0, a fetched range.
    pub(super) fn apply_part(&mut self, part: Part, number: u64) -> ReplicateOutcome {
        let is_strict = number > 0 && self.in_sync.get(&part.slot) == Some(&part.claim);
        let context = part.range.context;
        let slot = part.slot;
        let taken = self.try_apply_part(part, number, is_strict);
        if taken != ReplicateOutcome::Durable || !is_strict {
            self.trace(|_| {
                format!(
                    "part of {slot:?}, context {context}, commit {number}, in step {is_strict}: {taken:?}"
                )
            });
        }
        if taken == ReplicateOutcome::Durable {
            self.drain_out_of_order(context);
        }
        taken
    }

    /// Applies buffered parts that the previous one allows.
    fn drain_out_of_order(&mut self, context: Context) {
        loop {
            let size = self.disk.now.histories[context].size();
            let Some(parts) = self.out_of_order.get_mut(&context) else { return };
            if parts.front().is_none_or(|(part, _)| part.range.after > size) {
                return;
            }
            let Some((part, number)) = parts.pop_front() else { return };
            if self.try_apply_part(part, number, false) != ReplicateOutcome::Durable {
                self.out_of_order.remove(&context);
            }
        }
    }

    fn try_apply_part(&mut self, part: Part, number: u64, is_strict: bool) -> ReplicateOutcome {
        let Part { slot, claim, range, .. } = &part;
        if let Err(refused) = self.record(*slot).check_replicate(claim)
            && self.config.broken != DisabledRule::NoPromiseCheck
        {
            return ReplicateOutcome::Refused(refused.promised);
        }
        if self.lacks_head(range.context) {
            // The context is restored before the slot gets in sync.
            return ReplicateOutcome::Gap;
        }
        if !is_strict && self.in_sync.get(slot) == Some(claim) {
            // The part was fetched or buffered before the slot got in sync: this replica has those entries, and the
            // stream brings the rest.
            return ReplicateOutcome::Durable;
        }
        if !is_strict && self.commits.visibility(*slot) != Visibility::Hidden {
            // This write is not known to be committed, and no number in the stream says when it is.
            self.hide(*slot);
        }
        let context = range.context;
        let history = &self.disk.now.histories[context];
        let here = history.size();
        let count = part.staged_to.map_or(range.entries.len() as u64, |to| to.saturating_sub(range.after));
        let skip = match fit(Size(here), Size(range.after), count) {
            RangeFit::Continues { skip } => skip,
            RangeFit::AlreadyHere => {
                let is_same = here != range.after + count || history.root() == range.root;
                return if is_same { ReplicateOutcome::Durable } else { ReplicateOutcome::Diverged };
            }
            RangeFit::Gap { .. } => {
                if !is_strict && number > 0 && part.staged_to.is_none() {
                    let parked = self.out_of_order.entry(context).or_default();
                    parked.push_back((part, number));
                    if parked.len() > MAX_OUT_OF_ORDER {
                        self.out_of_order.remove(&context);
                    }
                }
                return ReplicateOutcome::Gap;
            }
        };
        let arrived = match part.staged_to {
            None => None,
            Some(to) => match self.arrived.get(&context).filter(|_| skip == 0) {
                Some(arrived) if (arrived.after, arrived.root) == (here, range.root) => {
                    debug_assert_eq!(arrived.after + arrived.entries.len() as u64, to);
                    Some(Rc::clone(&arrived.entries))
                }
                _ => return ReplicateOutcome::Gap,
            },
        };
        let entries = arrived.as_ref().unwrap_or(&range.entries);
        if history.root_at(here) != Some(root_after(range.after_root, entries, skip)) {
            return ReplicateOutcome::Diverged;
        }
        if !self.can_write() {
            return ReplicateOutcome::Failed;
        }
        let new: Vec<Entry> = entries[skip as usize..].to_vec();
        let (epoch, slot) = (claim.epoch, *slot);
        self.pin(context);
        if part.is_load {
            self.put_in_place(context, &new);
        } else {
            self.extend(context, &new);
        }
        let size = self.disk.now.histories[context].size();
        let write = vec![(context, size)];
        self.step(|commits, effects| commits.record_replicated(slot, epoch, number, write, effects));
        self.show_uncommitted(context);
        ReplicateOutcome::Durable
    }

    /// Handles a sync offer at its place in the stream.
    fn on_sync_offer(&mut self, from: Index, stream: u64, offer: SyncOffer) {
        if !self.can_write() {
            return self.break_stream(from);
        }
        let SyncOffer { number, slot, claim, members, is_confirmed, digest, previous } = offer;
        let mut record = self.record(slot);
        if self.config.broken == DisabledRule::NoPromiseCheck {
            record.promised = None;
        }
        let outcome = match record.accept(&claim, &members, is_confirmed, previous.as_ref()) {
            _ if !self.may_form(slot, &members, is_confirmed) => SyncOfferOutcome::Unavailable,
            Err(ReplicaRefusal::HigherClaimPromised(refused)) => SyncOfferOutcome::Refused(refused.promised),
            Err(ReplicaRefusal::OtherMembers(placement)) => SyncOfferOutcome::OtherMembers(placement),
            Ok(_) | Err(ReplicaRefusal::NotAccepted { .. })
                if digest != self.digest(slot) || self.has_damage(slot) =>
            {
                // Promise the claim that it follows, so that it neither follows nor claims another one meanwhile.
                if let Ok((next, _)) = record.promise(&claim) {
                    self.write_record(slot, next);
                    self.after_sync(AfterSync::Recorded(slot));
                }
                self.hide(slot);
                self.follow(slot, &claim, from);
                SyncOfferOutcome::Diverged
            }
            Err(ReplicaRefusal::NotAccepted { .. }) => SyncOfferOutcome::Diverged,
            Err(ReplicaRefusal::AlreadyFormed) => SyncOfferOutcome::Unavailable,
            Ok(next) => {
                self.write_record(slot, next);
                self.in_sync.insert(slot, claim.clone());
                let epoch = claim.epoch;
                self.step(|commits, effects| commits.record_accepted(slot, epoch, number, effects));
                self.after_sync(AfterSync::Recorded(slot));
                SyncOfferOutcome::Accepted
            }
        };
        // This write also covers everything sent before the offer, so acknowledge it: no later message may.
        self.after_sync(AfterSync::Up { to: from, stream, body: ReplicaMessage::Durable(number) });
        let is_durable = !matches!(outcome, SyncOfferOutcome::Accepted | SyncOfferOutcome::Diverged);
        let body = ReplicaMessage::SyncOfferAnswered { slot, claim, outcome };
        if is_durable {
            self.out.push(NodeOutput::Up { stream, body });
        } else {
            self.after_sync(AfterSync::Up { to: from, stream, body });
        }
    }

    /// Hides a slot whose content differs from the owner's, until this replica is in sync again.
    pub(super) fn hide(&mut self, slot: Slot) {
        self.in_sync.remove(&slot);
        self.step(|commits, effects| commits.hide_diverged(slot, effects));
    }

    /// Moves what comes after a common size to a fork.
    pub(super) fn fork_tail(&mut self, context: Context, common: u64, theirs: (u64, Hash)) {
        let slot = self.config.contexts.slot(context);
        self.hide(slot);
        self.out_of_order.remove(&context);
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
        self.out.push(NodeOutput::Note(Note::Forked));
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
