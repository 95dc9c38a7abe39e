//! The command line of `ledgerctl append`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

// The arguments of `ledgerctl append`.
#[derive(Debug, Args)]
pub(crate) struct Append {
    /// The context
    pub context: String,
    /// What kind of entry it is: facts, intents, traces, …
    pub key: String,
    /// The payload, as text
    #[arg(required_unless_present_any = ["file", "stdin_lines"], conflicts_with_all = ["file", "stdin_lines"])]
    pub payload: Option<String>,
    /// Take the payload from a file; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "stdin_lines")]
    pub file: Option<PathBuf>,
    /// Append one entry for each line of standard input, pipelined
    #[arg(long)]
    pub stdin_lines: bool,
    /// The name of a run that stored some of these lines: those are found, and not stored again
    #[arg(long, value_name = "RUN", requires = "stdin_lines")]
    pub run: Option<String>,
    /// A pair of metadata; may be repeated
    #[arg(long = "meta", value_name = "KEY=VALUE")]
    pub metadata: Vec<String>,
    /// An id that makes repeating the append safe
    #[arg(long, value_name = "ID", conflicts_with = "stdin_lines")]
    pub entry_id: Option<String>,
    /// Lamport time seen elsewhere: the entry's will be later
    #[arg(long, default_value_t = 0, value_name = "TIME")]
    pub received_lamport: u64,
    /// Acknowledge with these copies
    #[arg(long, value_enum, default_value_t)]
    pub durability: Durability,
}

/// The copies that an append is acknowledged with.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Durability {
    /// As many as the cluster is configured for
    #[default]
    Configured,
    /// The owner's: quicker, and lost sight of if the owner is lost at once
    One,
    /// More than half of all
    Majority,
    /// All: waits for every replica
    All,
}

impl From<Durability> for ledger_client::Durability {
    fn from(from: Durability) -> Self {
        match from {
            Durability::Configured => Self::Configured,
            Durability::One => Self::One,
            Durability::Majority => Self::Majority,
            Durability::All => Self::All,
        }
    }
}
