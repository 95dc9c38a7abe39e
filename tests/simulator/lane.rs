//! What a store's lane does for the slots that its node owns, around [`SlotCommits`], as in `ledger_store::write::lane`
//! and `ledger_store::replicate::lane_replication`.

use std::mem;

use ledger_core::{
    digest::{NodeDigest, SlotDigest},
    replication::{
        SlotCommits, WriteQuorum,
        replica::SyncOffer,
        slot_commits::{self, CommitPart, Visibility},
    },
};

use super::prelude::*;

/// What a commit wrote to a slot: the contexts, with their sizes after it.
pub type Writes = Vec<(Context, u64)>;
pub type Commits = SlotCommits<Writes, Vec<Waiter>, Waiter>;
type Effect = slot_commits::Effect<Writes, Vec<Waiter>, Waiter>;
type SlotPart = CommitPart<Writes, Vec<Waiter>, Waiter>;

/// A client's append or load that waits for its copies.
#[derive(Debug)]
pub struct Waiter {
    pub client: ClientRequest,
    pub context: Context,
    /// The last entry.
    pub sequence: u64,
    pub id: u64,
    pub is_load: bool,
    /// When it is answered without its copies.
    pub until: Millis,
}

/// How long an append or a load waits for its copies, in milliseconds.
pub const WAIT: Millis = 4000;

/// A context that a commit writes to.
#[derive(Debug)]
pub(super) struct Written {
    pub context: Context,
    pub after: u64,
    pub is_load: bool,
    /// Whether its members have staged the entries.
    pub is_staged: bool,
}

/// The contexts with writes that are not committed: the size that readers see, and how many writes go beyond it. As in
/// `ledger_store::write::committed_heads`.
#[derive(Debug, Default)]
pub struct Pins(BTreeMap<Context, (u64, usize)>);

impl Pins {
    /// The oldest pinned write of a context is committed, or nobody sees the context; the write left it at `after`.
    fn unpin(&mut self, context: Context, after: u64) {
        // Nothing may be pinned: the slot was hidden at the write.
        let Some(pin) = self.0.get_mut(&context) else { return };
        *pin = (after, pin.1 - 1);
        if pin.1 == 0 {
            self.0.remove(&context);
        }
    }
}

/// Returns the part of a slot in a commit.
fn part_of(parts: &mut Vec<SlotPart>, slot: Slot) -> &mut SlotPart {
    let at = parts.iter().position(|part| part.slot == slot).unwrap_or(parts.len());
    if at == parts.len() {
        parts.push(SlotPart { slot, write: None, answers: Vec::new(), waiters: Vec::new() });
    }
    &mut parts[at]
}

impl Node {
    /// Returns the epoch in which the slot takes appends, if it does.
    pub(super) fn serving_epoch(&self, slot: Slot) -> Option<Epoch> {
        self.commits.serving_epoch(slot).ok().map(|(epoch, _)| epoch)
    }

    /// Has the machine make a step, and does what it wants done.
    pub(super) fn step<T>(&mut self, step: impl FnOnce(&mut Commits, &mut Vec<Effect>) -> T) -> T {
        let mut effects = Vec::new();
        let result = step(&mut self.commits, &mut effects);
        self.carry_out(effects);
        result
    }

    /// Appends everything queued, in one commit.
    pub(super) fn commit(&mut self) {
        let (mut parts, mut begun, can_write) = (Vec::new(), Vec::<Written>::new(), self.can_write());
        for (client, Append { context, id, quorum }) in mem::take(&mut self.queue) {
            if !can_write {
                self.respond(client, Response::Unknown);
                continue;
            }
            let slot = self.slot(context);
            let Some(epoch) = self.serving_epoch(slot).filter(|_| !self.fails(context, Read::Head)) else {
                self.respond(client, self.not_owner(context));
                continue;
            };
            // One that is there already writes nothing, but may be uncommitted.
            let sequence = self.history(context).find(id).unwrap_or_else(|| {
                let after = self.history(context).size();
                if !begun.iter().any(|of| of.context == context) {
                    begun.push(Written { context, after, is_load: false, is_staged: false });
                    self.pin(context);
                }
                let entry = self.history(context).next(epoch, id);
                self.extend(context, &[entry]);
                self.note(Note::Created { context, entry, by: epoch });
                entry.sequence
            });
            let until = self.now + WAIT;
            let (part, waiter) =
                (part_of(&mut parts, slot), Waiter { client, context, sequence, id, is_load: false, until });
            match quorum {
                WriteQuorum::Configured => part.answers.push(waiter),
                quorum => part.waiters.push((quorum, waiter)),
            }
        }
        self.written(parts, &begun);
    }

    /// Acknowledges a load once it is committed: one that was just written, or was there already.
    pub(super) fn load_written(&mut self, waiter: Waiter, begun: &[Written]) {
        let mut parts = Vec::new();
        part_of(&mut parts, self.slot(waiter.context)).answers.push(waiter);
        self.written(parts, begun);
    }

