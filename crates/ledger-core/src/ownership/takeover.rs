//! Becoming the owner of a slot.
//!
//! | phase | waits for | then |
//! | --- | --- | --- |
//! | `Asking` | enough promises of the newest members that anybody recorded | `CatchingUp` |
//! | `CatchingUp` | the best history there is among those who promised | `Accepting` |
//! | `Accepting` | m members, or all if they are the slot's first, to accept that history | `Owning`, or `Confirming` if the members are new |
//! | `Confirming` | m members to note that enough have accepted | `Owning` |
//! | `Owning` | nothing | `GivenUp` when somebody claims higher |
//!
//! A move to other members is a takeover in which m of the old and m of the new ones accept the new ones, *with the
//! old ones named as those before them*. Whoever knows of the new ones only by that counts in both. So a move that
//! was cut short is either seen by whoever takes the slot with the old ones, or needs enough of the old ones itself.
//! Once m of the new ones have noted that it is done, the old ones are not needed any more. If only a member that was to
//! leave still knows of a move that was cut short, it moves back, in the same way: counting in both.
//!
//! The claimant is a member like the others: it asks itself, and answers once its record is on disk.

use std::collections::{BTreeMap, BTreeSet};

use super::{Claim, Placement, Promise};
use crate::{
    Epoch,
    node::{Member, PromisesNeeded, ReplicaSet},
};

/// Where a takeover is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Promises are being collected.
    Asking,
    /// The best history is being fetched.
    CatchingUp,
    /// Members are accepting it.
    Accepting,
    /// Members of a slot that is new, or moves, are noting that enough accepted.
    Confirming,
    /// The claimant owns the slot and may acknowledge.
    Owning,
    /// The claimant is a replica again.
    GivenUp,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A member promised the claim; it is on its disk.
    Promised {
        /// The member.
        from: Member,
        /// What it holds.
        promise: Promise,
    },
    /// Somebody refused, gossip shows a higher claim, or this node's own replica promised one.
    Refused {
        /// The higher claim.
        promised: Claim,
    },
    /// A member has accepted other first members of the slot.
    OtherMembers(Placement),
    /// The claimant holds the best history of those named in [`Effect::CatchUp`].
    CaughtUp,
    /// A member holds the claimant's history and accepted the epoch; it is on its disk.
    Accepted {
        /// The member.
        from: Member,
    },
    /// A member noted that enough accepted; it is on its disk.
    Confirmed {
        /// The member.
        from: Member,
    },
    /// Gossip shows these members alive. It matters only where acknowledgements need few copies.
    Alive(BTreeSet<Member>),
    /// No more time.
    TimedOut,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask a member (which may be the claimant itself) to promise the claim.
    Ask {
        /// The member.
        of: Member,
    },
    /// Fetch, of every context, the longest history that these members have (the claimant may be one).
    CatchUp {
        /// The members whose history is the best there is.
        from: Vec<Member>,
    },
    /// Bring a member in step with the claimant's history, then have it accept the epoch and these members.
    Accept {
        /// The member.
        by: Member,
        /// The members.
        set: ReplicaSet,
        /// Whether they were confirmed before.
        is_confirmed: bool,
        /// The members that they are to follow.
        before: Option<ReplicaSet>,
    },
    /// Have a member note that enough accepted.
    Confirm {
        /// The member.
        by: Member,
    },
    /// Publish the claim, and serve.
    Own,
    /// Step back, and refuse appends with the reason.
    GiveUp(GaveUp),
}

/// Why a takeover ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GaveUp {
    /// Somebody else claimed the slot.
    #[error("node {} claimed the slot in epoch {}", .0.claimant, .0.epoch)]
    Claimed(Claim),
    /// The claimant does not keep the slot.
    #[error("this node does not keep the slot: its members were recorded in epoch {}", .0.epoch)]
    NotAMember(Placement),
    /// The nodes do not agree on the slot's first members.
    #[error(
        "another node keeps the slot with other members: start nodes that do not know each other with the same list of first nodes"
    )]
    OtherMembers(Placement),
    /// Too few members answered in time.
    #[error(
        "{heard} of the slot's {members} replicas answered, and {needed} must: check that the others run and can be reached"
    )]
    TooFew {
        /// Members that answered.
        heard: usize,
        /// Members there are.
        members: usize,
        /// Members that must answer.
        needed: usize,
    },
}

/// A takeover of one slot by one node.
#[derive(Debug, Clone)]
pub struct Takeover {
    me: Member,
    claim: Claim,
    min_copies: usize,
    placement: Placement,
    /// The members to move to.
    target: Option<ReplicaSet>,
    asked: BTreeSet<Member>,
    promises: BTreeMap<Member, Promise>,
    alive: BTreeSet<Member>,
    accepted: BTreeSet<Member>,
    confirmed: BTreeSet<Member>,
    phase: Phase,
}

