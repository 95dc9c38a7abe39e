//! All slots of one node: when to claim one, whom to offer its history, when to hand it over or move a member.
//!
//! Gossip proposes, promises decide: what a node sees of the others says only when to try. Nothing here does
//! I/O or reads a clock; a shell tells it what happened and does what it says.
//!
//! | the slot is | what happens |
//! | --- | --- |
//! | nobody's | the first living member in rendezvous order claims it; the others wait their turn |
//! | being taken | [`Takeover`] |
//! | ours | members whose streams are up are offered its history, and count once they accepted |
//! | ours, and not to be | appends stop, what is under way is acknowledged, the successor takes it over |
//! | ours, with members that should not be | the new one learns; then a takeover by ourselves moves one member |

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Claim, Declared, GaveUp, Phase, Placement, Promise, Recovery, SlotRecord, Takeover, takeover};
use crate::{
    Epoch,
    node::{Member, NodeId, ReplicaSet},
    rendezvous::{self, Candidate},
    slot::{SLOTS, Slot},
};

mod claiming;
mod leading;
mod lease;
#[cfg(test)]
mod tests;

/// A time, milliseconds since any moment that stays the same.
pub type Millis = u64;

/// Epochs up to this are those of lone nodes: what a cluster writes comes after.
const LONE: Epoch = Epoch::new(1, u32::MAX);

/// How a node goes about its slots.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Copies there should be of a slot, 1 to 7.
    pub copies: usize,
    /// Copies after which an append is acknowledged.
    pub min_copies: usize,
    /// The nodes that form the cluster, the first time; empty: whoever is there, once they are `copies`.
    pub first_nodes: Vec<NodeId>,
    /// How long a node listens to gossip before it claims anything.
    pub settle: Millis,
    /// How long the next member waits for the one before it to claim.
    pub turn: Millis,
    /// How long members may take to answer.
    pub answer_within: Millis,
    /// How long a member may take to catch up before the takeover that waits for it starts again.
    pub catch_up_within: Millis,
    /// How long a node must be alive before slots are handed back to it, and how long whoever takes a slot keeps it:
    /// it may not have heard yet why the owner before gave it away.
    pub steady: Millis,
    /// How long an owner may have fewer members in step, or on the way there, than an append needs copies, before it
    /// takes no more appends: its writers are told so then, instead of waiting for copies that nobody can make.
    pub short_within: Millis,
    /// How long a node may be away before its place is given to another.
    pub placement_grace: Millis,
    /// Slots that are handed over or moved at a time.
    pub moves: usize,
    /// The oldest that readers are shown: see [`Slots::shown_until`]. `None`: as old as it may be.
    pub max_staleness: Option<Millis>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            copies: 3,
            min_copies: 2,
            first_nodes: Vec::new(),
            settle: 1_500,
            turn: 1_000,
            answer_within: 1_500,
            catch_up_within: 60_000,
            steady: 3_000,
            short_within: 10_000,
            placement_grace: 600_000,
            moves: 128,
            max_staleness: Some(10_000),
        }
    }
}

/// A node as gossip shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The node and its data directory.
    pub member: Member,
    /// Where it stands; may be empty.
    pub zone: String,
    /// Whether it is heard.
    pub is_alive: bool,
    /// Whether it wants to own nothing.
    pub is_draining: bool,
    /// Whether its disk takes writes: if not it cannot own anything.
    pub is_writable: bool,
    /// Whether it leaves for good: others are to keep what it keeps.
    pub leaving: Option<Leaving>,
    /// The slots it says it owns.
    pub owned: BTreeMap<Slot, Epoch>,
}

