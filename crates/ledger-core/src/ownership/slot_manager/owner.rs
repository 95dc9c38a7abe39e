//! What an owner does beside taking appends: bring members in step, hand over, move.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    CandidateState, Claim, DecommissionMode, Effect, Member, MemberRequest, Millis, NodeId, OwnerState,
    OwnershipSettings, Phase, Placement, ReplicaSet, Role, Slot, SlotManager, SlotState, TakeoverFailure,
    Transferring, rendezvous,
};

impl SlotManager {
    /// The takeover is done.
    pub(super) fn become_owner(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) {
        let Role::Candidate(taking) = std::mem::take(&mut self.state_mut(slot).role) else { return };
        let CandidateState { takeover, mut in_sync, mut offered, owned_epoch, since: began, .. } = *taking;
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
        // Whoever was a member until now is told, and sent nothing more.
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
        // Offers are under way to the others whose streams are up.
        offered.retain(|member| members.contains(member) && !in_sync.contains(member));
        let leading = OwnerState {
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
        // Nobody else can have come to own it since the takeover began, and what was committed before is here.
        state.lease.extend(began);
        state.role = Role::Owner(Box::new(leading));
    }

    /// Offers a node whose stream came up all it should have.
    pub(super) fn offer_sync_on_connect(&mut self, member: &Member, effects: &mut Vec<Effect>) {
        for slot in self.all().iter().copied() {
            self.offer_sync(member, slot, effects);
        }
    }

    fn offer_sync(&mut self, member: &Member, slot: Slot, effects: &mut Vec<Effect>) {
        let is_connected = self.connected.contains(member);
        let Role::Owner(leading) = &mut self.state_mut(slot).role else { return };
        if !is_connected || leading.in_sync.contains(member) || !leading.needs_offer(member) {
            return;
        }
        if leading.offered.insert(member.clone()) {
            effects.push(leading.sync_offer_effect(slot, member));
        }
    }

    /// A member caught up, and asks for another offer.
    pub(super) fn on_sync_request(&mut self, member: &Member, slot: Slot, effects: &mut Vec<Effect>) {
        if !self.connected.contains(member) {
            return;
        }
        match &mut self.state_mut(slot).role {
            Role::Candidate(taking) => {
                taking.in_sync.remove(member);
                taking.offered.remove(member);
                self.offer_takeover_sync(member, slot, effects);
            }
            // One that counts already asks too late. One that is not due was when it was offered the slot: when it is
            // again, it has to be offered anew.
            Role::Owner(leading) if !leading.in_sync.contains(member) => {
                leading.offered.remove(member);
                leading.is_offered = false;
                self.offer_sync(member, slot, effects);
            }
            _ => {}
        }
    }

    /// Offers a member the history of a slot that is being taken, once on each stream.
    pub(super) fn offer_takeover_sync(&mut self, member: &Member, slot: Slot, effects: &mut Vec<Effect>) {
        let is_connected = self.connected.contains(member);
        let Role::Candidate(taking) = &mut self.state_mut(slot).role else { return };
        let Some(placement) = taking.takeover.accept_by(member).filter(|_| is_connected) else { return };
        if taking.offered.insert(member.clone()) {
            let claim = taking.takeover.claim().clone();
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

    /// Offers a slot that is being taken to those who could not take it before.
    pub(super) fn retry_takeover_sync(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        let Role::Candidate(taking) = &self.state(slot).role else { return };
        if !matches!(taking.phase, Phase::Accepting | Phase::Confirming) {
            return;
        }
        let due: Vec<Member> = self.connected.difference(&taking.offered).cloned().collect();
        for member in due {
            self.offer_takeover_sync(&member, slot, effects);
        }
    }

    pub(super) fn on_peer_disconnected(&mut self, member: &Member) {
        self.connected.remove(member);
        self.renewals.remove(member);
        for state in &mut self.states {
            match &mut state.role {
                Role::Replica => {}
                Role::Candidate(taking) => {
                    taking.in_sync.remove(member);
                    taking.offered.remove(member);
                }
                Role::Owner(leading) => {
                    leading.in_sync.remove(member);
                    leading.offered.remove(member);
                    leading.is_offered = false;
                }
            }
        }
    }

    /// Slots being handed over or moved.
    pub(super) fn transfers_in_progress(&self) -> usize {
        let is_moving = |role: &Role| matches!(role, Role::Owner(leading) if leading.transferring.is_some());
        self.states.iter().filter(|state| is_moving(&state.role)).count()
    }

    /// Looks after a slot that this node owns; with the number of moves under way, also whether it should stay here.
    pub(super) fn maintain_owned(
        &mut self,
        now: Millis,
        slot: Slot,
        moves: Option<&mut usize>,
        effects: &mut Vec<Effect>,
    ) {
        // Before offers are made: one that is refused every time is not on the way.
        let is_short = self.is_short(now, slot, effects);
        let Role::Owner(leading) = &mut self.state_mut(slot).role else { return };
        // Whoever is not connected is offered it when it is.
        if !std::mem::replace(&mut leading.is_offered, true) {
            for member in self.peers_to_offer(slot) {
                self.offer_sync(&member, slot, effects);
            }
        }
        if is_short {
            return;
        }
        let most = self.settings.max_transfers;
        let SlotState { role: Role::Owner(leading), no_transfer_before, .. } = self.state(slot) else {
            return;
        };
        match &leading.transferring {
            Some(Transferring::Handover { until, .. } | Transferring::Move { until, .. })
                if *until <= now =>
            {
                self.cancel_transfer(now, slot, effects);
            }
            Some(_) => {}
            None if now < *no_transfer_before => {}
            None => {
                if let Some(moves) = moves.filter(|moves| **moves < most)
                    && let Some(ending) = self.transfer_due(now, slot)
                {
                    *moves += 1;
                    self.begin_transfer(slot, ending, effects);
                }
            }
        }
    }

    /// Whether too few members are in sync, or on the way there, for a slot to take appends. It stays this node's all the
    /// same: others may come back without what was appended last.
    fn is_short(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) -> bool {
        let OwnershipSettings { write_quorum, quorum_loss_grace, .. } = self.settings;
        let Role::Owner(leading) = &self.state(slot).role else { return false };
        let all_are_here =
            |left: ReplicaSet| left.members().iter().all(|member| leading.in_sync.contains(member));
        if self.surviving_members(slot, leading).is_some_and(all_are_here) {
            self.reclaim(now, slot, None, effects);
            return true;
        }
        let members = leading.members.members();
        let needed = write_quorum.clamp(1, members.len());
        let count = |of: &BTreeSet<Member>| members.iter().filter(|member| of.contains(*member)).count();
        let responded = count(&leading.in_sync);
        if leading.is_halted_for_quorum.is_some() {
            // It is taken again by the promises of m members, or of all that are alive if m is not more than half.
            let is_there = |member: &Member| leading.in_sync.contains(member) || !self.is_alive(member);
            if responded >= needed && (2 * needed > members.len() || members.iter().all(is_there)) {
                // Some of a stream of appends may have been refused: what followed them must not be taken before.
                self.reclaim(now, slot, None, effects);
            }
            return true;
        }
        // Whoever catches up will count: with a large load that takes a while.
        let is_coming = responded + count(&leading.offered) >= needed;
        let too_few = TakeoverFailure::NoQuorum { responded, members: members.len(), needed };
        let Role::Owner(leading) = &mut self.state_mut(slot).role else { return false };
        if responded >= needed {
            leading.short_since = None;
            return false;
        }
        if now < *leading.short_since.get_or_insert(now) + quorum_loss_grace || is_coming {
            return false;
        }
        (leading.is_halted_for_quorum, leading.transferring) = (Some(too_few), None);
        // Those who wait are told.
        effects.push(Effect::StepDown { slot });
        true
    }

    /// What is left of its members without those that were declared lost, if it is to go on with that.
    fn surviving_members(&self, slot: Slot, leading: &OwnerState) -> Option<ReplicaSet> {
        let approval = self.declared.slots.get(&slot)?;
        let (epoch, members) = (leading.claim.epoch, leading.members.clone());
        let placement = Placement { epoch, members, is_confirmed: true, previous: None };
        let left = placement.without(&self.declared.lost, self.settings.write_quorum)?;
        approval.covers(&placement).then_some(left.members)
    }

    /// Members, and those to become one, that were not offered the slot.
    fn peers_to_offer(&self, slot: Slot) -> Vec<Member> {
        let Role::Owner(leading) = &self.state(slot).role else { return Vec::new() };
        let due = leading.members.members().iter().chain(&leading.learner);
        due.filter(|member| !leading.in_sync.contains(*member) && !leading.offered.contains(*member))
            .cloned()
            .collect()
    }

    /// Whether a slot should go to another node, or to other members.
    fn transfer_due(&mut self, now: Millis, slot: Slot) -> Option<Transferring> {
        let until = now + self.settings.response_timeout;
        let Role::Owner(leading) = &self.state(slot).role else { return None };
        if let Some(to) = self.handover_target(now, slot, leading) {
            return Some(Transferring::Handover { to, until });
        }
        let next = self.desired_change(now, slot, leading);
        let min_copies = self.settings.write_quorum;
        let alive = if next.is_some() { self.alive_members() } else { BTreeSet::new() };
        let Role::Owner(leading) = &mut self.state_mut(slot).role else { return None };
        let learner = next.as_ref().and_then(|(_, learner)| learner.as_ref());
        if leading.learner.as_ref() != learner {
            leading.learner = learner.cloned();
            leading.is_offered = false;
        }
        // Others may be away, perhaps for ever: enough must be there to accept.
        let is_enough = |set: &ReplicaSet| {
            let count =
                |of: &BTreeSet<Member>| set.members().iter().filter(|member| of.contains(*member)).count();
            count(&leading.in_sync) >= set.members_that_must_know(min_copies, count(&alive))
        };
        let is_ready = |(target, learner): &(ReplicaSet, Option<Member>)| {
            let has_learnt = learner.as_ref().is_none_or(|learner| leading.in_sync.contains(learner));
            has_learnt && is_enough(target) && is_enough(&leading.members)
        };
        next.filter(is_ready).map(|(target, _)| Transferring::Move { target, until })
    }

    /// The node that should own a slot instead of this one, and can at once.
    fn handover_target(&self, now: Millis, slot: Slot, leading: &OwnerState) -> Option<Member> {
        if !self.is_draining && now < leading.since + self.settings.stable_after {
            return None;
        }
        let can = |member: &&Member| {
            let known = self.nodes.get(&member.node);
            let is_steady = known.is_some_and(|known| now >= known.since + self.settings.stable_after);
            leading.in_sync.contains(*member)
                && self.is_alive(member)
                && (self.is_draining || is_steady)
                && !self.is_draining(&member.node)
                && self.is_writable(&member.node)
        };
        let able: Vec<&Member> = leading.members.members().iter().filter(can).collect();
        let names = able.iter().map(|member| member.node.clone());
        let mut order = rendezvous::preference_order(slot, names);
        if self.is_draining {
            order.retain(|node| *node != self.me.node);
        } else if !order.contains(&self.me.node) {
            return None;
        }
        let first = order.first().filter(|node| **node != self.me.node)?;
        able.into_iter().find(|member| member.node == *first).cloned()
    }

    /// The members that a slot should have next: those it has, but for one, which is new, and has to learn. Of a node that
    /// leaves the place goes to whoever is there; if nobody is, it may go to nobody.
    fn desired_change(
        &self,
        now: Millis,
        slot: Slot,
        leading: &OwnerState,
    ) -> Option<(ReplicaSet, Option<Member>)> {
        let wanted = self.desired_members(now, slot);
        let members = leading.members.members();
        let is_wanted = |member: &&Member| {
            wanted.contains(&member.node) && self.member(&member.node).is_none_or(|now| now == *member)
        };
        let leaves = members.iter().position(|member| {
            member.node != self.me.node && self.decommission_of(&member.node).is_some() && !is_wanted(&member)
        });
        // A node whose data directory is another one than it was is missing too.
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
            // Only this node is too many: whoever it hands the slot to moves it.
            return None;
        }
        next.push(missing.clone());
        Some((ReplicaSet::new(next).ok()?, Some(missing)))
    }

    /// The nodes that are there and stay, in the order in which the slot prefers them.
    fn placement_candidates(&self, slot: Slot) -> Vec<NodeId> {
        let spare = self.candidates(|known| known.observed.is_alive && known.observed.decommission.is_none());
        rendezvous::preferred_members(slot, spare, self.nodes.len())
    }

    fn begin_transfer(&mut self, slot: Slot, ending: Transferring, effects: &mut Vec<Effect>) {
        let Role::Owner(leading) = &mut self.state_mut(slot).role else { return };
        leading.transferring = Some(ending);
        effects.push(Effect::StopAppends { slot, claim: leading.claim.clone() });
    }

    /// What was appended has its copies: goes on with what it was stopped for.
    pub(super) fn on_appends_stopped(
        &mut self,
        now: Millis,
        slot: Slot,
        claim: &Claim,
        effects: &mut Vec<Effect>,
    ) {
        let until = now + self.settings.response_timeout;
        let Role::Owner(leading) = &mut self.state_mut(slot).role else { return };
        if leading.claim != *claim {
            return;
        }
        match &mut leading.transferring {
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

    /// A handover or move came to nothing: takes appends again. Not in the same epoch, in which some of a stream of
    /// appends may have been refused: what followed them must not be taken before they are sent again.
    fn cancel_transfer(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) {
        self.state_mut(slot).no_transfer_before = now + self.settings.response_timeout * 2;
        self.reclaim(now, slot, None, effects);
    }

    /// Takes a slot from itself. Whoever counted did so in the epoch that ends, and may be behind in the next.
    fn reclaim(&mut self, now: Millis, slot: Slot, target: Option<ReplicaSet>, effects: &mut Vec<Effect>) {
        let state = self.state_mut(slot);
        let Role::Owner(leading) = std::mem::take(&mut state.role) else { return };
        state.unowned_since = None;
        effects.push(Effect::StepDown { slot });
        self.begin_takeover(now, slot, target, effects);
        if let Role::Candidate(taking) = &mut self.state_mut(slot).role {
            taking.owned_epoch = Some(leading.claim.epoch);
        }
    }

    /// A question could not be answered.
    pub(super) fn on_request_failed(
        &mut self,
        now: Millis,
        from: &Member,
        slot: Slot,
        claim: &Claim,
        effects: &mut Vec<Effect>,
    ) {
        let Role::Owner(leading) = &self.state(slot).role else { return };
        let is_successor =
            matches!(&leading.transferring, Some(Transferring::Handover { to, .. }) if to == from);
        if leading.claim == *claim && is_successor {
            self.cancel_transfer(now, slot, effects);
        }
    }
}

impl OwnerState {
    fn needs_offer(&self, member: &Member) -> bool {
        self.members.contains(member) || self.learner.as_ref() == Some(member)
    }

    fn sync_offer_effect(&self, slot: Slot, member: &Member) -> Effect {
        let (claim, members) = (self.claim.clone(), self.members.clone());
        Effect::OfferSync { to: member.clone(), slot, claim, members, is_confirmed: true, previous: None }
    }
}
