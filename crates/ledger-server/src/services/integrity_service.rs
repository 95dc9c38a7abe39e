//! `converge.ledger.v1.IntegrityService`: what can be proven about a context.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream, stream::BoxStream};
use ledger_core::{ContextId, Sequence, Size, checkpoint::Checkpoint};
use ledger_proto::ledger::v1::{
    self as proto, CheckpointRequest, CheckpointResponse, ConsistencyProofRequest, ConsistencyProofResponse,
    ForkEntriesRequest, ForkPage, ForksRequest, ForksResponse, InclusionProofRequest, InclusionProofResponse,
    RecoveriesRequest, RecoveriesResponse, integrity_service_client::IntegrityServiceClient,
    integrity_service_server::IntegrityService,
};
use ledger_store::{Filter, ForkCursor};
use prost::Message as _;
use tonic::{Request, Response, Status};
use tracing::debug_span;

use crate::{
    grpc::call,
    grpc::convert,
    grpc::status::Refusal,
    limits,
    membership::operators,
    metrics::Rpc,
    node::Node,
    routing::{route, upstream::Upstream},
};

/// The service.
#[derive(Debug, Clone)]
pub struct Integrity(pub Arc<Node>);

#[tonic::async_trait]
impl IntegrityService for Integrity {
    async fn checkpoint(
        &self,
        request: Request<CheckpointRequest>,
    ) -> Result<Response<CheckpointResponse>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let span = debug_span!("checkpoint", context = request.context_id, size = request.size);
        self.0.answer(Rpc::Checkpoint, span, checkpoint(&self.0, request, is_forwarded)).await
    }

    async fn inclusion_proof(
        &self,
        request: Request<InclusionProofRequest>,
    ) -> Result<Response<InclusionProofResponse>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let span = debug_span!("inclusion proof", context = request.context_id, sequence = request.sequence);
        let work = async {
            let context = ContextId::new(&request.context_id)?;
            let here = || inclusion(&self.0, request.clone());
            let there = |channel| {
                let request = route::forwarded(request.clone());
                async move {
                    route::answer(
                        IntegrityServiceClient::new(Upstream::new(channel)).inclusion_proof(request),
                    )
                    .await
                }
            };
            self.0.read_anywhere(&context, false, is_forwarded, here, there).await
        };
        self.0.answer(Rpc::InclusionProof, span, work).await
    }

    async fn consistency_proof(
        &self,
        request: Request<ConsistencyProofRequest>,
    ) -> Result<Response<ConsistencyProofResponse>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let span = debug_span!("consistency proof", context = request.context_id, old = request.old_size);
        let work = async {
            let context = ContextId::new(&request.context_id)?;
            let here = || consistency(&self.0, request.clone());
            let there = |channel| {
                let request = route::forwarded(request.clone());
                async move {
                    route::answer(
                        IntegrityServiceClient::new(Upstream::new(channel)).consistency_proof(request),
                    )
                    .await
                }
            };
            self.0.read_anywhere(&context, false, is_forwarded, here, there).await
        };
        self.0.answer(Rpc::ConsistencyProof, span, work).await
    }

    async fn recoveries(
        &self,
        _: Request<RecoveriesRequest>,
    ) -> Result<Response<RecoveriesResponse>, Status> {
        let known = async { Ok(operators::recoveries(&self.0)) };
        self.0.answer(Rpc::Recoveries, debug_span!("recoveries"), known).await
    }

    async fn forks(&self, request: Request<ForksRequest>) -> Result<Response<ForksResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("forks", context = request.context_id);
        self.0.answer(Rpc::Forks, span, forks(&self.0, request)).await
    }

    type ForkEntriesStream = BoxStream<'static, Result<ForkPage, Status>>;

    async fn fork_entries(
        &self,
        request: Request<ForkEntriesRequest>,
    ) -> Result<Response<Self::ForkEntriesStream>, Status> {
        self.0.metrics.started(Rpc::ForkEntries);
        let reading = ForkReading::check(Arc::clone(&self.0), &request.into_inner());
        let reading = reading.map_err(|refusal| self.0.refuse(Rpc::ForkEntries, refusal))?;
        let pages = stream::try_unfold(Some(reading), async |reading| {
            let Some(reading) = reading else { return Ok(None) };
            let node = Arc::clone(&reading.node);
            reading.next().await.map(Some).map_err(|refusal| node.refuse(Rpc::ForkEntries, refusal))
        });
        Ok(Response::new(pages.boxed()))
    }
}

/// 0 stands for the newest.
fn size_or_newest(size: u64) -> Option<Size> {
    (size != 0).then_some(Size(size))
}

/// A checkpoint by a node that shows the context.
pub(crate) async fn checkpoint(
    node: &Node,
    request: CheckpointRequest,
    is_forwarded: bool,
) -> Result<CheckpointResponse, Refusal> {
    let at_owner = convert::at_owner(request.consistency)?;
    let context = ContextId::new(&request.context_id)?;
    let here = || checkpoint_here(node, request.clone());
    let there = |channel| {
        let request = route::forwarded(request.clone());
        async move { route::answer(IntegrityServiceClient::new(Upstream::new(channel)).checkpoint(request)).await }
    };
    node.read_anywhere(&context, at_owner, is_forwarded, here, there).await
}

