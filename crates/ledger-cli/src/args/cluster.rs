//! The command line of `ledgerctl cluster`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand};

use crate::args::listing::Forks;

// The subcommands of `ledgerctl cluster`, each with its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// List the nodes, as the one asked sees them
    Members,
    /// Show the nodes, and whether every slot takes appends now and has all its copies: as all nodes that can be reached say.
    /// Exit code 0 only if so; 9 if not; 8 if a node did not answer
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
    /// Have a node leave for good: other nodes take its copies while it lives, then its process ends
    Decommission(Decommission),
    /// Go on when too many members of slots are lost for good, with what is left; without --apply it only shows that
    Recover(Recover),
    /// The same as `ledgerctl forks`: list histories that nodes left because they differ from the owner's, or read one
    Forks(Forks),
    /// Start a cluster of real nodes on this machine, to try things out; Ctrl-C ends it
    Local(Local),
}

// The arguments of `ledgerctl cluster decommission`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Decommission {
    /// The node that is to leave
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Have it stay after all
    #[arg(long, conflicts_with_all = ["force", "keep_running", "until_restart"])]
    pub cancel: bool,
    /// Leave also where slots must go on with fewer copies than there should be; never with fewer than an append needs
    #[arg(long)]
    pub force: bool,
    /// Leave its process running in the end
    #[arg(long)]
    pub keep_running: bool,
    /// Let it be a member again when its process is started anew; otherwise it stays away until --cancel
    #[arg(long)]
    pub until_restart: bool,
}

// The arguments of `ledgerctl cluster recover`: which members the operator declares lost.
#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// A node whose data is lost for good, one for each use; without it, all members that do not answer
    #[arg(long, value_name = "NODE")]
    pub lost: Vec<String>,
    /// Go on without them. What only they held is gone
    #[arg(long)]
    pub apply: bool,
    /// Why, in words that are kept
    #[arg(long, value_name = "TEXT", requires = "apply")]
    pub reason: Option<String>,
    /// Show what was decided before, and with what each slot went on
    #[arg(long, conflicts_with_all = ["lost", "apply", "reason"])]
    pub history: bool,
}

// The arguments of `ledgerctl cluster local`.
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
