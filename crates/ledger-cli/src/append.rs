//! `ledgerctl append`.

use std::{collections::BTreeMap, io::Read as _};

use anyhow::Context as _;
use ledger_client::{Append, Client, ClientError, ContextId, EntryId};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::{
    args,
    output::{Output, entry_json},
    progress,
};

/// Lines under way.
const WINDOW: usize = 4096;

/// Metadata as `--meta` gives it.
pub(crate) fn metadata(pairs: &[String]) -> Result<BTreeMap<String, String>, ClientError> {
    let wrong = |pair: &String| ClientError::Invalid(format!("--meta {pair:?} is not KEY=VALUE"));
    let pair = |pair: &String| {
        let (key, value) = pair.split_once('=').ok_or_else(|| wrong(pair))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    pairs.iter().map(pair).collect()
}

pub(crate) async fn run(client: &Client, command: args::Append, output: &Output) -> anyhow::Result<()> {
    let context = ContextId::new(&command.context).map_err(ClientError::from)?;
    let mut append = Append::new(&context, command.key.clone(), "")?;
    append.received_lamport = command.received_lamport;
    append.metadata = metadata(&command.metadata)?;
    if let Some(id) = &command.entry_id {
        append.entry_id = Some(EntryId::new(id).map_err(ClientError::from)?);
    }
    append.durability = command.durability.into();
    if command.stdin_lines {
        return lines(client, append, output).await;
    }
    append.payload = payload(&command)?.into();
    let appended = client.append(append).await?;
    let mut object = entry_json(&appended.entry, args::PayloadFormat::None);
    object["root"] = appended.position.root.to_string().into();
    object["copies"] = appended.copies.into();
    output.result(&object, || {
        format!(
            "entry {} of {}, id {}",
            appended.entry.sequence, appended.entry.context_id, appended.entry.id
        )
    })?;
    Ok(())
}

fn payload(command: &args::Append) -> anyhow::Result<Vec<u8>> {
    match (&command.payload, &command.file) {
        (Some(text), _) => Ok(text.clone().into_bytes()),
        (None, Some(path)) if path.as_os_str() == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("standard input cannot be read")?;
            Ok(bytes)
        }
        (None, Some(path)) => {
            std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
        }
        (None, None) => Ok(Vec::new()),
    }
}

/// Appends each line of standard input, many under way. A line is sent once: if the connection breaks,
/// the message says how many were acknowledged.
async fn lines(client: &Client, template: Append, output: &Output) -> anyhow::Result<()> {
    let (mut appender, mut receipts) = client.appender(WINDOW).await?;
    let context = template.context.clone();
    let sending = tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).split(b'\n');
        while let Some(mut line) = lines.next_segment().await.context("standard input cannot be read")? {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            // The stream may have ended: the receipts say why.
            if appender.send(Append { payload: line.into(), ..template.clone() }).await.is_err() {
                break;
            }
        }
        appender.finish();
        anyhow::Ok(())
    });
    let bar = progress::entries(None);
    let (mut acknowledged, mut first, mut last) = (0_u64, None, 0);
    let received = async {
        while let Some(receipt) = receipts.next().await? {
            let stored = receipt.result?;
            first.get_or_insert(stored.sequence.0);
            last = stored.sequence.0;
            acknowledged += 1;
            bar.inc(1);
        }
        Ok::<_, ClientError>(())
    };
    let received = received.await;
    bar.finish_and_clear();
    received.with_context(|| format!("after {acknowledged} acknowledged lines"))?;
    sending.await??;
    output.result(
        &json!({ "context_id": context.as_str(), "appended": acknowledged, "first_sequence": first, "last_sequence": last }),
        || match first {
            Some(first) => format!("{acknowledged} entries appended to {context}: {first} to {last}"),
            None => "no lines, nothing appended".to_owned(),
        },
    )?;
    Ok(())
}
