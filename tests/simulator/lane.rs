//! What a store's lane does for the slots that its node owns, around [`SlotCommits`], as in `ledger_store::write::lane`
//! and `ledger_store::replicate::lane_replication`.

use std::{mem, rc::Rc};

use ledger_core::{
    Epoch,
    digest::Digest,
    node::Member,
    ownership::{Claim, SlotRecord, slot_manager::Event},
    replication::{
        SlotCommits, WriteQuorum,
        slot_commits::{self, CommitPart, Visibility},
    },
    slot::Slot,
};

use super::{
    broken::DisabledRule,
    disk::Write,
    history::Context,
    message::{Append, Index, OwnerMessage, Part, Range, Response, SyncOffer},
    node::{Node, index_of, peer_of},
    node_output::{AfterSync, NodeOutput, Note, Outgoing},
};

/// What a commit wrote to a slot: the contexts, with their sizes after it.
pub type Writes = Vec<(Context, u64)>;

pub type Commits = SlotCommits<Writes, Answers, AnsweredAppend>;

/// A commit's part of a slot.
pub type SlotPart = CommitPart<Writes, Answers, AnsweredAppend>;

/// What the machine wants done.
type Effect = slot_commits::Effect<Writes, Answers, AnsweredAppend>;

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

/// Who waits for a commit's part of a slot.
#[derive(Debug, Default)]
pub struct Answers {
    appends: Vec<AnsweredAppend>,
    /// The loads, by who waits for them, with the context's size after each.
    loads: Vec<(ClientRequest, Context, u64)>,
}

impl Answers {
    pub fn of_load(waits: ClientRequest, context: Context, size: u64) -> Self {
        Self { loads: vec![(waits, context, size)], ..Self::default() }
    }

    pub fn len(&self) -> usize {
        self.appends.len() + self.loads.len()
    }

    /// Drops those who are gone. Returns how many.
    pub fn drop_if(&mut self, is_gone: impl Fn(usize, u64) -> bool) -> usize {
        let before = self.len();
        self.appends.retain(|(queued, _)| !is_gone(queued.client, queued.request));
        self.loads.retain(|((client, request), ..)| !is_gone(*client, *request));
        before - self.len()
    }
}

