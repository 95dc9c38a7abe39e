//! What of a lane's commits waits: for copies if this node owns the slot, for the owner's word if it does not.
//!
//! The lane adds to it, the syncer and the streams of peers say what is durable where, and whoever completes a
//! commit acknowledges it. One lock for each lane, held for moments; acknowledging under it keeps the order.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use foldhash::fast::RandomState;
use ledger_core::{
    Epoch,
    ownership::Claim,
    replication::{Committed, Peer, PeerSet, PendingCommits, UncommittedWrites},
    slot::Slot,
};
use parking_lot::Mutex;

use crate::{
    StoreError,
    replicate::replica::{CommitIndex, Outbox, Outgoing},
    shared::Shared,
    write::commit::{QuorumWaiter, Waiter as CommitWaiting, WrittenCommit, WrittenContext, publish, unpin},
};

/// The way out, once somebody carries.
pub(crate) type OutboxCell = OnceLock<Arc<dyn Outbox>>;

/// What waits of one lane.
#[derive(Debug, Default)]
pub(crate) struct LaneReplication {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The newest commit.
    newest_commit: u64,
    pending: PendingCommits<WrittenCommit, QuorumWaiter>,
    owned: HashMap<Slot, SlotOwnership, RandomState>,
    uncommitted: UncommittedWrites<Vec<WrittenContext>>,
    /// Where in the owner's stream a slot was accepted that is not shown yet.
    accepted_at: HashMap<Slot, (Epoch, u64), RandomState>,
}

/// A slot that this node leads: it owns it or is about to.
#[derive(Debug)]
struct SlotOwnership {
    claim: Claim,
    stream_peers: PeerSet,
    is_serving: bool,
    is_stopping: bool,
    /// A higher claim was promised: it is never served again in this one.
    is_fenced: bool,
}

impl LaneReplication {
    /// The newest commit's number.
    pub(crate) fn number(&self) -> u64 {
        self.state.lock().newest_commit
    }

    /// Puts a peer on a slot's stream; gives the place.
    pub(crate) fn add_stream_peer(&self, slot: Slot, claim: &Claim, peer: Peer) -> u64 {
        let mut state = self.state.lock();
        let number = state.newest_commit;
        let led = state.owned.entry(slot).or_insert_with(|| SlotOwnership::new(claim.clone()));
        if led.claim != *claim {
            // What waits was appended in an epoch of before, and is stopped: it is of this one from now on.
            led.claim = claim.clone();
            (led.is_serving, led.is_fenced) = (false, false);
        }
        led.stream_peers.insert(peer);
        number
    }

    /// The slot takes appends. Whether readers see it for the first time.
    pub(crate) fn begin_serving(
        &self,
        shared: &Shared,
        slot: Slot,
        claim: &Claim,
        needed: usize,
        members: usize,
    ) -> bool {
        let mut state = self.state.lock();
        let led = state.owned.entry(slot).or_insert_with(|| SlotOwnership::new(claim.clone()));
        if led.claim != *claim {
            led.claim = claim.clone();
            led.is_fenced = false;
        }
        if led.is_fenced {
            // It is about to be told that it is no longer the owner.
            return false;
        }
        (led.is_serving, led.is_stopping) = (true, false);
        state.pending.begin_ownership(slot, needed, members);
        state.accepted_at.remove(&slot);
        // What was here when enough members accepted it is stable.
        for written_context in state.uncommitted.take_slot(slot) {
            publish(shared, written_context);
        }
        let is_new = shared.visibility.publish(slot);
        state.notify_replicas(shared, slot);
        is_new
    }

    /// Counts a peer.
    pub(crate) fn add_in_sync(&self, shared: &Shared, slot: Slot, claim: &Claim, peer: Peer) {
        let mut state = self.state.lock();
        if state.owned.get(&slot).is_none_or(|led| led.claim != *claim) {
            return;
        }
        let committed = state.pending.add_in_sync(slot, peer);
        state.acknowledge_committed(shared, committed);
        state.notify_replicas(shared, slot);
    }

