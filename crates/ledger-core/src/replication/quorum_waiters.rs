//! Writers who asked for another number of copies than the cluster is configured for.

use std::collections::{BTreeMap, BTreeSet};

use crate::slot::Slot;

/// Copies that must be durable before a node acknowledges an append. Kafka calls it `acks`.
///
/// It does not change when readers see the entry: they see it once its commit has the configured copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum WriteQuorum {
    /// As many copies as the cluster is configured for (the setting `min_copies`).
    #[default]
    Configured,
    /// This node's copy.
    One,
    /// Copies of more than half of the slot's members.
    Majority,
    /// Copies of all members.
    All,
}

/// Returns the commits after one number and up to another.
pub(super) fn between(commits: &BTreeSet<(u64, Slot)>, after: u64, to: u64) -> Vec<(u64, Slot)> {
    let range = (after.saturating_add(1), Slot::FIRST)..(to.saturating_add(1), Slot::FIRST);
    commits.range(range).copied().collect()
}

/// The answers to those writers, by the commits that they wait for.
///
/// Two orders index the commits, so that no step looks at an answer that cannot be ready by it.
#[derive(Debug)]
pub(super) struct QuorumWaiters<A> {
    /// By slot and commit, in the order in which they came.
    waiting: BTreeMap<(Slot, u64), Vec<(WriteQuorum, A)>>,
    /// The keys of `waiting`, by commit and slot.
    commits: BTreeSet<(u64, Slot)>,
    /// Those that have their copies, each with the number of copies.
    ready: Vec<(usize, A)>,
}

impl<A> Default for QuorumWaiters<A> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), commits: BTreeSet::new(), ready: Vec::new() }
    }
}

impl<A> QuorumWaiters<A> {
    pub(super) fn push(&mut self, slot: Slot, number: u64, needed: WriteQuorum, answer: A) {
        self.waiting.entry((slot, number)).or_default().push((needed, answer));
        self.commits.insert((number, slot));
    }

    /// Returns the commits that anybody waits for, of all slots, after one number and up to another.
    pub(super) fn commits_between(&self, after: u64, to: u64) -> Vec<(u64, Slot)> {
        between(&self.commits, after, to)
    }

    /// Returns the commits of a slot that anybody waits for.
    pub(super) fn commits_of(&self, slot: Slot) -> Vec<u64> {
        self.waiting.range((slot, 0)..=(slot, u64::MAX)).map(|((_, number), _)| *number).collect()
    }

    /// A commit has so many copies: those who are content with them, as `is_content` says, are ready.
    pub(super) fn settle(
        &mut self,
        slot: Slot,
        number: u64,
        copies: usize,
        is_content: impl Fn(WriteQuorum) -> bool,
    ) {
        let Some(waiting) = self.waiting.get_mut(&(slot, number)) else { return };
        let ready = waiting.extract_if(.., |(needed, _)| is_content(*needed));
        self.ready.extend(ready.map(|(_, answer)| (copies, answer)));
        if waiting.is_empty() {
            self.waiting.remove(&(slot, number));
            self.commits.remove(&(number, slot));
        }
    }

    pub(super) fn take_ready(&mut self) -> Vec<(usize, A)> {
        std::mem::take(&mut self.ready)
    }

    /// Takes the answers of a slot, in the order of its commits.
    pub(super) fn take_slot(&mut self, slot: Slot) -> Vec<A> {
        let mut taken = Vec::new();
        for number in self.commits_of(slot) {
            self.commits.remove(&(number, slot));
            taken
                .extend(self.waiting.remove(&(slot, number)).into_iter().flatten().map(|(_, answer)| answer));
        }
        taken
    }

    /// Takes the answers for which `is_over` returns true. It looks at all of them.
    pub(super) fn take_if(&mut self, is_over: impl Fn(&A) -> bool) -> Vec<A> {
        let mut over = Vec::new();
        self.waiting.retain(|(slot, number), waiting| {
            over.extend(waiting.extract_if(.., |(_, answer)| is_over(answer)).map(|(_, answer)| answer));
            if waiting.is_empty() {
                self.commits.remove(&(*number, *slot));
            }
            !waiting.is_empty()
        });
        over
    }

    /// Takes all answers, in the order of slots and their commits.
    pub(super) fn take_all(&mut self) -> Vec<A> {
        self.commits.clear();
        std::mem::take(&mut self.waiting).into_values().flatten().map(|(_, answer)| answer).collect()
    }

    /// Whether both orders are of the same commits.
    pub(super) fn is_consistent(&self) -> bool {
        self.commits.len() == self.waiting.len()
            && self.waiting.iter().all(|((slot, number), waiting)| {
                !waiting.is_empty() && self.commits.contains(&(*number, *slot))
            })
    }
}
