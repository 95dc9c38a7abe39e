//! `converge.ledger.v1.IntegrityService`: what can be proven about a context.

use std::sync::Arc;

use ledger_core::{ContextId, Sequence, Size, checkpoint::Checkpoint};
use ledger_proto::ledger::v1::{
    self as proto, CheckpointRequest, CheckpointResponse, ConsistencyProofRequest, ConsistencyProofResponse,
    ForksRequest, ForksResponse, InclusionProofRequest, InclusionProofResponse,
    integrity_service_server::IntegrityService,
};
use tonic::{Request, Response, Status};
use tracing::debug_span;

use crate::{convert, metrics::Rpc, node::Node, status::Refusal};

/// The service.
#[derive(Debug, Clone)]
pub struct Integrity(pub Arc<Node>);

#[tonic::async_trait]
impl IntegrityService for Integrity {
    async fn checkpoint(
        &self,
        request: Request<CheckpointRequest>,
    ) -> Result<Response<CheckpointResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("checkpoint", context = request.context_id, size = request.size);
        self.0.answer(Rpc::Checkpoint, span, checkpoint(&self.0, request)).await
    }

    async fn inclusion_proof(
        &self,
        request: Request<InclusionProofRequest>,
    ) -> Result<Response<InclusionProofResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("inclusion proof", context = request.context_id, sequence = request.sequence);
        self.0.answer(Rpc::InclusionProof, span, inclusion(&self.0, request)).await
    }

    async fn consistency_proof(
        &self,
        request: Request<ConsistencyProofRequest>,
    ) -> Result<Response<ConsistencyProofResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("consistency proof", context = request.context_id, old = request.old_size);
        self.0.answer(Rpc::ConsistencyProof, span, consistency(&self.0, request)).await
    }

    async fn forks(&self, request: Request<ForksRequest>) -> Result<Response<ForksResponse>, Status> {
        let work = async {
            let context_id = request.into_inner().context_id;
            if !context_id.is_empty() {
                ContextId::new(&context_id)?;
            }
            // A single node is the only writer of its contexts: no history can leave the canonical one.
            Ok(ForksResponse { forks: Vec::new() })
        };
        self.0.answer(Rpc::Forks, debug_span!("forks"), work).await
    }
}

/// 0 stands for the newest.
fn size_or_newest(size: u64) -> Option<Size> {
    (size != 0).then_some(Size(size))
}

async fn checkpoint(node: &Node, request: CheckpointRequest) -> Result<CheckpointResponse, Refusal> {
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
            lineage: bytes::Bytes::copy_from_slice(&position.lineage.0),
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
