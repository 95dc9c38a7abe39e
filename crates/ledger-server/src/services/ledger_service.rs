//! `converge.ledger.v1.LedgerService`: the five operations in streaming form.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt as _, ready, stream, stream::BoxStream};
use ledger_core::ContextId;
use ledger_proto::{
    context::v1::{GetRequest, LoadResponse, SnapshotMetadata, SnapshotRequest},
    ledger::v1::{
        AppendResults, LoadChunk, SnapshotChunk, WatchRequest, ledger_service_client::LedgerServiceClient,
    },
    wire::ledger::v1::{
        AppendBatch, Page, WatchBatch, ledger_service_client::LedgerServiceClient as EncodedClient,
        ledger_service_server::LedgerService,
    },
};
use ledger_store::SnapshotStream;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming, body::Body, client::GrpcService};
use tracing::debug_span;

use crate::{
    append_stream,
    grpc::call,
    grpc::convert,
    grpc::encode,
    grpc::status::Refusal,
    metrics::Rpc,
    node::mode::NodeMode,
    node::writers::Writer,
    node::{Node, blocking},
    routing::route::{self, Destination},
    routing::upstream::Upstream,
    services::context_service::snapshot_metadata,
    services::pages::ReadRequest,
    services::relay,
    services::watcher::ContextWatcher,
};

/// Bytes that a chunk of a snapshot takes while it is read.
const SNAPSHOT_CHUNK: usize = 2 << 20;

/// The service.
#[derive(Debug, Clone)]
pub struct Streams(pub Arc<Node>);

impl Streams {
    fn refuse(&self, rpc: Rpc) -> impl Fn(Refusal) -> Status {
        move |refusal| self.0.refuse(rpc, refusal)
    }
}

#[tonic::async_trait]
impl LedgerService for Streams {
    type AppendStream = BoxStream<'static, Result<AppendResults, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<AppendBatch>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.0.serving().map_err(self.refuse(Rpc::AppendStream))?;
        let is_forwarded = route::is_forwarded(request.metadata());
        let writer = Writer::of(request.metadata());
        let results = append_stream::start(Arc::clone(&self.0), request.into_inner(), is_forwarded, writer);
        Ok(Response::new(results.boxed()))
    }

    type GetStream = BoxStream<'static, Result<Page, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        self.0.serving().map_err(self.refuse(Rpc::GetStream))?;
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let pages = get(&self.0, request, is_forwarded).await;
        pages.map(Response::new).map_err(self.refuse(Rpc::GetStream))
    }

    type SnapshotStream = BoxStream<'static, Result<SnapshotChunk, Status>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let chunks = snapshot_anywhere(&self.0, request, is_forwarded).await;
        chunks.map(Response::new).map_err(self.refuse(Rpc::SnapshotStream))
    }

    async fn load(&self, request: Request<Streaming<LoadChunk>>) -> Result<Response<LoadResponse>, Status> {
        let span = debug_span!("load stream");
        let is_forwarded = route::is_forwarded(request.metadata());
        self.0.answer(Rpc::LoadStream, span, load(&self.0, request.into_inner(), is_forwarded)).await
    }

    type WatchStream = BoxStream<'static, Result<WatchBatch, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let batches = watch(&self.0, request.into_inner(), is_forwarded).await;
        batches.map(Response::new).map_err(self.refuse(Rpc::WatchStream))
    }
}

/// The service at another node.
fn reader<C: GrpcService<Body, ResponseBody = Body>>(there: C) -> LedgerServiceClient<C> {
    LedgerServiceClient::new(there).max_decoding_message_size(usize::MAX)
}

async fn get(
    node: &Arc<Node>,
    request: GetRequest,
    is_forwarded: bool,
) -> Result<BoxStream<'static, Result<Page, Status>>, Refusal> {
    let get = ReadRequest::check(request.clone())?;
    let (context, at_owner) = (get.context().clone(), get.at_owner());
    let here = || async { Ok(get.stream(Arc::clone(node), is_forwarded).boxed()) };
    let there = |channel| {
        let request = route::forwarded(request.clone());
        async move {
            // The entries pass through as they are.
            let mut there = EncodedClient::new(Upstream::new(channel)).max_decoding_message_size(usize::MAX);
            let pages = route::answer(there.get(request)).await?;
            Ok(pages.map(|page| page.map_err(ended_there)).boxed())
        }
    };
    node.read_anywhere(&context, at_owner, is_forwarded, here, there).await
}

