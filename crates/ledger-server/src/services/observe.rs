//! Observers of a context, wherever its owner is: they meet at the owner of its slot.
//!
//! A node that is not the owner joins there for its client, and passes on what it is told. It reads that when its client
//! takes it: what waits, and what is dropped, is so at the owner. When the owner changes it joins again at the new one;
//! the client's stream goes on with all members anew.
//!
//! | state | leaves it when |
//! | --- | --- |
//! | choosing | there is an owner → here, or there; there is none → waits for news, but not for ever |
//! | here, there | another node owns the slot, or the stream breaks → choosing; left or replaced → ended |

use std::{future::pending, sync::Arc};

use futures::{Stream, stream};
use ledger_cluster::ownership::routes::SlotOwner;
use ledger_core::{ContextId, entry::check_metadata, id::IdError, node::NodeId, slot::Slot};
use ledger_proto::ledger::v1::{
    BroadcastMessage, BroadcastRequest, BroadcastResponse, InterestEvent, JoinRequest, LeaveRequest,
    LeaveResponse, Observer, cluster_service_client::ClusterServiceClient, interest_event::Event,
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};
use tonic::{Code, Status, Streaming, body::Body, client::GrpcService};

use crate::{
    grpc::status::Refusal,
    interest::{Presence, StreamEnd, event},
    limits,
    metrics::Alive,
    node::Node,
    routing::failover::{Failover, TIMEOUT},
    routing::route::{self, Destination},
    routing::upstream::Upstream,
};

/// The events of one observer, until it leaves or its client goes.
///
/// # Errors
/// `INVALID_ARGUMENT` names a field that is wrong; `RESOURCE_EXHAUSTED`: the node serves too many observers.
pub fn join(
    node: &Arc<Node>,
    request: JoinRequest,
    is_forwarded: bool,
) -> Result<impl Stream<Item = Result<InterestEvent, Refusal>> + Send + 'static, Refusal> {
    let JoinRequest { context_id, observer, metadata } = request;
    let context = ContextId::new(&context_id)?;
    check_metadata(&metadata)?;
    let name = if observer.is_empty() { given_name() } else { name("observer", observer)? };
    let observing = Observing {
        _permit: node.interest.stream()?,
        _alive: Alive::new(&node.metrics.observers),
        node: Arc::clone(node),
        context,
        observer: Observer { name, metadata },
        is_forwarded,
        source: Source::Choosing,
        unowned: None,
        failover: Failover::default(),
    };
    Ok(stream::unfold(Some(observing), |observing| async move {
        let mut observing = observing?;
        match observing.next().await {
            Ok(Some(event)) => Some((Ok(event), Some(observing))),
            Ok(None) => None,
            Err(refusal) => Some((Err(refusal), None)),
        }
    }))
}

/// Ends an observer's stream.
///
/// # Errors
/// `INVALID_ARGUMENT` names a field that is wrong; `UNAVAILABLE`: nobody owns the context.
pub async fn leave(node: &Node, request: LeaveRequest, is_forwarded: bool) -> Result<LeaveResponse, Refusal> {
    let context = ContextId::new(&request.context_id)?;
    let observer = name("observer", request.observer)?;
    if observer.is_empty() {
        return Err(IdError::Empty { field: "observer", max: limits::OBSERVER_NAME }.into());
    }
    let request = LeaveRequest { context_id: context.as_str().to_owned(), observer };
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let refusal = match node.writes(&context, is_forwarded) {
            Ok(Destination::Here(_)) => {
                return Ok(LeaveResponse { was_there: node.interest.leave(&context, &request.observer) });
            }
            Ok(Destination::There { channel, owner }) => {
                let mut there = service(channel);
                let left = there.leave(route::forwarded(request.clone()));
                match node.unless_owner_lost(owner, left).await.map_err(|status| route::refusal(status).0) {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(refusal) => refusal,
                }
            }
            Err(refusal) => refusal,
        };
        node.should_retry(refusal, !is_forwarded, deadline).await?;
    }
}

