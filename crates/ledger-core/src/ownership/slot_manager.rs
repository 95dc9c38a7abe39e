//! All slots of one node, as a state machine without I/O: when to claim a slot, whom to offer its history, when to hand it over
//! or to move a member.
//!
//! Gossip proposes, promises decide: what a node sees of the others tells it only when to try. The machine reads no clock. A
//! shell tells it what happened ([`Event`]) and does what it returns ([`Effect`]).
//!
//! | the slot has | this node is | what this node does |
//! | --- | --- | --- |
//! | no owner | replica | claims it, if it is the first living member in rendezvous order; else it waits its turn |
//! | no owner | candidate | runs a [`Takeover`] |
//! | this node as owner | owner | offers its history to members whose streams are up, and counts them once they accept |
//! | an owner that should be another member | owner | stops appends, acknowledges those under way, has the successor take the slot over |
//! | members that should be others | owner | lets the new one catch up, then takes the slot from itself with one member changed |
//!
//! Counterparts: replica, candidate and owner are Raft's follower, candidate and leader, 1024 times; Kafka's `ReplicaManager`,
//! without a controller. Promises and epochs are those of Vertical Paxos (Lamport, Malkhi, Zhou, "Vertical Paxos and
//! Primary-Backup Replication", 2009).
//!
//! | file | holds |
//! | --- | --- |
//! | `slot_manager.rs` | the machine: [`SlotManager::step`], and what others may ask it |
//! | `settings.rs`, `event.rs`, `effect.rs` | the values that go in and come out |
//! | `state.rs` | what it remembers of each slot and node |
//! | `claiming.rs` | when to claim a slot that nobody owns |
//! | `takeovers.rs` | between the slots and their takeovers |
//! | `owner.rs` | what an owner does: in sync replicas (`owner/sync.rs`), handover and moves (`owner/transfer.rs`) |
//! | `damage.rs` | what it does with slots of which this node cannot read something |
//! | `lease.rs` | how old what readers see may be |

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Claim, DeclaredLosses, Phase, Placement, SlotRecord, Takeover, TakeoverFailure, takeover};
use crate::{
    Epoch,
    node::{Member, NodeId, ReplicaSet},
    rendezvous::{self, PlacementCandidate},
    slot::{SLOTS, Slot},
};

mod claiming;
mod damage;
mod effect;
mod event;
mod lease;
mod owner;
mod settings;
mod state;
mod takeovers;
#[cfg(test)]
mod tests;

pub use effect::{Effect, LeaseRenewal, MemberRequest};
pub use event::{
    DamagedSlots, DecommissionMode, Event, MemberResponse, ObservedNode, SlotKnowledge, SyncOfferOutcome,
};
pub use settings::OwnershipSettings;

pub use crate::millis::Millis;

use state::{CandidateState, KnownNode, OwnerState, Role, SentRenewal, SlotState, Transferring};

/// The highest epoch that standalone nodes write in. A cluster writes in higher ones.
const STANDALONE_EPOCHS: Epoch = Epoch::new(1, u32::MAX);

/// Who owns a slot, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This node, in this epoch.
    Me(Epoch),
    /// Another node, in this epoch.
    Other(NodeId, Epoch),
    /// Nobody that takes appends; with the reason, if this node knows it.
    Nobody(Option<TakeoverFailure>),
}

/// The state machine of all slots of one node: it decides what the node claims, serves, hands over and moves. See the module's
/// documentation.
#[derive(Debug)]
pub struct SlotManager {
    me: Member,
    settings: OwnershipSettings,
    started: Millis,
    /// The nodes that gossip shows, and those that it forgot less than `placement_grace` ago.
    nodes: BTreeMap<NodeId, KnownNode>,
    /// Nodes whose streams are up, this node among them.
    connected: BTreeSet<Member>,
    is_draining: bool,
    is_writable: bool,
    /// Whether the cluster has an identity.
    is_identified: bool,
    /// The members that operators declared lost, and what they approved.
    declared: DeclaredLosses,
    /// When to check next whether slots should be handed over or moved.
    next_transfer_check: Millis,
    /// The slots that this machine maintains: all 1024, fewer in tests and simulations.
    all: Arc<[Slot]>,
    /// What this node knows of each slot, by its number.
    states: Vec<SlotState>,
    /// The owner of each slot in gossip, by the slot's number.
    owners: Vec<Option<(NodeId, Epoch)>>,
    /// The slots of which this node cannot read something.
    damage: DamagedSlots,
    /// The newest lease renewal that this node sent each replica.
    renewals: BTreeMap<Member, SentRenewal>,
}

