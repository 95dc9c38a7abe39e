//! The daemon `ledgerd`.

use std::process::ExitCode;

use ledger_server::{args, serve, telemetry};

fn main() -> ExitCode {
    let config = match args::parse() {
        Ok(config) => config,
        Err(code) => return code,
    };
    telemetry::start(&config);
    serve::main(config)
}
