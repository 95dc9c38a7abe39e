//! The command line of `ledgerctl checkpoint`, `ledgerctl prove` and `ledgerctl verify`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::args::verified::Verified;

// The arguments of `ledgerctl checkpoint`.
#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    /// The context
    pub context: String,
    /// At this size; 0: the newest
    #[arg(long, default_value_t = 0)]
    pub size: u64,
    /// Write the signed note to a file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub verified: Verified,
    /// A context without entries is no error
    #[arg(long)]
    pub allow_empty: bool,
}

// The subcommands of `ledgerctl prove`, one for each kind of proof.
#[derive(Debug, Subcommand)]
pub(crate) enum Prove {
    /// That an entry is in a context
    Inclusion {
        /// The context
        context: String,
        /// The entry's sequence
        sequence: u64,
        /// In the tree of this size; 0: the newest
        #[arg(long, default_value_t = 0)]
        size: u64,
        /// Write the proof to a file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        verified: Verified,
    },
    /// That an earlier state of a context is a prefix of a later one
    Consistency {
        /// The context
        context: String,
        /// The earlier size
        old: u64,
        /// The later size; 0: the newest
        #[arg(default_value_t = 0)]
        new: u64,
        /// Write the proof to a file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        verified: Verified,
    },
}

// The subcommands of `ledgerctl verify`, one for each thing that can be verified.
#[derive(Debug, Subcommand)]
pub(crate) enum Verify {
    /// A proof that `ledgerctl prove` wrote
    Proof {
        /// The proof
        file: PathBuf,
        /// The entry's payload must be the content of this file
        #[arg(long, value_name = "FILE")]
        payload: Option<PathBuf>,
        /// The proof must lead to the root of this signed checkpoint
        #[arg(long, value_name = "FILE", requires = "verifier_key")]
        checkpoint: Option<PathBuf>,
        /// The key that must have signed the checkpoint
        #[arg(long, value_name = "KEY")]
        verifier_key: Option<String>,
    },
    /// A snapshot, of this ledger or of its predecessor
    Snapshot {
        /// The snapshot
        file: PathBuf,
    },
    /// A signed checkpoint
    Checkpoint {
        /// The signed note
        file: PathBuf,
        /// The key that must have signed it
        #[arg(long, value_name = "KEY")]
        verifier_key: String,
    },
}
