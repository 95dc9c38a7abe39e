//! Tracks the commits of one lane that wait for replication: an owner's wait for acknowledgements of replicas, a
//! replica's wait for the owner's commit index.
//!
//! The lane adds commits, the syncer and the peers' streams report what is durable where, and whichever thread
//! completes a commit acknowledges it. Each lane has one lock, held briefly. Acknowledging under the lock keeps
//! commits in order.

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

/// The outbox of the cluster layer, once it is attached.
pub(crate) type OutboxCell = OnceLock<Arc<dyn Outbox>>;

/// The commits of one lane that wait for replication.
#[derive(Debug, Default)]
pub(crate) struct LaneReplication {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the newest commit of this node's own.
    newest_commit: u64,
    pending: PendingCommits<WrittenCommit, QuorumWaiter>,
    owned: HashMap<Slot, SlotOwnership, RandomState>,
    uncommitted: UncommittedWrites<Vec<WrittenContext>>,
    /// For each slot that is accepted and not visible yet: the epoch, and the number in the owner's stream at which
    /// it was accepted.
    accepted_at: HashMap<Slot, (Epoch, u64), RandomState>,
}

/// A slot that this node owns or is about to own.
#[derive(Debug)]
struct SlotOwnership {
    claim: Claim,
    stream_peers: PeerSet,
    is_serving: bool,
    is_stopping: bool,
    /// A higher claim was promised: the slot is never served in this claim again.
    is_fenced: bool,
}

impl LaneReplication {
    /// Returns the number of the newest commit.
    pub(crate) fn number(&self) -> u64 {
        self.state.lock().newest_commit
    }

    /// Adds a peer to a slot's stream. Returns the commit number after which the peer receives everything.
    pub(crate) fn add_stream_peer(&self, slot: Slot, claim: &Claim, peer: Peer) -> u64 {
        let mut state = self.state.lock();
        let number = state.newest_commit;
        let ownership = state.owned.entry(slot).or_insert_with(|| SlotOwnership::new(claim.clone()));
        if ownership.claim != *claim {
            // Pending commits were appended in an earlier epoch and appends are stopped: they belong to this claim
            // from now on.
            ownership.claim = claim.clone();
            (ownership.is_serving, ownership.is_fenced) = (false, false);
        }
        ownership.stream_peers.insert(peer);
        number
    }

    /// Starts taking appends to the slot. Returns whether the slot becomes visible to readers with this.
    pub(crate) fn begin_serving(
        &self,
        shared: &Shared,
        slot: Slot,
        claim: &Claim,
        needed: usize,
        members: usize,
    ) -> bool {
        let mut state = self.state.lock();
        let ownership = state.owned.entry(slot).or_insert_with(|| SlotOwnership::new(claim.clone()));
        if ownership.claim != *claim {
            ownership.claim = claim.clone();
            ownership.is_fenced = false;
        }
        if ownership.is_fenced {
            // A higher claim was promised; the step-down command is on its way.
            return false;
        }
        (ownership.is_serving, ownership.is_stopping) = (true, false);
        state.pending.begin_ownership(slot, needed, members);
        state.accepted_at.remove(&slot);
        // What this node held when enough members accepted it is committed.
        for written_context in state.uncommitted.take_slot(slot) {
            publish(shared, written_context);
        }
        let is_new = shared.visibility.publish(slot);
        state.notify_replicas(shared, slot);
        is_new
    }

    /// Counts the acknowledgements of a peer from now on, because it is in sync.
    pub(crate) fn add_in_sync(&self, shared: &Shared, slot: Slot, claim: &Claim, peer: Peer) {
        let mut state = self.state.lock();
        if state.owned.get(&slot).is_none_or(|ownership| ownership.claim != *claim) {
            return;
        }
        let committed = state.pending.add_in_sync(slot, peer);
        state.acknowledge_committed(shared, committed);
        state.notify_replicas(shared, slot);
    }

    /// Stops sending a slot to a peer that is no longer a member.
    pub(crate) fn remove_peer(&self, slot: Slot, claim: &Claim, peer: Peer) {
        if let Some(ownership) =
            self.state.lock().owned.get_mut(&slot).filter(|ownership| ownership.claim == *claim)
        {
            ownership.stream_peers.remove(peer);
        }
    }

    /// Stops taking appends to the slot. Notifies the outbox once no commit of it is pending.
    pub(crate) fn stop_appends(&self, shared: &Shared, slot: Slot, claim: &Claim) {
        let mut state = self.state.lock();
        let Some(ownership) = state.owned.get_mut(&slot).filter(|ownership| ownership.claim == *claim) else {
            return;
        };
        (ownership.is_serving, ownership.is_stopping) = (false, true);
        state.notify_stopped(shared, slot);
    }

