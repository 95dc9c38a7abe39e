//! Quorums of a takeover, over one member set, or two while a slot moves: how many must answer, and who counts.
//!
//! A member set of R members acknowledges with m copies. A phase of the takeover goes on when, in each set that counts, enough
//! members did what the phase asks:
//!
//! | phase | members that must | how many |
//! | --- | --- | --- |
//! | `CollectingPromises` | promise, of the members that are recorded and of those before them | R − m + 1, so that one of them holds every acknowledged append, or all that are alive if m ≤ R / 2; all, if the members were never confirmed or are the last that are left |
//! | `Accepting` | accept, of the members that the slot will have and of those before them | m; as many as must know while it moves; all, if the members were never confirmed |
//! | `Confirming` | record that enough accepted, of the members that the slot will have | as many as must know |
//!
//! "As many as must know" is [`ReplicaSet::members_that_must_know`]. Two sets that count are what Raft calls a joint
//! configuration (Ongaro, "Consensus: Bridging Theory and Practice", 2014, §4.3); that a claim carries its configuration is
//! from Vertical Paxos (Lamport, Malkhi, Zhou, 2009).

use super::{Phase, Takeover};
use crate::{
    node::{Member, PromiseQuorum, ReplicaSet},
    ownership::Placement,
};

impl Takeover {
    /// Iterates over the sets that must accept: the members that the slot will have, and those before them.
    pub(super) fn member_sets(&self) -> impl Iterator<Item = &ReplicaSet> {
        std::iter::once(self.members()).chain(self.previous_members())
    }

    /// Returns how many members did what the phase asks, and how many must, in the set that lacks most.
    pub(super) fn responses_and_quorum(&self) -> (usize, usize) {
        let Placement { members, previous, .. } = &self.placement;
        let lacks = |(responded, needed): &(usize, usize)| needed.saturating_sub(*responded);
        let worst = |sets: &mut dyn Iterator<Item = &ReplicaSet>| {
            sets.map(|set| self.responses_in(set)).max_by_key(lacks).unwrap_or_default()
        };
        match self.phase {
            Phase::CollectingPromises | Phase::CatchingUp => {
                worst(&mut std::iter::once(members).chain(previous))
            }
            Phase::Accepting => worst(&mut self.member_sets()),
            Phase::Confirming | Phase::Owning | Phase::Abandoned => self.responses_in(self.members()),
        }
    }

    /// Does what [`Takeover::responses_and_quorum`] does, in one set.
    fn responses_in(&self, set: &ReplicaSet) -> (usize, usize) {
        let count = |has: &dyn Fn(&Member) -> bool| set.members().iter().filter(|member| has(member)).count();
        let write_quorum = self.write_quorum.clamp(1, set.len());
        let alive = count(&|member| self.alive.contains(member));
        // A slot forms once, while all its members are alive: more than half of all of them must know.
        let knowing =
            set.members_that_must_know(write_quorum, if self.is_confirmed() { alive } else { set.len() });
        match self.phase {
            Phase::CollectingPromises | Phase::CatchingUp => {
                let needed = match set.promise_quorum(write_quorum) {
                    _ if !self.placement.is_confirmed || self.is_last_remnant(set) => set.len(),
                    PromiseQuorum::AtLeast(needed) => needed,
                    PromiseQuorum::EveryLive => alive.max(1),
                };
                (count(&|member| self.promises.contains_key(member)), needed)
            }
            Phase::Accepting => {
                let needed = match self.previous_members() {
                    _ if !self.is_confirmed() => set.len(),
                    Some(_) => knowing,
                    None => write_quorum,
                };
                (count(&|member| self.accepted.contains(member)), needed)
            }
            Phase::Confirming | Phase::Owning | Phase::Abandoned => {
                (count(&|member| self.confirmed.contains(member)), knowing)
            }
        }
    }

    /// Returns whether this takeover counts a member, or goes on without it.
    pub(super) fn involves(&self, member: &Member) -> bool {
        self.missing.contains(member) || self.placement.named().any(|named| named == member)
    }

    /// Returns whether the takeover may leave the slot with fewer members than before: each of these must have promised. Once
    /// one of them has accepted to be one of so few, all of them may be needed to go on: a member that is lost already must
    /// not be among them.
    pub(super) fn may_use_fewer(&self) -> bool {
        let fewer = self.target.as_ref().filter(|target| target.len() < self.placement.members.len());
        fewer.is_none_or(|fewer| fewer.members().iter().all(|member| self.promises.contains_key(member)))
    }

    /// Returns whether a set is all that is left of a larger one: each of its members may be the only one who knows what was
    /// acknowledged.
    pub(super) fn is_last_remnant(&self, set: &ReplicaSet) -> bool {
        !self.missing.is_empty() && !set.members().iter().any(|member| self.lost.contains(member))
    }
}
