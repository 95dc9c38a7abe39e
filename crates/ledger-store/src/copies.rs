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
    replication::{Peer, PeerSet, Stable, Unstable, Waiting},
    slot::Slot,
};
use parking_lot::Mutex;

use crate::{
    StoreError,
    commit::{Answer, Reached, Waiting as CommitWaiting, Written, let_go, show},
    replica::{Outbox, Outgoing, StableUpTo},
    shared::Shared,
};

/// The way out, once somebody carries.
pub(crate) type Carrier = OnceLock<Arc<dyn Outbox>>;

/// What waits of one lane.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The newest commit.
    number: u64,
    waiting: Waiting<Written, Answer>,
    led: HashMap<Slot, Led, RandomState>,
    unstable: Unstable<Vec<Reached>>,
    /// Where in the owner's stream a slot was accepted that is not shown yet.
    accepted: HashMap<Slot, (Epoch, u64), RandomState>,
}

/// A slot that this node leads: it owns it or is about to.
#[derive(Debug)]
struct Led {
    claim: Claim,
    sending: PeerSet,
    is_serving: bool,
    is_stopping: bool,
    /// A higher claim was promised: it is never served again in this one.
    is_fenced: bool,
}

impl Copies {
    /// The newest commit's number.
    pub(crate) fn number(&self) -> u64 {
        self.state.lock().number
    }

    /// Puts a peer on a slot's stream; gives the place.
    pub(crate) fn send_to(&self, slot: Slot, claim: &Claim, peer: Peer) -> u64 {
        let mut state = self.state.lock();
        let number = state.number;
        let led = state.led.entry(slot).or_insert_with(|| Led::new(claim.clone()));
        if led.claim != *claim {
            // What waits was appended in an epoch of before, and is stopped: it is of this one from now on.
            led.claim = claim.clone();
            (led.is_serving, led.is_fenced) = (false, false);
        }
        led.sending.insert(peer);
        number
    }

    /// The slot takes appends. Whether readers see it for the first time.
    pub(crate) fn own(
        &self,
        shared: &Shared,
        slot: Slot,
        claim: &Claim,
        needed: usize,
        members: usize,
    ) -> bool {
        let mut state = self.state.lock();
        let led = state.led.entry(slot).or_insert_with(|| Led::new(claim.clone()));
        if led.claim != *claim {
            led.claim = claim.clone();
            led.is_fenced = false;
        }
        if led.is_fenced {
            // It is about to be told that it is no longer the owner.
            return false;
        }
        (led.is_serving, led.is_stopping) = (true, false);
        state.waiting.lead(slot, needed, members);
        state.accepted.remove(&slot);
        // What was here when enough members accepted it is stable.
        for reached in state.unstable.take(slot) {
            show(shared, reached);
        }
        let is_new = shared.readable.show(slot);
        state.tell_all(shared, slot);
        is_new
    }

    /// Counts a peer.
    pub(crate) fn count(&self, shared: &Shared, slot: Slot, claim: &Claim, peer: Peer) {
        let mut state = self.state.lock();
        if state.led.get(&slot).is_none_or(|led| led.claim != *claim) {
            return;
        }
        let stable = state.waiting.count(slot, peer);
        state.settle(shared, stable);
        state.tell_all(shared, slot);
    }

    /// A peer is no member any more: it is sent nothing further of the slot.
    pub(crate) fn release(&self, slot: Slot, claim: &Claim, peer: Peer) {
        if let Some(led) = self.state.lock().led.get_mut(&slot).filter(|led| led.claim == *claim) {
            led.sending.remove(peer);
        }
    }

    /// The slot takes no more appends. Says so when nothing waits.
    pub(crate) fn stop(&self, shared: &Shared, slot: Slot, claim: &Claim) {
        let mut state = self.state.lock();
        let Some(led) = state.led.get_mut(&slot).filter(|led| led.claim == *claim) else { return };
        (led.is_serving, led.is_stopping) = (false, true);
        state.note_stopped(shared, slot);
    }

    /// Somebody else's higher claim was promised: nothing is appended from here on. What was appended before is in the
    /// history that the promise is of, and may still get its copies.
    pub(crate) fn fence(&self, slot: Slot, claim: &Claim) {
        if let Some(led) = self.state.lock().led.get_mut(&slot)
            && led.claim < *claim
        {
            (led.is_serving, led.is_fenced) = (false, true);
        }
    }

    /// The slot is no longer this node's: those who wait are told to try again.
    pub(crate) fn step_down(&self, shared: &Shared, slot: Slot) {
        let mut state = self.state.lock();
        state.led.remove(&slot);
        let (ended, unanswered) = state.waiting.end(slot);
        for answer in unanswered {
            answer.fail(&StoreError::NotAcknowledged);
        }
        let epoch = Epoch::default();
        for written in ended {
            state.keep(shared, slot, epoch, 0, written.fail(&StoreError::NotAcknowledged));
        }
    }

