//! The settings that concern a cluster: what is right, and what they come to.

use std::{fs, io::Read as _, net::SocketAddr, path::Path, time::Duration};

use ledger_cluster::{
    config::{ClusterConfig, PeerTls},
    membership::seal::Keyring,
    membership::seeds::Seeds,
    membership::{Detector, Facts, MembershipConfig, NodeLoad, Readiness, facts::MAX_TEXT},
};
use ledger_core::node::{Incarnation, MAX_REPLICAS, NodeId, StorageId};

use super::{Config, ConfigError};
use crate::{memory::MemoryPlan, settings::units::HumanDuration};

#[cfg(test)]
mod tests;

/// Longest key file that is read, bytes: eight keys and a page of comments fit.
const MAX_KEY_FILE: u64 = 64 << 10;
/// How long a node that is away is remembered, at least.
const REMEMBERED: Duration = Duration::from_hours(1);

/// Checks what can be without opening a file. `wrong` makes the error of a key, its value and a reason.
pub(super) fn check(
    config: &Config,
    wrong: impl Fn(&'static str, String, String) -> ConfigError,
) -> Result<(), ConfigError> {
    let quoted = |text: &str| format!("`{text}`");
    let listed = |texts: &[String]| format!("`{}`", texts.join(","));
    if !(1..=MAX_REPLICAS).contains(&config.copies) {
        return Err(wrong("copies", config.copies.to_string(), format!("it must be 1 to {MAX_REPLICAS}")));
    }
    if !(1..=config.copies).contains(&config.min_copies()) {
        let reason =
            format!("it must be 1 to {}: more copies than there should be are never reached", config.copies);
        return Err(wrong("min_copies", config.min_copies().to_string(), reason));
    }
    let (tick, second, hour) = (Duration::from_millis(10), Duration::from_secs(1), Duration::from_hours(1));
    let times = [
        ("gossip_interval", config.gossip_interval, tick, Duration::from_mins(1)),
        ("placement_grace", config.placement_grace, second, 7 * 24 * hour),
        ("anti_entropy_interval", config.anti_entropy_interval, 10 * tick, hour),
    ];
    for (key, value, least, most) in times {
        if !(least..=most).contains(&value.0) {
            let reason = format!("it must be {} to {}", HumanDuration(least), HumanDuration(most));
            return Err(wrong(key, value.to_string(), reason));
        }
    }
    let staleness = config.max_staleness;
    if !staleness.0.is_zero() && !(second..=hour).contains(&staleness.0) {
        let reason = format!(
            "it must be {} to {}, or 0s: as old as it is",
            HumanDuration(second),
            HumanDuration(hour)
        );
        return Err(wrong("max_staleness", staleness.to_string(), reason));
    }
    if let Some(zone) = &config.zone
        && !((1..=MAX_TEXT).contains(&zone.len())
            && zone.chars().all(|c| !c.is_control() && !c.is_whitespace()))
    {
        return Err(wrong(
            "zone",
            quoted(zone),
            format!("it must have 1 to {MAX_TEXT} bytes without blanks"),
        ));
    }
    if let Some(address) = &config.grpc_advertise
        && Seeds::parse(&[address]).is_err()
    {
        let reason = "it must be host:port, address:port or [IPv6 address]:port".to_owned();
        return Err(wrong("grpc_advertise", quoted(address), reason));
    }
    if let Err(error) = Seeds::parse(&config.seeds) {
        return Err(wrong("seeds", listed(&config.seeds), error.to_string()));
    }
    if let Err(reason) = first_nodes(config) {
        return Err(wrong("first_nodes", listed(&config.first_nodes), reason));
    }

    let Some(node_id) = &config.node_id else { return check_lone(config, wrong) };
    if let Err(error) = NodeId::new(node_id) {
        return Err(wrong("node_id", quoted(node_id), error.to_string()));
    }
    let listen = config.gossip_listen;
    if config.cluster_key_file.is_none() && !config.insecure_gossip && !listen.ip().is_loopback() {
        let reason = "gossip over a network needs keys: write one of `openssl rand -base64 32` to a file that every node \
                      of the cluster gets; or, where the network is trusted as a whole, set insecure_gossip = true";
        return Err(wrong("cluster_key_file", "not set".to_owned(), reason.to_owned()));
    }
    let advertised = config.gossip_advertise.unwrap_or(listen);
    if advertised.ip().is_unspecified() {
        let key = if config.gossip_advertise.is_some() { "gossip_advertise" } else { "gossip_listen" };
        let reason = "other nodes cannot reach it there: set gossip_advertise to an IP:PORT where they can";
        return Err(wrong(key, advertised.to_string(), reason.to_owned()));
    }
    Ok(())
}

/// A node that was meant for a cluster and forgot its name must not write by itself.
fn check_lone(
    config: &Config,
    wrong: impl Fn(&'static str, String, String) -> ConfigError,
) -> Result<(), ConfigError> {
    let set = [
        ("seeds", (!config.seeds.is_empty()).then(|| config.seeds.join(","))),
        ("first_nodes", (!config.first_nodes.is_empty()).then(|| config.first_nodes.join(","))),
        ("cluster_key_file", config.cluster_key_file.as_ref().map(|path| path.display().to_string())),
        ("gossip_advertise", config.gossip_advertise.map(|address| address.to_string())),
    ];
    for (key, value) in set {
        if let Some(value) = value {
            let reason = "a node takes part in a cluster under its own name: set node_id too, or remove this";
            return Err(wrong(key, format!("`{value}`"), reason.to_owned()));
        }
    }
    Ok(())
}

fn first_nodes(config: &Config) -> Result<Vec<NodeId>, String> {
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
    /// Copies after which an append is acknowledged: as set, else 2, or all if there should be fewer.
    pub fn min_copies(&self) -> usize {
        self.min_copies.unwrap_or_else(|| self.copies.min(2))
    }

    /// How the node takes part in its cluster; `None` for a node by itself. `grpc` is the address its gRPC
    /// services are bound to. Reads the files of keys and certificates: blocks, shortly.
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
            tls: self.peer_tls()?,
        }))
    }

    /// Where others reach the gRPC services, `host:port`; `None` if that is not known.
    pub fn advertised_grpc(&self, bound: SocketAddr) -> Option<String> {
        let bound = || (!bound.ip().is_unspecified()).then(|| bound.to_string());
        self.grpc_advertise.clone().or_else(bound)
    }

    /// How nodes reach each other's gRPC services; `None`: without TLS.
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