/// Tells all observers something.
///
/// # Errors
/// `INVALID_ARGUMENT` names a field that is wrong or too large; `UNAVAILABLE`: nobody owns the context.
pub async fn broadcast(
    node: &Node,
    request: BroadcastRequest,
    is_forwarded: bool,
) -> Result<BroadcastResponse, Refusal> {
    let BroadcastRequest { context_id, from, payload, metadata } = request;
    let context = ContextId::new(&context_id)?;
    let from = name("from", from)?;
    check_metadata(&metadata)?;
    let (len, max) = (payload.len(), limits::BROADCAST_PAYLOAD);
    if len > max {
        return Err(Refusal::field("payload", format!("payload has {len} bytes: at most {max} are allowed")));
    }
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (refusal, is_not_done) = match node.writes(&context, is_forwarded) {
            Ok(Destination::Here(_)) => {
                let message = BroadcastMessage { from, payload, metadata };
                let reached = node.interest.broadcast(&context, event(Event::Broadcast(message)));
                return Ok(BroadcastResponse { reached });
            }
            Ok(Destination::There { channel, owner }) => {
                let request = BroadcastRequest {
                    context_id: context_id.clone(),
                    from: from.clone(),
                    payload: payload.clone(),
                    metadata: metadata.clone(),
                };
                let mut there = service(channel);
                let sent = there.broadcast(route::forwarded(request));
                match node.unless_owner_lost(owner, sent).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) => route::refusal(status),
                }
            }
            Err(refusal) => (refusal, true),
        };
        node.should_retry(refusal, is_not_done && !is_forwarded, deadline).await?;
    }
}

/// A name as an observer may have it, or none.
fn name(field: &'static str, text: String) -> Result<String, Refusal> {
    let (len, max) = (text.len(), limits::OBSERVER_NAME);
    if len > max {
        return Err(IdError::TooLong { field, len, max }.into());
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, c)) => Err(IdError::ControlCharacter { field, code: c as u32, at }.into()),
        None => Ok(text),
    }
}

/// A name for who has none.
fn given_name() -> String {
    let mut name = uuid::Uuid::new_v4().simple().to_string();
    name.truncate(16);
    format!("observer-{name}")
}

fn service<C: GrpcService<Body, ResponseBody = Body>>(there: C) -> ClusterServiceClient<C> {
    ClusterServiceClient::new(there).max_decoding_message_size(limits::INTEREST_MESSAGE)
}

struct Observing {
    node: Arc<Node>,
    context: ContextId,
    observer: Observer,
    is_forwarded: bool,
    source: Source,
    /// Since when the slot has no owner.
    unowned: Option<Instant>,
    failover: Failover,
    _permit: OwnedSemaphorePermit,
    _alive: Alive,
}

enum Source {
    Choosing,
    Here(Presence),
    There { owner: NodeId, events: Box<Streaming<InterestEvent>> },
}

/// What ends the events of a source.
enum SourceEnd {
    Stream(StreamEnd),
    /// Another node owns the slot.
    Moved(Refusal),
    /// No node did for too long.
    Unowned(Refusal),
}

impl Observing {
    async fn next(&mut self) -> Result<Option<InterestEvent>, Refusal> {
        loop {
            let next = match &mut self.source {
                Source::Choosing => match self.choose().await {
                    Ok(source) => {
                        self.source = source;
                        self.failover.begin();
                        continue;
                    }
                    Err(refusal) => {
                        let may_wait = refusal.code == Code::Unavailable && !self.is_forwarded;
                        let until = self.failover.ended();
                        self.node.should_retry(refusal, may_wait, until).await?;
                        continue;
                    }
                },
                Source::Here(presence) => {
                    let slot = Slot::of(&self.context);
                    tokio::select! {
                        next = presence.next() => next.map_err(SourceEnd::Stream),
                        ended = moved(&self.node, slot, None, &mut self.unowned) => Err(ended),
                    }
                }
                Source::There { owner, events } => {
                    let slot = Slot::of(&self.context);
                    tokio::select! {
                        next = relayed(events) => next.map_err(SourceEnd::Stream),
                        ended = moved(&self.node, slot, Some(owner), &mut self.unowned) => Err(ended),
                    }
                }
            };
            let refusal = match next {
                Ok(event) => {
                    self.failover.served();
                    return Ok(Some(event));
                }
                Err(SourceEnd::Stream(StreamEnd::Left)) => return Ok(None),
                Err(SourceEnd::Stream(StreamEnd::Replaced)) => return Err(replaced(&self.observer.name)),
                Err(SourceEnd::Stream(StreamEnd::Refused(refusal))) => return Err(*refusal),
                Err(SourceEnd::Unowned(refusal)) => return Err(refusal),
                Err(SourceEnd::Stream(StreamEnd::Broken)) => Refusal::not_owner("", ""),
                Err(SourceEnd::Moved(refusal)) => {
                    if let Source::Here(presence) = std::mem::replace(&mut self.source, Source::Choosing) {
                        presence.leave_silently();
                    }
                    refusal
                }
            };
            // Whoever sent the request on finds the owner itself.
            if self.is_forwarded {
                return Err(refusal);
            }
            self.source = Source::Choosing;
            let until = self.failover.ended();
            self.node.should_retry(refusal, true, until).await?;
        }
    }

