//! Reading a context from its beginning.

use std::time::{Duration, Instant};

use ledger_client::{ClientError, Selection};

use super::{
    fill,
    measured::{Measured, histogram, record},
};
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
            let mut watch = client.watch(&context, Selection::default());
            while let Some(entry) = watch.next().await? {
                if count(1, Some(entry.sequence.0))? >= entries {
                    break;
                }
            }
        } else {
            let mut pages = client.get(&context, Selection::default());
            while let Some(page) = pages.next().await? {
                count(page.len(), page.first().map(|entry| entry.sequence.0))?;
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
