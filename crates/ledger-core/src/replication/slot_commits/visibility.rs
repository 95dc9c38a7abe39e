//! What this node shows readers of a slot.
//!
//! ```text
//! Hidden ── accepted ──▶ Withheld ── commit index reaches what was accepted ──▶ Visible
//!    ▲  └──────────────── begin_serving ──────────────────────────────────────▶  │
//!    └──────────────────── another history is here than the owner's ─────────────┘
//! ```

use super::{CommitIndex, Effect, SlotCommits, Visibility};
use crate::{Epoch, slot::Slot};

impl<W, A, Q> SlotCommits<W, A, Q> {
    /// Withholds what another owner's commit wrote until that owner commits it. A hidden slot needs no withholding: it becomes
    /// visible as a whole once everything accepted is committed.
    pub fn record_replicated(
        &mut self,
        slot: Slot,
        epoch: Epoch,
        number: u64,
        write: W,
        effects: &mut Vec<Effect<W, A, Q>>,
    ) {
        self.withhold(slot, epoch, number, write, effects);
    }

    /// Records that this replica accepted a slot at a number in the owner's stream: what it holds of the slot is the owner's
    /// history there. It shows the slot once that number is committed.
    ///
    /// If it owned the slot it steps down. What waited here is part of the accepted history, or was never acknowledged.
    pub fn record_accepted(
        &mut self,
        slot: Slot,
        epoch: Epoch,
        number: u64,
        effects: &mut Vec<Effect<W, A, Q>>,
    ) {
        if self.owned(slot).is_some() {
            self.step_down(slot, effects);
        }
        for write in self.uncommitted.take_slot(slot) {
            self.withhold(slot, epoch, number, write, effects);
        }
        let state = self.slots.entry(slot).or_default();
        state.accepted_at = Some((epoch, number));
        if state.visibility == Visibility::Hidden {
            state.visibility = Visibility::Withheld;
            effects.push(Effect::WithholdSlot(slot));
        }
    }

    /// Hides a slot whose content differs from the owner's, until this replica is in sync again.
    pub fn hide_diverged(&mut self, slot: Slot, effects: &mut Vec<Effect<W, A, Q>>) {
        let state = self.slots.entry(slot).or_default();
        state.accepted_at = None;
        if std::mem::replace(&mut state.visibility, Visibility::Hidden) != Visibility::Hidden {
            effects.push(Effect::HideSlot(slot));
        }
        // Only now: a reader that saw the slot before must not see what is unpinned.
        effects.extend(self.uncommitted.take_slot(slot).into_iter().map(Effect::Unpin));
    }

    /// Applies commit indexes that owners sent.
    pub fn advance_commit_index(&mut self, indexes: &[CommitIndex], effects: &mut Vec<Effect<W, A, Q>>) {
        for CommitIndex { slot, epoch, number } in indexes {
            let committed = self.uncommitted.take_committed(*slot, *epoch, *number);
            effects.extend(committed.into_iter().map(Effect::Publish));
            let Some(state) = self.slots.get_mut(slot) else { continue };
            if state.accepted_at.is_some_and(|(of, at)| of == *epoch && at <= *number) {
                state.accepted_at = None;
                if std::mem::replace(&mut state.visibility, Visibility::Visible) != Visibility::Visible {
                    effects.push(Effect::ShowSlot(*slot));
                }
            }
        }
    }

    /// Forgets everything, after the database was opened anew without its last writes: nobody knows which of what waited is
    /// on disk. All slots are hidden. Returns the slots that this node owned, in order.
    pub fn on_reopened(&mut self, effects: &mut Vec<Effect<W, A, Q>>) -> Vec<Slot> {
        let owned = self.on_write_failed(effects);
        self.uncommitted = super::UncommittedWrites::default();
        let shown = self.slots.iter().filter(|(_, state)| state.visibility != Visibility::Hidden);
        let mut shown: Vec<Slot> = shown.map(|(slot, _)| *slot).collect();
        shown.sort_unstable();
        self.slots.clear();
        effects.extend(shown.into_iter().map(Effect::HideSlot));
        owned
    }

    /// Withholds a write from readers until the owner of an epoch commits a number. If the slot is hidden it unpins the write
    /// instead, because the slot's history may be replaced.
    pub(super) fn withhold(
        &mut self,
        slot: Slot,
        epoch: Epoch,
        number: u64,
        write: W,
        effects: &mut Vec<Effect<W, A, Q>>,
    ) {
        if self.visibility(slot) == Visibility::Hidden {
            effects.push(Effect::Unpin(write));
        } else {
            self.uncommitted.push(slot, epoch, number, write);
        }
    }
}
