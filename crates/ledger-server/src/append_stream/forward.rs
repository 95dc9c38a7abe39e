//! Where the entries of a stream of appends go: to this node's store, or on to the slot's owner.
//!
//! A stream keeps to the owner and the epoch that it found for a slot at first: entries that are sent without waiting
//! for each other keep their order, because after one that is refused all of the slot are, until the client begins
//! another stream.

use std::{collections::HashMap, mem, sync::Arc};

use futures::{StreamExt as _, stream};
use ledger_core::{ContextId, Epoch, node::NodeId, slot::Slot};
use ledger_proto::ledger::v1::{
    AppendBatch, AppendItem, AppendResults, ledger_service_client::LedgerServiceClient,
};
use ledger_store::budget::{Permit, Share};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

use crate::{
    append_stream::results::{RefusedResults, ResultPermit, failed},
    grpc::call::Call,
    grpc::status::Refusal,
    limits,
    node::Node,
    node::mode::NodeMode,
    node::writers::Writer,
    routing::owner_loss::RemoteOwner,
    routing::route,
};

/// Messages that wait for the connection to an owner.
const MAX_PENDING_MESSAGES: usize = 64;
/// A message to an owner takes no further entry at so many bytes: far less than an owner takes.
const MESSAGE_BYTES: usize = 1 << 20;

/// Where the entries of a slot go.
#[derive(Debug, Clone)]
pub(super) enum ForwardTarget {
    /// Here, in this epoch if the node is one of a cluster.
    Here(Option<Epoch>),
    /// To its owner.
    There(NodeId),
}

/// Where the entries of a stream go.
#[derive(Debug)]
pub(super) struct StreamRouter {
    is_forwarded: bool,
    writer: Option<Writer>,
    call: Option<Arc<Call>>,
    slots: HashMap<Slot, Result<ForwardTarget, Refusal>>,
    channels: HashMap<NodeId, Channel>,
    owners: HashMap<NodeId, ForwardStream>,
}

/// The stream to an owner.
#[derive(Debug)]
struct ForwardStream {
    messages: mpsc::Sender<Message>,
    sent: Arc<PendingResults>,
}

/// Entries on their way to an owner, and their bytes.
#[derive(Debug, Default)]
struct Message {
    items: Vec<AppendItem>,
    bytes: usize,
}

/// Of what was sent on and not answered, by our own tags: the client's, and the room that it takes until the answer is
/// there, and that the answer takes until it is sent. `None` when the stream has ended, so that nothing is put where nobody answers it.
#[derive(Debug)]
struct PendingResults(Mutex<Option<HashMap<u64, SentEntry>>>);

/// The client's tag, and the entry's part of the room: of its result's, and of the node's bytes.
type SentEntry = (u64, Option<ResultPermit>, Option<Permit>);

impl Default for PendingResults {
    fn default() -> Self {
        Self(Mutex::new(Some(HashMap::new())))
    }
}

impl PendingResults {
    fn take(&self, tag: u64) -> Option<SentEntry> {
        self.0.lock().as_mut()?.remove(&tag)
    }

    /// Gives our tag; the entry back if nothing is answered any more.
    fn put(&self, entry: SentEntry) -> Result<u64, SentEntry> {
        let mut sent = self.0.lock();
        let Some(sent) = sent.as_mut() else { return Err(entry) };
        let mut ours = entry.0;
        // A client may use a tag twice.
        while sent.contains_key(&ours) {
            ours = ours.wrapping_add(0x9e37_79b9_7f4a_7c15);
        }
        sent.insert(ours, entry);
        Ok(ours)
    }

    /// Nothing more is answered.
    fn end(&self) -> Vec<SentEntry> {
        let sent = self.0.lock().take();
        sent.into_iter().flatten().map(|(_, sent)| sent).collect()
    }
}

