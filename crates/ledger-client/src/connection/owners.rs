//! A cache of which node owns which slot. A stale answer is cheap: a node that is not the owner says so, or forwards.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use ledger_core::slot::{SLOTS, Slot};

use super::address::Address;

/// The owners of slots, as far as nodes have named them.
#[derive(Debug)]
pub(crate) struct Owners {
    table: Mutex<Table>,
    has_entries: AtomicBool,
}

#[derive(Debug)]
struct Table {
    /// By slot: always [`SLOTS`] of them, so the table is bounded.
    slots: Vec<Option<Address>>,
    /// A node without a cluster, which takes every append itself.
    standalone: Option<Address>,
}

impl Default for Owners {
    fn default() -> Self {
        let table = Table { slots: vec![None; usize::from(SLOTS)], standalone: None };
        Self { table: Mutex::new(table), has_entries: AtomicBool::new(false) }
    }
}

impl Owners {
    /// Whether no node ever named an owner: the fast path of a client of one node.
    pub(crate) fn is_empty(&self) -> bool {
        !self.has_entries.load(Ordering::Relaxed)
    }

    /// The owner of a slot.
    pub(crate) fn get(&self, slot: Slot) -> Option<Address> {
        let table = self.lock();
        table.slots[usize::from(slot.number())].as_ref().or(table.standalone.as_ref()).cloned()
    }

    /// Records the owner of a slot, as a node named it.
    pub(crate) fn insert(&self, slot: Slot, owner: Address) {
        self.lock().slots[usize::from(slot.number())] = Some(owner);
        self.has_entries.store(true, Ordering::Relaxed);
    }

    /// Records that a node has no cluster, and takes every append itself.
    pub(crate) fn insert_standalone(&self, node: Address) {
        self.lock().standalone = Some(node);
        self.has_entries.store(true, Ordering::Relaxed);
    }

    /// Forgets that a node owns a slot, because it says that it does not, or cannot serve it.
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

    /// Forgets every slot of a node that cannot be reached: other nodes take its slots over.
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
        owners.insert(one, a.clone());
        owners.insert(two, b.clone());
        owners.forget(two, &a);
        assert_eq!(owners.get(two), Some(b.clone()), "it has moved on since");
        owners.forget_node(&a);
        assert_eq!([one, two, three].map(|slot| owners.get(slot)), [None, Some(b), None]);
        owners.insert_standalone(a.clone());
        assert_eq!(owners.get(three), Some(a.clone()));
        owners.forget(three, &a);
        assert_eq!(owners.get(three), None);
    }
}
