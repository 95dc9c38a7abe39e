//! When to claim a slot that nobody owns: whose turn it is, with which members, in which epoch.

use std::{borrow::Cow, collections::BTreeSet};

use super::{
    CandidateState, Claim, Effect, Epoch, Member, Millis, NodeId, Phase, Placement, ReplicaSet, Role,
    STANDALONE_EPOCHS, Slot, SlotManager, SlotRecord, SlotState, Takeover, TakeoverFailure, rendezvous,
    takeover,
};
use crate::ownership::recovery;

/// The longest pause between two claims of one node, in units of `claim_turn`.
const MAX_BACKOFF_TURNS: Millis = 8;
/// How many candidates a node lets go first while nobody owns a slot: one that fails again and again must not keep those from the
/// slot that could own it.
const MAX_DEFERRALS: u32 = 6;
/// How often the time that a takeover waits for members doubles.
const MAX_TIMEOUT_DOUBLINGS: u32 = 2;
/// How often an owner checks whether its slots should go to other nodes, milliseconds. The check hashes names for each slot.
const TRANSFER_CHECK_INTERVAL: Millis = 500;

impl SlotManager {
    /// Time has passed: claims slots, ends takeovers that are out of time, maintains the slots that this node owns.
    pub(super) fn tick(&mut self, now: Millis, effects: &mut Vec<Effect>) {
        let is_looking = self.is_draining || now >= self.next_transfer_check;
        let mut moves = if is_looking { self.transfers_in_progress() } else { 0 };
        let before = moves;
        // No slot can form while some of its first members are away.
        let is_forming = self.missing_members().is_none();
        for slot in self.all().iter().copied() {
            match &self.state(slot).role {
                Role::Replica => self.maybe_claim(now, slot, is_forming, effects),
                Role::Candidate(candidate) if candidate.deadline <= now => {
                    let claim = candidate.takeover.claim().clone();
                    self.step_takeover(now, slot, &claim, takeover::Event::TimedOut, effects);
                }
                Role::Candidate(_) => self.retry_takeover_sync(slot, effects),
                Role::Owner(_) => self.maintain_owned(now, slot, is_looking.then_some(&mut moves), effects),
            }
        }
        // As long as transfers begin, the next may follow at once.
        if is_looking && moves == before {
            self.next_transfer_check = now + TRANSFER_CHECK_INTERVAL;
        }
    }

    /// Claims a slot that nobody owns, if it is this node's turn.
    fn maybe_claim(&mut self, now: Millis, slot: Slot, is_forming: bool, effects: &mut Vec<Effect>) {
        let is_owned = self.owned_by_other(slot).is_some();
        let state = self.state_mut(slot);
        if is_owned {
            (state.unowned_since, state.attempts, state.unowned_reason) = (None, 0, None);
            state.claims_promised = 0;
            return;
        }
        let since = *state.unowned_since.get_or_insert(now);
        let not_before = state.not_before;
        let is_its_time = self.is_identified || self.first_slot() == Some(slot);
        let state = self.state(slot);
        let may = self.placement(slot).is_some() || (is_forming && is_its_time && !state.is_formed);
        if !may
            || !self.is_writable
            || self.is_damaged(slot)
            || now < not_before
            || now < self.started + self.settings.settle_time
        {
            return;
        }
        if now < self.deferred_until(slot) {
            return;
        }
        let Some(turn) = self.claim_rank(now, slot) else { return };
        if now >= since + self.settings.claim_turn * turn as Millis {
            self.begin_takeover(now, slot, None, effects);
        }
    }

    /// Returns until when this node lets the candidate go on that it promised the slot: a higher claim would end that takeover,
    /// and where members answer slowly candidates would end each other's for ever. Raft: a follower that grants a vote resets its
    /// election timer.
    fn deferred_until(&self, slot: Slot) -> Millis {
        let SlotState { record, candidate_heard_at, claims_promised, .. } = self.state(slot);
        let is_under_way = record.promised.as_ref().is_some_and(|promised| {
            self.nodes.get(&promised.claimant).is_some_and(|known| known.observed.is_alive)
        });
        match claims_promised {
            1..=MAX_DEFERRALS if is_under_way => {
                candidate_heard_at + self.timeout_of_attempt(claims_promised - 1)
            }
            _ => 0,
        }
    }

