//! A stream of appends through the SDK, as fast as a window allows: how many a second, and how long each takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use hdrhistogram::Histogram;
use ledger_client::{Append, Client, ContextId};
use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::run::PAYLOAD;

/// Not counted, at the beginning.
const WARM_UP: Duration = Duration::from_millis(500);
/// One of so many has its time taken.
const TIMED: u64 = 16;

/// What is appended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) contexts: u64,
    pub(super) window: usize,
    pub(super) seconds: f64,
}

/// What came of it.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) per_second: f64,
    /// All that was appended, what is not counted included.
    pub(super) total: u64,
    latency: Histogram<u64>,
}

impl Measured {
    /// A quantile of the time from sending an append to its receipt, milliseconds.
    pub(super) fn millis(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }
}

/// Bytes that do not compress, the same in every entry.
pub(super) fn payload(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes.into()
}

/// Names of contexts that no other run has.
pub(super) fn contexts(prefix: &str, count: u64) -> anyhow::Result<Vec<ContextId>> {
    let run = rand::random::<u64>();
    (0..count).map(|number| Ok(ContextId::new(format!("{prefix}-{run:016x}-{number}"))?)).collect()
}

/// Appends for a while, to contexts of its own.
pub(super) async fn run(client: &Client, shape: Shape) -> anyhow::Result<Measured> {
    let contexts = contexts("stream", shape.contexts)?;
    let payload = payload(PAYLOAD);
    let (mut appender, mut receipts) = client.appender(shape.window).await?;
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs_f64(shape.seconds);
    let times = Arc::new(Mutex::new(Vec::new()));
    let sent = Arc::clone(&times);
    let sending = AbortOnDropHandle::new(tokio::spawn(async move {
        for (number, context) in (0_u64..).zip(contexts.iter().cycle()) {
            let now = Instant::now();
            if now >= end {
                break;
            }
            let append = Append::new(context, "facts", payload.clone())?;
            if number.is_multiple_of(TIMED) {
                sent.lock().push(now);
            }
            appender.send(append).await?;
        }
        appender.finish();
        anyhow::Ok(())
    }));
    let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let (mut counted, mut total) = (0_u64, 0);
    while let Some(receipt) = receipts.next().await? {
        receipt.result.context("an append failed")?;
        let now = Instant::now();
        total += 1;
        if now < begin || now >= end {
            continue;
        }
        counted += 1;
        if receipt.tag.is_multiple_of(TIMED) {
            let place = usize::try_from(receipt.tag / TIMED)?;
            let at = times.lock().get(place).copied();
            let at = at.context("a receipt for what was not sent")?;
            latency.saturating_record(now.duration_since(at).as_nanos() as u64);
        }
    }
    sending.await??;
    Ok(Measured { per_second: counted as f64 / shape.seconds, total, latency })
}

/// Appends as fast as a window allows, until it is stopped.
#[derive(Debug)]
pub(super) struct Pump {
    acknowledged: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: [AbortOnDropHandle<anyhow::Result<()>>; 2],
    /// Why an append failed.
    failure: Arc<Mutex<Option<String>>>,
}

impl Pump {
    pub(super) async fn start(client: &Client, count: u64, window: usize) -> anyhow::Result<Self> {
        let contexts = contexts("pump", count)?;
        let payload = payload(PAYLOAD);
        let (mut appender, mut receipts) = client.appender(window).await?;
        let (stop, acknowledged) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), Arc::clone(&acknowledged));
        let sending = tokio::spawn(async move {
            for context in contexts.iter().cycle() {
                if stopped.is_cancelled() {
                    break;
                }
                appender.send(Append::new(context, "facts", payload.clone())?).await?;
            }
            appender.finish();
            Ok(())
        });
        let failure = Arc::new(Mutex::new(None));
        let failed = Arc::clone(&failure);
        let receiving = tokio::spawn(async move {
            while let Some(receipt) = receipts.next().await? {
                if let Err(error) = receipt.result {
                    failed.lock().get_or_insert(error.to_string());
                    anyhow::bail!("an append failed: {error}");
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self { acknowledged, stop, tasks: [sending, receiving].map(AbortOnDropHandle::new), failure })
    }

    /// Entries acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Fails if appending ended.
    pub(super) fn works(&self) -> anyhow::Result<()> {
        if let Some(failure) = self.failure.lock().clone() {
            anyhow::bail!("an append failed: {failure}");
        }
        anyhow::ensure!(!self.tasks.iter().any(AbortOnDropHandle::is_finished), "appending ended early");
        Ok(())
    }

    /// Entries acknowledged a second, from now on for a while.
    pub(super) async fn rate(&self, seconds: f64) -> anyhow::Result<f64> {
        let (begin, before) = (Instant::now(), self.acknowledged());
        sleep(Duration::from_secs_f64(seconds)).await;
        self.works()?;
        Ok((self.acknowledged() - before) as f64 / begin.elapsed().as_secs_f64())
    }

    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        for task in self.tasks {
            task.await??;
        }
        Ok(())
    }
}
