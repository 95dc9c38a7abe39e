//! One lane's [`SlotCommits`] behind a lock, and what they want done.
//!
//! The lane adds commits, the syncer and the peers' streams report what is durable where, and whichever thread
//! completes a commit acknowledges it. Each lane has one lock, held briefly. Acknowledging under the lock keeps
//! commits in order.

use std::{cell::LazyCell, time::Instant};

use ledger_core::{
    Epoch,
    ownership::{Claim, SlotRecord, slot_manager::SyncOfferOutcome},
    replication::{
        Peer, PeerSet, SlotCommits,
        slot_commits::{Effect, NotServing},
    },
    slot::Slot,
};
use parking_lot::Mutex;

use crate::{
    StoreError,
    replicate::replica::{CommitIndex, Outgoing},
    write::publish::{Publisher, publish, unpin},
    write::waiters::{Answers, QuorumWaiter, SlotPart, Waiter},
    write::written_context::{WriteOrigin, WrittenContext},
};

type Commits = SlotCommits<Vec<WrittenContext>, Answers, QuorumWaiter>;
type Effects = Vec<Effect<Vec<WrittenContext>, Answers, QuorumWaiter>>;

/// Most effects that the list keeps room for between two steps.
const MAX_SPARE_EFFECTS: usize = 1024;

/// The commits of one lane that wait for replication.
#[derive(Debug, Default)]
pub(crate) struct LaneReplication {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    commits: Commits,
    // Empty between two steps; kept for their memory.
    effects: Effects,
    notices: Vec<(PeerSet, CommitIndex)>,
}

impl LaneReplication {
    /// Returns the number of the newest commit.
    pub(crate) fn number(&self) -> u64 {
        self.state.lock().commits.newest_commit()
    }

    /// Adds a peer to a slot's stream. Returns the commit number after which the peer receives everything.
    pub(crate) fn add_stream_peer(&self, slot: Slot, claim: &Claim, peer: Peer) -> u64 {
        self.state.lock().commits.add_stream_peer(slot, claim, peer)
    }

    /// Starts taking appends to the slot. Returns the slot if it becomes visible to readers with this.
    pub(crate) fn begin_serving(
        &self,
        publisher: &Publisher,
        slot: Slot,
        claim: &Claim,
        write_quorum: usize,
        record: &SlotRecord,
    ) -> Vec<Slot> {
        self.step_showing(publisher, |commits, effects| {
            commits.begin_serving(slot, claim, write_quorum, record, effects);
        })
    }

    /// Counts the acknowledgements of a peer from now on, because it is in sync.
    pub(crate) fn add_in_sync(&self, publisher: &Publisher, slot: Slot, claim: &Claim, peer: Peer) {
        self.step(publisher, |commits, effects| commits.add_in_sync(slot, claim, peer, effects));
    }

    /// Records what a peer answered to an offer. Returns the answer for the slot manager.
    pub(crate) fn record_offer_answer(
        &self,
        slot: Slot,
        claim: &Claim,
        peer: Peer,
        outcome: SyncOfferOutcome,
    ) -> SyncOfferOutcome {
        self.state.lock().commits.record_offer_answer(slot, claim, peer, outcome)
    }

    /// Stops sending a slot to a peer that is no longer a member, or refused a part of it.
    pub(crate) fn remove_peer(&self, slot: Slot, claim: &Claim, peer: Peer) {
        self.state.lock().commits.remove_peer(slot, claim, peer);
    }

    /// Stops taking appends to the slot. Notifies the outbox once no commit of it is pending.
    pub(crate) fn stop_appends(&self, publisher: &Publisher, slot: Slot, claim: &Claim) {
        self.step(publisher, |commits, effects| commits.stop_appends(slot, claim, effects));
    }

    /// Stops appends for good, because another node's higher claim was promised.
    pub(crate) fn fence(&self, slot: Slot, claim: &Claim) {
        self.state.lock().commits.fence(slot, claim);
    }

    /// Ends the ownership of the slot: fails pending appends, so that their callers retry.
    pub(crate) fn step_down(&self, publisher: &Publisher, slot: Slot) {
        self.step(publisher, |commits, effects| commits.step_down(slot, effects));
    }

