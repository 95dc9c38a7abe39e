//! Streaming append: the load is spread over streams, each on a connection of its own.
//!
//! Lean, because it shares the machine with the node: messages are built from parts that are cheap to
//! clone, and a latency is measured for one entry of each message.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use ledger_client::ClientError;
use ledger_proto::{
    context::v1::AppendRequest,
    ledger::v1::{AppendBatch, AppendItem},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Measured, histogram};
use crate::args::{Connection, Shape};

/// Most entries of one message.
const MAX_BATCH: u64 = 256;
/// Most bytes of payload of one message.
const MAX_BYTES: u64 = 1 << 20;
/// Not counted, at the beginning.
const WARM_UP: Duration = Duration::from_millis(500);

pub(crate) async fn run(connection: &Connection, shape: &Shape, streams: u64) -> anyhow::Result<Measured> {
    let streams = streams.clamp(1, shape.inflight.min(shape.contexts));
    let run = format!("bench-append-{}", uuid::Uuid::now_v7().simple());
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs_f64(shape.seconds);
    let mut tasks = Vec::new();
    for stream in 0..streams {
        let contexts =
            (stream..shape.contexts).step_by(streams as usize).map(|c| format!("{run}-{c}")).collect();
        let window = shape.inflight / streams;
        let payload = payload(shape.payload);
        let load = Load {
            contexts,
            payload,
            window,
            batch: (window / 4).clamp(1, MAX_BATCH).min((MAX_BYTES / shape.payload.max(1) as u64).max(1)),
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

/// Bytes that do not compress, the same in every entry.
pub(crate) fn payload(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes.into()
}

/// One stream's share.
struct Load {
    contexts: Vec<String>,
    payload: Bytes,
    window: u64,
    batch: u64,
    begin: Instant,
    end: Instant,
}

impl Load {
    fn message(&self, first: u64) -> AppendBatch {
        let items = (first..first + self.batch).map(|tag| AppendItem {
            tag,
            request: Some(AppendRequest {
                context_id: self.contexts[tag as usize % self.contexts.len()].clone(),
                key: "facts".to_owned(),
                payload: self.payload.clone(),
                ..AppendRequest::default()
            }),
        });
        AppendBatch { items: items.collect() }
    }
}

async fn one_stream(client: ledger_client::Client, load: Load) -> anyhow::Result<(u64, Histogram<u64>)> {
    let (messages, outgoing) = mpsc::channel(64);
    let mut messages = Some(messages);
    let mut results = client.ledger_service().append(ReceiverStream::new(outgoing)).await?.into_inner();
    // When each message was sent: its first tag is its place times the batch.
    let mut sent_at: Vec<Instant> = Vec::new();
    let (mut sent, mut done, mut counted) = (0, 0, 0);
    let mut latency = histogram()?;
    loop {
        if Instant::now() >= load.end {
            messages = None;
        }
        while let Some(messages) =
            messages.as_ref().filter(|_| sent - done + load.batch <= load.window.max(load.batch))
        {
            sent_at.push(Instant::now());
            let message = load.message(sent);
            sent += load.batch;
            if messages.send(message).await.is_err() {
                break;
            }
        }
        let Some(message) = results.message().await? else { break };
        let now = Instant::now();
        done += message.results.len() as u64;
        if now >= load.begin && now < load.end {
            counted += message.results.len() as u64;
        }
        for result in &message.results {
            if let Some(error) = &result.error {
                return Err(ClientError::Unavailable(format!("an append failed: {}", error.message)).into());
            }
            if result.tag % load.batch == 0 && now >= load.begin {
                let at = sent_at[(result.tag / load.batch) as usize];
                latency.saturating_record(now.duration_since(at).as_nanos() as u64);
            }
        }
    }
    if done < sent {
        let message = format!("the stream ended with {} appends unanswered", sent - done);
        return Err(ClientError::Unavailable(message).into());
    }
    Ok((counted, latency))
}
