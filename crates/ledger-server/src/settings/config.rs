//! The settings of a node: defaults, then one TOML file, then the environment, then flags.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ledger_core::{
    HashSuite,
    limits::{CLIENT_MESSAGE, MAX_PAYLOAD, MESSAGE_HEADROOM},
};
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::{
    limits,
    memory::{self, MemoryPlan},
    settings::units::{ByteSize, HumanDuration},
};

mod cluster;

pub use cluster::read_keys;

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

/// Why the settings cannot be used. Names the key, and where it was set.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// The file is not TOML, or has an unknown key or a value of a wrong kind.
    #[error("the configuration file {} is wrong: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where, and why.
        reason: String,
    },
    /// The layers do not give a configuration.
    #[error("the configuration is wrong: {0}")]
    Merge(String),
    /// A variable of the environment looks like a setting and is none.
    #[error(
        "the environment has {name}, which is no setting of ledgerd{}: remove it, or correct its name (`ledgerd --help` lists them)",
        meant.as_ref().map(|setting| format!(" (is {setting} meant?)")).unwrap_or_default()
    )]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The variable of a setting whose name is close.
        meant: Option<String>,
    },
    /// A value is out of range.
    #[error("{key} is {value} (set by {source_name}): {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it is set to.
        value: String,
        /// Where it was set.
        source_name: String,
        /// What would be right.
        reason: String,
    },
    /// The cluster's keys cannot be used.
    #[error("cannot use the cluster key file {} (cluster_key_file): {reason}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A TLS file that the cluster needs cannot be read.
    #[error("cannot read the TLS file {} ({key}): {reason}", path.display())]
    Tls {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// Others could not reach the node.
    #[error(
        "grpc_listen is {0}, where other nodes cannot reach it: set grpc_advertise to a host:port where they can"
    )]
    GrpcAddress(SocketAddr),
}

/// One source of settings: a name for messages, and what it sets.
#[derive(Debug, Clone)]
pub struct Layer {
    /// "default", "file …", "environment", "flag".
    pub name: String,
    /// The keys it sets.
    pub values: Table,
}

/// Settings with where each came from.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The settings.
    pub config: Config,
    /// The source of each key that is set.
    pub sources: BTreeMap<String, String>,
}

impl Effective {
    /// Merges layers, the later over the earlier, over the defaults, and checks the result.
    pub fn merge(layers: impl IntoIterator<Item = Layer>) -> Result<Self, ConfigError> {
        let mut merged = defaults()?;
        let mut sources: BTreeMap<_, _> =
            merged.keys().map(|key| (key.clone(), "default".to_owned())).collect();
        for layer in layers {
            for (key, value) in layer.values {
                sources.insert(key.clone(), layer.name.clone());
                merged.insert(key, value);
            }
        }
        let mut config: Config =
            merged.try_into().map_err(|error: toml::de::Error| ConfigError::Merge(error.to_string()))?;
        config.share_out(&mut sources);
        let effective = Self { config, sources };
        effective.check()?;
        Ok(effective)
    }

    /// As TOML, with a comment at each key that says where it came from.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let table = Table::try_from(&self.config).map_err(|error| ConfigError::Merge(error.to_string()))?;
        let mut text = String::from("# The effective configuration of ledgerd.\n");
        for (key, value) in &table {
            let source = self.sources.get(key).map_or("default", String::as_str);
            let _ = writeln!(text, "{:<40} # {source}", format!("{key} = {value}"));
        }
        for (key, example) in NOT_SET {
            if !table.contains_key(key) {
                let _ = writeln!(text, "{:<40} # not set", format!("# {key} = {example}"));
            }
        }
        Ok(text)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let config = &self.config;
        let wrong = |key: &'static str, value: String, reason: String| ConfigError::Value {
            key,
            value,
            source_name: self.sources.get(key).cloned().unwrap_or_else(|| "default".to_owned()),
            reason,
        };
        let sizes = [
            ("memory", config.memory, memory::MIN_MEMORY.0, 1 << 50),
            ("max_entry", config.max_entry, 1, MAX_PAYLOAD as u64),
            ("max_response", config.max_response, limits::MIN_RESPONSE, limits::MAX_MESSAGE),
            ("max_snapshot_message", config.max_snapshot_message, 1 << 10, limits::MAX_MESSAGE),
            ("max_in_flight", config.max_in_flight, config.max_entry.0, u64::from(u32::MAX)),
        ];
        for (key, value, least, most) in sizes {
            if value.0 < least || value.0 > most {
                let reason = format!("it must be {} to {}", ByteSize(least), ByteSize(most));
                return Err(wrong(key, value.to_string(), reason));
            }
        }
        if config.max_connections < limits::MIN_CONNECTIONS {
            let reason = format!("it must be {} at least", limits::MIN_CONNECTIONS);
            return Err(wrong("max_connections", config.max_connections.to_string(), reason));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if config.cluster.is_empty() || config.cluster.len() > 64 || !config.cluster.chars().all(plain) {
            let reason =
                "a cluster's name has 1 to 64 letters, digits, dashes, dots or underscores".to_owned();
            return Err(wrong("cluster", format!("`{}`", config.cluster), reason));
        }
        if config.durability == DurabilityMode::Interval && config.sync_interval.0.is_zero() {
            let reason = "syncing at an interval needs one above zero".to_owned();
            return Err(wrong("sync_interval", config.sync_interval.to_string(), reason));
        }
        let tls = [&config.tls_cert, &config.tls_key];
        if tls.iter().any(|path| path.is_some()) != tls.iter().all(|path| path.is_some()) {
            let reason = "TLS needs tls_cert and tls_key, both".to_owned();
            return Err(wrong("tls_cert", format!("{:?}", config.tls_cert), reason));
        }
        if config.tls_client_ca.is_some() && config.tls_cert.is_none() {
            let reason = "checking clients needs TLS: set tls_cert and tls_key too".to_owned();
            return Err(wrong("tls_client_ca", format!("{:?}", config.tls_client_ca), reason));
        }
        if let Some(number) = config.accept_lost_writes
            && config.node_id.is_some()
            && config.copies > 1
        {
            let reason = "a member of a cluster must not go on with less than it promised: remove its data directory, so that it \
                          joins as a new member and copies what the others hold";
            return Err(wrong("accept_lost_writes", number.to_string(), reason.to_owned()));
        }
        if config.operators == Operators::Key && config.cluster_key_file.is_none() {
            let reason =
                "nobody could prove a key that the node does not have: set cluster_key_file".to_owned();
            return Err(wrong("operators", "key".to_owned(), reason));
        }
        cluster::check(config, wrong)?;
        if let Err(error) = config.log.parse::<tracing_subscriber::EnvFilter>() {
            return Err(wrong("log", format!("`{}`", config.log), error.to_string()));
        }
        Ok(())
    }
}

