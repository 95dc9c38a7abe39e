//! Reading a context from its beginning.

use std::time::{Duration, Instant};

use ledger_client::ClientError;
use ledger_proto::{context::v1::GetRequest, ledger::v1::WatchRequest};

use super::{Measured, fill, histogram, record};
use crate::args::{Connection, Shape};

pub(crate) async fn run(
    connection: &Connection,
    shape: &Shape,
    entries: u64,
    watch: bool,
) -> anyhow::Result<Measured> {
    let client = connection.client()?;
    let context = fill::context(&client, entries, shape.payload).await?;
    let mut latency = histogram()?;
    let (mut operations, mut passes) = (0, 0_u64);
    let begin = Instant::now();
    let mut elapsed = Duration::ZERO;
    // At least one whole pass.
    while passes == 0 || elapsed.as_secs_f64() < shape.seconds {
        let mut last = Instant::now();
        let mut seen = 0;
        let mut service = client.ledger_service();
        let context_id = context.as_str().to_owned();
        let mut count = |len: usize, first: Option<u64>| {
            if first.is_some_and(|first| first != seen + 1) {
                let message = format!("entry {} came after entry {seen}", first.unwrap_or_default());
                return Err(ClientError::NotVerified(message));
            }
            seen += len as u64;
            record(&mut latency, last);
            last = Instant::now();
            Ok(seen)
        };
        if watch {
            let request = WatchRequest { context_id, ..WatchRequest::default() };
            let mut stream = service.watch(request).await?.into_inner();
            while let Some(batch) = stream.message().await? {
                if count(batch.entries.len(), batch.entries.first().map(|entry| entry.sequence))? >= entries {
                    break;
                }
            }
        } else {
            let request = GetRequest { context_id, ..GetRequest::default() };
            let mut stream = service.get(request).await?.into_inner();
            while let Some(page) = stream.message().await? {
                count(page.entries.len(), page.entries.first().map(|entry| entry.sequence))?;
            }
        }
        if seen < entries {
            return Err(ClientError::NotVerified(format!("{seen} entries came where {entries} are")).into());
        }
        operations += seen;
        passes += 1;
        elapsed = begin.elapsed();
    }
    Ok(Measured::new(operations, elapsed, latency).with("passes", passes).with("entries", entries))
}
