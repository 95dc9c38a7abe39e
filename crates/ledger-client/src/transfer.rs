//! Snapshots and loads of any size, in constant memory.

use bytes::Bytes;
use ledger_core::{ContextId, Hash, Size};
use ledger_proto::{
    context::v1::{LoadResponse, SnapshotRequest},
    ledger::v1::LoadChunk,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, transport::Channel};

use crate::{
    Client, ClientError, convert,
    refusal::Failure,
    retry::{Attempts, Failed},
    route::Aim,
};

/// Bytes of one chunk.
const CHUNK: usize = 256 << 10;
/// Chunks under way.
const CHUNKS: usize = 8;
/// Bytes of a load that are kept to be sent again, to another node if need be.
pub const KEPT: usize = 4 << 20;

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
    /// Writes a snapshot of a context to `out`; `progress` is told the bytes so far. Fails if it breaks off when a
    /// part was written: two snapshots have no seam at which one could go on as the other.
    pub async fn snapshot(
        &self,
        context: &ContextId,
        out: &mut (impl AsyncWrite + Unpin),
        mut progress: impl FnMut(u64),
    ) -> Result<SnapshotInfo, ClientError> {
        let request = SnapshotRequest { context_id: context.as_str().to_owned() };
        // Opened when its first chunk is there: until then any node will do.
        let opened = self.open(Aim::near(context), |channel| {
            let (mut service, request) = (self.ledger_service_on(channel), request.clone());
            async move {
                let mut stream = service.snapshot(request).await?.into_inner();
                let first = stream.message().await?;
                Ok((first, stream))
            }
        });
        let (_under_way, (mut next, mut stream)) = opened.await?;
        let (mut info, mut bytes) = (None, 0);
        while let Some(chunk) = next {
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
            next = stream.message().await?;
        }
        out.flush().await?;
        let (count, root, version) = info.ok_or_else(|| ClientError::malformed("metadata"))?;
        Ok(SnapshotInfo { count: Size(count), root, version, bytes })
    }

    /// Loads a snapshot from `source`; `progress` is told the bytes so far. Nothing is visible before the
    /// ledger has verified all of it.
    ///
    /// Goes to the owner, and to another if it moves while no more than [`KEPT`] bytes were sent.
    pub async fn load(
        &self,
        context: &ContextId,
        fail_if_exists: bool,
        source: &mut (impl AsyncRead + Unpin),
        mut progress: impl FnMut(u64),
    ) -> Result<Loaded, ClientError> {
        let aim = Aim::owner_of(context);
        let mut attempts = Attempts::new(self.options());
        let mut source =
            Source { reader: source, kept: Vec::new(), bytes: 0, forgotten: false, ended: false };
        loop {
            // Only choosing the node has a deadline: a load may be of any size.
            let target = match attempts.within(self.target(aim, &attempts.left_alone)).await? {
                Ok(target) => target,
                Err(failed) => {
                    attempts.after(failed).await?;
                    continue;
                }
            };
            attempts.keep_from(&target.address).await;
            let _under_way = self.nodes().under_way(&target.address);
            let first =
                LoadChunk { context_id: context.as_str().to_owned(), fail_if_exists, data: Bytes::new() };
            let status = match self.load_at(target.channel, first, &mut source, &mut progress).await? {
                Ok(answer) => {
                    return Ok(Loaded {
                        restored: answer.entries_restored,
                        latest: Size(answer.latest_sequence),
                    });
                }
                Err(status) => status,
            };
            let failed = Failed::new(target.address, status);
            self.note(aim, &failed);
            // After a connection broke the load may have been done, which a repetition would take for somebody
            // else's; what a node refused was not.
            let is_unknown = failed.failure == Failure::Broken && fail_if_exists;
            if source.forgotten || is_unknown {
                return Err(failed.status.into());
            }
            attempts.after(failed).await?;
        }
    }

    /// One try of a load. The outer error is of the source.
    async fn load_at(
        &self,
        channel: Channel,
        first: LoadChunk,
        source: &mut Source<'_, impl AsyncRead + Unpin>,
        progress: &mut impl FnMut(u64),
    ) -> Result<Result<LoadResponse, Status>, ClientError> {
        let (chunks, outgoing) = mpsc::channel(CHUNKS);
        let mut service = self.ledger_service_on(channel);
        let answer = tokio::spawn(async move { service.load(ReceiverStream::new(outgoing)).await });
        let (mut chunk, mut number, mut sent) = (first, 0, 0);
        loop {
            let data = source.chunk(number).await?;
            if data.is_none() && number > 0 {
                break;
            }
            chunk.data = data.unwrap_or_default();
            sent += chunk.data.len() as u64;
            number += 1;
            // The ledger ends the stream early when it refuses: its answer says why.
            if chunks.send(std::mem::take(&mut chunk)).await.is_err() {
                break;
            }
            progress(sent);
        }
        drop(chunks);
        let answer = answer.await.map_err(|error| ClientError::Unavailable(error.to_string().into()))?;
        Ok(answer.map(Response::into_inner))
    }
}

/// What is loaded, in chunks. The first ones are kept, to be sent again.
struct Source<'a, R> {
    reader: &'a mut R,
    kept: Vec<Bytes>,
    bytes: usize,
    /// Some were not kept.
    forgotten: bool,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Source<'_, R> {
    /// The chunk of a number: one that was kept, or the next one; `None` at the end.
    async fn chunk(&mut self, number: usize) -> Result<Option<Bytes>, ClientError> {
        if let Some(chunk) = self.kept.get(number).filter(|_| !self.forgotten) {
            return Ok(Some(chunk.clone()));
        }
        if self.ended {
            return Ok(None);
        }
        let mut chunk = Vec::with_capacity(CHUNK);
        // Whole chunks, however little comes at a time: what is kept takes the space of a chunk.
        (&mut *self.reader).take(CHUNK as u64).read_to_end(&mut chunk).await?;
        self.ended = chunk.len() < CHUNK;
        if chunk.is_empty() {
            return Ok(None);
        }
        let chunk = Bytes::from(chunk);
        self.bytes += chunk.len();
        if self.bytes > KEPT {
            self.forgotten = true;
            self.kept = Vec::new();
        } else {
            self.kept.push(chunk.clone());
        }
        Ok(Some(chunk))
    }
}