    /// Sends what a commit wrote, and keeps it until it has its copies.
    fn written(&mut self, mut parts: Vec<SlotPart>, begun: &[Written]) {
        let mut sent = Vec::new();
        for Written { context, after, is_load, is_staged } in begun {
            let (slot, size) = (self.slot(*context), self.history(*context).size());
            part_of(&mut parts, slot).write.get_or_insert_default().push((*context, size));
            let mut range = self.range(*context, *after, size);
            if *is_staged {
                range.entries = [].into();
            }
            if let Some((claim, peers)) = self.commits.ownership(slot) {
                let claim = claim.clone();
                sent.push((peers, Part { slot, claim, range, is_load: *is_load, is_staged: *is_staged }));
            }
            self.show_uncommitted(*context);
        }
        let mut effects = Vec::new();
        let number = self.commits.record_own_commit(parts, &mut effects);
        let streams = self.outgoing.iter().filter(|(_, out)| out.is_up);
        for (to, stream) in streams.map(|(to, out)| (*to, out.stream)).collect::<Vec<_>>() {
            let of = sent.iter().filter(|(peers, _)| peers.contains(peer_of(to)));
            let parts: Vec<Part> = of.map(|(_, part)| part.clone()).collect();
            if !parts.is_empty() {
                self.send_down(stream, OwnerMessage::Commit { number, parts });
            }
        }
        self.after_sync(AfterSync::Own(number));
        self.carry_out(effects);
    }

    /// Writes to a context's history, unsynced, and counts it in the slot's digest.
    pub(super) fn write(&mut self, context: Context, write: Write) {
        let before = self.history(context).head();
        self.disk.write(write);
        let after = self.history(context).head();
        let digest = self.digests.entry(self.slot(context)).or_default();
        digest.replace(self.config.contexts.id(context), Some(before), Some(after));
    }

    /// Appends entries to a context, unsynced.
    pub(super) fn extend(&mut self, context: Context, entries: &[Entry]) {
        for entry in entries {
            assert!(self.history(context).continues(entry), "entries of context {context} are not its next");
            self.write(context, Write::Append(context, vec![*entry]));
        }
    }

