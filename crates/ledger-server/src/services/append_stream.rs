//! The pipelined append: a stream of batches in, a stream of results out.
//!
//! One task reads batches, checks them and hands each to the store in one call. The response stream is fed by
//! the store's group commits directly: one message out for each, with no task, channel or permit for a single
//! entry. What was accepted and not yet answered is bounded, in entries for each stream and in bytes for
//! the node; at the bound the task reads no further, and HTTP/2 flow control holds the client back. Its results are paid
//! for before it is handed to the store, until the client takes them.
//!
//! In a cluster, entries of slots that other nodes own are sent on to them, on one stream for each owner.
//!
//! | state | leaves it when |
//! | --- | --- |
//! | reading | the client half-closes, fails, or the node drains → finishing |
//! | finishing | the last result was sent → ended, with the status that ended the reading |

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use futures::{Stream, stream};
use ledger_core::{ContextId, Position, limits::MAX_METADATA_PAIRS, node::NodeId};
use ledger_proto::{
    ledger::v1::{AppendItem, AppendResult, AppendResults, ContextPosition},
    wire::ledger::v1::AppendBatch,
};
use ledger_store::{
    Append, AppendConditions, BatchResults, Receipt, StoreError,
    budget::{Permit, Share},
};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, Streaming};

use crate::{
    grpc::call::{self, Call, ReservedAnswer},
    grpc::convert::{self, NameCache},
    grpc::scan,
    grpc::status::Refusal,
    http::metrics::{Alive, Rpc},
    limits,
    node::Node,
    routing::forward::{ForwardTarget, StreamRouter},
    services::writers::Writer,
};

/// Starts a stream of appends.
pub fn start(
    node: Arc<Node>,
    batches: Streaming<AppendBatch>,
    is_forwarded: bool,
    writer: Option<Writer>,
) -> impl Stream<Item = Result<AppendResults, Status>> + Send {
    node.metrics.started(Rpc::AppendStream);
    let in_flight = Arc::new(InFlight::default());
    let gone = CancellationToken::new();
    let (stored, stored_rx) = mpsc::unbounded_channel();
    let (refused, refused_rx) = mpsc::unbounded_channel();
    let (ended, ended_rx) = oneshot::channel();
    let call = call::current();
    let reader = BatchReader {
        items: Share::new("entries of a stream", limits::APPEND_ITEMS_IN_FLIGHT),
        names: NameCache::new(Arc::clone(&node.memory.calls)),
        in_flight: Arc::clone(&in_flight),
        stored,
        places: StreamRouter::new(is_forwarded, writer.clone(), call.clone()),
        writer,
        call,
        refused,
        node: Arc::clone(&node),
    };
    let alive = Alive::new(&node.metrics.append_streams);
    tokio::spawn(reader.run(batches, gone.clone(), ended));
    let answers = ResultSender {
        stored: stored_rx,
        refused: refused_rx,
        ended: Some(ended_rx),
        in_flight,
        node,
        _gone: gone.drop_guard(),
        _alive: alive,
    };
    stream::unfold(answers, |mut answers| async move { Some((answers.next().await?, answers)) })
}

/// What was handed to the store and not yet answered, in chunks, oldest first.
///
/// The tag the store sees is the number of the chunk (upper 48 bits) and the index in it (lower 16).
#[derive(Debug, Default)]
struct InFlight(Mutex<Chunks>);

#[derive(Debug, Default)]
struct Chunks {
    first: u64,
    chunks: VecDeque<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    /// The client's tags.
    tags: Vec<u64>,
    /// How many are not yet answered.
    left: usize,
    started: Instant,
    /// Their part of what the stream may have in flight.
    _items: Permit,
    /// For their results.
    room: ReservedAnswer,
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a chunk; gives the tag of its first entry, the others count on.
    fn push(&self, chunk: Chunk) -> u64 {
        let mut chunks = self.lock();
        let number = chunks.first + chunks.chunks.len() as u64;
        chunks.chunks.push_back(chunk);
        number << 16
    }
}