/// What ended a stream from another node, for the client: a connection that broke is no fault of the request.
fn ended_there(status: Status) -> Status {
    route::refusal(status).0.into()
}

async fn snapshot_anywhere(
    node: &Arc<Node>,
    request: SnapshotRequest,
    is_forwarded: bool,
) -> Result<BoxStream<'static, Result<SnapshotChunk, Status>>, Refusal> {
    let context = ContextId::new(&request.context_id)?;
    let here = || async { Ok(snapshot(Arc::clone(node), request.clone()).await?.boxed()) };
    let there = |channel| {
        let request = route::forwarded(request.clone());
        async move {
            let chunks = route::answer(reader(Upstream::new(channel)).snapshot(request)).await?;
            Ok(chunks.map(|chunk| chunk.map_err(ended_there)).boxed())
        }
    };
    node.read_anywhere(&context, false, is_forwarded, here, there).await
}

async fn snapshot(
    node: Arc<Node>,
    request: SnapshotRequest,
) -> Result<impl Stream<Item = Result<SnapshotChunk, Status>> + Send, Refusal> {
    node.serving()?;
    node.metrics.started(Rpc::SnapshotStream);
    let context = ContextId::new(&request.context_id)?;
    let chunks = node.read(move |ledger| ledger.snapshot(&context)).await?;
    let metadata = Some(snapshot_metadata(chunks.header()));
    Ok(stream::try_unfold((node, chunks, metadata), |(node, chunks, metadata)| async move {
        match next_chunk(&node, chunks, metadata).await {
            Ok(next) => Ok(next.map(|(chunk, chunks)| (chunk, (node, chunks, None)))),
            Err(refusal) => Err(node.refuse(Rpc::SnapshotStream, refusal)),
        }
    }))
}

async fn next_chunk(
    node: &Node,
    mut chunks: SnapshotStream,
    metadata: Option<SnapshotMetadata>,
) -> Result<Option<(SnapshotChunk, SnapshotStream)>, Refusal> {
    node.serving()?;
    let reserved = call::reserve(call::current(), SNAPSHOT_CHUNK).await?;
    let (chunk, chunks) = node
        .read(move |_| {
            let chunk = chunks.next().transpose()?;
            Ok((chunk, chunks))
        })
        .await?;
    reserved.hand_over(chunk.as_ref().map_or(0, Vec::len));
    let sequence = metadata.as_ref().map_or(0, |metadata| metadata.entry_count);
    Ok(chunk.map(|data| (SnapshotChunk { data: data.into(), metadata, sequence }, chunks)))
}

async fn load(
    node: &Node,
    mut chunks: Streaming<LoadChunk>,
    is_forwarded: bool,
) -> Result<LoadResponse, Refusal> {
    let Some(first) = next_load_chunk(node, &mut chunks).await? else {
        return Err(Refusal::field("context_id", "the stream of a load is empty: send context_id and data"));
    };
    let context = ContextId::new(&first.context_id)?;
    // The chunks can be sent on once only: whoever loads tries again.
    if let Destination::There { channel, owner } = node.writes(&context, is_forwarded)? {
        let (chunks, broken) = UntilBroken::new(first, chunks);
        let mut there = reader(channel);
        let loaded = Box::pin(async move {
            tokio::select! {
                biased;
                // The owner is told by the end of the call, and whoever loads hears why.
                Ok(status) = broken => Err(Refusal::new(status.code(), status.message())),
                loaded = route::answer(there.load(route::forwarded(chunks))) => loaded,
            }
        });
        return node.unless_owner_lost(owner, loaded).await;
    }
    // Here only: nodes that send loads on to each other would wait for each other.
    let turn = node.loads.turn(&node.draining).await?;
    let ledger = node.ledger.clone();
    // The load moves to a thread with each chunk and back, and its turn with it: a slow client holds no thread, and a thread
    // that goes on when the call is given up is still a load.
    let mut load = blocking(move || {
        let mut load = ledger.load(&context, first.fail_if_exists)?;
        load.feed(&first.data)?;
        Ok::<_, ledger_store::StoreError>((load, turn))
    })
    .await??;
    while let Some(chunk) = next_load_chunk(node, &mut chunks).await? {
        load = blocking(move || {
            load.0.feed(&chunk.data)?;
            Ok::<_, ledger_store::StoreError>(load)
        })
        .await??;
    }
    let (load, turn) = load;
    let finish = move || {
        let loaded = load.finish();
        drop(turn);
        loaded
    };
    let loaded = blocking(finish).await??;
    Ok(LoadResponse { entries_restored: loaded.restored, latest_sequence: loaded.latest.0 })
}

