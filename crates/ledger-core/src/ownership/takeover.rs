//! Becoming the owner of a slot: the takeover, as a state machine without I/O.
//!
//! It is the first and the second phase of Paxos for one value, the history of the slot up to now (Lamport, "Paxos Made
//! Simple", 2001), with the members carried by the claim as in Vertical Paxos (Lamport, Malkhi, Zhou, 2009). A claim is Raft's
//! term with its candidate, a promise Raft's vote; an epoch is Kafka's leader epoch.
//!
//! | phase | waits for | then |
//! | --- | --- | --- |
//! | `CollectingPromises` | enough promises from the newest members that anybody recorded | `CatchingUp` |
//! | `CatchingUp` | the candidate to fetch the best history of those who promised | `Accepting` |
//! | `Accepting` | m members, or all if they are the slot's first, to accept that history | `Owning`, or `Confirming` if the members are new |
//! | `Confirming` | m members to record that enough have accepted | `Owning` |
//! | `Owning` | nothing | `Abandoned` when another node makes a higher claim |
//!
//! A move replaces the old members by new ones. It is a takeover in which m of the old and m of the new members accept the
//! new ones, *with the old ones named as those before them*. A node that knows of the new members only from such a record
//! counts in both sets. So if a move was cut short, a takeover with the old members sees it, and one with the new members needs
//! enough of the old ones. Once m of the new members have recorded that the move is done, nobody needs the old ones any more.
//! If only a member that was to leave still knows of a move that was cut short, it moves the slot back, and counts in both sets
//! as well.
//!
//! The candidate is a member like the others: it asks itself, and answers once its record is on disk.

use std::collections::{BTreeMap, BTreeSet};

use super::{Claim, Placement, Promise, Recovery, RecoveryApproval};
use crate::{
    Epoch,
    node::{Member, ReplicaSet},
};

mod quorum;

/// The phase of a takeover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The candidate collects promises. Paxos: phase 1.
    CollectingPromises,
    /// The candidate fetches the best history of the nodes that promised.
    CatchingUp,
    /// Members accept the epoch with that history. Paxos: phase 2.
    Accepting,
    /// Members of a slot that forms, or moves, record that enough have accepted.
    Confirming,
    /// The candidate owns the slot, and may acknowledge appends.
    Owning,
    /// The takeover failed: the candidate is a replica again.
    Abandoned,
}

/// What the shell, or another member, tells a takeover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A member promised the claim, and has it on its disk. Raft: a vote was granted.
    Promised {
        /// The member.
        from: Member,
        /// The promise: the epoch whose history the member holds, and the members that it recorded.
        promise: Promise,
    },
    /// A member refused because it had promised a higher claim, gossip shows one, or this node promised one itself.
    HigherClaim {
        /// The claim that the member promised.
        promised: Claim,
    },
    /// A member refused because it had accepted other first members of the slot.
    OtherMembers(Placement),
    /// The candidate holds the best history of the members named in [`Effect::CatchUp`].
    CaughtUp,
    /// A member holds the candidate's history and accepted the epoch, and has that on its disk. Paxos: accepted (2b).
    Accepted {
        /// The member.
        from: Member,
    },
    /// A member recorded on its disk that enough have accepted.
    Confirmed {
        /// The member.
        from: Member,
    },
    /// Gossip shows these nodes alive and able to write. Quorums depend on it only where an append needs few copies.
    MembersAlive(BTreeSet<Member>),
    /// The members did not answer in time, or the candidate cannot fetch the history.
    TimedOut,
}

/// What the slot manager does for a takeover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Ask a member, which may be the candidate itself, to promise the claim. Raft: `RequestVote`.
    RequestPromise {
        /// The member.
        member: Member,
    },
    /// Fetch, of every context, the longest history that these members have. The candidate may be one of them.
    CatchUp {
        /// The members with the best history.
        from: Vec<Member>,
    },
    /// Bring a member in sync with the candidate's history, then ask it to accept the epoch and these members. Paxos: accept
    /// (2a).
    Accept {
        /// The member.
        member: Member,
        /// The members that the slot will have.
        members: ReplicaSet,
        /// Whether these members were confirmed before.
        is_confirmed: bool,
        /// The members before them, while a move is not settled.
        previous: Option<ReplicaSet>,
    },
    /// Ask a member to record that enough have accepted.
    Confirm {
        /// The member.
        member: Member,
    },
    /// Publish the claim, and take appends.
    BecomeOwner,
    /// Become a replica again, and refuse appends with the reason.
    Abandon(TakeoverFailure),
}

