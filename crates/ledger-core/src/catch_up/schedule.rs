//! The slots of one owner that this node brings in sync: which come next, and when those that failed are tried again.
//!
//! | a slot is | until |
//! | --- | --- |
//! | waiting | it is in the next group |
//! | running | the run of its group ends |
//! | asked for | the owner was asked for a sync offer: then it is done here, and comes again if the offer finds a difference |
//! | delayed, because something of it cannot be read, or it failed | its pause is over |

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    jitter::Jitter,
    ownership::{Claim, slot_manager::Millis},
    slot::Slot,
};

use super::{Failure, SlotOutcome};

/// Most slots that one run brings in sync: few enough that the first ones do not wait long for the others.
const GROUP_SLOTS: usize = 32;
/// How long to wait for more slots of the same owner.
const BATCHING_WINDOW: Millis = 20;
/// The bound of the pause after a failure, at first and at most. Many replicas may have failed with the same owner, so jitter spreads
/// the pauses.
const FIRST_PAUSE: Millis = 500;
const MAX_PAUSE: Millis = 10_000;

/// What the shell does next for an owner's slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextRun {
    /// Bring these slots in sync now.
    Run(BTreeMap<Slot, Claim>),
    /// Ask again at this time.
    At(Millis),
    /// Wait for the next event.
    Nothing,
}

/// The schedule of one owner's slots. One group is under way at a time.
#[derive(Debug, Default)]
pub struct SyncSchedule {
    waiting: BTreeMap<Slot, Claim>,
    /// The slots of the run, or those for which this node is asking the owner for offers.
    running: BTreeMap<Slot, Claim>,
    delayed: BTreeMap<Slot, Claim>,
    /// The moment from which waiting slots may run.
    ready_at: Millis,
    /// The moment from which delayed slots may run.
    due: Millis,
    /// The last slot of the previous group: a group that keeps failing must not starve the others.
    last: Option<Slot>,
    failures: u32,
}

impl SyncSchedule {
    /// Adds slots. Newer claims of the owner replace older ones.
    pub fn add(&mut self, now: Millis, slots: BTreeMap<Slot, Claim>) {
        if self.waiting.is_empty() && self.running.is_empty() {
            self.ready_at = self.ready_at.max(now + BATCHING_WINDOW);
        }
        self.delayed.retain(|slot, _| !slots.contains_key(slot));
        for (slot, claim) in slots {
            if self.waiting.get(&slot).is_none_or(|known| *known < claim) {
                self.waiting.insert(slot, claim);
            }
        }
    }

    /// Returns what to do next. Slots that are to run count as running from now on.
    pub fn next(&mut self, now: Millis) -> NextRun {
        if !self.running.is_empty() {
            return NextRun::Nothing;
        }
        if !self.delayed.is_empty() && now >= self.due {
            for (slot, claim) in std::mem::take(&mut self.delayed) {
                self.waiting.entry(slot).or_insert(claim);
            }
        }
        match (self.waiting.is_empty(), self.delayed.is_empty()) {
            (true, true) => NextRun::Nothing,
            (true, false) => NextRun::At(self.due),
            (false, _) if now < self.ready_at => NextRun::At(self.ready_at),
            (false, _) => {
                self.running = self.next_group();
                self.last = self.running.last_key_value().map(|(slot, _)| *slot);
                self.waiting.retain(|slot, _| !self.running.contains_key(slot));
                NextRun::Run(self.running.clone())
            }
        }
    }

    /// Returns the next group of waiting slots after the last one, starting over after the last slot.
    fn next_group(&self) -> BTreeMap<Slot, Claim> {
        let after = self.waiting.iter().filter(|(slot, _)| self.last.is_none_or(|last| **slot > last));
        let before = self.waiting.iter().filter(|(slot, _)| self.last.is_some_and(|last| **slot <= last));
        let owned = |(slot, claim): (&Slot, &Claim)| (*slot, claim.clone());
        let group: BTreeMap<_, _> = after.take(GROUP_SLOTS).map(owned).collect();
        if group.is_empty() { before.take(GROUP_SLOTS).map(owned).collect() } else { group }
    }

    /// Ends the run: takes how it ended for each of its slots, and which slots are damaged here. Returns the slots for which to
    /// ask the owner for sync offers; then [`SyncSchedule::on_offers_requested`] follows.
    pub fn on_run_ended(
        &mut self,
        now: Millis,
        outcomes: &BTreeMap<Slot, SlotOutcome>,
        damaged: &BTreeSet<Slot>,
        jitter: Jitter,
    ) -> BTreeMap<Slot, Claim> {
        let mut failed = BTreeMap::new();
        self.running.retain(|slot, claim| match outcomes.get(slot) {
            Some(SlotOutcome::InSync | SlotOutcome::NearlyInSync) if !damaged.contains(slot) => true,
            // The slot has another owner by now, who offers it itself. This node refuses the previous owner's offer, and thereby
            // reports the higher claim.
            Some(SlotOutcome::Refused(_)) => false,
            _ => {
                failed.insert(*slot, claim.clone());
                false
            }
        });
        let is_source_lost = |outcome: &SlotOutcome| {
            matches!(outcome, SlotOutcome::Failed(Failure::Source(_) | Failure::Store(_)))
        };
        if !failed.is_empty() {
            self.delay(now, failed, jitter);
            if outcomes.values().any(is_source_lost) {
                // The next group would fail as well.
                self.ready_at = self.due;
            }
        }
        self.running.clone()
    }

    /// The shell asked the owner for the sync offers (`is_asked`), or could not.
    pub fn on_offers_requested(&mut self, now: Millis, is_asked: bool, jitter: Jitter) {
        let asked = std::mem::take(&mut self.running);
        if !is_asked && !asked.is_empty() {
            self.delay(now, asked, jitter);
        } else if self.delayed.is_empty() {
            self.failures = 0;
        }
    }

    fn delay(&mut self, now: Millis, slots: BTreeMap<Slot, Claim>, jitter: Jitter) {
        let bound = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(MAX_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.due = now + jitter.spread(bound);
        for (slot, claim) in slots {
            if !self.waiting.contains_key(&slot) {
                self.delayed.insert(slot, claim);
            }
        }
    }

    /// Forgets all slots. Without the owner's stream nothing can be in sync, and the next stream begins by offering all slots.
    pub fn on_owner_lost(&mut self) {
        *self = Self::default();
    }

    /// Returns how many slots are not done.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.running.len() + self.delayed.len()
    }

    /// Returns whether all slots are done.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
