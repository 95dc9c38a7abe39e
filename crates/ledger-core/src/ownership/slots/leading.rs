//! What an owner does beside taking appends: bring members in step, hand over, move.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Ask, Claim, Effect, Ending, GaveUp, Leading, Leaving, Member, Millis, NodeId, Phase, Placement,
    ReplicaSet, Role, Settings, Slot, Slots, State, Taking, rendezvous,
};

impl Slots {
    /// The takeover is done.
    pub(super) fn own(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) {
        let Role::Taking(taking) = std::mem::take(&mut self.state_mut(slot).role) else { return };
        let Taking { takeover, mut in_step, mut offered, led, since: began, .. } = *taking;
        let since = if led.is_some() { 0 } else { now };
        let (claim, set) = (takeover.claim().clone(), takeover.members().clone());
        let needed = self.settings.min_copies.clamp(1, set.len());
        if let Some(recovery) = takeover.recovery() {
            effects.push(Effect::Recovered { slot, claim: claim.clone(), recovery });
        }
        effects.push(Effect::Own { slot, claim: claim.clone(), needed });
        let counted = in_step.iter().filter(|member| set.contains(member));
        effects.extend(counted.map(|member| Effect::Count {
            slot,
            claim: claim.clone(),
            member: member.clone(),
        }));
        // Whoever was a member until now is told, and sent nothing more.
        for former in offered.iter().filter(|member| !set.contains(member)) {
            effects.push(Effect::Ask { to: former.clone(), slot, claim: claim.clone(), ask: Ask::Confirm });
            effects.push(Effect::Release { slot, claim: claim.clone(), member: former.clone() });
        }
        in_step.retain(|member| set.contains(member));
        // Offers are under way to the others whose streams are up.
        offered.retain(|member| set.contains(member) && !in_step.contains(member));
        let leading = Leading {
            claim,
            since,
            set,
            in_step,
            short_since: None,
            too_few: None,
            offered,
            learner: None,
            ending: None,
            is_offered: false,
            asked: BTreeMap::new(),
        };
        let state = self.state_mut(slot);
        (state.attempts, state.why) = (0, None);
        // Nobody else can have come to own it since the takeover began, and what was committed before is here.
        state.lease.extend(began);
        state.role = Role::Leading(Box::new(leading));
    }

    /// Offers a node whose stream came up all it should have.
    pub(super) fn offer_all(&mut self, member: &Member, effects: &mut Vec<Effect>) {
        for slot in self.all().iter().copied() {
            self.offer(member, slot, effects);
        }
    }

    fn offer(&mut self, member: &Member, slot: Slot, effects: &mut Vec<Effect>) {
        let is_connected = self.connected.contains(member);
        let Role::Leading(leading) = &mut self.state_mut(slot).role else { return };
        if !is_connected || leading.in_step.contains(member) || !leading.is_due(member) {
            return;
        }
        if leading.offered.insert(member.clone()) {
            effects.push(leading.offer_to(slot, member));
        }
    }

    /// A member caught up, and asks for another offer.
    pub(super) fn joins(&mut self, member: &Member, slot: Slot, effects: &mut Vec<Effect>) {
        if !self.connected.contains(member) {
            return;
        }
        match &mut self.state_mut(slot).role {
            Role::Taking(taking) => {
                taking.in_step.remove(member);
                taking.offered.remove(member);
                self.offer_taken(member, slot, effects);
            }
            // One that counts already asks too late. One that is not due was when it was offered the slot: when it is
            // again, it has to be offered anew.
            Role::Leading(leading) if !leading.in_step.contains(member) => {
                leading.offered.remove(member);
                leading.is_offered = false;
                self.offer(member, slot, effects);
            }
            _ => {}
        }
    }

    /// Offers a member the history of a slot that is being taken, once on each stream.
    pub(super) fn offer_taken(&mut self, member: &Member, slot: Slot, effects: &mut Vec<Effect>) {
        let is_connected = self.connected.contains(member);
        let Role::Taking(taking) = &mut self.state_mut(slot).role else { return };
        let Some(placement) = taking.takeover.accept_by(member).filter(|_| is_connected) else { return };
        if taking.offered.insert(member.clone()) {
            let claim = taking.takeover.claim().clone();
            let Placement { set, is_confirmed, before, .. } = placement;
            effects.push(Effect::Offer { to: member.clone(), slot, claim, set, is_confirmed, before });
        }
    }

