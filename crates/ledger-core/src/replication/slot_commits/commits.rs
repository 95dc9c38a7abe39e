//! An owner's commits, from their number to their acknowledgement.

use super::{Effect, PendingPart, SlotCommits};
use crate::{
    Epoch,
    replication::{Committed, Peer, WriteQuorum},
    slot::Slot,
};

/// One slot's part of a commit that this node made as owner.
#[derive(Debug)]
pub struct CommitPart<W, A, Q> {
    /// The slot.
    pub slot: Slot,
    /// What the commit wrote to the slot; `None`: nothing, it only waits for the commits before it, as a repeated append does.
    pub write: Option<W>,
    /// Answers to those who wait for the configured write quorum.
    pub answers: A,
    /// The writers who wait for another quorum.
    pub waiters: Vec<(WriteQuorum, Q)>,
}

impl<W, A, Q> SlotCommits<W, A, Q> {
    /// Numbers a commit of this node's own, if it wrote anything, and keeps its parts until they have their copies. Returns
    /// the number of the newest commit.
    ///
    /// A part without a write waits for the slot's commits before it.
    pub fn record_own_commit(
        &mut self,
        parts: Vec<CommitPart<W, A, Q>>,
        effects: &mut Vec<Effect<W, A, Q>>,
    ) -> u64 {
        if parts.iter().any(|part| part.write.is_some()) {
            self.newest_commit += 1;
        }
        let number = self.newest_commit;
        for CommitPart { slot, write, answers, waiters } in parts {
            let part = PendingPart { write, answers };
            if self.owned(slot).is_none() {
                // This node lost the slot while the lane wrote the commit.
                effects.extend(waiters.into_iter().map(|(_, waiter)| Effect::FailWaiter(waiter)));
                self.fail_part(slot, part, effects);
                continue;
            }
            if part.write.is_some() {
                self.pending.push(number, slot, part);
            } else {
                let committed = self.pending.push_barrier(slot, part);
                self.acknowledge(committed.into_iter().collect(), effects);
            }
            for (quorum, waiter) in waiters {
                self.pending.push_waiter(slot, quorum, waiter);
            }
        }
        // What a repeated append waits for may have its copies already.
        self.acknowledge_waiters(effects);
        number
    }

    /// Records that this node's disk holds everything up to a number.
    pub fn advance_durable_here(&mut self, number: u64, effects: &mut Vec<Effect<W, A, Q>>) {
        debug_assert!(number <= self.newest_commit, "only commits that exist get durable");
        let committed = self.pending.advance_durable_here(number);
        self.acknowledge(committed, effects);
    }

    /// Records that a peer's disk holds everything that this node sent it up to a number.
    ///
    /// # Errors
    ///
    /// The number of the newest commit, if `number` is higher: this node never sent such a commit.
    pub fn advance_durable_at(
        &mut self,
        peer: Peer,
        number: u64,
        effects: &mut Vec<Effect<W, A, Q>>,
    ) -> Result<(), u64> {
        if number > self.newest_commit {
            return Err(self.newest_commit);
        }
        let committed = self.pending.advance_durable_at(peer, number);
        self.acknowledge(committed, effects);
        Ok(())
    }

    /// Calls `visit` with what each commit that waits wrote and with its answers, so that the shell can answer those whose
    /// deadline passed. The commit stays: it may still be committed.
    pub fn for_each_pending(&mut self, mut visit: impl FnMut(Option<&mut W>, &mut A)) {
        self.pending.for_each_mut(|part| visit(part.write.as_mut(), &mut part.answers));
    }

    /// Takes the waiters for which `is_over` returns true, such as those whose deadline passed.
    pub fn take_waiters_if(&mut self, is_over: impl Fn(&Q) -> bool) -> Vec<Q> {
        self.pending.take_waiters_if(is_over)
    }

    /// Acknowledges commits that have their copies, and sends the peers the slots' commit indexes.
    pub(super) fn acknowledge(
        &mut self,
        committed: Vec<Committed<PendingPart<W, A>>>,
        effects: &mut Vec<Effect<W, A, Q>>,
    ) {
        let mut slots: Vec<(Slot, u64)> = Vec::new();
        for Committed { slot, number, copies, item: PendingPart { write, answers } } in committed {
            effects.push(Effect::Acknowledge { write, answers, copies });
            // The commits of a slot come one after the other.
            match slots.last_mut() {
                Some((of, newest)) if *of == slot => *newest = number,
                _ => slots.push((slot, number)),
            }
        }
        for (slot, number) in slots {
            // If nothing of the slot waits, all commits so far are committed as far as they concern it.
            let number = if self.pending.has_pending(slot) { number } else { self.newest_commit };
            self.send_commit_index(slot, number, effects);
            self.report_stopped(slot, effects);
        }
        self.acknowledge_waiters(effects);
    }

    fn acknowledge_waiters(&mut self, effects: &mut Vec<Effect<W, A, Q>>) {
        let ready = self.pending.take_ready_waiters();
        effects
            .extend(ready.into_iter().map(|(copies, waiter)| Effect::AcknowledgeWaiter { waiter, copies }));
    }

    /// Fails those who wait for a part. What it wrote is in no owner's stream.
    pub(super) fn fail_part(
        &mut self,
        slot: Slot,
        part: PendingPart<W, A>,
        effects: &mut Vec<Effect<W, A, Q>>,
    ) {
        effects.push(Effect::Fail(part.answers));
        if let Some(write) = part.write {
            self.withhold(slot, Epoch::default(), 0, write, effects);
        }
    }
}
