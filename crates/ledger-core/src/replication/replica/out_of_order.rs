//! Parts that arrived before what they continue.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash as MapKey,
};

use foldhash::fast::RandomState;

use crate::{Size, slot::Slot};

/// Most bytes of parts in a lane that wait for what comes before them.
pub const MAX_OUT_OF_ORDER_BYTES: usize = 32 << 20;

/// Parts that came before the entries that they continue. They wait by slot and context, in order of arrival.
#[derive(Debug)]
pub(super) struct OutOfOrderBuffer<C, P> {
    slots: HashMap<Slot, HashMap<C, VecDeque<Buffered<P>>, RandomState>, RandomState>,
    /// Invariant: the sum of all parts' costs, at most [`MAX_OUT_OF_ORDER_BYTES`].
    bytes: usize,
}

#[derive(Debug)]
struct Buffered<P> {
    /// It continues a history of this size.
    after: Size,
    cost_bytes: usize,
    /// Number of the commit.
    number: u64,
    part: P,
}

impl<C, P> Default for OutOfOrderBuffer<C, P> {
    fn default() -> Self {
        Self { slots: HashMap::default(), bytes: 0 }
    }
}

impl<C: MapKey + Eq + Clone, P> OutOfOrderBuffer<C, P> {
    pub(super) fn push(
        &mut self,
        slot: Slot,
        context: C,
        after: Size,
        cost_bytes: usize,
        number: u64,
        part: P,
    ) {
        if self.bytes.saturating_add(cost_bytes) > MAX_OUT_OF_ORDER_BYTES {
            // Without the first of them, the other parts of a context are useless.
            return self.forget(slot, &context);
        }
        self.bytes += cost_bytes;
        let parts = self.slots.entry(slot).or_default().entry(context).or_default();
        parts.push_back(Buffered { after, cost_bytes, number, part });
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether parts of the slot wait.
    pub(super) fn has(&self, slot: Slot) -> bool {
        self.slots.contains_key(&slot)
    }

    /// Takes the next part of a context, unless something is missing before it; with the number of its commit.
    pub(super) fn next(&mut self, slot: Slot, context: &C, size: Size) -> Option<(P, u64)> {
        let contexts = self.slots.get_mut(&slot)?;
        let parts = contexts.get_mut(context)?;
        let next = parts.pop_front_if(|next| next.after <= size)?;
        if parts.is_empty() {
            contexts.remove(context);
        }
        if contexts.is_empty() {
            self.slots.remove(&slot);
        }
        self.bytes -= next.cost_bytes;
        Some((next.part, next.number))
    }

    pub(super) fn forget(&mut self, slot: Slot, context: &C) {
        let Some(contexts) = self.slots.get_mut(&slot) else { return };
        if let Some(parts) = contexts.remove(context) {
            self.bytes -= parts.iter().map(|part| part.cost_bytes).sum::<usize>();
        }
        if contexts.is_empty() {
            self.slots.remove(&slot);
        }
    }

    pub(super) fn forget_slot(&mut self, slot: Slot) {
        let Some(contexts) = self.slots.remove(&slot) else { return };
        self.bytes -= contexts.values().flatten().map(|part| part.cost_bytes).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    #[test]
    fn parts_come_out_once_what_they_continue_is_here() {
        let mut buffer = OutOfOrderBuffer::default();
        buffer.push(slot(1), "a", Size(3), 10, 7, "fourth");
        buffer.push(slot(1), "a", Size(4), 10, 8, "fifth");
        assert_eq!(buffer.next(slot(1), &"a", Size(2)), None);
        assert_eq!(buffer.next(slot(1), &"b", Size(3)), None);
        assert_eq!(buffer.next(slot(2), &"a", Size(3)), None);
        assert_eq!(buffer.next(slot(1), &"a", Size(3)), Some(("fourth", 7)));
        assert_eq!(buffer.next(slot(1), &"a", Size(3)), None);
        assert_eq!(buffer.next(slot(1), &"a", Size(4)), Some(("fifth", 8)));
        assert!(!buffer.has(slot(1)));
        assert_eq!(buffer.bytes, 0);
    }

    #[test]
    fn a_context_that_needs_too_much_is_dropped_and_the_others_stay() {
        let mut buffer = OutOfOrderBuffer::default();
        buffer.push(slot(1), "a", Size(3), MAX_OUT_OF_ORDER_BYTES - 1, 1, ());
        buffer.push(slot(1), "b", Size(3), 1, 1, ());
        buffer.push(slot(1), "a", Size(4), 1, 2, ());
        assert_eq!(buffer.next(slot(1), &"a", Size(9)), None);
        assert_eq!(buffer.bytes, 1);
        assert_eq!(buffer.next(slot(1), &"b", Size(3)), Some(((), 1)));
    }

    #[test]
    fn what_is_forgotten_costs_nothing() {
        let mut buffer = OutOfOrderBuffer::default();
        for (of, context) in [(1, "a"), (1, "b"), (2, "c")] {
            buffer.push(slot(of), context, Size(3), 10, 1, ());
        }
        buffer.forget(slot(1), &"a");
        assert_eq!(buffer.bytes, 20);
        buffer.forget_slot(slot(1));
        assert_eq!(buffer.bytes, 10);
        assert!(!buffer.has(slot(1)) && buffer.has(slot(2)));
    }
}
