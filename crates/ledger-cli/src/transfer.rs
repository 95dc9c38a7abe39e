//! `ledgerctl snapshot` and `ledgerctl load`.

use std::{io::IsTerminal as _, path::Path};

use anyhow::Context as _;
use ledger_client::{Client, ClientError, ContextId, SnapshotInfo};
use serde_json::{Value, json};
use tokio::{fs::File, io::AsyncSeekExt as _};

use crate::{
    args,
    output::{self, Output},
    progress, read,
    spool::Spool,
};

pub(crate) async fn snapshot(
    client: &Client,
    command: args::Snapshot,
    output: &Output,
) -> anyhow::Result<()> {
    let context = ContextId::new(&command.context).map_err(ClientError::from)?;
    // Before anything is written: an empty backup looks like one.
    if !command.allow_empty && !read::exists(client, &context).await? {
        return Err(read::absent(&context));
    }
    let bar = progress::bytes(None);
    let info = match &command.output {
        Some(path) => {
            let write = async |file: &mut File| {
                client.snapshot(&context, file, |bytes| bar.set_position(bytes)).await
            };
            to_file(path, write).await?
        }
        None if std::io::stdout().is_terminal() => {
            let message = "a snapshot is binary: name a file with --output, or redirect standard output";
            return Err(ClientError::Invalid(message.to_owned()).into());
        }
        None => client.snapshot(&context, &mut tokio::io::stdout(), |bytes| bar.set_position(bytes)).await?,
    };
    bar.finish_and_clear();
    let (object, text) = (object(&context, &info), line(&context, &info));
    match &command.output {
        Some(_) => output.result(&object, || text)?,
        // Standard output holds the snapshot.
        None if output.is_json() => output::complain(&output::json_line(object)),
        None => output::complain(&text),
    }
    Ok(())
}

/// Writes a snapshot to a file: beside its place first, so that a broken transfer leaves no file that looks whole.
pub(crate) async fn to_file(
    path: &Path,
    write: impl AsyncFnOnce(&mut File) -> Result<SnapshotInfo, ClientError>,
) -> anyhow::Result<SnapshotInfo> {
    let partial = path.with_added_extension("partial");
    let mut file =
        File::create(&partial).await.with_context(|| format!("{} cannot be written", partial.display()))?;
    let written = write(&mut file).await;
    let synced = file.sync_all().await;
    match written.and_then(|info| synced.map(|()| info).map_err(ClientError::from)) {
        Ok(info) => {
            tokio::fs::rename(&partial, path).await?;
            Ok(info)
        }
        Err(error) => {
            // The message is about the transfer, whatever becomes of the rest.
            let _ = tokio::fs::remove_file(&partial).await;
            Err(error.into())
        }
    }
}

/// What a snapshot holds, as an object.
pub(crate) fn object(context: &ContextId, info: &SnapshotInfo) -> Value {
    json!({
        "context_id": context.as_str(), "entries": info.count.0, "root": info.root.to_string(),
        "bytes": info.bytes, "version": info.version,
    })
}

/// What a snapshot holds, for people.
pub(crate) fn line(context: &ContextId, info: &SnapshotInfo) -> String {
    format!("{} entries of {context} in {} bytes, root {}", info.count, info.bytes, info.root)
}

pub(crate) async fn load(client: &Client, command: args::Load, output: &Output) -> anyhow::Result<()> {
    let context = ContextId::new(&command.context).map_err(ClientError::from)?;
    let loaded = if command.file.as_os_str() == "-" {
        let bar = progress::bytes(None);
        let progress = |bytes| bar.set_position(bytes);
        let mut input = Spool::new(tokio::io::stdin());
        let loaded = client.load_again(&context, command.fail_if_exists, &mut input, progress).await?;
        bar.finish_and_clear();
        loaded
    } else {
        let named = || format!("{} cannot be read", command.file.display());
        let mut file = File::open(&command.file).await.with_context(named)?;
        let bar = progress::bytes(Some(file.metadata().await.with_context(named)?.len()));
        let progress = |bytes| bar.set_position(bytes);
        let loaded = if file.stream_position().await.is_ok() {
            client.load_again(&context, command.fail_if_exists, &mut file, progress).await?
        } else {
            // A pipe.
            client.load_again(&context, command.fail_if_exists, &mut Spool::new(file), progress).await?
        };
        bar.finish_and_clear();
        loaded
    };
    let object = json!({
        "context_id": context.as_str(), "restored": loaded.restored, "latest_sequence": loaded.latest.0,
    });
    output.result(&object, || {
        format!("{} entries restored; {context} has {} now", loaded.restored, loaded.latest)
    })?;
    Ok(())
}