/// Why a takeover failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeoverFailure {
    /// Another node made a higher claim.
    #[error("node {} claimed the slot in epoch {}", .0.claimant, .0.epoch)]
    HigherClaim(Claim),
    /// The candidate is not a member of the slot.
    #[error("this node does not keep the slot: its members were recorded in epoch {}", .0.epoch)]
    NotAMember(Placement),
    /// A node accepted other first members of the slot: the nodes do not agree who they are.
    #[error(
        "another node keeps the slot with other members: start nodes that do not know each other with the same list of first nodes"
    )]
    OtherMembers(Placement),
    /// Too few members answered in time.
    #[error(
        "{responded} of the slot's {members} replicas answered, and {needed} must: check that the others run and can be reached"
    )]
    NoQuorum {
        /// Number of members that answered.
        responded: usize,
        /// Number of members of the slot.
        members: usize,
        /// Number of members that must answer.
        needed: usize,
    },
}

/// The state machine of one node's attempt to own one slot. The node is the candidate meanwhile. Raft: an election; Paxos:
/// phase 1, the adoption of the best value, phase 2.
#[derive(Debug, Clone)]
pub struct Takeover {
    candidate: Member,
    claim: Claim,
    /// Copies that an append will need.
    write_quorum: usize,
    /// The newest members that anybody recorded, as far as this takeover heard.
    placement: Placement,
    /// Members that an operator declared lost for good.
    lost: BTreeSet<Member>,
    /// The operator's approval to go on without lost members of this slot.
    approval: Option<RecoveryApproval>,
    /// Lost members that this takeover goes on without; empty, if it needs nothing that they held.
    missing: BTreeSet<Member>,
    /// The candidate knows older members than those that the operator approved: it looks for a node that knows the newer ones.
    is_searching_members: bool,
    /// The members that a move aims at.
    target: Option<ReplicaSet>,
    /// Members that the candidate asked for a promise.
    asked: BTreeSet<Member>,
    promises: BTreeMap<Member, Promise>,
    /// Nodes that gossip shows alive and able to write.
    alive: BTreeSet<Member>,
    accepted: BTreeSet<Member>,
    confirmed: BTreeSet<Member>,
    phase: Phase,
}

impl Takeover {
    /// Begins a takeover. An append will need `write_quorum` copies.
    ///
    /// `recorded` are the members in the candidate's own record. The candidate is one of them, or was one before a move that is
    /// not settled. `wanted` are the members that gossip shows: they count only if nobody recorded any.
    ///
    /// `lost` are the members that an operator declared lost, with the approval for this slot, if there is one. If the others
    /// are too few, the takeover goes on without the lost ones, provided that the approval covers the members it finds.
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

    /// Begins to move a slot from the `recorded` members, which are confirmed and settled, to the `target`, which contains the
    /// candidate. If the takeover finds that the members have changed meanwhile, or goes on without lost ones, it is a plain takeover and moves nothing.
    pub fn begin_move(
        candidate: Member,
        claim: Claim,
        write_quorum: usize,
        recorded: Placement,
        target: ReplicaSet,
        lost: (&BTreeSet<Member>, Option<&RecoveryApproval>),
    ) -> (Self, Vec<Effect>) {
        let is_settled = recorded.is_confirmed && recorded.previous.is_none();
        let is_possible = is_settled && target.contains(&candidate);
        let wanted = recorded.members.clone();
        let (mut takeover, effects) =
            Self::begin(candidate, claim, write_quorum, Some(recorded), wanted, lost);
        takeover.target = (is_possible && takeover.missing.is_empty()).then_some(target);
        (takeover, effects)
    }

