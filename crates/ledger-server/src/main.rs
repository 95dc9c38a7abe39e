//! The daemon `ledgerd`.

use std::process::ExitCode;

use ledger_server::{args, permissions, serve, telemetry};

/// Many small allocations on several threads: what an RPC server does all day.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let config = match args::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    permissions::keep_private();
    telemetry::start(&config);
    serve::main(config)
}
