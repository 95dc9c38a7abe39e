//! One append a call.

use std::time::{Duration, Instant};

use ledger_client::{Append, ContextId};

use super::{
    ledger,
    measured::{Measured, histogram, record},
    payload::payload,
};
use crate::args::{Connection, Shape};

/// Not counted, at the beginning.
const WARM_UP: Duration = Duration::from_millis(500);

pub(crate) async fn run(connection: &Connection, shape: &Shape) -> anyhow::Result<Measured> {
    let run = ledger::run("unary");
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs_f64(shape.seconds);
    let payload = payload(shape.payload);
    let mut tasks = Vec::new();
    let client = connection.client()?;
    for number in 0..shape.inflight {
        let client = client.clone();
        let context = ContextId::new(format!("{run}/{}", number % shape.contexts))?;
        let append = Append::new(&context, "facts", payload.clone())?;
        tasks.push(tokio::spawn(async move {
            let mut latency = histogram()?;
            let mut counted = 0;
            loop {
                let since = Instant::now();
                if since >= end {
                    return anyhow::Ok((counted, latency));
                }
                client.append(append.clone()).await?;
                if since >= begin {
                    counted += 1;
                    record(&mut latency, since);
                }
            }
        }));
    }
    let mut latency = histogram()?;
    let mut operations = 0;
    for task in tasks {
        let (counted, part) = task.await??;
        operations += counted;
        latency.add(part)?;
    }
    Ok(Measured::new(operations, end - begin, latency))
}
