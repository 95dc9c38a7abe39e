//! `ledger-bench`: measures the ledger, and in the same run the limits of the machine it runs on.

mod cluster;
mod disk;
mod echo;
mod families;
mod measure;
mod node;
mod raw;
mod report;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Measure Converge Ledger, and the limits of this machine beside it.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    all: All,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// One node: starts it, measures it and the limits, prints a table with ratios (what happens without a command)
    All(All),
    /// A cluster of three nodes: starts it, measures it, prints a table with what was asked for
    Cluster(cluster::Cluster),
    /// The limit: RocksDB alone, one sync for each batch
    Rocksdb(Rocksdb),
    /// The limit: a bare tonic echo, unary and as a server stream
    Echo(Echo),
    /// The limit: fdatasync of 4 KiB
    Fdatasync(Fdatasync),
    /// What column families cost: why contexts are key ranges (docs/adr/0001-storage-layout.md)
    Families(Families),
    /// The other end of `echo`, in a process of its own
    #[command(hide = true)]
    EchoServer,
}

#[derive(Debug, Args)]
pub(crate) struct All {
    /// Where to put data: the disk to measure
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub(crate) dir: PathBuf,
    /// How long each measurement takes
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,
    /// Also restart with 10 M entries in 100 000 contexts, which takes some minutes to fill
    #[arg(long)]
    pub(crate) full: bool,
}

#[derive(Debug, Args)]
struct Rocksdb {
    /// Where to put data
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Bytes of each value
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// Entries of each synced batch
    #[arg(long, default_value_t = 256)]
    batch: u64,
    /// For so long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Debug, Args)]
struct Echo {
    /// Bytes of each message
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// Calls under way
    #[arg(long, default_value_t = 64)]
    inflight: usize,
    /// For so long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Debug, Args)]
struct Fdatasync {
    /// Where to write
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// How often
    #[arg(long, default_value_t = 500)]
    count: usize,
}

#[derive(Debug, Args)]
struct Families {
    /// Where to put data
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// How many
    #[arg(long, default_value_t = 2000)]
    count: usize,
}

/// Many small allocations on several threads: what an RPC server does all day.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::All(cli.all)) {
        Command::Cluster(cluster) => match runtime.block_on(cluster::run(cluster))? {
            0 => Ok(()),
            code => std::process::exit(code),
        },
        Command::All(all) => runtime.block_on(report::run(&all)),
        Command::Rocksdb(Rocksdb { dir, payload, batch, seconds }) => {
            let rate = raw::entries_per_second(&dir, payload, batch, seconds)?;
            println!("RocksDB, {payload}-byte values, one sync for each {batch}: {rate:.0} entries/s");
            Ok(())
        }
        Command::Echo(Echo { payload, inflight, seconds }) => runtime.block_on(async {
            let server = echo::Server::start()?;
            let unary = server.unary(payload, inflight, seconds).await?;
            let append = server.append(payload, inflight, seconds).await?;
            let size = echo::entry_size(payload);
            let stream = server.stream(size, seconds).await?;
            println!("tonic echo, unary, {inflight} under way: {unary:.0} calls/s");
            println!("tonic, appends answered and not stored, {inflight} under way: {append:.0} calls/s");
            println!("tonic, server stream of {size}-byte messages: {stream:.0} messages/s");
            Ok(())
        }),
        Command::Fdatasync(Fdatasync { dir, count }) => {
            for (how, latency) in [
                ("appended to a file", disk::fdatasync(&dir, count)?),
                ("overwritten in a file", disk::fdatasync_in_place(&dir, count)?),
            ] {
                let micros = |quantile| latency.value_at_quantile(quantile) / 1000;
                println!("fdatasync of 4 KiB {how}: median {} µs, p99 {} µs", micros(0.5), micros(0.99));
            }
            Ok(())
        }
        Command::Families(Families { dir, count }) => families::run(&dir, count),
        Command::EchoServer => runtime.block_on(echo::serve()),
    }
}
