//! How a node takes part in its cluster, by its settings and the files that they name.

use std::{fs, io::Read as _, net::SocketAddr, path::Path, time::Duration};

use ledger_cluster::{
    config::{ClusterConfig, PeerTls},
    membership::seal::Keyring,
    membership::{Detector, Facts, MembershipConfig, NodeLoad, Readiness},
};
use ledger_core::node::{Incarnation, NodeId, StorageId};

use crate::settings::{config::Config, error::ConfigError, memory_plan::MemoryPlan};

#[cfg(test)]
mod tests;

/// Longest key file that is read, bytes: eight keys and a page of comments fit.
const MAX_KEY_FILE: u64 = 64 << 10;
/// How long a node that is away is remembered, at least.
const REMEMBERED: Duration = Duration::from_hours(1);

/// The nodes that form the cluster the first time. Otherwise what is wrong with a name.
pub(super) fn first_nodes(config: &Config) -> Result<Vec<NodeId>, String> {
    let mut nodes = Vec::new();
    for text in &config.first_nodes {
        let node = NodeId::new(text).map_err(|error| error.to_string())?;
        if nodes.contains(&node) {
            return Err(format!("{node} is named twice"));
        }
        nodes.push(node);
    }
    Ok(nodes)
}

impl Config {
    /// How the node takes part in its cluster; `None` for a node by itself. `grpc` is the address its gRPC
    /// services are bound to. Reads the files of keys and certificates: blocks, shortly.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting or the file that cannot be used.
    pub fn cluster_config(
        &self,
        storage_id: StorageId,
        incarnation: Incarnation,
        grpc: SocketAddr,
    ) -> Result<Option<ClusterConfig>, ConfigError> {
        let Some(node_id) = &self.node_id else { return Ok(None) };
        let merge = |error: &dyn std::fmt::Display| ConfigError::Merge(error.to_string());
        let node_id = NodeId::new(node_id).map_err(|error| merge(&error))?;
        let grpc_address = self.advertised_grpc(grpc).ok_or(ConfigError::GrpcAddress(grpc))?;
        let keyring = match &self.cluster_key_file {
            Some(path) => read_keys(path)?,
            None => Keyring::none(),
        };
        let gossip_interval = self.gossip_interval.0;
        let membership = MembershipConfig {
            gossip_advertise: self.gossip_advertise,
            seeds: self.seeds.clone(),
            keyring,
            gossip_interval,
            detector: Detector::for_interval(gossip_interval),
            // Whoever may come back to its place must not be forgotten before.
            dead_node_grace: (2 * self.placement_grace.0).max(REMEMBERED),
            ..MembershipConfig::new(&self.cluster, node_id, incarnation, self.gossip_listen)
        };
        let facts = Facts {
            grpc_address,
            storage_id,
            readiness: Readiness::Joining,
            zone: self.zone.clone().unwrap_or_default(),
            format: ledger_store::FORMAT,
            load: NodeLoad::default(),
            // Joining says them.
            opened: None,
            durable: None,
            decommission: None,
            owned: Vec::new(),
            halted: Vec::new(),
        };
        let plan = MemoryPlan::of(self.memory);
        Ok(Some(ClusterConfig {
            membership,
            facts,
            replication_factor: self.copies,
            write_quorum: self.min_copies(),
            first_nodes: first_nodes(self).map_err(|reason| merge(&reason))?,
            placement_grace: self.placement_grace.0,
            max_staleness: Some(self.max_staleness.0).filter(|bound| !bound.is_zero()),
            anti_entropy_interval: self.anti_entropy_interval.0,
            catch_up_rate: self.catch_up_rate.0,
            replication: plan.replication.max(self.max_in_flight).get(),
            replicated: plan.replicated.get(),
            serving: plan.serving.get(),
            tls: self.peer_tls()?,
        }))
    }

    /// How nodes reach each other's gRPC services; `None`: without TLS. Reads files: blocks, shortly.
    ///
    /// # Errors
    /// [`ConfigError::Tls`] names the file that cannot be read.
    pub fn peer_tls(&self) -> Result<Option<PeerTls>, ConfigError> {
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        let read = |key: &'static str, path: &Path| {
            fs::read(path).map_err(|reason| ConfigError::Tls { key, path: path.to_owned(), reason })
        };
        let ca = self.tls_client_ca.as_ref().map(|path| read("tls_client_ca", path)).transpose()?;
        Ok(Some(PeerTls { cert: read("tls_cert", cert)?, key: read("tls_key", key)?, ca }))
    }
}

/// Reads the cluster's keys. No message shows any of them.
///
/// # Errors
/// [`ConfigError::Keys`]: the file cannot be read, is too large, or holds something else.
pub fn read_keys(path: &Path) -> Result<Keyring, ConfigError> {
    let wrong = |reason: String| ConfigError::Keys { path: path.to_owned(), reason };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    file.take(MAX_KEY_FILE + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > MAX_KEY_FILE {
        return Err(wrong(format!("it has more than {MAX_KEY_FILE} bytes")));
    }
    Keyring::parse(&text).map_err(|error| wrong(error.to_string()))
}