/// Settings without a default, and how they are written.
const NOT_SET: [(&str, &str); 13] = [
    ("accept_lost_writes", "…"),
    ("ready_file", "\"…\""),
    ("node_id", "\"…\""),
    ("gossip_advertise", "\"…\""),
    ("grpc_advertise", "\"…\""),
    ("seeds", "[\"…\"]"),
    ("cluster_key_file", "\"…\""),
    ("min_copies", "…"),
    ("zone", "\"…\""),
    ("first_nodes", "[\"…\"]"),
    ("tls_cert", "\"…\""),
    ("tls_key", "\"…\""),
    ("tls_client_ca", "\"…\""),
];

fn defaults() -> Result<Table, ConfigError> {
    Table::try_from(Config::default()).map_err(|error| ConfigError::Merge(error.to_string()))
}

/// Reads the configuration file. An unknown key is an error that names it.
pub fn read_file(path: &Path) -> Result<Layer, ConfigError> {
    let unreadable = |reason| ConfigError::Unreadable { path: path.to_owned(), reason };
    let wrong =
        |error: toml::de::Error| ConfigError::File { path: path.to_owned(), reason: error.to_string() };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    // Read as a whole configuration first: that names the line of a wrong key or value.
    toml::from_str::<Config>(&text).map_err(wrong)?;
    let values = toml::from_str(&text).map_err(wrong)?;
    Ok(Layer { name: format!("file {}", path.display()), values })
}

impl Config {
    /// Gives what is not set its part of the memory.
    fn share_out(&mut self, sources: &mut BTreeMap<String, String>) {
        let mut is_free = |key: &str, source: &str| {
            let of = sources.get_mut(key).filter(|of| *of == "default");
            of.map(|of| source.clone_into(of)).is_some()
        };
        if is_free("memory", "default: of this machine or control group") {
            self.memory = memory::default_size();
        }
        let plan = MemoryPlan::of(self.memory);
        let parts = [
            ("block_cache", &mut self.block_cache, plan.block_cache),
            ("write_buffer", &mut self.write_buffer, plan.write_buffer),
            ("head_cache", &mut self.head_cache, plan.head_cache),
            ("max_in_flight", &mut self.max_in_flight, ByteSize(plan.in_flight.0.max(self.max_entry.0))),
            (
                "max_snapshot_message",
                &mut self.max_snapshot_message,
                ByteSize((plan.receiving.0 / 2).min(limits::SNAPSHOT_MESSAGE)),
            ),
        ];
        for (key, setting, part) in parts {
            if is_free(key, "default: part of memory") {
                *setting = part;
            }
        }
    }

    /// Largest message with entries for a client: larger entries than clients take by default need larger ones.
    pub fn max_message(&self) -> usize {
        let needed = self.max_entry.get().saturating_add(MESSAGE_HEADROOM);
        self.max_response.get().max(needed).max(CLIENT_MESSAGE)
    }

    /// How the store is opened.
    pub fn store_options(&self) -> ledger_store::Options {
        let plan = MemoryPlan::of(self.memory);
        let options = ledger_store::Options {
            durability: match self.durability {
                DurabilityMode::Always => ledger_store::Durability::Always,
                DurabilityMode::Interval => ledger_store::Durability::Interval(self.sync_interval.0),
                DurabilityMode::Never => ledger_store::Durability::Never,
            },
            suite: match self.hash_suite {
                Suite::Blake3 => HashSuite::Blake3,
                Suite::Sha256 => HashSuite::Sha256,
            },
            max_entry: self.max_entry.get(),
            loads: plan.loads.get(),
            tails: plan.tails.get(),
            max_lamport_ahead: self.max_lamport_ahead,
            lanes: self.lanes,
            block_cache: self.block_cache.get(),
            write_buffer: self.write_buffer.get(),
            head_cache: self.head_cache.get(),
            // Starting shares out the file descriptors.
            max_open_files: limits::MAX_OPEN_FILES,
            scrub_rate: self.scrub_rate.0,
            scrub_pause: self.scrub_pause.0,
            accept_lost_writes: self.accept_lost_writes,
            clustered: self.node_id.is_some(),
            test_panic: self.test_panic == Some(TestPanic::Lane),
        };
        ledger_store::Options { loads: options.loads.max(options.least_loads()), ..options }
    }

    /// The name under which a node signs: `<cluster>/<storage id>`.
    pub fn signer_name(&self, storage_id: &str) -> String {
        format!("{}/{storage_id}", self.cluster)
    }
}
