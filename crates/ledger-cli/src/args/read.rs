//! The command line of `ledgerctl get` and `ledgerctl watch`.

use clap::Args;

use crate::args::{payload_format::PayloadFormat, verified::Verified};

// The arguments of `ledgerctl get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The context
    pub context: String,
    /// Only entries of this key
    #[arg(long)]
    pub key: Option<String>,
    /// Only entries with a higher sequence
    #[arg(long, default_value_t = 0, value_name = "SEQUENCE")]
    pub after: u64,
    /// At most so many; 0: all
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub limit: u32,
    /// How to show payloads
    #[arg(long, value_enum, default_value_t)]
    pub payload: PayloadFormat,
    /// Payloads as they are, each with a newline after it, and nothing else; never to a terminal
    #[arg(long, conflicts_with_all = ["payload", "json"])]
    pub raw: bool,
    #[command(flatten)]
    pub verified: Verified,
    /// A context without entries is no error
    #[arg(long)]
    pub allow_empty: bool,
}

// The arguments of `ledgerctl watch`.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The context
    pub context: String,
    /// Only entries of this key
    #[arg(long)]
    pub key: Option<String>,
    /// Only entries with a higher sequence; 0: from the beginning
    #[arg(long, default_value_t = 0, value_name = "SEQUENCE")]
    pub from: u64,
    /// End after so many entries; 0: go on until interrupted
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub count: u64,
    /// How to show payloads
    #[arg(long, value_enum, default_value_t)]
    pub payload: PayloadFormat,
    #[command(flatten)]
    pub verified: Verified,
}
