//! Between the slot manager and the [`Takeover`](crate::ownership::Takeover)s of its slots: carries answers of members to the
//! takeover, and what the takeover asks for to the members.

use super::{
    Claim, Effect, Member, MemberRequest, MemberResponse, Millis, Phase, Role, Slot, SlotManager,
    SyncOfferOutcome, takeover,
};

impl SlotManager {
    /// A member answered a request.
    pub(super) fn on_response(
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
                // To a handover this answer says nothing: the promise that the successor asks for does.
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

    /// A member answered an offer.
    pub(super) fn on_sync_offer_answered(
        &mut self,
        now: Millis,
        from: Member,
        slot: Slot,
        claim: &Claim,
        outcome: SyncOfferOutcome,
        effects: &mut Vec<Effect>,
    ) {
        let catch_up_timeout = self.settings.catch_up_timeout;
        match outcome {
            SyncOfferOutcome::Refused(promised) => self.on_claim_heard(now, slot, promised, effects),
            SyncOfferOutcome::Accepted => {
                if let Role::Owner(owner) = &mut self.state_mut(slot).role
                    && owner.claim == *claim
                {
                    owner.offered.remove(&from);
                    owner.in_sync.insert(from.clone());
                    if owner.members.contains(&from) {
                        effects.push(Effect::AddInSync { slot, claim: claim.clone(), member: from });
                    }
                    return;
                }
                if let Role::Candidate(candidate) = &mut self.state_mut(slot).role
                    && candidate.takeover.claim() == claim
                {
                    candidate.in_sync.insert(from.clone());
                }
                self.step_takeover(now, slot, claim, takeover::Event::Accepted { from }, effects);
            }
            SyncOfferOutcome::OtherMembers(placement) => {
                self.step_takeover(now, slot, claim, takeover::Event::OtherMembers(placement), effects);
            }
            SyncOfferOutcome::Diverged => match &mut self.state_mut(slot).role {
                Role::Candidate(candidate) if candidate.takeover.claim() == claim => {
                    candidate.deadline = now + catch_up_timeout;
                }
                _ => {}
            },
            // The next tick makes another offer.
            SyncOfferOutcome::Unavailable => match &mut self.state_mut(slot).role {
                Role::Candidate(candidate) => _ = candidate.offered.remove(&from),
                Role::Owner(owner) => {
                    owner.offered.remove(&from);
                    owner.is_offered = false;
                }
                Role::Replica => {}
            },
        }
    }

    /// Gives an event to the takeover of a claim, unless it has ended.
    pub(super) fn step_takeover(
        &mut self,
        now: Millis,
        slot: Slot,
        claim: &Claim,
        event: takeover::Event,
        effects: &mut Vec<Effect>,
    ) {
        let Role::Candidate(candidate) = &mut self.state_mut(slot).role else { return };
        if candidate.takeover.claim() != claim {
            return;
        }
        let takeover_effects = candidate.takeover.step(event);
        self.apply_takeover_effects(now, slot, claim, takeover_effects, effects);
    }

    /// Carries out what a takeover asks for, and sets the deadline of a phase that it came to.
    pub(super) fn apply_takeover_effects(
        &mut self,
        now: Millis,
        slot: Slot,
        claim: &Claim,
        takeover_effects: Vec<takeover::Effect>,
        effects: &mut Vec<Effect>,
    ) {
        let response_timeout = self.response_timeout(slot);
        for effect in takeover_effects {
            let ask = |to, request| Effect::SendRequest { to, slot, claim: claim.clone(), request };
            match effect {
                takeover::Effect::RequestPromise { member } => {
                    effects.push(ask(member, MemberRequest::Promise));
                }
                takeover::Effect::Confirm { member } => {
                    effects.push(ask(member, MemberRequest::ConfirmMembers));
                }
                // If the member's stream is down, the offer is made when it comes up.
                takeover::Effect::Accept { member, .. } => self.offer_takeover_sync(&member, slot, effects),
                takeover::Effect::CatchUp { from } => {
                    effects.push(Effect::CatchUp { slot, claim: claim.clone(), from });
                }
                takeover::Effect::BecomeOwner => self.become_owner(now, slot, effects),
                takeover::Effect::Abandon(why) => return self.step_down(now, slot, Some(why), effects),
            }
        }
        if let Role::Candidate(candidate) = &mut self.state_mut(slot).role
            && candidate.phase != candidate.takeover.phase()
        {
            candidate.phase = candidate.takeover.phase();
            candidate.deadline = match candidate.phase {
                // This node catches up by itself, and says so if it cannot.
                Phase::CatchingUp => Millis::MAX,
                _ => now + response_timeout,
            };
        }
    }
}
