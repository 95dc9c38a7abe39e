//! `ledgerctl get` and `ledgerctl watch`.

use ledger_client::{Client, ClientError, ContextId, Key, ReadFrom, Selection, Sequence};

use crate::{
    args::{self, Connection, PayloadFormat},
    exit::Absent,
    output::{self, Output},
    trust,
};

fn selection(key: Option<String>, after: u64, limit: u32) -> Result<Selection, ClientError> {
    Ok(Selection {
        key: key.map(Key::new).transpose()?,
        after: Sequence(after),
        limit,
        ..Selection::default()
    })
}

/// The error of a context without entries.
pub(crate) fn absent(context: &ContextId) -> anyhow::Error {
    Absent(format!("there is no context {context}: nothing was ever appended to it (see ledgerctl contexts)"))
        .into()
}

/// Whether a context has entries: what a replica does not show yet, the owner does.
pub(crate) async fn exists(client: &Client, context: &ContextId) -> Result<bool, ClientError> {
    for read_from in [ReadFrom::AnyReplica, ReadFrom::Owner] {
        let mut probe = client.get(context, Selection { limit: 1, read_from, ..Selection::default() });
        let page = probe.next().await?;
        if probe.latest().0 > 0 || page.is_some_and(|page| !page.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) async fn get(connection: &Connection, command: args::Get, output: &Output) -> anyhow::Result<()> {
    let client = connection.client()?;
    let context = ContextId::new(&command.context).map_err(ClientError::from)?;
    let payload = if command.raw { PayloadFormat::Raw } else { command.payload };
    check_raw(payload, output)?;
    let mut selection = selection(command.key, command.after, command.limit)?;
    if command.verified.verify {
        let trust = trust::of(&command.verified, &connection.endpoint)?;
        let mut pages = client.get_verified(&context, selection, &trust);
        let mut told = false;
        while let Some(page) = pages.next().await? {
            if let Some(checkpoint) = pages.checkpoint().filter(|_| !std::mem::replace(&mut told, true)) {
                trust::tell(checkpoint, output);
            }
            for entry in page {
                output.entry(&entry, payload)?;
            }
        }
        let is_empty = pages.checkpoint().is_none_or(|checkpoint| checkpoint.head().size.0 == 0);
        return if is_empty && !command.allow_empty { Err(absent(&context)) } else { Ok(()) };
    }
    for read_from in [ReadFrom::AnyReplica, ReadFrom::Owner] {
        selection.read_from = read_from;
        let mut pages = client.get(&context, selection.clone());
        let mut is_empty = true;
        while let Some(page) = pages.next().await? {
            for entry in page {
                output.entry(&entry, payload)?;
                is_empty = false;
            }
        }
        // A replica may not know of it yet.
        if !is_empty || pages.latest().0 > 0 {
            return Ok(());
        }
    }
    if command.allow_empty { Ok(()) } else { Err(absent(&context)) }
}

pub(crate) async fn watch(
    connection: &Connection,
    command: args::Watch,
    output: &Output,
) -> anyhow::Result<()> {
    let client = connection.client()?;
    let context = ContextId::new(&command.context).map_err(ClientError::from)?;
    check_raw(command.payload, output)?;
    let selection = selection(command.key, command.from, 0)?;
    if !output.is_json() && !exists(&client, &context).await? {
        output.note(&format!("there is no context {context} yet: waiting for its first entry"));
    }
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut seen = 0;
    if command.verified.verify {
        let trust = trust::of(&command.verified, &connection.endpoint)?;
        let mut watch = client.watch_verified(&context, selection, &trust);
        while command.count == 0 || seen < command.count {
            tokio::select! {
                entry = watch.next() => match entry? {
                    Some(entry) => {
                        if seen == 0 {
                            trust::tell(entry.checkpoint(), output);
                        }
                        output.entry(&entry, command.payload)?;
                    }
                    None => break,
                },
                _ = &mut interrupted => break,
            }
            seen += 1;
        }
        return Ok(watch.finish().await?);
    }
    let mut watch = client.watch(&context, selection);
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

/// What is written as it is steers a terminal.
fn check_raw(payload: PayloadFormat, output: &Output) -> Result<(), ClientError> {
    let reason = match payload {
        PayloadFormat::Raw if output.is_json() => "raw payloads are no JSON: choose one of --json and raw",
        PayloadFormat::Raw if output::is_terminal() => {
            "raw payloads may steer a terminal: redirect standard output to a file or a pipe"
        }
        _ => return Ok(()),
    };
    Err(ClientError::Invalid(reason.to_owned()))
}
