//! The command line of `ledgerd`, and the layers of its configuration.

use std::{io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};
use serde::Serialize;
use toml::{Table, Value};

use crate::{
    settings::config::{Config, DurabilityMode, LogFormat, Operators, Suite, TestPanic},
    settings::effective::{Effective, Layer, read_file},
    settings::environment,
    settings::error::ConfigError,
    settings::units::{ByteSize, HumanDuration},
};

/// Exit code: the node ended as it was told to.
pub const EXIT_SUCCESS: u8 = 0;
/// Exit code: the configuration is wrong.
pub const EXIT_CONFIG: u8 = 2;
/// Exit code: the data directory cannot be opened.
pub const EXIT_DATA_DIR: u8 = 3;
/// Exit code: an address cannot be listened on, the ready file cannot be written, or TLS files cannot be used.
pub const EXIT_LISTEN: u8 = 4;
/// Exit code: the node failed while it was serving, or could not close its store.
pub const EXIT_FAILED: u8 = 5;
/// Exit code: a later start of the node is there, so that this process is not the node any more.
pub const EXIT_REPLACED: u8 = 6;
/// Exit code: another process runs under the node's name, and is well.
pub const EXIT_TAKEN: u8 = 7;
/// Exit code: a thread of the store panicked.
pub const EXIT_PANICKED: u8 = 8;
/// Exit code: a second signal ended a shutdown at once.
pub const EXIT_FORCED: u8 = 130;

const AFTER_HELP: &str = "\
Every setting can stand in a TOML file, in the environment and on the command line; the later wins:
  defaults < file (--config or LEDGER_CONFIG) < environment (LEDGER_*, and GRPC_PORT) < flags
In the file a key is the flag without dashes: --data-dir is data_dir. `ledgerd config` prints what is in
effect and where it came from. A variable that is set to nothing is not set; an unknown LEDGER_* is an error,
except those that Kubernetes sets for Services. GRPC_PORT=50051 sets the port of grpc_listen alone, as for the predecessor.
Sizes are bytes or as 64MiB; times are as 250ms, 10s, 5m.

Exit codes: 0 shut down cleanly, 2 wrong configuration, 3 the data directory cannot be opened,
4 an address cannot be listened on, the ready file cannot be written or TLS files cannot be used,
5 failed while serving or could not close its store, or the data directory was an older copy of itself or is damaged
for good (start again), 6 another process runs as this node since (start again once it has ended), 7 not started
because another process runs as this node, 130 second signal.";

/// One durable node of Converge Ledger: append-only, provable contexts over gRPC.
#[derive(Debug, Parser)]
#[command(name = "ledgerd", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    /// A TOML file of settings
    #[arg(long, env = "LEDGER_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Command {
    /// Print the effective configuration as TOML, with where each setting came from
    Config,
}