impl Chunks {
    /// The client's tag, when the entry is answered. Calls `finished` when its chunk is.
    fn answer(&mut self, tag: u64, finished: impl FnOnce(&mut Chunk)) -> Option<u64> {
        let number = usize::try_from((tag >> 16).checked_sub(self.first)?).ok()?;
        let chunk = self.chunks.get_mut(number)?;
        let client = *chunk.tags.get((tag & 0xffff) as usize)?;
        chunk.left = chunk.left.saturating_sub(1);
        if chunk.left == 0 {
            finished(chunk);
            while self.chunks.front().is_some_and(|chunk| chunk.left == 0) {
                self.chunks.pop_front();
                self.first += 1;
            }
        }
        Some(client)
    }
}

/// Results of entries that the store here never saw, and the room they take until they are sent.
pub(crate) type RefusedResults = (AppendResults, Vec<ResultRoom>);

/// What results take until they are sent: their number on the stream, and bytes of the node's answers.
#[derive(Debug)]
pub(crate) struct ResultRoom {
    pub(crate) items: Permit,
    pub(crate) answers: Arc<ReservedAnswer>,
}

impl ResultRoom {
    /// Waits for the room of so many.
    pub(crate) async fn of(
        count: usize,
        items: &Arc<Share>,
        call: Option<&Arc<Call>>,
    ) -> Result<Self, Refusal> {
        let items = items.acquire(count).await;
        let answers = Arc::new(call::reserve_results(call.cloned(), count * limits::RESULT).await?);
        Ok(Self { items, answers })
    }

    /// One result's part.
    pub(crate) fn split(&mut self) -> Option<Self> {
        Some(Self { items: self.items.split(1)?, answers: Arc::clone(&self.answers) })
    }
}

/// Reads batches and hands them to the store.
struct BatchReader {
    node: Arc<Node>,
    items: Arc<Share>,
    names: NameCache,
    in_flight: Arc<InFlight>,
    stored: mpsc::UnboundedSender<BatchResults>,
    refused: mpsc::UnboundedSender<RefusedResults>,
    places: StreamRouter,
    /// Who sends the stream, if it says so.
    writer: Option<Writer>,
    call: Option<Arc<Call>>,
}

