//! The daemon `ledgerd`.

use std::process::ExitCode;

use ledger_server::{daemon::permissions, daemon::process, daemon::telemetry, settings::args};

/// Many allocations on several threads, of which some are let go of by others: what an RPC server does all day. RocksDB's are among
/// them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let config = match args::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    permissions::keep_private();
    telemetry::start(&config);
    process::main(config)
}
