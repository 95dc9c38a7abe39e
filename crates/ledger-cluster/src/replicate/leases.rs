//! Publishes to the store until when readers may see each slot.

use std::time::Duration;

use ledger_core::{
    ownership::{SlotManager, slot_manager::Millis},
    slot::{SLOTS, Slot},
};
use ledger_store::limited;

use crate::shared::Shared;

/// The leases that the store was given, by slot.
#[derive(Debug)]
pub(crate) struct Leases(Vec<PublishedLease>);

#[derive(Debug, Clone, Copy)]
struct PublishedLease {
    until: Millis,
    is_kept: bool,
    /// Whether readers could see the slot at the last check.
    is_current: bool,
}

impl Default for Leases {
    fn default() -> Self {
        Self(vec![PublishedLease { until: 0, is_kept: true, is_current: false }; usize::from(SLOTS)])
    }
}

impl Leases {
    /// Passes changed leases to the store, and notifies local readers of slots that are hidden from now on.
    pub(crate) fn publish(&mut self, shared: &Shared, slots: &SlotManager, now: Millis) {
        let mut hidden = 0;
        for (slot, published) in (0..SLOTS).filter_map(Slot::new).zip(&mut self.0) {
            let (until, is_kept) = (slots.visible_until(now, slot), slots.is_member(slot));
            if (published.until, published.is_kept) != (until, is_kept) {
                // A lease beyond the range of the clock never expires.
                let ends = shared.started.checked_add(Duration::from_millis(until));
                shared.ledger.set_lease(slot, ends.filter(|_| until < Millis::MAX), is_kept);
                (published.until, published.is_kept) = (until, is_kept);
            }
            let is_current = until > now;
            hidden += u64::from(published.is_current && !is_current);
            published.is_current = is_current;
        }
        if hidden > 0 {
            limited!(
                info,
                slots = hidden,
                "slots are not shown here any more: this node left them, or hears too few of their members"
            );
            shared.hidden.send_modify(|count| *count += hidden);
        }
    }
}
