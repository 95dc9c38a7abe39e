//! What a store's lane does for the slots that its node owns, as in `ledger_store::write::lane` and
//! `ledger_store::replicate::lane_replication`.

use std::rc::Rc;

use ledger_core::{
    Epoch,
    digest::Digest,
    node::Member,
    ownership::{Claim, slot_manager::Event},
    replication::{Committed, PeerSet, WriteQuorum},
    slot::Slot,
};

use super::{
    broken::DisabledRule,
    disk::Write,
    history::Context,
    message::{Append, Index, OwnerMessage, Part, Range, Response, SyncOffer},
    node::{Node, index_of, peer_of},
    node_output::{AfterSync, NodeOutput, Note, Outgoing, SlotVisibility},
};

/// A slot that this node owns or is about to own.
#[derive(Debug)]
pub struct SlotOwnership {
    claim: Claim,
    stream_peers: PeerSet,
    is_owned: bool,
    is_serving: bool,
    is_stopping: bool,
    write_quorum: usize,
}

impl SlotOwnership {
    fn new(claim: Claim) -> Self {
        let stream_peers = PeerSet::default();
        Self { claim, stream_peers, is_owned: false, is_serving: false, is_stopping: false, write_quorum: 0 }
    }

    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    pub fn epoch(&self) -> Epoch {
        self.claim.epoch
    }

    pub fn write_quorum(&self) -> usize {
        self.write_quorum
    }
}

/// An append, and who waits for it.
#[derive(Debug, Clone)]
pub struct Queued {
    pub client: usize,
    pub request: u64,
    pub append: Append,
}

/// An append that is answered with its sequence.
pub type AnsweredAppend = (Queued, u64);

/// A client, and the number of its request.
pub type ClientRequest = (usize, u64);

/// A context that a commit writes to.
#[derive(Debug)]
pub(super) struct CommitContext {
    pub context: Context,
    pub after: u64,
    pub is_load: bool,
    /// Whether its members have staged the entries.
    pub is_staged: bool,
}

/// What to do with a commit's part of a slot once it is committed.
#[derive(Debug, Default)]
pub struct PendingPart {
    answers: Vec<AnsweredAppend>,
    /// The loads, by who waits for them, with the context's size after each.
    loads: Vec<(ClientRequest, Context, u64)>,
    reached: Vec<(Context, u64)>,
}

impl PendingPart {
    pub fn of_load(waits: ClientRequest, context: Context, size: u64) -> Self {
        Self { loads: vec![(waits, context, size)], ..Self::default() }
    }
}

impl Node {
    /// Returns whether the slot accepts appends. The record decides, because the slot may have been promised to
    /// another node.
    pub(super) fn serving_epoch(&self, slot: Slot) -> bool {
        self.owned.get(&slot).is_some_and(|ownership| {
            let is_stale = self.record(slot).check_append(&ownership.claim).is_err();
            ownership.is_serving && (!is_stale || self.config.broken == DisabledRule::StaleOwner)
        })
    }

    /// Appends everything queued, in one commit.
    pub(super) fn commit(&mut self) {
        if !self.can_write() {
            return std::mem::take(&mut self.queue).iter().for_each(|queued| self.unknown(queued));
        }
        let mut items: Vec<(Slot, PendingPart)> = Vec::new();
        let mut begun: Vec<CommitContext> = Vec::new();
        let mut asked = Vec::new();
        for queued in std::mem::take(&mut self.queue) {
            let Append { context, id, .. } = queued.append;
            let slot = self.config.contexts.slot(context);
            if !self.serving_epoch(slot) {
                let response = self.not_owner(context);
                let Queued { client, request, .. } = queued;
                self.out.push(NodeOutput::Respond { client, request, response });
                continue;
            }
            if self.is_damaged(context) {
                let response = self.not_owner(context);
                let Queued { client, request, .. } = queued;
                self.out.push(NodeOutput::Respond { client, request, response });
                continue;
            }
            let epoch = self.owned[&slot].claim.epoch;
            let at = items.iter().position(|(of, _)| *of == slot).unwrap_or_else(|| {
                items.push((slot, PendingPart::default()));
                items.len() - 1
            });
            let sequence = if let Some(known) = self.ids[context].get(&id) {
                // This writes nothing, but the earlier append may be uncommitted.
                *known
            } else {
                let size = self.disk.now.histories[context].size();
                if !begun.iter().any(|of| of.context == context) {
                    begun.push(CommitContext { context, after: size, is_load: false, is_staged: false });
                }
                let entry = self.disk.now.histories[context].next(epoch, id);
                self.extend(context, &[entry]);
                self.out.push(NodeOutput::Note(Note::Created { context, entry, by: epoch }));
                size + 1
            };
            if queued.append.quorum == WriteQuorum::Configured {
                items[at].1.answers.push((queued, sequence));
            } else {
                asked.push((slot, (queued, sequence)));
            }
        }
        self.committed(items, &begun, asked);
    }

