//! Becoming the owner of a slot.
//!
//! | phase | waits for | then |
//! | --- | --- | --- |
//! | `CollectingPromises` | enough promises of the newest members that anybody recorded | `CatchingUp` |
//! | `CatchingUp` | the best history there is among those who promised | `Accepting` |
//! | `Accepting` | m members, or all if they are the slot's first, to accept that history | `Owning`, or `Confirming` if the members are new |
//! | `Confirming` | m members to note that enough have accepted | `Owning` |
//! | `Owning` | nothing | `Abandoned` when somebody claims higher |
//!
//! A move to other members is a takeover in which m of the old and m of the new ones accept the new ones, *with the
//! old ones named as those before them*. Whoever knows of the new ones only by that counts in both. So a move that
//! was cut short is either seen by whoever takes the slot with the old ones, or needs enough of the old ones itself.
//! Once m of the new ones have noted that it is done, the old ones are not needed any more. If only a member that was to
//! leave still knows of a move that was cut short, it moves back, in the same way: counting in both.
//!
//! The claimant is a member like the others: it asks itself, and answers once its record is on disk.

use std::collections::{BTreeMap, BTreeSet};

use super::{Claim, Placement, Promise, Recovery, RecoveryApproval};
use crate::{
    Epoch,
    node::{Member, PromiseQuorum, ReplicaSet},
};

/// Where a takeover is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Promises are being collected.
    CollectingPromises,
    /// The best history is being fetched.
    CatchingUp,
    /// Members are accepting it.
    Accepting,
    /// Members of a slot that is new, or moves, are noting that enough accepted.
    Confirming,
    /// The claimant owns the slot and may acknowledge.
    Owning,
    /// The claimant is a replica again.
    Abandoned,
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
    HigherClaim {
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
    MembersAlive(BTreeSet<Member>),
    /// No more time.
    TimedOut,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask a member (which may be the claimant itself) to promise the claim.
    RequestPromise {
        /// The member.
        member: Member,
    },
    /// Fetch, of every context, the longest history that these members have (the claimant may be one).
    CatchUp {
        /// The members whose history is the best there is.
        from: Vec<Member>,
    },
    /// Bring a member in sync with the claimant's history, then have it accept the epoch and these members.
    Accept {
        /// The member.
        member: Member,
        /// The members.
        members: ReplicaSet,
        /// Whether they were confirmed before.
        is_confirmed: bool,
        /// The members that they are to follow.
        previous: Option<ReplicaSet>,
    },
    /// Have a member note that enough accepted.
    Confirm {
        /// The member.
        member: Member,
    },
    /// Publish the claim, and serve.
    BecomeOwner,
    /// Step back, and refuse appends with the reason.
    Abandon(TakeoverFailure),
}

/// Why a takeover ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeoverFailure {
    /// Somebody else claimed the slot.
    #[error("node {} claimed the slot in epoch {}", .0.claimant, .0.epoch)]
    HigherClaim(Claim),
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
        "{responded} of the slot's {members} replicas answered, and {needed} must: check that the others run and can be reached"
    )]
    NoQuorum {
        /// Members that answered.
        responded: usize,
        /// Members there are.
        members: usize,
        /// Members that must answer.
        needed: usize,
    },
}

/// A takeover of one slot by one node.
#[derive(Debug, Clone)]
pub struct Takeover {
    candidate: Member,
    claim: Claim,
    write_quorum: usize,
    placement: Placement,
    /// Members that an operator declared lost, and how the slot may go on without them.
    lost: BTreeSet<Member>,
    approval: Option<RecoveryApproval>,
    /// Those of them that this takeover goes on without; none, if it needs nothing that they had.
    missing: BTreeSet<Member>,
    /// The claimant knows older members than those that are to go on: it looks for somebody who knows these.
    is_searching_members: bool,
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
    /// shows, and count only if nobody recorded any. Acknowledgements will need `write_quorum`. Members that are `lost` are not
    /// waited for where the others are too few and that is approved.
    pub fn begin(
        candidate: Member,
        claim: Claim,
        write_quorum: usize,
        recorded: Option<Placement>,
        wanted: ReplicaSet,
        lost: (&BTreeSet<Member>, Option<&RecoveryApproval>),
    ) -> (Self, Vec<Effect>) {
        let first =
            Placement { epoch: Epoch::default(), members: wanted, is_confirmed: false, previous: None };
        let placement = recorded.unwrap_or(first);
        let mut takeover = Self {
            candidate,
            claim,
            write_quorum,
            placement: placement.clone(),
            lost: lost.0.clone(),
            approval: lost.1.cloned(),
            missing: BTreeSet::new(),
            is_searching_members: false,
            target: None,
            asked: BTreeSet::new(),
            promises: BTreeMap::new(),
            alive: BTreeSet::new(),
            accepted: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            phase: Phase::CollectingPromises,
        };
        takeover.adopt(placement);
        takeover.is_member();
        let effects = takeover.request_promises();
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
        lost: (&BTreeSet<Member>, Option<&RecoveryApproval>),
    ) -> (Self, Vec<Effect>) {
        let is_settled = recorded.is_confirmed && recorded.previous.is_none();
        let is_possible = is_settled && target.contains(&me);
        let wanted = recorded.members.clone();
        let (mut takeover, effects) = Self::begin(me, claim, min_copies, Some(recorded), wanted, lost);
        takeover.target = (is_possible && takeover.missing.is_empty()).then_some(target);
        (takeover, effects)
    }

