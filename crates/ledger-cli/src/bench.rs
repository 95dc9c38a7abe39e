//! `ledgerctl bench`: measures a running node from outside.
//!
//! Each measurement ends with one line; with `--json`, one object that holds at least `ops_per_second`,
//! `p50_us`, `p99_us`, `operations` and `seconds`. Errors end it with a message and an exit code.

mod append;
mod fill;
mod ledger;
mod proof;
mod replay;
mod unary;
mod watch;

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ledger_client::ClientError;
use serde_json::{Value, json};

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

/// What was measured.
pub(crate) struct Measured {
    operations: u64,
    elapsed: Duration,
    latency: Histogram<u64>,
    more: Vec<(&'static str, Value)>,
}

impl Measured {
    fn new(operations: u64, elapsed: Duration, latency: Histogram<u64>) -> Self {
        Self { operations, elapsed, latency, more: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.more.push((name, value.into()));
        self
    }

    fn rate(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn object(&self, name: &str) -> Value {
        let mut object = json!({
            "bench": name,
            "ops_per_second": (self.rate() * 10.0).round() / 10.0,
            "p50_us": micros(&self.latency, 0.5),
            "p99_us": micros(&self.latency, 0.99),
            "operations": self.operations,
            "seconds": (self.elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
        });
        for (name, value) in &self.more {
            object[*name] = value.clone();
        }
        object
    }

    fn text(&self, name: &str) -> String {
        let mut text = format!(
            "{name}: {:.0} per second; p50 {} µs, p99 {} µs; {} in {:.1} s",
            self.rate(),
            micros(&self.latency, 0.5),
            micros(&self.latency, 0.99),
            self.operations,
            self.elapsed.as_secs_f64()
        );
        for (name, value) in &self.more {
            text = format!("{text}; {name} {value}");
        }
        text
    }
}

/// A histogram of nanoseconds, up to a minute.
pub(crate) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

/// Records a latency.
pub(crate) fn record(latency: &mut Histogram<u64>, since: Instant) {
    latency.saturating_record(since.elapsed().as_nanos() as u64);
}

/// A quantile in microseconds.
pub(crate) fn micros(latency: &Histogram<u64>, quantile: f64) -> f64 {
    (latency.value_at_quantile(quantile) as f64 / 100.0).round() / 10.0
}