/// How a node leaves for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// Once another node keeps each of its copies.
    Replaced,
    /// Where there is no other node, slots may go on with fewer members, but with no fewer than an append needs.
    Fewer,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time has passed: comes several times a second.
    Tick,
    /// Gossip shows these nodes, this one among them.
    Nodes(Vec<Seen>),
    /// This node's own record of a slot as it is on disk, after it was changed. `None`: it cannot be read, and what is known
    /// of it stays.
    Recorded(Slot, Option<SlotRecord>),
    /// The stream to a node is up: what it is sent from now on arrives in order, or the stream is lost.
    Connected(Member),
    /// The stream to a node is lost.
    Lost(Member),
    /// A question was answered.
    Answered {
        /// By whom.
        from: Member,
        /// About which slot.
        slot: Slot,
        /// The claim that the question was for.
        claim: Claim,
        /// What was answered.
        answer: Answer,
    },
    /// An offer was answered.
    Offered {
        /// By whom.
        from: Member,
        /// The slot.
        slot: Slot,
        /// The claim that the offer was for.
        claim: Claim,
        /// What became of it.
        outcome: Outcome,
    },
    /// [`Effect::CatchUp`] is done, or cannot be.
    CaughtUp {
        /// The slot.
        slot: Slot,
        /// For which claim.
        claim: Claim,
        /// Whether this node has it all.
        is_complete: bool,
    },
    /// [`Effect::Stop`] is done: everything appended before has its copies.
    Stopped(Slot, Claim),
    /// The owner of a slot hands it over to this node.
    HandedOver(Slot, Claim),
    /// A replica of a slot asks for an offer.
    Joins(Member, Slot),
    /// The owner of slots renews this replica's leases, on its stream.
    Renewed {
        /// The owner.
        from: Member,
        /// The owner sent the renewal after this moment: this node had answered the one before, or taken the stream.
        after: Millis,
        /// Those of the slots that this replica is in sync with, and how old the owner's own lease was.
        slots: Vec<(Slot, Millis)>,
    },
    /// A replica answered [`Effect::Renew`].
    RenewalAnswered {
        /// The replica.
        from: Member,
        /// Slots that it promised to a higher claim; `None`: it does not know what it promised.
        refused: BTreeMap<Slot, Option<Claim>>,
    },
    /// Own nothing (`true`), or what is this node's again.
    Drain(bool),
    /// This node's disk takes no writes (`false`), or takes them again. Gossip is to say so too.
    Writable(bool),
    /// This node's disk failed: it no longer owns the slot.
    GaveUp(Slot),
    /// Operators declared members lost for good: see [`super::recovery`].
    DeclaredLost(Declared),
}