    /// Takes an event; gives what to do. Events that come late or twice are harmless.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            _ if self.phase == Phase::Abandoned => Vec::new(),
            // A higher claim; or one of the same epoch by somebody else, who was first to take the number.
            Event::HigherClaim { promised } if promised > self.claim || self.is_rival(&promised) => {
                self.abandon(TakeoverFailure::HigherClaim(promised))
            }
            Event::OtherMembers(placement) if self.phase != Phase::Owning => {
                self.abandon(TakeoverFailure::OtherMembers(placement))
            }
            Event::Promised { from, promise } if self.phase == Phase::CollectingPromises => {
                self.promised(from, promise)
            }
            Event::MembersAlive(alive) => {
                self.alive = alive;
                if self.phase != Phase::CollectingPromises {
                    return Vec::new();
                }
                let mut effects = self.request_promises();
                effects.extend(self.check_promises());
                effects
            }
            Event::CaughtUp if self.phase == Phase::CatchingUp => {
                self.phase = Phase::Accepting;
                self.has_accept_quorum()
            }
            Event::Accepted { from }
                if self.phase != Phase::CollectingPromises && self.phase != Phase::CatchingUp =>
            {
                self.accepted.insert(from);
                self.check_accepts()
            }
            Event::Confirmed { from } if self.phase == Phase::Confirming => {
                self.confirmed.insert(from);
                self.check_confirms()
            }
            Event::TimedOut if self.phase != Phase::Owning => {
                let (responded, needed) = self.responses_and_quorum();
                self.abandon(TakeoverFailure::NoQuorum { responded, members: self.members().len(), needed })
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
        self.target.as_ref().unwrap_or(&self.placement.members)
    }

    /// What a member that caught up is to accept. `None`: it is not asked to accept now.
    pub fn accept_by(&self, member: &Member) -> Option<Placement> {
        let is_asked = self.member_sets().any(|set| set.contains(member));
        let is_time = matches!(self.phase, Phase::Accepting | Phase::Confirming);
        (is_asked && is_time).then(|| Placement {
            epoch: self.claim.epoch,
            members: self.members().clone(),
            is_confirmed: self.is_confirmed(),
            previous: self.previous_members().cloned(),
        })
    }

    /// The members that those it will have are to follow, if that is not settled.
    fn previous_members(&self) -> Option<&ReplicaSet> {
        match self.target {
            Some(_) => Some(&self.placement.members),
            None => self.placement.previous.as_ref(),
        }
    }

    /// The members it counts in: those it will have, and those before them.
    fn member_sets(&self) -> impl Iterator<Item = &ReplicaSet> {
        std::iter::once(self.members()).chain(self.previous_members())
    }

    /// Members that accepted the epoch: copies of no others count.
    pub fn accepted(&self) -> &BTreeSet<Member> {
        &self.accepted
    }

    /// What it goes on without, if too few are left.
    pub fn recovery(&self) -> Option<Recovery> {
        let heard = self.promises.iter().map(|(member, promise)| (member.clone(), promise.accepted));
        let missing: Vec<Member> = self.missing.iter().cloned().collect();
        (!missing.is_empty()).then(|| Recovery { missing, responded: heard.collect() })
    }

    /// Whether these members need no confirmation. What is left of first members that never were confirmed needs none: all who
    /// are alive were asked, and nobody knows of others.
    fn is_confirmed(&self) -> bool {
        self.placement.is_confirmed || !self.missing.is_empty()
    }

