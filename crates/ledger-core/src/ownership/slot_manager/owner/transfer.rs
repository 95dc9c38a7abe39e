//! Giving a slot away: to another member (a handover) or to other members (a move).
//!
//! | step | handover | move |
//! | --- | --- | --- |
//! | 1 | | the new member learns: it is offered the history, and accepts |
//! | 2 | the owner stops appends; those under way get their copies | the same |
//! | 3 | the owner asks its successor to take the slot over | the owner takes the slot from itself, with the new members |
//! | if it fails | the owner takes the slot from itself | the owner takes the slot from itself |
//!
//! Counterparts: a handover is Raft's leadership transfer, a move its change of one server at a time (Ongaro, "Consensus:
//! Bridging Theory and Practice", 2014, §3.10 and §4.1).

use std::collections::BTreeSet;

use crate::{
    node::{Member, NodeId, ReplicaSet},
    ownership::{
        Claim,
        slot_manager::{
            DecommissionMode, Effect, MemberRequest, Millis, OwnerState, Role, SlotManager, Transferring,
        },
    },
    rendezvous,
    slot::Slot,
};

/// How long a member that declined a slot is not asked again if there is another one, in response timeouts.
const DECLINED_TIMEOUTS: Millis = 20;

impl SlotManager {
    /// Returns the number of slots that this node is handing over or moving.
    pub(in crate::ownership::slot_manager) fn transfers_in_progress(&self) -> usize {
        let is_moving = |role: &Role| matches!(role, Role::Owner(owner) if owner.transferring.is_some());
        self.states.iter().filter(|state| is_moving(&state.role)).count()
    }

    /// Returns the handover or move that a slot needs and that can begin now. Chooses the node that is to learn for a later move.
    pub(super) fn transfer_due(&mut self, now: Millis, slot: Slot) -> Option<Transferring> {
        let until = now + self.settings.response_timeout;
        let Role::Owner(owner) = &self.state(slot).role else { return None };
        if let Some(to) = self.handover_target(now, slot, owner) {
            return Some(Transferring::Handover { to, until });
        }
        if self.is_damaged(slot) {
            return None;
        }
        let next = self.desired_change(now, slot, owner);
        let write_quorum = self.settings.write_quorum;
        let alive = if next.is_some() { self.alive_members() } else { BTreeSet::new() };
        let Role::Owner(owner) = &mut self.state_mut(slot).role else { return None };
        let learner = next.as_ref().and_then(|(_, learner)| learner.as_ref());
        if owner.learner.as_ref() != learner {
            owner.learner = learner.cloned();
            owner.is_offered = false;
        }
        // Some members may be away for ever: enough of each set must be in sync to accept.
        let is_enough = |set: &ReplicaSet| {
            let count =
                |of: &BTreeSet<Member>| set.members().iter().filter(|member| of.contains(*member)).count();
            count(&owner.in_sync) >= set.members_that_must_know(write_quorum, count(&alive))
        };
        let is_ready = |(target, learner): &(ReplicaSet, Option<Member>)| {
            let has_learnt = learner.as_ref().is_none_or(|learner| owner.in_sync.contains(learner));
            has_learnt && is_enough(target) && is_enough(&owner.members)
        };
        next.filter(is_ready).map(|(target, _)| Transferring::Move { target, until })
    }

    /// Returns the member that should own a slot instead of this node, and can take it at once.
    fn handover_target(&self, now: Millis, slot: Slot, owner: &OwnerState) -> Option<Member> {
        let is_damaged = self.is_damaged(slot);
        let must_leave = self.is_draining || is_damaged;
        if is_damaged
            && !(self.others_can_take(owner) && (self.is_draining || self.should_leave_damaged(slot, owner)))
        {
            return None;
        }
        if !must_leave && now < owner.since + self.settings.stable_after {
            return None;
        }
        let can = |member: &&Member| {
            let known = self.nodes.get(&member.node);
            let is_steady = known.is_some_and(|known| now >= known.since + self.settings.stable_after);
            owner.in_sync.contains(*member)
                && self.is_alive(member)
                && (must_leave || is_steady)
                && !self.is_draining(&member.node)
                && self.is_writable(&member.node)
        };
        let declined_by = self.state(slot).declined_by.as_ref().filter(|(_, until)| now < *until);
        let has_declined = |member: &Member| declined_by.is_some_and(|(node, _)| *node == member.node);
        let mut able: Vec<&Member> = owner.members.members().iter().filter(can).collect();
        if able.iter().any(|member| **member != self.me && !has_declined(member)) {
            able.retain(|member| !has_declined(member));
        }
        let names = able.iter().map(|member| member.node.clone());
        let mut order = rendezvous::preference_order(slot, names);
        if must_leave {
            order.retain(|node| *node != self.me.node);
        } else if !order.contains(&self.me.node) {
            return None;
        }
        let first = order.first().filter(|node| **node != self.me.node)?;
        able.into_iter().find(|member| member.node == *first).cloned()
    }

