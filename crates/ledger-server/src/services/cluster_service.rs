//! `converge.ledger.v1.ClusterService`: who is there, and who holds what.

use std::sync::Arc;

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use ledger_core::{
    ContextId,
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::{
    BroadcastRequest, BroadcastResponse, ClusterChange, ContextsRequest, ContextsResponse,
    DecommissionProgress, DecommissionRequest, DrainProgress, DrainRequest, InterestEvent, JoinRequest,
    LeaveRequest, LeaveResponse, LocateRequest, LocateResponse, MembersRequest, MembersResponse,
    RecoverRequest, RecoverResponse, WatchClusterRequest, cluster_service_server::ClusterService,
};
use ledger_store::limited;
use tonic::{Request, Response, Status};
use tracing::debug_span;

use crate::{
    grpc::admission::too_many_calls, grpc::status::Refusal, limits, membership::admin, membership::operators,
    metrics::Rpc, node::Node, routing::listing, routing::route, services::observe,
};

/// The service.
#[derive(Debug, Clone)]
pub struct Members(pub Arc<Node>);

#[tonic::async_trait]
impl ClusterService for Members {
    async fn contexts(
        &self,
        request: Request<ContextsRequest>,
    ) -> Result<Response<ContextsResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("contexts", prefix = request.prefix, after = request.after);
        self.0.answer(Rpc::Contexts, span, listing::contexts(&self.0, request)).await
    }

    async fn members(&self, _: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        let members = async { Ok(self.0.members()) };
        self.0.answer(Rpc::Members, debug_span!("members"), members).await
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let request = request.into_inner();
        let span = debug_span!("locate", contexts = request.context_ids.len(), slots = request.slots.len());
        self.0.answer(Rpc::Locate, span, async { locate(&self.0, &request) }).await
    }

    type WatchClusterStream = BoxStream<'static, Result<ClusterChange, Status>>;

    async fn watch_cluster(
        &self,
        _: Request<WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        let changes = self.0.memory.calls.try_acquire(limits::CLUSTER_TOLD).map(|told| {
            self.0.changes().inspect(move |_| {
                // What was told is remembered as long as more may be.
                let _ = &told;
            })
        });
        self.stream(Rpc::WatchCluster, changes.ok_or_else(too_many_calls))
    }

    type DrainStream = BoxStream<'static, Result<DrainProgress, Status>>;

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        let by = admin::authorize(self.0.config.operators, &request)
            .map_err(|refusal| self.0.refuse(Rpc::Drain, refusal))?;
        let resume = request.into_inner().resume;
        limited!(info, resume, %by, "asked to drain");
        self.0.serving().map_err(|refusal| self.0.refuse(Rpc::Drain, refusal))?;
        self.stream(Rpc::Drain, self.0.drain(resume).await)
    }

    type DecommissionStream = BoxStream<'static, Result<DecommissionProgress, Status>>;

    async fn decommission(
        &self,
        request: Request<DecommissionRequest>,
    ) -> Result<Response<Self::DecommissionStream>, Status> {
        let by = admin::authorize(self.0.config.operators, &request)
            .map_err(|refusal| self.0.refuse(Rpc::Decommission, refusal))?;
        let request = request.into_inner();
        limited!(info, ?request, %by, "asked to leave for good");
        self.0.serving().map_err(|refusal| self.0.refuse(Rpc::Decommission, refusal))?;
        self.stream(Rpc::Decommission, operators::decommission(&self.0, request).await)
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverResponse>, Status> {
        let by = admin::authorize(self.0.config.operators, &request)
            .map_err(|refusal| self.0.refuse(Rpc::Recover, refusal))?;
        let request = request.into_inner();
        if request.apply {
            limited!(info, lost = request.lost.len(), %by, "asked to go on without members that are lost");
        }
        let span = debug_span!("recover", lost = request.lost.len(), apply = request.apply);
        self.0.answer(Rpc::Recover, span, operators::recover(&self.0, request)).await
    }

    type JoinStream = BoxStream<'static, Result<InterestEvent, Status>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Self::JoinStream>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        self.stream(Rpc::Join, observe::join(&self.0, request.into_inner(), is_forwarded))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let span = debug_span!("leave", context = request.context_id, observer = request.observer);
        self.0.answer(Rpc::Leave, span, observe::leave(&self.0, request, is_forwarded)).await
    }

    async fn broadcast(
        &self,
        request: Request<BroadcastRequest>,
    ) -> Result<Response<BroadcastResponse>, Status> {
        let is_forwarded = route::is_forwarded(request.metadata());
        let request = request.into_inner();
        let span = debug_span!("broadcast", context = request.context_id, from = request.from);
        self.0.answer(Rpc::Broadcast, span, observe::broadcast(&self.0, request, is_forwarded)).await
    }
}

impl Members {
    /// Answers with a stream, which ends with a refusal when the node shuts down.
    fn stream<T: Send + 'static>(
        &self,
        rpc: Rpc,
        items: Result<impl Stream<Item = Result<T, Refusal>> + Send + 'static, Refusal>,
    ) -> Result<Response<BoxStream<'static, Result<T, Status>>>, Status> {
        let node = Arc::clone(&self.0);
        let items = node.serving().and(items).map_err(|refusal| node.refuse(rpc, refusal))?;
        node.metrics.started(rpc);
        let stream = stream::unfold(Some(items.boxed()), move |items| {
            let node = Arc::clone(&node);
            async move {
                let mut items = items?;
                let next = tokio::select! {
                    biased;
                    () = node.draining.cancelled() => Err(Refusal::shutting_down()),
                    next = items.next() => next?,
                };
                match next {
                    Ok(item) => Some((Ok(item), Some(items))),
                    Err(refusal) => Some((Err(node.refuse(rpc, refusal)), None)),
                }
            }
        });
        Ok(Response::new(stream.boxed()))
    }
}

/// Where contexts and slots are.
fn locate(node: &Node, request: &LocateRequest) -> Result<LocateResponse, Refusal> {
    let LocateRequest { context_ids, slots } = request;
    for (field, count, most) in [
        ("context_ids", context_ids.len(), limits::LOCATE_CONTEXTS),
        ("slots", slots.len(), usize::from(SLOTS)),
    ] {
        if count > most {
            return Err(Refusal::field(field, format!("{field} has {count}: at most {most} are allowed")));
        }
    }
    let mut locations = Vec::new();
    for text in context_ids {
        let context = ContextId::new(text)?;
        locations.push(node.location(Slot::of(&context), Some(&context)));
    }
    for &number in slots {
        let slot = u16::try_from(number).ok().and_then(Slot::new).ok_or_else(|| {
            Refusal::field("slots", format!("slot {number} is not there: slots are 0 to {}", SLOTS - 1))
        })?;
        locations.push(node.location(slot, None));
    }
    if context_ids.is_empty() && slots.is_empty() {
        locations.extend((0..SLOTS).filter_map(Slot::new).map(|slot| node.location(slot, None)));
    }
    Ok(LocateResponse { locations })
}
