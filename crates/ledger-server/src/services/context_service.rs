//! `converge.context.v1.ContextService`: the five operations as the predecessor offered them.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use ledger_core::{ContextId, Sequence, slot::Slot, snapshot::VERSION};
use ledger_proto::{
    context::v1::{
        AppendRequest, AppendResponse, GetRequest, GetResponse, LoadRequest, LoadResponse, SnapshotMetadata,
        SnapshotRequest, SnapshotResponse, WatchRequest, context_service_client::ContextServiceClient,
    },
    wire::context::v1::{WatchEvent, context_service_server::ContextService},
};
use ledger_store::{AppendConditions, EntryView, Ledger, StoreError};
use tokio::time::timeout_at;
use tonic::{Code, Request, Response, Status, body::Body, client::GrpcService};
use tracing::debug_span;

use crate::{
    grpc::call::{self, ReservedAnswer},
    grpc::convert,
    grpc::encode,
    grpc::status::Refusal,
    limits,
    metrics::Rpc,
    node::mode::NodeMode,
    node::writers::{Writer, WriterCheck},
    node::{Node, blocking},
    routing::route::{self, Destination},
    routing::upstream::Upstream,
    services::pages::ReadRequest,
    services::relay,
    services::watcher::{ContextWatcher, WatcherBatch},
    settings::units::ByteSize,
};

/// Bytes that a snapshot takes while it is read.
const SNAPSHOT_CHUNKS: usize = 3 << 20;

/// The service.
#[derive(Debug, Clone)]
pub struct Contexts(pub Arc<Node>);

#[tonic::async_trait]
impl ContextService for Contexts {
    async fn append(&self, request: Request<AppendRequest>) -> Result<Response<AppendResponse>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let writer = Writer::of(request.metadata());
        let request = request.into_inner();
        let span = debug_span!("append", context = request.context_id, key = request.key);
        self.0.answer(Rpc::Append, span, append(&self.0, request, writer.as_ref(), is_forwarded)).await
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let span = debug_span!("get", context = request.context_id, after = request.after_sequence);
        let max = self.0.config.max_response.get() - limits::RESPONSE_SLACK;
        let work = async {
            let get = ReadRequest::check(request.clone())?;
            let (context, at_owner) = (get.context().clone(), get.at_owner());
            let here = || get.answer(&self.0, max);
            let there = |channel| {
                let request = route::forwarded(request.clone());
                async move { route::answer(reader(Upstream::new(channel)).get(request)).await }
            };
            self.0.read_anywhere(&context, at_owner, is_forwarded, here, there).await
        };
        self.0.answer(Rpc::Get, span, work).await
    }

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let span = debug_span!("snapshot", context = request.context_id);
        let work = async {
            let context = ContextId::new(&request.context_id)?;
            let here = || snapshot(&self.0, request.clone());
            let there = |channel| {
                let request = route::forwarded(request.clone());
                async move { route::answer(reader(Upstream::new(channel)).snapshot(request)).await }
            };
            self.0.read_anywhere(&context, false, is_forwarded, here, there).await
        };
        self.0.answer(Rpc::Snapshot, span, work).await
    }

    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let span = debug_span!("load", context = request.context_id, bytes = request.snapshot.len());
        let work = async {
            let context = ContextId::new(&request.context_id)?;
            let deadline = route::deadline();
            loop {
                // A load that was done is found to be done.
                let refusal = match self.0.writes(&context, is_forwarded) {
                    Ok(Destination::Here(_)) => match load(&self.0, request.clone()).await {
                        Ok(loaded) => return Ok(loaded),
                        Err(refusal) => refusal,
                    },
                    Ok(Destination::There { channel, owner }) => {
                        let mut there = reader(channel);
                        let loaded = route::answer(there.load(route::forwarded(request.clone())));
                        match self.0.unless_owner_lost(owner, loaded).await {
                            Ok(loaded) => return Ok(loaded),
                            Err(refusal) => refusal,
                        }
                    }
                    Err(refusal) => refusal,
                };
                self.0.should_retry(refusal, !is_forwarded && !request.fail_if_exists, deadline).await?;
            }
        };
        self.0.answer(Rpc::Load, span, work).await
    }

    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let watch = watch(&self.0, request.into_inner(), is_forwarded);
        watch.map(Response::new).map_err(|refusal| self.0.refuse(Rpc::Watch, refusal))
    }
}

