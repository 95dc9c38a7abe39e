//! `ledger-bench cluster`: three real nodes on this machine, held against what was asked of them.

mod nodes;
mod rows;
mod run;
mod streams;
mod table;
mod writer;

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Context as _, ensure};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    run::{Run, Sizes, say},
    table::Table,
};
use crate::report;

/// `f_type` of file systems in memory: tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

const ROWS: &str = "\
Rows, for --only:
  1  streaming append, beside one node alone
  2  the owner is killed
  3  planned handover, and a restart of every node, under load
  4  a replica catches up, on an idle cluster and under load
  5  nodes in step that hold very many contexts: what they exchange, and one context differs
  6  a difference at an unknown place in a very long context
  7  what gossip carries at very many contexts

Nodes run with default settings: 3 copies, 2 before an append is acknowledged, each of them synced.
Exit codes: 0 everything asked for was reached, 1 something failed,
2 wrong flags, 3 a target was missed, 130 interrupted.";

/// Exit code: the flags make no sense.
const EXIT_FLAGS: i32 = 2;
/// Exit code: a target was missed.
const EXIT_MISSED: i32 = 3;
/// Exit code: interrupted.
const EXIT_INTERRUPTED: i32 = 130;

// The arguments of `ledger-bench cluster`.
#[derive(Debug, Args)]
#[command(after_help = ROWS)]
pub(crate) struct Cluster {
    /// Where to put data: the disk to measure
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Only these rows, with commas between
    #[arg(long, value_name = "ROW,…", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=7))]
    only: Vec<u8>,
    /// Small sizes: a look at whether everything works, in two minutes
    #[arg(long)]
    quick: bool,
    /// How long each measurement of a rate takes [default: 5, quick: 2]
    #[arg(long)]
    seconds: Option<f64>,
    /// How often the cluster and one node are measured in turn [default: 3, quick: 1]
    #[arg(long)]
    repetitions: Option<u64>,
    /// How often an owner is killed [default: 5, quick: 1]
    #[arg(long)]
    rounds: Option<u64>,
    /// Entries that a replica misses before it catches up [default: 1000000, quick: 100000]
    #[arg(long)]
    entries: Option<u64>,
    /// Contexts that nodes in step hold [default: 1000000, quick: 50000]
    #[arg(long)]
    contexts: Option<u64>,
    /// Entries of the context that differs at an unknown place [default: 10000000, quick: 500000]
    #[arg(long)]
    depth: Option<u64>,
    /// Streaming appends under way
    #[arg(long, default_value_t = 16_384)]
    inflight: usize,
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Keep what the nodes logged if something fails
    #[arg(long)]
    keep: bool,
    /// Further flags for each ledgerd of the cluster, after `--`
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

impl Cluster {
    /// The sizes that the flags ask for; `Err`: why they make no sense.
    fn sizes(&self) -> anyhow::Result<Sizes> {
        let or = |full, quick| if self.quick { quick } else { full };
        let sizes = Sizes {
            seconds: self.seconds.unwrap_or(if self.quick { 2.0 } else { 5.0 }),
            repetitions: self.repetitions.unwrap_or(or(3, 1)),
            rounds: self.rounds.unwrap_or(or(5, 1)),
            entries: self.entries.unwrap_or(or(1_000_000, 100_000)),
            contexts: self.contexts.unwrap_or(or(1_000_000, 50_000)),
            depth: self.depth.unwrap_or(or(10_000_000, 500_000)),
            inflight: self.inflight,
            flags: self.flags.clone(),
        };
        ensure!((0.1..=3600.0).contains(&sizes.seconds), "--seconds must be 0.1 to 3600");
        ensure!(sizes.repetitions > 0 && sizes.rounds > 0, "--repetitions and --rounds must be at least 1");
        ensure!(
            sizes.entries.min(sizes.contexts).min(sizes.depth) >= 1000,
            "--entries, --contexts and --depth must be at least 1000"
        );
        ensure!((1..=1 << 20).contains(&sizes.inflight), "--inflight must be 1 to 1048576");
        let kind = rustix::fs::statfs(&self.dir).with_context(|| format!("{}", self.dir.display()))?.f_type;
        ensure!(
            !IN_MEMORY.contains(&kind),
            "{} is in memory, where nothing is ever synced: name a directory on a disk with --dir",
            self.dir.display()
        );
        Ok(sizes)
    }
}

/// Measures, and gives the code to exit with.
pub(crate) async fn run(args: Cluster) -> anyhow::Result<i32> {
    let sizes = match args.sizes() {
        Ok(sizes) => sizes,
        Err(error) => {
            say(&format!("{error:#}"));
            return Ok(EXIT_FLAGS);
        }
    };
    let mut dir = tempfile::Builder::new().prefix("ledger-bench-").tempdir_in(&args.dir)?;
    let mut table = Table::new(args.json);
    let of = "3 nodes, 3 copies, 2 before an acknowledgement, every copy synced; 256-byte payloads";
    table.head(&report::machine(), of);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let path = dir.path().to_owned();
    let mut run = Run { dir: &path, args: &sizes, only: &args.only, table: &mut table, failed: 0 };
    // The nodes are killed and the directory goes whichever of them is first.
    tokio::select! {
        () = rows::measure(&mut run) => {}
        _ = terminate.recv() => return Ok(EXIT_INTERRUPTED),
        _ = interrupt.recv() => return Ok(EXIT_INTERRUPTED),
    }
    let failed = run.failed;
    if failed > 0 && args.keep {
        dir.disable_cleanup(true);
        say(&format!("data and logs of the nodes are in {}", path.display()));
    }
    ensure!(failed == 0, "{failed} rows could not be measured");
    Ok(if table.missed > 0 { EXIT_MISSED } else { 0 })
}
