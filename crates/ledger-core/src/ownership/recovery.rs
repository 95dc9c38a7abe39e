//! Going on with what is left when so many of a slot's members are lost for good that the others are too few.
//!
//! Nothing decides this by itself: an operator declares members lost, which is a claim that nobody can check, and approves that
//! slots go on without them ([`RecoveryApproval`]), each with what is left of the newest members that anybody knew then. A node that knows older ones, and
//! hears of nobody, has no approval to go on with those. Then
//! - a set of members that keeps too few for an append is what is left of it, and all of these must promise and accept;
//! - every other node that is alive is asked too, for one of them may hold more; where no member is left, the one that was
//!   named goes on;
//! - the epoch is far above those before ([`RECOVERY_EPOCH_GAP`]): whatever lost members did unseen, or do when they come back, is
//!   of a lower one, and its history goes to the forks;
//! - who was missing and who was heard is recorded ([`Recovery`]) before anything is acknowledged.
//!
//! What an acknowledgement promised before holds as far as those who are left hold it, and nobody can know how far that is.

use std::collections::{BTreeMap, BTreeSet};

use super::Placement;
use crate::{
    Epoch,
    node::{Member, ReplicaSet},
    slot::Slot,
};

/// How far the epoch of a recovery is above the epoch in which the members were recorded.
pub const RECOVERY_EPOCH_GAP: u32 = 1 << 16;

/// All that operators ever decided about lost members. Kafka: unclean leader election, by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeclaredLosses {
    /// Members that are lost for good.
    pub lost: BTreeSet<Member>,
    /// The slots that may go on without them.
    pub slots: BTreeMap<Slot, RecoveryApproval>,
}

/// An operator's word that a slot may go on without its lost members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryApproval {
    /// The epoch in which a claimant recorded the newest members that any node knew.
    pub placed_in: Epoch,
    /// The members: those of them that are left go on, and nobody else does.
    pub members: ReplicaSet,
    /// The members before them, if the move between the two was not settled.
    pub previous: Option<ReplicaSet>,
    /// The node that goes on with the best history there is, if none of them is left.
    pub heir: Option<Member>,
}

impl RecoveryApproval {
    /// Approves that what is left of these members goes on.
    pub fn of(placement: &Placement, heir: Option<Member>) -> Self {
        let Placement { epoch, members, previous, .. } = placement.clone();
        Self { placed_in: epoch, members, previous, heir }
    }

    /// Returns whether the approval is about these members. Each attempt of a member that is left records the same members
    /// anew, in an epoch of its own, so a later epoch is as good. Other nodes may have replaced older members unseen.
    pub fn covers(&self, placement: &Placement) -> bool {
        placement.epoch >= self.placed_in
            && placement.members == self.members
            && placement.previous == self.previous
    }
}

/// The record of a recovery: the members that a slot went on without, and those that it went on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The members that operators declared lost.
    pub missing: Vec<Member>,
    /// The members that answered, each with the epoch that it had accepted. The slot went on with the history of the highest.
    pub responded: Vec<(Member, Epoch)>,
}

impl Placement {
    /// Returns what is left of the placement without the lost members. `None`: nothing changes, because enough members are
    /// left for appends, or none is.
    pub fn without(&self, lost: &BTreeSet<Member>, min_copies: usize) -> Option<Self> {
        let left = |set: &ReplicaSet| {
            ReplicaSet::new(set.members().iter().filter(|member| !lost.contains(member)).cloned()).ok()
        };
        let is_short = |set: &ReplicaSet| {
            let count = left(set).map_or(0, |left| left.len());
            // Before they are confirmed, first members need each other.
            count < min_copies.clamp(1, set.len()) || (!self.is_confirmed && count < set.len())
        };
        if !is_short(&self.members) && !self.previous.as_ref().is_some_and(is_short) {
            return None;
        }
        let of = |set: &ReplicaSet| if is_short(set) { left(set) } else { Some(set.clone()) };
        let previous = self.previous.as_ref().and_then(of);
        match of(&self.members) {
            Some(set) => Some(Self { members: set, previous, ..self.clone() }),
            None => previous.map(|set| Self { members: set, previous: None, ..self.clone() }),
        }
    }