    /// A peer's stream is lost.
    pub(crate) fn lose(&self, peer: Peer) {
        let mut state = self.state.lock();
        state.waiting.lose(peer);
        state.led.values_mut().for_each(|led| led.sending.remove(peer));
    }

    /// The epoch in which appends to a slot are written.
    pub(crate) fn serves(&self, slot: Slot) -> Result<(Epoch, PeerSet), StoreError> {
        match self.state.lock().led.get(&slot) {
            Some(led) if led.is_serving => Ok((led.claim.epoch, led.sending)),
            Some(led) if led.is_stopping => Err(StoreError::Moving),
            _ => Err(StoreError::NotOwner { slot }),
        }
    }

    /// Who leads a slot here, and who is on its stream.
    pub(crate) fn led(&self, slot: Slot) -> Option<(Claim, PeerSet)> {
        self.state.lock().led.get(&slot).map(|led| (led.claim.clone(), led.sending))
    }

    /// Whether a peer's copies of a slot count.
    pub(crate) fn counts(&self, slot: Slot, peer: Peer) -> bool {
        self.state.lock().waiting.counts(slot, peer)
    }

    /// Copies that commits to a slot need, this node's included, and the peers whose copies count.
    pub(crate) fn needs(&self, slot: Slot) -> (usize, PeerSet) {
        self.state.lock().waiting.needs(slot)
    }

    /// Numbers a commit of this node's own, and keeps what of it waits for copies; gives the number.
    pub(crate) fn wrote(&self, shared: &Shared, written: Vec<(Slot, Written)>) -> u64 {
        let mut state = self.state.lock();
        if written.iter().any(|(_, written)| written.has_entries()) {
            state.number += 1;
        }
        let number = state.number;
        for (slot, mut part) in written {
            let asked = part.take_asked();
            if !state.led.contains_key(&slot) {
                for (_, answer) in asked {
                    answer.fail(&StoreError::NotAcknowledged);
                }
                let reached = part.fail(&StoreError::NotAcknowledged);
                state.unstable.push(slot, Epoch::default(), 0, reached);
                continue;
            }
            if part.has_entries() {
                state.waiting.push(number, slot, part);
            } else {
                // Repetitions: they wait for what is before them.
                let stable = state.waiting.push_behind(slot, part);
                state.settle(shared, stable.into_iter().collect());
            }
            for (needed, answer) in asked {
                state.waiting.ask(slot, needed, answer);
            }
        }
        // Repetitions may have their copies already.
        state.answer();
        number
    }

    /// Keeps what a commit of another owner wrote here until it is stable. Of a slot that nobody reads here nothing
    /// has to be kept: it is shown as a whole once what was accepted is stable.
    pub(crate) fn follow(&self, shared: &Shared, slot: Slot, epoch: Epoch, number: u64, reached: Reached) {
        self.state.lock().keep(shared, slot, epoch, number, vec![reached]);
    }

    /// Everything up to a number is durable here.
    pub(crate) fn synced(&self, shared: &Shared, number: u64) {
        let mut state = self.state.lock();
        let stable = state.waiting.synced(number);
        state.settle(shared, stable);
    }

    /// Everything up to a number is durable at a peer. `Err`: there are not so many.
    pub(crate) fn holds(&self, shared: &Shared, peer: Peer, number: u64) -> Result<(), u64> {
        let mut state = self.state.lock();
        if number > state.number {
            return Err(state.number);
        }
        let stable = state.waiting.holds(peer, number);
        state.settle(shared, stable);
        Ok(())
    }

    /// This replica accepted a slot at a place of the owner's stream: it shows it once that is stable.
    pub(crate) fn accepted(&self, shared: &Shared, slot: Slot, epoch: Epoch, number: u64) {
        let mut state = self.state.lock();
        for reached in state.unstable.take(slot) {
            state.keep(shared, slot, epoch, number, reached);
        }
        shared.readable.hold(slot);
        state.accepted.insert(slot, (epoch, number));
    }

    /// This replica does not hold what the owner holds: nothing of the slot is shown until it does.
    pub(crate) fn differs(&self, shared: &Shared, slot: Slot) {
        let mut state = self.state.lock();
        state.accepted.remove(&slot);
        shared.readable.darken(slot);
        for reached in state.unstable.take(slot) {
            let_go(shared, reached);
        }
    }

