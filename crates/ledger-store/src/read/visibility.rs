//! Which slots this node shows to readers.
//!
//! | state | readers | commits |
//! | --- | --- | --- |
//! | `HIDDEN` | are refused: the node does not know what of the slot is stable | need not be held back |
//! | `WITHHELD` | are refused, until the owner says that what was accepted is stable | are held back |
//! | `VISIBLE` | see what is stable, as long as the lease lasts | are held back until they are |
//!
//! The lease is the cluster's: see `ledger_core::ownership::slot_manager`. Time is looked at when something is read, so that a node
//! that stood still shows nothing old when it goes on.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

use ledger_core::slot::{SLOTS, Slot};

const HIDDEN: u64 = 0;
const WITHHELD: u64 = 1;
const VISIBLE: u64 = 2;
/// The bits of a state; those above count how often the slot went dark.
const STATE: u64 = 3;
const ONE_HIDING: u64 = STATE + 1;

/// A lease that never ends: no time is looked at.
const ENDLESS: u64 = u64::MAX;

/// A slot was shown at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VisibleSince(u64);

/// Which slots this node shows. A standalone node shows all.
#[derive(Debug)]
pub(crate) struct SlotVisibility {
    slots: Box<[VisibilityCell]>,
    /// What leases are counted from.
    base: Instant,
}

#[derive(Debug)]
struct VisibilityCell {
    /// And how often it went dark: who reads sees that it did meanwhile.
    state: AtomicU64,
    /// Milliseconds since the base.
    until: AtomicU64,
    /// This node is a member of the slot: what it has of others does not count.
    is_member: AtomicBool,
}

impl SlotVisibility {
    /// Of a standalone node, or of one in a cluster, which shows nothing yet.
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

    /// Whether readers may see the slot.
    pub(crate) fn is_visible(&self, slot: Slot) -> bool {
        self.visible_since(slot).is_some()
    }

    /// As [`Self::is_visible`]. What is read after this may be given to readers if this says the same once it is read: else
    /// the slot went dark meanwhile, and nothing was held back.
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

    /// Readers may see the slot until then, if it is shown; `None`: without end.
    pub(crate) fn set_lease(&self, slot: Slot, until: Option<Instant>) {
        let millis = |until: Instant| {
            let since = until.saturating_duration_since(self.base).as_millis();
            u64::try_from(since).unwrap_or(ENDLESS)
        };
        self.of_slot(slot).until.store(until.map_or(ENDLESS, millis), Ordering::SeqCst);
    }

    /// Whether this node is a member of the slot.
    pub(crate) fn is_member(&self, slot: Slot) -> bool {
        self.of_slot(slot).is_member.load(Ordering::Relaxed)
    }

    /// This node is a member of the slot, or not.
    pub(crate) fn set_member(&self, slot: Slot, is_kept: bool) {
        self.of_slot(slot).is_member.store(is_kept, Ordering::Relaxed);
    }

    /// Whether commits to the slot have to be held back until they are stable.
    pub(crate) fn is_withheld(&self, slot: Slot) -> bool {
        self.of(slot).load(Ordering::SeqCst) & STATE != HIDDEN
    }

    /// Shows the slot; whether it was not shown before.
    pub(crate) fn publish(&self, slot: Slot) -> bool {
        self.change(slot, |word| word & !STATE | VISIBLE) & STATE != VISIBLE
    }

    /// Holds commits back from now on, if nobody reads the slot.
    pub(crate) fn withhold(&self, slot: Slot) {
        self.change(slot, |word| if word & STATE == HIDDEN { word | WITHHELD } else { word });
    }

    /// Shows nothing more.
    pub(crate) fn hide_all(&self) {
        (0..SLOTS).filter_map(Slot::new).for_each(|slot| self.hide(slot));
    }

    /// Shows the slot no more.
    pub(crate) fn hide(&self, slot: Slot) {
        self.change(slot, |word| (word & !STATE).wrapping_add(ONE_HIDING));
    }

    /// Gives what was before.
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
