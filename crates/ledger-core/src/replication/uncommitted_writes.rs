//! The replica's side of replication: what it wrote, and the owner has not committed yet.

use std::collections::{BTreeMap, VecDeque};

use crate::{Epoch, slot::Slot};

/// The commits that a replica wrote and may not show to readers, until the owner's commit index reaches them.
///
/// Counterpart: a Raft follower's log above the leader's `leaderCommit`; a Kafka follower's above the high watermark.
#[derive(Debug)]
pub struct UncommittedWrites<T> {
    /// By slot: the epoch of the owner who sent the commits, and number and item of each commit, in order.
    slots: BTreeMap<Slot, (Epoch, VecDeque<(u64, T)>)>,
}

impl<T> Default for UncommittedWrites<T> {
    fn default() -> Self {
        Self { slots: BTreeMap::new() }
    }
}

impl<T> UncommittedWrites<T> {
    /// Keeps the item of a commit that the owner of an epoch sent.
    pub fn push(&mut self, slot: Slot, epoch: Epoch, number: u64, item: T) {
        let (of, queue) = self.slots.entry(slot).or_insert_with(|| (epoch, VecDeque::new()));
        *of = epoch;
        queue.push_back((number, item));
    }

    /// The owner of an epoch committed everything of the slot up to a number: returns the items up to it, in order. Returns
    /// nothing if the newest commit came from the owner of another epoch.
    pub fn take_committed(&mut self, slot: Slot, epoch: Epoch, number: u64) -> Vec<T> {
        match self.slots.get_mut(&slot) {
            Some((of, queue)) if *of == epoch => {
                let end = queue.partition_point(|(kept, _)| *kept <= number);
                queue.drain(..end).map(|(_, item)| item).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Stops keeping a slot: returns all its items, in order.
    pub fn take_slot(&mut self, slot: Slot) -> Vec<T> {
        self.slots
            .remove(&slot)
            .map_or_else(Vec::new, |(_, queue)| queue.into_iter().map(|(_, item)| item).collect())
    }

    /// Returns the slots of which writes wait.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.slots.iter().filter(|(_, (_, queue))| !queue.is_empty()).map(|(slot, _)| *slot)
    }
}
