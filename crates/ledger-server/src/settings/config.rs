//! The settings of a node, and their defaults.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ledger_core::limits::{CLIENT_MESSAGE, MESSAGE_HEADROOM};
use serde::{Deserialize, Serialize};

use crate::{
    limits,
    settings::units::{ByteSize, HumanDuration},
};

/// The effective settings. Each key may stand in the file under its name here, in the environment as
/// `LEDGER_` and its name in capitals, and on the command line with dashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the data is: one directory for one node.
    pub data_dir: PathBuf,
    /// Address of the gRPC services; port 0 lets the system choose.
    pub grpc_listen: SocketAddr,
    /// Address of probes, metrics and console; port 0 lets the system choose.
    pub http_listen: SocketAddr,
    /// Written when the node serves: a JSON object with the bound addresses and the process id.
    pub ready_file: Option<PathBuf>,
    /// Name of the cluster: the first part of a checkpoint's origin.
    pub cluster: String,
    /// The node's stable name in its cluster; without it, a node by itself.
    pub node_id: Option<String>,
    /// UDP address that gossip listens at; port 0 lets the system choose.
    pub gossip_listen: SocketAddr,
    /// UDP address that others reach this node's gossip at, if it is not the one it listens at.
    pub gossip_advertise: Option<SocketAddr>,
    /// `host:port` that others reach the gRPC services at, if it is not the one they listen at.
    pub grpc_advertise: Option<String>,
    /// Where to look for other nodes: `host:port`; a name may stand for many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seeds: Vec<String>,
    /// The cluster's keys, one a line, the one to seal with first. Read again on SIGHUP.
    pub cluster_key_file: Option<PathBuf>,
    /// Gossips in plain over a network, without keys.
    pub insecure_gossip: bool,
    /// Copies there should be of each entry.
    pub copies: usize,
    /// Copies after which an append is acknowledged; unset: see [`Config::min_copies`].
    pub min_copies: Option<usize>,
    /// Where the node stands: a zone or rack.
    pub zone: Option<String>,
    /// The nodes that form the cluster the first time; empty: whoever is there, once they are `copies`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub first_nodes: Vec<String>,
    /// How often a node gossips.
    pub gossip_interval: HumanDuration,
    /// How long a node may be away before its place is given to another.
    pub placement_grace: HumanDuration,
    /// How old what readers are shown may be when a node cannot tell; 0: as old as it is.
    pub max_staleness: HumanDuration,
    /// How long files may be damaged for good before a member of a cluster has itself replaced; 0: never.
    pub replace_damaged: HumanDuration,
    /// Who may have the node drain, leave for good, and go on without lost members.
    pub operators: Operators,
    /// How often nodes compare what they keep.
    pub anti_entropy_interval: HumanDuration,
    /// Bytes per second that catching up may take; 0: no limit.
    pub catch_up_rate: ByteSize,
    /// When an append is acknowledged.
    pub durability: DurabilityMode,
    /// How often to sync with durability `interval`.
    pub sync_interval: HumanDuration,
    /// Hash suite of contexts created from now on.
    pub hash_suite: Suite,
    /// Largest entry, as it is encoded in a message: payload, names, metadata and some numbers.
    pub max_entry: ByteSize,
    /// Most connections of gRPC clients.
    pub max_connections: usize,
    /// How far above a context's own Lamport time the time received with an append may be.
    pub max_lamport_ahead: u64,
    /// Writer threads; 0: one per CPU, at most 4.
    pub lanes: usize,
    /// Memory that the node is to keep to; the next three, and `max_in_flight`, are parts of it unless they are set.
    pub memory: ByteSize,
    /// `RocksDB`'s block cache.
    pub block_cache: ByteSize,
    /// Memory for writes not yet in table files.
    pub write_buffer: ByteSize,
    /// Memory for the heads of contexts in use.
    pub head_cache: ByteSize,
    /// Bytes per second the background scrub reads; 0 turns it off.
    pub scrub_rate: ByteSize,
    /// Pause between two passes of the scrub.
    pub scrub_pause: HumanDuration,
    /// Largest answer of a unary Get: clients refuse messages over 4 MiB unless told otherwise.
    pub max_response: ByteSize,
    /// Largest snapshot in one message (unary Snapshot and Load).
    pub max_snapshot_message: ByteSize,
    /// Most bytes of appends accepted and not yet acknowledged, over all clients.
    pub max_in_flight: ByteSize,
    /// How long a call may take whose client sets no deadline.
    pub call_timeout: HumanDuration,
    /// How long a shutdown waits for requests to end.
    pub shutdown_grace: HumanDuration,
    /// Whether the node leaves its cluster for good when it is asked to stop.
    pub leave_on_shutdown: bool,
    /// How long a shutdown waits until others have taken what a node keeps that leaves for good.
    pub leave_grace: HumanDuration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged: a level, or directives as `info,ledger_server=debug`.
    pub log: String,
    /// TLS: the node's certificate chain, PEM.
    pub tls_cert: Option<PathBuf>,
    /// TLS: the private key of the certificate, PEM.
    pub tls_key: Option<PathBuf>,
    /// TLS: clients must show a certificate of this authority, PEM.
    pub tls_client_ca: Option<PathBuf>,
    /// If the write-ahead log was cut short: start all the same with what is left, up to the number that the refusal names.
    pub accept_lost_writes: Option<u64>,
    /// Shuts down when standard input ends: for who starts nodes as its children, and may be killed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exit_when_stdin_closes: bool,
    /// For tests of the supervision only: makes a part of the node panic once.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub test_panic: Option<TestPanic>,
}

