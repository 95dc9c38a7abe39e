//! The newest position of watched contexts, computed once for all of their watchers.

use std::collections::HashMap;

use ledger_core::{ContextId, Position, Size};
use ledger_store::Ledger;
use parking_lot::Mutex;

use crate::limits;

/// Positions by context: at most [`limits::NEWEST`].
#[derive(Debug, Default)]
pub struct NewestPositions(Mutex<HashMap<ContextId, Position>>);

impl NewestPositions {
    /// The position at a size that was the newest a moment ago; `None` if there is a newer one by now.
    ///
    /// The root of the head costs a hash for each level of the tree; a thousand watchers share it.
    pub fn position(&self, ledger: &Ledger, context: &ContextId, size: Size) -> Option<Position> {
        if let Some(known) = self.0.lock().get(context) {
            if known.size == size {
                return Some(*known);
            }
            if known.size > size {
                return None;
            }
        }
        // The context was just appended to or read, so its head is in memory.
        let position = ledger.head(context).ok()??.position();
        let mut positions = self.0.lock();
        if positions.len() >= limits::NEWEST {
            positions.clear();
        }
        positions.insert(context.clone(), position);
        (position.size == size).then_some(position)
    }
}
