//! The command line of `ledgerctl bench`.

use clap::{Args, Subcommand};

/// What all measurements share.
#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    /// Over so many contexts
    #[arg(long, default_value_t = 64)]
    pub contexts: u64,
    /// So many requests under way, in all
    #[arg(long, default_value_t = 64)]
    pub inflight: u64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 256, value_name = "BYTES")]
    pub payload: usize,
    /// For so long
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Measure a ledger that holds other data too: what is written, under ledgerctl-bench/, cannot be removed
    #[arg(long)]
    pub yes: bool,
}

// The measurements of `ledgerctl bench`, each with its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Streaming append
    Append {
        #[command(flatten)]
        load: Shape,
        /// Streams to spread it over
        #[arg(long, default_value_t = 4)]
        streams: u64,
    },
    /// One append a call
    Unary {
        #[command(flatten)]
        load: Shape,
    },
    /// Reading a context from its beginning, which is filled first
    Replay {
        #[command(flatten)]
        load: Shape,
        /// Entries of the context
        #[arg(long, default_value_t = 1_000_000)]
        entries: u64,
        /// Read by watching instead of by getting
        #[arg(long)]
        watch: bool,
    },
    /// Many watchers of one context that is appended to at a steady rate
    Watch {
        #[command(flatten)]
        load: Shape,
        /// Watchers
        #[arg(long, default_value_t = 1000)]
        watchers: u64,
        /// Appends per second
        #[arg(long, default_value_t = 100)]
        rate: u64,
    },
    /// Inclusion proofs in a context, which is filled first
    Proof {
        #[command(flatten)]
        load: Shape,
        /// Entries of the context
        #[arg(long, default_value_t = 1_000_000)]
        entries: u64,
    },
}