    /// Returns the entries of a context after one size, up to another.
    pub(super) fn range(&self, context: Context, after: u64, to: u64) -> Range {
        let history = self.history(context);
        let to = to.min(history.size());
        let head_at = |size| TreeHead { size: Size(size), root: history.root_at(size).unwrap() };
        let (after, end) = (head_at(after.min(to)), head_at(to));
        let entries = history.0[after.size.0 as usize..to as usize].into();
        Range { context, after, entries, end }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.carry_out_one(effect);
        }
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::Publish(writes) => self.publish(writes),
            Effect::Unpin(writes) => {
                for (context, size) in writes {
                    self.pins.unpin(context, size);
                }
            }
            Effect::Acknowledge { write, answers, .. } => {
                self.publish(write.unwrap_or_default());
                for waiter in &answers {
                    self.acknowledge(waiter, true);
                }
            }
            Effect::AcknowledgeWaiter { waiter, copies } => {
                let (needed, _) = self.commits.quorum_and_in_sync(self.slot(waiter.context));
                self.acknowledge(&waiter, copies >= needed);
            }
            Effect::Fail(waiters) => self.give_up(waiters),
            Effect::FailWaiter(waiter) => self.give_up(vec![waiter]),
            Effect::SendCommitIndex { peers, index } => {
                for peer in peers.iter() {
                    let out = self.outgoing.get(&usize::from(peer.number())).filter(|out| out.is_up);
                    if let Some(stream) = out.map(|out| out.stream) {
                        self.send_down(stream, OwnerMessage::CommitIndex(index));
                    }
                }
            }
            Effect::AppendsStopped { slot, claim } => {
                self.events.push_back(Event::AppendsStopped(slot, claim));
            }
            Effect::HideSlot(slot) => self.trace(|_| format!("shows nothing of {slot:?}")),
            // What is there is not pinned.
            Effect::WithholdSlot(_) => {}
            Effect::ShowSlot(slot) => {
                let config = Rc::clone(&self.config);
                for context in config.contexts.of(slot) {
                    self.note_shown(context);
                }
            }
        }
    }

    /// Tells those who wait that nobody knows what becomes of it.
    fn give_up(&mut self, waiters: Vec<Waiter>) {
        for waiter in waiters {
            self.respond(waiter.client, Response::Unknown);
        }
    }

    /// Stops keeping those who wait for copies, as far as they match.
    pub(super) fn take_waiters(&mut self, is_over: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let mut over = Vec::new();
        self.commits.for_each_pending(|_, waiters| over.extend(waiters.extract_if(.., |of| is_over(of))));
        over.extend(self.commits.take_waiters_if(is_over));
        over
    }

    /// Answers those who waited too long. What they wait for may still be committed.
    pub(super) fn expire(&mut self) {
        let now = self.now;
        let over = self.take_waiters(|waiter| waiter.until <= now);
        self.count(Counted::Expired, over.len() as u64);
        self.give_up(over);
    }

    /// Sends each replica the digests of its slots that are in sync, as at this place of its stream.
    pub(super) fn send_digest_checkpoints(&mut self) {
        let up = self.outgoing.iter().filter(|(_, out)| out.is_up).map(|(to, out)| (*to, out.stream));
        for (to, stream) in up.collect::<Vec<_>>() {
            let is_counted = |slot: &Slot| self.commits.is_in_sync(*slot, peer_of(to));
            let slots = self.config.contexts.slots.iter().copied().filter(is_counted);
            let digests: BTreeMap<Slot, Digest> = slots.map(|slot| (slot, self.digest(slot))).collect();
            if !digests.is_empty() {
                let digest = NodeDigest::of(&digests);
                self.send_down(stream, OwnerMessage::DigestCheckpoint(digests.into_keys().collect(), digest));
            }
        }
    }

    /// Answers who waits for what is committed, or durable at as many nodes as they wanted.
    pub(super) fn acknowledge(&mut self, waiter: &Waiter, is_stable: bool) {
        let Waiter { client, context, sequence, id, is_load, .. } = *waiter;
        let loaded = Response::Loaded { size: sequence };
        self.respond(client, if is_load { loaded } else { Response::Appended { id, is_stable } });
        let slot = self.slot(context);
        let in_epoch = self.commits.ownership(slot).map(|(claim, _)| claim.epoch);
        let needed = in_epoch.map_or(1, |_| self.commits.quorum_and_in_sync(slot).0);
        self.note(Note::Acknowledged { context, sequence, id, in_epoch, is_stable, needed });
    }

    /// Adds a peer to a slot's stream, with a sync offer.
    pub(super) fn offer_sync(&mut self, to: &Member, mut offer: SyncOffer) {
        if let Some(stream) = self.stream_to(to) {
            let peer = peer_of(index_of(&to.node));
            offer.number = self.commits.add_stream_peer(offer.slot, &offer.claim, peer);
            self.send_down(stream, OwnerMessage::SyncOffer(Box::new(offer)));
        }
    }

    /// Starts taking appends to the slot.
    pub(super) fn begin_serving(&mut self, slot: Slot, claim: &Claim, write_quorum: usize) {
        let mut record = self.record(slot);
        if self.is_broken(DisabledRule::StaleOwner) {
            record = SlotRecord { promised: Some(claim.clone()), accepted: claim.epoch, ..record };
        }
        let was_handed_over = self.handed_over.contains(&slot);
        self.handed_over.retain(|of| *of != slot);
        self.replica.on_serving(slot, claim);
        let mut effects = Vec::new();
        self.commits.begin_serving(slot, claim, write_quorum, &record, &mut effects);
        if self.serving_epoch(slot) == Some(claim.epoch)
            && self.served.insert(slot, claim.clone()).as_ref() != Some(claim)
        {
            self.note(Note::Owned { slot, claim: claim.clone(), was_handed_over });
        }
        self.carry_out(effects);
    }

    pub(super) fn digest(&self, slot: Slot) -> Digest {
        self.digests.get(&slot).map_or_else(Digest::default, SlotDigest::whole)
    }

    /// Returns how much readers see of a context, if its slot is visible.
    pub(super) fn visible_size(&self, context: Context) -> Option<u64> {
        let is_leased = self.now < self.slot_manager.visible_until(self.now, self.slot(context));
        self.known_committed(context).filter(|_| is_leased || self.is_broken(DisabledRule::NoLease))
    }

    /// Returns how much of a context is known to be committed, whether its slot's lease lasts or not.
    fn known_committed(&self, context: Context) -> Option<u64> {
        let is_visible = self.commits.visibility(self.slot(context)) == Visibility::Visible;
        is_visible.then(|| self.committed(context))
    }

    /// Returns how much of a context is not pinned.
    pub(super) fn committed(&self, context: Context) -> u64 {
        let here = self.history(context).size();
        self.pins.0.get(&context).map_or(here, |(committed, _)| here.min(*committed))
    }

    /// Pins what readers see of a context, because a write follows that is not committed.
    pub(super) fn pin(&mut self, context: Context) {
        if self.commits.visibility(self.slot(context)) != Visibility::Hidden
            && !self.is_broken(DisabledRule::UnstableShown)
        {
            let before = self.history(context).size();
            self.pins.0.entry(context).or_insert((before, 0)).1 += 1;
        }
    }

    /// In the variant that shows what is not committed, reports it.
    pub(super) fn show_uncommitted(&mut self, context: Context) {
        if self.is_broken(DisabledRule::UnstableShown) {
            self.note_shown(context);
        }
    }

    /// Lets readers see what is committed.
    fn publish(&mut self, writes: Writes) {
        for (context, size) in writes {
            self.pins.unpin(context, size);
            self.note_shown(context);
        }
    }

    fn note_shown(&mut self, context: Context) {
        if let Some(size) = self.known_committed(context).filter(|_| !self.is_unreadable(context)) {
            self.note(Note::Shown { context, size });
        }
    }
}