    /// A peer is no member any more: it is sent nothing further of the slot.
    pub(crate) fn remove_peer(&self, slot: Slot, claim: &Claim, peer: Peer) {
        if let Some(led) = self.state.lock().owned.get_mut(&slot).filter(|led| led.claim == *claim) {
            led.stream_peers.remove(peer);
        }
    }

    /// The slot takes no more appends. Says so when nothing waits.
    pub(crate) fn stop_appends(&self, shared: &Shared, slot: Slot, claim: &Claim) {
        let mut state = self.state.lock();
        let Some(led) = state.owned.get_mut(&slot).filter(|led| led.claim == *claim) else { return };
        (led.is_serving, led.is_stopping) = (false, true);
        state.notify_stopped(shared, slot);
    }

    /// Somebody else's higher claim was promised: nothing is appended from here on. What was appended before is in the
    /// history that the promise is of, and may still get its copies.
    pub(crate) fn fence(&self, slot: Slot, claim: &Claim) {
        if let Some(led) = self.state.lock().owned.get_mut(&slot)
            && led.claim < *claim
        {
            (led.is_serving, led.is_fenced) = (false, true);
        }
    }

    /// The slot is no longer this node's: those who wait are told to try again.
    pub(crate) fn step_down(&self, shared: &Shared, slot: Slot) {
        let mut state = self.state.lock();
        state.owned.remove(&slot);
        let (ended, unanswered) = state.pending.end_ownership(slot);
        for answer in unanswered {
            answer.fail(&StoreError::NotAcknowledged);
        }
        let epoch = Epoch::default();
        for written in ended {
            state.keep_uncommitted(shared, slot, epoch, 0, written.fail(&StoreError::NotAcknowledged));
        }
    }

    /// A peer's stream is lost.
    pub(crate) fn peer_disconnected(&self, peer: Peer) {
        let mut state = self.state.lock();
        state.pending.peer_disconnected(peer);
        state.owned.values_mut().for_each(|led| led.stream_peers.remove(peer));
    }

    /// The epoch in which appends to a slot are written.
    pub(crate) fn serving_epoch(&self, slot: Slot) -> Result<(Epoch, PeerSet), StoreError> {
        match self.state.lock().owned.get(&slot) {
            Some(led) if led.is_serving => Ok((led.claim.epoch, led.stream_peers)),
            Some(led) if led.is_stopping => Err(StoreError::Moving),
            _ => Err(StoreError::NotOwner { slot }),
        }
    }

    /// Who leads a slot here, and who is on its stream.
    pub(crate) fn ownership(&self, slot: Slot) -> Option<(Claim, PeerSet)> {
        self.state.lock().owned.get(&slot).map(|led| (led.claim.clone(), led.stream_peers))
    }

    /// Whether a peer's copies of a slot count.
    pub(crate) fn is_in_sync(&self, slot: Slot, peer: Peer) -> bool {
        self.state.lock().pending.is_in_sync(slot, peer)
    }

    /// Copies that commits to a slot need, this node's included, and the peers whose copies count.
    pub(crate) fn quorum_and_in_sync(&self, slot: Slot) -> (usize, PeerSet) {
        self.state.lock().pending.quorum_and_in_sync(slot)
    }

    /// Numbers a commit of this node's own, and keeps what of it waits for copies; gives the number.
    pub(crate) fn record_own_commit(&self, shared: &Shared, written: Vec<(Slot, WrittenCommit)>) -> u64 {
        let mut state = self.state.lock();
        if written.iter().any(|(_, written)| written.has_entries()) {
            state.newest_commit += 1;
        }
        let number = state.newest_commit;
        for (slot, mut part) in written {
            let asked = part.take_quorum_waiters();
            if !state.owned.contains_key(&slot) {
                for (_, answer) in asked {
                    answer.fail(&StoreError::NotAcknowledged);
                }
                let written_context = part.fail(&StoreError::NotAcknowledged);
                state.uncommitted.push(slot, Epoch::default(), 0, written_context);
                continue;
            }
            if part.has_entries() {
                state.pending.push(number, slot, part);
            } else {
                // Repetitions: they wait for what is before them.
                let committed = state.pending.push_barrier(slot, part);
                state.acknowledge_committed(shared, committed.into_iter().collect());
            }
            for (needed, answer) in asked {
                state.pending.push_waiter(slot, needed, answer);
            }
        }
        // Repetitions may have their copies already.
        state.answer_waiters();
        number
    }