/// The settings as flags and environment variables: what is not set is left to the layers below.
#[derive(Debug, Args, Serialize)]
struct Settings {
    /// Where the data is [default: ./data]
    #[arg(long, env = "LEDGER_DATA_DIR", value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Address of the gRPC services; port 0: any free one [default: 0.0.0.0:50051]
    #[arg(long, env = "LEDGER_GRPC_LISTEN", value_name = "IP:PORT", global = true)]
    grpc_listen: Option<SocketAddr>,
    /// Address of /healthz, /readyz, /metrics and the console; port 0: any free one [default: 127.0.0.1:50080]
    #[arg(long, env = "LEDGER_HTTP_LISTEN", value_name = "IP:PORT", global = true)]
    http_listen: Option<SocketAddr>,
    /// Write the bound addresses as JSON to this file once serving
    #[arg(long, env = "LEDGER_READY_FILE", value_name = "FILE", global = true)]
    ready_file: Option<PathBuf>,
    /// Name of the cluster, part of every checkpoint [default: converge]
    #[arg(long, env = "LEDGER_CLUSTER", value_name = "NAME", global = true)]
    cluster: Option<String>,
    /// Name of this node in its cluster [default: none, a node by itself]
    #[arg(long, env = "LEDGER_NODE_ID", value_name = "NAME", global = true)]
    node_id: Option<String>,
    /// Address of gossip, UDP; port 0: any free one [default: 0.0.0.0:50052]
    #[arg(long, env = "LEDGER_GOSSIP_LISTEN", value_name = "IP:PORT", global = true)]
    gossip_listen: Option<SocketAddr>,
    /// Where other nodes reach this one's gossip [default: `gossip_listen`]
    #[arg(long, env = "LEDGER_GOSSIP_ADVERTISE", value_name = "IP:PORT", global = true)]
    gossip_advertise: Option<SocketAddr>,
    /// Where others reach the gRPC services [default: `grpc_listen`]
    #[arg(long, env = "LEDGER_GRPC_ADVERTISE", value_name = "HOST:PORT", global = true)]
    grpc_advertise: Option<String>,
    /// Where to look for other nodes, with commas between; a name may stand for many
    #[arg(long, env = "LEDGER_SEEDS", value_name = "HOST:PORT,…", value_delimiter = ',', global = true)]
    seeds: Option<Vec<String>>,
    /// The cluster's keys, one a line, the one to seal gossip with first; read again on SIGHUP
    #[arg(long, env = "LEDGER_CLUSTER_KEY_FILE", value_name = "FILE", global = true)]
    cluster_key_file: Option<PathBuf>,
    /// Gossip over a network without keys: whoever reaches it can take part [default: false]
    #[arg(
        long,
        env = "LEDGER_INSECURE_GOSSIP",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        global = true
    )]
    insecure_gossip: Option<bool>,
    /// Copies of each entry in a cluster, 1 to 7 [default: 3]
    #[arg(long, env = "LEDGER_COPIES", value_name = "COUNT", global = true)]
    copies: Option<usize>,
    /// Copies after which an append is acknowledged [default: 2, or `copies` if fewer]
    #[arg(long, env = "LEDGER_MIN_COPIES", value_name = "COUNT", global = true)]
    min_copies: Option<usize>,
    /// Where the node stands, a zone or rack: copies are spread over zones
    #[arg(long, env = "LEDGER_ZONE", value_name = "NAME", global = true)]
    zone: Option<String>,
    /// The nodes that form the cluster the first time, with commas between [default: the first `copies`]
    #[arg(long, env = "LEDGER_FIRST_NODES", value_name = "NAME,…", value_delimiter = ',', global = true)]
    first_nodes: Option<Vec<String>>,
    /// How often a node gossips; one is taken for dead after four to eight times that [default: 250ms]
    #[arg(long, env = "LEDGER_GOSSIP_INTERVAL", value_name = "TIME", global = true)]
    gossip_interval: Option<HumanDuration>,
    /// How long a node may be away before its place is given to another [default: 10m]
    #[arg(long, env = "LEDGER_PLACEMENT_GRACE", value_name = "TIME", global = true)]
    placement_grace: Option<HumanDuration>,
    /// How old what readers are shown may be, when a node hears too few others to tell; 0s: as old as it is [default: 10s]
    #[arg(long, env = "LEDGER_MAX_STALENESS", value_name = "TIME", global = true)]
    max_staleness: Option<HumanDuration>,
    /// How long files may be damaged for good before a member of a cluster has itself replaced; 0s: never [default: 5m]
    #[arg(long, env = "LEDGER_REPLACE_DAMAGED", value_name = "TIME", global = true)]
    replace_damaged: Option<HumanDuration>,
    /// Who may drain the node, have it leave for good, and recover without lost members: loopback (callers on the node's
    /// machine, or with the cluster's key), or key (only with the key, as a proxy beside the node needs it) [default: loopback]
    #[arg(long, env = "LEDGER_OPERATORS", global = true)]
    operators: Option<Operators>,
    /// How often nodes compare what they keep [default: 10s]
    #[arg(long, env = "LEDGER_ANTI_ENTROPY_INTERVAL", value_name = "TIME", global = true)]
    anti_entropy_interval: Option<HumanDuration>,
    /// Bytes a second that catching up may take; 0: no limit [default: 0]
    #[arg(long, env = "LEDGER_CATCH_UP_RATE", value_name = "SIZE", global = true)]
    catch_up_rate: Option<ByteSize>,
    /// When an append is acknowledged [default: always]
    #[arg(long, env = "LEDGER_DURABILITY", global = true)]
    durability: Option<DurabilityMode>,
    /// How often to sync with durability `interval` [default: 100ms]
    #[arg(long, env = "LEDGER_SYNC_INTERVAL", value_name = "TIME", global = true)]
    sync_interval: Option<HumanDuration>,
    /// Hash suite of new contexts [default: blake3]
    #[arg(long, env = "LEDGER_HASH_SUITE", global = true)]
    hash_suite: Option<Suite>,
    /// Largest entry, as it is encoded in a message: clients take messages of 4 MiB unless told otherwise [default: 4032KiB]
    #[arg(long, env = "LEDGER_MAX_ENTRY", value_name = "SIZE", global = true)]
    max_entry: Option<ByteSize>,
    /// Most connections of gRPC clients; fewer if there are too few file descriptors [default: 8192]
    #[arg(long, env = "LEDGER_MAX_CONNECTIONS", value_name = "COUNT", global = true)]
    max_connections: Option<usize>,
    /// How far above a context's own Lamport time a received one may be [default: 4294967296]
    #[arg(long, env = "LEDGER_MAX_LAMPORT_AHEAD", value_name = "TIME", global = true)]
    max_lamport_ahead: Option<u64>,
    /// Writer threads; 0: one per CPU, at most 4 [default: 0]
    #[arg(long, env = "LEDGER_LANES", value_name = "COUNT", global = true)]
    lanes: Option<usize>,
    /// Memory to keep to, which caches and all that clients make the node hold are parts of [default: half of the control
    /// group's limit, or of the machine's memory]
    #[arg(long, env = "LEDGER_MEMORY", value_name = "SIZE", global = true)]
    memory: Option<ByteSize>,
    /// RocksDB's block cache [default: part of memory, at most 128MiB]
    #[arg(long, env = "LEDGER_BLOCK_CACHE", value_name = "SIZE", global = true)]
    block_cache: Option<ByteSize>,
    /// Memory for writes not yet in table files [default: part of memory, at most 128MiB]
    #[arg(long, env = "LEDGER_WRITE_BUFFER", value_name = "SIZE", global = true)]
    write_buffer: Option<ByteSize>,
    /// Memory for the heads of contexts in use [default: part of memory, at most 64MiB]
    #[arg(long, env = "LEDGER_HEAD_CACHE", value_name = "SIZE", global = true)]
    head_cache: Option<ByteSize>,
    /// Bytes a second that the background scrub re-reads; 0: off [default: 8MiB]
    #[arg(long, env = "LEDGER_SCRUB_RATE", value_name = "SIZE", global = true)]
    scrub_rate: Option<ByteSize>,
    /// Pause between two passes of the scrub [default: 1h]
    #[arg(long, env = "LEDGER_SCRUB_PAUSE", value_name = "TIME", global = true)]
    scrub_pause: Option<HumanDuration>,
    /// Largest answer of a unary Get; more is cut at a whole entry [default: 4MiB]
    #[arg(long, env = "LEDGER_MAX_RESPONSE", value_name = "SIZE", global = true)]
    max_response: Option<ByteSize>,
    /// Largest snapshot in one message; the streaming forms have no limit [default: part of memory, at most 64MiB]
    #[arg(long, env = "LEDGER_MAX_SNAPSHOT_MESSAGE", value_name = "SIZE", global = true)]
    max_snapshot_message: Option<ByteSize>,
    /// Most bytes of appends accepted and not yet acknowledged [default: part of memory, at most 256MiB]
    #[arg(long, env = "LEDGER_MAX_IN_FLIGHT", value_name = "SIZE", global = true)]
    max_in_flight: Option<ByteSize>,
    /// How long a call may take whose client sets no deadline [default: 30s]
    #[arg(long, env = "LEDGER_CALL_TIMEOUT", value_name = "TIME", global = true)]
    call_timeout: Option<HumanDuration>,
    /// How long a shutdown waits for requests to end [default: 10s]
    #[arg(long, env = "LEDGER_SHUTDOWN_GRACE", value_name = "TIME", global = true)]
    shutdown_grace: Option<HumanDuration>,
    /// Leave the cluster for good when asked to stop: other nodes take the copies first [default: false]
    #[arg(
        long,
        env = "LEDGER_LEAVE_ON_SHUTDOWN",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        global = true
    )]
    leave_on_shutdown: Option<bool>,
    /// How long a shutdown waits until others have taken what a node keeps that leaves for good [default: 10m]
    #[arg(long, env = "LEDGER_LEAVE_GRACE", value_name = "TIME", global = true)]
    leave_grace: Option<HumanDuration>,
    /// How log lines look [default: text]
    #[arg(long, env = "LEDGER_LOG_FORMAT", global = true)]
    log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or directives [default: info]
    #[arg(long, env = "LEDGER_LOG", value_name = "FILTER", global = true)]
    log: Option<String>,
    /// TLS certificate chain, PEM [default: no TLS]
    #[arg(long, env = "LEDGER_TLS_CERT", value_name = "FILE", global = true)]
    tls_cert: Option<PathBuf>,
    /// TLS private key, PEM
    #[arg(long, env = "LEDGER_TLS_KEY", value_name = "FILE", global = true)]
    tls_key: Option<PathBuf>,
    /// Clients must show a certificate of this authority, PEM
    #[arg(long, env = "LEDGER_TLS_CLIENT_CA", value_name = "FILE", global = true)]
    tls_client_ca: Option<PathBuf>,
    /// Start with a write-ahead log that was cut short, up to the number that the refusal to start names
    #[arg(long, env = "LEDGER_ACCEPT_LOST_WRITES", value_name = "NUMBER", global = true)]
    accept_lost_writes: Option<u64>,
    /// Shut down when standard input ends: for who starts nodes as its children
    #[arg(
        long,
        env = "LEDGER_EXIT_WHEN_STDIN_CLOSES",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        global = true,
        hide = true
    )]
    exit_when_stdin_closes: Option<bool>,
    /// For tests of the supervision only
    #[arg(long, env = "LEDGER_TEST_PANIC", global = true, hide = true)]
    test_panic: Option<TestPanic>,
}

