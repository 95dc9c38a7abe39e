//! The command line of `ledgerctl contexts` and `ledgerctl forks`.

use std::path::PathBuf;

use clap::Args;

use crate::args::payload_format::PayloadFormat;

// The arguments of `ledgerctl contexts`.
#[derive(Debug, Args)]
pub(crate) struct Contexts {
    /// Only contexts whose ids begin with this
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// At most so many; 0: all
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub limit: u64,
}

// The arguments of `ledgerctl forks`.
#[derive(Debug, Args)]
pub(crate) struct Forks {
    /// Only those of this context
    pub context: Option<String>,
    /// Only those of this node; without it, of all nodes that answer
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// At most so many of each node; 0: all
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub limit: u64,
    /// Read the entries of this fork of the context instead
    #[arg(long, value_name = "FORK", requires = "context", conflicts_with = "limit")]
    pub export: Option<u64>,
    /// How to show payloads
    #[arg(long, value_enum, default_value_t, requires = "export")]
    pub payload: PayloadFormat,
    /// Write the fork to a file instead, with what comes before it, as a snapshot: ledgerctl load takes it into another
    /// context
    #[arg(short, long, value_name = "FILE", requires = "export", conflicts_with = "payload")]
    pub output: Option<PathBuf>,
}