impl BatchReader {
    async fn run(
        mut self,
        mut batches: Streaming<AppendBatch>,
        gone: CancellationToken,
        ended: oneshot::Sender<Status>,
    ) {
        let end = loop {
            let batch = tokio::select! {
                biased;
                () = self.node.draining.cancelled() => break Some(Refusal::shutting_down().into()),
                () = gone.cancelled() => break None,
                batch = batches.message() => batch,
            };
            match batch {
                Ok(Some(batch)) => {
                    // Cancelled only when nobody waits for the results any more. What the store has taken it
                    // stores.
                    tokio::select! {
                        biased;
                        () = gone.cancelled() => break None,
                        taken = self.take(batch.items) => if let Err(refusal) = taken { break Some(refusal.into()) },
                    }
                }
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        let _ = ended.send(end.unwrap_or_else(|| Status::ok("")));
    }

    /// Hands a batch to the store, in chunks.
    async fn take(&mut self, mut items: Vec<Bytes>) -> Result<(), Refusal> {
        while items.len() > limits::APPEND_CHUNK_ITEMS {
            let rest = items.split_off(limits::APPEND_CHUNK_ITEMS);
            self.take_chunk(mem::replace(&mut items, rest)).await?;
        }
        self.take_chunk(items).await
    }

    async fn take_chunk(&mut self, items: Vec<Bytes>) -> Result<(), Refusal> {
        let mut tags = Vec::with_capacity(items.len());
        let mut appends = Vec::with_capacity(items.len());
        let mut refused = Vec::new();
        let mut forwarded: Vec<(NodeId, Vec<(AppendItem, usize)>)> = Vec::new();
        let mut bytes = 0;
        for item in items {
            if let Err(refusal) = check_pairs(&item) {
                self.node.metrics.refused(Rpc::AppendStream, refusal.code);
                refused.push(failed(scan::tag_of_item(&item), refusal));
                continue;
            }
            let AppendItem { tag, request } = decoded(item)?;
            let request = request.unwrap_or_default();
            let weight = convert::cost_bytes(&request);
            let named = self.names.get(&request.context_id);
            let placed = named.and_then(|named| Ok((self.places.of(&self.node, &named.context)?, named)));
            let here = match placed {
                Ok((ForwardTarget::Here(epoch), named)) => Ok((epoch, named)),
                Ok((ForwardTarget::There(owner), _)) => {
                    let item = (AppendItem { tag, request: Some(request) }, weight);
                    match forwarded.iter_mut().find(|(node, _)| *node == owner) {
                        Some((_, items)) => items.push(item),
                        None => forwarded.push((owner, vec![item])),
                    }
                    continue;
                }
                Err(refusal) => Err(refusal),
            };
            let checked = here.and_then(|(epoch, named)| {
                let max_entry = self.node.config.max_entry.get();
                let append = convert::append(request, named.context.clone(), max_entry)?;
                if let Some(writer) = &self.writer {
                    self.node.wrote(&named.context, writer, &mut named.writer);
                }
                Ok(Append { epoch, ..append })
            });
            match checked {
                Ok(append) => {
                    bytes += weight;
                    tags.push(tag);
                    appends.push(append);
                }
                Err(refusal) => {
                    self.node.metrics.refused(Rpc::AppendStream, refusal.code);
                    refused.push(failed(tag, refusal));
                }
            }
        }
        if !refused.is_empty() {
            // Refusals count against the bound too, until they are sent.
            let room = ResultRoom::of(refused.len(), &self.items, self.call.as_ref()).await?;
            let refused = AppendResults { results: refused, ..AppendResults::default() };
            let _ = self.refused.send((refused, vec![room]));
        }
        for (owner, items) in forwarded {
            self.node.metrics.forwarded_appends.increment(items.len() as u64);
            self.places.send(&self.node, &owner, items, &self.items, &self.refused).await?;
        }
        if appends.is_empty() {
            return Ok(());
        }
        self.submit(tags, appends, bytes).await
    }

    async fn submit(&self, tags: Vec<u64>, appends: Vec<Append>, bytes: usize) -> Result<(), Refusal> {
        let items = self.items.acquire(tags.len()).await;
        let room = call::reserve_results(self.call.clone(), tags.len() * limits::RESULT).await?;
        // A chunk larger than all there is waits for all there is.
        let permit = self.node.memory.in_flight.acquire(bytes).await;
        let started = Instant::now();
        let chunk = Chunk { left: tags.len(), tags, started, _items: items, room };
        let first = self.in_flight.push(chunk);
        let tagged = (first..).zip(appends).collect();
        let deadline = Some(started + self.node.config.call_timeout.0);
        let terms = AppendConditions { deadline, permit: Some(Arc::new(permit)) };
        Ok(self.node.ledger.submit(tagged, terms, self.stored.clone()).await?)
    }
}

/// Refuses an item of a batch that would take far more memory decoded than its bytes.
fn check_pairs(item: &[u8]) -> Result<(), Refusal> {
    // A name may be there twice: whether there are too many is checked again.
    if item.len() > limits::METADATA_FIELDS && scan::metadata_of_item(item) > 4 * MAX_METADATA_PAIRS {
        let message =
            format!("metadata has far more pairs than the {MAX_METADATA_PAIRS} that an entry may have");
        return Err(Refusal::field("metadata", message));
    }
    Ok(())
}

fn decoded(item: Bytes) -> Result<AppendItem, Refusal> {
    AppendItem::decode(item).map_err(|error| {
        Refusal::new(Code::InvalidArgument, format!("an item of the batch is malformed: {error}"))
    })
}

/// Turns group commits into messages of results.
struct ResultSender {
    node: Arc<Node>,
    stored: mpsc::UnboundedReceiver<BatchResults>,
    refused: mpsc::UnboundedReceiver<RefusedResults>,
    ended: Option<oneshot::Receiver<Status>>,
    in_flight: Arc<InFlight>,
    _gone: DropGuard,
    _alive: Alive,
}

impl ResultSender {
    async fn next(&mut self) -> Option<Result<AppendResults, Status>> {
        tokio::select! {
            biased;
            Some(results) = self.stored.recv() => Some(Ok(self.coalesce(results))),
            Some((results, _room)) = self.refused.recv() => Some(Ok(results)),
            else => self.end().await,
        }
    }

    /// All results were sent: the stream ends as the reading did.
    async fn end(&mut self) -> Option<Result<AppendResults, Status>> {
        let status = self.ended.take()?.await.unwrap_or_else(|_| {
            let refusal = Refusal::internal("reading the stream failed inside the server");
            self.node.refuse(Rpc::AppendStream, refusal)
        });
        if status.code() == Code::Ok { None } else { Some(Err(status)) }
    }

    /// One message for a group commit, and for others that are there already.
    fn coalesce(&mut self, first: BatchResults) -> AppendResults {
        let mut message = AppendResults::default();
        let mut size = 0;
        let mut next = Some(first);
        let mut commits = 0;
        while let Some(batch) = next {
            commits += 1;
            size += self.convert(batch, &mut message);
            let room = message.results.len() < limits::RESULTS_PER_MESSAGE && size < limits::RESULTS_BYTES;
            next = if room { self.stored.try_recv().ok() } else { None };
        }
        if commits > 1 {
            keep_newest(&mut message.positions);
        }
        message
    }

    /// Converts the results of a group commit; gives about how many bytes they take.
    fn convert(&self, batch: BatchResults, message: &mut AppendResults) -> usize {
        message.copies = min_copies_of(message.copies, u32::try_from(batch.copies).unwrap_or(u32::MAX));
        let hashes: Vec<u8> = batch
            .results
            .iter()
            .flat_map(|result| result.result.as_ref().map_or([0; 32], |stored| stored.content_hash.0))
            .collect();
        let hashes = Bytes::from(hashes);
        let (mut entries, mut payload) = (0, 0);
        message.results.reserve(batch.results.len());
        let metrics = &self.node.metrics;
        let mut chunks = self.in_flight.lock();
        for (index, result) in batch.results.into_iter().enumerate() {
            let finished = |chunk: &mut Chunk| {
                metrics.append_chunk_seconds.record(chunk.started.elapsed());
                mem::take(&mut chunk.room).hand_over(chunk.tags.len() * limits::RESULT);
            };
            let Some(tag) = chunks.answer(result.tag, finished) else { continue };
            message.results.push(match result.result {
                Ok(stored) => {
                    entries += 1;
                    payload += stored.payload_bytes as u64;
                    succeeded(tag, &stored, hashes.slice(index * 32..(index + 1) * 32))
                }
                Err(error) => self.failed(tag, error),
            });
        }
        drop(chunks);
        metrics.appended_entries.increment(entries);
        metrics.appended_bytes.increment(payload);
        let position = |(context, position): (ContextId, Position)| ContextPosition {
            context_id: context.as_str().to_owned(),
            position: Some(convert::position(&position)),
        };
        let names: usize = batch.positions.iter().map(|(context, _)| context.as_str().len() + 80).sum();
        message.positions.extend(batch.positions.into_iter().map(position));
        hashes.len() * 4 + names
    }

    fn failed(&self, tag: u64, error: StoreError) -> AppendResult {
        let slot = if let StoreError::NotCopied { slot } = &error { Some(*slot) } else { None };
        let refusal = Refusal::from(error);
        let refusal =
            slot.map_or_else(|| refusal.clone(), |slot| self.node.explain_not_copied(slot, refusal.clone()));
        self.node.metrics.refused(Rpc::AppendStream, refusal.code);
        failed(tag, refusal)
    }
}

fn succeeded(tag: u64, stored: &Receipt, content_hash: Bytes) -> AppendResult {
    AppendResult {
        tag,
        error: None,
        sequence: stored.sequence.0,
        lamport_clock: stored.lamport.0,
        appended_at_ns: stored.appended_at_ns,
        entry_id: stored.id.with_text(str::to_owned),
        content_hash,
        epoch: stored.epoch.0,
        repeated_id: stored.is_repeated,
    }
}

pub(crate) fn failed(tag: u64, refusal: Refusal) -> AppendResult {
    AppendResult { tag, error: Some(refusal.into_append_error()), ..AppendResult::default() }
}

/// The fewer copies of two; 0 says nothing.
pub(crate) fn min_copies_of(one: u32, other: u32) -> u32 {
    if one == 0 || other == 0 { one.max(other) } else { one.min(other) }
}

/// Of several positions of a context, the newest.
fn keep_newest(positions: &mut Vec<ContextPosition>) {
    let size = |position: &ContextPosition| position.position.as_ref().map_or(0, |position| position.size);
    let mut newest: HashMap<String, ContextPosition> = HashMap::with_capacity(positions.len());
    for position in positions.drain(..) {
        match newest.get_mut(&position.context_id) {
            Some(known) if size(known) >= size(&position) => {}
            Some(known) => *known = position,
            None => {
                newest.insert(position.context_id.clone(), position);
            }
        }
    }
    positions.extend(newest.into_values());
}
