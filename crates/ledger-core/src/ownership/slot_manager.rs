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

use super::{
    Claim, DeclaredLosses, Phase, Placement, Promise, Recovery, SlotRecord, Takeover, TakeoverFailure,
    takeover,
};
use crate::{
    Epoch,
    node::{Member, NodeId, ReplicaSet},
    rendezvous::{self, PlacementCandidate},
    slot::{SLOTS, Slot},
};

mod claiming;
mod lease;
mod owner;
#[cfg(test)]
mod tests;

/// A time, milliseconds since any moment that stays the same.
pub type Millis = u64;

/// Epochs up to this are those of standalone nodes: what a cluster writes comes after.
const STANDALONE_EPOCHS: Epoch = Epoch::new(1, u32::MAX);

/// How a node goes about its slots.
#[derive(Debug, Clone)]
pub struct OwnershipSettings {
    /// Copies there should be of a slot, 1 to 7.
    pub replication_factor: usize,
    /// Copies after which an append is acknowledged.
    pub write_quorum: usize,
    /// The nodes that form the cluster, the first time; empty: whoever is there, once they are `replication_factor`.
    pub first_nodes: Vec<NodeId>,
    /// How long a node listens to gossip before it claims anything.
    pub settle_time: Millis,
    /// How long the next member waits for the one before it to claim.
    pub claim_turn: Millis,
    /// How long members may take to answer.
    pub response_timeout: Millis,
    /// How long a member may take to catch up before the takeover that waits for it starts again.
    pub catch_up_timeout: Millis,
    /// How long a node must be alive before slots are handed back to it, and how long whoever takes a slot keeps it:
    /// it may not have heard yet why the owner before gave it away.
    pub stable_after: Millis,
    /// How long an owner may have fewer members in step, or on the way there, than an append needs copies, before it
    /// takes no more appends: its writers are told so then, instead of waiting for copies that nobody can make.
    pub quorum_loss_grace: Millis,
    /// How long a node may be away before its place is given to another.
    pub placement_grace: Millis,
    /// Slots that are handed over or moved at a time.
    pub max_transfers: usize,
    /// The oldest that readers are shown: see [`SlotManager::shown_until`]. `None`: as old as it may be.
    pub max_staleness: Option<Millis>,
}

impl Default for OwnershipSettings {
    fn default() -> Self {
        Self {
            replication_factor: 3,
            write_quorum: 2,
            first_nodes: Vec::new(),
            settle_time: 1_500,
            claim_turn: 1_000,
            response_timeout: 1_500,
            catch_up_timeout: 60_000,
            stable_after: 3_000,
            quorum_loss_grace: 10_000,
            placement_grace: 600_000,
            max_transfers: 128,
            max_staleness: Some(10_000),
        }
    }
}

/// A node as gossip shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedNode {
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
    pub decommission: Option<DecommissionMode>,
    /// The slots it says it owns.
    pub owned: BTreeMap<Slot, Epoch>,
}

