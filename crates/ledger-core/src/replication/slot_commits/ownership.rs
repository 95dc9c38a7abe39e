//! The slots that this node owns or is about to: in what claim, who receives their commits, and whether they take appends.
//!
//! | phase | appends | entered by |
//! | --- | --- | --- |
//! | offering | refused | the first sync offer in a claim, or a higher claim that was promised to another node |
//! | serving | taken | `begin_serving` |
//! | stopping | refused: they will be taken again, here or elsewhere | `stop_appends` |

use super::{CommitIndex, Effect, Phase, SlotCommits, SlotOwnership, Visibility};
use crate::{
    ownership::{Claim, SlotRecord, slot_manager::SyncOfferOutcome},
    replication::Peer,
    slot::Slot,
};

impl<W, A, Q> SlotCommits<W, A, Q> {
    /// Adds a peer to a slot's stream, with a sync offer in a claim of this node. Returns the commit number after which the
    /// peer receives everything.
    pub fn add_stream_peer(&mut self, slot: Slot, claim: &Claim, peer: Peer) -> u64 {
        self.enter_claim(slot, claim).stream_peers.insert(peer);
        self.newest_commit
    }

    /// Starts to take appends to a slot, which need `write_quorum` copies, this node's included.
    ///
    /// It takes none if the claim was overtaken since this was decided: by then `record`, the slot's record at this node, has
    /// a higher claim, and the node steps down in a moment.
    pub fn begin_serving(
        &mut self,
        slot: Slot,
        claim: &Claim,
        write_quorum: usize,
        record: &SlotRecord,
        effects: &mut Vec<Effect<W, A, Q>>,
    ) {
        if record.check_append(claim).is_err() {
            return;
        }
        let ownership = self.enter_claim(slot, claim);
        if ownership.is_fenced {
            return;
        }
        ownership.phase = Phase::Serving;
        let members = record.placement.as_ref().map_or(1, |placement| placement.members.len());
        let committed = self.pending.begin_ownership(slot, write_quorum, members);
        // What this node held when enough members accepted it is committed.
        effects.extend(self.uncommitted.take_slot(slot).into_iter().map(Effect::Publish));
        let state = self.slots.entry(slot).or_default();
        state.accepted_at = None;
        if std::mem::replace(&mut state.visibility, Visibility::Visible) != Visibility::Visible {
            effects.push(Effect::ShowSlot(slot));
        }
        self.acknowledge(committed, effects);
        self.send_commit_index_if_idle(slot, effects);
    }

    /// Records what a peer answered to an offer, in the order of the peer's answers on its stream. Returns the answer for the slot
    /// manager: an acceptance says nothing if the peer is not sent the slot any more, and then another offer has to be made.
    pub fn record_offer_answer(
        &mut self,
        slot: Slot,
        claim: &Claim,
        peer: Peer,
        outcome: SyncOfferOutcome,
    ) -> SyncOfferOutcome {
        if outcome != SyncOfferOutcome::Accepted {
            return outcome;
        }
        match self.owned_in(slot, claim) {
            Some(ownership) if ownership.stream_peers.contains(peer) => {
                ownership.accepted.insert(peer);
                outcome
            }
            _ => SyncOfferOutcome::Unavailable,
        }
    }

    /// Counts a peer's copies from now on, because it accepted the claim: it is in sync.
    ///
    /// It does not count if its stream broke since, or if it refused a part. What this node sent of other slots on a newer stream
    /// says nothing about this one.
    pub fn add_in_sync(&mut self, slot: Slot, claim: &Claim, peer: Peer, effects: &mut Vec<Effect<W, A, Q>>) {
        let is_accepted = |ownership: &mut SlotOwnership| ownership.accepted.contains(peer);
        if !self.owned_in(slot, claim).is_some_and(is_accepted) {
            return;
        }
        let committed = self.pending.add_in_sync(slot, peer);
        self.acknowledge(committed, effects);
        self.send_commit_index_if_idle(slot, effects);
    }

    /// Stops sending a slot to a peer, and counting it: it is no longer a member, or it refused a part of a commit in this claim. If
    /// it refused one, call this before anything that the peer says next: its acknowledgements hold for its other slots only.
    pub fn remove_peer(&mut self, slot: Slot, claim: &Claim, peer: Peer) {
        if let Some(ownership) = self.owned_in(slot, claim) {
            ownership.remove_peer(peer);
            self.pending.remove_in_sync(slot, peer);
        }
    }

    /// Stops taking appends to a slot. [`Effect::AppendsStopped`] follows once those that it took have their copies.
    pub fn stop_appends(&mut self, slot: Slot, claim: &Claim, effects: &mut Vec<Effect<W, A, Q>>) {
        if let Some(ownership) = self.owned_in(slot, claim) {
            ownership.phase = Phase::Stopping;
            self.report_stopped(slot, effects);
        }
    }

