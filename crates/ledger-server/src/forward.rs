//! Where the entries of a stream of appends go: to this node's store, or on to the slot's owner.
//!
//! A stream keeps to the owner and the epoch that it found for a slot at first: entries that are sent without waiting
//! for each other keep their order, because after one that is refused all of the slot are, until the client begins
//! another stream.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt as _;
use ledger_cluster::routes::RouteTo;
use ledger_core::{ContextId, Epoch, node::NodeId, slot::Slot};
use ledger_proto::ledger::v1::{
    AppendBatch, AppendItem, AppendResults, ledger_service_client::LedgerServiceClient,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use crate::{
    append_stream::{Refused, acquire, failed},
    limits,
    node::Node,
    route,
    standing::Standing,
    status::Refusal,
    writers::{self, Writer},
};

/// Messages that wait for the connection to an owner.
const MESSAGES: usize = 64;

/// Where the entries of a slot go.
#[derive(Debug, Clone)]
pub enum Placed {
    /// Here, in this epoch if the node is one of a cluster.
    Here(Option<Epoch>),
    /// To its owner.
    There(NodeId),
}

/// Where the entries of a stream go.
#[derive(Debug)]
pub struct Places {
    is_forwarded: bool,
    writer: Option<Writer>,
    slots: HashMap<Slot, Result<Placed, Refusal>>,
    channels: HashMap<NodeId, Channel>,
    owners: HashMap<NodeId, Forward>,
}

/// The stream to an owner.
#[derive(Debug)]
struct Forward {
    messages: mpsc::Sender<AppendBatch>,
    sent: Arc<Sent>,
}

/// The client's tags of what was sent on and not answered, by our own; `None` when the stream has ended, so that
/// nothing is put where nobody answers it.
#[derive(Debug)]
struct Sent(Mutex<Option<HashMap<u64, u64>>>);

impl Default for Sent {
    fn default() -> Self {
        Self(Mutex::new(Some(HashMap::new())))
    }
}

impl Sent {
    fn take(&self, tag: u64) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.remove(&tag)
    }

    fn put(&self, tag: u64) -> Option<u64> {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sent.as_mut()?;
        let mut ours = tag;
        // A client may use a tag twice.
        while sent.contains_key(&ours) {
            ours = ours.wrapping_add(0x9e37_79b9_7f4a_7c15);
        }
        sent.insert(ours, tag);
        Some(ours)
    }

    /// Nothing more is answered.
    fn end(&self) -> Vec<u64> {
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        sent.into_iter().flatten().map(|(_, tag)| tag).collect()
    }
}

impl Places {
    /// Nothing is placed yet of what a writer sends, if it names itself.
    pub fn new(is_forwarded: bool, writer: Option<Writer>) -> Self {
        Self { is_forwarded, writer, slots: HashMap::new(), channels: HashMap::new(), owners: HashMap::new() }
    }

    /// Where an entry of a context goes.
    pub fn of(&mut self, node: &Node, context: &ContextId) -> Result<Placed, Refusal> {
        let Standing::Joined(cluster) = &node.standing else { return Ok(Placed::Here(None)) };
        let slot = Slot::of(context);
        if let Some(placed) = self.slots.get(&slot) {
            return placed.clone();
        }
        let owner = {
            let routes = cluster.routes();
            let routes = routes.borrow();
            routes.get(slot).map(|route| route.owner.clone())
        };
        let placed = match (node.writes(context, self.is_forwarded), owner) {
            (Ok(route::Place::Here(epoch)), _) => Ok(Placed::Here(epoch)),
            (Ok(route::Place::There(channel)), Some(RouteTo::Other(owner, _))) => {
                self.channels.entry(owner.clone()).or_insert(channel);
                Ok(Placed::There(owner))
            }
            (Ok(route::Place::There(_)), _) => Err(Refusal::not_owner("", "")),
            (Err(refusal), _) => Err(refusal),
        };
        self.slots.insert(slot, placed.clone());
        placed
    }

