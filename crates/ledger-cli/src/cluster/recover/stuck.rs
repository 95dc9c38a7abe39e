//! Slots that cannot go on, by what all nodes know.

use std::collections::{BTreeMap, BTreeSet};

use ledger_core::node::MAX_REPLICAS;
use ledger_proto::ledger::v1::{ClusterMember, KnownSlot, RecoverResponse, SlotApproval};

use crate::output::visible;

/// A member: node and data directory.
pub(super) type Name = (String, String);

pub(super) fn member(node_id: &str, storage_id: &str) -> ClusterMember {
    ClusterMember { node_id: node_id.to_owned(), storage_id: storage_id.to_owned() }
}

pub(super) fn name(member: &ClusterMember) -> Name {
    (member.node_id.clone(), member.storage_id.clone())
}

/// What all nodes know that answered the one that was asked.
pub(super) type Known = RecoverResponse;

/// A slot that cannot go on.
pub(super) struct Stuck<'a> {
    /// What the nodes say that know its newest members.
    newest: &'a KnownSlot,
    /// What each node says.
    seen: Vec<(&'a ClusterMember, &'a KnownSlot)>,
}

/// Of what two nodes know of a slot's members that of the higher rank holds.
fn rank(of: &KnownSlot) -> (bool, u64, bool) {
    (of.is_confirmed, of.placed_in, of.is_settled)
}

impl Stuck<'_> {
    /// Its members, and those before them while that is not settled.
    pub(super) fn named(&self) -> impl Iterator<Item = &ClusterMember> {
        self.newest.members.iter().chain(&self.newest.before)
    }

    /// Nobody who is left knows its members: they are among the lost, all of them.
    fn is_unknown(&self) -> bool {
        self.newest.members.is_empty()
    }

    /// The lost members of it.
    pub(super) fn missing<'b>(&'b self, lost: &'b BTreeSet<Name>) -> BTreeSet<&'b str> {
        if self.is_unknown() {
            return lost.iter().map(|(node, _)| node.as_str()).collect();
        }
        let members = self.named().filter(|member| lost.contains(&name(member)));
        members.map(|member| member.node_id.as_str()).collect()
    }

    /// The nodes that will be asked for what it had, those that hold the newest first.
    pub(super) fn left(&self) -> Vec<(&ClusterMember, &KnownSlot)> {
        let is_member = |node: &ClusterMember| self.named().any(|member| member == node);
        let mut left: Vec<_> =
            self.seen.iter().copied().filter(|(node, of)| is_member(node) || of.entries > 0).collect();
        left.sort_by_key(|(_, of)| std::cmp::Reverse((of.is_confirmed, of.accepted)));
        left
    }

    /// That it may go on: with what is left of its newest members, or if none is left, with what one has that has the newest.
    pub(super) fn approval(&self, lost: &BTreeSet<Name>) -> SlotApproval {
        let is_all_lost = self.named().all(|member| lost.contains(&name(member)));
        let heir =
            self.seen.iter().max_by_key(|(_, of)| (of.is_confirmed, of.accepted)).map(|(node, _)| *node);
        let members = if self.is_unknown() {
            let mut nodes = BTreeSet::new();
            let of_a_node_each = lost.iter().filter(|(node, _)| nodes.insert(node)).take(MAX_REPLICAS);
            of_a_node_each.map(|(node_id, storage_id)| member(node_id, storage_id)).collect()
        } else {
            self.newest.members.clone()
        };
        SlotApproval {
            slot: self.newest.slot,
            placed_in: self.newest.placed_in,
            heir: heir.filter(|_| is_all_lost).cloned(),
            members,
            before: self.newest.before.clone(),
        }
    }
}

/// Reading what all know.
pub(super) trait Everywhere {
    fn stuck(&self) -> BTreeMap<u32, Stuck<'_>>;
    fn known(&self) -> impl Iterator<Item = (&ClusterMember, &KnownSlot)>;
    fn obstacles(&self) -> Vec<String>;
}

impl Everywhere for Known {
    /// By slot that cannot go on, what each node knows of it that knows its newest members, or holds something.
    fn stuck(&self) -> BTreeMap<u32, Stuck<'_>> {
        let mut all: BTreeMap<u32, Vec<(&ClusterMember, &KnownSlot)>> = BTreeMap::new();
        for (node, slot) in self.known() {
            all.entry(slot.slot).or_default().push((node, slot));
        }
        let stuck = all.into_iter().filter_map(|(slot, seen)| {
            let newest = seen.iter().map(|(_, of)| *of).max_by_key(|of| rank(of))?;
            // Where a node is said to own it, that one must not be stuck itself: it may wait for members that are lost.
            let is_owned = seen.iter().filter(|(_, of)| !of.owner.is_empty()).any(|(_, says)| {
                let owner = seen.iter().find(|(node, _)| node.node_id == says.owner);
                owner.is_none_or(|(_, of)| !of.is_stuck)
            });
            let is_stuck = seen.iter().any(|(_, of)| rank(of) == rank(newest) && of.is_stuck) && !is_owned;
            is_stuck.then_some((slot, Stuck { newest, seen }))
        });
        stuck.collect()
    }

    fn known(&self) -> impl Iterator<Item = (&ClusterMember, &KnownSlot)> {
        let answers = self.answers.iter().filter_map(|answer| Some((answer.node.as_ref()?, &answer.slots)));
        answers.flat_map(|(node, slots)| slots.iter().map(move |slot| (node, slot)))
    }

    /// Why nothing can be done now.
    fn obstacles(&self) -> Vec<String> {
        let failed =
            self.failed.iter().map(|failed| format!("a living node did not answer: {}", visible(failed)));
        let refused = self.answers.iter().filter(|answer| !answer.refused.is_empty());
        let refused = refused.map(|answer| {
            let node = answer.node.as_ref().map(|node| visible(&node.node_id)).unwrap_or_default();
            format!("{node}: {}", visible(&answer.refused))
        });
        failed.chain(refused).collect()
    }
}
