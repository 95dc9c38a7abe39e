//! Where the node is, and how it is reached.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use ledger_client::{Client, ClientError, Options, Tls};

/// Where the node is.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Connection {
    /// The node to talk to; several with commas between, except where one node is meant
    #[arg(
        long,
        global = true,
        env = "LEDGER_ENDPOINT",
        default_value = "http://127.0.0.1:50051",
        value_name = "URL"
    )]
    pub endpoint: String,
    /// How long a call with one answer may take, seconds
    #[arg(long, global = true, default_value_t = 30.0, value_name = "SECONDS")]
    pub timeout: f64,
    /// Trust these authorities (PEM) instead of the system's, for https:// endpoints
    #[arg(long, global = true, env = "LEDGER_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// This client's certificate (PEM)
    #[arg(long, global = true, env = "LEDGER_CERT", value_name = "FILE", requires = "key_file")]
    pub cert: Option<PathBuf>,
    /// The key of --cert (PEM)
    #[arg(long, global = true, env = "LEDGER_KEY", value_name = "FILE", requires = "cert")]
    pub key_file: Option<PathBuf>,
    /// The cluster's keys: for drain, decommission and recover of a node on another machine. The key is proven, never sent
    #[arg(long, global = true, env = "LEDGER_CLUSTER_KEY_FILE", value_name = "FILE")]
    pub cluster_key_file: Option<PathBuf>,
}

impl Connection {
    /// A client of the node. Nothing is sent yet.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| anyhow::anyhow!("{} cannot be read: {error}", path.display()))
        };
        let identity = match (&self.cert, &self.key_file) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        let timeout = Duration::try_from_secs_f64(self.timeout).map_err(|_| {
            ClientError::Invalid(format!("--timeout {} is not a number of seconds", self.timeout))
        })?;
        let tls = Tls { ca: self.ca.as_ref().map(read).transpose()?, identity, domain: None };
        Ok(Client::connect(&self.endpoint, &Options { timeout, tls, ..Options::default() })?)
    }
}