/// The service at another node.
fn reader<C: GrpcService<Body, ResponseBody = Body>>(there: C) -> ContextServiceClient<C> {
    ContextServiceClient::new(there)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

/// Appends where the slot's owner is.
async fn append(
    node: &Node,
    mut request: AppendRequest,
    writer: Option<&Writer>,
    is_forwarded: bool,
) -> Result<AppendResponse, Refusal> {
    if matches!(node.mode, NodeMode::Standalone(_)) {
        return append_here(node, request, writer).await;
    }
    let context = ContextId::new(&request.context_id)?;
    // Whatever happens on the way, a retry with an id is safe.
    if request.entry_id.is_empty()
        && !is_forwarded
        && matches!(node.writes(&context, false), Ok(Destination::There { .. }))
    {
        request.entry_id = Ledger::new_entry_id().to_string();
    }
    let has_id = !request.entry_id.is_empty();
    let deadline = route::deadline();
    loop {
        let (refusal, is_safe) = match node.writes(&context, is_forwarded) {
            Ok(Destination::Here(_)) => match append_here(node, request.clone(), writer).await {
                Ok(appended) => return Ok(appended),
                Err(refusal) => (refusal, has_id),
            },
            Ok(Destination::There { channel, owner }) => {
                node.metrics.forwarded_appends.increment(1);
                let request = route::forwarded_append(request.clone(), writer);
                let mut there = reader(channel);
                match node.unless_owner_lost(owner, there.append(request)).await {
                    Ok(appended) => return Ok(appended.into_inner()),
                    Err(status) => {
                        let (refusal, is_undone) = route::refusal(status);
                        (refusal, is_undone || has_id)
                    }
                }
            }
            Err(refusal) => (refusal, true),
        };
        // The one that sent it on waits.
        node.should_retry(refusal, is_safe && !is_forwarded, deadline).await?;
    }
}

async fn append_here(
    node: &Node,
    request: AppendRequest,
    writer: Option<&Writer>,
) -> Result<AppendResponse, Refusal> {
    let cost_bytes = convert::cost_bytes(&request);
    let context = ContextId::new(&request.context_id)?;
    let slot = Slot::of(&context);
    let append = convert::append(request, context, node.config.max_entry.get())?;
    let deadline = call::deadline_within(node.config.call_timeout.0);
    let Ok(permit) = timeout_at(deadline, node.memory.in_flight.acquire(cost_bytes)).await else {
        return Err(out_of_memory(node));
    };
    // From here on it counts as an append.
    if let Some(call) = call::current() {
        call.release_request();
    }
    if let Some(writer) = writer {
        node.wrote(&append.context, writer, &mut WriterCheck::default());
    }
    // It is held for as long as the append waits for copies, whether the caller does or not.
    let terms = AppendConditions { deadline: Some(deadline.into_std()), permit: Some(Arc::new(permit)) };
    let Ok(appended) = timeout_at(deadline, node.ledger.append_on(append, terms)).await else {
        return Err(node.explain_not_copied(slot, StoreError::NotCopied { slot }.into()));
    };
    let appended = appended.map_err(|error| match error {
        error @ StoreError::NotCopied { .. } => node.explain_not_copied(slot, error.into()),
        error => error.into(),
    })?;
    node.metrics.appended_entries.increment(1);
    node.metrics.appended_bytes.increment(appended.entry.payload.len() as u64);
    Ok(AppendResponse {
        position: Some(convert::position(&appended.position)),
        entry: Some(convert::entry(appended.entry)),
        copies: u32::try_from(appended.copies).unwrap_or(u32::MAX),
    })
}

fn out_of_memory(node: &Node) -> Refusal {
    let message = format!(
        "{} of appends wait for the disk or for copies, the most there may be (max_in_flight): try again later",
        ByteSize(node.memory.in_flight.used() as u64)
    );
    Refusal { retry: Some(limits::RETRY_MEMORY), ..Refusal::new(Code::ResourceExhausted, message) }
}

async fn snapshot(node: &Node, request: SnapshotRequest) -> Result<SnapshotResponse, Refusal> {
    let context = ContextId::new(&request.context_id)?;
    let max = node.config.max_snapshot_message.get();
    let large = {
        let context = context.clone();
        node.read(move |ledger| ledger.snapshot_size(&context)).await?
    };
    if large > 2 * max as u64 {
        return Err(too_large(&context, max));
    }
    // Chunks, the whole of them, and the message that is made of it.
    let estimate = usize::try_from(large).unwrap_or(usize::MAX).max(limits::SMALL_PAGE).min(max);
    let reserved = call::reserve(call::current(), 2 * estimate + SNAPSHOT_CHUNKS).await?;
    let taken = node
        .read(move |ledger| {
            let chunks = ledger.snapshot(&context)?;
            let metadata = snapshot_metadata(chunks.header());
            let (mut snapshot, mut size) = (Vec::new(), 0);
            for chunk in chunks {
                let chunk = chunk?;
                size += chunk.len();
                if size > max {
                    return Ok(Err(context));
                }
                snapshot.extend_from_slice(&chunk);
            }
            Ok(Ok(SnapshotResponse {
                snapshot: snapshot.into(),
                sequence: metadata.entry_count,
                metadata: Some(metadata),
            }))
        })
        .await?;
    let taken = taken.map_err(|context| too_large(&context, max))?;
    reserved.hand_over(2 * taken.snapshot.len());
    Ok(taken)
}

fn too_large(context: &ContextId, max: usize) -> Refusal {
    let message = format!(
        "the snapshot of context {context} has more than {max} bytes, the most for one message here \
         (max_snapshot_message): use converge.ledger.v1.LedgerService/Snapshot, which streams"
    );
    Refusal::new(Code::ResourceExhausted, message)
}

/// What a snapshot's header says.
pub(crate) fn snapshot_metadata(header: &ledger_core::snapshot::Header) -> SnapshotMetadata {
    SnapshotMetadata {
        created_at_ns: header.taken_at_ns,
        entry_count: header.count.0,
        version: VERSION.into(),
        merkle_root: convert::hash(&header.root),
        lamport_clock: header.lamport.0,
        hash_suite: convert::suite(header.suite),
        lineage: bytes::Bytes::copy_from_slice(&header.lineage.0),
    }
}

async fn load(node: &Node, request: LoadRequest) -> Result<LoadResponse, Refusal> {
    let context = ContextId::new(&request.context_id)?;
    let (len, max) = (request.snapshot.len(), node.config.max_snapshot_message.get());
    if len > max {
        let message = format!(
            "the snapshot has {len} bytes, and one message here may carry {max} (max_snapshot_message): use \
             converge.ledger.v1.LedgerService/Load, which streams"
        );
        return Err(Refusal::new(Code::ResourceExhausted, message));
    }
    let turn = node.loads.turn(&node.draining).await?;
    // The thread goes on when the call is given up, with the snapshot in its memory.
    let held = call::current().and_then(|call| call.take_request());
    let ledger = node.ledger.clone();
    let loaded = blocking(move || {
        let mut load = ledger.load(&context, request.fail_if_exists)?;
        load.feed(&request.snapshot)?;
        let loaded = load.finish();
        drop((turn, held));
        loaded
    });
    let loaded = loaded.await??;
    Ok(LoadResponse { entries_restored: loaded.restored, latest_sequence: loaded.latest.0 })
}

fn watch(
    node: &Arc<Node>,
    request: WatchRequest,
    is_forwarded: bool,
) -> Result<BoxStream<'static, Result<WatchEvent, Status>>, Refusal> {
    node.serving()?;
    let context = ContextId::new(&request.context_id)?;
    let key = convert::key_filter(request.key)?;
    let named = context.clone();
    let shape = move |view: &EntryView<'_>| encode::named_entry(view, &named);
    let bookmark_ms = request.bookmarks.then_some(limits::BOOKMARK_MS);
    let after = Sequence(request.from_sequence);
    let batches = if matches!(node.mode, NodeMode::Standalone(_)) {
        let mut tail = ContextWatcher::new(node, Rpc::Watch, context, key, after, shape);
        if let Some(every_ms) = bookmark_ms {
            tail = tail.with_bookmarks(every_ms);
        }
        tail.into_stream().boxed()
    } else {
        let start = relay::WatchStart { context, key, after, position: None, bookmark_ms, is_named: true };
        relay::watch(node, Rpc::Watch, start, shape, is_forwarded)
    };
    Ok(batches
        .flat_map(|batch| {
            // The page is paid for: what of it is not yet handed out stays so.
            let mut reserved = ReservedAnswer::of_built();
            futures::stream::iter(events(batch)).inspect(move |event| {
                reserved.hand_over_part(event.as_ref().map_or(0, |event| event.entry.len()));
            })
        })
        .boxed())
}

/// An event for each entry. The bookmark comes with the last: alone only if there is no entry.
fn events(batch: Result<WatcherBatch<Bytes>, Status>) -> VecDeque<Result<WatchEvent, Status>> {
    let batch = match batch {
        Ok(batch) => batch,
        Err(status) => return [Err(status)].into(),
    };
    let mut bookmark = batch.bookmark.as_ref().map(convert::position);
    let mut events: VecDeque<_> =
        batch.entries.into_iter().map(|entry| Ok(WatchEvent { entry, bookmark: None })).collect();
    match events.back_mut() {
        Some(Ok(last)) => last.bookmark = bookmark.take(),
        _ => events.push_back(Ok(WatchEvent { entry: Bytes::new(), bookmark })),
    }
    events
}