    /// Offers a slot that is being taken to those who could not take it before.
    pub(super) fn offer_again(&mut self, slot: Slot, effects: &mut Vec<Effect>) {
        let Role::Taking(taking) = &self.state(slot).role else { return };
        if !matches!(taking.phase, Phase::Accepting | Phase::Confirming) {
            return;
        }
        let due: Vec<Member> = self.connected.difference(&taking.offered).cloned().collect();
        for member in due {
            self.offer_taken(&member, slot, effects);
        }
    }

    pub(super) fn lost(&mut self, member: &Member) {
        self.connected.remove(member);
        self.renewals.remove(member);
        for state in &mut self.states {
            match &mut state.role {
                Role::Replica => {}
                Role::Taking(taking) => {
                    taking.in_step.remove(member);
                    taking.offered.remove(member);
                }
                Role::Leading(leading) => {
                    leading.in_step.remove(member);
                    leading.offered.remove(member);
                    leading.is_offered = false;
                }
            }
        }
    }

    /// Slots being handed over or moved.
    pub(super) fn moves_under_way(&self) -> usize {
        let is_moving = |role: &Role| matches!(role, Role::Leading(leading) if leading.ending.is_some());
        self.states.iter().filter(|state| is_moving(&state.role)).count()
    }

    /// Looks after a slot that this node owns; with the number of moves under way, also whether it should stay here.
    pub(super) fn tend(
        &mut self,
        now: Millis,
        slot: Slot,
        moves: Option<&mut usize>,
        effects: &mut Vec<Effect>,
    ) {
        // Before offers are made: one that is refused every time is not on the way.
        let is_short = self.is_short(now, slot, effects);
        let Role::Leading(leading) = &mut self.state_mut(slot).role else { return };
        // Whoever is not connected is offered it when it is.
        if !std::mem::replace(&mut leading.is_offered, true) {
            for member in self.due(slot) {
                self.offer(&member, slot, effects);
            }
        }
        if is_short {
            return;
        }
        let most = self.settings.moves;
        let State { role: Role::Leading(leading), stays_until, .. } = self.state(slot) else { return };
        match &leading.ending {
            Some(Ending::HandOver { until, .. } | Ending::Move { until, .. }) if *until <= now => {
                self.go_on(now, slot, effects);
            }
            Some(_) => {}
            None if now < *stays_until => {}
            None => {
                if let Some(moves) = moves.filter(|moves| **moves < most)
                    && let Some(ending) = self.ending(now, slot)
                {
                    *moves += 1;
                    self.end(slot, ending, effects);
                }
            }
        }
    }

    /// Whether too few members are in step, or on the way there, for a slot to take appends. It stays this node's all the
    /// same: others may come back without what was appended last.
    fn is_short(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) -> bool {
        let Settings { min_copies, short_within, .. } = self.settings;
        let Role::Leading(leading) = &self.state(slot).role else { return false };
        let all_are_here =
            |left: ReplicaSet| left.members().iter().all(|member| leading.in_step.contains(member));
        if self.left_of(slot, leading).is_some_and(all_are_here) {
            self.take_again(now, slot, None, effects);
            return true;
        }
        let members = leading.set.members();
        let needed = min_copies.clamp(1, members.len());
        let count = |of: &BTreeSet<Member>| members.iter().filter(|member| of.contains(*member)).count();
        let heard = count(&leading.in_step);
        if leading.too_few.is_some() {
            // It is taken again by the promises of m members, or of all that are alive if m is not more than half.
            let is_there = |member: &Member| leading.in_step.contains(member) || !self.is_alive(member);
            if heard >= needed && (2 * needed > members.len() || members.iter().all(is_there)) {
                // Some of a stream of appends may have been refused: what followed them must not be taken before.
                self.take_again(now, slot, None, effects);
            }
            return true;
        }
        // Whoever catches up will count: with a large load that takes a while.
        let is_coming = heard + count(&leading.offered) >= needed;
        let too_few = GaveUp::TooFew { heard, members: members.len(), needed };
        let Role::Leading(leading) = &mut self.state_mut(slot).role else { return false };
        if heard >= needed {
            leading.short_since = None;
            return false;
        }
        if now < *leading.short_since.get_or_insert(now) + short_within || is_coming {
            return false;
        }
        (leading.too_few, leading.ending) = (Some(too_few), None);
        // Those who wait are told.
        effects.push(Effect::StepDown { slot });
        true
    }