    /// Stops appends for good, because another node's higher claim was promised. Earlier appends are part of the
    /// history that the promise covers, and may still be acknowledged.
    pub(crate) fn fence(&self, slot: Slot, claim: &Claim) {
        if let Some(ownership) = self.state.lock().owned.get_mut(&slot)
            && ownership.claim < *claim
        {
            (ownership.is_serving, ownership.is_fenced) = (false, true);
        }
    }

    /// Ends the ownership of the slot: fails pending appends, so that their callers retry.
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

    /// Stops counting and sending to a peer, because its stream broke.
    pub(crate) fn peer_disconnected(&self, peer: Peer) {
        let mut state = self.state.lock();
        state.pending.peer_disconnected(peer);
        state.owned.values_mut().for_each(|ownership| ownership.stream_peers.remove(peer));
    }

    /// Returns the epoch in which appends to a slot are written, and the peers that receive them.
    pub(crate) fn serving_epoch(&self, slot: Slot) -> Result<(Epoch, PeerSet), StoreError> {
        match self.state.lock().owned.get(&slot) {
            Some(ownership) if ownership.is_serving => Ok((ownership.claim.epoch, ownership.stream_peers)),
            Some(ownership) if ownership.is_stopping => Err(StoreError::Moving),
            _ => Err(StoreError::NotOwner { slot }),
        }
    }

    /// Returns the claim in which this node owns a slot, and the peers on the slot's stream.
    pub(crate) fn ownership(&self, slot: Slot) -> Option<(Claim, PeerSet)> {
        self.state.lock().owned.get(&slot).map(|ownership| (ownership.claim.clone(), ownership.stream_peers))
    }

    /// Returns whether a peer's acknowledgements for a slot count.
    pub(crate) fn is_in_sync(&self, slot: Slot, peer: Peer) -> bool {
        self.state.lock().pending.is_in_sync(slot, peer)
    }

    /// Returns the write quorum of a slot, this node included, and the peers whose acknowledgements count.
    pub(crate) fn quorum_and_in_sync(&self, slot: Slot) -> (usize, PeerSet) {
        self.state.lock().pending.quorum_and_in_sync(slot)
    }

    /// Numbers a commit of this node's own, keeps the parts that wait for acknowledgements, and returns the number.
    pub(crate) fn record_own_commit(&self, shared: &Shared, written: Vec<(Slot, WrittenCommit)>) -> u64 {
        let mut state = self.state.lock();
        if written.iter().any(|(_, written)| written.has_entries()) {
            state.newest_commit += 1;
        }
        let number = state.newest_commit;
        for (slot, mut part) in written {
            let waiters = part.take_quorum_waiters();
            if !state.owned.contains_key(&slot) {
                for (_, answer) in waiters {
                    answer.fail(&StoreError::NotAcknowledged);
                }
                let written_context = part.fail(&StoreError::NotAcknowledged);
                state.uncommitted.push(slot, Epoch::default(), 0, written_context);
                continue;
            }
            if part.has_entries() {
                state.pending.push(number, slot, part);
            } else {
                // Repeated appends write nothing: they wait for the commits before them.
                let committed = state.pending.push_barrier(slot, part);
                state.acknowledge_committed(shared, committed.into_iter().collect());
            }
            for (needed, answer) in waiters {
                state.pending.push_waiter(slot, needed, answer);
            }
        }
        // What a repeated append waits for may be committed already.
        state.answer_waiters();
        number
    }

    /// Withholds another owner's commit from readers until it is committed. A hidden slot needs no withholding: it
    /// becomes visible as a whole once everything accepted is committed.
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

    /// Records that this node's disk holds everything up to a number.
    pub(crate) fn advance_durable_here(&self, shared: &Shared, number: u64) {
        let mut state = self.state.lock();
        let committed = state.pending.advance_durable_here(number);
        state.acknowledge_committed(shared, committed);
    }

    /// Records that a peer's disk holds everything up to a number. Returns `Err` with the newest number if there is
    /// no such commit.
    pub(crate) fn advance_durable_at(&self, shared: &Shared, peer: Peer, number: u64) -> Result<(), u64> {
        let mut state = self.state.lock();
        if number > state.newest_commit {
            return Err(state.newest_commit);
        }
        let committed = state.pending.advance_durable_at(peer, number);
        state.acknowledge_committed(shared, committed);
        Ok(())
    }

