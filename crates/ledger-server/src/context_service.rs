//! `converge.context.v1.ContextService`: the five operations as the predecessor offered them.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use ledger_core::{ContextId, Sequence, snapshot::VERSION};
use ledger_proto::{
    context::v1::{
        AppendRequest, AppendResponse, GetRequest, GetResponse, LoadRequest, LoadResponse, SnapshotMetadata,
        SnapshotRequest, SnapshotResponse, WatchRequest,
    },
    wire::context::v1::{WatchEvent, context_service_server::ContextService},
};
use ledger_store::EntryView;
use tonic::{Code, Request, Response, Status};
use tracing::debug_span;

use crate::{
    convert, encode, limits,
    metrics::Rpc,
    node::{Node, blocking},
    pages::Get,
    status::Refusal,
    tail::{Batch, Tail},
};

/// The service.
#[derive(Debug, Clone)]
pub struct Contexts(pub Arc<Node>);

#[tonic::async_trait]
impl ContextService for Contexts {
    async fn append(&self, request: Request<AppendRequest>) -> Result<Response<AppendResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("append", context = request.context_id, key = request.key);
        self.0.answer(Rpc::Append, span, append(&self.0, request)).await
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("get", context = request.context_id, after = request.after_sequence);
        let max = self.0.config.max_response.get() - limits::RESPONSE_SLACK;
        let work = async { Get::check(request)?.answer(&self.0, max).await };
        self.0.answer(Rpc::Get, span, work).await
    }

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("snapshot", context = request.context_id);
        self.0.answer(Rpc::Snapshot, span, snapshot(&self.0, request)).await
    }

    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("load", context = request.context_id, bytes = request.snapshot.len());
        self.0.answer(Rpc::Load, span, load(&self.0, request)).await
    }

    type WatchStream = BoxStream<'static, Result<WatchEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watch = watch(&self.0, request.into_inner());
        watch
            .map(|events| Response::new(events.boxed()))
            .map_err(|refusal| self.0.refuse(Rpc::Watch, refusal))
    }
}

async fn append(node: &Node, request: AppendRequest) -> Result<AppendResponse, Refusal> {
    let weight = u32::try_from(convert::weight(&request).min(node.config.max_in_flight.get()));
    let context = ContextId::new(&request.context_id)?;
    let append = convert::append(request, context, node.config.max_payload.get())?;
    let closed = |_| Refusal::shutting_down();
    let _room = node.in_flight.acquire_many(weight.unwrap_or(u32::MAX)).await.map_err(closed)?;
    let appended = node.ledger.append_async(append).await?;
    node.metrics.appended_entries.increment(1);
    node.metrics.appended_bytes.increment(appended.entry.payload.len() as u64);
    Ok(AppendResponse {
        position: Some(convert::position(&appended.position)),
        entry: Some(convert::entry(appended.entry)),
    })
}

async fn snapshot(node: &Node, request: SnapshotRequest) -> Result<SnapshotResponse, Refusal> {
    let context = ContextId::new(&request.context_id)?;
    let max = node.config.max_snapshot_message.get();
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
    taken.map_err(|context| {
        let message = format!(
            "the snapshot of context {context} has more than {max} bytes, the most for one message here \
             (max_snapshot_message): use converge.ledger.v1.LedgerService/Snapshot, which streams"
        );
        Refusal::new(Code::ResourceExhausted, message)
    })
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
    let permit = Arc::clone(&node.loads).acquire_owned().await.map_err(|_| Refusal::shutting_down())?;
    let ledger = node.ledger.clone();
    let loaded = blocking(move || {
        let mut load = ledger.load(&context, request.fail_if_exists)?;
        load.feed(&request.snapshot)?;
        let loaded = load.finish();
        drop(permit);
        loaded
    });
    let loaded = loaded.await??;
    Ok(LoadResponse { entries_restored: loaded.restored, latest_sequence: loaded.latest.0 })
}

fn watch(
    node: &Arc<Node>,
    request: WatchRequest,
) -> Result<impl Stream<Item = Result<WatchEvent, Status>> + Send + 'static, Refusal> {
    node.serving()?;
    let context = ContextId::new(&request.context_id)?;
    let key = convert::key_filter(request.key)?;
    let named = context.clone();
    let shape = move |view: &EntryView<'_>| encode::named_entry(view, &named);
    let mut tail = Tail::new(node, Rpc::Watch, context, key, Sequence(request.from_sequence), shape);
    if request.bookmarks {
        tail = tail.with_bookmarks(limits::BOOKMARK_MS);
    }
    Ok(tail.into_stream().flat_map(|batch| futures::stream::iter(events(batch))))
}

/// An event for each entry. The bookmark comes with the last: alone only if there is no entry.
fn events(batch: Result<Batch<Bytes>, Status>) -> VecDeque<Result<WatchEvent, Status>> {
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
