//! Inclusion proofs: made by the node, verified here.

use std::time::{Duration, Instant};

use ledger_client::{ClientError, KnownCheckpoints, Selection, Sequence, Size, Trust};
use ledger_proto::ledger::v1::InclusionProofRequest;
use rand::RngExt as _;

use super::{
    fill,
    measured::{Measured, histogram, micros, record},
};
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
    let trust = Trust::on_first_use(KnownCheckpoints::in_memory());
    let checkpoint = client.trusted_checkpoint_at(&context, Size(entries), &trust).await?;
    let middle = Selection::default().after(Sequence(entries / 2)).at_most(1);
    let middle = client.get(&context, middle).collect().await?;
    let missing = || ClientError::NotVerified("the ledger does not show the entry in the middle".to_owned());
    let proven = client.prove_inclusion(middle.first().ok_or_else(missing)?, &checkpoint).await?;
    let (content_hash, root) = (proven.entry().content_hash, checkpoint.head().root);
    for _ in 0..10_000 {
        let since = Instant::now();
        proven.proof().verify_in(checkpoint.suite(), &content_hash, &root)?;
        record(&mut verified, since);
    }
    Ok(Measured::new(operations, elapsed, made.clone())
        .with("make_p50_us", micros(&made, 0.5))
        .with("verify_p50_us", micros(&verified, 0.5))
        .with("entries", entries))
}
