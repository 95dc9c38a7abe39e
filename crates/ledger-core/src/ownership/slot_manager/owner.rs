//! What an owner does beside taking appends: it begins to serve, watches whether enough members are in sync, and has members
//! brought in sync (`sync`) and the slot handed over or moved (`transfer`).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    CandidateState, Effect, Member, MemberRequest, Millis, OwnerState, OwnershipSettings, Placement,
    ReplicaSet, Role, Slot, SlotManager, SlotState, TakeoverFailure, Transferring,
};

mod sync;
mod transfer;

impl SlotManager {
    /// The takeover succeeded: this node owns the slot, and takes appends.
    pub(super) fn become_owner(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) {
        let state = self.state_mut(slot);
        let Role::Candidate(candidate) = std::mem::take(&mut state.role) else { return };
        state.claims_promised = 0;
        let CandidateState { takeover, mut in_sync, mut offered, owned_epoch, since: began, .. } = *candidate;
        let since = if owned_epoch.is_some() { 0 } else { now };
        let (claim, members) = (takeover.claim().clone(), takeover.members().clone());
        let write_quorum = self.settings.write_quorum.clamp(1, members.len());
        if let Some(recovery) = takeover.recovery() {
            effects.push(Effect::RecordRecovery { slot, claim: claim.clone(), recovery });
        }
        effects.push(Effect::BeginServing { slot, claim: claim.clone(), write_quorum });
        let counted = in_sync.iter().filter(|member| members.contains(member));
        effects.extend(counted.map(|member| Effect::AddInSync {
            slot,
            claim: claim.clone(),
            member: member.clone(),
        }));
        // Tell the nodes that were members until now, and send them nothing more.
        for former in offered.iter().filter(|member| !members.contains(member)) {
            effects.push(Effect::SendRequest {
                to: former.clone(),
                slot,
                claim: claim.clone(),
                request: MemberRequest::ConfirmMembers,
            });
            effects.push(Effect::RemoveReplica { slot, claim: claim.clone(), member: former.clone() });
        }
        in_sync.retain(|member| members.contains(member));
        // The other members whose streams are up have an offer under way.
        offered.retain(|member| members.contains(member) && !in_sync.contains(member));
        let owner = OwnerState {
            claim,
            since,
            members,
            in_sync,
            short_since: None,
            is_halted_for_quorum: None,
            offered,
            learner: None,
            transferring: None,
            is_offered: false,
            promises_checked_at: BTreeMap::new(),
        };
        let state = self.state_mut(slot);
        (state.attempts, state.unowned_reason) = (0, None);
        // No other node can have come to own the slot since the takeover began, and this node holds all that was committed before.
        state.lease.extend(began);
        state.role = Role::Owner(Box::new(owner));
    }

    /// Maintains a slot that this node owns: makes offers that are due, and ends a transfer that takes too long. With `moves`, the
    /// number of transfers under way, it also begins a transfer that the slot needs.
    pub(super) fn maintain_owned(
        &mut self,
        now: Millis,
        slot: Slot,
        moves: Option<&mut usize>,
        effects: &mut Vec<Effect>,
    ) {
        // Ask this before making offers: a member that refuses each of them is not on its way.
        let is_short = self.is_short(now, slot, effects);
        let Role::Owner(owner) = &mut self.state_mut(slot).role else { return };
        // A member that is not connected gets its offer when it connects.
        if !std::mem::replace(&mut owner.is_offered, true) {
            for member in self.peers_to_offer(slot) {
                self.offer_sync(&member, slot, effects);
            }
        }
        if is_short {
            return;
        }
        let most = self.settings.max_transfers;
        let SlotState { role: Role::Owner(owner), no_transfer_before, .. } = self.state(slot) else {
            return;
        };
        match &owner.transferring {
            Some(Transferring::Handover { until, .. } | Transferring::Move { until, .. })
                if *until <= now =>
            {
                self.cancel_transfer(now, slot, effects);
            }
            Some(_) => {}
            None if now < *no_transfer_before => {}
            None => {
                if let Some(moves) = moves.filter(|moves| **moves < most)
                    && let Some(transfer) = self.transfer_due(now, slot)
                {
                    *moves += 1;
                    self.begin_transfer(slot, transfer, effects);
                }
            }
        }
    }

    /// Returns whether too few members are in sync, or catching up, for the slot to take appends. If so, this node halts the
    /// slot, or takes it again once there are enough.
    ///
    /// The node goes on owning a halted slot: other members may come back without the last appends.
    fn is_short(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) -> bool {
        let OwnershipSettings { write_quorum, quorum_loss_grace, .. } = self.settings;
        let Role::Owner(owner) = &self.state(slot).role else { return false };
        let all_are_here =
            |left: ReplicaSet| left.members().iter().all(|member| owner.in_sync.contains(member));
        if self.surviving_members(slot, owner).is_some_and(all_are_here) {
            self.reclaim(now, slot, None, effects);
            return true;
        }
        let members = owner.members.members();
        let needed = write_quorum.clamp(1, members.len());
        let count = |of: &BTreeSet<Member>| members.iter().filter(|member| of.contains(*member)).count();
        let responded = count(&owner.in_sync);
        if owner.is_halted_for_quorum.is_some() {
            // This node could not take the slot from itself: it waits until it has restored the damage, or another member
            // takes the slot.
            if self.is_damaged(slot) {
                self.leave_halted(now, slot, effects);
                return true;
            }
            // The takeover must be able to succeed: it needs all that are alive if m is not more than half of the members.
            let is_there = |member: &Member| owner.in_sync.contains(member) || !self.is_alive(member);
            if responded >= needed && (2 * needed > members.len() || members.iter().all(is_there)) {
                // A higher epoch, because this one refused some appends of a stream: see `cancel_transfer`.
                self.reclaim(now, slot, None, effects);
            }
            return true;
        }
        // A member that catches up will count; with a large load that takes a while. It cannot compare what this node cannot read.
        let is_coming = !self.is_impaired(slot) && responded + count(&owner.offered) >= needed;
        let too_few = TakeoverFailure::NoQuorum { responded, members: members.len(), needed };
        let Role::Owner(owner) = &mut self.state_mut(slot).role else { return false };
        if responded >= needed {
            owner.short_since = None;
            return false;
        }
        if now < *owner.short_since.get_or_insert(now) + quorum_loss_grace || is_coming {
            return false;
        }
        (owner.is_halted_for_quorum, owner.transferring) = (Some(too_few), None);
        // The shell refuses the appends that wait.
        effects.push(Effect::StepDown { slot });
        true
    }

    /// Returns the members that are left without those declared lost, if operators approved that the slot goes on with these.
    fn surviving_members(&self, slot: Slot, owner: &OwnerState) -> Option<ReplicaSet> {
        let approval = self.declared.slots.get(&slot)?;
        let (epoch, members) = (owner.claim.epoch, owner.members.clone());
        let placement = Placement { epoch, members, is_confirmed: true, previous: None };
        let left = placement.without(&self.declared.lost, self.settings.write_quorum)?;
        approval.covers(&placement).then_some(left.members)
    }
}
