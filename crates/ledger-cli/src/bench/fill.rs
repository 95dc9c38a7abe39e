//! Contexts that are filled once and measured again.

use ledger_client::{Append, Client, ContextId, Selection};

use super::{ledger::PREFIX, payload::payload};
use crate::progress;

/// Appends under way while filling.
const WINDOW: usize = 8192;

/// A context with at least so many entries of that payload: the one of an earlier run, or a new one.
pub(crate) async fn context(client: &Client, entries: u64, payload_len: usize) -> anyhow::Result<ContextId> {
    let context = ContextId::new(format!("{PREFIX}fill/{entries}/{payload_len}"))?;
    let mut probe = client.get(&context, Selection { limit: 1, ..Selection::default() });
    probe.next().await?;
    let there = probe.latest().0;
    if there >= entries {
        return Ok(context);
    }
    let (mut appender, mut receipts) = client.appender(WINDOW).await?;
    let append = Append::new(&context, "facts", payload(payload_len))?;
    let sending = tokio::spawn(async move {
        for _ in there..entries {
            appender.send(append.clone()).await?;
        }
        appender.finish();
        Ok::<_, ledger_client::ClientError>(())
    });
    let bar = progress::entries(Some(entries - there));
    while let Some(receipt) = receipts.next().await? {
        receipt.result?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    sending.await??;
    Ok(context)
}