impl Takeover {
    /// Begins: `recorded` is what this node's own record says of the members, of which the claimant is one, or was before
    /// a move that is not settled; `wanted` are those that gossip
    /// shows, and count only if nobody recorded any. Acknowledgements will need `min_copies`.
    pub fn begin(
        me: Member,
        claim: Claim,
        min_copies: usize,
        recorded: Option<Placement>,
        wanted: ReplicaSet,
    ) -> (Self, Vec<Effect>) {
        let first = Placement { epoch: Epoch::default(), set: wanted, is_confirmed: false, before: None };
        let mut takeover = Self {
            me,
            claim,
            min_copies,
            placement: recorded.unwrap_or(first),
            target: None,
            asked: BTreeSet::new(),
            promises: BTreeMap::new(),
            alive: BTreeSet::new(),
            accepted: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            phase: Phase::Asking,
        };
        takeover.is_member();
        let effects = takeover.ask();
        (takeover, effects)
    }

    /// Begins to move a slot to other members, of which the claimant is one, from those that are recorded,
    /// confirmed and settled. If it turns out that the members have changed meanwhile, it is a plain takeover.
    pub fn begin_move(
        me: Member,
        claim: Claim,
        min_copies: usize,
        recorded: Placement,
        target: ReplicaSet,
    ) -> (Self, Vec<Effect>) {
        let is_settled = recorded.is_confirmed && recorded.before.is_none();
        let is_possible = is_settled && target.contains(&me);
        let wanted = recorded.set.clone();
        let (mut takeover, effects) = Self::begin(me, claim, min_copies, Some(recorded), wanted);
        takeover.target = is_possible.then_some(target);
        (takeover, effects)
    }

