//! Measurements that `ledgerctl bench` does not have, made with the SDK.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use ledger_client::{Append, Client, ContextId, Key, Options, Selection, Sequence};

/// Appends under way while filling.
const WINDOW: usize = 8192;

pub(crate) fn client(endpoint: &str) -> anyhow::Result<Client> {
    Ok(Client::connect(endpoint, &Options::default())?)
}

/// Appends entries of 256 bytes, round robin over contexts; `key_of` names each entry's key.
pub(crate) async fn fill(
    client: &Client,
    prefix: &str,
    contexts: u64,
    entries: u64,
    key_of: impl Fn(u64) -> &'static str + Send + 'static,
) -> anyhow::Result<()> {
    let (mut appender, mut receipts) = client.appender(WINDOW).await?;
    let prefix = prefix.to_owned();
    let sending = tokio::spawn(async move {
        let payload = bytes::Bytes::from(vec![7; 256]);
        for number in 0..entries {
            let context = ContextId::new(format!("{prefix}-{}", number % contexts))?;
            appender.send(Append::new(&context, key_of(number), payload.clone())?).await?;
        }
        appender.finish();
        anyhow::Ok(())
    });
    let (mut done, mut said) = (0_u64, Instant::now());
    while let Some(receipt) = receipts.next().await? {
        receipt.result?;
        done += 1;
        if said.elapsed() > Duration::from_secs(10) {
            eprintln!("bench: {done} of {entries} entries appended");
            said = Instant::now();
        }
    }
    sending.await?
}

/// Median time to get ten entries of a rare key out of a million, of eleven tries.
pub(crate) async fn filtered_get(client: &Client) -> anyhow::Result<Duration> {
    let rare = |number| if number % 100_000 == 50_000 { "rare" } else { "facts" };
    fill(client, "filtered", 1, 1_000_000, rare).await?;
    let context = ContextId::new("filtered-0")?;
    let mut times = Vec::new();
    for _ in 0..11 {
        let selection = Selection { key: Some(Key::new("rare")?), ..Selection::default() };
        let begin = Instant::now();
        let found = client.get(&context, selection).collect().await?;
        times.push(begin.elapsed());
        anyhow::ensure!(found.len() == 10, "{} entries of the rare key came, not 10", found.len());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Time until a context can be read, from the start of the node.
pub(crate) async fn first_read(endpoint: &str, context: &str) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let selection = Selection { limit: 1, ..Selection::default() };
    let found = client(endpoint)?.get(&ContextId::new(context)?, selection).collect().await?;
    anyhow::ensure!(found.len() == 1, "the entry is missing after the restart");
    Ok(begin.elapsed())
}

/// The median time to make an inclusion proof in the largest context of a data directory, in process.
pub(crate) fn proof(dir: &Path) -> anyhow::Result<Duration> {
    let ledger = ledger_store::Ledger::open(dir)?;
    let contexts = ledger.contexts("", "", 100_000)?;
    let largest = contexts.iter().max_by_key(|info| info.size).context("there is no context to prove in")?;
    let mut took = Vec::new();
    for _ in 0..2000 {
        let sequence = Sequence(rand::random_range(1..=largest.size.0));
        let since = Instant::now();
        ledger.prove_inclusion(&largest.context, sequence, None)?;
        took.push(since.elapsed());
    }
    took.sort_unstable();
    ledger.close()?;
    Ok(took[took.len() / 2])
}
