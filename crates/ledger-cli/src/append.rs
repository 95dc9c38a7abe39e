//! `ledgerctl append`.

mod fates;
mod lines;

use std::{collections::BTreeMap, io::Read as _};

use anyhow::Context as _;
use ledger_client::{Append, Client, ClientError, ContextId, EntryId};

use crate::{
    args,
    output::{Output, entry_json},
};

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
        return lines::run(client, append, command.run, output).await;
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
