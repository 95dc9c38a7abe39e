//! What the lane of a store does for the slots that its node leads, as in `ledger_store::{lane, copies}`.

use std::rc::Rc;

use ledger_core::{
    Epoch,
    digest::Digest,
    node::Member,
    ownership::{Claim, slots::Event},
    replication::{Needed, PeerSet, Stable},
    slot::Slot,
};

use super::{
    broken::Broken,
    disk::Write,
    history::Context,
    message::{Append, Down, Index, Offer, Part, Range, Response},
    node::{Node, index_of, peer_of},
    wants::{AfterSync, Note, Out, Outgoing, Readable},
};

/// A slot that this node owns or is about to.
#[derive(Debug)]
pub struct Led {
    claim: Claim,
    sending: PeerSet,
    is_owned: bool,
    is_serving: bool,
    is_stopping: bool,
    needed: usize,
}

impl Led {
    fn new(claim: Claim) -> Self {
        let sending = PeerSet::default();
        Self { claim, sending, is_owned: false, is_serving: false, is_stopping: false, needed: 0 }
    }

    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    pub fn epoch(&self) -> Epoch {
        self.claim.epoch
    }

    pub fn needed(&self) -> usize {
        self.needed
    }
}

/// An append, and who waits for it.
#[derive(Debug, Clone)]
pub struct Queued {
    pub client: usize,
    pub request: u64,
    pub append: Append,
}

/// An append that is to be answered with its sequence.
pub type Asked = (Queued, u64);

/// A client, and its request.
pub type Waits = (usize, u64);

/// A context that a commit writes to.
#[derive(Debug)]
pub(super) struct Begun {
    pub context: Context,
    pub after: u64,
    pub is_load: bool,
    /// Its members have staged it.
    pub is_staged: bool,
}

/// What is done with a commit's part of a slot when it is stable.
#[derive(Debug, Default)]
pub struct Item {
    answers: Vec<Asked>,
    /// Loads, by who waits for them: how far the context goes with each.
    loads: Vec<(Waits, Context, u64)>,
    reached: Vec<(Context, u64)>,
}

impl Item {
    pub fn of_load(waits: Waits, context: Context, size: u64) -> Self {
        Self { loads: vec![(waits, context, size)], ..Self::default() }
    }
}

impl Node {
    /// Whether appends to a slot are taken. The record decides, which may have been promised away since.
    pub(super) fn serves(&self, slot: Slot) -> bool {
        self.led.get(&slot).is_some_and(|led| {
            let is_stale = self.record(slot).takes(&led.claim).is_err();
            led.is_serving && (!is_stale || self.config.broken == Broken::StaleOwner)
        })
    }

    /// Appends what is queued: one commit.
    pub(super) fn commit(&mut self) {
        if !self.can_write() {
            return std::mem::take(&mut self.queue).iter().for_each(|queued| self.unknown(queued));
        }
        let mut items: Vec<(Slot, Item)> = Vec::new();
        let mut begun: Vec<Begun> = Vec::new();
        let mut asked = Vec::new();
        for queued in std::mem::take(&mut self.queue) {
            let Append { context, id, .. } = queued.append;
            let slot = self.config.contexts.slot(context);
            if !self.serves(slot) {
                let response = self.not_owner(context);
                let Queued { client, request, .. } = queued;
                self.out.push(Out::Respond { client, request, response });
                continue;
            }
            if self.is_damaged(context) {
                let response = self.not_owner(context);
                let Queued { client, request, .. } = queued;
                self.out.push(Out::Respond { client, request, response });
                continue;
            }
            let epoch = self.led[&slot].claim.epoch;
            let at = items.iter().position(|(of, _)| *of == slot).unwrap_or_else(|| {
                items.push((slot, Item::default()));
                items.len() - 1
            });
            let sequence = if let Some(known) = self.ids[context].get(&id) {
                // Nothing is written, but it may not be stable yet.
                *known
            } else {
                let size = self.disk.now.histories[context].size();
                if !begun.iter().any(|of| of.context == context) {
                    begun.push(Begun { context, after: size, is_load: false, is_staged: false });
                }
                let entry = self.disk.now.histories[context].next(epoch, id);
                self.extend(context, &[entry]);
                self.out.push(Out::Note(Note::Created { context, entry, by: epoch }));
                size + 1
            };
            if queued.append.needed == Needed::Configured {
                items[at].1.answers.push((queued, sequence));
            } else {
                asked.push((slot, (queued, sequence)));
            }
        }
        self.committed(items, &begun, asked);
    }

