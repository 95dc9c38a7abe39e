//! Interest in a context: who else looks at it now, and what they tell each other. Nothing of it is stored.

use bytes::Bytes;
use futures::{Stream, stream};
use ledger_core::{ContextId, entry::Metadata};
use ledger_proto::ledger::v1::{
    self as proto, BroadcastRequest, JoinRequest, LeaveRequest, interest_event::Event,
};
use tonic::{Status, Streaming};

use crate::{Client, ClientError, reading::Reading, route::Aim};

/// An observer of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observer {
    /// Its name among the observers of the context: at most 256 bytes without control characters.
    pub name: String,
    /// What it says of itself to the others.
    pub metadata: Metadata,
}

/// What an observer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterestEvent {
    /// All observers, in order of their names, this one too: first, and again whenever what was told before no longer
    /// holds, as when the context's owner changes.
    Members(Vec<Observer>),
    /// One more, or one that joined again.
    Joined(Observer),
    /// One less: its name.
    Left(String),
    /// Somebody told all observers something.
    Broadcast {
        /// As the sender calls itself.
        from: String,
        /// The content.
        payload: Bytes,
        /// Pairs that describe it.
        metadata: Metadata,
    },
    /// So many broadcasts were dropped, because this observer took them too slowly.
    Missed(u64),
}

/// An observer's hold on a context: it is one until this is dropped.
#[derive(Debug)]
pub struct Interest {
    reading: Reading,
    context: ContextId,
    observer: Observer,
    stream: Option<Streaming<proto::InterestEvent>>,
}

impl Client {
    /// Makes the caller an observer of a context, which hears of the others and what they broadcast. Without a name the
    /// ledger gives one. Whoever joins by the name of an observer takes its place.
    ///
    /// Follows the context's owner, and goes on after a broken connection: what is broadcast meanwhile is missed.
    pub fn join(&self, context: &ContextId, observer: Observer) -> Interest {
        let reading = Reading::new(self.clone(), Aim::owner_of(context));
        Interest { reading, context: context.clone(), observer, stream: None }
    }

    /// Tells all observers of a context something, of at most 64 KiB; how many will be sent it. Tried again after a
    /// failure that may pass, it may come twice.
    pub async fn broadcast(
        &self,
        context: &ContextId,
        from: &str,
        payload: impl Into<Bytes>,
        metadata: Metadata,
    ) -> Result<u64, ClientError> {
        let (context_id, from) = (context.as_str().to_owned(), from.to_owned());
        let request = BroadcastRequest { context_id, from, payload: payload.into(), metadata };
        let answer = self.call(Aim::owner_of(context), |channel| {
            let (mut service, request) = (self.cluster_service_on(channel), request.clone());
            async move { service.broadcast(request).await }
        });
        Ok(answer.await?.into_inner().reached)
    }

    /// Ends the stream of an observer of a context, whoever it is; whether there was one of that name.
    pub async fn leave(&self, context: &ContextId, observer: &str) -> Result<bool, ClientError> {
        let request = LeaveRequest { context_id: context.as_str().to_owned(), observer: observer.to_owned() };
        let answer = self.call(Aim::owner_of(context), |channel| {
            let (mut service, request) = (self.cluster_service_on(channel), request.clone());
            async move { service.leave(request).await }
        });
        Ok(answer.await?.into_inner().was_there)
    }
}

impl Interest {
    /// This observer's name: empty until the first event if it was given none.
    pub fn name(&self) -> &str {
        &self.observer.name
    }

    /// The next event. Waits for it; `None` when the observer was told to leave. May be dropped while it waits: nothing
    /// is lost. [`ClientError::Other`] with `ABORTED` if another one joined by its name.
    pub async fn next(&mut self) -> Result<Option<InterestEvent>, ClientError> {
        loop {
            match self.receive().await? {
                Ok(None) => {
                    self.stream = None;
                    return Ok(None);
                }
                Ok(Some(message)) => {
                    self.reading.came();
                    if let Some(event) = message.event {
                        return Ok(Some(self.take(event)));
                    }
                }
                Err(status) => {
                    self.stream = None;
                    self.reading.broke(status).await?;
                }
            }
        }
    }

    /// The events as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<InterestEvent, ClientError>> + Send + Unpin {
        Box::pin(stream::try_unfold(self, async |mut interest| {
            Ok(interest.next().await?.map(|event| (event, interest)))
        }))
    }

    async fn receive(&mut self) -> Result<Result<Option<proto::InterestEvent>, Status>, ClientError> {
        if self.stream.is_none() {
            let request = JoinRequest {
                context_id: self.context.as_str().to_owned(),
                observer: self.observer.name.clone(),
                metadata: self.observer.metadata.clone(),
            };
            let client = self.reading.client.clone();
            let stream = self.reading.open(|channel| {
                let (mut service, request) = (client.cluster_service_on(channel), request.clone());
                async move { service.join(request).await }
            });
            self.stream = Some(stream.await?.into_inner());
        }
        let Some(stream) = &mut self.stream else { return Ok(Err(Status::unavailable("no stream"))) };
        Ok(stream.message().await)
    }

    fn take(&mut self, event: Event) -> InterestEvent {
        match event {
            Event::Members(members) => {
                // From now on it is the same one wherever it joins.
                self.observer.name = members.observer;
                InterestEvent::Members(members.observers.into_iter().map(Observer::of).collect())
            }
            Event::Joined(observer) => InterestEvent::Joined(Observer::of(observer)),
            Event::Left(name) => InterestEvent::Left(name),
            Event::Broadcast(message) => InterestEvent::Broadcast {
                from: message.from,
                payload: message.payload,
                metadata: message.metadata,
            },
            Event::Missed(count) => InterestEvent::Missed(count),
        }
    }
}

impl Observer {
    /// An observer that says nothing of itself; an empty name: the ledger gives one.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), metadata: Metadata::new() }
    }

    fn of(from: proto::Observer) -> Self {
        Self { name: from.name, metadata: from.metadata }
    }
}
