//! Which node owns a slot, as far as the client knows: a hint that is cheap to be wrong, because a node that
//! is not the owner says so or forwards.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use ledger_core::slot::{SLOTS, Slot};

use crate::address::Address;

/// The owners of slots.
#[derive(Debug)]
pub(crate) struct Owners {
    table: Mutex<Table>,
    learned: AtomicBool,
}

#[derive(Debug)]
struct Table {
    /// By slot: [`SLOTS`] of them, so that it is bounded whatever is asked.
    slots: Vec<Option<Address>>,
    /// A node that knows of no owners: a lone one, which takes everything.
    standalone: Option<Address>,
}

impl Default for Owners {
    fn default() -> Self {
        let table = Table { slots: vec![None; usize::from(SLOTS)], standalone: None };
        Self { table: Mutex::new(table), learned: AtomicBool::new(false) }
    }
}

impl Owners {
    /// Whether nothing was ever learned: the fast path of a client of one node.
    pub(crate) fn is_empty(&self) -> bool {
        !self.learned.load(Ordering::Relaxed)
    }

    /// The owner of a slot.
    pub(crate) fn of(&self, slot: Slot) -> Option<Address> {
        let table = self.lock();
        table.slots[usize::from(slot.number())].as_ref().or(table.standalone.as_ref()).cloned()
    }

    /// A node told who owns a slot.
    pub(crate) fn learn(&self, slot: Slot, owner: Address) {
        self.lock().slots[usize::from(slot.number())] = Some(owner);
        self.learned.store(true, Ordering::Relaxed);
    }

    /// A node knows of no owners, and takes everything itself.
    pub(crate) fn learn_standalone(&self, node: Address) {
        self.lock().standalone = Some(node);
        self.learned.store(true, Ordering::Relaxed);
    }

    /// A node does not own a slot (any more).
    pub(crate) fn forget(&self, slot: Slot, owner: &Address) {
        let mut table = self.lock();
        let known = &mut table.slots[usize::from(slot.number())];
        if known.as_ref() == Some(owner) {
            *known = None;
        }
        if table.standalone.as_ref() == Some(owner) {
            table.standalone = None;
        }
    }

    /// A node cannot be reached: what it owned, others will.
    pub(crate) fn forget_node(&self, node: &Address) {
        let mut table = self.lock();
        let of_node = |known: &Option<Address>| known.as_ref() == Some(node);
        table.slots.iter_mut().filter(|known| of_node(known)).for_each(|known| *known = None);
        if of_node(&table.standalone) {
            table.standalone = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_node_owned_is_forgotten_with_it() {
        let owners = Owners::default();
        let [a, b] = ["http://a:1", "http://b:1"].map(|text| Address::new(text).unwrap());
        let [one, two, three] = [1, 2, 3].map(|number| Slot::new(number).unwrap());
        owners.learn(one, a.clone());
        owners.learn(two, b.clone());
        owners.forget(two, &a);
        assert_eq!(owners.of(two), Some(b.clone()), "it has moved on since");
        owners.forget_node(&a);
        assert_eq!([one, two, three].map(|slot| owners.of(slot)), [None, Some(b), None]);
        owners.learn_standalone(a.clone());
        assert_eq!(owners.of(three), Some(a.clone()));
        owners.forget(three, &a);
        assert_eq!(owners.of(three), None);
    }
}
