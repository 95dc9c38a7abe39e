//! Requests to other nodes: each is sent again until it is answered, or counts as not answered.

use ledger_core::catch_up::{Event as RunEvent, WantedRange};

use super::{heal::Healing, prelude::*};

/// How long until a message that was not answered is sent again, in milliseconds, and how often it is sent.
const SEND_AGAIN: u64 = 400;
const SENDINGS: u32 = 4;

/// A request that was sent and not answered.
#[derive(Debug)]
pub struct Question {
    to: Member,
    request: PeerRequest,
    sendings: u32,
    pub(super) asker: Asker,
}

/// Who waits for the answer.
#[derive(Debug)]
pub enum Asker {
    /// A run of catching up.
    Run(u64),
    /// An attempt to restore a context.
    Healing(Box<Healing>),
    /// The schedule of an owner's slots, which needs sync offers.
    Schedule,
    /// The load of a context with this number, which a member is to stage.
    Load(Context, u64),
}

impl Node {
    pub(super) fn ask(&mut self, asker: Asker, to: Member, request: PeerRequest) {
        let number = self.number();
        self.questions.insert(number, Question { to, request, sendings: 0, asker });
        self.send_question(number);
    }

    pub(super) fn fetch(&mut self, asker: Asker, from: Member, wanted: Vec<WantedRange>) {
        let number = self.number();
        self.ask(asker, from, PeerRequest::Fetch { number, wanted: wanted.into(), part: 0 });
    }

    /// Sends a question, again if it was not answered.
    pub(super) fn send_question(&mut self, number: u64) {
        let Some(asked) = self.questions.get_mut(&number) else { return };
        asked.sendings += 1;
        if asked.sendings > SENDINGS {
            return self.answered(number, None);
        }
        let (to, question) = (asked.to.clone(), asked.request.clone());
        self.send(index_of(&to.node), Message::Question { number, to, question });
        self.out.push(NodeOutput::Timer { after: SEND_AGAIN, timer: Timer::Question(number) });
    }

    /// Handles an answer; `None` if there is none in time.
    pub(super) fn answered(&mut self, number: u64, reply: Option<PeerResponse>) {
        let Some(Question { to, request, asker, .. }) = self.questions.remove(&number) else { return };
        if matches!(reply, Some(PeerResponse::Cut { .. })) {
            self.count(Counted::FetchCut, 1);
        }
        let next = match request {
            PeerRequest::Fetch { number, wanted, part } => {
                PeerRequest::Fetch { number, wanted, part: part + 1 }
            }
            request => request,
        };
        match (asker, reply) {
            (Asker::Run(run), Some(PeerResponse::Compare(answer))) => {
                self.tell(run, RunEvent::Remote(answer));
            }
            (Asker::Run(run), Some(PeerResponse::Ranges(items))) => self.items_arrived(run, next, &items),
            (Asker::Run(run), Some(PeerResponse::Cut { is_clean: true })) => self.fetch_ended(run),
            (Asker::Run(run), _) => self.tell(run, RunEvent::SourceLost("no answer".to_owned())),
            (Asker::Healing(healing), reply) => self.heal_answered(healing, to, next, reply),
            (Asker::Schedule, reply) => self.offers_requested(&to, reply.is_some()),
            (Asker::Load(context, number), reply) => {
                let is_staged = matches!(reply, Some(PeerResponse::Done));
                self.load_staged(context, number, &to, is_staged);
            }
        }
    }
}