    /// Keeps what a commit of another owner wrote here until it is stable. Of a slot that nobody reads here nothing
    /// has to be kept: it is shown as a whole once what was accepted is stable.
    pub(crate) fn record_replicated(
        &self,
        shared: &Shared,
        slot: Slot,
        epoch: Epoch,
        number: u64,
        written_context: WrittenContext,
    ) {
        self.state.lock().keep_uncommitted(shared, slot, epoch, number, vec![written_context]);
    }

    /// Everything up to a number is durable here.
    pub(crate) fn advance_durable_here(&self, shared: &Shared, number: u64) {
        let mut state = self.state.lock();
        let committed = state.pending.advance_durable_here(number);
        state.acknowledge_committed(shared, committed);
    }

    /// Everything up to a number is durable at a peer. `Err`: there are not so many.
    pub(crate) fn advance_durable_at(&self, shared: &Shared, peer: Peer, number: u64) -> Result<(), u64> {
        let mut state = self.state.lock();
        if number > state.newest_commit {
            return Err(state.newest_commit);
        }
        let committed = state.pending.advance_durable_at(peer, number);
        state.acknowledge_committed(shared, committed);
        Ok(())
    }

    /// This replica accepted a slot at a place of the owner's stream: it shows it once that is stable.
    pub(crate) fn record_accepted(&self, shared: &Shared, slot: Slot, epoch: Epoch, number: u64) {
        let mut state = self.state.lock();
        for written_context in state.uncommitted.take_slot(slot) {
            state.keep_uncommitted(shared, slot, epoch, number, written_context);
        }
        shared.visibility.withhold(slot);
        state.accepted_at.insert(slot, (epoch, number));
    }

    /// This replica does not hold what the owner holds: nothing of the slot is shown until it does.
    pub(crate) fn hide_diverged(&self, shared: &Shared, slot: Slot) {
        let mut state = self.state.lock();
        state.accepted_at.remove(&slot);
        shared.visibility.hide(slot);
        for written_context in state.uncommitted.take_slot(slot) {
            unpin(shared, written_context);
        }
    }

    /// The owner says what is stable. Gives the slots that readers see for the first time.
    pub(crate) fn advance_commit_index(&self, shared: &Shared, slots: &[CommitIndex]) -> Vec<Slot> {
        let mut shown = Vec::new();
        let mut state = self.state.lock();
        for CommitIndex { slot, epoch, number } in slots {
            for written_context in state.uncommitted.take_committed(*slot, *epoch, *number) {
                publish(shared, written_context);
            }
            if state.accepted_at.get(slot).is_some_and(|(of, at)| of == epoch && at <= number) {
                state.accepted_at.remove(slot);
                if shared.visibility.publish(*slot) {
                    shown.push(*slot);
                }
            }
        }
        shown
    }

    /// Answers those whose time is over, and forgets those who went. What is stored of them stays, and may still get its
    /// copies.
    pub(crate) fn expire(&self, now: Instant) {
        let mut over = Vec::new();
        let mut state = self.state.lock();
        state.pending.for_each_mut(|written| over.append(&mut written.take_expired(now)));
        let answers = state.pending.take_waiters_if(|answer| answer.is_expired(now));
        drop(state);
        over.into_iter().for_each(CommitWaiting::expire);
        answers.into_iter().for_each(QuorumWaiter::expire);
    }

    /// The database was reopened: what was not known to be durable is unknown. Gives the slots that were led.
    pub(crate) fn on_reopened(&self, error: &StoreError) -> Vec<Slot> {
        let slots = self.on_write_failed(error);
        let mut state = self.state.lock();
        state.uncommitted = UncommittedWrites::default();
        state.accepted_at.clear();
        slots
    }