    /// Stops appends for good, because this node promised another, higher claim. The promise covers what writers appended
    /// before, which may still be acknowledged.
    pub fn fence(&mut self, slot: Slot, promised: &Claim) {
        if let Some(ownership) = self.owned_mut(slot)
            && ownership.claim < *promised
        {
            ownership.is_fenced = true;
            if ownership.phase == Phase::Serving {
                ownership.phase = Phase::Offering;
            }
        }
    }

    /// Ends the ownership of a slot. Fails those who wait, so that they try again, and withholds what their commits wrote from
    /// readers until the next owner commits it.
    pub fn step_down(&mut self, slot: Slot, effects: &mut Vec<Effect<W, A, Q>>) {
        if let Some(state) = self.slots.get_mut(&slot) {
            state.ownership = None;
        }
        let (parts, waiters) = self.pending.end_ownership(slot);
        effects.extend(waiters.into_iter().map(Effect::FailWaiter));
        for part in parts {
            self.fail_part(slot, part, effects);
        }
    }

    /// Stops counting a peer and sending to it, because the stream to it broke.
    pub fn peer_disconnected(&mut self, peer: Peer) {
        self.pending.peer_disconnected(peer);
        for ownership in self.slots.values_mut().filter_map(|state| state.ownership.as_mut()) {
            ownership.remove_peer(peer);
        }
    }

    /// Ends the ownership of all slots and fails everything that waits, after a failed write or sync. Replicas may have stored
    /// what this node sent them, so anything else appended in the same epoch would fork the history. Returns the slots that
    /// this node owned, in order.
    ///
    /// Neither publishes nor unpins the writes that waited: nobody knows which of them are on disk.
    pub fn on_write_failed(&mut self, effects: &mut Vec<Effect<W, A, Q>>) -> Vec<Slot> {
        let owned = self.slots.iter_mut().filter_map(|(slot, state)| state.ownership.take().map(|_| *slot));
        let mut owned: Vec<Slot> = owned.collect();
        owned.sort_unstable();
        let (parts, waiters) = self.pending.end_all_ownership();
        effects.extend(parts.into_iter().map(|part| Effect::Fail(part.answers)));
        effects.extend(waiters.into_iter().map(Effect::FailWaiter));
        owned
    }

    /// Reports that a slot has stopped, if it was to and nothing of it waits.
    pub(super) fn report_stopped(&self, slot: Slot, effects: &mut Vec<Effect<W, A, Q>>) {
        if let Some(ownership) = self.owned(slot)
            && ownership.is_stopping()
            && !self.pending.has_pending(slot)
        {
            effects.push(Effect::AppendsStopped { slot, claim: ownership.claim.clone() });
        }
    }

    /// Sends a slot's peers its commit index, if nothing of it waits: otherwise what waits will.
    fn send_commit_index_if_idle(&self, slot: Slot, effects: &mut Vec<Effect<W, A, Q>>) {
        if !self.pending.has_pending(slot)
            && self.owned(slot).is_some_and(|ownership| ownership.phase != Phase::Offering)
        {
            self.send_commit_index(slot, self.newest_commit, effects);
        }
    }

    /// Sends a slot's peers its commit index.
    pub(super) fn send_commit_index(&self, slot: Slot, number: u64, effects: &mut Vec<Effect<W, A, Q>>) {
        if let Some(ownership) = self.owned(slot).filter(|ownership| !ownership.stream_peers.is_empty()) {
            let index = CommitIndex { slot, epoch: ownership.claim.epoch, number };
            effects.push(Effect::SendCommitIndex { peers: ownership.stream_peers, index });
        }
    }

    fn enter_claim(&mut self, slot: Slot, claim: &Claim) -> &mut SlotOwnership {
        let state = self.slots.entry(slot).or_default();
        let ownership = state.ownership.get_or_insert_with(|| SlotOwnership::new(claim.clone()));
        if ownership.enter(claim) {
            // Who is in sync with one claim says nothing about the next.
            self.pending.clear_in_sync(slot);
        }
        ownership
    }

    fn owned_mut(&mut self, slot: Slot) -> Option<&mut SlotOwnership> {
        self.slots.get_mut(&slot)?.ownership.as_mut()
    }

    /// Returns a slot that this node owns, if it does in this claim.
    fn owned_in(&mut self, slot: Slot, claim: &Claim) -> Option<&mut SlotOwnership> {
        self.owned_mut(slot).filter(|ownership| ownership.claim == *claim)
    }
}