/// The chunks of a load for another node, up to the error that they end with. That is handed out apart: as an end of the
/// stream it would be that of a snapshot that is cut off, and final.
struct UntilBroken<S> {
    first: Option<LoadChunk>,
    rest: S,
    broke: Option<oneshot::Sender<Status>>,
}

impl<S> UntilBroken<S> {
    fn new(first: LoadChunk, rest: S) -> (Self, oneshot::Receiver<Status>) {
        let (broke, broken) = oneshot::channel();
        (Self { first: Some(first), rest, broke: Some(broke) }, broken)
    }
}

impl<S: Stream<Item = Result<LoadChunk, Status>> + Unpin> Stream for UntilBroken<S> {
    type Item = LoadChunk;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<LoadChunk>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.broke.is_none() {
            return Poll::Pending;
        }
        match ready!(self.rest.poll_next_unpin(context)) {
            Some(Ok(chunk)) => Poll::Ready(Some(chunk)),
            None => Poll::Ready(None),
            Some(Err(status)) => {
                // Whoever asked may have gone. If not, the call ends with this, and the stream is dropped.
                let _ = self.broke.take().map(|broke| broke.send(status));
                Poll::Pending
            }
        }
    }
}

async fn next_load_chunk(
    node: &Node,
    chunks: &mut Streaming<LoadChunk>,
) -> Result<Option<LoadChunk>, Refusal> {
    tokio::select! {
        biased;
        () = node.draining.cancelled() => Err(Refusal::shutting_down()),
        chunk = chunks.message() => chunk.map_err(|status| Refusal::new(status.code(), status.message())),
    }
}

async fn watch(
    node: &Arc<Node>,
    request: WatchRequest,
    is_forwarded: bool,
) -> Result<BoxStream<'static, Result<WatchBatch, Status>>, Refusal> {
    node.serving()?;
    let context = ContextId::new(&request.context_id)?;
    let key = convert::key_filter(request.key)?;
    let every_ms = request.bookmark_interval_ms;
    let position = request.resume_after.clone();
    let resume = convert::resume(request.resume_after)?;
    let batches = if matches!(node.mode, NodeMode::Standalone(_)) {
        let tail =
            ContextWatcher::resume(node, Rpc::WatchStream, context, key, resume, encode::entry).await?;
        tail.with_bookmarks(every_ms).into_stream().boxed()
    } else {
        let after = resume.after;
        let bookmark_ms = Some(every_ms);
        let start = relay::WatchStart { context, key, after, position, bookmark_ms, is_named: false };
        relay::watch(node, Rpc::WatchStream, start, encode::entry, is_forwarded)
    };
    Ok(batches
        .map(|batch| {
            batch.map(|batch| WatchBatch {
                entries: batch.entries,
                bookmark: batch.bookmark.as_ref().map(convert::position),
            })
        })
        .boxed())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_load_that_breaks_off_is_not_ended_and_its_cause_is_kept() {
        let chunk = |data: &'static str| LoadChunk { data: data.into(), ..LoadChunk::default() };
        let broken_off = [Ok(chunk("b")), Err(Status::out_of_range("too large")), Ok(chunk("c"))];
        let (mut sent, broken) = UntilBroken::new(chunk("a"), stream::iter(broken_off));
        assert_eq!(sent.next().await.unwrap().data, "a");
        assert_eq!(sent.next().await.unwrap().data, "b");
        assert!(sent.next().now_or_never().is_none(), "the owner does not take it for the end");
        let status = broken.await.unwrap();
        assert_eq!((status.code(), status.message()), (tonic::Code::OutOfRange, "too large"));

        let (mut sent, broken) = UntilBroken::new(chunk("a"), stream::iter([Ok(chunk("b"))]));
        assert_eq!(sent.by_ref().count().await, 2);
        drop(sent);
        assert!(broken.await.is_err(), "nothing broke");
    }
}