impl StreamRouter {
    /// Nothing is placed yet of what a writer sends by a call, if it names itself.
    pub(super) fn new(is_forwarded: bool, writer: Option<Writer>, call: Option<Arc<Call>>) -> Self {
        Self {
            is_forwarded,
            writer,
            call,
            slots: HashMap::new(),
            channels: HashMap::new(),
            owners: HashMap::new(),
        }
    }

    /// Where an entry of a context goes.
    pub(super) fn of(&mut self, node: &Node, context: &ContextId) -> Result<ForwardTarget, Refusal> {
        if matches!(node.mode, NodeMode::Standalone(_)) {
            return Ok(ForwardTarget::Here(None));
        }
        let slot = Slot::of(context);
        if let Some(target) = self.slots.get(&slot) {
            return target.clone();
        }
        let target = match node.writes(context, self.is_forwarded) {
            Ok(route::Destination::Here(epoch)) => Ok(ForwardTarget::Here(epoch)),
            Ok(route::Destination::There { channel, owner: Some(RemoteOwner { node, .. }) }) => {
                self.channels.entry(node.clone()).or_insert(channel);
                Ok(ForwardTarget::There(node))
            }
            Ok(route::Destination::There { owner: None, .. }) => Err(Refusal::not_owner("", "")),
            Err(refusal) => Err(refusal),
        };
        self.slots.insert(slot, target.clone());
        target
    }

    /// Sends entries of so many bytes on, in order. Waits while there is no room.
    pub(super) async fn send(
        &mut self,
        node: &Node,
        owner: &NodeId,
        items: Vec<(AppendItem, usize)>,
        entries: &Arc<Share>,
        results: &mpsc::UnboundedSender<RefusedResults>,
    ) -> Result<(), Refusal> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        for (item, size) in items {
            part.push((item, size));
            bytes += size;
            if bytes >= MESSAGE_BYTES {
                self.send_message(node, owner, mem::take(&mut part), mem::take(&mut bytes), entries, results)
                    .await?;
            }
        }
        if part.is_empty() {
            return Ok(());
        }
        self.send_message(node, owner, part, bytes, entries, results).await
    }

    async fn send_message(
        &mut self,
        node: &Node,
        owner: &NodeId,
        items: Vec<(AppendItem, usize)>,
        bytes: usize,
        entries: &Arc<Share>,
        results: &mpsc::UnboundedSender<RefusedResults>,
    ) -> Result<(), Refusal> {
        let mut permit = ResultPermit::of(items.len(), entries, self.call.as_ref()).await?;
        let mut bytes_permit = node.memory.forwarding.acquire(bytes).await;
        let forward = self.channels.get(owner).map(|channel| {
            let begin = || {
                let gone = node.gone(owner.clone());
                ForwardStream::begin(channel.clone(), self.writer.clone(), results.clone(), gone)
            };
            &*self.owners.entry(owner.clone()).or_insert_with(begin)
        });
        // What is not sent, or not any more, is refused here. What is not there any more was answered with the others.
        let (mut refused, mut sent) = (Vec::new(), Vec::with_capacity(items.len()));
        let mut message = Message { items: Vec::with_capacity(items.len()), bytes };
        for (item, size) in items {
            // It gives its part back by itself: one that waits for copies holds up no others. That is less than its size if the
            // message is larger than all the room there is.
            let part = bytes_permit.split(size.min(bytes_permit.amount()));
            let entry = (item.tag, permit.split(), part);
            let put = match forward {
                Some(forward) => forward.sent.put(entry),
                None => Err(entry),
            };
            match put {
                Ok(tag) => {
                    sent.push(tag);
                    message.items.push(AppendItem { tag, ..item });
                }
                Err(entry) => refused.push(entry),
            }
        }
        if let Some(forward) = forward.filter(|_| !sent.is_empty())
            && forward.messages.send(message).await.is_err()
        {
            refused.extend(sent.into_iter().filter_map(|tag| forward.sent.take(tag)));
        }
        if !refused.is_empty() {
            let _ = results.send(refuse(refused, &Refusal::not_owner("", "")));
        }
        Ok(())
    }
}

