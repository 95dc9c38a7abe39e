//! Serves the requests of other nodes.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use futures::{Stream, StreamExt as _};
use ledger_core::{
    ContextId,
    catch_up::{MAX_FETCH, WantedRange},
    node::{Member, NodeId},
    ownership::slot_manager::{Event, MemberResponse},
    plausible,
    replication::replica::{RecordChange, RecordChangeOutcome},
};
use ledger_proto::ledger::v1::{
    BelongsRequest, BelongsResponse, CompareAnswer, CompareAsk, FetchRequest, FetchedRange, GreetRequest,
    GreetResponse, KnownAsk, NamedAnswer, NamedAsk, RecoverAnswer, RecoveriesTold, ReplicaReply, Replicated,
    SlotAnswer, SlotAnswers, SlotAsks, SlotNothing, StageProgress, StageRequest,
    replica_service_server::ReplicaService, replicated::Body, slot_answer::Answer, slot_ask::Ask,
};
use ledger_store::StoreError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    catch_up::range_sender::RangeSender, ownership::decommission, ownership::formation, ownership::recovery,
    ownership::stale_volume, peers::wire, replicate::replica_stream, replicate::staging, shared::Shared,
};

/// Most ranges that wait to be sent.
const MAX_PENDING_RANGES: usize = 4;