    pub(super) fn committed(
        &mut self,
        mut items: Vec<(Slot, PendingPart)>,
        begun: &[CommitContext],
        asked: Vec<(Slot, AnsweredAppend)>,
    ) {
        if !begun.is_empty() {
            self.number += 1;
        }
        let number = self.number;
        let mut parts = Vec::new();
        for CommitContext { context, after, is_load, is_staged } in begun {
            let slot = self.config.contexts.slot(*context);
            let size = self.disk.now.histories[*context].size();
            if let Some((_, item)) = items.iter_mut().find(|(of, _)| *of == slot) {
                item.reached.push((*context, size));
            }
            let mut range = self.range(*context, *after, size);
            if *is_staged {
                range.entries = [].into();
            }
            parts.push(Part {
                slot,
                claim: self.owned[&slot].claim.clone(),
                range,
                is_load: *is_load,
                staged_to: is_staged.then_some(size),
            });
            if self.config.broken == DisabledRule::UnstableShown {
                self.publish(*context, size);
            }
        }
        let mut stable = Vec::new();
        for (slot, item) in items {
            if item.reached.is_empty() {
                stable.extend(self.pending.push_barrier(slot, item));
            } else {
                self.pending.push(number, slot, item);
            }
        }
        for (slot, asked) in asked {
            self.pending.push_waiter(slot, asked.0.append.quorum, asked);
        }
        let streams: Vec<(Index, u64)> =
            self.outgoing.iter().filter(|(_, out)| out.is_up).map(|(to, out)| (*to, out.stream)).collect();
        for (to, stream) in streams {
            let of = |part: &&Part| self.owned[&part.slot].stream_peers.contains(peer_of(to));
            let parts: Vec<Part> = parts.iter().filter(of).cloned().collect();
            if !parts.is_empty() {
                self.out.push(NodeOutput::Down { stream, body: OwnerMessage::Commit { number, parts } });
            }
        }
        self.after_sync(AfterSync::Own(number));
        self.acknowledge_committed(stable);
    }

    /// Writes entries to a context, unsynced.
    pub(super) fn extend(&mut self, context: Context, entries: &[super::history::Entry]) {
        let before = self.disk.now.histories[context].extent();
        for entry in entries {
            let history = &self.disk.now.histories[context];
            assert!(history.continues(entry), "entries of context {context} do not continue what is here");
            self.ids[context].insert(entry.id, entry.sequence);
            self.disk.write(Write::Append(context, vec![*entry]));
        }
        self.changed(context, before);
    }

    /// Returns the entries of a context after one size, up to another.
    pub(super) fn range(&self, context: Context, after: u64, to: u64) -> Range {
        let history = &self.disk.now.histories[context];
        let to = to.min(history.size());
        let after = after.min(to);
        Range {
            context,
            after,
            after_root: history.root_at(after).unwrap(),
            entries: history.0[after as usize..to as usize].into(),
            root: history.root_at(to).unwrap(),
        }
    }

    /// Records that this node's disk holds everything up to a number.
    pub(super) fn advance_durable_here(&mut self, number: u64) {
        let stable = self.pending.advance_durable_here(number);
        self.acknowledge_committed(stable);
    }

    /// Records that a peer's disk holds everything sent to it up to a number.
    pub(super) fn advance_durable_at(&mut self, from: Index, number: u64) {
        let stable = self.pending.advance_durable_at(peer_of(from), number);
        self.acknowledge_committed(stable);
    }

    fn acknowledge(&mut self, queued: &Queued, sequence: u64, is_stable: bool) {
        let Queued { client, request, append } = queued;
        let Append { context, id, .. } = *append;
        let response = Response::Appended { id, is_stable };
        self.out.push(NodeOutput::Respond { client: *client, request: *request, response });
        let ownership = self.owned.get(&self.config.contexts.slot(context));
        let (in_epoch, needed) = (
            ownership.map(|ownership| ownership.claim.epoch),
            ownership.map_or(1, |ownership| ownership.write_quorum),
        );
        self.out.push(NodeOutput::Note(Note::Acknowledged {
            context,
            sequence,
            id,
            in_epoch,
            is_stable,
            needed,
        }));
    }

