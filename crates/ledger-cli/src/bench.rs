//! `ledgerctl bench`: measures a running node from outside.
//!
//! Each measurement ends with one line; with `--json`, one object that holds at least `ops_per_second`,
//! `p50_us`, `p99_us`, `operations` and `seconds`. Errors end it with a message and an exit code.

mod append;
mod fill;
mod ledger;
mod measured;
mod payload;
mod proof;
mod replay;
mod unary;
mod watch;

use ledger_client::ClientError;

use crate::{
    args::{Bench, Connection, Shape},
    output::Output,
};

pub(crate) async fn run(connection: &Connection, command: Bench, output: &Output) -> anyhow::Result<()> {
    let (Bench::Append { load, .. }
    | Bench::Unary { load }
    | Bench::Replay { load, .. }
    | Bench::Watch { load, .. }
    | Bench::Proof { load, .. }) = &command;
    checked(load.clone())?;
    ledger::allow(&connection.client()?, load.yes, output).await?;
    let (name, result) = match command {
        Bench::Append { load, streams } => {
            ("append", append::run(connection, &checked(load)?, streams).await?)
        }
        Bench::Unary { load } => ("unary", unary::run(connection, &checked(load)?).await?),
        Bench::Replay { load, entries, watch } => {
            ("replay", replay::run(connection, &checked(load)?, entries, watch).await?)
        }
        Bench::Watch { load, watchers, rate } => {
            ("watch", watch::run(connection, &checked(load)?, watchers, rate).await?)
        }
        Bench::Proof { load, entries } => ("proof", proof::run(connection, &checked(load)?, entries).await?),
    };
    let object = result.object(name);
    output.result(&object, || result.text(name))?;
    Ok(())
}

fn checked(load: Shape) -> Result<Shape, ClientError> {
    let refuse = |message: &str| Err(ClientError::Invalid(message.to_owned()));
    if load.contexts == 0 || load.contexts > 10_000_000 {
        return refuse("--contexts must be 1 to 10000000");
    }
    if load.inflight == 0 || load.inflight > 1 << 20 {
        return refuse("--inflight must be 1 to 1048576");
    }
    if !(0.1..=86_400.0).contains(&load.seconds) {
        return refuse("--seconds must be 0.1 to 86400");
    }
    if load.payload > 64 << 20 {
        return refuse("--payload must be at most 67108864 bytes");
    }
    Ok(load)
}