/// The service that other nodes call.
#[derive(Debug, Clone)]
pub struct Replicas(pub(crate) Arc<Shared>);

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ReplicaService for Replicas {
    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetResponse>, Status> {
        self.0.credentials.greeted(request.get_ref()).map(Response::new)
    }

    async fn belongs(&self, request: Request<BelongsRequest>) -> Result<Response<BelongsResponse>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let request = request.into_inner();
        let from = wire::member(request.from.as_ref()).map_err(malformed)?;
        authorize(&self.0, &caller, &from, request.to.as_ref())?;
        let claim = wire::claim_of(&from, request.claim.as_ref(), self.0.bounds());
        let claim = claim.map_err(|error| self.0.reject(&caller, &error))?;
        formation::answer(&self.0, &claim).map(Response::new)
    }

    async fn slots(&self, request: Request<SlotAsks>) -> Result<Response<SlotAnswers>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let asks = request.into_inner();
        let from = wire::member(asks.from.as_ref()).map_err(malformed)?;
        authorize(&self.0, &caller, &from, asks.to.as_ref())?;
        if asks.asks.len() > usize::from(ledger_core::slot::SLOTS) {
            return Err(Status::invalid_argument("more questions than slots"));
        }
        self.answer(from, asks).await.map(Response::new)
    }

    type ReplicateStream = Replies<ReplicaReply>;

    async fn replicate(
        &self,
        request: Request<Streaming<Replicated>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.body);
        let Some(Body::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message must say who sends"));
        };
        let from = wire::member(hello.from.as_ref()).map_err(malformed)?;
        authorize(&self.0, &caller, &from, hello.to.as_ref())?;
        let replies = replica_stream::begin(&self.0, from, hello.hears_refusals, messages).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(replies))))
    }

    async fn compare(&self, request: Request<CompareAsk>) -> Result<Response<CompareAnswer>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let ask = request.into_inner();
        self.0.is_me(&wire::member(ask.to.as_ref()).map_err(malformed)?)?;
        let knows_unreadable = ask.knows_unreadable;
        let ask = wire::compare_request(ask).map_err(|error| self.0.reject(&caller, &error))?;
        let ledger = self.0.ledger.clone();
        let answer = ledger_store::blocking::spawn(move || ledger.compare(&ask));
        let answer = answer.await.map_err(|error| Status::internal(error.to_string()))?;
        let answer = answer.map_err(failed)?;
        if !knows_unreadable && wire::has_unreadable(&answer) {
            return Err(Status::data_loss(
                "some of it cannot be read here, which your build would take for absent: update it, or wait until it is restored",
            ));
        }
        Ok(Response::new(wire::to_compare_response(answer)))
    }

    async fn named(&self, request: Request<NamedAsk>) -> Result<Response<NamedAnswer>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let ask = request.into_inner();
        let from = wire::member(ask.from.as_ref()).map_err(malformed)?;
        authorize(&self.0, &caller, &from, ask.to.as_ref())?;
        let routes = Arc::clone(&self.0.routes.borrow());
        Ok(Response::new(decommission::named(&routes, &from.node)))
    }

    async fn recoveries(&self, request: Request<RecoveriesTold>) -> Result<Response<RecoveriesTold>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let message = request.into_inner();
        let from = wire::member(message.from.as_ref()).map_err(malformed)?;
        authorize(&self.0, &caller, &from, message.to.as_ref())?;
        let taken = recovery::take(&self.0, &message).await;
        taken.map_err(|error| Status::failed_precondition(error.to_string()))?;
        Ok(Response::new(recovery::known_decisions(&self.0)))
    }

    async fn known(&self, request: Request<KnownAsk>) -> Result<Response<RecoverAnswer>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let ask = request.into_inner();
        let from = wire::member(ask.from.as_ref()).map_err(malformed)?;
        authorize(&self.0, &caller, &from, ask.to.as_ref())?;
        if ask.lost.len() > recovery::MAX_LOST {
            return Err(Status::invalid_argument("too many members are named"));
        }
        let lost = ask.lost.iter().map(|member| wire::member(Some(member))).collect::<Result<_, _>>();
        let answer = recovery::listing::answer(&self.0, lost.map_err(malformed)?, ask.brief).await;
        Ok(Response::new(answer.map_err(failed)?))
    }

    type FetchStream = Replies<FetchedRange>;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let request = request.into_inner();
        self.0.is_me(&wire::member(request.to.as_ref()).map_err(malformed)?)?;
        if request.contexts.len() > MAX_FETCH {
            return Err(Status::invalid_argument(format!("more than {MAX_FETCH} contexts at a time")));
        }
        let (mut wanted, mut staged) = (Vec::with_capacity(request.contexts.len()), HashMap::new());
        for of in request.contexts {
            let context =
                ContextId::new(&of.context_id).map_err(|_| malformed(wire::Malformed("context_id")))?;
            let size = |size| plausible::size(size).map_err(|error| self.0.reject(&caller, &error.into()));
            let (after, to) = (size(of.after_size)?, size(of.to_size)?);
            if of.staged != 0 {
                staged.insert(context.clone(), of.staged);
            }
            wanted.push(WantedRange { context, after, to });
        }
        let (sender, ranges) = mpsc::channel(MAX_PENDING_RANGES);
        let throttle = Arc::clone(&self.0.throttle);
        let share = Arc::clone(&self.0.serving);
        let ranges_sender =
            RangeSender::new(self.0.ledger.clone(), throttle, sender, share, staged, request.packs);
        ledger_store::blocking::spawn(move || ranges_sender.send_all(wanted));
        // The memory is given back once the connection takes the message.
        let messages = ReceiverStream::new(ranges).map(|(message, _held)| message);
        Ok(Response::new(Box::pin(messages)))
    }

    type StageStream = Replies<StageProgress>;

    async fn stage(&self, request: Request<StageRequest>) -> Result<Response<Self::StageStream>, Status> {
        let caller = self.0.caller(request.metadata())?;
        let request = request.into_inner();
        let from = wire::member(request.from.as_ref()).map_err(malformed)?;
        authorize(&self.0, &caller, &from, request.to.as_ref())?;
        let wanted = wire::load(request, &from, self.0.bounds());
        let wanted = wanted.map_err(|error| self.0.reject(&caller, &error))?;
        if !wanted.claim.is_of(&from) {
            return Err(Status::invalid_argument("a load in another node's claim"));
        }
        let progress = staging::begin(&self.0, from, wanted);
        Ok(Response::new(Box::pin(ReceiverStream::new(progress))))
    }
}

