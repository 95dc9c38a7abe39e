//! Carries out the slot manager's effects, and responds to those of other nodes, as in
//! `ledger_cluster::ownership::driver` and `ledger_cluster::peers::service`.

use ledger_core::{
    node::Member,
    ownership::{
        Claim,
        slot_manager::{Effect, Event, MemberRequest, MemberResponse},
    },
    replication::replica::RecordChange,
    slot::Slot,
};

use super::{
    message::{Message, OwnerMessage, SyncOffer},
    node::{Node, index_of, peer_of},
    node_output::{AfterSync, NodeOutput, Note},
};

impl Node {
    /// Handles a request to this node's replica, from itself or another node.
    pub(super) fn asked(&mut self, from: Member, slot: Slot, claim: Claim, ask: MemberRequest) {
        if let MemberRequest::QuerySlot { sent_at } = ask {
            let known = self.slot_manager.slot_knowledge(self.now, slot);
            return self.answer(&from, slot, claim, MemberResponse::SlotKnown { asked: sent_at, known });
        }
        let Some(change) = RecordChange::requested(ask, claim.clone()) else {
            self.handed_over.push(slot);
            self.events.push_back(Event::HandoverReceived(slot, claim.clone()));
            return self.answer(&from, slot, claim, MemberResponse::Done);
        };
        if !self.can_write() {
            return self.answer(&from, slot, claim, MemberResponse::Unavailable);
        }
        match self.change(slot, change).response() {
            answer @ (MemberResponse::Promised(_) | MemberResponse::Done) => {
                self.after_sync(AfterSync::Answer { to: from, slot, claim, answer });
            }
            answer => self.answer(&from, slot, claim, answer),
        }
    }

    pub(super) fn answer(&mut self, to: &Member, slot: Slot, claim: Claim, answer: MemberResponse) {
        let from = self.member.clone();
        if *to == self.member {
            self.events.push_back(Event::Response { from, slot, claim, answer });
        } else {
            let message = Message::Answer { from, slot, claim, answer };
            self.out.push(NodeOutput::Message { to: index_of(&to.node), message });
        }
    }

    pub(super) fn perform(&mut self, effect: Effect) {
        if !matches!(effect, Effect::AddInSync { .. } | Effect::RenewLeases { .. }) {
            self.out.push(NodeOutput::Note(Note::Moment));
        }
        match effect {
            Effect::SendRequest { to, slot, claim, request } => {
                let from = self.member.clone();
                if to == self.member {
                    self.asked(from, slot, claim, request);
                } else {
                    let index = index_of(&to.node);
                    let message = Message::Ask { from, to, slot, claim, ask: request };
                    self.out.push(NodeOutput::Message { to: index, message });
                }
            }
            Effect::OfferSync { to, slot, claim, members, is_confirmed, previous } => {
                if to == self.member {
                    let change = RecordChange::Accept { claim, members, is_confirmed, previous, offer: None };
                    let changed_for = change.changed_for();
                    let outcome = if self.can_write() { Some(self.change(slot, change)) } else { None };
                    if let Some(event) = changed_for.event(to, slot, outcome) {
                        self.after_sync(AfterSync::Told(event));
                    }
                } else {
                    let offer = SyncOffer {
                        number: 0,
                        slot,
                        claim,
                        members,
                        is_confirmed,
                        previous,
                        digest: self.digest(slot),
                    };
                    self.add_stream_peer(&to, offer);
                }
            }
            Effect::CatchUp { slot, claim, from } => self.catch_up_for_claim(slot, claim, from),
            Effect::RecordRecovery { slot, recovery, .. } => {
                self.out.push(NodeOutput::Note(Note::Recovered { slot, recovery }));
            }
            Effect::BeginServing { slot, claim, write_quorum } => {
                let was_handed_over = self.handed_over.contains(&slot);
                self.handed_over.retain(|of| *of != slot);
                self.begin_serving(slot, &claim, write_quorum, was_handed_over);
            }
            Effect::AddInSync { slot, claim, member } => self.add_in_sync(slot, &claim, &member),
            Effect::RemoveReplica { slot, claim, member } => {
                self.commits.remove_peer(slot, &claim, peer_of(index_of(&member.node)));
            }
            Effect::RenewLeases { to, slots } => {
                let stream =
                    self.outgoing.get(&index_of(&to.node)).filter(|out| out.is_up && out.member == to);
                if let Some(stream) = stream.map(|out| out.stream) {
                    self.out.push(NodeOutput::Down { stream, body: OwnerMessage::LeaseRenewal(slots) });
                }
            }
            Effect::StopAppends { slot, claim } => {
                self.step(|commits, effects| commits.stop_appends(slot, &claim, effects));
            }
            Effect::DeclineHandover { slot, claim } => {
                let (from, to) = (self.member.clone(), index_of(&claim.claimant));
                let message = Message::Answer { from, slot, claim, answer: MemberResponse::Unavailable };
                self.out.push(NodeOutput::Message { to, message });
            }
            Effect::RecordFormed { slot } => {
                if self.can_write() {
                    self.change(slot, RecordChange::RecordFormed);
                }
            }
            Effect::StepDown { slot } => {
                self.step_down(slot);
            }
        }
    }
}
