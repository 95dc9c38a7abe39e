//! Read leases: how a node knows that what its readers see of a slot is not too old.
//!
//! A node shows a slot to readers while it knows of a moment, at most [`OwnershipSettings::max_staleness`] ago, at which it showed
//! all that was committed anywhere. This is the lease of Gray and Cheriton ("Leases: an efficient fault-tolerant mechanism for distributed
//! file cache consistency", 1989) by which Raft's leaders serve reads (Ongaro, "Consensus: Bridging Theory and Practice", 2014,
//! §6.4.1), passed on to the replicas. Nodes never compare clocks: each counts from moments on its own clock that are certainly
//! earlier than what another node tells it.
//!
//! | the node is | it knows of the moment at which |
//! | --- | --- |
//! | the owner | it asked m members, itself one of them, and none had promised a higher claim: no other node has committed anything |
//! | a replica in sync | the owner's lease began; all that was committed until then came before the renewal on the stream |
//! | a replica without an owner | it asked a majority of the members, and none of them knew an owner: nothing is being committed |
//! | no member any more | none: it shows nothing |
//!
//! Without an owner, a replica may hold the last committed entries and not show them, because no owner says that they are
//! committed.
//!
//! The owner sends a renewal only after the replica answered the one before. So the replica knows a moment on its own clock,
//! that of its answer, after which the renewal was sent.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Claim, Effect, LeaseRenewal, Member, MemberRequest, Millis, OwnerState, OwnershipSettings, Placement,
    Role, SentRenewal, Slot, SlotKnowledge, SlotManager, SlotState,
};

/// Bounds of the pause between two renewals, milliseconds. The pause is a tenth of `max_staleness`.
const RENEWAL_INTERVAL_BOUNDS: std::ops::RangeInclusive<Millis> = 50..=1_000;
/// If a node holds a slot and its owner makes it no offer, the node asks why after one pause, then again after so many pauses.
const QUERY_AFTER_PAUSES: Millis = 8;

impl SlotState {
    /// Forgets the newer members that another node told of, once this node's record is as new.
    pub(super) fn forget_superseded(&mut self) {
        let recorded = self.record.placement.as_ref().map(Placement::rank);
        self.lease.superseded.take_if(|told| recorded >= Some(told.rank()));
    }

    /// Returns whether this node is a member of the slot, by the newest members that it knows of.
    fn keeps(&self, me: &Member) -> bool {
        let recorded = self.record.placement.as_ref();
        let contains = |known: &Placement| {
            // Until a move is settled, a member that is to leave may have to take the slot back.
            known.members.contains(me) || known.previous.as_ref().is_some_and(|before| before.contains(me))
        };
        !matches!(self.role, Role::Replica)
            || (self.lease.superseded.is_none() && recorded.is_some_and(contains))
    }
}

impl OwnershipSettings {
    /// Returns the pause between two renewals.
    fn renewal_pause(&self) -> Millis {
        let bound = self.max_staleness.unwrap_or(Millis::MAX);
        (bound / 10).clamp(*RENEWAL_INTERVAL_BOUNDS.start(), *RENEWAL_INTERVAL_BOUNDS.end())
    }
}

impl OwnerState {
    /// Returns the newest moment at which this node sent renewals that so many other members have answered.
    fn confirmed_at(&self, others: usize) -> Option<Millis> {
        let members = self.promises_checked_at.iter().filter(|(member, _)| self.members.contains(member));
        let mut asked: Vec<Millis> = members.map(|(_, at)| *at).collect();
        asked.sort_unstable_by(|a, b| b.cmp(a));
        asked.get(others.checked_sub(1)?).copied()
    }
}

impl SlotManager {
    /// Returns whether this node is a member of a slot, as far as it knows. A node neither shows nor counts what it holds of a
    /// slot that it left.
    pub fn is_member(&self, slot: Slot) -> bool {
        self.state(slot).keeps(&self.me)
    }

    /// Returns until when this node may show readers what it holds of a slot; 0: it has no lease.
    pub fn visible_until(&self, now: Millis, slot: Slot) -> Millis {
        if !self.is_member(slot) {
            return 0;
        }
        let Some(bound) = self.settings.max_staleness else { return Millis::MAX };
        let asked = self.state(slot).lease.unowned_since.map_or(0, |at| at.saturating_add(bound));
        self.current_until(now, slot).max(asked)
    }

    /// Returns until when what this node shows of a slot is certainly no older than `max_staleness`; 0: it does not know.
    pub fn current_until(&self, now: Millis, slot: Slot) -> Millis {
        let bound = self.settings.max_staleness.unwrap_or(Millis::MAX);
        self.lease_start(now, slot).map_or(0, |at| at.saturating_add(bound))
    }

