//! The streams of appends to owners.

use std::time::Duration;

use futures::{
    StreamExt as _, TryFutureExt as _,
    stream::{self, BoxStream, SelectAll},
};
use ledger_proto::ledger::v1::AppendResults;
use tokio::{sync::oneshot, time::Instant};
use tonic::{Response, Status};

use super::super::{
    outgoing::{self, Sender},
    pending::StreamId,
};
use crate::connection::{
    address::Address, core::Client, keepalive::CallGuard, locate::NodeChannel, retry::FailedCall,
};

/// At so many streams to one node the router drains the oldest when it opens another: a node that refuses appends on a
/// stream gets a new stream, and the old one ends when no group uses it.
const MAX_STREAMS_PER_NODE: usize = 4;

/// What a stream delivered: results, an error, or its end (`None`).
pub(super) type StreamEvent = (StreamId, Option<Result<AppendResults, Status>>);

/// A stream of appends to one owner.
pub(super) struct OwnerStream {
    pub id: StreamId,
    pub address: Address,
    pub sender: Sender,
    /// Appends without a result.
    pub in_flight: usize,
    /// The node has refused an append on it for now: the router sends nothing more on it.
    pub has_refused: bool,
    pub has_responded: bool,
    /// When the node last returned results, or the first append since went out.
    pub last_progress: Instant,
    _call_guard: Option<CallGuard>,
    /// Dropping it ends the stream of results.
    _cancel: oneshot::Sender<()>,
}

/// The open streams, oldest first, and their events.
pub(super) struct OwnerStreams {
    open: Vec<OwnerStream>,
    last_id: StreamId,
    events: SelectAll<BoxStream<'static, StreamEvent>>,
}

impl OwnerStreams {
    pub(super) fn new() -> Self {
        Self { open: Vec::new(), last_id: 0, events: SelectAll::new() }
    }

    /// Whether no event can come.
    pub(super) fn is_idle(&self) -> bool {
        self.events.is_empty()
    }

    /// The next event of any stream.
    pub(super) async fn next_event(&mut self) -> Option<StreamEvent> {
        self.events.next().await
    }

    pub(super) fn get(&self, id: StreamId) -> Option<&OwnerStream> {
        self.open.iter().find(|stream| stream.id == id)
    }

    pub(super) fn get_mut(&mut self, id: StreamId) -> Option<&mut OwnerStream> {
        self.open.iter_mut().find(|stream| stream.id == id)
    }

    pub(super) fn remove(&mut self, id: StreamId) -> Option<OwnerStream> {
        let index = self.open.iter().position(|stream| stream.id == id)?;
        Some(self.open.remove(index))
    }

    /// The newest stream to a node on which it has refused nothing.
    pub(super) fn usable_to(&self, address: &Address) -> Option<StreamId> {
        let mut streams = self.open.iter().rev().filter(|stream| stream.address == *address);
        streams.find(|stream| !stream.has_refused).map(|stream| stream.id)
    }

    /// The oldest stream to a node, if there are too many to open another.
    pub(super) fn oldest_of_too_many(&self, address: &Address) -> Option<StreamId> {
        let mut streams = self.open.iter().filter(|stream| stream.address == *address);
        let is_too_many = streams.clone().count() >= MAX_STREAMS_PER_NODE;
        streams.next().filter(|_| is_too_many).map(|stream| stream.id)
    }

    /// Opens a stream, and waits until the node accepts it.
    pub(super) async fn open_now(&mut self, client: &Client, node: NodeChannel) -> Result<(), FailedCall> {
        let NodeChannel { address, channel } = node;
        let (sender, outgoing) = outgoing::channel();
        let request = client.writer_request(outgoing);
        let results = client.ledger_service_on(channel).append(request).await;
        let results = results.map_err(|status| FailedCall::new(address.clone(), status))?.into_inner();
        self.add(client, address, sender, results.boxed());
        Ok(())
    }

    /// Opens a stream at once: if the node does not accept it, the stream's first event says so.
    pub(super) fn open(
        &mut self,
        client: &Client,
        NodeChannel { address, channel }: NodeChannel,
    ) -> StreamId {
        let (sender, outgoing) = outgoing::channel();
        let (mut service, request) = (client.ledger_service_on(channel), client.writer_request(outgoing));
        let results = async move { service.append(request).await.map(Response::into_inner) };
        self.add(client, address, sender, results.try_flatten_stream().boxed())
    }

    fn add(
        &mut self,
        client: &Client,
        address: Address,
        sender: Sender,
        results: BoxStream<'static, Result<AppendResults, Status>>,
    ) -> StreamId {
        self.last_id += 1;
        let id = self.last_id;
        let (cancel, is_cancelled) = oneshot::channel();
        let events = results.map(Some).chain(stream::iter([None])).map(move |event| (id, event));
        self.events.push(events.take_until(is_cancelled).boxed());
        let last_progress = Instant::now();
        let call_guard = client.nodes().track_call(&address);
        self.open.push(OwnerStream {
            id,
            address,
            sender,
            in_flight: 0,
            has_refused: false,
            has_responded: false,
            last_progress,
            _call_guard: call_guard,
            _cancel: cancel,
        });
        id
    }

    /// Lets everything sent leave.
    pub(super) fn flush(&mut self) {
        self.open.iter_mut().for_each(|stream| stream.sender.flush());
    }

    /// When the first stream will have been without progress for too long.
    pub(super) fn next_stall(&self, timeout: Duration) -> Option<Instant> {
        let busy = self.open.iter().filter(|stream| stream.in_flight > 0);
        busy.map(|stream| stream.last_progress + timeout).min()
    }

    /// The oldest stream that has been without progress for too long.
    pub(super) fn stalled(&self, timeout: Duration, now: Instant) -> Option<&OwnerStream> {
        self.open.iter().find(|stream| stream.in_flight > 0 && stream.last_progress + timeout <= now)
    }

    /// Ends the streams without appends in flight of which `is_used` says no.
    pub(super) fn end_unused(&mut self, is_used: impl Fn(StreamId) -> bool) {
        self.open.retain(|stream| stream.in_flight > 0 || is_used(stream.id));
    }
}

impl OwnerStream {
    /// Counts an append that goes out.
    pub(super) fn count_sent(&mut self) {
        if self.in_flight == 0 {
            self.last_progress = Instant::now();
        }
        self.in_flight += 1;
    }
}
