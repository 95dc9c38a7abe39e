//! Becoming the owner of a slot.
//!
//! | phase | waits for | then |
//! | --- | --- | --- |
//! | `Asking` | enough promises of the newest members that anybody recorded | `CatchingUp` |
//! | `CatchingUp` | the best history there is among those who promised | `Accepting` |
//! | `Accepting` | m members, or all if they are the slot's first, to accept that history | `Owning`, or `Confirming` if they are the first |
//! | `Confirming` | m members to note that all of the first have accepted | `Owning` |
//! | `Owning` | nothing | `GivenUp` when somebody claims higher |
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
    /// Members of a slot that is new are noting that all accepted.
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
    /// A member noted that all accepted; it is on its disk.
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
    },
    /// Have a member note that all accepted.
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
    asked: BTreeSet<Member>,
    promises: BTreeMap<Member, Promise>,
    alive: BTreeSet<Member>,
    accepted: BTreeSet<Member>,
    confirmed: BTreeSet<Member>,
    phase: Phase,
}

impl Takeover {
    /// Begins: `recorded` is what this node's own record says of the members; `wanted` are those that gossip
    /// shows, and count only if nobody recorded any. Acknowledgements will need `min_copies`.
    pub fn begin(
        me: Member,
        claim: Claim,
        min_copies: usize,
        recorded: Option<Placement>,
        wanted: ReplicaSet,
    ) -> (Self, Vec<Effect>) {
        let first = Placement { epoch: Epoch::default(), set: wanted, is_confirmed: false };
        let mut takeover = Self {
            me,
            claim,
            min_copies,
            placement: recorded.unwrap_or(first),
            asked: BTreeSet::new(),
            promises: BTreeMap::new(),
            alive: BTreeSet::new(),
            accepted: BTreeSet::new(),
            confirmed: BTreeSet::new(),
            phase: Phase::Asking,
        };
        let effects = takeover.ask();
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
                self.give_up(GaveUp::TooFew { heard, members: self.placement.set.len(), needed })
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

    /// The members it counts in.
    pub fn members(&self) -> &ReplicaSet {
        &self.placement.set
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
            effects = self.ask();
        }
        if !self.placement.set.contains(&self.me) {
            return self.give_up(GaveUp::NotAMember(self.placement.clone()));
        }
        effects.extend(self.proceed());
        effects
    }

    /// Asks the members that were not asked yet.
    fn ask(&mut self) -> Vec<Effect> {
        let members = self.placement.set.members().to_vec();
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

    /// Members that answered as the phase asks, and how many must.
    fn count(&self) -> (usize, usize) {
        let set = &self.placement.set;
        let of = |answered: &BTreeSet<Member>| set.members().iter().filter(|m| answered.contains(m)).count();
        let copies = self.min_copies.clamp(1, set.len());
        let all_if_first = if self.placement.is_confirmed { copies } else { set.len() };
        match self.phase {
            Phase::Accepting => (of(&self.accepted), all_if_first),
            Phase::Confirming | Phase::Owning | Phase::GivenUp => (of(&self.confirmed), copies),
            Phase::Asking | Phase::CatchingUp => {
                let promised = self.promises.keys().cloned().collect();
                let needed = match set.promises_needed(copies) {
                    _ if !self.placement.is_confirmed => set.len(),
                    PromisesNeeded::AtLeast(needed) => needed,
                    PromisesNeeded::EveryLive => of(&self.alive).max(1),
                };
                (of(&promised), needed)
            }
        }
    }

    fn have_accepted(&self) -> Vec<Effect> {
        let Placement { set, is_confirmed, .. } = &self.placement;
        let accept =
            |by: &Member| Effect::Accept { by: by.clone(), set: set.clone(), is_confirmed: *is_confirmed };
        set.members().iter().map(accept).collect()
    }

    fn proceed_accepted(&mut self) -> Vec<Effect> {
        if self.phase != Phase::Accepting {
            return Vec::new();
        }
        let (accepted, needed) = self.count();
        if accepted < needed || !self.accepted.contains(&self.me) {
            return Vec::new();
        }
        if self.placement.is_confirmed {
            self.phase = Phase::Owning;
            return vec![Effect::Own];
        }
        self.phase = Phase::Confirming;
        self.placement.set.members().iter().map(|by| Effect::Confirm { by: by.clone() }).collect()
    }

    fn proceed_confirmed(&mut self) -> Vec<Effect> {
        let (confirmed, needed) = self.count();
        if confirmed < needed || !self.confirmed.contains(&self.me) {
            return Vec::new();
        }
        self.phase = Phase::Owning;
        self.placement.is_confirmed = true;
        vec![Effect::Own]
    }

    fn give_up(&mut self, reason: GaveUp) -> Vec<Effect> {
        self.phase = Phase::GivenUp;
        vec![Effect::GiveUp(reason)]
    }
}