/// A question to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Promise the claim.
    Promise,
    /// Note that enough have accepted the members.
    Confirm,
    /// The slot is handed over to you.
    TakeOver,
    /// Say what you know of the slot. `asked`: when, by the clock of whoever asks.
    Inquire {
        /// Comes back with the answer.
        asked: Millis,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Ask::Promise`].
    Promised(Promise),
    /// To [`Ask::Inquire`].
    Known {
        /// When it was asked.
        asked: Millis,
        /// What is known.
        known: Known,
    },
    /// To the others.
    Done,
    /// A higher claim was promised.
    Refused(Claim),
    /// It is not possible now, or nobody answered.
    NotNow,
}

/// What became of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is accepted, and on disk.
    Accepted,
    /// A higher claim was promised.
    Refused(Claim),
    /// Other first members were accepted before.
    OtherMembers(Placement),
    /// The member holds something else, and catches up: it will ask for another offer.
    Differs,
    /// It is not possible now.
    NotNow,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Put a question to a member, which may be this node.
    Ask {
        /// To whom.
        to: Member,
        /// About which slot.
        slot: Slot,
        /// For this claim.
        claim: Claim,
        /// The question.
        ask: Ask,
    },
    /// Put a member, which may be this node, on the stream of the slot's commits, and offer it the history as it
    /// is at that place in the stream, to accept.
    Offer {
        /// To whom.
        to: Member,
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// The slot's members.
        set: ReplicaSet,
        /// Whether they were confirmed.
        is_confirmed: bool,
        /// The members that they are to follow, if that is not settled.
        before: Option<ReplicaSet>,
    },
    /// Fetch, of every context of the slot, the longest history that these members have.
    CatchUp {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// The members whose history is the best there is; this node may be one.
        from: Vec<Member>,
    },
    /// Record, before anything else is done, that the slot goes on without members that were declared lost.
    Recovered {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// What it goes on without, and with.
        recovery: Recovery,
    },
    /// Take appends. An append is acknowledged when so many of the members that count hold it.
    Own {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// How many.
        needed: usize,
    },
    /// Count a member's copies from now on.
    Count {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// The member.
        member: Member,
    },
    /// Send a node that is no member any more nothing further of the slot.
    Release {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// The node.
        member: Member,
    },
    /// Renew a replica's leases: put this on its stream, after all that was committed.
    Renew {
        /// The replica.
        to: Member,
        /// Slots of this node, each with its claim.
        slots: Vec<Renewal>,
    },
    /// Take no more appends, and say when those taken have their copies.
    Stop {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
    },
    /// Answer whoever handed the slot over that it is not taken here ([`Answer::NotNow`]).
    Decline {
        /// The slot.
        slot: Slot,
        /// The claim of the node that handed it over.
        claim: Claim,
    },
    /// Note in this node's record that the slot has members: [`SlotRecord::formed`].
    Formed {
        /// The slot.
        slot: Slot,
    },
    /// Take no appends, and give up those that wait for copies.
    StepDown {
        /// The slot.
        slot: Slot,
    },
}

/// An owner's word to a replica that it is a member of a slot, with all that was committed before it on the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The slot.
    pub slot: Slot,
    /// The owner's claim.
    pub claim: Claim,
    /// How old the owner's own lease is; `None`: it has none.
    pub age: Option<Millis>,
}

/// What a node knows of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The epoch whose history it holds; 0: none.
    pub accepted: Epoch,
    /// The members, as it knows them.
    pub placement: Option<Placement>,
    /// It owns the slot or heard its owner, a moment ago.
    pub is_owned: bool,
}

/// Who owns a slot, as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This node.
    Me(Epoch),
    /// Another one.
    Other(NodeId, Epoch),
    /// Nobody, with what is known of why.
    Nobody(Option<GaveUp>),
}

#[derive(Debug, Default)]
struct State {
    record: SlotRecord,
    role: Role,
    /// Nobody is seen to own it since then.
    unowned_since: Option<Millis>,
    /// No claim before.
    not_before: Millis,
    /// A move or handover that came to nothing is not tried again before.
    stays_until: Millis,
    attempts: u32,
    /// Another node was seen to own it: it has members, whether this node knows them or not.
    is_formed: bool,
    /// The highest epoch that anybody else claimed, as far as was heard: it may have been promised where this node
    /// has to be promised more.
    heard: Epoch,
    why: Option<GaveUp>,
    lease: lease::Lease,
}

#[derive(Debug, Default)]
enum Role {
    #[default]
    Replica,
    Taking(Box<Taking>),
    Leading(Box<Leading>),
}

/// This node is taking the slot.
#[derive(Debug)]
struct Taking {
    takeover: Takeover,
    /// Nodes that accepted, and whose stream is up since. Whoever's stream was lost accepted all the same, but is
    /// sent nothing more.
    in_step: BTreeSet<Member>,
    /// Offered on a stream that is up since.
    offered: BTreeSet<Member>,
    /// The phase that the deadline is for.
    phase: Phase,
    deadline: Millis,
    /// The epoch in which this node owned it until now, if it takes it from itself.
    led: Option<Epoch>,
    /// When it began.
    since: Millis,
}

/// This node owns the slot.
#[derive(Debug)]
struct Leading {
    claim: Claim,
    /// When it came to own the slot; 0 if it owned it in the epoch before.
    since: Millis,
    set: ReplicaSet,
    /// Nodes that accepted the epoch, and whose stream is up since.
    in_step: BTreeSet<Member>,
    /// Since when they are fewer than an append needs copies.
    short_since: Option<Millis>,
    /// For so long that it takes no appends until there are enough, in another epoch.
    too_few: Option<GaveUp>,
    /// Offered, and not answered yet, or catching up.
    offered: BTreeSet<Member>,
    /// A node that is to become a member once it is in step.
    learner: Option<Member>,
    ending: Option<Ending>,
    /// Whoever is due was offered the slot, or is not connected.
    is_offered: bool,
    /// When this node asked last what members answered since: that they promised nobody a higher claim.
    asked: BTreeMap<Member, Millis>,
}

impl Leading {
    /// Whether an append would wait for members, or be refused.
    fn is_halted(&self, min_copies: usize) -> bool {
        let in_step = self.set.members().iter().filter(|member| self.in_step.contains(member)).count();
        self.too_few.is_some() || in_step < min_copies.clamp(1, self.set.len())
    }
}

/// Why an owner takes no more appends.
#[derive(Debug)]
enum Ending {
    /// To be handed over.
    HandOver { to: Member, until: Millis },
    /// To be taken again with other members.
    Move { target: ReplicaSet, until: Millis },
}

#[derive(Debug)]
struct KnownNode {
    seen: Seen,
    /// When it became alive or able to own, or no longer was.
    since: Millis,
}

/// All slots of one node.
#[derive(Debug)]
pub struct Slots {
    me: Member,
    settings: Settings,
    started: Millis,
    nodes: BTreeMap<NodeId, KnownNode>,
    connected: BTreeSet<Member>,
    is_draining: bool,
    is_writable: bool,
    /// The cluster has an identity.
    is_identified: bool,
    /// What operators decided about members that are lost.
    declared: Declared,
    /// When to see whether slots should be handed over or moved.
    looks_at: Millis,
    /// The slots that it looks after: all, but in tests.
    all: Arc<[Slot]>,
    states: Vec<State>,
    /// Who is seen to own each slot.
    owners: Vec<Option<(NodeId, Epoch)>>,
    /// The newest renewal that each replica was sent.
    renewals: BTreeMap<Member, lease::Sent>,
}

impl Slots {
    /// Begins with what is on disk.
    pub fn new(
        me: Member,
        settings: Settings,
        records: impl IntoIterator<Item = (Slot, SlotRecord)>,
        now: Millis,
    ) -> Self {
        Self::of((0..SLOTS).filter_map(Slot::new), me, settings, records, now)
    }

    /// As [`Slots::new`], for a cluster that has these slots only: simulations are of a few.
    pub fn of(
        all: impl IntoIterator<Item = Slot>,
        me: Member,
        settings: Settings,
        records: impl IntoIterator<Item = (Slot, SlotRecord)>,
        now: Millis,
    ) -> Self {
        let mut slots: Vec<State> = (0..SLOTS).map(|_| State::default()).collect();
        for (slot, record) in records {
            let state = &mut slots[usize::from(slot.number())];
            (state.is_formed, state.record) = (record.was_formed, record);
        }
        Self {
            connected: BTreeSet::from([me.clone()]),
            me,
            settings,
            started: now,
            nodes: BTreeMap::new(),
            is_draining: false,
            is_writable: true,
            is_identified: false,
            declared: Declared::default(),
            looks_at: now,
            all: all.into_iter().collect(),
            states: slots,
            owners: vec![None; usize::from(SLOTS)],
            renewals: BTreeMap::new(),
        }
    }

    /// The cluster has an identity, which it gets as its first slot is formed: from now on the others may be, too. Before, two
    /// clusters that are about to form could each form some.
    pub fn identified(&mut self) {
        if !std::mem::replace(&mut self.is_identified, true) {
            // Turns are counted from now.
            self.states.iter_mut().for_each(|state| state.unowned_since = None);
        }
    }

    /// The slot with which a cluster forms.
    pub fn first(&self) -> Option<Slot> {
        self.all.first().copied()
    }

    /// Takes an event; gives what to do. Events that come late or twice are harmless.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Tick => {
                self.tick(now, &mut effects);
                self.keep_leases(now, &mut effects);
            }
            Event::Nodes(nodes) => self.saw(now, nodes, &mut effects),
            Event::Recorded(slot, Some(record)) => self.recorded(now, slot, record, &mut effects),
            // Taken for an empty one, what was promised would be forgotten.
            Event::Recorded(_, None) => {}
            Event::Connected(member) => {
                self.connected.insert(member.clone());
                self.offer_all(&member, &mut effects);
                for slot in self.all().iter().copied() {
                    self.offer_taken(&member, slot, &mut effects);
                }
            }
            Event::Lost(member) => self.lost(&member),
            Event::Answered { from, slot, claim, answer } => {
                self.answered(now, from, slot, &claim, answer, &mut effects);
            }
            Event::Offered { from, slot, claim, outcome } => {
                self.offered(now, from, slot, &claim, outcome, &mut effects);
            }
            Event::CaughtUp { slot, claim, is_complete } => {
                let event = if is_complete { takeover::Event::CaughtUp } else { takeover::Event::TimedOut };
                self.step_takeover(now, slot, &claim, event, &mut effects);
            }
            Event::Stopped(slot, claim) => self.stopped(now, slot, &claim, &mut effects),
            Event::HandedOver(slot, claim) => self.handed_over(now, slot, &claim, &mut effects),
            Event::Joins(member, slot) => self.joins(&member, slot, &mut effects),
            Event::Renewed { after, slots, .. } => self.renewed(after, &slots),
            Event::RenewalAnswered { from, refused } => {
                self.renewal_answered(now, &from, refused, &mut effects);
            }
            Event::Drain(is_draining) => self.is_draining = is_draining,
            Event::Writable(is_writable) => self.writable(now, is_writable, &mut effects),
            Event::GaveUp(slot) => {
                if !matches!(self.state(slot).role, Role::Replica) {
                    self.step_down(now, slot, None, &mut effects);
                }
            }
            Event::DeclaredLost(declared) => self.declared = declared,
        }
        effects
    }

    /// This node's record of a slot, as it last heard.
    pub fn record(&self, slot: Slot) -> &SlotRecord {
        &self.state(slot).record
    }

    /// The highest epoch that this node knows of any slot: in its records, or as others claim and say in gossip.
    pub fn highest(&self) -> Epoch {
        let of_slots = self.states.iter().map(|state| state.record.highest().max(state.heard));
        let of_gossip = self.owners.iter().flatten().map(|(_, epoch)| *epoch);
        of_slots.chain(of_gossip).max().unwrap_or_default()
    }

    /// The slots that this node owns, with their epochs: to be published. Those that it takes from itself, to move a
    /// member, are among them, or others would see that nobody owns them and claim them.
    pub fn owned(&self) -> Vec<(Slot, Epoch)> {
        let owned = |slot: Slot| match &self.state(slot).role {
            Role::Leading(leading) => Some((slot, leading.claim.epoch)),
            Role::Taking(taking) => taking.led.map(|epoch| (slot, epoch)),
            Role::Replica => None,
        };
        self.all.iter().copied().filter_map(owned).collect()
    }

    /// Of these, those that take no appends at the moment, because too few members are in step.
    pub fn halted(&self) -> Vec<Slot> {
        let is_halted = |slot: &Slot| match &self.state(*slot).role {
            Role::Leading(leading) => leading.is_halted(self.settings.min_copies),
            Role::Taking(_) | Role::Replica => false,
        };
        self.all.iter().copied().filter(is_halted).collect()
    }

    /// Who owns a slot.
    pub fn owner(&self, slot: Slot) -> Owner {
        let state = self.state(slot);
        if let Role::Leading(leading) = &state.role {
            return match &leading.too_few {
                None => Owner::Me(leading.claim.epoch),
                too_few => Owner::Nobody(too_few.clone()),
            };
        }
        match self.owned_by_other(slot) {
            Some((node, epoch)) => Owner::Other(node.clone(), *epoch),
            None => Owner::Nobody(state.why.clone().or_else(|| self.missing())),
        }
    }

    /// Another node that is seen to own a slot. What gossip says of this one may be of an earlier life.
    fn owned_by_other(&self, slot: Slot) -> Option<&(NodeId, Epoch)> {
        self.owners[usize::from(slot.number())].as_ref().filter(|(node, _)| *node != self.me.node)
    }

    /// The members of a slot this node owns that hold what it holds; `None`: it does not own it.
    pub fn in_step(&self, slot: Slot) -> Option<&BTreeSet<Member>> {
        match &self.state(slot).role {
            Role::Leading(leading) => Some(&leading.in_step),
            _ => None,
        }
    }

    /// The slots that nobody is seen to own though this node keeps them, or that it is about to take.
    pub fn unowned(&self) -> usize {
        let is_unowned = |slot: &&Slot| {
            let takes_appends =
                matches!(&self.state(**slot).role, Role::Leading(leading) if leading.too_few.is_none());
            !takes_appends && self.owned_by_other(**slot).is_none()
        };
        self.all.iter().filter(is_unowned).count()
    }

    /// The slots it looks after.
    fn all(&self) -> Arc<[Slot]> {
        Arc::clone(&self.all)
    }

    fn state(&self, slot: Slot) -> &State {
        &self.states[usize::from(slot.number())]
    }

    fn state_mut(&mut self, slot: Slot) -> &mut State {
        &mut self.states[usize::from(slot.number())]
    }

    /// Gossip shows these nodes.
    fn saw(&mut self, now: Millis, nodes: Vec<Seen>, effects: &mut Vec<Effect>) {
        let mut before = std::mem::take(&mut self.nodes);
        for seen in nodes {
            let since = match before.remove(&seen.member.node) {
                Some(KnownNode { seen: known, since })
                    if known.member == seen.member
                        && (known.is_alive, known.is_writable) == (seen.is_alive, seen.is_writable) =>
                {
                    since
                }
                _ => now,
            };
            self.nodes.insert(seen.member.node.clone(), KnownNode { seen, since });
        }
        // A node that gossip forgot is away all the same.
        for (node, known) in before {
            let since = if known.seen.is_alive { now } else { known.since };
            if now.saturating_sub(since) < self.settings.placement_grace {
                let seen = Seen { is_alive: false, owned: BTreeMap::new(), ..known.seen };
                self.nodes.insert(node, KnownNode { seen, since });
            }
        }
        self.owners.fill(None);
        for known in self.nodes.values().filter(|known| known.seen.is_alive) {
            for (slot, epoch) in &known.seen.owned {
                let owner = &mut self.owners[usize::from(slot.number())];
                if owner.as_ref().is_none_or(|(_, highest)| epoch > highest) {
                    *owner = Some((known.seen.member.node.clone(), *epoch));
                }
            }
        }
        for slot in self.all().iter().copied() {
            // A higher claim in gossip is as good as a refusal.
            if let Some((node, epoch)) = self.owned_by_other(slot).cloned() {
                let state = self.state_mut(slot);
                if !std::mem::replace(&mut state.is_formed, true) && state.record.placement.is_none() {
                    effects.push(Effect::Formed { slot });
                }
                self.claimed(now, slot, Claim { epoch, claimant: node }, effects);
            }
        }
    }

    /// Somebody claims a slot: what is lower ends.
    fn claimed(&mut self, now: Millis, slot: Slot, by: Claim, effects: &mut Vec<Effect>) {
        let state = self.state_mut(slot);
        state.heard = state.heard.max(by.epoch);
        match &self.state(slot).role {
            Role::Taking(taking) => {
                let claim = taking.takeover.claim().clone();
                self.step_takeover(now, slot, &claim, takeover::Event::Refused { promised: by }, effects);
            }
            Role::Leading(leading) if by > leading.claim => {
                self.step_down(now, slot, Some(GaveUp::Claimed(by)), effects);
            }
            Role::Replica | Role::Leading(_) => {}
        }
    }

    fn recorded(&mut self, now: Millis, slot: Slot, record: SlotRecord, effects: &mut Vec<Effect>) {
        let promised = record.promised.clone();
        let state = self.state_mut(slot);
        state.record = record;
        state.forget_superseded();
        if let Some(promised) = promised
            && promised.claimant != self.me.node
        {
            self.claimed(now, slot, promised, effects);
        }
    }

    /// The disk fails, or is full: what it cannot write others have to.
    fn writable(&mut self, now: Millis, is_writable: bool, effects: &mut Vec<Effect>) {
        self.is_writable = is_writable;
        if is_writable {
            return;
        }
        for slot in self.all().iter().copied() {
            if !matches!(self.state(slot).role, Role::Replica) {
                self.step_down(now, slot, None, effects);
            }
        }
    }

    fn step_down(&mut self, now: Millis, slot: Slot, why: Option<GaveUp>, effects: &mut Vec<Effect>) {
        let pause = self.back_off(slot);
        let state = self.state_mut(slot);
        state.role = Role::Replica;
        state.why = why;
        state.attempts = state.attempts.saturating_add(1);
        state.unowned_since = None;
        state.not_before = now + pause;
        effects.push(Effect::StepDown { slot });
    }

    fn answered(
        &mut self,
        now: Millis,
        from: Member,
        slot: Slot,
        claim: &Claim,
        answer: Answer,
        effects: &mut Vec<Effect>,
    ) {
        let event = match answer {
            Answer::Promised(promise) => takeover::Event::Promised { from, promise },
            Answer::Done => {
                // Of a handover it says nothing: the promise that follows does.
                takeover::Event::Confirmed { from }
            }
            Answer::Refused(promised) => {
                self.claimed(now, slot, promised.clone(), effects);
                takeover::Event::Refused { promised }
            }
            Answer::NotNow => return self.not_now(now, &from, slot, claim, effects),
            Answer::Known { asked, known } => return self.known(from, slot, asked, known),
        };
        self.step_takeover(now, slot, claim, event, effects);
    }

    fn offered(
        &mut self,
        now: Millis,
        from: Member,
        slot: Slot,
        claim: &Claim,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        let catch_up_within = self.settings.catch_up_within;
        match outcome {
            Outcome::Refused(promised) => self.claimed(now, slot, promised, effects),
            Outcome::Accepted => {
                if let Role::Leading(leading) = &mut self.state_mut(slot).role
                    && leading.claim == *claim
                {
                    leading.offered.remove(&from);
                    leading.in_step.insert(from.clone());
                    if leading.set.contains(&from) {
                        effects.push(Effect::Count { slot, claim: claim.clone(), member: from });
                    }
                    return;
                }
                if let Role::Taking(taking) = &mut self.state_mut(slot).role
                    && taking.takeover.claim() == claim
                {
                    taking.in_step.insert(from.clone());
                }
                self.step_takeover(now, slot, claim, takeover::Event::Accepted { from }, effects);
            }
            Outcome::OtherMembers(placement) => {
                self.step_takeover(now, slot, claim, takeover::Event::OtherMembers(placement), effects);
            }
            Outcome::Differs => match &mut self.state_mut(slot).role {
                Role::Taking(taking) if taking.takeover.claim() == claim => {
                    taking.deadline = now + catch_up_within;
                }
                _ => {}
            },
            // The next tick offers again.
            Outcome::NotNow => match &mut self.state_mut(slot).role {
                Role::Taking(taking) => _ = taking.offered.remove(&from),
                Role::Leading(leading) => {
                    leading.offered.remove(&from);
                    leading.is_offered = false;
                }
                Role::Replica => {}
            },
        }
    }

    fn step_takeover(
        &mut self,
        now: Millis,
        slot: Slot,
        claim: &Claim,
        event: takeover::Event,
        effects: &mut Vec<Effect>,
    ) {
        let Role::Taking(taking) = &mut self.state_mut(slot).role else { return };
        if taking.takeover.claim() != claim {
            return;
        }
        let todo = taking.takeover.step(event);
        self.do_takeover(now, slot, claim, todo, effects);
    }

    fn do_takeover(
        &mut self,
        now: Millis,
        slot: Slot,
        claim: &Claim,
        todo: Vec<takeover::Effect>,
        effects: &mut Vec<Effect>,
    ) {
        let answer_within = self.settings.answer_within;
        for effect in todo {
            let ask = |to, ask| Effect::Ask { to, slot, claim: claim.clone(), ask };
            match effect {
                takeover::Effect::Ask { of } => effects.push(ask(of, Ask::Promise)),
                takeover::Effect::Confirm { by } => effects.push(ask(by, Ask::Confirm)),
                // Whose stream is not up is offered it when it comes up.
                takeover::Effect::Accept { by, .. } => self.offer_taken(&by, slot, effects),
                takeover::Effect::CatchUp { from } => {
                    effects.push(Effect::CatchUp { slot, claim: claim.clone(), from });
                }
                takeover::Effect::Own => self.own(now, slot, effects),
                takeover::Effect::GiveUp(why) => return self.step_down(now, slot, Some(why), effects),
            }
        }
        if let Role::Taking(taking) = &mut self.state_mut(slot).role
            && taking.phase != taking.takeover.phase()
        {
            taking.phase = taking.takeover.phase();
            taking.deadline = match taking.phase {
                // Whoever fetches says when it cannot.
                Phase::CatchingUp => Millis::MAX,
                _ => now + answer_within,
            };
        }
    }

    /// Nodes that are alive, as candidates for the members of a slot.
    fn candidates(&self, is_candidate: impl Fn(&KnownNode) -> bool) -> Vec<Candidate> {
        let known = self.nodes.values().filter(|known| is_candidate(known));
        known
            .map(|known| Candidate { node: known.seen.member.node.clone(), zone: known.seen.zone.clone() })
            .collect()
    }

    fn member(&self, node: &NodeId) -> Option<&Member> {
        self.nodes.get(node).map(|known| &known.seen.member)
    }

    /// Whether a member is alive, with the data directory it was a member with.
    fn is_alive(&self, member: &Member) -> bool {
        self.nodes.get(&member.node).is_some_and(|known| known.seen.is_alive && known.seen.member == *member)
    }

    fn is_draining(&self, node: &NodeId) -> bool {
        if *node == self.me.node {
            return self.is_draining;
        }
        self.nodes.get(node).is_some_and(|known| known.seen.is_draining)
    }

    fn is_writable(&self, node: &NodeId) -> bool {
        if *node == self.me.node {
            return self.is_writable;
        }
        self.nodes.get(node).is_some_and(|known| known.seen.is_writable)
    }

    /// How a node leaves for good, if it does.
    fn leaving(&self, node: &NodeId) -> Option<Leaving> {
        self.nodes.get(node)?.seen.leaving
    }

    /// The members a slot should have, the most preferred first.
    fn wanted(&self, now: Millis, slot: Slot) -> Vec<NodeId> {
        let grace = self.settings.placement_grace;
        let candidates = self.candidates(|KnownNode { seen, since }| {
            let is_there = seen.is_alive || now.saturating_sub(*since) < grace;
            is_there && seen.leaving.is_none() && !self.declared.lost.contains(&seen.member)
        });
        rendezvous::wanted_set(slot, candidates, self.settings.copies)
    }
}