    /// A write or sync failed: nobody can count on what waits, and nothing is led any more, for what was sent of it
    /// may be taken by others in this epoch. Gives the slots that were led.
    pub(crate) fn on_write_failed(&self, error: &StoreError) -> Vec<Slot> {
        let mut state = self.state.lock();
        let slots: Vec<Slot> = state.owned.drain().map(|(slot, _)| slot).collect();
        for slot in &slots {
            let (ended, unanswered) = state.pending.end_ownership(*slot);
            for written in ended {
                drop(written.fail(error));
            }
            for answer in unanswered {
                answer.fail(error);
            }
        }
        slots
    }
}

impl State {
    /// Keeps what is not known to be stable until an owner says that it is: nobody sees it before. Of a slot that is not
    /// shown it is let go, for it may have been left for another's history already.
    fn keep_uncommitted(
        &mut self,
        shared: &Shared,
        slot: Slot,
        epoch: Epoch,
        number: u64,
        written_context: Vec<WrittenContext>,
    ) {
        if shared.visibility.is_withheld(slot) {
            self.uncommitted.push(slot, epoch, number, written_context);
        } else {
            unpin(shared, written_context);
        }
    }

    /// Acknowledges what has its copies, and tells the peers.
    fn acknowledge_committed(&mut self, shared: &Shared, committed: Vec<Committed<WrittenCommit>>) {
        self.answer_waiters();
        if committed.is_empty() {
            return;
        }
        let mut slots: Vec<(Slot, u64)> = Vec::new();
        for Committed { slot, number, copies, item } in committed {
            item.acknowledge(shared, copies);
            match slots.iter_mut().find(|(of, _)| *of == slot) {
                Some((_, newest)) => *newest = number,
                None => slots.push((slot, number)),
            }
        }
        let mut notices: Vec<(PeerSet, CommitIndex)> = Vec::with_capacity(slots.len());
        for (slot, number) in slots {
            let is_waiting = self.pending.has_pending(slot);
            if let Some(led) = self.owned.get(&slot).filter(|led| !led.stream_peers.is_empty()) {
                let number = if is_waiting { number } else { self.newest_commit };
                notices.push((led.stream_peers, CommitIndex { slot, epoch: led.claim.epoch, number }));
            }
            self.notify_stopped(shared, slot);
        }
        notify_peers(shared, &notices);
    }

    /// Answers those who asked for other than the configured number of copies.
    fn answer_waiters(&mut self) {
        for (copies, answer) in self.pending.take_ready_waiters() {
            answer.succeed(copies);
        }
    }

    /// Tells the peers of a slot how much of it is stable, if all of it is.
    fn notify_replicas(&mut self, shared: &Shared, slot: Slot) {
        if self.pending.has_pending(slot) {
            // What waits will tell.
            return;
        }
        if let Some(led) = self.owned.get(&slot).filter(|led| led.is_serving || led.is_stopping) {
            let up_to = CommitIndex { slot, epoch: led.claim.epoch, number: self.newest_commit };
            notify_peers(shared, &[(led.stream_peers, up_to)]);
        }
    }

    fn notify_stopped(&self, shared: &Shared, slot: Slot) {
        if let Some(led) = self.owned.get(&slot)
            && led.is_stopping
            && !self.pending.has_pending(slot)
            && let Some(outbox) = shared.outbox.get()
        {
            outbox.stopped(slot, led.claim.clone());
        }
    }
}

/// Tells each peer of what concerns it.
fn notify_peers(shared: &Shared, notices: &[(PeerSet, CommitIndex)]) {
    let Some(outbox) = shared.outbox.get() else { return };
    let mut everybody = PeerSet::default();
    for (peers, _) in notices {
        everybody.extend(*peers);
    }
    for peer in everybody.iter() {
        let of = notices.iter().filter(|(peers, _)| peers.contains(peer)).map(|(_, up_to)| *up_to);
        outbox.send(peer, Outgoing::CommitIndex(of.collect()));
    }
}

impl SlotOwnership {
    fn new(claim: Claim) -> Self {
        Self {
            claim,
            stream_peers: PeerSet::default(),
            is_serving: false,
            is_stopping: false,
            is_fenced: false,
        }
    }
}