impl SlotManager {
    /// Starts from the records on disk.
    pub fn new(
        me: Member,
        settings: OwnershipSettings,
        records: impl IntoIterator<Item = (Slot, SlotRecord)>,
        now: Millis,
    ) -> Self {
        Self::of((0..SLOTS).filter_map(Slot::new), me, settings, records, now)
    }

    /// Does what [`SlotManager::new`] does, for a cluster that has these slots only: simulations use a few.
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
            damage: DamagedSlots::default(),
            renewals: BTreeMap::new(),
        }
    }

    /// The cluster got its identity, because its first slot formed: from now on this node may form other slots, too. Earlier, two
    /// clusters that are about to form could each form some of them.
    pub fn set_identified(&mut self) {
        if !std::mem::replace(&mut self.is_identified, true) {
            // The turns to claim begin now.
            self.states.iter_mut().for_each(|state| state.unowned_since = None);
        }
    }

    /// Returns the slot that forms first, and gives the cluster its identity.
    pub fn first_slot(&self) -> Option<Slot> {
        self.all.first().copied()
    }

    /// Takes an event, and returns what to do. Events that come late or twice change nothing that matters.
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
            // Reading it as an empty record would forget what this node promised.
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
            Event::PartRefused { from, refused } => self.on_part_refused(now, &from, refused, &mut effects),
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
            Event::DamageChanged(damage) => self.damage = damage,
            Event::LossesDeclared(declared) => self.declared = declared,
        }
        effects
    }

    /// Returns this node's record of a slot, as the last [`Event::RecordChanged`] told it.
    pub fn record(&self, slot: Slot) -> &SlotRecord {
        &self.state(slot).record
    }

    /// Returns the highest epoch that this node knows of any slot: from its records, from claims, and from gossip.
    pub fn highest(&self) -> Epoch {
        let of_slots = self.states.iter().map(|state| state.record.highest_epoch().max(state.highest_heard));
        let of_gossip = self.owners.iter().flatten().map(|(_, epoch)| *epoch);
        of_slots.chain(of_gossip).max().unwrap_or_default()
    }

    /// Returns the slots that this node owns, with their epochs, to publish in gossip. They include slots that it is taking from
    /// itself, to move a member: otherwise other nodes would see no owner and claim them.
    pub fn owned(&self) -> Vec<(Slot, Epoch)> {
        let owned = |slot: Slot| match &self.state(slot).role {
            Role::Owner(owner) => Some((slot, owner.claim.epoch)),
            Role::Candidate(candidate) => candidate.owned_epoch.map(|epoch| (slot, epoch)),
            Role::Replica => None,
        };
        self.all.iter().copied().filter_map(owned).collect()
    }

    /// Returns the slots that this node owns and that take no appends now, because too few members are in sync.
    pub fn halted(&self) -> Vec<Slot> {
        let is_halted = |slot: &Slot| match &self.state(*slot).role {
            Role::Owner(owner) => owner.is_halted(self.settings.write_quorum),
            Role::Candidate(_) | Role::Replica => false,
        };
        self.all.iter().copied().filter(is_halted).collect()
    }

    /// Returns who owns a slot.
    pub fn owner(&self, slot: Slot) -> Owner {
        let state = self.state(slot);
        if let Role::Owner(owner) = &state.role {
            return match &owner.is_halted_for_quorum {
                None => Owner::Me(owner.claim.epoch),
                too_few => Owner::Nobody(too_few.clone()),
            };
        }
        match self.owned_by_other(slot) {
            Some((node, epoch)) => Owner::Other(node.clone(), *epoch),
            None => Owner::Nobody(state.unowned_reason.clone().or_else(|| self.missing_members())),
        }
    }

    /// Returns another node that owns a slot, says gossip. What gossip says of this node may be from before its restart.
    fn owned_by_other(&self, slot: Slot) -> Option<&(NodeId, Epoch)> {
        self.owners[usize::from(slot.number())].as_ref().filter(|(node, _)| *node != self.me.node)
    }

    /// Returns the members in sync of a slot that this node owns; `None`: it does not own the slot.
    pub fn in_sync(&self, slot: Slot) -> Option<&BTreeSet<Member>> {
        match &self.state(slot).role {
            Role::Owner(owner) => Some(&owner.in_sync),
            _ => None,
        }
    }

    /// Returns the number of slots that take no appends anywhere, as far as this node sees: no node is seen to own them, and this
    /// node does not own them either, or has halted them.
    pub fn unowned(&self) -> usize {
        let is_unowned = |slot: &&Slot| {
            let takes_appends = matches!(&self.state(**slot).role, Role::Owner(owner) if owner.is_halted_for_quorum.is_none());
            !takes_appends && self.owned_by_other(**slot).is_none()
        };
        self.all.iter().filter(is_unowned).count()
    }

    /// Returns the slots that this machine maintains.
    fn all(&self) -> Arc<[Slot]> {
        Arc::clone(&self.all)
    }

    fn state(&self, slot: Slot) -> &SlotState {
        &self.states[usize::from(slot.number())]
    }

    fn state_mut(&mut self, slot: Slot) -> &mut SlotState {
        &mut self.states[usize::from(slot.number())]
    }

    /// Gossip shows these nodes: remembers since when each is as it is, and steps down where another node claims higher.
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
        // A node that gossip forgot counts as away.
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
            // A higher claim in gossip counts like a refusal.
            if let Some((node, epoch)) = self.owned_by_other(slot).cloned() {
                let state = self.state_mut(slot);
                if !std::mem::replace(&mut state.is_formed, true) && state.record.placement.is_none() {
                    effects.push(Effect::RecordFormed { slot });
                }
                let storage = self.nodes.get(&node).map(|known| known.observed.member.storage);
                self.on_claim_heard(now, slot, Claim { epoch, claimant: node, storage }, effects);
            }
        }
    }

    /// Another node claims a slot: ends a lower claim of this node.
    fn on_claim_heard(&mut self, now: Millis, slot: Slot, by: Claim, effects: &mut Vec<Effect>) {
        let state = self.state_mut(slot);
        state.highest_heard = state.highest_heard.max(by.epoch);
        match &self.state(slot).role {
            Role::Candidate(candidate) => {
                let claim = candidate.takeover.claim().clone();
                self.step_takeover(now, slot, &claim, takeover::Event::HigherClaim { promised: by }, effects);
            }
            Role::Owner(owner) if by > owner.claim => {
                self.step_down(now, slot, Some(TakeoverFailure::HigherClaim(by)), effects);
            }
            Role::Replica | Role::Owner(_) => {}
        }
    }

    /// This node's record changed: if it promised another node's claim, its own lower claim ends.
    fn on_record_changed(&mut self, now: Millis, slot: Slot, record: SlotRecord, effects: &mut Vec<Effect>) {
        let promised = record.promised.clone();
        let state = self.state_mut(slot);
        let before = std::mem::replace(&mut state.record, record);
        state.forget_superseded();
        if let Some(promised) = promised
            && promised.claimant != self.me.node
        {
            self.note_candidate(now, slot, &before);
            self.on_claim_heard(now, slot, promised, effects);
        }
    }

    /// Notes when another node's claim got further at this node's replica, and how many such claims there were.
    fn note_candidate(&mut self, now: Millis, slot: Slot, before: &SlotRecord) {
        let state = self.state_mut(slot);
        let is_new = state.record.promised != before.promised;
        if is_new || state.record.accepted != before.accepted {
            state.candidate_heard_at = now;
            state.claims_promised = state.claims_promised.saturating_add(u32::from(is_new));
        }
    }

    /// The disk fails or is full, or takes writes again. If it takes none, this node steps down from all slots, so that other
    /// nodes take them.
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

    /// Makes this node a replica of the slot. It does not claim the slot again before a pause.
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

    /// Returns the nodes for which `is_candidate` returns true, as candidates for the members of a slot.
    fn candidates(&self, is_candidate: impl Fn(&KnownNode) -> bool) -> Vec<PlacementCandidate> {
        let known = self.nodes.values().filter(|known| is_candidate(known));
        known
            .map(|known| PlacementCandidate {
                node: known.observed.member.node.clone(),
                zone: known.observed.zone.clone(),
            })
            .collect()
    }

    /// Returns the member that a node is now.
    fn member(&self, node: &NodeId) -> Option<&Member> {
        self.nodes.get(node).map(|known| &known.observed.member)
    }

    /// Returns whether a member is alive, with the data directory that it was a member with.
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

    /// Returns how a node leaves the cluster for good, if it does.
    fn decommission_of(&self, node: &NodeId) -> Option<DecommissionMode> {
        self.nodes.get(node)?.observed.decommission
    }

    /// Returns the nodes that a slot should have as members, the most preferred first.
    fn desired_members(&self, now: Millis, slot: Slot) -> Vec<NodeId> {
        let grace = self.settings.placement_grace;
        let candidates = self.candidates(|KnownNode { observed, since }| {
            let is_there = observed.is_alive || now.saturating_sub(*since) < grace;
            is_there && observed.decommission.is_none() && !self.declared.lost.contains(&observed.member)
        });
        rendezvous::preferred_members(slot, candidates, self.settings.replication_factor)
    }
}