/// Reads arguments, environment and file.
///
/// # Errors
/// The code to exit with: help, the version or the configuration was asked for and printed, or the settings are wrong.
pub fn parse() -> Result<Config, ExitCode> {
    let command = Cli::command();
    let matches = environment::without_empty(command.clone()).try_get_matches().map_err(|error| {
        let _ = error.print();
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(EXIT_CONFIG))
    })?;
    let wrong = |error: &dyn std::fmt::Display| {
        let _ = writeln!(std::io::stderr(), "ledgerd: {error}");
        ExitCode::from(EXIT_CONFIG)
    };
    let cli = Cli::from_arg_matches(&matches).map_err(|error| wrong(&error))?;
    let variables = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    environment::check(&command, variables).map_err(|error| wrong(&error))?;
    let effective = load(&cli, &matches).map_err(|error| wrong(&error))?;
    match cli.command {
        None => Ok(effective.config),
        Some(Command::Config) => {
            let text = effective.to_toml().map_err(|error| wrong(&error))?;
            // Whoever reads it may have seen enough.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            Err(ExitCode::SUCCESS)
        }
    }
}

fn load(cli: &Cli, matches: &ArgMatches) -> Result<Effective, ConfigError> {
    let mut layers = Vec::new();
    if let Some(path) = &cli.config {
        layers.push(read_file(path)?);
    }
    let mut given = Table::try_from(&cli.settings).map_err(|error| ConfigError::Merge(error.to_string()))?;
    // No setting: it is in no list of keys, and no file has it.
    given.remove("test_panic");
    let (flags, mut environment): (Table, Table) =
        given.into_iter().partition(|(key, _)| matches.value_source(key) == Some(ValueSource::CommandLine));
    if let Some(address) = predecessor_port(layers.last())? {
        environment.entry("grpc_listen").or_insert(Value::String(address.to_string()));
    }
    layers.push(Layer { name: "environment".to_owned(), values: environment });
    layers.push(Layer { name: "flag".to_owned(), values: flags });
    let mut effective = Effective::merge(layers)?;
    effective.config.test_panic = cli.settings.test_panic;
    Ok(effective)
}

