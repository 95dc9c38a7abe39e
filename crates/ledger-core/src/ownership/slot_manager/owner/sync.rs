//! Bringing members in sync: whom to offer a slot's history, on which stream, and whom a broken stream or a refused part takes
//! out again.
//!
//! An offer goes out at a place in the stream of commits. A member that accepts it holds the whole history up to that place, and
//! is in sync while the stream stays up and it refuses no part. Kafka adds a follower to the ISR when it has caught up; here the
//! member says so.

use crate::{
    node::Member,
    ownership::{
        Phase, Placement, RefusedPart, WhyRefused,
        slot_manager::{Effect, Millis, OwnerState, Role, SlotManager},
    },
    slot::Slot,
};

impl SlotManager {
    /// The stream to a node is up: offers it all slots that this node owns and it should hold.
    pub(in crate::ownership::slot_manager) fn offer_sync_on_connect(
        &mut self,
        member: &Member,
        effects: &mut Vec<Effect>,
    ) {
        for slot in self.all().iter().copied() {
            self.offer_sync(member, slot, effects);
        }
    }

    /// Offers a node the history of a slot that this node owns, once on each stream.
    pub(super) fn offer_sync(&mut self, member: &Member, slot: Slot, effects: &mut Vec<Effect>) {
        let is_connected = self.connected.contains(member);
        let Role::Owner(owner) = &mut self.state_mut(slot).role else { return };
        if !is_connected || owner.in_sync.contains(member) || !owner.needs_offer(member) {
            return;
        }
        if owner.offered.insert(member.clone()) {
            effects.push(owner.sync_offer_effect(slot, member));
        }
    }

    /// A member caught up, and asks for another offer: makes it.
    pub(in crate::ownership::slot_manager) fn on_sync_request(
        &mut self,
        member: &Member,
        slot: Slot,
        effects: &mut Vec<Effect>,
    ) {
        if !self.connected.contains(member) {
            return;
        }
        match &mut self.state_mut(slot).role {
            Role::Candidate(candidate) => {
                candidate.in_sync.remove(member);
                candidate.offered.remove(member);
                self.offer_takeover_sync(member, slot, effects);
            }
            // A node in sync asks too late. A node that is not due an offer now was due one earlier: forget that offer, so that
            // it gets another one when it is due again.
            Role::Owner(owner) if !owner.in_sync.contains(member) => {
                owner.offered.remove(member);
                owner.is_offered = false;
                self.offer_sync(member, slot, effects);
            }
            _ => {}
        }
    }

    /// Offers a member the history of a slot that this node is taking, once on each stream.
    pub(in crate::ownership::slot_manager) fn offer_takeover_sync(
        &mut self,
        member: &Member,
        slot: Slot,
        effects: &mut Vec<Effect>,
    ) {
        let is_connected = self.connected.contains(member);
        let Role::Candidate(candidate) = &mut self.state_mut(slot).role else { return };
        let Some(placement) = candidate.takeover.accept_by(member).filter(|_| is_connected) else { return };
        if candidate.offered.insert(member.clone()) {
            let claim = candidate.takeover.claim().clone();
            let Placement { members, is_confirmed, previous, .. } = placement;
            effects.push(Effect::OfferSync {
                to: member.clone(),
                slot,
                claim,
                members,
                is_confirmed,
                previous,
            });
        }
    }

    /// Offers a slot that this node is taking to the members that could not accept it before.
    pub(in crate::ownership::slot_manager) fn retry_takeover_sync(
        &mut self,
        slot: Slot,
        effects: &mut Vec<Effect>,
    ) {
        let Role::Candidate(candidate) = &self.state(slot).role else { return };
        if !matches!(candidate.phase, Phase::Accepting | Phase::Confirming) {
            return;
        }
        let due: Vec<Member> = self.connected.difference(&candidate.offered).cloned().collect();
        for member in due {
            self.offer_takeover_sync(&member, slot, effects);
        }
    }

    /// The stream to a node broke: the node is in sync with nothing until it accepts on the next stream.
    pub(in crate::ownership::slot_manager) fn on_peer_disconnected(&mut self, member: &Member) {
        self.connected.remove(member);
        self.renewals.remove(member);
        for state in &mut self.states {
            match &mut state.role {
                Role::Replica => {}
                Role::Candidate(candidate) => {
                    candidate.in_sync.remove(member);
                    candidate.offered.remove(member);
                }
                Role::Owner(owner) => {
                    owner.in_sync.remove(member);
                    owner.offered.remove(member);
                    owner.is_offered = false;
                }
            }
        }
    }

    /// A member refused a part of a commit: it is not in sync with the slot's claim. The next tick makes another offer, of this slot
    /// alone.
    pub(in crate::ownership::slot_manager) fn on_part_refused(
        &mut self,
        now: Millis,
        from: &Member,
        RefusedPart { slot, claim, why }: RefusedPart,
        effects: &mut Vec<Effect>,
    ) {
        match &mut self.state_mut(slot).role {
            Role::Owner(owner) if owner.claim == claim => {
                owner.in_sync.remove(from);
                owner.offered.remove(from);
                owner.is_offered = false;
            }
            Role::Candidate(candidate) if *candidate.takeover.claim() == claim => {
                candidate.in_sync.remove(from);
                candidate.offered.remove(from);
            }
            _ => {}
        }
        if let WhyRefused::Promised(by) = why {
            self.on_claim_heard(now, slot, by, effects);
        }
    }

    /// Returns the members, and the node that is to become one, that are not in sync and have no offer under way.
    pub(super) fn peers_to_offer(&self, slot: Slot) -> Vec<Member> {
        let Role::Owner(owner) = &self.state(slot).role else { return Vec::new() };
        let due = owner.members.members().iter().chain(&owner.learner);
        due.filter(|member| !owner.in_sync.contains(*member) && !owner.offered.contains(*member))
            .cloned()
            .collect()
    }
}

impl OwnerState {
    /// Returns whether a node is a member, or is to become one.
    fn needs_offer(&self, member: &Member) -> bool {
        self.members.contains(member) || self.learner.as_ref() == Some(member)
    }

    /// Returns the offer of the slot to a member.
    fn sync_offer_effect(&self, slot: Slot, member: &Member) -> Effect {
        let (claim, members) = (self.claim.clone(), self.members.clone());
        Effect::OfferSync { to: member.clone(), slot, claim, members, is_confirmed: true, previous: None }
    }
}