    /// Acknowledges commits that reached their quorum, and notifies the peers.
    fn acknowledge_committed(&mut self, committed: Vec<Committed<PendingPart>>) {
        let mut slots: Vec<(Slot, u64)> = Vec::new();
        for Committed { slot, number, item, .. } in committed {
            for (queued, sequence) in item.answers {
                self.acknowledge(&queued, sequence, true);
            }
            for (waits, context, size) in item.loads {
                self.loaded(waits, context, size);
            }
            for (context, size) in item.reached {
                self.publish(context, size);
            }
            match slots.iter_mut().find(|(of, _)| *of == slot) {
                Some((_, newest)) => *newest = number,
                None => slots.push((slot, number)),
            }
        }
        for (slot, number) in slots {
            let number = if self.pending.has_pending(slot) { number } else { self.number };
            self.notify_replicas(slot, number);
            self.notify_stopped(slot);
        }
        for (copies, (queued, sequence)) in self.pending.take_ready_waiters() {
            let slot = self.config.contexts.slot(queued.append.context);
            let is_stable = self.owned.get(&slot).is_some_and(|ownership| copies >= ownership.write_quorum);
            self.acknowledge(&queued, sequence, is_stable);
        }
    }

    /// Sends the peers on a slot's stream its commit index.
    fn notify_replicas(&mut self, slot: Slot, number: u64) {
        let Some(ownership) = self.owned.get(&slot) else { return };
        let (sending, epoch) = (ownership.stream_peers, ownership.claim.epoch);
        let is_sent = |to: &Index, out: &Outgoing| out.is_up && sending.contains(peer_of(*to));
        for (_, out) in self.outgoing.iter().filter(|(to, out)| is_sent(to, out)) {
            let body = OwnerMessage::CommitIndex { slot, epoch, number };
            self.out.push(NodeOutput::Down { stream: out.stream, body });
        }
    }

    /// Notifies the peers if no commit of a slot is pending; otherwise the pending commits will.
    fn notify_all_committed(&mut self, slot: Slot) {
        let is_led =
            self.owned.get(&slot).is_some_and(|ownership| ownership.is_serving || ownership.is_stopping);
        if is_led && !self.pending.has_pending(slot) {
            self.notify_replicas(slot, self.number);
        }
    }

    fn notify_stopped(&mut self, slot: Slot) {
        if let Some(ownership) = self.owned.get(&slot)
            && ownership.is_stopping
            && !self.pending.has_pending(slot)
        {
            self.events.push_back(Event::AppendsStopped(slot, ownership.claim.clone()));
        }
    }

    /// Adds a peer to a slot's stream, with a sync offer.
    pub(super) fn add_stream_peer(&mut self, to: &Member, offer: SyncOffer) {
        let index = index_of(&to.node);
        let Some(out) = self.outgoing.get(&index).filter(|out| out.is_up && out.member == *to) else {
            return;
        };
        let stream = out.stream;
        let ownership =
            self.owned.entry(offer.slot).or_insert_with(|| SlotOwnership::new(offer.claim.clone()));
        if ownership.claim != offer.claim {
            ownership.claim = offer.claim.clone();
            (ownership.is_owned, ownership.is_serving) = (false, false);
        }
        ownership.stream_peers.insert(peer_of(index));
        self.out.push(NodeOutput::Down { stream, body: OwnerMessage::SyncOffer(Box::new(offer)) });
    }

    /// Starts taking appends to the slot.
    pub(super) fn begin_serving(&mut self, slot: Slot, claim: &Claim, needed: usize, was_handed_over: bool) {
        // Since the decision, this node may have promised the slot to another one and accepted its entries.
        if self.record(slot).check_append(claim).is_err() && self.config.broken != DisabledRule::StaleOwner {
            return;
        }
        let members = self.record(slot).placement.map_or(needed, |placement| placement.members.len());
        let ownership = self.owned.entry(slot).or_insert_with(|| SlotOwnership::new(claim.clone()));
        if ownership.claim != *claim {
            (ownership.claim, ownership.is_owned) = (claim.clone(), false);
        }
        let is_new = !ownership.is_owned;
        (ownership.is_owned, ownership.is_serving, ownership.is_stopping) = (true, true, false);
        ownership.write_quorum = needed;
        self.pending.begin_ownership(slot, needed, members);
        self.accepted_at.remove(&slot);
        if is_new {
            self.out.push(NodeOutput::Note(Note::Owned { slot, claim: claim.clone(), was_handed_over }));
        }
        // What this node held when enough members accepted it is committed.
        for (context, size) in self.uncommitted.take_slot(slot) {
            self.publish(context, size);
        }
        if self.visibility.insert(slot, SlotVisibility::Visible) != Some(SlotVisibility::Visible) || is_new {
            self.publish_slot(slot);
        }
        self.notify_all_committed(slot);
    }