    /// Counts in these members, or in what is left of them.
    fn adopt(&mut self, placement: Placement) {
        self.target = None;
        self.missing = BTreeSet::new();
        let approval = self.approval.as_ref();
        let needs_recovery = placement.needs_recovery(&self.lost, self.write_quorum);
        self.is_searching_members = approval.is_some_and(|approval| placement.epoch < approval.placed_in);
        if !needs_recovery || !approval.is_some_and(|approval| approval.covers(&placement)) {
            self.placement = placement;
            return;
        }
        self.missing = placement.named().filter(|member| self.lost.contains(member)).cloned().collect();
        self.placement = match placement.without(&self.lost, self.write_quorum) {
            Some(left) => left,
            None => placement,
        };
    }

    fn is_rival(&self, other: &Claim) -> bool {
        other.epoch == self.claim.epoch && other.claimant != self.claim.claimant
    }

    fn promised(&mut self, from: Member, promise: Promise) -> Vec<Effect> {
        let newer = promise.placement.clone().filter(|found| found.rank() > self.placement.rank());
        self.promises.insert(from, promise);
        let mut effects = Vec::new();
        if let Some(newer) = newer {
            self.adopt(newer);
            effects = self.request_promises();
        }
        // Among those that are still to be heard one may know of members that this node is one of.
        if !self.is_member() && !self.is_heir() && (!self.is_searching_members || self.all_responded()) {
            return self.abandon(TakeoverFailure::NotAMember(self.placement.clone()));
        }
        effects.extend(self.check_promises());
        effects
    }

    /// Whether the claimant will be a member. One that was to leave, in a move that is not settled, aims at the members
    /// before.
    fn is_member(&mut self) -> bool {
        let Placement { members, is_confirmed, previous, .. } = &self.placement;
        if members.contains(&self.candidate) {
            return true;
        }
        self.target = previous.clone().filter(|before| *is_confirmed && before.contains(&self.candidate));
        self.target.is_some()
    }

    /// Asks the members that were not asked yet. Those to move to are asked nothing: nothing was theirs to accept.
    fn request_promises(&mut self) -> Vec<Effect> {
        let asks_all = self.asks_everyone();
        let others = self.alive.iter().filter(|_| asks_all);
        let members: Vec<Member> = self.placement.named().chain(others).cloned().collect();
        members
            .into_iter()
            .filter(|of| self.asked.insert(of.clone()))
            .map(|member| Effect::RequestPromise { member })
            .collect()
    }

    /// Goes on if enough promised.
    fn check_promises(&mut self) -> Vec<Effect> {
        let (heard, needed) = self.responses_and_quorum();
        if heard < needed || !self.promises.contains_key(&self.candidate) || !self.is_member() {
            return Vec::new();
        }
        if (self.asks_everyone() && !self.all_responded()) || !self.may_use_fewer() {
            return Vec::new();
        }
        self.phase = Phase::CatchingUp;
        vec![Effect::CatchUp { from: self.best_histories() }]
    }

    /// Those who promised and accepted the newest epoch: whoever did holds all that was acknowledged before and in it, be it a
    /// member still or not.
    fn best_histories(&self) -> Vec<Member> {
        let counts = |(_, promise): &(&Member, &Promise)| !self.is_unconfirmed_rival(promise);
        let accepted = self.promises.iter().filter(counts).map(|(_, promise)| promise.accepted);
        let newest = accepted.max().unwrap_or_default();
        let best = self.promises.iter().filter(counts).filter(|(_, promise)| promise.accepted == newest);
        best.map(|(member, _)| member.clone()).collect()
    }

    /// If all members are lost, the one that was named goes on with the best of what there is, be it nothing.
    fn is_heir(&mut self) -> bool {
        let is_all_lost = self.placement.named().all(|member| self.missing.contains(member));
        let heir = self.approval.as_ref().and_then(|approval| approval.heir.as_ref());
        if !is_all_lost || heir != Some(&self.candidate) {
            return false;
        }
        let Ok(set) = ReplicaSet::new([self.candidate.clone()]) else { return false };
        (self.placement.members, self.placement.previous) = (set, None);
        true
    }

