//! The settings of a node that takes part in a cluster: plain data, checked by whoever made it.

use std::{fmt, time::Duration};

use ledger_core::node::NodeId;

use crate::membership::{Facts, MembershipConfig};

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// How it gossips: its name, the cluster's, addresses, keys.
    pub membership: MembershipConfig,
    /// What it says of itself at first: where its gRPC services are, its zone, its data directory; joining,
    /// and owning nothing. How far the directory goes is filled in.
    pub facts: Facts,
    /// Copies there should be of each slot, 1 to 7.
    pub replication_factor: usize,
    /// Copies after which an append is acknowledged, 1 to `replication_factor`.
    pub write_quorum: usize,
    /// The nodes that form the cluster the first time; empty: whoever is there, once they are `replication_factor`.
    pub first_nodes: Vec<NodeId>,
    /// How long a node may be away before its place is given to another.
    pub placement_grace: Duration,
    /// How old what readers are shown may be, when a node cannot tell; `None`: as old as it is.
    pub max_staleness: Option<Duration>,
    /// How often a node compares what it keeps with the others.
    pub anti_entropy_interval: Duration,
    /// Bytes a second that catching up may take; 0: as many as there are.
    pub catch_up_rate: u64,
    /// Bytes of commits that may wait for other nodes: as many as may be appended and not acknowledged, which replicas that
    /// are needed may lack. One commit may be larger.
    pub replication: usize,
    /// Bytes of other nodes' commits, received and not yet written. One commit may be larger.
    pub replicated: usize,
    /// Bytes of entries on their way to nodes that catch up. One message may be larger.
    pub serving: usize,
    /// How nodes reach each other's gRPC services; `None`: without TLS.
    pub tls: Option<PeerTls>,
}

/// TLS between nodes: each shows its certificate, as a server and as a client.
#[derive(Clone)]
pub struct PeerTls {
    /// This node's certificate chain, PEM.
    pub cert: Vec<u8>,
    /// The key of the certificate, PEM.
    pub key: Vec<u8>,
    /// The authority that the others' certificates are of, PEM; `None`: those that the system trusts.
    pub ca: Option<Vec<u8>>,
}

impl fmt::Debug for PeerTls {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTls").field("has_ca", &self.ca.is_some()).finish_non_exhaustive()
    }
}
