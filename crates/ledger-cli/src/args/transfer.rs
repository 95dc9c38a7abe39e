//! The command line of `ledgerctl snapshot` and `ledgerctl load`.

use std::path::PathBuf;

use clap::Args;

// The arguments of `ledgerctl snapshot`.
#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    /// The context
    pub context: String,
    /// Where to; without it, standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// A context without entries is no error: its snapshot is an empty one
    #[arg(long)]
    pub allow_empty: bool,
}

// The arguments of `ledgerctl load`.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// The context to load into
    pub context: String,
    /// The snapshot; - for standard input, which is kept in TMPDIR meanwhile. It is loaded again by itself if the owner is
    /// lost
    pub file: PathBuf,
    /// Fail if the context has entries
    #[arg(long)]
    pub fail_if_exists: bool,
}
