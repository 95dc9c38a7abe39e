//! Why the settings cannot be used.

use std::{net::SocketAddr, path::PathBuf};

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
