//! Loads at their owner and its replicas, as in `ledger_store::write::load` and
//! `ledger_store::replicate::incoming_load`. A load that fits a commit travels with it. The members stage a larger
//! one first. Every node installs it as a whole or not at all.

use std::rc::Rc;

use ledger_core::{Epoch, ownership::Claim, replication::PeerSet, slot::Slot};

use super::{
    broken::DisabledRule,
    client::Client,
    counts::Counted,
    disk::{Span, Write},
    history::{Context, Entry, History},
    invariants::Checked,
    lane::{ClientRequest, CommitContext, PendingPart},
    message::{CatchUpResponse, Index, Message, Range, Response},
    node::{Node, peer_of},
    node_output::{NodeOutput, Note},
    run::World,
};

/// Most entries in one fetch, unless they belong together.
const FETCHED: u64 = 12;
/// How long until the owner asks a member again to stage a load, in milliseconds.
const ASK_AGAIN: u64 = 400;
/// A member that has not staged the load after this many milliseconds is left behind, if there are enough others.
const STUCK: u64 = 3000;
/// How long a load may take, in milliseconds.
const GIVE_UP: u64 = 15_000;

/// A load that the members are staging.
#[derive(Debug)]
pub struct Loading {
    waits: ClientRequest,
    number: u64,
    epoch: Epoch,
    range: Range,
    staged_at: PeerSet,
    since: u64,
    asked: u64,
}

impl Node {
    /// Handles a client's load request.
    pub(super) fn load(
        &mut self,
        client: usize,
        request: u64,
        context: Context,
        snapshot: &Rc<History>,
        is_large: bool,
    ) {
        let (waits, slot) = ((client, request), self.config.contexts.slot(context));
        if !self.serving_epoch(slot) || self.is_damaged(context) || !self.can_write() {
            let response = self.not_owner(context);
            return self.out.push(NodeOutput::Respond { client, request, response });
        }
        let history = &self.disk.now.histories[context];
        let size = history.size();
        let both = size.min(snapshot.size());
        if history.root_at(both) != snapshot.root_at(both) {
            return self.out.push(NodeOutput::Respond { client, request, response: Response::Differs });
        }
        if size >= snapshot.size() {
            return self.is_there(waits, slot, context, size);
        }
        let range = Range {
            context,
            after: size,
            after_root: history.root(),
            entries: snapshot.0[size as usize..].into(),
            root: snapshot.root(),
        };
        if !is_large {
            return self.install(waits, slot, &range, false);
        }
        let number = self.number();
        let (since, epoch) = (self.now, self.led_epoch(slot));
        let staged_at = PeerSet::default();
        let loading = Loading { waits, number, epoch, range, staged_at, since, asked: 0 };
        if let Some(before) = self.loads.insert(context, loading) {
            self.give_up_load(&before);
        }
        self.spread(context);
    }

    /// Handles a load that is there completely: acknowledges it once it is committed.
    fn is_there(&mut self, waits: ClientRequest, slot: Slot, context: Context, size: u64) {
        self.out.push(NodeOutput::Note(Note::Load(Counted::LoadedAgain)));
        if self.config.broken == DisabledRule::LoadsUnsettled {
            return self.loaded(waits, context, size);
        }
        let item = PendingPart::of_load(waits, context, size);
        self.committed(vec![(slot, item)], &[], Vec::new());
    }

    /// Continues all loads that members are staging.
    pub(super) fn spread_all(&mut self) {
        for context in self.loads.keys().copied().collect::<Vec<_>>() {
            self.spread(context);
        }
    }

    /// Asks the counting members to stage a load, and installs it once they have.
    fn spread(&mut self, context: Context) {
        let slot = self.config.contexts.slot(context);
        let Some(loading) = self.loads.get(&context) else { return };
        let (needed, counting) = self.pending.quorum_and_in_sync(slot);
        let waited = self.now.saturating_sub(loading.since);
        let is_over = !self.serving_epoch(slot) || self.led_epoch(slot) != loading.epoch || waited > GIVE_UP;
        let missing = counting.without(loading.staged_at);
        let has_enough = counting.without(missing).len() + 1 >= needed;
        if is_over || !(has_enough && (missing.is_empty() || waited > STUCK)) {
            return if is_over { self.end_load(context) } else { self.ask_to_stage(context, slot, missing) };
        }
        let Some(loading) = self.loads.remove(&context) else { return };
        let history = &self.disk.now.histories[context];
        let is_same = (history.size(), history.root()) == (loading.range.after, loading.range.after_root);
        if !is_same || self.is_damaged(context) || !self.can_write() {
            return self.give_up_load(&loading);
        }
        for peer in missing.iter() {
            // Restart its stream, so that it catches up.
            self.close(usize::from(peer.number()));
        }
        self.out.push(NodeOutput::Note(Note::Load(Counted::LoadStaged)));
        self.install(loading.waits, slot, &loading.range, true);
    }

    fn ask_to_stage(&mut self, context: Context, slot: Slot, missing: PeerSet) {
        let Some(claim) = self.owned.get(&slot).map(|ownership| ownership.claim().clone()) else { return };
        let now = self.now;
        let Some(loading) = self.loads.get_mut(&context) else { return };
        if loading.asked > 0 && now < loading.asked + ASK_AGAIN {
            return;
        }
        loading.asked = now;
        let (number, range) = (loading.number, loading.range.clone());
        self.out.push(NodeOutput::Note(Note::Moment));
        for peer in missing.iter() {
            let index = usize::from(peer.number());
            let Some(to) = self.outgoing.get(&index).map(|out| out.member.clone()) else { continue };
            let message = Message::Stage { number, to, slot, claim: claim.clone(), range: range.clone() };
            self.out.push(NodeOutput::Message { to: index, message });
        }
    }

