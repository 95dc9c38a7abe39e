//! `ledgerctl`: the command line of Converge Ledger.

mod append;
mod args;
mod bench;
mod cluster;
mod contexts;
mod escape;
mod exit;
mod forks;
mod interest;
mod output;
mod progress;
mod prove;
mod reach;
mod read;
mod spool;
mod transfer;
mod trust;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;

/// Many small allocations on several threads: what an RPC server does all day.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return exit::usage(&error, std::env::args_os().any(|arg| arg == "--json")),
    };
    let json = args.json;
    let endpoint = args.connection.endpoint.clone();
    // One thread drives hundreds of thousands of requests a second, and leaves the rest to a node beside it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let ran = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let ran = runtime.block_on(run(args));
        // A thread may wait for standard input for ever.
        runtime.shutdown_background();
        ran
    });
    exit::code(ran, json, &endpoint)
}

async fn run(args: args::Args) -> anyhow::Result<()> {
    use args::Command;
    let output = output::Output::new(args.json);
    match args.command {
        Command::Append(command) => append::run(&args.connection.client()?, command, &output).await,
        Command::Get(command) => read::get(&args.connection, command, &output).await,
        Command::Watch(command) => read::watch(&args.connection, command, &output).await,
        Command::Snapshot(command) => transfer::snapshot(&args.connection.client()?, command, &output).await,
        Command::Load(command) => transfer::load(&args.connection.client()?, command, &output).await,
        Command::Checkpoint(command) => prove::checkpoint(&args.connection, command, &output).await,
        Command::Prove(command) => prove::run(&args.connection, command, &output).await,
        Command::Verify(command) => verify::run(command, &output),
        Command::Contexts(command) => contexts::run(&args.connection.client()?, command, &output).await,
        Command::Forks(command) => forks::run(&args.connection, command, &output).await,
        Command::Interest(command) => interest::run(&args.connection.client()?, command, &output).await,
        Command::Cluster(command) => cluster::run(&args.connection, command, &output).await,
        Command::Bench(command) => bench::run(&args.connection, command, &output).await,
        Command::Completions { shell } => {
            let mut command = <args::Args as clap::CommandFactory>::command();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "ledgerctl", &mut script);
            Ok(output::print(&script)?)
        }
    }
}