    /// Takes an event, and returns what to do. Events that come late or twice change nothing.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            _ if self.phase == Phase::Abandoned => Vec::new(),
            // A claim of the same epoch by another node counts as higher: that node was first to take the epoch.
            Event::HigherClaim { promised } if promised > self.claim || promised.is_rival_of(&self.claim) => {
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
                self.request_accepts()
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

    /// Returns the phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Returns the claim.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Returns the members that the slot will have when the candidate owns it.
    pub fn members(&self) -> &ReplicaSet {
        self.target.as_ref().unwrap_or(&self.placement.members)
    }

    /// Returns what a member that caught up is to accept; `None`: the takeover does not ask it to accept now.
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

    /// Returns the members before those that the slot will have, while the move between them is not settled.
    fn previous_members(&self) -> Option<&ReplicaSet> {
        match self.target {
            Some(_) => Some(&self.placement.members),
            None => self.placement.previous.as_ref(),
        }
    }

    /// Returns the members that accepted the epoch: only their copies count.
    pub fn accepted(&self) -> &BTreeSet<Member> {
        &self.accepted
    }

    /// Returns the recovery to record, if the takeover goes on without lost members.
    pub fn recovery(&self) -> Option<Recovery> {
        let responded = self.promises.iter().map(|(member, promise)| (member.clone(), promise.accepted));
        let missing: Vec<Member> = self.missing.iter().cloned().collect();
        (!missing.is_empty()).then(|| Recovery { missing, responded: responded.collect() })
    }

    /// Returns whether the members are confirmed, or need no confirmation. Those that are left of first members that were
    /// never confirmed need none: the candidate asked all nodes that are alive, and none knows of other members.
    fn is_confirmed(&self) -> bool {
        self.placement.is_confirmed || !self.missing.is_empty()
    }

    /// Takes these members, or what is left of them after a recovery, as those that count.
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

    /// A member promised: adopts newer members that it knows of, and goes on if enough promised.
    fn promised(&mut self, from: Member, promise: Promise) -> Vec<Effect> {
        let newer = promise.placement.clone().filter(|found| found.rank() > self.placement.rank());
        self.promises.insert(from, promise);
        let mut effects = Vec::new();
        if let Some(newer) = newer {
            self.adopt(newer);
            effects = self.request_promises();
        }
        // A node that has not answered yet may know of newer members, and the candidate may be one of them.
        if !self.is_member() && !self.is_heir() && (!self.is_searching_members || self.all_responded()) {
            return self.abandon(TakeoverFailure::NotAMember(self.placement.clone()));
        }
        effects.extend(self.check_promises());
        effects
    }

    /// Returns whether the candidate will be a member. If it was to leave, in a move that is not settled, it aims at moving
    /// the slot back to the members before.
    fn is_member(&mut self) -> bool {
        let Placement { members, is_confirmed, previous, .. } = &self.placement;
        if members.contains(&self.candidate) {
            return true;
        }
        self.target = previous.clone().filter(|before| *is_confirmed && before.contains(&self.candidate));
        self.target.is_some()
    }

    /// Asks the members that were not asked yet for a promise. Members that a move only aims at are not asked: they have accepted
    /// nothing of the slot yet.
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

    /// Goes on to catching up if enough members promised.
    fn check_promises(&mut self) -> Vec<Effect> {
        let (responded, needed) = self.responses_and_quorum();
        if responded < needed || !self.promises.contains_key(&self.candidate) || !self.is_member() {
            return Vec::new();
        }
        if (self.asks_everyone() && !self.all_responded()) || !self.may_use_fewer() {
            return Vec::new();
        }
        self.phase = Phase::CatchingUp;
        vec![Effect::CatchUp { from: self.best_histories() }]
    }

    /// Returns, of the nodes that promised, those that accepted the newest epoch. Each of them holds everything that was
    /// acknowledged before that epoch and in it, whether it is a member still or not.
    fn best_histories(&self) -> Vec<Member> {
        let counts = |(_, promise): &(&Member, &Promise)| !self.is_unconfirmed_rival(promise);
        let accepted = self.promises.iter().filter(counts).map(|(_, promise)| promise.accepted);
        let newest = accepted.max().unwrap_or_default();
        let best = self.promises.iter().filter(counts).filter(|(_, promise)| promise.accepted == newest);
        best.map(|(member, _)| member.clone()).collect()
    }

    /// Returns whether all members are lost and the operator named the candidate as heir. The candidate then becomes the only
    /// member, and goes on with the best history that is left, which may be empty.
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

    /// Returns whether a node accepted first members that nobody confirmed, while other members were confirmed. Nodes that
    /// lost their disks may have tried to form the slot again, with nothing in it. Only a node that is no member can answer
    /// so.
    fn is_unconfirmed_rival(&self, promise: &Promise) -> bool {
        let other = promise.placement.as_ref().filter(|known| !known.is_confirmed);
        !self.missing.is_empty()
            && self.placement.is_confirmed
            && other.is_some_and(|other| other.members.members().iter().any(|of| !self.involves(of)))
    }

    /// Returns whether the candidate asks every node that is alive, member or not. If members are missing, any other node may
    /// know of newer members. A slot that seems to have no members yet may have had some, of which all but one lost their
    /// disks.
    fn asks_everyone(&self) -> bool {
        self.is_searching_members || !self.missing.is_empty() || !self.placement.is_confirmed
    }

    /// Returns whether every node that is alive has promised.
    fn all_responded(&self) -> bool {
        self.alive.iter().all(|member| self.promises.contains_key(member))
    }

    /// Asks the members to accept.
    fn request_accepts(&self) -> Vec<Effect> {
        let mut members: Vec<&Member> = self.member_sets().flat_map(ReplicaSet::members).collect();
        members.sort_unstable();
        members.dedup();
        let accept = |by: &Member| {
            let Placement { members: set, is_confirmed, previous, .. } = self.accept_by(by)?;
            Some(Effect::Accept { member: by.clone(), members: set, is_confirmed, previous })
        };
        members.into_iter().filter_map(accept).collect()
    }

    /// Goes on to owning the slot, or to confirming its members, if enough members accepted.
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

    /// Goes on to owning the slot if enough members recorded the new members.
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