    /// Joins at the owner.
    async fn choose(&self) -> Result<Source, Refusal> {
        let (channel, owner) = match self.node.writes(&self.context, self.is_forwarded)? {
            Destination::There { channel, owner: Some(owner) } => (channel, owner),
            Destination::There { owner: None, .. } => return Err(Refusal::not_owner("", "")),
            Destination::Here(_) => {
                let presence = self.node.interest.join(&self.context, self.observer.clone())?;
                return Ok(Source::Here(presence));
            }
        };
        let request = JoinRequest {
            context_id: self.context.as_str().to_owned(),
            observer: self.observer.name.clone(),
            metadata: self.observer.metadata.clone(),
        };
        let mut there = service(Upstream::new(channel));
        let joined = route::answer(there.join(route::forwarded(request)));
        let events = self.node.unless_owner_lost(Some(owner.clone()), joined).await?;
        Ok(Source::There { owner: owner.node, events: Box::new(events) })
    }
}

/// The next event that the owner tells, or how its stream ended.
async fn relayed(events: &mut Streaming<InterestEvent>) -> Result<InterestEvent, StreamEnd> {
    loop {
        match events.message().await {
            Ok(Some(event)) if event.event.is_some() => return Ok(event),
            // Of a newer version.
            Ok(Some(_)) => {}
            Ok(None) => return Err(StreamEnd::Left),
            Err(status) => return Err(how(status)),
        }
    }
}

/// How a stream of the owner ended.
fn how(status: Status) -> StreamEnd {
    match route::refusal(status).0 {
        refusal if refusal.code == Code::Unavailable => StreamEnd::Broken,
        refusal => StreamEnd::Refused(Box::new(refusal)),
    }
}

fn replaced(name: &str) -> Refusal {
    let message = format!("another observer joined as {name:?} and took the place of this one");
    Refusal::new(Code::Aborted, message)
}

/// Completes when another node owns a slot than this one (`None`) or the one given, or when none did for too long.
async fn moved(node: &Node, slot: Slot, known: Option<&NodeId>, unowned: &mut Option<Instant>) -> SourceEnd {
    let Some(cluster) = node.mode.cluster() else { return pending().await };
    let mut routes = cluster.routes();
    loop {
        let refusal = {
            let routes = routes.borrow_and_update();
            match (routes.get(slot).map(|route| &route.owner), known) {
                (Some(SlotOwner::Me(_)), None) => None,
                (Some(SlotOwner::Other(owner, _)), Some(known)) if owner == known => None,
                (Some(SlotOwner::Other(owner, _)), _) => {
                    let address = routes.addresses.get(owner).map_or("", String::as_str);
                    return SourceEnd::Moved(Refusal::not_owner(owner.as_str(), address));
                }
                (Some(SlotOwner::Me(_)), Some(_)) => return SourceEnd::Moved(Refusal::not_owner("", "")),
                (Some(SlotOwner::Nobody(why)), _) => Some(route::no_owner(why)),
                (None, _) => Some(route::no_owner("this node has just started")),
            }
        };
        let Some(refusal) = refusal else {
            *unowned = None;
            if routes.changed().await.is_err() {
                return pending().await;
            }
            continue;
        };
        // Those who are here stay together as long as the owner may only be changing.
        let until = *unowned.get_or_insert_with(Instant::now) + TIMEOUT;
        if timeout_at(until, routes.changed()).await.is_err() {
            return SourceEnd::Unowned(refusal);
        }
    }
}