    /// Returns whether the slot cannot go on with the members that are left.
    pub fn needs_recovery(&self, lost: &BTreeSet<Member>, min_copies: usize) -> bool {
        self.without(lost, min_copies).is_some() || self.named().all(|member| lost.contains(member))
    }

    /// Returns whether the slot needs an operator's word to go on. Enough members may be left though none of them knows that
    /// it is one, because as many are lost as knew it for certain. With an operator's word they look for a node that knows.
    pub fn needs_approval(&self, lost: &BTreeSet<Member>, min_copies: usize) -> bool {
        let is_forgotten = |set: &ReplicaSet| {
            let gone = set.members().iter().filter(|member| lost.contains(member)).count();
            gone >= set.members_that_must_know(min_copies, set.len())
        };
        self.needs_recovery(lost, min_copies)
            || std::iter::once(&self.members).chain(&self.previous).any(is_forgotten)
    }

    /// Returns all members that the placement names: the present ones, and those before them while the move is not settled.
    pub fn named(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.members).chain(&self.previous).flat_map(ReplicaSet::members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{NodeId, StorageId};

    fn set(names: &str) -> Option<ReplicaSet> {
        ReplicaSet::new(names.chars().map(member)).ok()
    }

    fn member(name: char) -> Member {
        Member { node: NodeId::new(name.to_string()).unwrap(), storage: StorageId([name as u8; 16]) }
    }

    fn placement(names: &str, before: &str, is_confirmed: bool) -> Placement {
        Placement {
            epoch: Epoch::new(7, 1),
            members: set(names).unwrap(),
            is_confirmed,
            previous: set(before),
        }
    }

    #[test]
    fn only_a_set_that_keeps_too_few_is_what_is_left_of_it() {
        let without = |names: &str, before: &str, lost: &str| {
            let lost = lost.chars().map(member).collect();
            placement(names, before, true).without(&lost, 2).map(|left| (Some(left.members), left.previous))
        };
        assert_eq!(without("abc", "", ""), None);
        assert_eq!(without("abc", "", "c"), None, "two are enough for all that is to be done");
        assert_eq!(without("abc", "", "xyz"), None, "they are no members");
        assert_eq!(without("abc", "", "bc"), Some((set("a"), None)));
        assert_eq!(without("abc", "", "abc"), None, "there is nobody to go on");
        assert_eq!(without("acd", "abd", "bd"), Some((set("acd"), set("a"))), "of each set by itself");
        assert_eq!(without("acd", "bde", "bde"), Some((set("acd"), None)));
        assert_eq!(without("cde", "abe", "cde"), Some((set("abe"), None)), "those before have enough");
        assert_eq!(without("cde", "abe", "bcde"), Some((set("a"), None)));
    }

    #[test]
    fn first_members_that_were_never_confirmed_do_not_wait_for_the_lost() {
        let lost = BTreeSet::from([member('c')]);
        let left = placement("abc", "", false).without(&lost, 2).unwrap();
        assert_eq!((Some(left.members), left.is_confirmed), (set("ab"), false));
    }

    #[test]
    fn the_copies_that_an_append_needs_decide_what_is_too_few() {
        let lost = BTreeSet::from([member('d'), member('e')]);
        for (min_copies, left) in [(1, None), (3, None), (4, set("abc")), (5, set("abc"))] {
            let without = placement("abcde", "", true).without(&lost, min_copies);
            assert_eq!(without.map(|left| left.members), left, "{min_copies}");
        }
    }

    #[test]
    fn an_operators_word_is_needed_where_those_who_knew_the_members_may_be_lost() {
        let needs = |names, before, lost: &str, min_copies| {
            let lost = lost.chars().map(member).collect();
            placement(names, before, true).needs_approval(&lost, min_copies)
        };
        // Where availability comes first one is enough, and it may not know that it is a member.
        assert!(!needs("abc", "", "c", 1) && needs("abc", "", "bc", 1));
        assert!(!needs("abcde", "", "de", 2) && needs("abcde", "", "cde", 2));
        assert!(!needs("abc", "abd", "d", 1) && needs("abc", "ade", "de", 1), "nor those before");
        assert!(!needs("abc", "", "c", 2) && needs("abc", "", "bc", 2));
    }
}