    /// Members that answered as the phase asks, and how many must, in the set that lacks most.
    fn responses_and_quorum(&self) -> (usize, usize) {
        let Placement { members, previous, .. } = &self.placement;
        let lacks = |(heard, needed): &(usize, usize)| needed.saturating_sub(*heard);
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

    /// As [`Takeover::responses_and_quorum`], of one set.
    fn responses_in(&self, set: &ReplicaSet) -> (usize, usize) {
        let count = |has: &dyn Fn(&Member) -> bool| set.members().iter().filter(|member| has(member)).count();
        let copies = self.write_quorum.clamp(1, set.len());
        let alive = count(&|member| self.alive.contains(member));
        // A slot is formed once, with all members there: more than half of them, alive or not, must know.
        let knowing = set.members_that_must_know(copies, if self.is_confirmed() { alive } else { set.len() });
        match self.phase {
            Phase::CollectingPromises | Phase::CatchingUp => {
                let needed = match set.promise_quorum(copies) {
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
                    None => copies,
                };
                (count(&|member| self.accepted.contains(member)), needed)
            }
            Phase::Confirming | Phase::Owning | Phase::Abandoned => {
                (count(&|member| self.confirmed.contains(member)), knowing)
            }
        }
    }

    /// Whether what was accepted is of first members that nobody confirmed, while there are others who were: nodes that lost
    /// their disks may have tried to form the slot anew, with nothing in it. Only who is no member can come with that.
    fn is_unconfirmed_rival(&self, promise: &Promise) -> bool {
        let other = promise.placement.as_ref().filter(|known| !known.is_confirmed);
        !self.missing.is_empty()
            && self.placement.is_confirmed
            && other.is_some_and(|other| other.members.members().iter().any(|of| !self.involves(of)))
    }

    /// Whether a member counts in this takeover, or is one of those that are missing.
    fn involves(&self, member: &Member) -> bool {
        self.missing.contains(member) || self.placement.named().any(|named| named == member)
    }

    /// Whether everybody who is alive is asked, member or not. If members are missing, whoever is left may know of newer ones;
    /// and a slot that seems to have none yet may have had them, all of which but one lost their disks.
    fn asks_everyone(&self) -> bool {
        self.is_searching_members || !self.missing.is_empty() || !self.placement.is_confirmed
    }

    /// Whether all are there that fewer members than before would be. Once any of them has accepted to be one of so few, all that
    /// an append needs may be needed to go on: who is lost already must not be one of them.
    fn may_use_fewer(&self) -> bool {
        let fewer = self.target.as_ref().filter(|target| target.len() < self.placement.members.len());
        fewer.is_none_or(|fewer| fewer.members().iter().all(|member| self.promises.contains_key(member)))
    }

    fn all_responded(&self) -> bool {
        self.alive.iter().all(|member| self.promises.contains_key(member))
    }

    /// Whether these are all that is left of more: any of them may be the only one who knows.
    fn is_last_remnant(&self, set: &ReplicaSet) -> bool {
        !self.missing.is_empty() && !set.members().iter().any(|member| self.lost.contains(member))
    }

    fn has_accept_quorum(&self) -> Vec<Effect> {
        let mut members: Vec<&Member> = self.member_sets().flat_map(ReplicaSet::members).collect();
        members.sort_unstable();
        members.dedup();
        let accept = |by: &Member| {
            let Placement { members: set, is_confirmed, previous, .. } = self.accept_by(by)?;
            Some(Effect::Accept { member: by.clone(), members: set, is_confirmed, previous })
        };
        members.into_iter().filter_map(accept).collect()
    }

    fn check_accepts(&mut self) -> Vec<Effect> {
        if self.phase != Phase::Accepting {
            return Vec::new();
        }
        let (accepted, needed) = self.responses_and_quorum();
        if accepted < needed || !self.accepted.contains(&self.candidate) {
            return Vec::new();
        }
        if self.is_confirmed() && self.previous_members().is_none() {
            self.phase = Phase::Owning;
            return vec![Effect::BecomeOwner];
        }
        self.phase = Phase::Confirming;
        self.members().members().iter().map(|by| Effect::Confirm { member: by.clone() }).collect()
    }

    fn check_confirms(&mut self) -> Vec<Effect> {
        let (confirmed, needed) = self.responses_and_quorum();
        if confirmed < needed || !self.confirmed.contains(&self.candidate) {
            return Vec::new();
        }
        self.phase = Phase::Owning;
        let members = self.target.take().unwrap_or_else(|| self.placement.members.clone());
        self.placement = Placement { epoch: self.claim.epoch, members, is_confirmed: true, previous: None };
        vec![Effect::BecomeOwner]
    }

    fn abandon(&mut self, reason: TakeoverFailure) -> Vec<Effect> {
        self.phase = Phase::Abandoned;
        vec![Effect::Abandon(reason)]
    }
}
