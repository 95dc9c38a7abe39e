//! `ledgerctl get` and `ledgerctl watch`.

use ledger_client::{Client, ClientError, ContextId, Key, Selection, Sequence};

use crate::{args, output::Output};

fn selection(key: Option<String>, after: u64, limit: u32) -> Result<Selection, ClientError> {
    Ok(Selection {
        key: key.map(Key::new).transpose()?,
        after: Sequence(after),
        limit,
        ..Selection::default()
    })
}

pub(crate) async fn get(client: &Client, command: args::Get, output: &Output) -> anyhow::Result<()> {
    let context = ContextId::new(&command.context).map_err(ClientError::from)?;
    let mut pages = client.get(&context, selection(command.key, command.after, command.limit)?);
    while let Some(page) = pages.next().await? {
        for entry in page {
            output.entry(&entry, command.payload)?;
        }
    }
    Ok(())
}

pub(crate) async fn watch(client: &Client, command: args::Watch, output: &Output) -> anyhow::Result<()> {
    let context = ContextId::new(&command.context).map_err(ClientError::from)?;
    let mut watch = client.watch(&context, selection(command.key, command.from, 0)?);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut seen = 0;
    while command.count == 0 || seen < command.count {
        tokio::select! {
            entry = watch.next() => match entry? {
                Some(entry) => output.entry(&entry, command.payload)?,
                None => break,
            },
            _ = &mut interrupted => break,
        }
        seen += 1;
    }
    Ok(())
}