impl Replicas {
    async fn answer(&self, from: Member, asks: SlotAsks) -> Result<SlotAnswers, Status> {
        let mut changes = Vec::new();
        let (mut events, mut handed_over, mut inquired) = (Vec::new(), Vec::new(), Vec::new());
        let mut order = Vec::with_capacity(asks.asks.len());
        let (bounds, unread) = (self.0.bounds(), |error| self.0.reject(&from.node, &error));
        for ask in asks.asks {
            let slot = wire::slot(ask.slot).map_err(unread)?;
            let claim = wire::claim_of(&from, ask.claim.as_ref(), bounds).map_err(unread)?;
            order.push(slot);
            match ask.ask.ok_or_else(|| malformed(wire::Malformed("ask")))? {
                Ask::Promise(_) => changes.push((slot, RecordChange::Promise(claim))),
                Ask::Confirm(_) => changes.push((slot, RecordChange::Confirm(claim))),
                Ask::TakeOver(_) => {
                    self.0.counters.handovers.fetch_add(1, Ordering::Relaxed);
                    handed_over.push((slot, claim));
                }
                Ask::Join(_) => events.push(Event::SyncRequested(from.clone(), slot)),
                Ask::Inquire(_) => inquired.push(slot),
            }
        }
        let mut answers = std::collections::HashMap::new();
        if !changes.is_empty() {
            let changed = self.0.change_slots(changes).await.map_err(failed)?;
            for (slot, changed) in changed {
                let answer = match changed.outcome {
                    Err(error) => Answer::NotNow(error.to_string()),
                    Ok(RecordChangeOutcome::Unavailable(why)) => Answer::NotNow(why.to_string()),
                    Ok(outcome) => match outcome.response() {
                        MemberResponse::Promised(promise) => Answer::Promised(wire::to_promise(&promise)),
                        MemberResponse::Done => Answer::Done(SlotNothing {}),
                        MemberResponse::Refused(claim) => Answer::Refused(wire::to_claim(&claim)),
                        MemberResponse::SlotKnown { .. } | MemberResponse::Unavailable => {
                            Answer::NotNow("the slot has other members here".to_owned())
                        }
                    },
                };
                answers.insert(slot, answer);
            }
        }
        // If the volume turned out to be stale meanwhile, none of these promises counts.
        self.0.check_not_rolled_back()?;
        if !events.is_empty() {
            self.0.send_events(events).await;
        }
        if !handed_over.is_empty() {
            let not_taken = || Answer::NotNow("this node gives its slots away itself".to_owned());
            answers.extend(self.0.hand_over(handed_over).await.into_iter().map(|slot| (slot, not_taken())));
        }
        if !inquired.is_empty() {
            let known = self.0.query_slots(inquired).await.into_iter();
            answers.extend(known.map(|(slot, known)| (slot, Answer::Known(wire::to_slot_knowledge(&known)))));
        }
        let answers = order.into_iter().map(|slot| SlotAnswer {
            slot: u32::from(slot.number()),
            answer: Some(answers.remove(&slot).unwrap_or(Answer::Done(SlotNothing {}))),
        });
        Ok(SlotAnswers { answers: answers.collect() })
    }
}

/// Checks that a message is from its sender, and for this node.
fn authorize(
    shared: &Shared,
    caller: &NodeId,
    from: &Member,
    to: Option<&ledger_proto::ledger::v1::SlotMember>,
) -> Result<(), Status> {
    if *caller != from.node {
        return Err(Status::permission_denied("the message is not from the node that sends it"));
    }
    if let Some(found) = shared.rolled_back(from) {
        return Err(stale_volume::stale_refusal(shared, from, found));
    }
    shared.is_me(&wire::member(to).map_err(malformed)?)
}

pub(crate) fn malformed(error: impl Into<wire::RejectedMessage>) -> Status {
    Status::invalid_argument(error.into().to_string())
}

pub(crate) fn failed(error: StoreError) -> Status {
    match error {
        StoreError::Closed => Status::unavailable(error.to_string()),
        error => Status::internal(error.to_string()),
    }
}