    /// The owner says what is stable. Gives the slots that readers see for the first time.
    pub(crate) fn stable(&self, shared: &Shared, slots: &[StableUpTo]) -> Vec<Slot> {
        let mut shown = Vec::new();
        let mut state = self.state.lock();
        for StableUpTo { slot, epoch, number } in slots {
            for reached in state.unstable.stable(*slot, *epoch, *number) {
                show(shared, reached);
            }
            if state.accepted.get(slot).is_some_and(|(of, at)| of == epoch && at <= number) {
                state.accepted.remove(slot);
                if shared.readable.show(*slot) {
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
        state.waiting.visit(|written| over.append(&mut written.take_over(now)));
        let answers = state.waiting.take_asked(|answer| answer.is_over(now));
        drop(state);
        over.into_iter().for_each(CommitWaiting::expire);
        answers.into_iter().for_each(Answer::expire);
    }

    /// The database was opened anew: what was not known to be durable is unknown. Gives the slots that were led.
    pub(crate) fn reset(&self, error: &StoreError) -> Vec<Slot> {
        let slots = self.failed(error);
        let mut state = self.state.lock();
        state.unstable = Unstable::default();
        state.accepted.clear();
        slots
    }

    /// A write or sync failed: nobody can count on what waits, and nothing is led any more, for what was sent of it
    /// may be taken by others in this epoch. Gives the slots that were led.
    pub(crate) fn failed(&self, error: &StoreError) -> Vec<Slot> {
        let mut state = self.state.lock();
        let slots: Vec<Slot> = state.led.drain().map(|(slot, _)| slot).collect();
        for slot in &slots {
            let (ended, unanswered) = state.waiting.end(*slot);
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
    fn keep(&mut self, shared: &Shared, slot: Slot, epoch: Epoch, number: u64, reached: Vec<Reached>) {
        if shared.readable.is_held(slot) {
            self.unstable.push(slot, epoch, number, reached);
        } else {
            let_go(shared, reached);
        }
    }

    /// Acknowledges what has its copies, and tells the peers.
    fn settle(&mut self, shared: &Shared, stable: Vec<Stable<Written>>) {
        self.answer();
        if stable.is_empty() {
            return;
        }
        let mut slots: Vec<(Slot, u64)> = Vec::new();
        for Stable { slot, number, copies, item } in stable {
            item.acknowledge(shared, copies);
            match slots.iter_mut().find(|(of, _)| *of == slot) {
                Some((_, newest)) => *newest = number,
                None => slots.push((slot, number)),
            }
        }
        let mut told: Vec<(PeerSet, StableUpTo)> = Vec::with_capacity(slots.len());
        for (slot, number) in slots {
            let is_waiting = self.waiting.is_waiting(slot);
            if let Some(led) = self.led.get(&slot).filter(|led| !led.sending.is_empty()) {
                let number = if is_waiting { number } else { self.number };
                told.push((led.sending, StableUpTo { slot, epoch: led.claim.epoch, number }));
            }
            self.note_stopped(shared, slot);
        }
        tell(shared, &told);
    }

    /// Answers those who asked for other than the configured number of copies.
    fn answer(&mut self) {
        for (copies, answer) in self.waiting.answered() {
            answer.give(copies);
        }
    }

    /// Tells the peers of a slot how much of it is stable, if all of it is.
    fn tell_all(&mut self, shared: &Shared, slot: Slot) {
        if self.waiting.is_waiting(slot) {
            // What waits will tell.
            return;
        }
        if let Some(led) = self.led.get(&slot).filter(|led| led.is_serving || led.is_stopping) {
            let up_to = StableUpTo { slot, epoch: led.claim.epoch, number: self.number };
            tell(shared, &[(led.sending, up_to)]);
        }
    }

    fn note_stopped(&self, shared: &Shared, slot: Slot) {
        if let Some(led) = self.led.get(&slot)
            && led.is_stopping
            && !self.waiting.is_waiting(slot)
            && let Some(outbox) = shared.carrier.get()
        {
            outbox.stopped(slot, led.claim.clone());
        }
    }
}

/// Tells each peer of what concerns it.
fn tell(shared: &Shared, told: &[(PeerSet, StableUpTo)]) {
    let Some(outbox) = shared.carrier.get() else { return };
    let mut everybody = PeerSet::default();
    for (peers, _) in told {
        everybody.extend(*peers);
    }
    for peer in everybody.iter() {
        let of = told.iter().filter(|(peers, _)| peers.contains(peer)).map(|(_, up_to)| *up_to);
        outbox.send(peer, Outgoing::Stable(of.collect()));
    }
}

impl Led {
    fn new(claim: Claim) -> Self {
        Self { claim, sending: PeerSet::default(), is_serving: false, is_stopping: false, is_fenced: false }
    }
}
