//! Loads at their owner and its replicas, as in `ledger_store::write::load` and
//! `ledger_store::replicate::incoming_load`. A load that fits a commit travels with it. The members stage a larger
//! one first. Every node installs it as a whole or not at all.

use std::{collections::BTreeMap, rc::Rc};

use ledger_core::{
    Size,
    loads::{LoadSpan, LoadSpanState, StagingCoordinator, StagingDecision, StagingProgress, StagingSettings},
    ownership::Claim,
    replication::{Peer, PeerSet},
    slot::Slot,
};

use super::{
    broken::DisabledRule,
    counts::Counted,
    disk::Write,
    history::{Context, Entry, History},
    lane::{Answers, ClientRequest, CommitContext, part_of},
    message::{Index, Message, Range, Response},
    node::{Node, peer_of},
    node_output::{NodeOutput, Note},
};

/// After so many milliseconds without an answer a request to stage a load counts as failed.
const ANSWER_WITHIN: u64 = 400;
/// As in a real node, but quicker.
const STAGING: StagingSettings =
    StagingSettings { retry_pause: 100, max_failures: 8, stuck_after: 3000, timeout: 15_000 };

/// A load that the members are staging.
#[derive(Debug)]
pub struct Loading {
    waits: ClientRequest,
    number: u64,
    range: Range,
    coordinator: StagingCoordinator,
    /// The members that were asked and have not answered, and since when.
    asked: BTreeMap<Peer, u64>,
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
        let epoch = self.serving_epoch(slot).filter(|_| !self.is_damaged(context) && self.can_write());
        let Some(epoch) = epoch else {
            let response = self.not_owner(context);
            return self.out.push(NodeOutput::Respond { client, request, response });
        };
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
        let coordinator = StagingCoordinator::new(STAGING, epoch, self.now);
        let loading = Loading { waits, number, range, coordinator, asked: BTreeMap::new() };
        if let Some(before) = self.loads.insert(context, loading) {
            self.give_up_load(&before);
        }
        self.spread(context);
    }

    /// Handles a load that is there completely: acknowledges it once it is committed.
    fn is_there(&mut self, waits: ClientRequest, slot: Slot, context: Context, size: u64) {
        self.out.push(NodeOutput::Note(Note::Counted(Counted::LoadedAgain, 1)));
        if self.config.broken == DisabledRule::LoadsUnsettled {
            return self.loaded(waits, context, size);
        }
        self.written(vec![part_of(slot, Answers::of_load(waits, context, size))], &[]);
    }

    /// Continues all loads that members are staging.
    pub(super) fn spread_all(&mut self) {
        for context in self.loads.keys().copied().collect::<Vec<_>>() {
            self.spread(context);
        }
    }

    /// Has the in-sync members stage a load, and installs it once they have.
    fn spread(&mut self, context: Context) {
        let slot = self.config.contexts.slot(context);
        let (write_quorum, in_sync) = self.commits.quorum_and_in_sync(slot);
        let serving = self.serving_epoch(slot);
        let now = self.now;
        let Some(loading) = self.loads.get_mut(&context) else { return };
        let late: Vec<Peer> =
            loading.asked.iter().filter(|(_, at)| **at + ANSWER_WITHIN < now).map(|(of, _)| *of).collect();
        for peer in late {
            loading.asked.remove(&peer);
            loading.coordinator.on_progress(now, peer, StagingProgress::Failed);
        }
        match loading.coordinator.step(now, serving, write_quorum, in_sync) {
            StagingDecision::Request(peers) => self.ask_to_stage(context, slot, peers),
            StagingDecision::NotOwner | StagingDecision::TimedOut => self.end_load(context),
            StagingDecision::Install { stale_peers, .. } => self.install_staged(context, slot, stale_peers),
        }
    }

    fn install_staged(&mut self, context: Context, slot: Slot, stale_peers: PeerSet) {
        let Some(loading) = self.loads.remove(&context) else { return };
        let history = &self.disk.now.histories[context];
        let is_same = (history.size(), history.root()) == (loading.range.after, loading.range.after_root);
        if !is_same || self.is_damaged(context) || !self.can_write() {
            return self.give_up_load(&loading);
        }
        for peer in stale_peers.iter() {
            // Restart its stream, so that it catches up.
            self.close(usize::from(peer.number()));
        }
        self.out.push(NodeOutput::Note(Note::Counted(Counted::LoadStaged, 1)));
        self.install(loading.waits, slot, &loading.range, true);
    }

    fn ask_to_stage(&mut self, context: Context, slot: Slot, peers: PeerSet) {
        let Some((claim, _)) = self.commits.ownership(slot) else { return };
        let claim = claim.clone();
        let now = self.now;
        for peer in peers.iter() {
            let Some(loading) = self.loads.get_mut(&context) else { return };
            loading.asked.insert(peer, now);
            let (number, range) = (loading.number, loading.range.clone());
            let index = usize::from(peer.number());
            self.out.push(NodeOutput::Note(Note::Moment));
            let Some(to) = self.outgoing.get(&index).map(|out| out.member.clone()) else { continue };
            let message = Message::Stage { number, to, slot, claim: claim.clone(), range };
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
        let (context, peer) = (*context, peer_of(from));
        loading.asked.remove(&peer);
        loading.coordinator.on_progress(self.now, peer, StagingProgress::Staged);
        self.out.push(NodeOutput::Note(Note::Moment));
        self.spread(context);
    }

    /// Installs a load and notifies the replicas.
    fn install(&mut self, waits: ClientRequest, slot: Slot, range: &Range, is_staged: bool) {
        let Range { context, after, ref entries, .. } = *range;
        let by = self.serving_epoch(slot).unwrap_or_default();
        for entry in entries.iter() {
            self.out.push(NodeOutput::Note(Note::Created { context, entry: *entry, by }));
        }
        self.pin(context);
        self.put_in_place(context, entries);
        let to = after + entries.len() as u64;
        let part = part_of(slot, Answers::of_load(waits, context, to));
        let begun = CommitContext { context, after, is_load: true, is_staged };
        self.written(vec![part], &[begun]);
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
        let (in_epoch, needed) = self.epoch_and_quorum(context);
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

    /// Returns which part of a context must be installed as a whole, as far as this node knows; forgets it once it is
    /// committed.
    pub(super) fn together(&mut self, context: Context) -> Option<LoadSpan> {
        let span = *self.disk.now.loaded.get(&context)?;
        let here = Size(self.disk.now.histories[context].size());
        if span.state(here, self.visible_size(context).map(Size)) != LoadSpanState::Uncommitted {
            self.disk.write(Write::Stable(context));
            return None;
        }
        Some(span).filter(|_| self.config.broken != DisabledRule::LoadsInParts)
    }
}