    /// Returns the members that this node knows of. If it is the heir and knows none, it returns those that the operator named as
    /// lost: the heir goes on without them.
    fn placement(&self, slot: Slot) -> Option<Cow<'_, Placement>> {
        let SlotState { record, is_formed, .. } = self.state(slot);
        record.placement.as_ref().map(Cow::Borrowed).or_else(|| {
            let approval = self.declared.slots.get(&slot).filter(|_| *is_formed)?;
            (approval.heir.as_ref() == Some(&self.me)).then(|| {
                Cow::Owned(Placement {
                    epoch: approval.placed_in,
                    members: approval.members.clone(),
                    is_confirmed: true,
                    previous: approval.previous.clone(),
                })
            })
        })
    }

    /// Returns this node's rank among the nodes that may claim a slot: 0 claims first. `None`: it may not claim.
    fn claim_rank(&self, now: Millis, slot: Slot) -> Option<usize> {
        let alive = |set: &ReplicaSet| -> Vec<NodeId> {
            let alive = set.members().iter().filter(|member| self.is_alive(member));
            alive.map(|member| member.node.clone()).collect()
        };
        match self.placement(slot).as_deref() {
            None => {
                let first = self.first_members(now, slot)?;
                self.rank_among(slot, first.members().iter().map(|member| member.node.clone()).collect())
            }
            Some(placement) if placement.members.contains(&self.me) => {
                self.rank_among(slot, alive(&placement.members))
            }
            Some(placement) => {
                // This node was to leave in a move that is not settled. The members that stay may not know of the move: it claims after them.
                let staying = alive(&placement.members);
                let Some(before) = placement.previous.as_ref().filter(|before| before.contains(&self.me))
                else {
                    return self.claim_rank_after_loss(slot, placement);
                };
                let leaving = alive(before).into_iter().filter(|node| !staying.contains(node));
                Some(staying.len() + self.rank_among(slot, leaving.collect())?)
            }
        }
    }

    /// Returns the rank of this node where members are lost and it is no member as far as it knows: after all members. It may be
    /// the heir. It may also be the only one left of newer members, without knowing that it is one.
    fn claim_rank_after_loss(&self, slot: Slot, placement: &Placement) -> Option<usize> {
        let approval = self.declared.slots.get(&slot)?;
        if placement.epoch > approval.placed_in && !approval.covers(placement) {
            return None;
        }
        let all = self.alive_members().into_iter().map(|member| member.node).collect::<Vec<_>>();
        Some(placement.members.len() + self.rank_among(slot, all)?)
    }

    /// Returns this node's rank among these nodes, of those that can own the slot. `None`: it cannot.
    fn rank_among(&self, slot: Slot, keepers: Vec<NodeId>) -> Option<usize> {
        // A node whose disk takes no writes cannot own a slot. A draining node takes it only if there is no other.
        let able: Vec<_> = keepers.into_iter().filter(|node| self.is_writable(node)).collect();
        let willing: Vec<_> = able.iter().filter(|node| !self.is_draining(node)).cloned().collect();
        let order = rendezvous::preference_order(slot, if willing.is_empty() { able } else { willing });
        order.iter().position(|node| *node == self.me.node)
    }

    /// Returns the first members of a slot that has none; `None` while some of them are away.
    fn first_members(&self, now: Millis, slot: Slot) -> Option<ReplicaSet> {
        let settings = &self.settings;
        let names = if settings.first_nodes.is_empty() {
            let alive =
                self.candidates(|known| known.observed.is_alive && known.observed.decommission.is_none());
            if alive.len() < settings.replication_factor {
                return None;
            }
            self.desired_members(now, slot)
        } else {
            let candidates = settings.first_nodes.iter().map(|node| rendezvous::PlacementCandidate {
                node: node.clone(),
                zone: self.nodes.get(node).map_or_else(String::new, |known| known.observed.zone.clone()),
            });
            // Placement depends on zones: all zones must be known before any slot is placed.
            if settings.first_nodes.iter().any(|node| self.member(node).is_none()) {
                return None;
            }
            rendezvous::preferred_members(slot, candidates, settings.replication_factor)
        };
        let members =
            names.iter().map(|node| self.member(node).filter(|member| self.is_alive(member)).cloned());
        ReplicaSet::new(members.collect::<Option<Vec<_>>>()?).ok()
    }

    /// Begins a takeover of a slot; with a target, one that moves the slot to these members.
    pub(super) fn begin_takeover(
        &mut self,
        now: Millis,
        slot: Slot,
        target: Option<ReplicaSet>,
        effects: &mut Vec<Effect>,
    ) {
        let SlotState { record, highest_heard, .. } = self.state(slot);
        let seen =
            self.owners[usize::from(slot.number())].as_ref().map_or(Epoch::default(), |(_, epoch)| *epoch);
        let known = record.highest_epoch().max(*highest_heard).max(seen).max(STANDALONE_EPOCHS);
        let highest = known.max(self.after_recovery(slot, record, known));
        let Some(claim) = Claim::lowest_above(highest, &self.me) else { return };
        let recorded = self.placement(slot).map(Cow::into_owned);
        let Some(wanted) = recorded
            .as_ref()
            .map(|placement| placement.members.clone())
            .or_else(|| self.first_members(now, slot))
        else {
            return;
        };
        let (me, write_quorum) = (self.me.clone(), self.settings.write_quorum);
        let lost = (&self.declared.lost, self.declared.slots.get(&slot));
        let (takeover, takeover_effects) = match (target, recorded) {
            (Some(target), Some(recorded)) => {
                Takeover::begin_move(me, claim.clone(), write_quorum, recorded, target, lost)
            }
            (_, recorded) => Takeover::begin(me, claim.clone(), write_quorum, recorded, wanted, lost),
        };
        let deadline = now + self.response_timeout(slot);
        let phase = Phase::CollectingPromises;
        let (in_sync, offered) = (BTreeSet::new(), BTreeSet::new());
        let candidate =
            CandidateState { takeover, in_sync, offered, phase, deadline, owned_epoch: None, since: now };
        self.state_mut(slot).role = Role::Candidate(Box::new(candidate));
        self.apply_takeover_effects(now, slot, &claim, takeover_effects, effects);
        let alive = self.alive_members();
        self.step_takeover(now, slot, &claim, takeover::Event::MembersAlive(alive), effects);
    }

    /// Returns an epoch that a claim must exceed if it may be a recovery. It is far above every epoch that lost members may have
    /// used unseen.
    fn after_recovery(&self, slot: Slot, record: &SlotRecord, highest: Epoch) -> Epoch {
        let known = record.placement.as_ref();
        match self.declared.slots.get(&slot) {
            // The slot had members, and this node does not know their epoch.
            Some(_) if known.is_none() && self.state(slot).is_formed => {
                Epoch::new(highest.counter().saturating_add(recovery::RECOVERY_EPOCH_GAP), u32::MAX)
            }
            // Newer members than these are of a claim after the recovery.
            Some(approval)
                if known.is_none_or(|known| known.epoch < approval.placed_in || approval.covers(known)) =>
            {
                Epoch::new(
                    approval.placed_in.counter().saturating_add(recovery::RECOVERY_EPOCH_GAP),
                    u32::MAX,
                )
            }
            _ => Epoch::default(),
        }
    }

    /// Returns the nodes that this node can ask for a promise: those alive and able to write.
    pub(super) fn alive_members(&self) -> BTreeSet<Member> {
        let alive = self.nodes.values().filter(|known| known.observed.is_alive && known.observed.is_writable);
        alive.map(|known| known.observed.member.clone()).collect()
    }

    /// The slot's owner hands it over to this node: takes it, whether it is its turn or not.
    pub(super) fn on_handover(&mut self, now: Millis, slot: Slot, by: &Claim, effects: &mut Vec<Effect>) {
        let SlotState { record, role, .. } = self.state(slot);
        // A higher claim of this node itself does not count: it came to nothing, and the owner did not hear of it.
        let is_current = record
            .promised
            .as_ref()
            .is_none_or(|promised| promised <= by || promised.claimant == self.me.node);
        if !matches!(role, Role::Replica) || !is_current {
            // The owner hears of the higher claim from the node that made it.
            return;
        }
        if self.is_writable && !self.is_draining && !self.is_damaged(slot) {
            self.begin_takeover(now, slot, None, effects);
        } else {
            effects.push(Effect::DeclineHandover { slot, claim: by.clone() });
        }
    }

    /// Returns how long this node does not claim the slot after a claim that failed. Each node has a pause of its own, so that two
    /// nodes do not collide again.
    pub(super) fn claim_backoff(&self, slot: Slot) -> Millis {
        let turn = self.settings.claim_turn;
        let attempts = self.state(slot).attempts;
        let longest = (turn << attempts.min(8)).min(turn * MAX_BACKOFF_TURNS);
        let hash = blake3::hash(format!("{}/{}/{attempts}", self.me.node, slot.number()).as_bytes());
        let [first, second, ..] = *hash.as_bytes();
        longest / 4 + longest * Millis::from(u16::from_be_bytes([first, second])) / 65_536
    }

    /// Returns how long a takeover of this slot waits for members in one phase. It doubles with each attempt: where members answer
    /// slowly, candidates that do not wait for them would only make more work for them.
    pub(super) fn response_timeout(&self, slot: Slot) -> Millis {
        self.timeout_of_attempt(self.state(slot).attempts)
    }

    /// Returns how long a takeover that follows so many that failed waits for members in one phase.
    fn timeout_of_attempt(&self, failed: u32) -> Millis {
        self.settings.response_timeout << failed.min(MAX_TIMEOUT_DOUBLINGS)
    }

    /// Returns why no slot can form yet: too few nodes are alive.
    pub(super) fn missing_members(&self) -> Option<TakeoverFailure> {
        let responded = self.nodes.values().filter(|known| known.observed.is_alive).count();
        let needed = match self.settings.first_nodes.len() {
            0 => self.settings.replication_factor,
            first => first,
        };
        (responded < needed).then_some(TakeoverFailure::NoQuorum { responded, members: needed, needed })
    }
}