/// When an append is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DurabilityMode {
    /// When it is synced to disk.
    Always,
    /// When it is written; synced every `sync_interval`. A power loss may take the last interval.
    Interval,
    /// When it is written; the operating system decides when to sync.
    Never,
}

/// A hash suite by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// BLAKE3.
    Blake3,
    /// SHA-256, for the tools of public transparency logs.
    Sha256,
}

/// Who may have a node do what is an operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Operators {
    /// Whoever calls from a loopback address, or proves to have the cluster's key.
    Loopback,
    /// Only who proves to have the cluster's key: where a proxy on the node's machine passes on calls of others, all come from
    /// loopback addresses.
    Key,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which part panics: for tests only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TestPanic {
    /// The HTTP server, soon after its first start.
    Console,
    /// Every watcher that meets an entry of the key `test-panic`.
    Watch,
    /// The lane of the store that meets an append of the key `test-panic`.
    Lane,
}

impl Default for Config {
    fn default() -> Self {
        let store = ledger_store::Options::default();
        Self {
            data_dir: "./data".into(),
            grpc_listen: SocketAddr::from(([0, 0, 0, 0], 50051)),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 50080)),
            ready_file: None,
            cluster: "converge".into(),
            node_id: None,
            gossip_listen: SocketAddr::from(([0, 0, 0, 0], 50052)),
            gossip_advertise: None,
            grpc_advertise: None,
            seeds: Vec::new(),
            cluster_key_file: None,
            insecure_gossip: false,
            copies: 3,
            min_copies: None,
            zone: None,
            first_nodes: Vec::new(),
            gossip_interval: HumanDuration(Duration::from_millis(250)),
            placement_grace: HumanDuration::seconds(600),
            max_staleness: HumanDuration::seconds(10),
            replace_damaged: HumanDuration::seconds(300),
            operators: Operators::Loopback,
            anti_entropy_interval: HumanDuration::seconds(10),
            catch_up_rate: ByteSize(0),
            durability: DurabilityMode::Always,
            sync_interval: HumanDuration(Duration::from_millis(100)),
            hash_suite: Suite::Blake3,
            max_entry: ByteSize(store.max_entry as u64),
            max_connections: limits::CONNECTIONS,
            max_lamport_ahead: store.max_lamport_ahead,
            lanes: store.lanes,
            memory: ByteSize::mib(2048),
            block_cache: ByteSize(store.block_cache as u64),
            write_buffer: ByteSize(store.write_buffer as u64),
            head_cache: ByteSize(store.head_cache as u64),
            scrub_rate: ByteSize(store.scrub_rate),
            scrub_pause: HumanDuration(store.scrub_pause),
            max_response: ByteSize::mib(4),
            max_snapshot_message: ByteSize::mib(64),
            max_in_flight: ByteSize::mib(256),
            call_timeout: HumanDuration::seconds(30),
            shutdown_grace: HumanDuration::seconds(10),
            leave_on_shutdown: false,
            leave_grace: HumanDuration::seconds(600),
            log_format: LogFormat::Text,
            log: "info".into(),
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            accept_lost_writes: None,
            exit_when_stdin_closes: false,
            test_panic: None,
        }
    }
}

impl Config {
    /// Largest message with entries for a client: larger entries than clients take by default need larger ones.
    pub fn max_message(&self) -> usize {
        let needed = self.max_entry.get().saturating_add(MESSAGE_HEADROOM);
        self.max_response.get().max(needed).max(CLIENT_MESSAGE)
    }

    /// Copies after which an append is acknowledged: as set, else 2, or all if there should be fewer.
    pub fn min_copies(&self) -> usize {
        self.min_copies.unwrap_or_else(|| self.copies.min(2))
    }

    /// Where others reach the gRPC services, `host:port`; `None` if that is not known.
    pub fn advertised_grpc(&self, bound: SocketAddr) -> Option<String> {
        let bound = || (!bound.ip().is_unspecified()).then(|| bound.to_string());
        self.grpc_advertise.clone().or_else(bound)
    }

    /// The name under which a node signs: `<cluster>/<storage id>`.
    pub fn signer_name(&self, storage_id: &str) -> String {
        format!("{}/{storage_id}", self.cluster)
    }
}
