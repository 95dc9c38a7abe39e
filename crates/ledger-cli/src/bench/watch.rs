//! Many watchers of one context that is appended to at a steady rate.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ledger_client::{Append, ClientError, ContextId, Selection};
use tokio::sync::watch;

use super::{
    ledger,
    measured::{Measured, histogram, micros},
    payload::payload,
};
use crate::args::{Connection, Shape};

/// Watchers of one connection.
const PER_CONNECTION: u64 = 250;
/// How long the last entries may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn run(
    connection: &Connection,
    shape: &Shape,
    watchers: u64,
    rate: u64,
) -> anyhow::Result<Measured> {
    if !(1..=1_000_000).contains(&rate) || !(1..=100_000).contains(&watchers) {
        let message = "--rate must be 1 to 1000000, --watchers 1 to 100000".to_owned();
        return Err(ClientError::Invalid(message).into());
    }
    let context = ContextId::new(ledger::run("watch"))?;
    let writer = connection.client()?;
    writer
        .append(Append::new(&context, "facts", "the first entry: every watcher is there when it has it")?)
        .await?;
    let count = Duration::from_secs_f64(shape.seconds).as_millis() as u64 * rate / 1000;
    let total = count + 1;
    let (ready, mut all_ready) = watch::channel(0_u64);
    let mut tasks = Vec::new();
    let mut client = connection.client()?;
    for number in 0..watchers {
        if number > 0 && number % PER_CONNECTION == 0 {
            client = connection.client()?;
        }
        let mut watch = client.watch(&context, Selection::default());
        let ready = ready.clone();
        tasks.push(tokio::spawn(async move {
            let mut latency = histogram()?;
            for expected in 1..=total {
                let ended = || ClientError::Unavailable("the watch has ended".into());
                let entry = watch.next().await?.ok_or_else(ended)?;
                if entry.sequence.0 != expected {
                    let message = format!("entry {} came where {expected} was next", entry.sequence);
                    return Err(ClientError::NotVerified(message).into());
                }
                if expected == 1 {
                    ready.send_modify(|ready| *ready += 1);
                } else {
                    latency.saturating_record(now_ns().saturating_sub(entry.appended_at_ns));
                }
            }
            anyhow::Ok(latency)
        }));
    }
    tokio::time::timeout(TIMEOUT, all_ready.wait_for(|ready| *ready == watchers))
        .await
        .map_err(|_| ClientError::TimedOut("the watchers are not all connected".into()))??;

    let mut latency = histogram()?;
    let payload = payload(shape.payload);
    let begin = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate as f64));
    let mut appends = tokio::task::JoinSet::new();
    for _ in 0..count {
        ticks.tick().await;
        let since = Instant::now();
        let (writer, append) = (writer.clone(), Append::new(&context, "facts", payload.clone())?);
        appends.spawn(async move { writer.append(append).await.map(|_| since.elapsed()) });
        while let Some(done) = appends.try_join_next() {
            latency.saturating_record(done??.as_nanos() as u64);
        }
    }
    while let Some(done) = appends.join_next().await {
        latency.saturating_record(done??.as_nanos() as u64);
    }
    let mut delivery = histogram()?;
    for task in tasks {
        let part = tokio::time::timeout(TIMEOUT, task)
            .await
            .map_err(|_| ClientError::TimedOut("not every watcher got every entry".into()))???;
        delivery.add(part)?;
    }
    let elapsed = begin.elapsed();
    Ok(Measured::new(watchers * count, elapsed, latency.clone())
        .with("append_p50_us", micros(&latency, 0.5))
        .with("append_p99_us", micros(&latency, 0.99))
        .with("delivery_p50_us", micros(&delivery, 0.5))
        .with("delivery_p99_us", micros(&delivery, 0.99))
        .with("watchers", watchers)
        .with("appends", count))
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
