//! Which slots this node shows to readers.
//!
//! | state | readers | commits |
//! | --- | --- | --- |
//! | `DARK` | are refused: the node does not know what of the slot is stable | need not be held back |
//! | `HOLDING` | are refused, until the owner says that what was accepted is stable | are held back |
//! | `SHOWN` | see what is stable | are held back until they are |

use std::sync::atomic::{AtomicU8, Ordering};

use ledger_core::slot::{SLOTS, Slot};

const DARK: u8 = 0;
const HOLDING: u8 = 1;
const SHOWN: u8 = 2;

/// Which slots this node shows. A lone node shows all.
#[derive(Debug)]
pub(crate) struct Readable(Box<[AtomicU8]>);

impl Readable {
    /// Of a lone node, or of one in a cluster, which shows nothing yet.
    pub(crate) fn new(is_clustered: bool) -> Self {
        let state = if is_clustered { DARK } else { SHOWN };
        Self((0..SLOTS).map(|_| AtomicU8::new(state)).collect())
    }

    fn of(&self, slot: Slot) -> &AtomicU8 {
        &self.0[usize::from(slot.number())]
    }

    /// Whether readers may see the slot.
    pub(crate) fn is_shown(&self, slot: Slot) -> bool {
        self.of(slot).load(Ordering::SeqCst) == SHOWN
    }

    /// Whether commits to the slot have to be held back until they are stable.
    pub(crate) fn is_held(&self, slot: Slot) -> bool {
        self.of(slot).load(Ordering::SeqCst) != DARK
    }

    /// Shows the slot; whether it was not shown before.
    pub(crate) fn show(&self, slot: Slot) -> bool {
        self.of(slot).swap(SHOWN, Ordering::SeqCst) != SHOWN
    }

    /// Holds commits back from now on, if nobody reads the slot.
    pub(crate) fn hold(&self, slot: Slot) {
        let _ = self.of(slot).compare_exchange(DARK, HOLDING, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Shows nothing more.
    pub(crate) fn darken_all(&self) {
        self.0.iter().for_each(|slot| slot.store(DARK, Ordering::SeqCst));
    }

    /// Shows the slot no more.
    pub(crate) fn darken(&self, slot: Slot) {
        self.of(slot).store(DARK, Ordering::SeqCst);
    }
}
