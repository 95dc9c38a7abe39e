//! Inclusion proofs: made by the node, verified here.

use std::time::{Duration, Instant};

use ledger_client::Sequence;
use ledger_proto::ledger::v1::InclusionProofRequest;
use rand::RngExt as _;

use super::{Measured, fill, histogram, micros, record};
use crate::args::{Connection, Shape};

pub(crate) async fn run(connection: &Connection, shape: &Shape, entries: u64) -> anyhow::Result<Measured> {
    let client = connection.client()?;
    let context = fill::context(&client, entries, shape.payload).await?;
    let (mut made, mut verified) = (histogram()?, histogram()?);
    let mut random = rand::rng();
    let begin = Instant::now();
    let end = begin + Duration::from_secs_f64(shape.seconds);
    let mut operations = 0;
    let mut service = client.integrity_service();
    while Instant::now() < end {
        let sequence = random.random_range(1..=entries);
        let request = InclusionProofRequest { context_id: context.to_string(), sequence, size: entries };
        let since = Instant::now();
        service.inclusion_proof(request).await?;
        record(&mut made, since);
        operations += 1;
    }
    let elapsed = begin.elapsed();
    let proven = client.prove_inclusion(&context, Sequence(entries / 2 + 1), None).await?;
    for _ in 0..10_000 {
        let since = Instant::now();
        proven.proof.verify_in(proven.suite, &proven.content_hash, &proven.root)?;
        record(&mut verified, since);
    }
    Ok(Measured::new(operations, elapsed, made.clone())
        .with("make_p50_us", micros(&made, 0.5))
        .with("verify_p50_us", micros(&verified, 0.5))
        .with("entries", entries))
}