impl ForwardStream {
    /// Opens a stream to an owner. Its results go where the client's are sent from.
    fn begin(
        channel: Channel,
        writer: Option<Writer>,
        results: mpsc::UnboundedSender<RefusedResults>,
        gone: impl Future<Output = Refusal> + Send + 'static,
    ) -> Self {
        let (messages, outgoing) = mpsc::channel(MAX_PENDING_MESSAGES);
        let sent = Arc::new(PendingResults::default());
        let answered = Arc::clone(&sent);
        tokio::spawn(async move {
            // What was not answered may be stored: whoever wrote it repeats it with its id.
            let refusal = tokio::select! {
                ended = answers(channel, outgoing, writer.as_ref(), &answered, &results) => {
                    ended.err().map_or_else(|| Refusal::not_owner("", ""), |status| route::refusal(status).0)
                }
                refusal = gone => refusal,
            };
            let refusal = Refusal { code: tonic::Code::Unavailable, ..refusal };
            let unanswered = answered.end();
            if !unanswered.is_empty() {
                let _ = results.send(refuse(unanswered, &refusal));
            }
        });
        Self { messages, sent }
    }
}

/// Hands the owner's results to the client, until the stream ends.
async fn answers(
    channel: Channel,
    outgoing: mpsc::Receiver<Message>,
    writer: Option<&Writer>,
    sent: &PendingResults,
    results: &mpsc::UnboundedSender<RefusedResults>,
) -> Result<(), Status> {
    let mut client = LedgerServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    // Messages wait for the stream as little as entries do: what is there goes together.
    let batches = ReceiverStream::new(outgoing)
        .ready_chunks(MAX_PENDING_MESSAGES)
        .flat_map(|messages| stream::iter(coalesce(messages)));
    let mut answers = client.append(route::forwarded_append(batches, writer)).await?.into_inner();
    while let Some(mut answer) = answers.message().await? {
        let mut permits = Vec::with_capacity(answer.results.len());
        answer.results.retain_mut(|result| match sent.take(result.tag) {
            Some((tag, permit, _bytes)) => {
                result.tag = tag;
                permits.extend(permit);
                true
            }
            None => false,
        });
        if results.send((answer, permits)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Entries that are not answered otherwise.
fn refuse(entries: Vec<SentEntry>, refusal: &Refusal) -> RefusedResults {
    let mut permits = Vec::with_capacity(entries.len());
    let refused = |(tag, permit, _): SentEntry| {
        permits.extend(permit);
        failed(tag, refusal.clone())
    };
    let results = entries.into_iter().map(refused).collect();
    (AppendResults { results, ..AppendResults::default() }, permits)
}

/// Small messages as few larger ones, in order.
fn coalesce(messages: Vec<Message>) -> Vec<AppendBatch> {
    let mut batches = Vec::new();
    let mut next = Message::default();
    for Message { items, bytes } in messages {
        let is_full =
            next.bytes + bytes > MESSAGE_BYTES || next.items.len() + items.len() > limits::APPEND_CHUNK_ITEMS;
        if is_full && !next.items.is_empty() {
            batches.push(AppendBatch { items: mem::take(&mut next).items });
        }
        next.items.extend(items);
        next.bytes += bytes;
    }
    batches.push(AppendBatch { items: next.items });
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_to_an_owner_are_gathered_in_order_and_stay_small() {
        let sizes = [10, 20, MESSAGE_BYTES, 30, 40, MESSAGE_BYTES - 69, 1, 3 * MESSAGE_BYTES, 5];
        let message =
            |(tag, bytes): (u64, usize)| Message { items: vec![AppendItem { tag, request: None }], bytes };
        let batches = coalesce((0..).zip(sizes).map(message).collect());
        let tags: Vec<Vec<u64>> =
            batches.iter().map(|batch| batch.items.iter().map(|item| item.tag).collect()).collect();
        assert_eq!(tags, [vec![0, 1], vec![2], vec![3, 4], vec![5, 6], vec![7], vec![8]]);
    }
}