    /// Stops counting and sending to a peer, because its stream broke.
    pub(crate) fn peer_disconnected(&self, peer: Peer) {
        self.state.lock().commits.peer_disconnected(peer);
    }

    /// Returns the epoch in which appends to a slot are written, and the peers that receive them.
    pub(crate) fn serving_epoch(&self, slot: Slot) -> Result<(Epoch, PeerSet), StoreError> {
        self.state.lock().commits.serving_epoch(slot).map_err(|why| match why {
            NotServing::Stopping => StoreError::Moving,
            NotServing::NotOwner => StoreError::NotOwner { slot },
        })
    }

    /// Returns the claim in which this node owns a slot, and the peers on the slot's stream.
    pub(crate) fn ownership(&self, slot: Slot) -> Option<(Claim, PeerSet)> {
        self.state.lock().commits.ownership(slot).map(|(claim, peers)| (claim.clone(), peers))
    }

    /// Returns whether a peer's acknowledgements for a slot count.
    pub(crate) fn is_in_sync(&self, slot: Slot, peer: Peer) -> bool {
        self.state.lock().commits.is_in_sync(slot, peer)
    }

    /// Returns the write quorum of a slot, this node included, and the peers whose acknowledgements count.
    pub(crate) fn quorum_and_in_sync(&self, slot: Slot) -> (usize, PeerSet) {
        self.state.lock().commits.quorum_and_in_sync(slot)
    }

    /// Numbers a commit of this node's own, keeps the parts that wait for acknowledgements, and returns the number.
    pub(crate) fn record_own_commit(&self, publisher: &Publisher, parts: Vec<SlotPart>) -> u64 {
        self.step(publisher, |commits, effects| commits.record_own_commit(parts, effects))
    }

    /// Withholds what this node wrote as replica from readers until it is committed.
    pub(crate) fn record_replicated(&self, publisher: &Publisher, contexts: Vec<WrittenContext>) {
        self.step(publisher, |commits, effects| {
            for written_context in contexts {
                if let WriteOrigin::Replicated(epoch, number) = written_context.origin {
                    let slot = written_context.rows.slot;
                    commits.record_replicated(slot, epoch, number, vec![written_context], effects);
                }
            }
        });
    }

    /// Records that this node's disk holds everything up to a number.
    pub(crate) fn advance_durable_here(&self, publisher: &Publisher, number: u64) {
        self.step(publisher, |commits, effects| commits.advance_durable_here(number, effects));
    }

    /// Records that a peer's disk holds everything up to a number. Returns `Err` with the newest number if there is
    /// no such commit.
    pub(crate) fn advance_durable_at(
        &self,
        publisher: &Publisher,
        peer: Peer,
        number: u64,
    ) -> Result<(), u64> {
        self.step(publisher, |commits, effects| commits.advance_durable_at(peer, number, effects))
    }

    /// Records that this replica accepted a slot at a number in the owner's stream: it publishes the slot once that
    /// number is committed.
    pub(crate) fn record_accepted(&self, publisher: &Publisher, slot: Slot, epoch: Epoch, number: u64) {
        self.step(publisher, |commits, effects| commits.record_accepted(slot, epoch, number, effects));
    }

    /// Hides a slot whose content differs from the owner's, until this replica is in sync again.
    pub(crate) fn hide_diverged(&self, publisher: &Publisher, slot: Slot) {
        self.step(publisher, |commits, effects| commits.hide_diverged(slot, effects));
    }

    /// Applies the owner's commit indexes. Returns the slots that become visible to readers with them.
    pub(crate) fn advance_commit_index(&self, publisher: &Publisher, slots: &[CommitIndex]) -> Vec<Slot> {
        self.step_showing(publisher, |commits, effects| commits.advance_commit_index(slots, effects))
    }

    /// Answers waiters whose deadline passed and forgets those that are gone. Their entries remain stored and may still
    /// be committed.
    pub(crate) fn expire(&self, now: Instant) {
        let mut over = Vec::new();
        let mut state = self.state.lock();
        state.commits.for_each_pending(|written, answers| {
            let contexts = written.map(Vec::as_mut_slice).unwrap_or_default();
            over.append(&mut answers.take_expired(now, contexts));
        });
        let waiters = state.commits.take_waiters_if(|waiter| waiter.is_expired(now));
        drop(state);
        over.into_iter().for_each(Waiter::expire);
        waiters.into_iter().for_each(QuorumWaiter::expire);
    }