    /// Stages a load that an owner requests.
    pub(super) fn stage(&mut self, from: Index, number: u64, slot: Slot, claim: &Claim, range: Range) {
        let history = &self.disk.now.histories[range.context];
        let fits = (history.size(), history.root()) == (range.after, range.after_root);
        if self.record(slot).check_replicate(claim).is_err()
            || !fits
            || self.is_damaged(range.context)
            || !self.can_write()
        {
            return;
        }
        self.arrived.insert(range.context, range);
        self.out.push(NodeOutput::Message { to: from, message: Message::Staged { number } });
    }

    pub(super) fn staged(&mut self, from: Index, number: u64) {
        let of = self.loads.iter_mut().find(|(_, loading)| loading.number == number);
        let Some((context, loading)) = of else { return };
        let context = *context;
        loading.staged_at.insert(peer_of(from));
        self.out.push(NodeOutput::Note(Note::Moment));
        self.spread(context);
    }

    /// Installs a load and notifies the replicas.
    fn install(&mut self, waits: ClientRequest, slot: Slot, range: &Range, is_staged: bool) {
        let Range { context, after, ref entries, .. } = *range;
        let by = self.led_epoch(slot);
        for entry in entries.iter() {
            self.out.push(NodeOutput::Note(Note::Created { context, entry: *entry, by }));
        }
        self.put_in_place(context, entries);
        let to = after + entries.len() as u64;
        let item = PendingPart::of_load(waits, context, to);
        let begun = CommitContext { context, after, is_load: true, is_staged };
        self.committed(vec![(slot, item)], &[begun], Vec::new());
        self.out.push(NodeOutput::Note(Note::Moment));
    }

    /// Writes everything that a load brings in one write.
    pub(super) fn put_in_place(&mut self, context: Context, entries: &[Entry]) {
        let before = self.disk.now.histories[context].extent();
        for entry in entries {
            self.ids[context].insert(entry.id, entry.sequence);
        }
        self.disk.write(Write::Load(context, entries.to_vec()));
        self.arrived.remove(&context);
        self.changed(context, before);
    }

    /// Acknowledges a load that is committed.
    pub(super) fn loaded(&mut self, (client, request): ClientRequest, context: Context, size: u64) {
        self.out.push(NodeOutput::Respond { client, request, response: Response::Loaded { size } });
        let Some(id) = self.disk.now.histories[context].0.get(size as usize - 1).map(|entry| entry.id) else {
            return;
        };
        let ownership = self.owned.get(&self.config.contexts.slot(context));
        let (in_epoch, needed) =
            ownership.map_or((None, 1), |ownership| (Some(ownership.epoch()), ownership.write_quorum()));
        let (sequence, is_stable) = (size, true);
        self.out.push(NodeOutput::Note(Note::Acknowledged {
            context,
            sequence,
            id,
            in_epoch,
            is_stable,
            needed,
        }));
    }

    /// Cancels a load, of which nothing is installed anywhere.
    fn end_load(&mut self, context: Context) {
        if let Some(loading) = self.loads.remove(&context) {
            self.give_up_load(&loading);
        }
    }

    fn give_up_load(&mut self, loading: &Loading) {
        let (client, request) = loading.waits;
        self.out.push(NodeOutput::Respond { client, request, response: Response::Unknown });
    }

    fn led_epoch(&self, slot: Slot) -> Epoch {
        self.owned.get(&slot).map_or(Epoch::default(), super::lane::SlotOwnership::epoch)
    }

    /// Returns which part of a context must be installed as a whole, as far as this node knows; forgets it once it is
    /// committed.
    fn together(&mut self, context: Context) -> Option<Span> {
        let (after, to) = *self.disk.now.loaded.get(&context)?;
        let is_left = to > self.disk.now.histories[context].size();
        let is_stable = self.visible_size(context).is_some_and(|shown| shown >= to);
        if is_left || is_stable {
            self.disk.write(Write::Stable(context));
            return None;
        }
        Some((after, to)).filter(|_| self.config.broken != DisabledRule::LoadsInParts)
    }

    /// Responds to a fetch of a context.
    pub(super) fn fetched(
        &mut self,
        context: Context,
        after: u64,
        to: u64,
        is_whole: bool,
    ) -> CatchUpResponse {
        let span = self.together(context);
        let (to, together) = match span {
            Some(_) if is_whole => (to, span),
            None if is_whole => (to, None),
            Some((first, _)) if after < first => (to.min(first).min(after + FETCHED), None),
            Some((first, last)) if after < last && first < to => (to.max(last), span),
            _ => (to.min(after + FETCHED), None),
        };
        CatchUpResponse::Fetched(self.range(context, after, to), together)
    }
}

impl World {
    /// Checks that a history contains each load as a whole or not at all, wherever it is visible or owned.
    pub(super) fn is_whole(&self, what: &str, index: Index, context: Context, size: u64) -> Checked {
        // With availability first, or after most disks of a slot are lost, the cluster continues with whatever one
        // disk held.
        if !self.invariants.is_strict || self.changed.contains(&context) {
            return Ok(());
        }
        let loader = self.clients.iter().find_map(|client| match client {
            Client::Loader(loader) => Some(loader),
            _ => None,
        });
        if loader.is_some_and(|loader| !loader.is_whole(context, size)) {
            return Err(format!(
                "node {index}: {what} of context {context} is a part of a load: {size} entries"
            ));
        }
        Ok(())
    }
}