async fn checkpoint_here(node: &Node, request: CheckpointRequest) -> Result<CheckpointResponse, Refusal> {
    let context = ContextId::new(&request.context_id)?;
    let named = context.clone();
    let made = node.read(move |ledger| ledger.checkpoint(&named, size_or_newest(request.size))).await?;
    let position = made.position;
    let statement = Checkpoint::of_context(&node.config.cluster, &context, position.size, position.root)
        .map_err(|error| Refusal::internal(error.to_string()))?;
    Ok(CheckpointResponse {
        checkpoint: Some(proto::Checkpoint {
            context_id: request.context_id,
            size: position.size.0,
            root: convert::hash(&position.root),
            lamport_clock: made.lamport.0,
            epoch: position.epoch.0,
            lineage: Bytes::copy_from_slice(&position.lineage.0),
            hash_suite: convert::suite(made.suite),
        }),
        signed_note: node.signer.sign(&statement),
        verifier_key: node.signer.verifier_key().to_string(),
    })
}

async fn inclusion(node: &Node, request: InclusionProofRequest) -> Result<InclusionProofResponse, Refusal> {
    let context = ContextId::new(&request.context_id)?;
    if request.sequence == 0 {
        return Err(Refusal::field("sequence", "sequence is 0: entries are numbered from 1"));
    }
    let (sequence, size) = (Sequence(request.sequence), size_or_newest(request.size));
    let proven = node.read(move |ledger| ledger.prove_inclusion(&context, sequence, size)).await?;
    Ok(InclusionProofResponse {
        sequence: request.sequence,
        size: proven.proof.size,
        root: convert::hash(&proven.root),
        content_hash: convert::hash(&proven.content_hash),
        hashes: convert::hashes(&proven.proof.hashes),
        hash_suite: convert::suite(proven.suite),
    })
}

async fn consistency(
    node: &Node,
    request: ConsistencyProofRequest,
) -> Result<ConsistencyProofResponse, Refusal> {
    let context = ContextId::new(&request.context_id)?;
    let (old, new) = (Size(request.old_size), size_or_newest(request.new_size));
    if new.is_some_and(|new| new < old) {
        let message = format!("old_size {} is over new_size {}: swap them", old, request.new_size);
        return Err(Refusal::field("old_size", message));
    }
    let proven = node.read(move |ledger| ledger.prove_consistency(&context, old, new)).await?;
    Ok(ConsistencyProofResponse {
        old_size: proven.proof.old_size,
        new_size: proven.proof.new_size,
        old_root: convert::hash(&proven.old_root),
        new_root: convert::hash(&proven.new_root),
        hashes: convert::hashes(&proven.proof.hashes),
        hash_suite: convert::suite(proven.suite),
    })
}

async fn forks(node: &Node, request: ForksRequest) -> Result<ForksResponse, Refusal> {
    let context = match request.context_id.as_str() {
        "" => None,
        name => Some(ContextId::new(name)?),
    };
    let after = match request.after.as_ref() {
        [] => None,
        bytes => Some(ForkCursor::from_bytes(bytes.try_into().map_err(|_| {
            Refusal::field("after", "after is not what a response gave as next: send that, or leave it empty")
        })?)),
    };
    let (usual, most) = limits::FORKS;
    let limit = if request.limit == 0 { usual } else { (request.limit as usize).min(most) };
    let fit = (node.config.max_response.get() - limits::RESPONSE_SLACK) / limits::FORK_BYTES;
    let list = node.read(move |ledger| ledger.forks(context.as_ref(), after, limit.min(fit.max(1)))).await?;
    Ok(ForksResponse {
        forks: list.forks.iter().map(convert::fork).collect(),
        next: list.next.map(|next| Bytes::copy_from_slice(&next.to_bytes())).unwrap_or_default(),
    })
}

/// A fork's entries being read, a page when the client has room for one.
struct ForkReading {
    node: Arc<Node>,
    context: ContextId,
    fork: u64,
    after: Sequence,
}

impl ForkReading {
    fn check(node: Arc<Node>, request: &ForkEntriesRequest) -> Result<Self, Refusal> {
        node.serving()?;
        let context = ContextId::new(&request.context_id)?;
        Ok(Self { node, context, fork: request.fork, after: Sequence(request.after_sequence) })
    }

    /// The next page, and what is left to read.
    async fn next(mut self) -> Result<(ForkPage, Option<Self>), Refusal> {
        let mut bytes = call::page_bytes(&self.node.memory, limits::PAGE_BYTES);
        loop {
            self.node.serving()?;
            // The page, and the message that is made of it.
            let reserved = call::reserve(call::current(), 2 * bytes).await?;
            let (context, fork) = (self.context.clone(), self.fork);
            let filter = Filter {
                key: None,
                after: self.after,
                limit: limits::PAGE_ENTRIES,
                max_bytes: bytes,
                max_first: bytes,
            };
            let page = self.node.read(move |ledger| ledger.fork_entries(&context, fork, &filter)).await?;
            self.after = page.covered;
            match page.larger {
                // It waits for the room that the next entry takes.
                Some(larger) if page.entries.is_empty() => bytes = larger,
                _ => {
                    let mut entries = convert::entries(page.entries);
                    for entry in &mut entries {
                        entry.context_id.clear();
                    }
                    let answer = ForkPage { entries };
                    reserved.hand_over(2 * answer.encoded_len());
                    return Ok((answer, page.more.then_some(self)));
                }
            }
        }
    }
}
