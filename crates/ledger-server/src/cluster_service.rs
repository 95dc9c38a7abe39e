//! `converge.ledger.v1.ClusterService`: who holds what. One node holds everything.

use std::sync::Arc;

use ledger_core::limits::MAX_CONTEXT_ID;
use ledger_proto::ledger::v1::{ContextsRequest, ContextsResponse, cluster_service_server::ClusterService};
use prost::Message as _;
use tonic::{Request, Response, Status};
use tracing::debug_span;

use crate::{convert, limits, metrics::Rpc, node::Node, status::Refusal};

/// The service.
#[derive(Debug, Clone)]
pub struct Cluster(pub Arc<Node>);

#[tonic::async_trait]
impl ClusterService for Cluster {
    async fn contexts(
        &self,
        request: Request<ContextsRequest>,
    ) -> Result<Response<ContextsResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("contexts", prefix = request.prefix, after = request.after);
        self.0.answer(Rpc::Contexts, span, contexts(&self.0, request)).await
    }
}

/// A page of the listing, cut at a whole context to fit a message.
pub(crate) async fn contexts(node: &Node, request: ContextsRequest) -> Result<ContextsResponse, Refusal> {
    for (field, text) in [("prefix", &request.prefix), ("after", &request.after)] {
        if text.len() > MAX_CONTEXT_ID {
            let message = format!("{field} has {} bytes: at most {MAX_CONTEXT_ID} are allowed", text.len());
            return Err(Refusal::field(field, message));
        }
    }
    let (usual, most) = limits::LISTING;
    let limit = if request.limit == 0 { usual } else { (request.limit as usize).min(most) };
    // One more than asked for tells whether there are more.
    let found = node.read(move |ledger| ledger.contexts(&request.prefix, &request.after, limit + 1)).await?;
    let max_bytes = node.config.max_response.get() - limits::RESPONSE_SLACK;
    let (total, mut bytes) = (found.len(), 0);
    let contexts: Vec<_> = found
        .iter()
        .take(limit)
        .map(convert::context_info)
        .take_while(|info| {
            bytes += info.encoded_len() + 4;
            bytes <= max_bytes
        })
        .collect();
    Ok(ContextsResponse { more: contexts.len() < total, contexts })
}
