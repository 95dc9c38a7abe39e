//! Carries out the slot manager's effects, and responds to those of other nodes, as in
//! `ledger_cluster::ownership::driver` and `ledger_cluster::peers::service`.

use ledger_core::{
    ownership::slot_manager::Effect,
    replication::replica::{RecordChange, SyncOffer},
};

use super::prelude::*;

impl Node {
    /// Handles a request to this node's replica, from itself or another node.
    pub(super) fn asked(&mut self, from: &Member, slot: Slot, claim: Claim, ask: MemberRequest) {
        let change = RecordChange::requested(ask, claim.clone());
        let answer = match (ask, change) {
            (MemberRequest::QuerySlot { sent_at: asked }, _) => {
                let known = self.slot_manager.slot_knowledge(self.now, slot);
                MemberResponse::SlotKnown { asked, known }
            }
            (_, None) => {
                self.handed_over.push(slot);
                self.events.push_back(Event::HandoverReceived(slot, claim.clone()));
                MemberResponse::Done
            }
            _ if !self.can_write() => MemberResponse::Unavailable,
            (_, Some(change)) => {
                let answer = self.change(slot, change).response();
                let answer = self.answer(from, slot, claim, answer);
                return self.after_sync(answer);
            }
        };
        self.done(self.answer(from, slot, claim, answer));
    }

    /// Returns how an answer gets to a member.
    fn answer(&self, to: &Member, slot: Slot, claim: Claim, answer: MemberResponse) -> AfterSync {
        let from = self.member.clone();
        if *to == self.member {
            return AfterSync::Told(Event::Response { from, slot, claim, answer });
        }
        let message = Message::Answer { from, slot, claim, answer };
        AfterSync::Output(NodeOutput::Message { to: index_of(&to.node), message })
    }

    pub(super) fn perform(&mut self, effect: Effect) {
        if !matches!(effect, Effect::AddInSync { .. } | Effect::RenewLeases { .. }) {
            self.note(Note::Moment);
        }
        match effect {
            Effect::SendRequest { to, slot, claim, request: ask } => {
                let from = self.member.clone();
                if to == self.member {
                    self.asked(&from, slot, claim, ask);
                } else {
                    self.send(index_of(&to.node), Message::Ask { from, to, slot, claim, ask });
                }
            }
            Effect::OfferSync { to, slot, claim, members, is_confirmed, previous } if to == self.member => {
                let change = RecordChange::Accept { claim, members, is_confirmed, previous, offer: None };
                let changed_for = change.changed_for();
                let outcome = if self.can_write() { Some(self.change(slot, change)) } else { None };
                if let Some(event) = changed_for.event(to, slot, outcome) {
                    self.after_sync(AfterSync::Told(event));
                }
            }
            Effect::OfferSync { to, slot, claim, members, is_confirmed, previous } => {
                let (lane, number, digest) = (0, 0, self.digest(slot));
                let offer = SyncOffer { lane, number, slot, claim, members, is_confirmed, previous, digest };
                self.offer_sync(&to, offer);
            }
            Effect::CatchUp { slot, claim, from } => self.catch_up_for_claim(slot, claim, from),
            Effect::RecordRecovery { slot, recovery, .. } => self.note(Note::Recovered { slot, recovery }),
            Effect::BeginServing { slot, claim, write_quorum } => {
                self.begin_serving(slot, &claim, write_quorum);
            }
            Effect::AddInSync { slot, claim, member } => {
                if member != self.member {
                    let peer = peer_of(index_of(&member.node));
                    self.step(|commits, effects| commits.add_in_sync(slot, &claim, peer, effects));
                }
            }
            Effect::RemoveReplica { slot, claim, member } => {
                self.commits.remove_peer(slot, &claim, peer_of(index_of(&member.node)));
            }
            Effect::RenewLeases { to, slots } => {
                if let Some(stream) = self.stream_to(&to) {
                    self.send_down(stream, OwnerMessage::LeaseRenewal(slots));
                }
            }
            Effect::StopAppends { slot, claim } => {
                self.step(|commits, effects| commits.stop_appends(slot, &claim, effects));
            }
            Effect::DeclineHandover { slot, claim } => {
                let (from, to) = (self.member.clone(), index_of(&claim.claimant));
                self.send(to, Message::Answer { from, slot, claim, answer: MemberResponse::Unavailable });
            }
            Effect::RecordFormed { slot } => {
                if self.can_write() {
                    self.change(slot, RecordChange::RecordFormed);
                }
            }
            Effect::StepDown { slot } => {
                if !self.is_broken(DisabledRule::StaleOwner) {
                    self.step(|commits, effects| commits.step_down(slot, effects));
                }
            }
        }
    }
}
