//! How much of what an owner wrote has enough copies.

use std::collections::BTreeMap;

use crate::node::{Member, ReplicaSet};

/// Counts copies of an owner's writes to a slot, which are numbered 1, 2, 3, … in its epoch.
///
/// A member that has a write has every write before it, so one number for each member says it all.
#[derive(Debug, Clone)]
pub struct MatchIndexes {
    set: ReplicaSet,
    write_quorum: usize,
    durable: BTreeMap<Member, u64>,
}

impl MatchIndexes {
    /// Starts with no copies. A `min_copies` below 1 means 1, and one above the number of members means all of them.
    pub fn new(set: ReplicaSet, min_copies: usize) -> Self {
        let write_quorum = min_copies.clamp(1, set.len());
        Self { set, write_quorum, durable: BTreeMap::new() }
    }

    /// A member, the owner included, holds all writes up to this one durably. Only of members that accepted the
    /// epoch; what others say is ignored, and so is what a member said before.
    pub fn advance(&mut self, member: &Member, write: u64) {
        if self.set.contains(member) {
            let held = self.durable.entry(member.clone()).or_default();
            *held = write.max(*held);
        }
    }

    /// Returns the highest write that as many members hold as an acknowledgement needs; 0: none.
    pub fn commit_index(&self) -> u64 {
        self.durable_on(self.write_quorum)
    }

    /// Returns the highest write that so many members hold; 0: none.
    pub fn durable_on(&self, members: usize) -> u64 {
        let mut held: Vec<_> = self.durable.values().copied().collect();
        held.sort_unstable_by(|a, b| b.cmp(a));
        members.checked_sub(1).and_then(|nth| held.get(nth)).copied().unwrap_or_default()
    }

    /// Returns how many members hold a write.
    pub fn of(&self, write: u64) -> usize {
        self.durable.values().filter(|held| **held >= write).count()
    }
}
