//! `ledgerctl snapshot` and `ledgerctl load`.

use std::{io::IsTerminal as _, path::Path};

use anyhow::Context as _;
use ledger_client::{Client, ClientError, ContextId, Loaded, SnapshotInfo};
use serde_json::{Value, json};
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncSeek, AsyncSeekExt as _},
};

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
    let once = command.fail_if_exists;
    let loaded = if command.file.as_os_str() == "-" {
        load_from(client, &context, once, &mut Spool::new(tokio::io::stdin()), None).await?
    } else {
        let named = || format!("{} cannot be read", command.file.display());
        let mut file = File::open(&command.file).await.with_context(named)?;
        let bytes = Some(file.metadata().await.with_context(named)?.len());
        if file.stream_position().await.is_ok() {
            load_from(client, &context, once, &mut file, bytes).await?
        } else {
            // A pipe.
            load_from(client, &context, once, &mut Spool::new(file), bytes).await?
        }
    };
    let object = json!({
        "context_id": context.as_str(), "restored": loaded.restored, "latest_sequence": loaded.latest.0,
    });
    output.result(&object, || {
        format!("{} entries restored; {context} has {} now", loaded.restored, loaded.latest)
    })?;
    Ok(())
}

/// Loads what is read, and shows how far it is, of so many bytes if that is known.
async fn load_from(
    client: &Client,
    context: &ContextId,
    fail_if_exists: bool,
    input: &mut (impl AsyncRead + AsyncSeek + Unpin),
    bytes: Option<u64>,
) -> Result<Loaded, ClientError> {
    let bar = progress::bytes(bytes);
    let loaded = client.load_again(context, fail_if_exists, input, |bytes| bar.set_position(bytes)).await?;
    bar.finish_and_clear();
    Ok(loaded)
}