    /// Records that this replica accepted a slot at a number in the owner's stream: it publishes the slot once that
    /// number is committed.
    pub(crate) fn record_accepted(&self, shared: &Shared, slot: Slot, epoch: Epoch, number: u64) {
        let mut state = self.state.lock();
        for written_context in state.uncommitted.take_slot(slot) {
            state.keep_uncommitted(shared, slot, epoch, number, written_context);
        }
        shared.visibility.withhold(slot);
        state.accepted_at.insert(slot, (epoch, number));
    }

    /// Hides a slot whose content differs from the owner's, until this replica is in sync again.
    pub(crate) fn hide_diverged(&self, shared: &Shared, slot: Slot) {
        let mut state = self.state.lock();
        state.accepted_at.remove(&slot);
        shared.visibility.hide(slot);
        for written_context in state.uncommitted.take_slot(slot) {
            unpin(shared, written_context);
        }
    }

    /// Applies the owner's commit indexes. Returns the slots that become visible to readers with them.
    pub(crate) fn advance_commit_index(&self, shared: &Shared, slots: &[CommitIndex]) -> Vec<Slot> {
        let mut published = Vec::new();
        let mut state = self.state.lock();
        for CommitIndex { slot, epoch, number } in slots {
            for written_context in state.uncommitted.take_committed(*slot, *epoch, *number) {
                publish(shared, written_context);
            }
            if state.accepted_at.get(slot).is_some_and(|(of, at)| of == epoch && at <= number) {
                state.accepted_at.remove(slot);
                if shared.visibility.publish(*slot) {
                    published.push(*slot);
                }
            }
        }
        published
    }

    /// Answers waiters whose deadline passed and forgets those that are gone. Their entries remain stored and may still
    /// be committed.
    pub(crate) fn expire(&self, now: Instant) {
        let mut over = Vec::new();
        let mut state = self.state.lock();
        state.pending.for_each_mut(|written| over.append(&mut written.take_expired(now)));
        let answers = state.pending.take_waiters_if(|answer| answer.is_expired(now));
        drop(state);
        over.into_iter().for_each(CommitWaiting::expire);
        answers.into_iter().for_each(QuorumWaiter::expire);
    }

    /// Forgets everything pending after the database was reopened, because nobody knows which of it is on disk.
    /// Returns the slots that this node owned.
    pub(crate) fn on_reopened(&self, error: &StoreError) -> Vec<Slot> {
        let slots = self.on_write_failed(error);
        let mut state = self.state.lock();
        state.uncommitted = UncommittedWrites::default();
        state.accepted_at.clear();
        slots
    }

    /// Fails everything pending and ends all ownership after a failed write or sync. Replicas may have stored what
    /// was sent, so appending something else in the same epoch would fork the history. Returns the slots that this
    /// node owned.
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
    /// Withholds commits from readers until the owner commits them. If the slot is hidden it unpins them instead,
    /// because the slot's history may have been replaced already.
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

    /// Acknowledges commits that reached their quorum, and notifies the peers.
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
            if let Some(ownership) =
                self.owned.get(&slot).filter(|ownership| !ownership.stream_peers.is_empty())
            {
                let number = if is_waiting { number } else { self.newest_commit };
                notices.push((
                    ownership.stream_peers,
                    CommitIndex { slot, epoch: ownership.claim.epoch, number },
                ));
            }
            self.notify_stopped(shared, slot);
        }
        notify_peers(shared, &notices);
    }

    /// Answers waiters that asked for a quorum other than the configured one.
    fn answer_waiters(&mut self) {
        for (copies, answer) in self.pending.take_ready_waiters() {
            answer.succeed(copies);
        }
    }

    /// Sends a slot's commit index to its peers, if no commit of it is pending.
    fn notify_replicas(&mut self, shared: &Shared, slot: Slot) {
        if self.pending.has_pending(slot) {
            // The pending commits will notify them.
            return;
        }
        if let Some(ownership) =
            self.owned.get(&slot).filter(|ownership| ownership.is_serving || ownership.is_stopping)
        {
            let up_to = CommitIndex { slot, epoch: ownership.claim.epoch, number: self.newest_commit };
            notify_peers(shared, &[(ownership.stream_peers, up_to)]);
        }
    }

    fn notify_stopped(&self, shared: &Shared, slot: Slot) {
        if let Some(ownership) = self.owned.get(&slot)
            && ownership.is_stopping
            && !self.pending.has_pending(slot)
            && let Some(outbox) = shared.outbox.get()
        {
            outbox.stopped(slot, ownership.claim.clone());
        }
    }
}

/// Sends each peer the commit indexes that concern it.
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
