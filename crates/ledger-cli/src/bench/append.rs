//! Streaming append: the load is spread over streams, each of a client of its own.
//!
//! A latency is measured for one entry of many: it shares the machine with the node.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use ledger_client::{Append, ClientError, ContextId};

use super::{
    ledger,
    measured::{Measured, histogram},
    payload::payload,
};
use crate::args::{Connection, Shape};

/// Not counted, at the beginning.
const WARM_UP: Duration = Duration::from_millis(500);
/// One entry of so many has its latency measured.
const SAMPLE: u64 = 16;

pub(crate) async fn run(connection: &Connection, shape: &Shape, streams: u64) -> anyhow::Result<Measured> {
    let streams = streams.clamp(1, shape.inflight.min(shape.contexts));
    let run = ledger::run("append");
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs_f64(shape.seconds);
    let mut tasks = Vec::new();
    for stream in 0..streams {
        let contexts = (stream..shape.contexts).step_by(streams as usize);
        let load = Load {
            contexts: contexts.map(|c| ContextId::new(format!("{run}/{c}"))).collect::<Result<_, _>>()?,
            payload: payload(shape.payload),
            window: (shape.inflight / streams) as usize,
            begin,
            end,
        };
        tasks.push(tokio::spawn(one_stream(connection.client()?, load)));
    }
    let mut latency = histogram()?;
    let mut operations = 0;
    for task in tasks {
        let (counted, part) = task.await??;
        operations += counted;
        latency.add(part)?;
    }
    Ok(Measured::new(operations, end - begin, latency).with("streams", streams))
}

/// One stream's share.
struct Load {
    contexts: Vec<ContextId>,
    payload: Bytes,
    window: usize,
    begin: Instant,
    end: Instant,
}

async fn one_stream(client: ledger_client::Client, load: Load) -> anyhow::Result<(u64, Histogram<u64>)> {
    let (mut appender, mut receipts) = client.appender(load.window).await?;
    let Load { contexts, payload, begin, end, .. } = load;
    let sent_at: Arc<Mutex<HashMap<u64, Instant>>> = Arc::default();
    let sampled = Arc::clone(&sent_at);
    let sending = tokio::spawn(async move {
        let templates: Vec<_> = contexts
            .iter()
            .map(|context| Append::new(context, "facts", payload.clone()))
            .collect::<Result<_, _>>()?;
        for (next, append) in (0_u64..).zip(templates.iter().cycle()) {
            let now = Instant::now();
            if now >= end {
                break;
            }
            if next % SAMPLE == 0 {
                sampled.lock().unwrap_or_else(PoisonError::into_inner).insert(next, now);
            }
            // The receipts say why it has ended.
            if appender.send(append.clone()).await.is_err() {
                break;
            }
        }
        appender.finish();
        Ok::<_, ClientError>(())
    });
    let mut counted = 0;
    let mut latency = histogram()?;
    while let Some(receipt) = receipts.next().await? {
        receipt.result?;
        let now = Instant::now();
        counted += u64::from(now >= begin && now < end);
        if receipt.tag % SAMPLE == 0 {
            let at = sent_at.lock().unwrap_or_else(PoisonError::into_inner).remove(&receipt.tag);
            if let Some(at) = at.filter(|_| now >= begin) {
                latency.saturating_record(now.duration_since(at).as_nanos() as u64);
            }
        }
    }
    sending.await??;
    Ok((counted, latency))
}