    /// Takes an event; gives what to do. Events that come late or twice are harmless.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            _ if self.phase == Phase::GivenUp => Vec::new(),
            // A higher claim; or one of the same epoch by somebody else, who was first to take the number.
            Event::Refused { promised } if promised > self.claim || self.is_rival(&promised) => {
                self.give_up(GaveUp::Claimed(promised))
            }
            Event::OtherMembers(placement) if self.phase != Phase::Owning => {
                self.give_up(GaveUp::OtherMembers(placement))
            }
            Event::Promised { from, promise } if self.phase == Phase::Asking => self.promised(from, promise),
            Event::Alive(alive) => {
                self.alive = alive;
                if self.phase == Phase::Asking { self.proceed() } else { Vec::new() }
            }
            Event::CaughtUp if self.phase == Phase::CatchingUp => {
                self.phase = Phase::Accepting;
                self.have_accepted()
            }
            Event::Accepted { from } if self.phase != Phase::Asking && self.phase != Phase::CatchingUp => {
                self.accepted.insert(from);
                self.proceed_accepted()
            }
            Event::Confirmed { from } if self.phase == Phase::Confirming => {
                self.confirmed.insert(from);
                self.proceed_confirmed()
            }
            Event::TimedOut if self.phase != Phase::Owning => {
                let (heard, needed) = self.count();
                self.give_up(GaveUp::TooFew { heard, members: self.members().len(), needed })
            }
            _ => Vec::new(),
        }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The claim.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The members it counts in, and will have when it owns the slot.
    pub fn members(&self) -> &ReplicaSet {
        self.target.as_ref().unwrap_or(&self.placement.set)
    }

    /// What a member that caught up is to accept. `None`: it is not asked to accept now.
    pub fn accept_by(&self, member: &Member) -> Option<Placement> {
        let is_asked = self.sets().any(|set| set.contains(member));
        let is_time = matches!(self.phase, Phase::Accepting | Phase::Confirming);
        (is_asked && is_time).then(|| Placement {
            epoch: self.claim.epoch,
            set: self.members().clone(),
            is_confirmed: self.placement.is_confirmed,
            before: self.before().cloned(),
        })
    }

    /// The members that those it will have are to follow, if that is not settled.
    fn before(&self) -> Option<&ReplicaSet> {
        match self.target {
            Some(_) => Some(&self.placement.set),
            None => self.placement.before.as_ref(),
        }
    }

    /// The members it counts in: those it will have, and those before them.
    fn sets(&self) -> impl Iterator<Item = &ReplicaSet> {
        std::iter::once(self.members()).chain(self.before())
    }

    /// Members that accepted the epoch: copies of no others count.
    pub fn accepted(&self) -> &BTreeSet<Member> {
        &self.accepted
    }

    fn is_rival(&self, other: &Claim) -> bool {
        other.epoch == self.claim.epoch && other.claimant != self.claim.claimant
    }

    fn promised(&mut self, from: Member, promise: Promise) -> Vec<Effect> {
        let newer = promise.placement.clone().filter(|found| found.rank() > self.placement.rank());
        self.promises.insert(from, promise);
        let mut effects = Vec::new();
        if let Some(newer) = newer {
            self.placement = newer;
            self.target = None;
            effects = self.ask();
        }
        if !self.is_member() {
            return self.give_up(GaveUp::NotAMember(self.placement.clone()));
        }
        effects.extend(self.proceed());
        effects
    }

    /// Whether the claimant will be a member. One that was to leave, in a move that is not settled, aims at the members
    /// before.
    fn is_member(&mut self) -> bool {
        let Placement { set, is_confirmed, before, .. } = &self.placement;
        if set.contains(&self.me) {
            return true;
        }
        self.target = before.clone().filter(|before| *is_confirmed && before.contains(&self.me));
        self.target.is_some()
    }

    /// Asks the members that were not asked yet. Those to move to are asked nothing: nothing was theirs to accept.
    fn ask(&mut self) -> Vec<Effect> {
        let Placement { set, before, .. } = &self.placement;
        let members: Vec<Member> = [Some(set), before.as_ref()]
            .into_iter()
            .flatten()
            .flat_map(|set| set.members().to_vec())
            .collect();
        members.into_iter().filter(|of| self.asked.insert(of.clone())).map(|of| Effect::Ask { of }).collect()
    }

    /// Goes on if enough promised.
    fn proceed(&mut self) -> Vec<Effect> {
        let (heard, needed) = self.count();
        if heard < needed || !self.promises.contains_key(&self.me) {
            return Vec::new();
        }
        self.phase = Phase::CatchingUp;
        // Whoever accepted the newest epoch holds all that was acknowledged before and in it, be it a member
        // still or not.
        let newest = self.promises.values().map(|promise| promise.accepted).max().unwrap_or_default();
        let best = self.promises.iter().filter(|(_, promise)| promise.accepted == newest);
        vec![Effect::CatchUp { from: best.map(|(member, _)| member.clone()).collect() }]
    }

    /// Members that answered as the phase asks, and how many must, in the set that lacks most.
    fn count(&self) -> (usize, usize) {
        let Placement { set, before, .. } = &self.placement;
        let lacks = |(heard, needed): &(usize, usize)| needed.saturating_sub(*heard);
        let worst = |sets: &mut dyn Iterator<Item = &ReplicaSet>| {
            sets.map(|set| self.count_in(set)).max_by_key(lacks).unwrap_or_default()
        };
        match self.phase {
            Phase::Asking | Phase::CatchingUp => worst(&mut std::iter::once(set).chain(before)),
            Phase::Accepting => worst(&mut self.sets()),
            Phase::Confirming | Phase::Owning | Phase::GivenUp => self.count_in(self.members()),
        }
    }

    /// As [`Takeover::count`], of one set.
    fn count_in(&self, set: &ReplicaSet) -> (usize, usize) {
        let count = |has: &dyn Fn(&Member) -> bool| set.members().iter().filter(|member| has(member)).count();
        let copies = self.min_copies.clamp(1, set.len());
        let alive = count(&|member| self.alive.contains(member));
        // A slot is formed once, with all members there: more than half of them, alive or not, must know.
        let knowing = set.knowing(copies, if self.placement.is_confirmed { alive } else { set.len() });
        match self.phase {
            Phase::Asking | Phase::CatchingUp => {
                let needed = match set.promises_needed(copies) {
                    _ if !self.placement.is_confirmed => set.len(),
                    PromisesNeeded::AtLeast(needed) => needed,
                    PromisesNeeded::EveryLive => alive.max(1),
                };
                (count(&|member| self.promises.contains_key(member)), needed)
            }
            Phase::Accepting => {
                let needed = match self.before() {
                    _ if !self.placement.is_confirmed => set.len(),
                    Some(_) => knowing,
                    None => copies,
                };
                (count(&|member| self.accepted.contains(member)), needed)
            }
            Phase::Confirming | Phase::Owning | Phase::GivenUp => {
                (count(&|member| self.confirmed.contains(member)), knowing)
            }
        }
    }

    fn have_accepted(&self) -> Vec<Effect> {
        let mut members: Vec<&Member> = self.sets().flat_map(ReplicaSet::members).collect();
        members.sort_unstable();
        members.dedup();
        let accept = |by: &Member| {
            let Placement { set, is_confirmed, before, .. } = self.accept_by(by)?;
            Some(Effect::Accept { by: by.clone(), set, is_confirmed, before })
        };
        members.into_iter().filter_map(accept).collect()
    }

    fn proceed_accepted(&mut self) -> Vec<Effect> {
        if self.phase != Phase::Accepting {
            return Vec::new();
        }
        let (accepted, needed) = self.count();
        if accepted < needed || !self.accepted.contains(&self.me) {
            return Vec::new();
        }
        if self.placement.is_confirmed && self.before().is_none() {
            self.phase = Phase::Owning;
            return vec![Effect::Own];
        }
        self.phase = Phase::Confirming;
        self.members().members().iter().map(|by| Effect::Confirm { by: by.clone() }).collect()
    }

    fn proceed_confirmed(&mut self) -> Vec<Effect> {
        let (confirmed, needed) = self.count();
        if confirmed < needed || !self.confirmed.contains(&self.me) {
            return Vec::new();
        }
        self.phase = Phase::Owning;
        let set = self.target.take().unwrap_or_else(|| self.placement.set.clone());
        self.placement = Placement { epoch: self.claim.epoch, set, is_confirmed: true, before: None };
        vec![Effect::Own]
    }

    fn give_up(&mut self, reason: GaveUp) -> Vec<Effect> {
        self.phase = Phase::GivenUp;
        vec![Effect::GiveUp(reason)]
    }
}
