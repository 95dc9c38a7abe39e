//! Doing what the brain says, and answering others' brains, as in `ledger_cluster::{driver, service}`.

use ledger_core::{
    node::Member,
    ownership::{
        Claim, NotTaken,
        slots::{Answer, Ask, Effect, Event, Outcome as Offered},
    },
    slot::Slot,
};

use super::{
    broken::Broken,
    message::{Down, Message, Offer},
    node::{Node, index_of},
    wants::{AfterSync, Note, Out},
};

impl Node {
    /// A question to this node's replica, from itself or another.
    pub(super) fn asked(&mut self, from: Member, slot: Slot, claim: Claim, ask: Ask) {
        if let Ask::Inquire { asked } = ask {
            let known = self.brain.knows(self.now, slot);
            return self.answer(&from, slot, claim, Answer::Known { asked, known });
        }
        if ask != Ask::TakeOver && !self.can_write() {
            return self.answer(&from, slot, claim, Answer::NotNow);
        }
        let mut record = self.record(slot);
        let answer = match ask {
            // Without all that it had it is no witness of what the longest history is.
            Ask::Promise if self.has_damage(slot) && record.may_follow(&claim).is_ok() => {
                return self.answer(&from, slot, claim, Answer::NotNow);
            }
            Ask::Promise => {
                if self.config.broken == Broken::NoPromiseCheck {
                    record.promised = None;
                }
                record.promise(&claim).map(|(next, promise)| (next, Answer::Promised(promise)))
            }
            Ask::Confirm => match record.confirm(&claim) {
                Ok(next) => Ok((next, Answer::Done)),
                Err(NotTaken::Refused(refused)) => Err(refused),
                Err(_) => return self.answer(&from, slot, claim, Answer::NotNow),
            },
            Ask::TakeOver => {
                self.handed_over.push(slot);
                self.events.push_back(Event::HandedOver(slot, claim.clone()));
                return self.answer(&from, slot, claim, Answer::Done);
            }
            Ask::Inquire { .. } => return,
        };
        match answer {
            Err(refused) => self.answer(&from, slot, claim, Answer::Refused(refused.promised)),
            Ok((next, answer)) => {
                self.write_record(slot, next);
                self.after_sync(AfterSync::Recorded(slot));
                self.after_sync(AfterSync::Answer { to: from, slot, claim, answer });
            }
        }
    }

    pub(super) fn answer(&mut self, to: &Member, slot: Slot, claim: Claim, answer: Answer) {
        let from = self.member.clone();
        if *to == self.member {
            self.events.push_back(Event::Answered { from, slot, claim, answer });
        } else {
            let message = Message::Answer { from, slot, claim, answer };
            self.out.push(Out::Message { to: index_of(&to.node), message });
        }
    }

    pub(super) fn perform(&mut self, effect: Effect) {
        if !matches!(effect, Effect::Count { .. } | Effect::Renew { .. }) {
            self.out.push(Out::Note(Note::Moment));
        }
        match effect {
            Effect::Ask { to, slot, claim, ask } => {
                let from = self.member.clone();
                if to == self.member {
                    self.asked(from, slot, claim, ask);
                } else {
                    let index = index_of(&to.node);
                    let message = Message::Ask { from, to, slot, claim, ask };
                    self.out.push(Out::Message { to: index, message });
                }
            }
            Effect::Offer { to, slot, claim, set, is_confirmed, before } => {
                let may_form = self.may_form(slot, &set, is_confirmed);
                if to == self.member && !(may_form && self.can_write()) {
                    self.events.push_back(Event::Offered { from: to, slot, claim, outcome: Offered::NotNow });
                } else if to == self.member {
                    match self.record(slot).accept(&claim, &set, is_confirmed, before.as_ref()) {
                        Ok(next) => {
                            self.write_record(slot, next);
                            self.after_sync(AfterSync::Recorded(slot));
                            self.after_sync(AfterSync::Offered { slot, claim });
                        }
                        Err(refused) => {
                            let outcome = match refused {
                                NotTaken::Refused(refused) => Offered::Refused(refused.promised),
                                NotTaken::OtherMembers(placement) => Offered::OtherMembers(placement),
                                NotTaken::NotAccepted { .. } | NotTaken::Formed => Offered::NotNow,
                            };
                            self.events.push_back(Event::Offered { from: to, slot, claim, outcome });
                        }
                    }
                } else {
                    let offer = Offer {
                        number: self.number,
                        slot,
                        claim,
                        set,
                        is_confirmed,
                        before,
                        digest: self.digest(slot),
                    };
                    self.send_to(&to, offer);
                }
            }
            Effect::CatchUp { slot, claim, from } => self.claim_task(slot, claim, from),
            Effect::Recovered { slot, recovery, .. } => {
                self.out.push(Out::Note(Note::Recovered { slot, recovery }));
            }
            Effect::Own { slot, claim, needed } => {
                let was_handed_over = self.handed_over.contains(&slot);
                self.handed_over.retain(|of| *of != slot);
                self.own(slot, &claim, needed, was_handed_over);
            }
            Effect::Count { slot, claim, member } => self.count(slot, &claim, &member),
            Effect::Release { slot, claim, member } => self.release(slot, &claim, &member),
            Effect::Renew { to, slots } => {
                let stream =
                    self.outgoing.get(&index_of(&to.node)).filter(|out| out.is_up && out.member == to);
                if let Some(stream) = stream.map(|out| out.stream) {
                    self.out.push(Out::Down { stream, body: Down::Renewal(slots) });
                }
            }
            Effect::Stop { slot, claim } => self.stop(slot, &claim),
            Effect::Decline { slot, claim } => {
                let (from, to) = (self.member.clone(), index_of(&claim.claimant));
                let message = Message::Answer { from, slot, claim, answer: Answer::NotNow };
                self.out.push(Out::Message { to, message });
            }
            Effect::Formed { slot } => {
                if self.can_write() {
                    let next = self.record(slot).formed();
                    self.write_record(slot, next);
                    self.after_sync(AfterSync::Recorded(slot));
                }
            }
            Effect::StepDown { slot } => {
                self.tasks.retain(|of, task| *of != slot || !task.is_claim());
                self.step_down(slot);
            }
        }
    }
}
