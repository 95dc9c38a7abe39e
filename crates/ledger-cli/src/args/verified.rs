//! Whether entries are proven, and by what.

use clap::Args;

/// Whether entries are proven, and by what.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Verified {
    /// Show only entries that are proven to be those of a checkpoint that is trusted: signed by a key of --trust, or
    /// continuing what was seen before. Without --trust the first that is seen of a context is trusted, and kept
    #[arg(long)]
    pub verify: bool,
    /// Trust this verifier key of a node, the keys in a file (a line each), or what is kept in a file, which is made if it
    /// is not there; may be repeated
    #[arg(long, value_name = "KEY|FILE", requires = "verify")]
    pub trust: Vec<String>,
}