    /// What is left of its members without those that were declared lost, if it is to go on with that.
    fn left_of(&self, slot: Slot, leading: &Leading) -> Option<ReplicaSet> {
        let approval = self.declared.slots.get(&slot)?;
        let (epoch, set) = (leading.claim.epoch, leading.set.clone());
        let placement = Placement { epoch, set, is_confirmed: true, before: None };
        let left = placement.without(&self.declared.lost, self.settings.min_copies)?;
        approval.is_about(&placement).then_some(left.set)
    }

    /// Members, and those to become one, that were not offered the slot.
    fn due(&self, slot: Slot) -> Vec<Member> {
        let Role::Leading(leading) = &self.state(slot).role else { return Vec::new() };
        let due = leading.set.members().iter().chain(&leading.learner);
        due.filter(|member| !leading.in_step.contains(*member) && !leading.offered.contains(*member))
            .cloned()
            .collect()
    }

    /// Whether a slot should go to another node, or to other members.
    fn ending(&mut self, now: Millis, slot: Slot) -> Option<Ending> {
        let until = now + self.settings.answer_within;
        let Role::Leading(leading) = &self.state(slot).role else { return None };
        if let Some(to) = self.successor(now, slot, leading) {
            return Some(Ending::HandOver { to, until });
        }
        let next = self.target(now, slot, leading);
        let min_copies = self.settings.min_copies;
        let alive = if next.is_some() { self.alive_members() } else { BTreeSet::new() };
        let Role::Leading(leading) = &mut self.state_mut(slot).role else { return None };
        let learner = next.as_ref().and_then(|(_, learner)| learner.as_ref());
        if leading.learner.as_ref() != learner {
            leading.learner = learner.cloned();
            leading.is_offered = false;
        }
        // Others may be away, perhaps for ever: enough must be there to accept.
        let is_enough = |set: &ReplicaSet| {
            let count =
                |of: &BTreeSet<Member>| set.members().iter().filter(|member| of.contains(*member)).count();
            count(&leading.in_step) >= set.knowing(min_copies, count(&alive))
        };
        let is_ready = |(target, learner): &(ReplicaSet, Option<Member>)| {
            let has_learnt = learner.as_ref().is_none_or(|learner| leading.in_step.contains(learner));
            has_learnt && is_enough(target) && is_enough(&leading.set)
        };
        next.filter(is_ready).map(|(target, _)| Ending::Move { target, until })
    }