    /// Returns the newest known moment at which this node showed all that was committed of a slot.
    fn lease_start(&self, now: Millis, slot: Slot) -> Option<Millis> {
        let state = self.state(slot);
        match &state.role {
            Role::Owner(owner) if self.quorum_of_others(owner) == 0 => Some(now),
            _ => state.lease.since,
        }
    }

    /// Returns the number of members, beside itself, that an owner has to hear.
    fn quorum_of_others(&self, owner: &OwnerState) -> usize {
        self.settings.write_quorum.clamp(1, owner.members.len()) - 1
    }

    /// Renews the leases of replicas, and asks about slots whose leases nobody renews here.
    pub(super) fn maintain_leases(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        if self.settings.max_staleness.is_some() {
            self.renew_leases(now, effects);
        }
        for slot in self.all().iter().copied() {
            if matches!(self.state(slot).role, Role::Replica) && self.is_member(slot) {
                self.query_slot(now, slot, effects);
            }
        }
    }

    /// Sends a renewal to each replica that answered the one before.
    fn renew_leases(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let pause = self.settings.renewal_pause();
        let is_due = |sent: &SentRenewal| sent.is_answered && now >= sent.sent_at + pause;
        let due: Vec<Member> = self
            .connected
            .iter()
            .filter(|member| **member != self.me && self.renewals.get(*member).is_none_or(is_due))
            .cloned()
            .collect();
        for to in due {
            let renewal = |slot: Slot| match &self.state(slot).role {
                Role::Owner(owner) if owner.members.contains(&to) => {
                    let age = self.lease_start(now, slot).map(|at| now.saturating_sub(at));
                    Some(LeaseRenewal { slot, claim: owner.claim.clone(), age })
                }
                _ => None,
            };
            let slots: Vec<LeaseRenewal> = self.all().iter().copied().filter_map(renewal).collect();
            if slots.is_empty() {
                continue;
            }
            let named = slots.iter().map(|renewal| (renewal.slot, renewal.claim.epoch)).collect();
            self.renewals.insert(to.clone(), SentRenewal { sent_at: now, slots: named, is_answered: false });
            effects.push(Effect::RenewLeases { to, slots });
        }
    }

    /// A replica answered a renewal. When this node sent it, the replica had promised no higher claim to the slots, except those
    /// that it refused. A refusal ends this node's ownership here; otherwise the node would hear of the higher claim only with the
    /// next append.
    pub(super) fn on_renewal_answered(
        &mut self,
        now: Millis,
        from: &Member,
        refused: BTreeMap<Slot, Option<Claim>>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(sent) = self.renewals.get_mut(from).filter(|sent| !sent.is_answered) else { return };
        sent.is_answered = true;
        let (at, slots) = (sent.sent_at, std::mem::take(&mut sent.slots));
        for (slot, epoch) in slots {
            if refused.contains_key(&slot) {
                continue;
            }
            let Role::Owner(owner) = &mut self.state_mut(slot).role else { continue };
            if owner.claim.epoch != epoch {
                continue;
            }
            owner.promises_checked_at.insert(from.clone(), at);
            let Role::Owner(owner) = &self.state(slot).role else { continue };
            if let Some(at) = owner.confirmed_at(self.quorum_of_others(owner)) {
                self.state_mut(slot).lease.extend(at);
            }
        }
        for (slot, by) in refused {
            if let Some(by) = by {
                self.on_claim_heard(now, slot, by, effects);
            }
        }
    }

    /// The owner renewed this node's leases. It sent the renewal after the moment `after`, by this node's clock.
    pub(super) fn on_lease_renewed(&mut self, after: Millis, slots: &[(Slot, Millis)]) {
        for (slot, age) in slots {
            if let Some(at) = after.checked_sub(*age) {
                self.state_mut(*slot).lease.extend(at);
            }
        }
    }

