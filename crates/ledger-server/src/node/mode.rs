//! Whether a node runs alone or as a member of a cluster.

use std::{net::SocketAddr, sync::Arc};

use ledger_cluster::{
    Cluster,
    membership::{NodeLoad, Readiness},
};
use ledger_core::{
    ContextId,
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::{Location, Member, Replica};

use crate::settings::config::Config;

/// Whether a node runs alone or as a member of a cluster.
#[derive(Debug)]
pub enum NodeMode {
    /// Alone: it owns every slot and keeps the only copy.
    Standalone(Standalone),
    /// A member of a cluster.
    Clustered(Arc<Cluster>),
}

/// A node that runs alone. The id of its data directory stands for the name that it has no need of.
#[derive(Debug)]
pub struct Standalone {
    /// Stands for the node's name.
    pub storage_id: String,
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

    /// The node, as the contract describes a member.
    pub fn member(&self, readiness: Readiness, load: NodeLoad) -> Member {
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

    /// A slot, all of which are here; `context` if it is asked for by one.
    pub fn location(&self, slot: Slot, context: Option<&ContextId>) -> Location {
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
    /// The cluster, if the node is a member of one.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        match self {
            Self::Standalone(_) => None,
            Self::Clustered(cluster) => Some(cluster),
        }
    }
}