    /// Forgets everything pending after the database was reopened, because nobody knows which of it is on disk.
    /// Returns the slots that this node owned.
    pub(crate) fn on_reopened(&self, publisher: &Publisher, error: &StoreError) -> Vec<Slot> {
        self.carry_out(publisher, error, SlotCommits::on_reopened).0
    }

    /// Fails everything pending and ends all ownership after a failed write or sync. Returns the slots that this node
    /// owned.
    pub(crate) fn on_write_failed(&self, publisher: &Publisher, error: &StoreError) -> Vec<Slot> {
        self.carry_out(publisher, error, SlotCommits::on_write_failed).0
    }

    /// Makes a step that shows readers no slot.
    fn step<T>(&self, publisher: &Publisher, step: impl FnOnce(&mut Commits, &mut Effects) -> T) -> T {
        self.carry_out(publisher, &StoreError::NotAcknowledged, step).0
    }

    /// Makes a step. Returns the slots that become visible to readers with it.
    fn step_showing(
        &self,
        publisher: &Publisher,
        step: impl FnOnce(&mut Commits, &mut Effects),
    ) -> Vec<Slot> {
        self.carry_out(publisher, &StoreError::NotAcknowledged, step).1
    }

    /// Makes a step and carries out its effects under the lock, in order. Whoever is not acknowledged gets the error.
    /// Returns what the step returns, and the slots that become visible to readers with it.
    fn carry_out<T>(
        &self,
        publisher: &Publisher,
        error: &StoreError,
        step: impl FnOnce(&mut Commits, &mut Effects) -> T,
    ) -> (T, Vec<Slot>) {
        // `None` while the database is being opened anew: nothing is pinned in the next one. It is declared before the
        // lock, so that a database that nobody else holds any more is closed without it.
        let database = LazyCell::new(|| publisher.database.if_open());
        let mut state = self.state.lock();
        let State { commits, effects, notices } = &mut *state;
        let result = step(commits, effects);
        let mut shown = Vec::new();
        for effect in effects.drain(..) {
            match effect {
                Effect::Publish(mut contexts) => {
                    if let Some(db) = &*database {
                        publish(db, publisher, &mut contexts);
                    }
                }
                Effect::Unpin(contexts) => {
                    if let Some(db) = &*database {
                        unpin(db, contexts);
                    }
                }
                Effect::Acknowledge { write, answers, copies } => {
                    answers.acknowledge(publisher, write.unwrap_or_default(), copies);
                }
                Effect::AcknowledgeWaiter { waiter, copies } => waiter.succeed(copies),
                Effect::Fail(answers) => answers.fail(error),
                Effect::FailWaiter(waiter) => waiter.fail(error),
                Effect::SendCommitIndex { peers, index } => notices.push((peers, index)),
                Effect::AppendsStopped { slot, claim } => {
                    if let Some(outbox) = publisher.outbox.get() {
                        outbox.stopped(slot, claim);
                    }
                }
                Effect::HideSlot(slot) => publisher.visibility.hide(slot),
                Effect::WithholdSlot(slot) => publisher.visibility.withhold(slot),
                Effect::ShowSlot(slot) => {
                    publisher.visibility.publish(slot);
                    shown.push(slot);
                }
            }
        }
        notify_peers(publisher, notices);
        notices.clear();
        effects.shrink_to(MAX_SPARE_EFFECTS);
        (result, shown)
    }
}

/// Sends each peer the commit indexes that concern it, in one message.
fn notify_peers(publisher: &Publisher, notices: &[(PeerSet, CommitIndex)]) {
    let Some(outbox) = publisher.outbox.get() else { return };
    let mut everybody = PeerSet::default();
    for (peers, _) in notices {
        everybody.extend(*peers);
    }
    for peer in everybody.iter() {
        let of = notices.iter().filter(|(peers, _)| peers.contains(peer)).map(|(_, index)| *index);
        outbox.send(peer, Outgoing::CommitIndex(of.collect()));
    }
}