    /// Asks members about a slot that this node holds, if nobody renews its lease and the node cannot tell why.
    fn query_slot(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) {
        let owner = self.owned_by_other(slot).cloned();
        let (pause, me) = (self.settings.renewal_pause(), self.me.clone());
        let bound = self.settings.max_staleness;
        let state = self.state_mut(slot);
        let accepted = state.record.accepted;
        let claim = Claim::new(accepted, &me);
        let lease = &mut state.lease;
        let is_behind = owner.as_ref().is_some_and(|(_, epoch)| *epoch > accepted);
        if !is_behind {
            lease.behind_since = None;
        }
        let asked = match owner {
            // The owner may have other members by now: it makes its members offers, and made this node none.
            Some((node, _)) if is_behind => {
                let since = *lease.behind_since.get_or_insert(now);
                if now < since + pause || now < lease.next_query {
                    return;
                }
                lease.next_query = now + pause * QUERY_AFTER_PAUSES;
                self.member(&node).cloned().into_iter().collect()
            }
            Some(_) => return,
            None => {
                let is_old = lease
                    .since
                    .max(lease.unowned_since)
                    .zip(bound)
                    .is_some_and(|(at, bound)| now >= at + bound / 2);
                if !is_old || now < lease.next_query {
                    return;
                }
                let members = state.record.placement.as_ref().filter(|known| known.is_confirmed);
                let members = members.map_or_else(Vec::new, |known| known.members.members().to_vec());
                let lease = &mut self.state_mut(slot).lease;
                lease.next_query = now + pause;
                lease.query = (now, BTreeSet::from([me.clone()]));
                members
            }
        };
        let others = asked.into_iter().filter(|member| *member != me && self.is_alive(member));
        let request = MemberRequest::QuerySlot { sent_at: now };
        effects.extend(others.map(|to| Effect::SendRequest { to, slot, claim: claim.clone(), request }));
    }

    /// Returns what this node knows of a slot, to answer a member whose lease nobody renews.
    pub fn slot_knowledge(&self, now: Millis, slot: Slot) -> SlotKnowledge {
        let record = &self.state(slot).record;
        let bound = self.settings.max_staleness.unwrap_or(Millis::MAX);
        let is_owned = self.lease_start(now, slot).is_some_and(|at| now < at.saturating_add(bound / 2));
        SlotKnowledge { accepted: record.accepted, placement: record.placement.clone(), is_owned }
    }

    /// Another node answered what it knows of a slot.
    pub(super) fn on_slot_known(&mut self, from: Member, slot: Slot, asked: Millis, known: SlotKnowledge) {
        let (me, write_quorum) = (self.me.clone(), self.settings.write_quorum);
        let state = self.state_mut(slot);
        let SlotKnowledge { accepted, placement, is_owned } = known;
        let recorded = state.record.placement.as_ref();
        let is_newer = |told: &Placement| {
            told.is_confirmed
                && told.previous.is_none()
                && recorded.is_none_or(|known| told.rank() > known.rank())
        };
        if let Some(told) = placement.filter(is_newer)
            && !told.members.contains(&me)
            && matches!(state.role, Role::Replica)
        {
            state.lease.superseded = Some(told);
            return;
        }
        // A node that has an owner, or had one lately, or accepted a newer epoch may know of entries that were committed since.
        if is_owned || accepted > state.record.accepted || state.lease.query.0 != asked {
            return;
        }
        let Some(members) = recorded.map(|known| known.members.clone()) else { return };
        let heard = &mut state.lease.query.1;
        heard.insert(from);
        let needed = write_quorum.max(members.len() / 2 + 1).min(members.len());
        if members.members().iter().filter(|member| heard.contains(*member)).count() >= needed {
            state.lease.unowned_since = state.lease.unowned_since.max(Some(asked));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Epoch,
        node::{NodeId, ReplicaSet, StorageId},
    };

    fn member(number: u8) -> Member {
        Member { node: NodeId::new(format!("n{number}")).unwrap(), storage: StorageId([number; 16]) }
    }

    fn owner(asked: &[(u8, Millis)]) -> OwnerState {
        OwnerState {
            claim: Claim::new(Epoch(9), &member(0)),
            since: 0,
            members: ReplicaSet::new((0..3).map(member)).unwrap(),
            in_sync: BTreeSet::new(),
            short_since: None,
            is_halted_for_quorum: None,
            offered: BTreeSet::new(),
            learner: None,
            transferring: None,
            is_offered: false,
            promises_checked_at: asked
                .iter()
                .map(|(number, at)| (member(*number), *at))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn an_owner_knows_of_the_moment_at_which_it_asked_enough_members() {
        assert_eq!(owner(&[]).confirmed_at(1), None);
        assert_eq!(owner(&[(1, 50), (2, 70)]).confirmed_at(1), Some(70));
        assert_eq!(owner(&[(1, 50), (2, 70)]).confirmed_at(2), Some(50));
        assert_eq!(owner(&[(1, 50), (7, 90)]).confirmed_at(1), Some(50), "who is no member does not count");
    }

    #[test]
    fn a_lease_is_renewed_ten_times_while_it_lasts() {
        let pause = |bound| {
            OwnershipSettings { max_staleness: bound, ..OwnershipSettings::default() }.renewal_pause()
        };
        assert_eq!((pause(Some(10_000)), pause(Some(2_000)), pause(Some(100))), (1_000, 200, 50));
        assert_eq!(pause(None), 1_000);
    }
}
