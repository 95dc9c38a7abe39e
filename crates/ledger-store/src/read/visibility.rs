//! Which slots this node shows to readers.
//!
//! | state | readers | commits |
//! | --- | --- | --- |
//! | `HIDDEN` | are refused: the node does not know what of the slot is committed | need no pinning |
//! | `WITHHELD` | are refused until the owner's commit index reaches what was accepted | are pinned |
//! | `VISIBLE` | see what is committed, while the lease lasts | are pinned until committed |
//!
//! The cluster grants the lease: see `ledger_core::ownership::slot_manager`. Each read checks the time, so that a
//! node that was suspended serves nothing outdated when it resumes.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use ledger_core::slot::{SLOTS, Slot};

const HIDDEN: u64 = 0;
const WITHHELD: u64 = 1;
const VISIBLE: u64 = 2;
/// The bits of a state; the bits above them count how often the slot was hidden.
const STATE: u64 = 3;
const ONE_HIDING: u64 = STATE + 1;

/// A lease that never expires, so that reads do not check the time.
const ENDLESS: u64 = u64::MAX;

/// Evidence that a slot was visible at a moment: equal values mean that it was not hidden in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VisibleSince(u64);

/// The visibility of each slot. A standalone node shows all slots.
#[derive(Debug)]
pub(crate) struct SlotVisibility {
    slots: Box<[VisibilityCell]>,
    /// The instant that leases are counted from.
    base: Instant,
}

#[derive(Debug)]
struct VisibilityCell {
    /// The state, with a count of hidings: a reader can tell that the slot was hidden in between.
    state: AtomicU64,
    /// End of the lease, in milliseconds since the base.
    until: AtomicU64,
    /// Whether this node is a member of the slot: the copy of a node that is not does not count.
    is_member: AtomicBool,
}

impl SlotVisibility {
    /// Creates the states: all visible on a standalone node, all hidden on a node of a cluster.
    pub(crate) fn new(is_clustered: bool) -> Self {
        let state = if is_clustered { HIDDEN } else { VISIBLE };
        let of_slot = |_| VisibilityCell {
            state: AtomicU64::new(state),
            until: AtomicU64::new(ENDLESS),
            is_member: AtomicBool::new(true),
        };
        Self { slots: (0..SLOTS).map(of_slot).collect(), base: Instant::now() }
    }

    fn of_slot(&self, slot: Slot) -> &VisibilityCell {
        &self.slots[usize::from(slot.number())]
    }

    fn of(&self, slot: Slot) -> &AtomicU64 {
        &self.of_slot(slot).state
    }

    /// Returns whether readers may see the slot.
    pub(crate) fn is_visible(&self, slot: Slot) -> bool {
        self.visible_since(slot).is_some()
    }

    /// Does what [`Self::is_visible`] does. Readers may get what is read after this call only if a second call then
    /// returns the same value: otherwise the slot was hidden in between, and its commits were not pinned.
    pub(crate) fn visible_since(&self, slot: Slot) -> Option<VisibleSince> {
        let word = self.of(slot).load(Ordering::SeqCst);
        (word & STATE == VISIBLE && self.is_leased(slot)).then_some(VisibleSince(word))
    }

    fn is_leased(&self, slot: Slot) -> bool {
        match self.of_slot(slot).until.load(Ordering::SeqCst) {
            ENDLESS => true,
            until => self.base.elapsed().as_millis() < u128::from(until),
        }
    }

    /// Sets until when readers may see the slot while it is visible; `None` means without end.
    pub(crate) fn set_lease(&self, slot: Slot, until: Option<Instant>) {
        let millis = |until: Instant| {
            let since = until.saturating_duration_since(self.base).as_millis();
            u64::try_from(since).unwrap_or(ENDLESS)
        };
        self.of_slot(slot).until.store(until.map_or(ENDLESS, millis), Ordering::SeqCst);
    }

    /// Returns whether this node is a member of the slot.
    pub(crate) fn is_member(&self, slot: Slot) -> bool {
        self.of_slot(slot).is_member.load(Ordering::Relaxed)
    }

    /// Sets whether this node is a member of the slot.
    pub(crate) fn set_member(&self, slot: Slot, is_kept: bool) {
        self.of_slot(slot).is_member.store(is_kept, Ordering::Relaxed);
    }

    /// Returns whether commits to the slot must be pinned until they are committed.
    pub(crate) fn is_withheld(&self, slot: Slot) -> bool {
        self.of(slot).load(Ordering::SeqCst) & STATE != HIDDEN
    }

    /// Makes the slot visible. Returns whether it was not visible before.
    pub(crate) fn publish(&self, slot: Slot) -> bool {
        self.change(slot, |word| word & !STATE | VISIBLE) & STATE != VISIBLE
    }

    /// Pins commits from now on, if the slot is hidden.
    pub(crate) fn withhold(&self, slot: Slot) {
        self.change(slot, |word| if word & STATE == HIDDEN { word | WITHHELD } else { word });
    }

    /// Hides all slots.
    pub(crate) fn hide_all(&self) {
        (0..SLOTS).filter_map(Slot::new).for_each(|slot| self.hide(slot));
    }

    /// Hides the slot.
    pub(crate) fn hide(&self, slot: Slot) {
        self.change(slot, |word| (word & !STATE).wrapping_add(ONE_HIDING));
    }

    /// Changes the state word and returns the previous one.
    fn change(&self, slot: Slot, to: impl Fn(u64) -> u64) -> u64 {
        let changed = self.of(slot).fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| Some(to(word)));
        changed.unwrap_or_else(|same| same)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slot_that_went_dark_while_it_was_read_is_not_taken_for_one_that_stayed() {
        let readable = SlotVisibility::new(true);
        let slot = Slot::new(5).unwrap();
        assert_eq!(readable.visible_since(slot), None);
        assert!(readable.publish(slot) && !readable.publish(slot));
        let before = readable.visible_since(slot);
        readable.withhold(slot);
        assert!(before.is_some() && readable.visible_since(slot) == before, "it is held back from already");
        readable.hide(slot);
        assert_eq!((readable.visible_since(slot), readable.is_withheld(slot)), (None, false));
        readable.withhold(slot);
        assert_eq!((readable.visible_since(slot), readable.is_withheld(slot)), (None, true));
        assert!(readable.publish(slot));
        assert!(readable.visible_since(slot).is_some() && readable.visible_since(slot) != before);
    }

    #[test]
    fn a_slot_is_shown_while_its_lease_lasts() {
        let readable = SlotVisibility::new(true);
        let slot = Slot::new(5).unwrap();
        readable.publish(slot);
        assert!(readable.is_visible(slot), "without a lease it is shown without end");
        readable.set_lease(slot, Some(Instant::now()));
        assert!(
            !readable.is_visible(slot) && readable.is_withheld(slot),
            "commits are held back all the same"
        );
        readable.set_lease(slot, Some(Instant::now() + Duration::from_hours(1)));
        assert!(readable.is_visible(slot));
        readable.hide(slot);
        assert!(!readable.is_visible(slot), "a lease alone shows nothing");
        readable.publish(slot);
        readable.set_lease(slot, None);
        assert!(readable.is_visible(slot));
    }
}