    /// The node that should own a slot instead of this one, and can at once.
    fn successor(&self, now: Millis, slot: Slot, leading: &Leading) -> Option<Member> {
        if !self.is_draining && now < leading.since + self.settings.steady {
            return None;
        }
        let can = |member: &&Member| {
            let known = self.nodes.get(&member.node);
            let is_steady = known.is_some_and(|known| now >= known.since + self.settings.steady);
            leading.in_step.contains(*member)
                && self.is_alive(member)
                && (self.is_draining || is_steady)
                && !self.is_draining(&member.node)
                && self.is_writable(&member.node)
        };
        let able: Vec<&Member> = leading.set.members().iter().filter(can).collect();
        let names = able.iter().map(|member| member.node.clone());
        let mut order = rendezvous::order(slot, names);
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
    fn target(&self, now: Millis, slot: Slot, leading: &Leading) -> Option<(ReplicaSet, Option<Member>)> {
        let wanted = self.wanted(now, slot);
        let members = leading.set.members();
        let is_wanted = |member: &&Member| {
            wanted.contains(&member.node) && self.member(&member.node).is_none_or(|now| now == *member)
        };
        let leaves = members.iter().position(|member| {
            member.node != self.me.node && self.leaving(&member.node).is_some() && !is_wanted(&member)
        });
        // A node whose data directory is another one than it was is missing too.
        let able = |node: &NodeId| {
            let is_able = |member: &&Member| self.is_alive(member) && self.is_writable(node);
            let member = self.member(node).filter(is_able)?;
            (!members.contains(member)).then(|| member.clone())
        };
        let missing = wanted.iter().find_map(&able).or_else(|| {
            leaves?;
            self.spare(slot).iter().find_map(&able)
        });
        let mut next: Vec<Member> = members.to_vec();
        let Some(missing) = missing else {
            let leaves = leaves.filter(|at| self.leaving(&members[*at].node) == Some(Leaving::Fewer))?;
            next.remove(leaves);
            let is_enough = next.len() >= self.settings.min_copies;
            return Some((ReplicaSet::new(next).ok().filter(|_| is_enough)?, None));
        };
        let same_node = next.iter().position(|member| member.node == missing.node);
        let unwanted = || {
            let gone = members.iter().position(|member| !is_wanted(&member) && !self.is_alive(member));
            gone.or(leaves).or_else(|| {
                members.iter().position(|member| !is_wanted(&member) && member.node != self.me.node)
            })
        };
        if let Some(old) =
            same_node.or_else(|| if members.len() < self.settings.copies { None } else { unwanted() })
        {
            next.remove(old);
        } else if members.len() >= self.settings.copies {
            // Only this node is too many: whoever it hands the slot to moves it.
            return None;
        }
        next.push(missing.clone());
        Some((ReplicaSet::new(next).ok()?, Some(missing)))
    }

    /// The nodes that are there and stay, in the order in which the slot prefers them.
    fn spare(&self, slot: Slot) -> Vec<NodeId> {
        let spare = self.candidates(|known| known.seen.is_alive && known.seen.leaving.is_none());
        rendezvous::wanted_set(slot, spare, self.nodes.len())
    }

    fn end(&mut self, slot: Slot, ending: Ending, effects: &mut Vec<Effect>) {
        let Role::Leading(leading) = &mut self.state_mut(slot).role else { return };
        leading.ending = Some(ending);
        effects.push(Effect::Stop { slot, claim: leading.claim.clone() });
    }

    /// What was appended has its copies: goes on with what it was stopped for.
    pub(super) fn stopped(&mut self, now: Millis, slot: Slot, claim: &Claim, effects: &mut Vec<Effect>) {
        let until = now + self.settings.answer_within;
        let Role::Leading(leading) = &mut self.state_mut(slot).role else { return };
        if leading.claim != *claim {
            return;
        }
        match &mut leading.ending {
            None => {}
            Some(Ending::HandOver { to, until: deadline }) => {
                *deadline = until;
                let (to, claim) = (to.clone(), claim.clone());
                effects.push(Effect::Ask { to, slot, claim, ask: Ask::TakeOver });
            }
            Some(Ending::Move { target, .. }) => {
                let target = target.clone();
                self.take_again(now, slot, Some(target), effects);
            }
        }
    }

    /// A handover or move came to nothing: takes appends again. Not in the same epoch, in which some of a stream of
    /// appends may have been refused: what followed them must not be taken before they are sent again.
    fn go_on(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) {
        self.state_mut(slot).stays_until = now + self.settings.answer_within * 2;
        self.take_again(now, slot, None, effects);
    }

    /// Takes a slot from itself. Whoever counted did so in the epoch that ends, and may be behind in the next.
    fn take_again(&mut self, now: Millis, slot: Slot, target: Option<ReplicaSet>, effects: &mut Vec<Effect>) {
        let state = self.state_mut(slot);
        let Role::Leading(leading) = std::mem::take(&mut state.role) else { return };
        state.unowned_since = None;
        effects.push(Effect::StepDown { slot });
        self.take(now, slot, target, effects);
        if let Role::Taking(taking) = &mut self.state_mut(slot).role {
            taking.led = Some(leading.claim.epoch);
        }
    }

    /// A question could not be answered.
    pub(super) fn not_now(
        &mut self,
        now: Millis,
        from: &Member,
        slot: Slot,
        claim: &Claim,
        effects: &mut Vec<Effect>,
    ) {
        let Role::Leading(leading) = &self.state(slot).role else { return };
        let is_successor = matches!(&leading.ending, Some(Ending::HandOver { to, .. }) if to == from);
        if leading.claim == *claim && is_successor {
            self.go_on(now, slot, effects);
        }
    }
}

impl Leading {
    fn is_due(&self, member: &Member) -> bool {
        self.set.contains(member) || self.learner.as_ref() == Some(member)
    }

    fn offer_to(&self, slot: Slot, member: &Member) -> Effect {
        let (claim, set) = (self.claim.clone(), self.set.clone());
        Effect::Offer { to: member.clone(), slot, claim, set, is_confirmed: true, before: None }
    }
}