/// `GRPC_PORT`, as the predecessor read it: the port alone; the interface stays as configured.
fn predecessor_port(file: Option<&Layer>) -> Result<Option<SocketAddr>, ConfigError> {
    let is_port = |port: &std::ffi::OsString| {
        !port.is_empty() && !environment::is_of_a_service("GRPC_PORT", &port.to_string_lossy())
    };
    let Some(port) = std::env::var_os("GRPC_PORT").filter(is_port) else { return Ok(None) };
    let Some(port) = port.to_str().and_then(|port| port.trim().parse::<u16>().ok()) else {
        return Err(ConfigError::Value {
            key: "grpc_listen",
            value: port.to_string_lossy().into_owned(),
            source_name: "environment, GRPC_PORT".to_owned(),
            reason: "GRPC_PORT must be a port, 0 to 65535".to_owned(),
        });
    };
    let configured = file.and_then(|layer| layer.values.get("grpc_listen")).and_then(Value::as_str);
    let mut address = configured.and_then(|text| text.parse().ok()).unwrap_or(Config::default().grpc_listen);
    address.set_port(port);
    Ok(Some(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_a_flag_of_the_same_name() {
        let command = Cli::command();
        let flags: Vec<_> = command.get_arguments().map(|arg| arg.get_id().to_string()).collect();
        let (path, text) = (Some(PathBuf::from("x")), Some("x".to_owned()));
        let config = Config {
            ready_file: path.clone(),
            node_id: text.clone(),
            gossip_advertise: Some(Config::default().gossip_listen),
            grpc_advertise: text.clone(),
            seeds: vec!["x".to_owned()],
            cluster_key_file: path.clone(),
            min_copies: Some(1),
            zone: text,
            first_nodes: vec!["x".to_owned()],
            tls_cert: path.clone(),
            tls_key: path.clone(),
            tls_client_ca: path,
            accept_lost_writes: Some(1),
            exit_when_stdin_closes: true,
            test_panic: Some(TestPanic::Watch),
            ..Config::default()
        };
        for key in Table::try_from(config).unwrap().keys() {
            assert!(flags.contains(key), "{key} has no flag");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_defaults_in_the_help_are_the_defaults() {
        // However wide the terminal is: the help wraps at any space.
        let help = Cli::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let defaults = Table::try_from(Config::default()).unwrap();
        let parts = ["block_cache", "write_buffer", "head_cache", "max_snapshot_message", "max_in_flight"];
        for (key, value) in defaults.iter().filter(|(key, _)| *key != "memory") {
            if parts.contains(&key.as_str()) {
                let most = value.as_str().unwrap();
                assert!(
                    help.contains(&format!("[default: part of memory, at most {most}]")),
                    "{key}: {most}"
                );
                continue;
            }
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert!(help.contains(&format!("[default: {text}]")), "{key}: {text}");
        }
    }
}
