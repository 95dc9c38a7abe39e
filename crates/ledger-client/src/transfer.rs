//! Snapshots and loads of any size, in constant memory.

use bytes::Bytes;
use ledger_core::{ContextId, Hash, Size};
use ledger_proto::{context::v1::SnapshotRequest, ledger::v1::LoadChunk};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{Client, ClientError, convert};

/// Bytes of one chunk.
const CHUNK: usize = 256 << 10;
/// Chunks under way.
const CHUNKS: usize = 8;

/// What a snapshot holds.
#[derive(Debug, Clone)]
pub struct SnapshotInfo {
    /// Number of entries.
    pub count: Size,
    /// The Merkle root over them.
    pub root: Hash,
    /// Version of the format.
    pub version: u32,
    /// Bytes of the snapshot.
    pub bytes: u64,
}

/// What a load did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Entries added.
    pub restored: u64,
    /// Entries the context has now.
    pub latest: Size,
}

impl Client {
    /// Writes a snapshot of a context to `out`; `progress` is told the bytes so far.
    pub async fn snapshot(
        &self,
        context: &ContextId,
        out: &mut (impl AsyncWrite + Unpin),
        mut progress: impl FnMut(u64),
    ) -> Result<SnapshotInfo, ClientError> {
        let request = SnapshotRequest { context_id: context.as_str().to_owned() };
        let mut stream = self.ledger_service().snapshot(request).await?.into_inner();
        let (mut info, mut bytes) = (None, 0);
        while let Some(chunk) = stream.message().await? {
            if let Some(metadata) = chunk.metadata {
                info = Some((
                    metadata.entry_count,
                    convert::hash(&metadata.merkle_root, "root")?,
                    metadata.version,
                ));
            }
            out.write_all(&chunk.data).await?;
            bytes += chunk.data.len() as u64;
            progress(bytes);
        }
        out.flush().await?;
        let (count, root, version) = info.ok_or_else(|| ClientError::malformed("metadata"))?;
        Ok(SnapshotInfo { count: Size(count), root, version, bytes })
    }

    /// Loads a snapshot from `source`; `progress` is told the bytes so far. Nothing is visible before the
    /// ledger has verified all of it.
    pub async fn load(
        &self,
        context: &ContextId,
        fail_if_exists: bool,
        source: &mut (impl AsyncRead + Unpin),
        mut progress: impl FnMut(u64),
    ) -> Result<Loaded, ClientError> {
        let (chunks, outgoing) = mpsc::channel(CHUNKS);
        let mut service = self.ledger_service();
        let answer = tokio::spawn(async move { service.load(ReceiverStream::new(outgoing)).await });
        let mut chunk =
            LoadChunk { context_id: context.as_str().to_owned(), fail_if_exists, data: Bytes::new() };
        let mut sent = 0;
        loop {
            let mut buffer = vec![0; CHUNK];
            let read = source.read(&mut buffer).await?;
            if read == 0 && sent > 0 {
                break;
            }
            buffer.truncate(read);
            chunk.data = buffer.into();
            sent += read as u64;
            // The ledger ends the stream early when it refuses: its answer says why.
            if chunks.send(std::mem::take(&mut chunk)).await.is_err() || read == 0 {
                break;
            }
            progress(sent);
        }
        drop(chunks);
        let answer = answer.await.map_err(|error| ClientError::Unavailable(error.to_string()))?;
        let answer = answer?.into_inner();
        Ok(Loaded { restored: answer.entries_restored, latest: Size(answer.latest_sequence) })
    }
}