/// Returns a part that wrote nothing yet.
pub(super) fn part_of(slot: Slot, answers: Answers) -> SlotPart {
    SlotPart { slot, write: None, answers, waiters: Vec::new() }
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
        if !self.can_write() {
            return mem::take(&mut self.queue).iter().for_each(|queued| self.unknown(queued));
        }
        let mut parts: Vec<SlotPart> = Vec::new();
        let mut begun: Vec<CommitContext> = Vec::new();
        for queued in mem::take(&mut self.queue) {
            let Append { context, id, .. } = queued.append;
            let slot = self.config.contexts.slot(context);
            let Some(epoch) = self.serving_epoch(slot).filter(|_| !self.lacks_head(context)) else {
                let response = self.not_owner(context);
                let Queued { client, request, .. } = queued;
                self.out.push(NodeOutput::Respond { client, request, response });
                continue;
            };
            let at = parts.iter().position(|part| part.slot == slot).unwrap_or_else(|| {
                parts.push(part_of(slot, Answers::default()));
                parts.len() - 1
            });
            let sequence = if let Some(known) = self.ids[context].get(&id) {
                // This writes nothing, but the earlier append may be uncommitted.
                *known
            } else {
                let size = self.disk.now.histories[context].size();
                if !begun.iter().any(|of| of.context == context) {
                    begun.push(CommitContext { context, after: size, is_load: false, is_staged: false });
                    self.pin(context);
                }
                let entry = self.disk.now.histories[context].next(epoch, id);
                self.extend(context, &[entry]);
                self.out.push(NodeOutput::Note(Note::Created { context, entry, by: epoch }));
                size + 1
            };
            match queued.append.quorum {
                WriteQuorum::Configured => parts[at].answers.appends.push((queued, sequence)),
                quorum => parts[at].waiters.push((quorum, (queued, sequence))),
            }
        }
        self.written(parts, &begun);
    }

    /// Sends what a commit wrote, and keeps it until it has its copies.
    pub(super) fn written(&mut self, mut parts: Vec<SlotPart>, begun: &[CommitContext]) {
        let mut sent = Vec::new();
        for CommitContext { context, after, is_load, is_staged } in begun {
            let slot = self.config.contexts.slot(*context);
            let size = self.disk.now.histories[*context].size();
            if let Some(part) = parts.iter_mut().find(|part| part.slot == slot) {
                part.write.get_or_insert_default().push((*context, size));
            }
            let mut range = self.range(*context, *after, size);
            if *is_staged {
                range.entries = [].into();
            }
            if let Some((claim, peers)) = self.commits.ownership(slot) {
                let staged_to = is_staged.then_some(size);
                sent.push((peers, Part { slot, claim: claim.clone(), range, is_load: *is_load, staged_to }));
            }
            self.show_uncommitted(*context);
        }
        let mut effects = Vec::new();
        let number = self.commits.record_own_commit(parts, &mut effects);
        let streams: Vec<(Index, u64)> =
            self.outgoing.iter().filter(|(_, out)| out.is_up).map(|(to, out)| (*to, out.stream)).collect();
        for (to, stream) in streams {
            let of = sent.iter().filter(|(peers, _)| peers.contains(peer_of(to)));
            let parts: Vec<Part> = of.map(|(_, part)| part.clone()).collect();
            if !parts.is_empty() {
                self.out.push(NodeOutput::Down { stream, body: OwnerMessage::Commit { number, parts } });
            }
        }
        self.after_sync(AfterSync::Own(number));
        self.carry_out(effects);
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

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Publish(writes) => self.publish(writes),
                Effect::Unpin(writes) => {
                    for (context, size) in writes {
                        self.pins.unpin(context, size);
                    }
                }
                Effect::Acknowledge { write, answers, .. } => {
                    self.publish(write.unwrap_or_default());
                    for (queued, sequence) in answers.appends {
                        self.acknowledge(&queued, sequence, true);
                    }
                    for (waits, context, size) in answers.loads {
                        self.loaded(waits, context, size);
                    }
                }
                Effect::AcknowledgeWaiter { waiter: (queued, sequence), copies } => {
                    let slot = self.config.contexts.slot(queued.append.context);
                    let (needed, _) = self.commits.quorum_and_in_sync(slot);
                    self.acknowledge(&queued, sequence, copies >= needed);
                }
                Effect::Fail(Answers { appends, loads }) => {
                    for (queued, _) in appends {
                        self.unknown(&queued);
                    }
                    for ((client, request), ..) in loads {
                        self.out.push(NodeOutput::Respond { client, request, response: Response::Unknown });
                    }
                }
                Effect::FailWaiter((queued, _)) => self.unknown(&queued),
                Effect::SendCommitIndex { peers, index } => {
                    let is_sent =
                        |(to, out): &(&Index, &Outgoing)| out.is_up && peers.contains(peer_of(**to));
                    for (_, out) in self.outgoing.iter().filter(is_sent) {
                        let body = OwnerMessage::CommitIndex(index);
                        self.out.push(NodeOutput::Down { stream: out.stream, body });
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
                    config.contexts.of(slot).for_each(|context| self.note_shown(context));
                }
            }
        }
    }

    fn acknowledge(&mut self, queued: &Queued, sequence: u64, is_stable: bool) {
        let Queued { client, request, append } = queued;
        let Append { context, id, .. } = *append;
        let response = Response::Appended { id, is_stable };
        self.out.push(NodeOutput::Respond { client: *client, request: *request, response });
        let (in_epoch, needed) = self.epoch_and_quorum(context);
        self.out.push(NodeOutput::Note(Note::Acknowledged {
            context,
            sequence,
            id,
            in_epoch,
            is_stable,
            needed,
        }));
    }

    /// Returns the epoch in which this node owns a context, and the write quorum.
    pub(super) fn epoch_and_quorum(&self, context: Context) -> (Option<Epoch>, usize) {
        let slot = self.config.contexts.slot(context);
        match self.commits.ownership(slot) {
            Some((claim, _)) => (Some(claim.epoch), self.commits.quorum_and_in_sync(slot).0),
            None => (None, 1),
        }
    }

    /// Adds a peer to a slot's stream, with a sync offer.
    pub(super) fn add_stream_peer(&mut self, to: &Member, mut offer: SyncOffer) {
        let index = index_of(&to.node);
        let Some(out) = self.outgoing.get(&index).filter(|out| out.is_up && out.member == *to) else {
            return;
        };
        let stream = out.stream;
        offer.number = self.commits.add_stream_peer(offer.slot, &offer.claim, peer_of(index));
        self.out.push(NodeOutput::Down { stream, body: OwnerMessage::SyncOffer(Box::new(offer)) });
    }

    /// Starts taking appends to the slot.
    pub(super) fn begin_serving(&mut self, slot: Slot, claim: &Claim, needed: usize, was_handed_over: bool) {
        let mut record = self.record(slot);
        if self.config.broken == DisabledRule::StaleOwner {
            record = SlotRecord { promised: Some(claim.clone()), accepted: claim.epoch, ..record };
        }
        self.replica.on_serving(slot, claim);
        let mut effects = Vec::new();
        self.commits.begin_serving(slot, claim, needed, &record, &mut effects);
        if self.serving_epoch(slot) == Some(claim.epoch)
            && self.served.insert(slot, claim.clone()).as_ref() != Some(claim)
        {
            self.out.push(NodeOutput::Note(Note::Owned { slot, claim: claim.clone(), was_handed_over }));
        }
        self.carry_out(effects);
    }

    pub(super) fn add_in_sync(&mut self, slot: Slot, claim: &Claim, member: &Member) {
        if *member != self.member {
            let peer = peer_of(index_of(&member.node));
            self.step(|commits, effects| commits.add_in_sync(slot, claim, peer, effects));
        }
    }

    /// Ends the ownership of the slot.
    pub(super) fn step_down(&mut self, slot: Slot) {
        if self.config.broken != DisabledRule::StaleOwner {
            self.step(|commits, effects| commits.step_down(slot, effects));
        }
    }

    fn unknown(&mut self, queued: &Queued) {
        let Queued { client, request, .. } = *queued;
        self.out.push(NodeOutput::Respond { client, request, response: Response::Unknown });
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

    /// Returns how much of a context is known to be committed, whether its slot's lease lasts or not.
    fn known_committed(&self, context: Context) -> Option<u64> {
        let is_visible = self.commits.visibility(self.config.contexts.slot(context)) == Visibility::Visible;
        is_visible.then(|| self.pins.committed(context, self.size_here(context)))
    }

    /// Pins what readers see of a context, because a write follows that is not committed.
    pub(super) fn pin(&mut self, context: Context) {
        if self.commits.visibility(self.config.contexts.slot(context)) != Visibility::Hidden
            && self.config.broken != DisabledRule::UnstableShown
        {
            self.pins.pin(context, self.size_here(context));
        }
    }

    /// In the variant that shows what is not committed, reports it.
    pub(super) fn show_uncommitted(&mut self, context: Context) {
        if self.config.broken == DisabledRule::UnstableShown {
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
            self.out.push(NodeOutput::Note(Note::Shown { context, size }));
        }
    }
}