    pub(super) fn committed(
        &mut self,
        mut items: Vec<(Slot, Item)>,
        begun: &[Begun],
        asked: Vec<(Slot, Asked)>,
    ) {
        if !begun.is_empty() {
            self.number += 1;
        }
        let number = self.number;
        let mut parts = Vec::new();
        for Begun { context, after, is_load, is_staged } in begun {
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
                claim: self.led[&slot].claim.clone(),
                range,
                is_load: *is_load,
                staged_to: is_staged.then_some(size),
            });
            if self.config.broken == Broken::UnstableShown {
                self.show(*context, size);
            }
        }
        let mut stable = Vec::new();
        for (slot, item) in items {
            if item.reached.is_empty() {
                stable.extend(self.waiting.push_behind(slot, item));
            } else {
                self.waiting.push(number, slot, item);
            }
        }
        for (slot, asked) in asked {
            self.waiting.ask(slot, asked.0.append.needed, asked);
        }
        let streams: Vec<(Index, u64)> =
            self.outgoing.iter().filter(|(_, out)| out.is_up).map(|(to, out)| (*to, out.stream)).collect();
        for (to, stream) in streams {
            let of = |part: &&Part| self.led[&part.slot].sending.contains(peer_of(to));
            let parts: Vec<Part> = parts.iter().filter(of).cloned().collect();
            if !parts.is_empty() {
                self.out.push(Out::Down { stream, body: Down::Commit { number, parts } });
            }
        }
        self.after_sync(AfterSync::Own(number));
        self.settle(stable);
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

    /// Entries of a context after one size, up to another.
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

    /// This node's disk holds everything up to a number.
    pub(super) fn own_synced(&mut self, number: u64) {
        let stable = self.waiting.synced(number);
        self.settle(stable);
    }

    /// A peer's disk holds everything that it was sent, up to a number.
    pub(super) fn holds(&mut self, from: Index, number: u64) {
        let stable = self.waiting.holds(peer_of(from), number);
        self.settle(stable);
    }

    fn acknowledge(&mut self, queued: &Queued, sequence: u64, is_stable: bool) {
        let Queued { client, request, append } = queued;
        let Append { context, id, .. } = *append;
        let response = Response::Appended { id, is_stable };
        self.out.push(Out::Respond { client: *client, request: *request, response });
        let led = self.led.get(&self.config.contexts.slot(context));
        let (in_epoch, needed) = (led.map(|led| led.claim.epoch), led.map_or(1, |led| led.needed));
        self.out.push(Out::Note(Note::Acknowledged { context, sequence, id, in_epoch, is_stable, needed }));
    }

    /// Acknowledges what has its copies, and tells the peers.
    fn settle(&mut self, stable: Vec<Stable<Item>>) {
        let mut slots: Vec<(Slot, u64)> = Vec::new();
        for Stable { slot, number, item, .. } in stable {
            for (queued, sequence) in item.answers {
                self.acknowledge(&queued, sequence, true);
            }
            for (waits, context, size) in item.loads {
                self.loaded(waits, context, size);
            }
            for (context, size) in item.reached {
                self.show(context, size);
            }
            match slots.iter_mut().find(|(of, _)| *of == slot) {
                Some((_, newest)) => *newest = number,
                None => slots.push((slot, number)),
            }
        }
        for (slot, number) in slots {
            let number = if self.waiting.is_waiting(slot) { number } else { self.number };
            self.tell(slot, number);
            self.note_stopped(slot);
        }
        for (copies, (queued, sequence)) in self.waiting.answered() {
            let slot = self.config.contexts.slot(queued.append.context);
            let is_stable = self.led.get(&slot).is_some_and(|led| copies >= led.needed);
            self.acknowledge(&queued, sequence, is_stable);
        }
    }

    /// Tells the peers on a slot's stream how much of it is stable.
    fn tell(&mut self, slot: Slot, number: u64) {
        let Some(led) = self.led.get(&slot) else { return };
        let (sending, epoch) = (led.sending, led.claim.epoch);
        let is_sent = |to: &Index, out: &Outgoing| out.is_up && sending.contains(peer_of(*to));
        for (_, out) in self.outgoing.iter().filter(|(to, out)| is_sent(to, out)) {
            let body = Down::Stable { slot, epoch, number };
            self.out.push(Out::Down { stream: out.stream, body });
        }
    }

    /// Tells the peers, if all of a slot is stable; else what waits will.
    fn tell_all(&mut self, slot: Slot) {
        let is_led = self.led.get(&slot).is_some_and(|led| led.is_serving || led.is_stopping);
        if is_led && !self.waiting.is_waiting(slot) {
            self.tell(slot, self.number);
        }
    }

    fn note_stopped(&mut self, slot: Slot) {
        if let Some(led) = self.led.get(&slot)
            && led.is_stopping
            && !self.waiting.is_waiting(slot)
        {
            self.events.push_back(Event::Stopped(slot, led.claim.clone()));
        }
    }

    /// Puts a peer on a slot's stream, with an offer.
    pub(super) fn send_to(&mut self, to: &Member, offer: Offer) {
        let index = index_of(&to.node);
        let Some(out) = self.outgoing.get(&index).filter(|out| out.is_up && out.member == *to) else {
            return;
        };
        let stream = out.stream;
        let led = self.led.entry(offer.slot).or_insert_with(|| Led::new(offer.claim.clone()));
        if led.claim != offer.claim {
            led.claim = offer.claim.clone();
            (led.is_owned, led.is_serving) = (false, false);
        }
        led.sending.insert(peer_of(index));
        self.out.push(Out::Down { stream, body: Down::Offer(Box::new(offer)) });
    }

    /// The slot takes appends.
    pub(super) fn own(&mut self, slot: Slot, claim: &Claim, needed: usize, was_handed_over: bool) {
        // Since it was decided, the slot may have been promised to another node, and its entries taken.
        if self.record(slot).takes(claim).is_err() && self.config.broken != Broken::StaleOwner {
            return;
        }
        let members = self.record(slot).placement.map_or(needed, |placement| placement.set.len());
        let led = self.led.entry(slot).or_insert_with(|| Led::new(claim.clone()));
        if led.claim != *claim {
            (led.claim, led.is_owned) = (claim.clone(), false);
        }
        let is_new = !led.is_owned;
        (led.is_owned, led.is_serving, led.is_stopping) = (true, true, false);
        led.needed = needed;
        self.waiting.lead(slot, needed, members);
        self.accepted_at.remove(&slot);
        if is_new {
            self.out.push(Out::Note(Note::Owned { slot, claim: claim.clone(), was_handed_over }));
        }
        // What was here when enough members accepted it is stable.
        for (context, size) in self.unstable.take(slot) {
            self.show(context, size);
        }
        if self.readable.insert(slot, Readable::Shown) != Some(Readable::Shown) || is_new {
            self.show_slot(slot);
        }
        self.tell_all(slot);
    }

    pub(super) fn count(&mut self, slot: Slot, claim: &Claim, member: &Member) {
        if *member == self.member || self.led.get(&slot).is_none_or(|led| led.claim != *claim) {
            return;
        }
        let stable = self.waiting.count(slot, peer_of(index_of(&member.node)));
        self.settle(stable);
        self.tell_all(slot);
    }

    /// A node is no member any more: it is sent nothing further of the slot.
    pub(super) fn release(&mut self, slot: Slot, claim: &Claim, member: &Member) {
        if let Some(led) = self.led.get_mut(&slot).filter(|led| led.claim == *claim) {
            led.sending.remove(peer_of(index_of(&member.node)));
        }
    }

    pub(super) fn stop(&mut self, slot: Slot, claim: &Claim) {
        if let Some(led) = self.led.get_mut(&slot).filter(|led| led.claim == *claim) {
            (led.is_serving, led.is_stopping) = (false, true);
            self.note_stopped(slot);
        }
    }

    /// The slot is no longer this node's: those who wait are told to try again.
    pub(super) fn step_down(&mut self, slot: Slot) {
        if self.config.broken == Broken::StaleOwner {
            return;
        }
        self.led.remove(&slot);
        let (items, unanswered) = self.waiting.end(slot);
        for (queued, _) in unanswered {
            self.unknown(&queued);
        }
        for item in items {
            for (queued, _) in item.answers {
                self.unknown(&queued);
            }
            for ((client, request), ..) in item.loads {
                self.out.push(Out::Respond { client, request, response: Response::Unknown });
            }
            // Until an owner says that it is stable, nobody sees it.
            for reached in item.reached {
                self.unstable.push(slot, Epoch::default(), 0, reached);
            }
        }
    }

    fn unknown(&mut self, queued: &Queued) {
        let Queued { client, request, .. } = *queued;
        self.out.push(Out::Respond { client, request, response: Response::Unknown });
    }

    /// A peer's stream is lost.
    pub(super) fn lose(&mut self, peer: ledger_core::replication::Peer) {
        self.waiting.lose(peer);
        self.led.values_mut().for_each(|led| led.sending.remove(peer));
    }

    pub(super) fn digest(&self, slot: Slot) -> Digest {
        self.digests.get(&slot).map_or_else(Digest::default, ledger_core::digest::SlotDigest::whole)
    }

    /// How much readers see of a context, if its slot is shown.
    pub(super) fn shown(&self, context: Context) -> Option<u64> {
        let slot = self.config.contexts.slot(context);
        let is_leased = self.now < self.brain.shown_until(self.now, slot);
        self.known_committed(context).filter(|_| is_leased || self.config.broken == Broken::NoLease)
    }

    /// How much of a context is known to be committed, whether readers are shown it or not.
    fn known_committed(&self, context: Context) -> Option<u64> {
        let readable = self.readable.get(&self.config.contexts.slot(context)).copied().unwrap_or_default();
        (readable == Readable::Shown).then(|| self.visible[context])
    }

    /// A context is stable up to a size.
    pub(super) fn show(&mut self, context: Context, size: u64) {
        let size = size.min(self.size_here(context));
        self.visible[context] = self.visible[context].max(size);
        if let Some(size) = self.known_committed(context).filter(|_| !self.is_unreadable(context)) {
            self.out.push(Out::Note(Note::Shown { context, size }));
        }
    }

    /// Everything of a slot that does not wait is stable.
    pub(super) fn show_slot(&mut self, slot: Slot) {
        let config = Rc::clone(&self.config);
        for context in config.contexts.of(slot) {
            let size = self.size_here(context);
            self.show(context, if self.waiting.is_waiting(slot) { 0 } else { size });
        }
    }
}