    /// Returns the members that a slot should have next, and the one of them that is new and has to learn first. They differ from
    /// the present members in one place.
    ///
    /// Any node that is alive may take the place of a node that leaves. If there is none, the place may stay empty where the
    /// operator allows it.
    fn desired_change(
        &self,
        now: Millis,
        slot: Slot,
        owner: &OwnerState,
    ) -> Option<(ReplicaSet, Option<Member>)> {
        let wanted = self.desired_members(now, slot);
        let members = owner.members.members();
        let is_wanted = |member: &&Member| {
            wanted.contains(&member.node) && self.member(&member.node).is_none_or(|now| now == *member)
        };
        let leaves = members.iter().position(|member| {
            member.node != self.me.node && self.decommission_of(&member.node).is_some() && !is_wanted(&member)
        });
        // A node that came back with another data directory is missing as well.
        let able = |node: &NodeId| {
            let is_able = |member: &&Member| self.is_alive(member) && self.is_writable(node);
            let member = self.member(node).filter(is_able)?;
            (!members.contains(member)).then(|| member.clone())
        };
        let missing = wanted.iter().find_map(&able).or_else(|| {
            leaves?;
            self.placement_candidates(slot).iter().find_map(&able)
        });
        let mut next: Vec<Member> = members.to_vec();
        let Some(missing) = missing else {
            let leaves = leaves.filter(|at| {
                self.decommission_of(&members[*at].node) == Some(DecommissionMode::AllowFewer)
            })?;
            next.remove(leaves);
            let is_enough = next.len() >= self.settings.write_quorum;
            return Some((ReplicaSet::new(next).ok().filter(|_| is_enough)?, None));
        };
        let same_node = next.iter().position(|member| member.node == missing.node);
        let unwanted = || {
            let gone = members.iter().position(|member| !is_wanted(&member) && !self.is_alive(member));
            gone.or(leaves).or_else(|| {
                members.iter().position(|member| !is_wanted(&member) && member.node != self.me.node)
            })
        };
        if let Some(old) = same_node
            .or_else(|| if members.len() < self.settings.replication_factor { None } else { unwanted() })
        {
            next.remove(old);
        } else if members.len() >= self.settings.replication_factor {
            // Only this node is to leave: it hands the slot over, and the next owner makes the move.
            return None;
        }
        next.push(missing.clone());
        Some((ReplicaSet::new(next).ok()?, Some(missing)))
    }

    /// Returns the nodes that are alive and stay in the cluster, in the order in which the slot prefers them.
    fn placement_candidates(&self, slot: Slot) -> Vec<NodeId> {
        let spare = self.candidates(|known| known.observed.is_alive && known.observed.decommission.is_none());
        rendezvous::preferred_members(slot, spare, self.nodes.len())
    }

    /// Stops appends for a handover or move.
    pub(super) fn begin_transfer(&mut self, slot: Slot, transfer: Transferring, effects: &mut Vec<Effect>) {
        let Role::Owner(owner) = &mut self.state_mut(slot).role else { return };
        owner.transferring = Some(transfer);
        effects.push(Effect::StopAppends { slot, claim: owner.claim.clone() });
    }

    /// All appends have their copies: goes on with the handover or move for which this node stopped appends.
    pub(in crate::ownership::slot_manager) fn on_appends_stopped(
        &mut self,
        now: Millis,
        slot: Slot,
        claim: &Claim,
        effects: &mut Vec<Effect>,
    ) {
        let until = now + self.settings.response_timeout;
        let Role::Owner(owner) = &mut self.state_mut(slot).role else { return };
        if owner.claim != *claim {
            return;
        }
        match &mut owner.transferring {
            None => {}
            Some(Transferring::Handover { to, until: deadline }) => {
                *deadline = until;
                let (to, claim) = (to.clone(), claim.clone());
                effects.push(Effect::SendRequest { to, slot, claim, request: MemberRequest::TakeOver });
            }
            Some(Transferring::Move { target, .. }) => {
                let target = target.clone();
                self.reclaim(now, slot, Some(target), effects);
            }
        }
    }

    /// A handover or move came to nothing: takes appends again, in a higher epoch. In this one the node may have refused some
    /// appends of a stream; it must not take those that followed before the writer sends the refused ones again.
    pub(super) fn cancel_transfer(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) {
        self.state_mut(slot).no_transfer_before = now + self.settings.response_timeout * 2;
        self.reclaim(now, slot, None, effects);
    }

    /// Begins to take a slot from itself, with other members if there is a target. No replica stays in sync: each accepted the
    /// epoch that ends, and may be behind in the next.
    pub(super) fn reclaim(
        &mut self,
        now: Millis,
        slot: Slot,
        target: Option<ReplicaSet>,
        effects: &mut Vec<Effect>,
    ) {
        if self.is_damaged(slot) && matches!(self.state(slot).role, Role::Owner(_)) {
            // Its own replica would not promise: another member takes the slot.
            return self.step_down(now, slot, None, effects);
        }
        let state = self.state_mut(slot);
        let Role::Owner(owner) = std::mem::take(&mut state.role) else { return };
        state.unowned_since = None;
        effects.push(Effect::StepDown { slot });
        self.begin_takeover(now, slot, target, effects);
        if let Role::Candidate(candidate) = &mut self.state_mut(slot).role {
            candidate.owned_epoch = Some(owner.claim.epoch);
        }
    }

    /// A member could not do what this node asked: if it was to take a slot over, the handover ends.
    pub(in crate::ownership::slot_manager) fn on_request_failed(
        &mut self,
        now: Millis,
        from: &Member,
        slot: Slot,
        claim: &Claim,
        effects: &mut Vec<Effect>,
    ) {
        let Role::Owner(owner) = &self.state(slot).role else { return };
        let is_successor =
            matches!(&owner.transferring, Some(Transferring::Handover { to, .. }) if to == from);
        if owner.claim == *claim && is_successor {
            let until = now + self.settings.response_timeout * DECLINED_TIMEOUTS;
            self.state_mut(slot).declined_by = Some((from.node.clone(), until));
            self.cancel_transfer(now, slot, effects);
        }
    }
}