/// How a node leaves for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecommissionMode {
    /// Once another node keeps each of its copies.
    Replaced,
    /// Where there is no other node, slots may go on with fewer members, but with no fewer than an append needs.
    AllowFewer,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time has passed: comes several times a second.
    Tick,
    /// Gossip shows these nodes, this one among them.
    NodesObserved(Vec<ObservedNode>),
    /// This node's own record of a slot as it is on disk, after it was changed. `None`: it cannot be read, and what is known
    /// of it stays.
    RecordChanged(Slot, Option<SlotRecord>),
    /// The stream to a node is up: what it is sent from now on arrives in order, or the stream is lost.
    PeerConnected(Member),
    /// The stream to a node is lost.
    PeerDisconnected(Member),
    /// A question was answered.
    Response {
        /// By whom.
        from: Member,
        /// About which slot.
        slot: Slot,
        /// The claim that the question was for.
        claim: Claim,
        /// What was answered.
        answer: MemberResponse,
    },
    /// An offer was answered.
    SyncOfferAnswered {
        /// By whom.
        from: Member,
        /// The slot.
        slot: Slot,
        /// The claim that the offer was for.
        claim: Claim,
        /// What became of it.
        outcome: SyncOfferOutcome,
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
    /// [`Effect::StopAppends`] is done: everything appended before has its copies.
    AppendsStopped(Slot, Claim),
    /// The owner of a slot hands it over to this node.
    HandoverReceived(Slot, Claim),
    /// A replica of a slot asks for an offer.
    SyncRequested(Member, Slot),
    /// The owner of slots renews this replica's leases, on its stream.
    LeaseRenewed {
        /// The owner.
        from: Member,
        /// The owner sent the renewal after this moment: this node had answered the one before, or taken the stream.
        after: Millis,
        /// Those of the slots that this replica is in sync with, and how old the owner's own lease was.
        slots: Vec<(Slot, Millis)>,
    },
    /// A replica answered [`Effect::RenewLeases`].
    LeaseRenewalAnswered {
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
    OwnershipLost(Slot),
    /// Operators declared members lost for good: see [`super::recovery`].
    LossesDeclared(DeclaredLosses),
}

/// A question to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRequest {
    /// Promise the claim.
    Promise,
    /// Note that enough have accepted the members.
    ConfirmMembers,
    /// The slot is handed over to you.
    TakeOver,
    /// Say what you know of the slot. `sent_at`: when, by the clock of whoever asks.
    QuerySlot {
        /// Comes back with the answer.
        sent_at: Millis,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberResponse {
    /// To [`MemberRequest::Promise`].
    Promised(Promise),
    /// To [`MemberRequest::QuerySlot`].
    SlotKnown {
        /// When it was asked.
        asked: Millis,
        /// What is known.
        known: SlotKnowledge,
    },
    /// To the others.
    Done,
    /// A higher claim was promised.
    Refused(Claim),
    /// It is not possible now, or nobody answered.
    Unavailable,
}

/// What became of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncOfferOutcome {
    /// It is accepted, and on disk.
    Accepted,
    /// A higher claim was promised.
    Refused(Claim),
    /// Other first members were accepted before.
    OtherMembers(Placement),
    /// The member holds something else, and catches up: it will ask for another offer.
    Diverged,
    /// It is not possible now.
    Unavailable,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Put a question to a member, which may be this node.
    SendRequest {
        /// To whom.
        to: Member,
        /// About which slot.
        slot: Slot,
        /// For this claim.
        claim: Claim,
        /// The question.
        request: MemberRequest,
    },
    /// Put a member, which may be this node, on the stream of the slot's commits, and offer it the history as it
    /// is at that place in the stream, to accept.
    OfferSync {
        /// To whom.
        to: Member,
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// The slot's members.
        members: ReplicaSet,
        /// Whether they were confirmed.
        is_confirmed: bool,
        /// The members that they are to follow, if that is not settled.
        previous: Option<ReplicaSet>,
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
    RecordRecovery {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// What it goes on without, and with.
        recovery: Recovery,
    },
    /// Take appends. An append is acknowledged when so many of the members that count hold it.
    BeginServing {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// How many.
        write_quorum: usize,
    },
    /// Count a member's copies from now on.
    AddInSync {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// The member.
        member: Member,
    },
    /// Send a node that is no member any more nothing further of the slot.
    RemoveReplica {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
        /// The node.
        member: Member,
    },
    /// Renew a replica's leases: put this on its stream, after all that was committed.
    RenewLeases {
        /// The replica.
        to: Member,
        /// Slots of this node, each with its claim.
        slots: Vec<LeaseRenewal>,
    },
    /// Take no more appends, and say when those taken have their copies.
    StopAppends {
        /// The slot.
        slot: Slot,
        /// The claim.
        claim: Claim,
    },
    /// Answer whoever handed the slot over that it is not taken here ([`MemberResponse::Unavailable`]).
    DeclineHandover {
        /// The slot.
        slot: Slot,
        /// The claim of the node that handed it over.
        claim: Claim,
    },
    /// Note in this node's record that the slot has members: [`SlotRecord::formed`].
    RecordFormed {
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
pub struct LeaseRenewal {
    /// The slot.
    pub slot: Slot,
    /// The owner's claim.
    pub claim: Claim,
    /// How old the owner's own lease is; `None`: it has none.
    pub age: Option<Millis>,
}

/// What a node knows of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotKnowledge {
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
    Nobody(Option<TakeoverFailure>),
}

#[derive(Debug, Default)]
struct SlotState {
    record: SlotRecord,
    role: Role,
    /// Nobody is seen to own it since then.
    unowned_since: Option<Millis>,
    /// No claim before.
    not_before: Millis,
    /// A move or handover that came to nothing is not tried again before.
    no_transfer_before: Millis,
    attempts: u32,
    /// Another node was seen to own it: it has members, whether this node knows them or not.
    is_formed: bool,
    /// The highest epoch that anybody else claimed, as far as was heard: it may have been promised where this node
    /// has to be promised more.
    highest_heard: Epoch,
    unowned_reason: Option<TakeoverFailure>,
    lease: lease::Lease,
}

#[derive(Debug, Default)]
enum Role {
    #[default]
    Replica,
    Candidate(Box<CandidateState>),
    Owner(Box<OwnerState>),
}

/// This node is taking the slot.
#[derive(Debug)]
struct CandidateState {
    takeover: Takeover,
    /// Nodes that accepted, and whose stream is up since. Whoever's stream was lost accepted all the same, but is
    /// sent nothing more.
    in_sync: BTreeSet<Member>,
    /// Offered on a stream that is up since.
    offered: BTreeSet<Member>,
    /// The phase that the deadline is for.
    phase: Phase,
    deadline: Millis,
    /// The epoch in which this node owned it until now, if it takes it from itself.
    owned_epoch: Option<Epoch>,
    /// When it began.
    since: Millis,
}

/// This node owns the slot.
#[derive(Debug)]
struct OwnerState {
    claim: Claim,
    /// When it came to own the slot; 0 if it owned it in the epoch before.
    since: Millis,
    members: ReplicaSet,
    /// Nodes that accepted the epoch, and whose stream is up since.
    in_sync: BTreeSet<Member>,
    /// Since when they are fewer than an append needs copies.
    short_since: Option<Millis>,
    /// For so long that it takes no appends until there are enough, in another epoch.
    is_halted_for_quorum: Option<TakeoverFailure>,
    /// Offered, and not answered yet, or catching up.
    offered: BTreeSet<Member>,
    /// A node that is to become a member once it is in sync.
    learner: Option<Member>,
    transferring: Option<Transferring>,
    /// Whoever is due was offered the slot, or is not connected.
    is_offered: bool,
    /// When this node asked last what members answered since: that they promised nobody a higher claim.
    promises_checked_at: BTreeMap<Member, Millis>,
}

impl OwnerState {
    /// Whether an append would wait for members, or be refused.
    fn is_halted(&self, min_copies: usize) -> bool {
        let in_step = self.members.members().iter().filter(|member| self.in_sync.contains(member)).count();
        self.is_halted_for_quorum.is_some() || in_step < min_copies.clamp(1, self.members.len())
    }
}

/// Why an owner takes no more appends.
#[derive(Debug)]
enum Transferring {
    /// To be handed over.
    Handover { to: Member, until: Millis },
    /// To be taken again with other members.
    Move { target: ReplicaSet, until: Millis },
}

#[derive(Debug)]
struct KnownNode {
    observed: ObservedNode,
    /// When it became alive or able to own, or no longer was.
    since: Millis,
}

/// All slots of one node.
#[derive(Debug)]
pub struct SlotManager {
    me: Member,
    settings: OwnershipSettings,
    started: Millis,
    nodes: BTreeMap<NodeId, KnownNode>,
    connected: BTreeSet<Member>,
    is_draining: bool,
    is_writable: bool,
    /// The cluster has an identity.
    is_identified: bool,
    /// What operators decided about members that are lost.
    declared: DeclaredLosses,
    /// When to see whether slots should be handed over or moved.
    next_transfer_check: Millis,
    /// The slots that it looks after: all, but in tests.
    all: Arc<[Slot]>,
    states: Vec<SlotState>,
    /// Who is seen to own each slot.
    owners: Vec<Option<(NodeId, Epoch)>>,
    /// The newest renewal that each replica was sent.
    renewals: BTreeMap<Member, lease::SentRenewal>,
}

impl SlotManager {
    /// Begins with what is on disk.
    pub fn new(
        me: Member,
        settings: OwnershipSettings,
        records: impl IntoIterator<Item = (Slot, SlotRecord)>,
        now: Millis,
    ) -> Self {
        Self::of((0..SLOTS).filter_map(Slot::new), me, settings, records, now)
    }

    /// As [`SlotManager::new`], for a cluster that has these slots only: simulations are of a few.
    pub fn of(
        all: impl IntoIterator<Item = Slot>,
        me: Member,
        settings: OwnershipSettings,
        records: impl IntoIterator<Item = (Slot, SlotRecord)>,
        now: Millis,
    ) -> Self {
        let mut slots: Vec<SlotState> = (0..SLOTS).map(|_| SlotState::default()).collect();
        for (slot, record) in records {
            let state = &mut slots[usize::from(slot.number())];
            (state.is_formed, state.record) = (record.is_formed, record);
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
            declared: DeclaredLosses::default(),
            next_transfer_check: now,
            all: all.into_iter().collect(),
            states: slots,
            owners: vec![None; usize::from(SLOTS)],
            renewals: BTreeMap::new(),
        }
    }

    /// The cluster has an identity, which it gets as its first slot is formed: from now on the others may be, too. Before, two
    /// clusters that are about to form could each form some.
    pub fn set_identified(&mut self) {
        if !std::mem::replace(&mut self.is_identified, true) {
            // Turns are counted from now.
            self.states.iter_mut().for_each(|state| state.unowned_since = None);
        }
    }

    /// The slot with which a cluster forms.
    pub fn first_slot(&self) -> Option<Slot> {
        self.all.first().copied()
    }

    /// Takes an event; gives what to do. Events that come late or twice are harmless.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Tick => {
                self.tick(now, &mut effects);
                self.maintain_leases(now, &mut effects);
            }
            Event::NodesObserved(nodes) => self.on_nodes_observed(now, nodes, &mut effects),
            Event::RecordChanged(slot, Some(record)) => {
                self.on_record_changed(now, slot, record, &mut effects);
            }
            // Taken for an empty one, what was promised would be forgotten.
            Event::RecordChanged(_, None) => {}
            Event::PeerConnected(member) => {
                self.connected.insert(member.clone());
                self.offer_sync_on_connect(&member, &mut effects);
                for slot in self.all().iter().copied() {
                    self.offer_takeover_sync(&member, slot, &mut effects);
                }
            }
            Event::PeerDisconnected(member) => self.on_peer_disconnected(&member),
            Event::Response { from, slot, claim, answer } => {
                self.on_response(now, from, slot, &claim, answer, &mut effects);
            }
            Event::SyncOfferAnswered { from, slot, claim, outcome } => {
                self.on_sync_offer_answered(now, from, slot, &claim, outcome, &mut effects);
            }
            Event::CaughtUp { slot, claim, is_complete } => {
                let event = if is_complete { takeover::Event::CaughtUp } else { takeover::Event::TimedOut };
                self.step_takeover(now, slot, &claim, event, &mut effects);
            }
            Event::AppendsStopped(slot, claim) => self.on_appends_stopped(now, slot, &claim, &mut effects),
            Event::HandoverReceived(slot, claim) => self.on_handover(now, slot, &claim, &mut effects),
            Event::SyncRequested(member, slot) => self.on_sync_request(&member, slot, &mut effects),
            Event::LeaseRenewed { after, slots, .. } => self.on_lease_renewed(after, &slots),
            Event::LeaseRenewalAnswered { from, refused } => {
                self.on_renewal_answered(now, &from, refused, &mut effects);
            }
            Event::Drain(is_draining) => self.is_draining = is_draining,
            Event::Writable(is_writable) => self.on_writable_changed(now, is_writable, &mut effects),
            Event::OwnershipLost(slot) => {
                if !matches!(self.state(slot).role, Role::Replica) {
                    self.step_down(now, slot, None, &mut effects);
                }
            }
            Event::LossesDeclared(declared) => self.declared = declared,
        }
        effects
    }

    /// This node's record of a slot, as it last heard.
    pub fn record(&self, slot: Slot) -> &SlotRecord {
        &self.state(slot).record
    }

    /// The highest epoch that this node knows of any slot: in its records, or as others claim and say in gossip.
    pub fn highest(&self) -> Epoch {
        let of_slots = self.states.iter().map(|state| state.record.highest_epoch().max(state.highest_heard));
        let of_gossip = self.owners.iter().flatten().map(|(_, epoch)| *epoch);
        of_slots.chain(of_gossip).max().unwrap_or_default()
    }

    /// The slots that this node owns, with their epochs: to be published. Those that it takes from itself, to move a
    /// member, are among them, or others would see that nobody owns them and claim them.
    pub fn owned(&self) -> Vec<(Slot, Epoch)> {
        let owned = |slot: Slot| match &self.state(slot).role {
            Role::Owner(leading) => Some((slot, leading.claim.epoch)),
            Role::Candidate(taking) => taking.owned_epoch.map(|epoch| (slot, epoch)),
            Role::Replica => None,
        };
        self.all.iter().copied().filter_map(owned).collect()
    }

    /// Of these, those that take no appends at the moment, because too few members are in sync.
    pub fn halted(&self) -> Vec<Slot> {
        let is_halted = |slot: &Slot| match &self.state(*slot).role {
            Role::Owner(leading) => leading.is_halted(self.settings.write_quorum),
            Role::Candidate(_) | Role::Replica => false,
        };
        self.all.iter().copied().filter(is_halted).collect()
    }

    /// Who owns a slot.
    pub fn owner(&self, slot: Slot) -> Owner {
        let state = self.state(slot);
        if let Role::Owner(leading) = &state.role {
            return match &leading.is_halted_for_quorum {
                None => Owner::Me(leading.claim.epoch),
                too_few => Owner::Nobody(too_few.clone()),
            };
        }
        match self.owned_by_other(slot) {
            Some((node, epoch)) => Owner::Other(node.clone(), *epoch),
            None => Owner::Nobody(state.unowned_reason.clone().or_else(|| self.missing_members())),
        }
    }

    /// Another node that is seen to own a slot. What gossip says of this one may be of an earlier life.
    fn owned_by_other(&self, slot: Slot) -> Option<&(NodeId, Epoch)> {
        self.owners[usize::from(slot.number())].as_ref().filter(|(node, _)| *node != self.me.node)
    }

    /// The members of a slot this node owns that hold what it holds; `None`: it does not own it.
    pub fn in_sync(&self, slot: Slot) -> Option<&BTreeSet<Member>> {
        match &self.state(slot).role {
            Role::Owner(leading) => Some(&leading.in_sync),
            _ => None,
        }
    }

    /// The slots that nobody is seen to own though this node keeps them, or that it is about to take.
    pub fn unowned(&self) -> usize {
        let is_unowned = |slot: &&Slot| {
            let takes_appends = matches!(&self.state(**slot).role, Role::Owner(leading) if leading.is_halted_for_quorum.is_none());
            !takes_appends && self.owned_by_other(**slot).is_none()
        };
        self.all.iter().filter(is_unowned).count()
    }

    /// The slots it looks after.
    fn all(&self) -> Arc<[Slot]> {
        Arc::clone(&self.all)
    }

    fn state(&self, slot: Slot) -> &SlotState {
        &self.states[usize::from(slot.number())]
    }

    fn state_mut(&mut self, slot: Slot) -> &mut SlotState {
        &mut self.states[usize::from(slot.number())]
    }

    /// Gossip shows these nodes.
    fn on_nodes_observed(&mut self, now: Millis, nodes: Vec<ObservedNode>, effects: &mut Vec<Effect>) {
        let mut before = std::mem::take(&mut self.nodes);
        for observed in nodes {
            let since = match before.remove(&observed.member.node) {
                Some(KnownNode { observed: known, since })
                    if known.member == observed.member
                        && (known.is_alive, known.is_writable)
                            == (observed.is_alive, observed.is_writable) =>
                {
                    since
                }
                _ => now,
            };
            self.nodes.insert(observed.member.node.clone(), KnownNode { observed, since });
        }
        // A node that gossip forgot is away all the same.
        for (node, known) in before {
            let since = if known.observed.is_alive { now } else { known.since };
            if now.saturating_sub(since) < self.settings.placement_grace {
                let observed = ObservedNode { is_alive: false, owned: BTreeMap::new(), ..known.observed };
                self.nodes.insert(node, KnownNode { observed, since });
            }
        }
        self.owners.fill(None);
        for known in self.nodes.values().filter(|known| known.observed.is_alive) {
            for (slot, epoch) in &known.observed.owned {
                let owner = &mut self.owners[usize::from(slot.number())];
                if owner.as_ref().is_none_or(|(_, highest)| epoch > highest) {
                    *owner = Some((known.observed.member.node.clone(), *epoch));
                }
            }
        }
        for slot in self.all().iter().copied() {
            // A higher claim in gossip is as good as a refusal.
            if let Some((node, epoch)) = self.owned_by_other(slot).cloned() {
                let state = self.state_mut(slot);
                if !std::mem::replace(&mut state.is_formed, true) && state.record.placement.is_none() {
                    effects.push(Effect::RecordFormed { slot });
                }
                self.on_claim_heard(now, slot, Claim { epoch, claimant: node }, effects);
            }
        }
    }

    /// Somebody claims a slot: what is lower ends.
    fn on_claim_heard(&mut self, now: Millis, slot: Slot, by: Claim, effects: &mut Vec<Effect>) {
        let state = self.state_mut(slot);
        state.highest_heard = state.highest_heard.max(by.epoch);
        match &self.state(slot).role {
            Role::Candidate(taking) => {
                let claim = taking.takeover.claim().clone();
                self.step_takeover(now, slot, &claim, takeover::Event::HigherClaim { promised: by }, effects);
            }
            Role::Owner(leading) if by > leading.claim => {
                self.step_down(now, slot, Some(TakeoverFailure::HigherClaim(by)), effects);
            }
            Role::Replica | Role::Owner(_) => {}
        }
    }

    fn on_record_changed(&mut self, now: Millis, slot: Slot, record: SlotRecord, effects: &mut Vec<Effect>) {
        let promised = record.promised.clone();
        let state = self.state_mut(slot);
        state.record = record;
        state.forget_superseded();
        if let Some(promised) = promised
            && promised.claimant != self.me.node
        {
            self.on_claim_heard(now, slot, promised, effects);
        }
    }

    /// The disk fails, or is full: what it cannot write others have to.
    fn on_writable_changed(&mut self, now: Millis, is_writable: bool, effects: &mut Vec<Effect>) {
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

    fn step_down(
        &mut self,
        now: Millis,
        slot: Slot,
        why: Option<TakeoverFailure>,
        effects: &mut Vec<Effect>,
    ) {
        let pause = self.claim_backoff(slot);
        let state = self.state_mut(slot);
        state.role = Role::Replica;
        state.unowned_reason = why;
        state.attempts = state.attempts.saturating_add(1);
        state.unowned_since = None;
        state.not_before = now + pause;
        effects.push(Effect::StepDown { slot });
    }

    fn on_response(
        &mut self,
        now: Millis,
        from: Member,
        slot: Slot,
        claim: &Claim,
        answer: MemberResponse,
        effects: &mut Vec<Effect>,
    ) {
        let event = match answer {
            MemberResponse::Promised(promise) => takeover::Event::Promised { from, promise },
            MemberResponse::Done => {
                // Of a handover it says nothing: the promise that follows does.
                takeover::Event::Confirmed { from }
            }
            MemberResponse::Refused(promised) => {
                self.on_claim_heard(now, slot, promised.clone(), effects);
                takeover::Event::HigherClaim { promised }
            }
            MemberResponse::Unavailable => return self.on_request_failed(now, &from, slot, claim, effects),
            MemberResponse::SlotKnown { asked, known } => {
                return self.on_slot_known(from, slot, asked, known);
            }
        };
        self.step_takeover(now, slot, claim, event, effects);
    }

    fn on_sync_offer_answered(
        &mut self,
        now: Millis,
        from: Member,
        slot: Slot,
        claim: &Claim,
        outcome: SyncOfferOutcome,
        effects: &mut Vec<Effect>,
    ) {
        let catch_up_within = self.settings.catch_up_timeout;
        match outcome {
            SyncOfferOutcome::Refused(promised) => self.on_claim_heard(now, slot, promised, effects),
            SyncOfferOutcome::Accepted => {
                if let Role::Owner(leading) = &mut self.state_mut(slot).role
                    && leading.claim == *claim
                {
                    leading.offered.remove(&from);
                    leading.in_sync.insert(from.clone());
                    if leading.members.contains(&from) {
                        effects.push(Effect::AddInSync { slot, claim: claim.clone(), member: from });
                    }
                    return;
                }
                if let Role::Candidate(taking) = &mut self.state_mut(slot).role
                    && taking.takeover.claim() == claim
                {
                    taking.in_sync.insert(from.clone());
                }
                self.step_takeover(now, slot, claim, takeover::Event::Accepted { from }, effects);
            }
            SyncOfferOutcome::OtherMembers(placement) => {
                self.step_takeover(now, slot, claim, takeover::Event::OtherMembers(placement), effects);
            }
            SyncOfferOutcome::Diverged => match &mut self.state_mut(slot).role {
                Role::Candidate(taking) if taking.takeover.claim() == claim => {
                    taking.deadline = now + catch_up_within;
                }
                _ => {}
            },
            // The next tick offers again.
            SyncOfferOutcome::Unavailable => match &mut self.state_mut(slot).role {
                Role::Candidate(taking) => _ = taking.offered.remove(&from),
                Role::Owner(leading) => {
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
        let Role::Candidate(taking) = &mut self.state_mut(slot).role else { return };
        if taking.takeover.claim() != claim {
            return;
        }
        let todo = taking.takeover.step(event);
        self.apply_takeover_effects(now, slot, claim, todo, effects);
    }

    fn apply_takeover_effects(
        &mut self,
        now: Millis,
        slot: Slot,
        claim: &Claim,
        todo: Vec<takeover::Effect>,
        effects: &mut Vec<Effect>,
    ) {
        let answer_within = self.settings.response_timeout;
        for effect in todo {
            let ask = |to, request| Effect::SendRequest { to, slot, claim: claim.clone(), request };
            match effect {
                takeover::Effect::RequestPromise { member } => {
                    effects.push(ask(member, MemberRequest::Promise));
                }
                takeover::Effect::Confirm { member } => {
                    effects.push(ask(member, MemberRequest::ConfirmMembers));
                }
                // Whose stream is not up is offered it when it comes up.
                takeover::Effect::Accept { member, .. } => self.offer_takeover_sync(&member, slot, effects),
                takeover::Effect::CatchUp { from } => {
                    effects.push(Effect::CatchUp { slot, claim: claim.clone(), from });
                }
                takeover::Effect::BecomeOwner => self.become_owner(now, slot, effects),
                takeover::Effect::Abandon(why) => return self.step_down(now, slot, Some(why), effects),
            }
        }
        if let Role::Candidate(taking) = &mut self.state_mut(slot).role
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
    fn candidates(&self, is_candidate: impl Fn(&KnownNode) -> bool) -> Vec<PlacementCandidate> {
        let known = self.nodes.values().filter(|known| is_candidate(known));
        known
            .map(|known| PlacementCandidate {
                node: known.observed.member.node.clone(),
                zone: known.observed.zone.clone(),
            })
            .collect()
    }

    fn member(&self, node: &NodeId) -> Option<&Member> {
        self.nodes.get(node).map(|known| &known.observed.member)
    }

    /// Whether a member is alive, with the data directory it was a member with.
    fn is_alive(&self, member: &Member) -> bool {
        self.nodes
            .get(&member.node)
            .is_some_and(|known| known.observed.is_alive && known.observed.member == *member)
    }

    fn is_draining(&self, node: &NodeId) -> bool {
        if *node == self.me.node {
            return self.is_draining;
        }
        self.nodes.get(node).is_some_and(|known| known.observed.is_draining)
    }

    fn is_writable(&self, node: &NodeId) -> bool {
        if *node == self.me.node {
            return self.is_writable;
        }
        self.nodes.get(node).is_some_and(|known| known.observed.is_writable)
    }

    /// How a node leaves for good, if it does.
    fn decommission_of(&self, node: &NodeId) -> Option<DecommissionMode> {
        self.nodes.get(node)?.observed.decommission
    }

    /// The members a slot should have, the most preferred first.
    fn desired_members(&self, now: Millis, slot: Slot) -> Vec<NodeId> {
        let grace = self.settings.placement_grace;
        let candidates = self.candidates(|KnownNode { observed, since }| {
            let is_there = observed.is_alive || now.saturating_sub(*since) < grace;
            is_there && observed.decommission.is_none() && !self.declared.lost.contains(&observed.member)
        });
        rendezvous::preferred_members(slot, candidates, self.settings.replication_factor)
    }
}
