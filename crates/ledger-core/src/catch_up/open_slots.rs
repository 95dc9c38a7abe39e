//! The slots that a run is not done with, and what the present round did to each.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ContextId, ownership::Claim, slot::Slot};

use super::{Effect, Failure, Mode, SlotOutcome};

/// If a round fetches fewer entries than this, a follower of the owner needs no further one: the owner's stream brings the rest,
/// and its sync offer detects any difference.
const FEW_ENTRIES: u64 = 4_096;

/// The slots that the run is not done with.
#[derive(Debug)]
pub(super) struct OpenSlots(BTreeMap<Slot, OpenSlot>);

#[derive(Debug)]
struct OpenSlot {
    claim: Claim,
    /// The run fetched something of the slot in this round.
    is_fetched: bool,
    /// Something changed during the comparison, or the run forked it off or restored it.
    is_changed: bool,
    /// A side cannot read something of the slot.
    is_unreadable: bool,
}

impl OpenSlots {
    pub(super) fn new(claims: BTreeMap<Slot, Claim>) -> Self {
        let open = |claim| OpenSlot { claim, is_fetched: false, is_changed: false, is_unreadable: false };
        Self(claims.into_iter().map(|(slot, claim)| (slot, open(claim))).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn slots(&self) -> BTreeSet<Slot> {
        self.0.keys().copied().collect()
    }

    pub(super) fn claim(&self, slot: Slot) -> Option<&Claim> {
        self.0.get(&slot).map(|open| &open.claim)
    }

    pub(super) fn claim_of(&self, context: &ContextId) -> Option<&Claim> {
        self.claim(Slot::of(context))
    }

    pub(super) fn set_fetched(&mut self, slot: Slot) {
        if let Some(open) = self.0.get_mut(&slot) {
            open.is_fetched = true;
        }
    }

    pub(super) fn set_changed(&mut self, slot: Slot) {
        if let Some(open) = self.0.get_mut(&slot) {
            open.is_changed = true;
        }
    }

    pub(super) fn set_all_changed(&mut self) {
        self.0.values_mut().for_each(|open| open.is_changed = true);
    }

    pub(super) fn set_unreadable(&mut self, slot: Slot) {
        if let Some(open) = self.0.get_mut(&slot) {
            open.is_unreadable = true;
        }
    }

    /// Ends a slot, unless the run is done with it already.
    pub(super) fn end(&mut self, slot: Slot, outcome: SlotOutcome, effects: &mut Vec<Effect>) {
        if self.0.remove(&slot).is_some() {
            effects.push(Effect::Done(slot, outcome));
        }
    }

    pub(super) fn end_all(&mut self, failure: &Failure, effects: &mut Vec<Effect>) {
        for slot in std::mem::take(&mut self.0).into_keys() {
            effects.push(Effect::Done(slot, SlotOutcome::Failed(failure.clone())));
        }
    }

    /// Ends the round, in which the run fetched `fetched` entries. The run is done with the slots that the round proved in
    /// sync.
    pub(super) fn end_round(&mut self, mode: Mode, fetched: u64, effects: &mut Vec<Effect>) {
        self.0.retain(|slot, open| {
            let outcome = if open.is_unreadable {
                SlotOutcome::Unreadable
            } else if open.is_changed {
                (open.is_fetched, open.is_changed) = (false, false);
                return true;
            } else if !open.is_fetched {
                SlotOutcome::InSync
            } else if mode == Mode::FollowOwner && fetched < FEW_ENTRIES {
                SlotOutcome::NearlyInSync
            } else {
                open.is_fetched = false;
                return true;
            };
            effects.push(Effect::Done(*slot, outcome));
            false
        });
    }
}
