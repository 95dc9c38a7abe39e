//! Loads at their owner and its replicas, as in `ledger_store::write::load` and
//! `ledger_store::replicate::incoming_load`. A load that fits a commit travels with it. The members stage a larger
//! one first. Every node installs it as a whole or not at all.

use ledger_core::loads::{
    LoadSpanState, StagingCoordinator, StagingDecision, StagingProgress, StagingSettings,
};

use super::{
    lane::{WAIT, Waiter, Written},
    prelude::*,
    questions::Asker,
};

/// As in a real node, but quicker.
const STAGING: StagingSettings =
    StagingSettings { retry_pause: 100, max_failures: 8, stuck_after: 3000, timeout: 15_000 };

/// A load that the members are staging.
#[derive(Debug)]
pub struct Loading {
    client: ClientRequest,
    number: u64,
    pub(super) range: Range,
    coordinator: StagingCoordinator,
}

impl Node {
    /// Handles a client's load request.
    pub(super) fn load(
        &mut self,
        client: ClientRequest,
        context: Context,
        snapshot: &Rc<History>,
        is_large: bool,
    ) {
        let epoch = self.serving_epoch(self.slot(context));
        let Some(epoch) = epoch.filter(|_| !self.is_damaged(context) && self.can_write()) else {
            return self.respond(client, self.not_owner(context));
        };
        let (here, end) = (self.history(context), snapshot.head());
        let both = here.size().min(snapshot.size());
        if here.root_at(both) != snapshot.root_at(both) {
            return self.respond(client, Response::Differs);
        }
        if here.size() >= snapshot.size() {
            return self.is_there(client, context, here.size());
        }
        let entries = snapshot.0[here.size() as usize..].into();
        let range = Range { context, after: here.head(), entries, end };
        if !is_large {
            return self.install(client, &range, false);
        }
        let (number, coordinator) = (self.number(), StagingCoordinator::new(STAGING, epoch, self.now));
        let before = self.loads.insert(context, Loading { client, number, range, coordinator });
        if let Some(before) = before {
            self.respond(before.client, Response::Unknown);
        }
        self.spread(context);
    }

    /// Handles a load that is there completely: acknowledges it once it is committed.
    fn is_there(&mut self, client: ClientRequest, context: Context, sequence: u64) {
        self.count(Counted::LoadedAgain, 1);
        let waiter = self.waiter(client, context, sequence);
        if self.is_broken(DisabledRule::LoadsUnsettled) {
            return self.acknowledge(&waiter, true);
        }
        self.load_written(waiter, &[]);
    }

    fn waiter(&self, client: ClientRequest, context: Context, sequence: u64) -> Waiter {
        let id = self.history(context).0[sequence as usize - 1].id;
        Waiter { client, context, sequence, id, is_load: true, until: self.now + WAIT }
    }

    /// Continues all loads that members are staging.
    pub(super) fn spread_all(&mut self) {
        for context in self.loads.keys().copied().collect::<Vec<_>>() {
            self.spread(context);
        }
    }

    /// Has the in-sync members stage a load, and installs it once they have.
    fn spread(&mut self, context: Context) {
        let (slot, now) = (self.slot(context), self.now);
        let (write_quorum, in_sync) = self.commits.quorum_and_in_sync(slot);
        let serving = self.serving_epoch(slot);
        let Some(loading) = self.loads.get_mut(&context) else { return };
        match loading.coordinator.step(now, serving, write_quorum, in_sync) {
            StagingDecision::Request(peers) => {
                let (number, range) = (loading.number, loading.range.clone());
                let Some((claim, _)) = self.commits.ownership(slot) else { return };
                let request = PeerRequest::Stage(slot, claim.clone(), range);
                for peer in peers.iter() {
                    self.note(Note::Moment);
                    if let Some(to) = self.outgoing.get(&usize::from(peer.number())).map(|out| &out.member) {
                        self.ask(Asker::Load(context, number), to.clone(), request.clone());
                    }
                }
            }
            StagingDecision::NotOwner | StagingDecision::TimedOut => self.end_load(context),
            StagingDecision::Install { stale_peers, .. } => {
                if self.history(context).head() != self.loads[&context].range.after
                    || self.is_damaged(context)
                    || !self.can_write()
                {
                    return self.end_load(context);
                }
                // Restart their streams, so that they catch up.
                for peer in stale_peers.iter() {
                    self.close(usize::from(peer.number()));
                }
                self.count(Counted::LoadStaged, 1);
                if let Some(loading) = self.loads.remove(&context) {
                    self.install(loading.client, &loading.range, true);
                }
            }
        }
    }

    /// Stages a load that an owner requests.
    pub(super) fn stage(&mut self, slot: Slot, claim: &Claim, range: Range) -> PeerResponse {
        let context = range.context;
        if self.record(slot).check_replicate(claim).is_err()
            || self.history(context).head() != range.after
            || self.is_damaged(context)
            || !self.can_write()
        {
            return PeerResponse::Refused;
        }
        self.arrived.insert(context, range);
        PeerResponse::Done
    }

    /// Takes whether a member staged a load.
    pub(super) fn load_staged(&mut self, context: Context, number: u64, by: &Member, is_staged: bool) {
        let loading = self.loads.get_mut(&context).filter(|loading| loading.number == number);
        let Some(loading) = loading else { return };
        let progress = if is_staged { StagingProgress::Staged } else { StagingProgress::Failed };
        loading.coordinator.on_progress(self.now, peer_of(index_of(&by.node)), progress);
        self.note(Note::Moment);
        self.spread(context);
    }

    /// Installs a load and notifies the replicas.
    fn install(&mut self, client: ClientRequest, range: &Range, is_staged: bool) {
        let context = range.context;
        let by = self.serving_epoch(self.slot(context)).unwrap_or_default();
        for entry in range.entries.iter() {
            self.note(Note::Created { context, entry: *entry, by });
        }
        self.pin(context);
        self.put_in_place(context, &range.entries);
        let waiter = self.waiter(client, context, range.end.size.0);
        let after = range.after.size.0;
        self.load_written(waiter, &[Written { context, after, is_load: true, is_staged }]);
        self.note(Note::Moment);
    }

    /// Writes everything that a load brings in one write.
    pub(super) fn put_in_place(&mut self, context: Context, entries: &[Entry]) {
        self.write(context, Write::Load(context, entries.to_vec()));
        self.arrived.remove(&context);
    }

    /// Cancels a load, of which nothing is installed anywhere.
    pub(super) fn end_load(&mut self, context: Context) {
        if let Some(loading) = self.loads.remove(&context) {
            self.respond(loading.client, Response::Unknown);
        }
    }

    /// Returns which part of a context must be installed as a whole, as far as this node knows; forgets it once it is
    /// committed.
    pub(super) fn together(&mut self, context: Context) -> Option<LoadSpan> {
        let span = *self.disk.now.loaded.get(&context)?;
        let (here, shown) = (self.history(context).head().size, self.visible_size(context).map(Size));
        if span.state(here, shown) != LoadSpanState::Uncommitted {
            self.disk.write(Write::Stable(context));
            return None;
        }
        Some(span).filter(|_| !self.is_broken(DisabledRule::LoadsInParts))
    }
}
