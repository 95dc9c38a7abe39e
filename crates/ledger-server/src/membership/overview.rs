//! What a node says of itself and of its cluster: the members, and where slots are. A node that runs alone answers the same
//! questions.

use std::sync::Arc;

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use ledger_cluster::{membership::Readiness, ownership::routes::Routes};
use ledger_core::{
    ContextId,
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::{ClusterChange, Location, MembersResponse, OtherCluster};
use prost::Message as _;

use crate::{
    grpc::call, grpc::status::Refusal, limits, membership::changes, membership::cluster_view, node::Node,
    node::mode::NodeMode,
};

impl Node {
    /// The nodes, as this one sees them.
    pub fn members(&self) -> MembersResponse {
        match &self.mode {
            NodeMode::Standalone(standalone) => {
                let readiness = if self.serving().is_ok() { Readiness::Ready } else { Readiness::Leaving };
                MembersResponse {
                    members: vec![standalone.member(readiness, self.meter.load())],
                    node_id: standalone.storage_id.clone(),
                    cluster_id: self.config.cluster.clone(),
                    copies: 1,
                    min_copies: 1,
                    identity: String::new(),
                    others: Vec::new(),
                }
            }
            NodeMode::Clustered(cluster) => {
                let (view, config) = (Arc::clone(&cluster.view().borrow()), cluster.config());
                let identity = cluster.membership().identity();
                let others = identity.others().into_iter().map(|other| OtherCluster {
                    identity: other.id.to_string(),
                    heard_at: other.from.to_string(),
                });
                MembersResponse {
                    members: cluster_view::members(&view),
                    node_id: cluster.me().node.to_string(),
                    cluster_id: config.membership.cluster_id.clone(),
                    copies: u32::try_from(config.replication_factor).unwrap_or(u32::MAX),
                    min_copies: u32::try_from(config.write_quorum).unwrap_or(u32::MAX),
                    identity: identity.cluster().map_or_else(String::new, |id| id.to_string()),
                    others: others.collect(),
                }
            }
        }
    }

    /// The nodes that keep copies of what this one keeps too, and are not heard.
    pub fn away(&self) -> Vec<String> {
        let NodeMode::Clustered(cluster) = &self.mode else { return Vec::new() };
        let (view, routes) = (Arc::clone(&cluster.view().borrow()), Arc::clone(&cluster.routes().borrow()));
        let away = cluster_view::away(&view, &routes, cluster.me());
        away.into_iter().map(ToString::to_string).collect()
    }

    /// Where a slot is; `context` if it is asked for by one.
    pub fn location(&self, slot: Slot, context: Option<&ContextId>) -> Location {
        match &self.mode {
            NodeMode::Standalone(standalone) => standalone.location(slot, context),
            NodeMode::Clustered(cluster) => {
                let (view, routes) = (cluster.view(), cluster.routes());
                let found = cluster_view::slot_location(routes.borrow().get(slot), &cluster.me().node);
                cluster_view::location(&view.borrow(), slot, context, found)
            }
        }
    }

    /// Everything, then what changes of it. Never ends by itself.
    pub fn changes(self: &Arc<Self>) -> BoxStream<'static, Result<ClusterChange, Refusal>> {
        match &self.mode {
            NodeMode::Standalone(_) => {
                let node = Arc::clone(self);
                let change = async move {
                    let reserved = call::reserve(call::current(), limits::CLUSTER).await?;
                    let NodeMode::Standalone(standalone) = &node.mode else {
                        return Ok(ClusterChange::default());
                    };
                    let members = vec![standalone.member(Readiness::Ready, node.meter.load())];
                    let slots = (0..SLOTS).filter_map(Slot::new).map(|slot| standalone.location(slot, None));
                    let change = ClusterChange { members, slots: slots.collect() };
                    reserved.hand_over(2 * change.encoded_len());
                    Ok(change)
                };
                stream::once(change).chain(stream::pending()).boxed()
            }
            NodeMode::Clustered(cluster) => {
                let me = cluster.me().node.clone();
                let locate =
                    move |routes: &Arc<Routes>, slot| cluster_view::slot_location(routes.get(slot), &me);
                changes::changes(cluster.view(), cluster.routes(), locate).map(Ok).boxed()
            }
        }
    }
}
