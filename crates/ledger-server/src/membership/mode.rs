//! How a node stands: by itself, or in a cluster.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use ledger_cluster::{
    Cluster,
    membership::{NodeLoad, Readiness},
    ownership::routes::Routes,
};
use ledger_core::{
    ContextId,
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::{
    ClusterChange, DrainProgress, Location, Member, MembersResponse, OtherCluster, Replica,
};
use prost::Message as _;
use tokio::{sync::watch, time::timeout};
use tonic::Code;

use crate::{
    grpc::call, grpc::status::Refusal, limits, membership::cluster_view, node::Node, settings::config::Config,
};

/// How long a drain waits for others to own what was handed over.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);

/// How a node stands.
#[derive(Debug)]
pub enum NodeMode {
    /// By itself: it owns every slot and keeps the only copy.
    Standalone(Standalone),
    /// In a cluster.
    Clustered(Arc<Cluster>),
}

/// A node by itself. The id of its data directory stands for the name that it has no need of.
#[derive(Debug)]
pub struct Standalone {
    storage_id: String,
    /// Empty if it is not known: clients go on where they asked.
    address: String,
    zone: String,
}

impl Standalone {
    /// A node on a data directory, whose gRPC services are bound to an address.
    pub fn new(config: &Config, storage_id: &str, grpc: SocketAddr) -> Self {
        Self {
            storage_id: storage_id.to_owned(),
            address: config.advertised_grpc(grpc).unwrap_or_default(),
            zone: config.zone.clone().unwrap_or_default(),
        }
    }

    fn member(&self, readiness: Readiness, load: NodeLoad) -> Member {
        Member {
            node_id: self.storage_id.clone(),
            storage_id: self.storage_id.clone(),
            incarnation: 0,
            address: self.address.clone(),
            readiness: readiness.to_string(),
            zone: self.zone.clone(),
            format: ledger_store::FORMAT,
            alive: true,
            slots_owned: SLOTS.into(),
            entries_per_second: load.entries_per_second,
            contexts: load.contexts,
            slots_halted: 0,
        }
    }

    fn location(&self, slot: Slot, context: Option<&ContextId>) -> Location {
        Location {
            context_id: context.map(|context| context.as_str().to_owned()).unwrap_or_default(),
            slot: slot.number().into(),
            owner: self.storage_id.clone(),
            owner_address: self.address.clone(),
            epoch: 0,
            replicas: vec![Replica {
                node_id: self.storage_id.clone(),
                storage_id: self.storage_id.clone(),
                address: self.address.clone(),
                in_step: true,
                alive: true,
            }],
            reason: String::new(),
        }
    }
}

impl NodeMode {
    /// The node's part in its cluster, if it has one.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        match self {
            Self::Standalone(_) => None,
            Self::Clustered(cluster) => Some(cluster),
        }
    }

    /// The nodes, as this one sees them.
    pub fn members(&self, node: &Node) -> MembersResponse {
        match self {
            Self::Standalone(lone) => {
                let readiness = if node.serving().is_ok() { Readiness::Ready } else { Readiness::Leaving };
                MembersResponse {
                    members: vec![lone.member(readiness, node.meter.load())],
                    node_id: lone.storage_id.clone(),
                    cluster_id: node.config.cluster.clone(),
                    copies: 1,
                    min_copies: 1,
                    identity: String::new(),
                    others: Vec::new(),
                }
            }
            Self::Clustered(cluster) => {
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
        let Self::Clustered(cluster) = self else { return Vec::new() };
        let (view, routes) = (Arc::clone(&cluster.view().borrow()), Arc::clone(&cluster.routes().borrow()));
        let away = cluster_view::away(&view, &routes, cluster.me());
        away.into_iter().map(ToString::to_string).collect()
    }

    /// Where a slot is; `context` if it is asked for by one.
    pub fn location(&self, slot: Slot, context: Option<&ContextId>) -> Location {
        match self {
            Self::Standalone(lone) => lone.location(slot, context),
            Self::Clustered(cluster) => {
                let (view, routes) = (cluster.view(), cluster.routes());
                let placed = cluster_view::slot_location(routes.borrow().get(slot), &cluster.me().node);
                cluster_view::location(&view.borrow(), slot, context, placed)
            }
        }
    }

    /// Everything, then what changes of it. Never ends by itself.
    pub fn changes(&self, node: &Arc<Node>) -> BoxStream<'static, Result<ClusterChange, Refusal>> {
        match self {
            Self::Standalone(_) => {
                let node = Arc::clone(node);
                let told = async move {
                    let room = call::reserve(call::current(), limits::CLUSTER).await?;
                    let Self::Standalone(lone) = &node.mode else { return Ok(ClusterChange::default()) };
                    let members = vec![lone.member(Readiness::Ready, node.meter.load())];
                    let slots = (0..SLOTS).filter_map(Slot::new).map(|slot| lone.location(slot, None));
                    let told = ClusterChange { members, slots: slots.collect() };
                    room.hand_over(2 * told.encoded_len());
                    Ok(told)
                };
                stream::once(told).chain(stream::pending()).boxed()
            }
            Self::Clustered(cluster) => {
                let me = cluster.me().node.clone();
                let placed =
                    move |routes: &Arc<Routes>, slot| cluster_view::slot_location(routes.get(slot), &me);
                cluster_view::changes(cluster.view(), cluster.routes(), placed).map(Ok).boxed()
            }
        }
    }

    /// Hands over all slots and owns no more, or owns slots again: how many it owns, until there are none.
    pub async fn drain(
        &self,
        resume: bool,
    ) -> Result<BoxStream<'static, Result<DrainProgress, Refusal>>, Refusal> {
        match self {
            Self::Standalone(_) if resume => {
                Ok(stream::iter([Ok(DrainProgress { owned: SLOTS.into() })]).boxed())
            }
            Self::Standalone(_) => {
                let message = "this node is by itself: there is no other node to hand its slots to; to stop it, stop \
                               the process";
                Err(Refusal::new(Code::FailedPrecondition, message))
            }
            Self::Clustered(cluster) if resume && cluster.decommission_state().borrow().mode.is_some() => {
                let message = "this node leaves the cluster for good: to have it stay, cancel that with `ledgerctl cluster \
                               decommission NODE --cancel`";
                Err(Refusal::new(Code::FailedPrecondition, message))
            }
            Self::Clustered(cluster) => {
                cluster.drain(!resume).await;
                Ok(left(cluster.routes(), resume).map(Ok).boxed())
            }
        }
    }
}

/// How many slots the node owns, whenever that changes, until there are none; of one that resumes, once. Slots
/// that nobody owns for a moment, because another node is taking them over, are waited for, but not for long.
fn left(routes: watch::Receiver<Arc<Routes>>, resume: bool) -> impl Stream<Item = DrainProgress> + Send {
    stream::unfold(Some((routes, None)), move |state| async move {
        let (mut routes, told) = state?;
        let owned = loop {
            let owned = routes.borrow_and_update().owned();
            if told != Some(owned) {
                break owned;
            }
            routes.changed().await.ok()?;
        };
        let is_last = resume || owned == 0;
        if is_last && !resume {
            // Whoever goes on without them finds out by itself.
            let _ = timeout(HANDOVER_TIMEOUT, routes.wait_for(|routes| routes.unowned() == 0)).await;
        }
        let progress = DrainProgress { owned: u32::try_from(owned).unwrap_or(u32::MAX) };
        Some((progress, (!is_last).then_some((routes, Some(owned)))))
    })
}
