//! The command line of `ledgerctl cluster`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand};

use crate::args::Forks;

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// List the nodes, as the one asked sees them
    Members,
    /// Show the nodes, and whether every slot has an owner and all its copies
    Status {
        /// Go on, and show it anew whenever it changes
        #[arg(long)]
        watch: bool,
    },
    /// Show who owns contexts, and who keeps copies of them
    Locate {
        /// The contexts
        #[arg(required = true, value_name = "CONTEXT")]
        contexts: Vec<String>,
    },
    /// Have a node hand over all it owns and own no more: for maintenance. It goes on keeping copies
    Drain {
        /// Let it own slots again
        #[arg(long)]
        resume: bool,
    },
    /// The same as `ledgerctl forks`: list histories that nodes left because they differ from the owner's, or read one
    Forks(Forks),
    /// Start a cluster of real nodes on this machine, to try things out; Ctrl-C ends it
    Local(Local),
}

#[derive(Debug, Args)]
pub(crate) struct Local {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=32))]
    pub nodes: u16,
    /// Where the data is kept; without it, in a temporary directory that is removed at the end
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// gRPC of the first node, the others follow; gossip has the same ports in UDP, the consoles the next ones;
    /// without it, any free ports
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Show all that the nodes log, not only warnings
    #[arg(long)]
    pub verbose: bool,
    /// Flags for each ledgerd, after --
    #[arg(last = true, value_name = "FLAG")]
    pub flags: Vec<OsString>,
}