    /// Sends an entry on. Waits while there is no room.
    pub(crate) async fn send(
        &mut self,
        owner: &NodeId,
        item: AppendItem,
        room: &Arc<Semaphore>,
        results: &mpsc::UnboundedSender<Refused>,
    ) -> Result<(), Refusal> {
        let permit = acquire(room, 1).await?;
        let tag = item.tag;
        if let Some(channel) = self.channels.get(owner) {
            let forward = self.owners.entry(owner.clone()).or_insert_with(|| {
                Forward::begin(channel.clone(), self.writer.clone(), Arc::clone(room), results.clone())
            });
            if let Some(ours) = forward.sent.put(tag) {
                permit.forget();
                let batch = AppendBatch { items: vec![AppendItem { tag: ours, ..item }] };
                if forward.messages.send(batch).await.is_ok() {
                    return Ok(());
                }
                // It broke: unless it was answered with the others, it is now.
                if forward.sent.take(ours).is_none() {
                    return Ok(());
                }
                room.add_permits(1);
            }
        }
        let refused = AppendResults {
            results: vec![failed(tag, Refusal::not_owner("", ""))],
            ..AppendResults::default()
        };
        let _ = results.send((refused, nothing(room)?));
        Ok(())
    }
}

impl Forward {
    /// Opens a stream to an owner. Its results go where the client's are sent from.
    fn begin(
        channel: Channel,
        writer: Option<Writer>,
        room: Arc<Semaphore>,
        results: mpsc::UnboundedSender<Refused>,
    ) -> Self {
        let (messages, outgoing) = mpsc::channel(MESSAGES);
        let sent = Arc::new(Sent::default());
        let answered = Arc::clone(&sent);
        tokio::spawn(async move {
            let ended = answers(channel, outgoing, writer.as_ref(), &answered, &room, &results).await;
            // What was not answered may be stored: whoever wrote it repeats it with its id.
            let refusal =
                ended.err().map_or_else(|| Refusal::not_owner("", ""), |status| route::refusal(status).0);
            let refusal = Refusal { code: tonic::Code::Unavailable, ..refusal };
            let failed: Vec<_> = answered.end().into_iter().map(|tag| failed(tag, refusal.clone())).collect();
            room.add_permits(failed.len());
            if let (false, Ok(permit)) = (failed.is_empty(), nothing(&room)) {
                let _ = results.send((AppendResults { results: failed, ..AppendResults::default() }, permit));
            }
        });
        Self { messages, sent }
    }
}

/// Hands the owner's results to the client, until the stream ends.
async fn answers(
    channel: Channel,
    outgoing: mpsc::Receiver<AppendBatch>,
    writer: Option<&Writer>,
    sent: &Sent,
    room: &Arc<Semaphore>,
    results: &mpsc::UnboundedSender<Refused>,
) -> Result<(), Status> {
    let mut client = LedgerServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    // Messages wait for the stream as little as entries do: what is there goes together.
    let batches = ReceiverStream::new(outgoing)
        .ready_chunks(limits::APPEND_CHUNK_ITEMS)
        .map(|batches| AppendBatch { items: batches.into_iter().flat_map(|batch| batch.items).collect() });
    let mut answers = client.append(writers::forwarded(batches, writer)).await?.into_inner();
    while let Some(mut answer) = answers.message().await? {
        answer.results.retain_mut(|result| match sent.take(result.tag) {
            Some(tag) => {
                result.tag = tag;
                true
            }
            None => false,
        });
        room.add_permits(answer.results.len());
        let Ok(permit) = nothing(room) else { return Ok(()) };
        if results.send((answer, permit)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// A permit for nothing.
fn nothing(room: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
    Arc::clone(room).try_acquire_many_owned(0).map_err(|_| Refusal::shutting_down())
}
