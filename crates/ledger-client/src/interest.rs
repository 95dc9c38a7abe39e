//! Interest in a context: who observes it now, and what the observers broadcast. The ledger stores none of it.

use bytes::Bytes;
use futures::{Stream, stream};
use ledger_core::{ContextId, entry::Metadata};
use ledger_proto::ledger::v1::{
    self as proto, BroadcastRequest, JoinRequest, LeaveRequest, interest_event::Event,
};
use tonic::{Status, Streaming};

use crate::{
    connection::{core::Client, destination::Destination, reconnector::Reconnector},
    error::ClientError,
};

/// An observer of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observer {
    /// Its name among the observers of the context: at most 256 bytes without control characters.
    pub name: String,
    /// What it shows the others of itself.
    pub metadata: Metadata,
}

/// What an observer receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterestEvent {
    /// All observers, in order of their names, this one too: the first event, and again whenever the former events no
    /// longer hold, as when the context's owner changes.
    Members(Vec<Observer>),
    /// An observer joined, or joined again.
    Joined(Observer),
    /// An observer left: its name.
    Left(String),
    /// Somebody broadcast a message to all observers.
    Broadcast {
        /// As the sender calls itself.
        from: String,
        /// The content.
        payload: Bytes,
        /// Pairs that describe it.
        metadata: Metadata,
    },
    /// The ledger dropped so many broadcasts, because this observer received them too slowly.
    Missed(u64),
}

/// An observer's stream of events: the caller is an observer until it drops this.
#[derive(Debug)]
pub struct Interest {
    reconnector: Reconnector,
    context: ContextId,
    observer: Observer,
    stream: Option<Streaming<proto::InterestEvent>>,
}

impl Client {
    /// Makes the caller an observer of a context, which learns of the others and receives what they broadcast. Without a
    /// name the ledger assigns one. Whoever joins under the name of an observer replaces it.
    ///
    /// The stream moves with the context's owner, and reconnects after a broken connection: the observer misses what others
    /// broadcast meanwhile.
    pub fn join(&self, context: &ContextId, observer: Observer) -> Interest {
        let reconnector = Reconnector::new(self.clone(), Destination::owner_of(context));
        Interest { reconnector, context: context.clone(), observer, stream: None }
    }

    /// Broadcasts a message of at most 64 KiB to all observers of a context, and returns how many the ledger sends it to.
    /// Observers may receive it twice, if the client retries after a transient failure.
    ///
    /// # Errors
    ///
    /// As the ledger refuses it, or the call fails.
    pub async fn broadcast(
        &self,
        context: &ContextId,
        from: &str,
        payload: impl Into<Bytes>,
        metadata: Metadata,
    ) -> Result<u64, ClientError> {
        let (context_id, from) = (context.as_str().to_owned(), from.to_owned());
        let request = BroadcastRequest { context_id, from, payload: payload.into(), metadata };
        let response = self.call(Destination::owner_of(context), |channel| {
            let (mut service, request) = (self.cluster_service_on(channel), request.clone());
            async move { service.broadcast(request).await }
        });
        Ok(response.await?.into_inner().reached)
    }

    /// Ends the stream of an observer of a context, whoever it is. Returns whether there was one of that name.
    ///
    /// # Errors
    ///
    /// As the call fails.
    pub async fn leave(&self, context: &ContextId, observer: &str) -> Result<bool, ClientError> {
        let request = LeaveRequest { context_id: context.as_str().to_owned(), observer: observer.to_owned() };
        let response = self.call(Destination::owner_of(context), |channel| {
            let (mut service, request) = (self.cluster_service_on(channel), request.clone());
            async move { service.leave(request).await }
        });
        Ok(response.await?.into_inner().was_there)
    }
}

impl Interest {
    /// This observer's name: empty until the first event if it was given none.
    pub fn name(&self) -> &str {
        &self.observer.name
    }

    /// The next event. Waits for it; `None` when somebody made the observer leave. Cancel safe: a caller that drops the
    /// future loses no event.
    ///
    /// # Errors
    ///
    /// [`ClientError::Other`] with `ABORTED` if another observer joined under its name; else as the stream fails and cannot
    /// be opened again.
    pub async fn next(&mut self) -> Result<Option<InterestEvent>, ClientError> {
        loop {
            match self.receive().await? {
                Ok(None) => {
                    self.stream = None;
                    return Ok(None);
                }
                Ok(Some(message)) => {
                    self.reconnector.received();
                    if let Some(event) = message.event {
                        return Ok(Some(self.apply(event)));
                    }
                }
                Err(status) => {
                    self.stream = None;
                    self.reconnector.disconnected(status).await?;
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
            let client = self.reconnector.client.clone();
            let stream = self.reconnector.open(|channel| {
                let (mut service, request) = (client.cluster_service_on(channel), request.clone());
                async move { service.join(request).await }
            });
            self.stream = Some(stream.await?.into_inner());
        }
        let Some(stream) = &mut self.stream else { return Ok(Err(Status::unavailable("no stream"))) };
        Ok(stream.message().await)
    }

    fn apply(&mut self, event: Event) -> InterestEvent {
        match event {
            Event::Members(members) => {
                // From now on it joins under this name wherever it reconnects.
                self.observer.name = members.observer;
                InterestEvent::Members(members.observers.into_iter().map(Observer::from_proto).collect())
            }
            Event::Joined(observer) => InterestEvent::Joined(Observer::from_proto(observer)),
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
    /// An observer without metadata; an empty name: the ledger assigns one.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), metadata: Metadata::new() }
    }

    fn from_proto(from: proto::Observer) -> Self {
        Self { name: from.name, metadata: from.metadata }
    }
}
