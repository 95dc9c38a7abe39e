//! Appends to a node, reads, and watches. Start one with `./dev run`, then
//! `cargo run --release --example quickstart`.

use ledger_client::{Append, Client, ContextId, KnownCheckpoints, Options, Selection, Trust};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let endpoint = std::env::var("LEDGER_ENDPOINT").unwrap_or_else(|_| "http://127.0.0.1:50051".to_owned());
    let client = Client::connect(&endpoint, &Options::default())?;
    let context = ContextId::new("growth-strategy-001")?;

    let appended = client.append(Append::new(&context, "facts", "market_size: 2.4B")?).await?;
    println!("stored as entry {} with id {}", appended.entry.sequence, appended.entry.id);

    // Many at once: pipelined, and acknowledged in order.
    let (mut appender, mut receipts) = client.appender(1024).await?;
    for number in 0..100 {
        appender.send(Append::new(&context, "traces", format!("step {number}"))?).await?;
    }
    appender.finish();
    while let Some(receipt) = receipts.next().await? {
        receipt.result?;
    }

    // What was there, then what is to come.
    let mut watch = client.watch(&context, Selection::default());
    while let Some(entry) = watch.next().await? {
        println!("{} {} {:?}", entry.sequence, entry.key, entry.payload);
        if entry.sequence >= appended.entry.sequence {
            break;
        }
    }

    // What is read, proven: from now on this client believes only what continues the first that it saw.
    let trust = Trust::on_first_use(KnownCheckpoints::in_memory());
    let checkpoint = client.trusted_checkpoint(&context, &trust).await?;
    let proven = client.prove_inclusion(&appended.entry, &checkpoint).await?;
    println!("entry {} is one of {}", proven.entry().sequence, proven.checkpoint());
    Ok(())
}
