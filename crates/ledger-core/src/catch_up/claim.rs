//! The nodes from which a claimant fetches, one after the other, until it holds the longest of the best histories.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
};

use crate::{node::Member, ownership::Claim, slot::Slot};

use super::{Mode, SlotOutcome};

/// The members from which a claimant fetches, because they have the best history of its slots. What it does not learn from one
/// of them may be the longest history there is, so a slot is complete only when a comparison with each of them found nothing.
#[derive(Debug)]
pub struct ClaimSources {
    rest: VecDeque<Member>,
    /// Whether this node has one of the best histories itself.
    is_source: bool,
    is_first: bool,
    /// The slots that the claimant compared with all sources so far, or is comparing.
    slots: BTreeMap<Slot, Claim>,
}

/// One run of catching up that a claimant makes: with which source, and whose history counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRun {
    /// The source.
    pub source: Member,
    /// Whose history counts.
    pub mode: Mode,
    /// The slots.
    pub slots: BTreeMap<Slot, Claim>,
}

impl ClaimSources {
    /// Begins, with the members that have the best history of these slots. `me` may be one of them.
    pub fn new(me: &Member, best: Vec<Member>, slots: BTreeMap<Slot, Claim>) -> Self {
        let is_source = best.contains(me);
        let rest = best.into_iter().filter(|member| member != me).collect();
        Self { rest, is_source, is_first: true, slots }
    }

    /// Returns the run with the next source; `None` if there is none, or no slot is left.
    pub fn next_run(&mut self) -> Option<ClaimRun> {
        if self.slots.is_empty() {
            return None;
        }
        let source = self.rest.pop_front()?;
        let is_first = mem::replace(&mut self.is_first, false);
        // A claimant without the best history has nothing to add to the first source's.
        let mode = if is_first && !self.is_source { Mode::AdoptRemote } else { Mode::KeepLongest };
        Some(ClaimRun { source, mode, slots: self.slots.clone() })
    }

    /// A run ended for a slot. Returns whether the slot is complete, once that is known.
    pub fn on_done(&mut self, slot: Slot, outcome: &SlotOutcome) -> Option<(Claim, bool)> {
        let is_in_sync = *outcome == SlotOutcome::InSync;
        if is_in_sync && !self.rest.is_empty() {
            return None;
        }
        self.slots.remove(&slot).map(|claim| (claim, is_in_sync))
    }

    /// Returns the slots that are complete because there was no source to ask.
    pub fn take_complete(&mut self) -> BTreeMap<Slot, Claim> {
        if self.rest.is_empty() && self.is_first { mem::take(&mut self.slots) } else { BTreeMap::new() }
    }
}
