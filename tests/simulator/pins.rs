//! What readers see of contexts that have writes that are not committed, as in `ledger_store::write::committed_heads`.

use std::collections::BTreeMap;

use super::history::Context;

/// The contexts with such writes: the size that is committed, and how many writes go beyond it.
#[derive(Debug, Default)]
pub struct Pins(BTreeMap<Context, (u64, usize)>);

impl Pins {
    /// Pins the committed size of a context before a write.
    pub fn pin(&mut self, context: Context, before: u64) {
        self.0.entry(context).or_insert((before, 0)).1 += 1;
    }

    /// The oldest pinned write of a context is committed, or nobody sees the context; the write left the context at `after`.
    pub fn unpin(&mut self, context: Context, after: u64) {
        // Nothing may be pinned: the slot was hidden at the write.
        let Some(pin) = self.0.get_mut(&context) else { return };
        *pin = (after, pin.1 - 1);
        if pin.1 == 0 {
            self.0.remove(&context);
        }
    }

    /// Returns how much of a context is committed, of all that is here.
    pub fn committed(&self, context: Context, here: u64) -> u64 {
        self.0.get(&context).map_or(here, |(committed, _)| here.min(*committed))
    }
}
