//! `converge.ledger.v1.LedgerService`: the five operations in streaming form.

use std::sync::Arc;

use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use ledger_core::ContextId;
use ledger_proto::{
    context::v1::{GetRequest, LoadResponse, SnapshotMetadata, SnapshotRequest},
    ledger::v1::{AppendBatch, AppendResults, LoadChunk, SnapshotChunk, WatchRequest},
    wire::ledger::v1::{Page, WatchBatch, ledger_service_server::LedgerService},
};
use ledger_store::SnapshotStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug_span;

use crate::{
    append_stream,
    context_service::snapshot_metadata,
    convert, encode,
    metrics::Rpc,
    node::{Node, blocking},
    pages::Get,
    status::Refusal,
    tail::Tail,
};

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
        Ok(Response::new(append_stream::start(Arc::clone(&self.0), request.into_inner()).boxed()))
    }

    type GetStream = BoxStream<'static, Result<Page, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        self.0.serving().map_err(self.refuse(Rpc::GetStream))?;
        let get = Get::check(request.into_inner()).map_err(self.refuse(Rpc::GetStream))?;
        Ok(Response::new(get.stream(Arc::clone(&self.0)).boxed()))
    }

    type SnapshotStream = BoxStream<'static, Result<SnapshotChunk, Status>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let chunks = snapshot(Arc::clone(&self.0), request.into_inner()).await;
        let chunks = chunks.map_err(self.refuse(Rpc::SnapshotStream))?;
        Ok(Response::new(chunks.boxed()))
    }

    async fn load(&self, request: Request<Streaming<LoadChunk>>) -> Result<Response<LoadResponse>, Status> {
        let span = debug_span!("load stream");
        self.0.answer(Rpc::LoadStream, span, load(&self.0, request.into_inner())).await
    }

    type WatchStream = BoxStream<'static, Result<WatchBatch, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let batches = watch(&self.0, request.into_inner()).await.map_err(self.refuse(Rpc::WatchStream))?;
        Ok(Response::new(batches.boxed()))
    }
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
    let (chunk, chunks) = node
        .read(move |_| {
            let chunk = chunks.next().transpose()?;
            Ok((chunk, chunks))
        })
        .await?;
    let sequence = metadata.as_ref().map_or(0, |metadata| metadata.entry_count);
    Ok(chunk.map(|data| (SnapshotChunk { data: data.into(), metadata, sequence }, chunks)))
}

async fn load(node: &Node, mut chunks: Streaming<LoadChunk>) -> Result<LoadResponse, Refusal> {
    let _permit = node.loads.acquire().await.map_err(|_| Refusal::shutting_down())?;
    let Some(first) = next_load_chunk(node, &mut chunks).await? else {
        return Err(Refusal::field("context_id", "the stream of a load is empty: send context_id and data"));
    };
    let context = ContextId::new(&first.context_id)?;
    let ledger = node.ledger.clone();
    // The load moves to a thread with each chunk and back: a slow client holds none.
    let mut load = blocking(move || {
        let mut load = ledger.load(&context, first.fail_if_exists)?;
        load.feed(&first.data)?;
        Ok::<_, ledger_store::StoreError>(load)
    })
    .await??;
    while let Some(chunk) = next_load_chunk(node, &mut chunks).await? {
        load = blocking(move || load.feed(&chunk.data).map(|()| load)).await??;
    }
    let loaded = blocking(move || load.finish()).await??;
    Ok(LoadResponse { entries_restored: loaded.restored, latest_sequence: loaded.latest.0 })
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
) -> Result<impl Stream<Item = Result<WatchBatch, Status>> + Send + 'static, Refusal> {
    node.serving()?;
    let context = ContextId::new(&request.context_id)?;
    let key = convert::key_filter(request.key)?;
    let resume = convert::resume(request.resume_after)?;
    let tail = Tail::resume(node, Rpc::WatchStream, context, key, resume, encode::entry).await?;
    let tail = tail.with_bookmarks(request.bookmark_interval_ms);
    Ok(tail.into_stream().map(|batch| {
        batch.map(|batch| WatchBatch {
            entries: batch.entries,
            bookmark: batch.bookmark.as_ref().map(convert::position),
        })
    }))
}
