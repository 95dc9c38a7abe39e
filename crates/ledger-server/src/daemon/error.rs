//! Why a node does not start, and why one ends that was not asked to, with the exit codes that say so.

use std::{io, net::SocketAddr, path::PathBuf};

use ledger_cluster::{
    JoinError, Reidentified,
    membership::{GossipEnded, Replaced},
};
use ledger_store::StoreError;

use crate::{
    grpc::tls::TlsError,
    settings::{args, error::ConfigError},
};

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting turned out wrong when it was used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node cannot take part in its cluster.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The runtime cannot be started.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {reason}")]
    Listen {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: io::Error,
    },
    /// A TLS file cannot be read or used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The ready file cannot be written.
    #[error("cannot write the ready file {}: {reason}", path.display())]
    ReadyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The services do not fit together.
    #[error("cannot set up the services: {0}")]
    Services(String),
}

/// Why a node did not end cleanly.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// An essential part kept failing.
    #[error("an essential part of the node kept failing: see the log above")]
    TaskFailed,
    /// The node no longer sees its cluster.
    #[error(transparent)]
    Gossip(#[from] GossipEnded),
    /// The node came back with an older data directory, and is to be started again.
    #[error(transparent)]
    Reidentified(#[from] Reidentified),
    /// A later start of the node is there.
    #[error(transparent)]
    Replaced(#[from] Replaced),
    /// The files are damaged for good, and the node is to be started again.
    #[error(transparent)]
    Damaged(#[from] DamagedForGood),
    /// The store cannot go on.
    #[error(
        "the thread {0} of the store panicked, see the log above: nothing that was acknowledged is lost; start the node again"
    )]
    Panicked(String),
    /// The store failed to close.
    #[error("the store did not close cleanly: {0}")]
    Close(StoreError),
}

/// The node's files are damaged for good, and it is to be started again on a new database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the node has itself replaced, because its files are damaged for good ({why}): the other nodes hold everything; started again, \
     it sets its data directory aside and copies what they hold"
)]
pub struct DamagedForGood {
    /// What is damaged.
    pub why: String,
}

/// The code that the process exits with.
pub(super) fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(EndError::Replaced(_)) => return args::EXIT_REPLACED,
        Some(EndError::Panicked(_)) => return args::EXIT_PANICKED,
        _ => {}
    }
    match error.downcast_ref() {
        Some(StartError::Config(_)) => args::EXIT_CONFIG,
        Some(StartError::Store(_) | StartError::Join(JoinError::Store(_))) => args::EXIT_DATA_DIR,
        Some(
            StartError::Listen { .. }
            | StartError::Tls(_)
            | StartError::ReadyFile { .. }
            | StartError::Join(JoinError::Gossip(_)),
        ) => args::EXIT_LISTEN,
        Some(StartError::Join(JoinError::NameTaken { .. })) => args::EXIT_TAKEN,
        Some(
            StartError::Runtime(_) | StartError::Services(_) | StartError::Join(JoinError::Reidentified(_)),
        )
        | None => args::EXIT_FAILED,
    }
}