    pub(super) fn add_in_sync(&mut self, slot: Slot, claim: &Claim, member: &Member) {
        if *member == self.member || self.owned.get(&slot).is_none_or(|ownership| ownership.claim != *claim) {
            return;
        }
        let stable = self.pending.add_in_sync(slot, peer_of(index_of(&member.node)));
        self.acknowledge_committed(stable);
        self.notify_all_committed(slot);
    }

    /// Stops sending a slot to a node that is no longer a member.
    pub(super) fn remove_peer(&mut self, slot: Slot, claim: &Claim, member: &Member) {
        if let Some(ownership) = self.owned.get_mut(&slot).filter(|ownership| ownership.claim == *claim) {
            ownership.stream_peers.remove(peer_of(index_of(&member.node)));
        }
    }

    pub(super) fn stop_appends(&mut self, slot: Slot, claim: &Claim) {
        if let Some(ownership) = self.owned.get_mut(&slot).filter(|ownership| ownership.claim == *claim) {
            (ownership.is_serving, ownership.is_stopping) = (false, true);
            self.notify_stopped(slot);
        }
    }

    /// Ends the ownership of the slot: fails pending requests, so that their clients retry.
    pub(super) fn step_down(&mut self, slot: Slot) {
        if self.config.broken == DisabledRule::StaleOwner {
            return;
        }
        self.owned.remove(&slot);
        let (items, unanswered) = self.pending.end_ownership(slot);
        for (queued, _) in unanswered {
            self.unknown(&queued);
        }
        for item in items {
            for (queued, _) in item.answers {
                self.unknown(&queued);
            }
            for ((client, request), ..) in item.loads {
                self.out.push(NodeOutput::Respond { client, request, response: Response::Unknown });
            }
            // Nobody sees it until an owner commits it.
            for reached in item.reached {
                self.uncommitted.push(slot, Epoch::default(), 0, reached);
            }
        }
    }

    fn unknown(&mut self, queued: &Queued) {
        let Queued { client, request, .. } = *queued;
        self.out.push(NodeOutput::Respond { client, request, response: Response::Unknown });
    }

    /// Stops counting a peer, because its stream broke.
    pub(super) fn peer_disconnected(&mut self, peer: ledger_core::replication::Peer) {
        self.pending.peer_disconnected(peer);
        self.owned.values_mut().for_each(|ownership| ownership.stream_peers.remove(peer));
    }

    pub(super) fn digest(&self, slot: Slot) -> Digest {
        self.digests.get(&slot).map_or_else(Digest::default, ledger_core::digest::SlotDigest::whole)
    }

    /// Returns how much readers see of a context, if its slot is visible.
    pub(super) fn visible_size(&self, context: Context) -> Option<u64> {
        let slot = self.config.contexts.slot(context);
        let is_leased = self.now < self.slot_manager.visible_until(self.now, slot);
        self.known_committed(context).filter(|_| is_leased || self.config.broken == DisabledRule::NoLease)
    }

    /// Returns how much of a context is known to be committed, whether its slot is visible or not.
    fn known_committed(&self, context: Context) -> Option<u64> {
        let readable = self.visibility.get(&self.config.contexts.slot(context)).copied().unwrap_or_default();
        (readable == SlotVisibility::Visible).then(|| self.visible[context])
    }

    /// Publishes a context up to a committed size.
    pub(super) fn publish(&mut self, context: Context, size: u64) {
        let size = size.min(self.size_here(context));
        self.visible[context] = self.visible[context].max(size);
        if let Some(size) = self.known_committed(context).filter(|_| !self.is_unreadable(context)) {
            self.out.push(NodeOutput::Note(Note::Shown { context, size }));
        }
    }

    /// Publishes everything of a slot that is not pending.
    pub(super) fn publish_slot(&mut self, slot: Slot) {
        let config = Rc::clone(&self.config);
        for context in config.contexts.of(slot) {
            let size = self.size_here(context);
            self.publish(context, if self.pending.has_pending(slot) { 0 } else { size });
        }
    }
}
