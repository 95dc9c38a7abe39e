//! Snapshots and loads of any size, in constant memory.

use std::{io::SeekFrom, time::Duration};

use bytes::Bytes;
use ledger_core::{ContextId, Hash, Size};
use ledger_proto::{
    context::v1::{LoadResponse, SnapshotRequest},
    ledger::v1::LoadChunk,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncSeek, AsyncSeekExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, transport::Channel};

use crate::{
    connection::{
        core::Client,
        destination::Destination,
        retry::{Attempts, FailedCall},
    },
    convert,
    error::{ClientError, failure::Failure},
};

/// Bytes of one chunk.
const CHUNK: usize = 256 << 10;
/// Chunks that wait to be sent at most.
const MAX_CHUNKS: usize = 8;
/// Bytes of a load that [`Client::load`] keeps, to send them again, to another node if need be.
pub const KEPT: usize = 4 << 20;
/// An attempt of a load that took so long made progress …
const LONG: Duration = Duration::from_secs(1);
/// … and so many of those that break off do not count against the timeout.
pub const LONG_TRIES: u32 = 16;

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
    /// Writes a snapshot of a context to `out`, and calls `progress` with the bytes so far.
    ///
    /// # Errors
    ///
    /// [`ClientError::Io`] if writing fails; [`ClientError::Unavailable`] if the stream breaks after a part was written:
    /// another node's snapshot differs, so the client cannot continue with it. Else as the call fails.
    pub async fn snapshot(
        &self,
        context: &ContextId,
        out: &mut (impl AsyncWrite + Unpin),
        mut progress: impl FnMut(u64),
    ) -> Result<SnapshotInfo, ClientError> {
        let request = SnapshotRequest { context_id: context.as_str().to_owned() };
        // The call succeeds when the first chunk is there: until then the client can retry it at another node.
        let opened = self.open(Destination::replica_of(context), |channel| {
            let (mut service, request) = (self.ledger_service_on(channel), request.clone());
            async move {
                let mut stream = service.snapshot(request).await?.into_inner();
                let first = stream.message().await?;
                Ok((first, stream))
            }
        });
        let (_call_guard, (mut next, mut stream)) = opened.await?;
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

    /// Loads a snapshot from `source`, and calls `progress` with the bytes so far. A load is atomic: the ledger shows
    /// nothing of it before it has verified and stored all of it, whatever becomes of the owner.
    ///
    /// Loads at the owner, and at the next one if ownership moves while no more than [`KEPT`] bytes were sent. For a source
    /// that can seek, [`Client::load_again`] is better.
    ///
    /// # Errors
    ///
    /// [`ClientError::Io`] if reading fails; [`ClientError::AlreadyExists`] if the context exists and `fail_if_exists` is
    /// set; else as the ledger refuses the snapshot or the call fails.
    pub async fn load(
        &self,
        context: &ContextId,
        fail_if_exists: bool,
        source: &mut (impl AsyncRead + Unpin),
        progress: impl FnMut(u64),
    ) -> Result<Loaded, ClientError> {
        let source =
            OneShotSource { reader: source, kept: Vec::new(), bytes: 0, is_spent: false, ended: false };
        self.load_chunks(context, fail_if_exists, source, progress).await
    }

    /// As [`Client::load`], but restarts from the beginning however much was sent: a load of any size outlasts the loss of
    /// an owner. An attempt that made progress for a while leaves the whole of [`Options::timeout`] to find the next owner,
    /// up to [`LONG_TRIES`] times.
    ///
    /// # Errors
    ///
    /// As [`Client::load`].
    ///
    /// [`Options::timeout`]: crate::Options::timeout
    pub async fn load_again(
        &self,
        context: &ContextId,
        fail_if_exists: bool,
        source: &mut (impl AsyncRead + AsyncSeek + Unpin),
        progress: impl FnMut(u64),
    ) -> Result<Loaded, ClientError> {
        let begin = source.stream_position().await?;
        let source = SeekableSource { reader: source, begin, next: 0, ended: false };
        self.load_chunks(context, fail_if_exists, source, progress).await
    }

    async fn load_chunks(
        &self,
        context: &ContextId,
        fail_if_exists: bool,
        mut source: impl ChunkSource,
        mut progress: impl FnMut(u64),
    ) -> Result<Loaded, ClientError> {
        let destination = Destination::owner_of(context);
        let mut attempts = Attempts::new(self.options());
        let (mut long_tries, mut may_be_done) = (0, false);
        loop {
            // Only choosing the node has a deadline: a load may be of any size.
            let target =
                match attempts.within_deadline(self.find_node(destination, &attempts.retry_after)).await? {
                    Ok(target) => target,
                    Err(failed) => {
                        attempts.back_off(failed).await?;
                        continue;
                    }
                };
            attempts.wait_retry_after(&target.address).await;
            let _call_guard = self.nodes().track_call(&target.address);
            let first =
                LoadChunk { context_id: context.as_str().to_owned(), fail_if_exists, data: Bytes::new() };
            let began = Instant::now();
            let status = match self.load_at(target.channel, first, &mut source, &mut progress).await? {
                Ok(response) => {
                    return Ok(Loaded {
                        restored: response.entries_restored,
                        latest: Size(response.latest_sequence),
                    });
                }
                Err(status) => status,
            };
            let failed = FailedCall::new(target.address, status);
            self.learn_from_failure(destination, &failed);
            if may_be_done && failed.status.code() == Code::AlreadyExists {
                return Err(ClientError::AlreadyExists(format!(
                    "{}. The connection broke after an earlier try of this load, so what is there may be its own: a load that \
                     need not be the first finds all of it there then, and changes nothing",
                    failed.status.message()
                )));
            }
            // A node that refuses a load has stored nothing of it.
            may_be_done |= failed.failure == Failure::ConnectionLost && fail_if_exists;
            if source.is_spent() {
                return Err(failed.status.into());
            }
            if began.elapsed() > LONG && long_tries < LONG_TRIES && self.options().tries == 0 {
                // A node served it meanwhile.
                long_tries += 1;
                attempts = Attempts::new(self.options());
            }
            attempts.back_off(failed).await?;
        }
    }

    /// One attempt of a load. The outer error is of the source.
    async fn load_at(
        &self,
        channel: Channel,
        first: LoadChunk,
        source: &mut impl ChunkSource,
        progress: &mut impl FnMut(u64),
    ) -> Result<Result<LoadResponse, Status>, ClientError> {
        let (chunks, outgoing) = mpsc::channel(MAX_CHUNKS);
        let mut service = self.ledger_service_on(channel);
        let response = tokio::spawn(async move { service.load(ReceiverStream::new(outgoing)).await });
        let (mut chunk, mut number, mut sent) = (first, 0, 0);
        loop {
            let data = source.chunk(number).await?;
            if data.is_none() && number > 0 {
                break;
            }
            chunk.data = data.unwrap_or_default();
            sent += chunk.data.len() as u64;
            number += 1;
            // A ledger that refuses ends the stream early: its status says why.
            if chunks.send(std::mem::take(&mut chunk)).await.is_err() {
                break;
            }
            progress(sent);
        }
        drop(chunks);
        let response = response.await.map_err(|error| ClientError::Unavailable(error.to_string().into()))?;
        Ok(response.map(Response::into_inner))
    }
}

/// The source of a load, in chunks.
trait ChunkSource {
    /// The chunk of a number, counted from 0 one by one, or from 0 again; `None` at the end.
    async fn chunk(&mut self, number: usize) -> Result<Option<Bytes>, ClientError>;

    /// Whether the source can no longer return the first chunks.
    fn is_spent(&self) -> bool;
}

/// Reads the next chunk: a whole one, however few bytes come at a time, or the last one.
async fn read_chunk(reader: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ClientError> {
    let mut chunk = Vec::with_capacity(CHUNK);
    reader.take(CHUNK as u64).read_to_end(&mut chunk).await?;
    Ok(chunk)
}

/// A source that can be read once. It keeps the first chunks, to send them again.
struct OneShotSource<'a, R> {
    reader: &'a mut R,
    kept: Vec<Bytes>,
    bytes: usize,
    /// It no longer has the first chunks.
    is_spent: bool,
    ended: bool,
}

impl<R: AsyncRead + Unpin> ChunkSource for OneShotSource<'_, R> {
    async fn chunk(&mut self, number: usize) -> Result<Option<Bytes>, ClientError> {
        if let Some(chunk) = self.kept.get(number).filter(|_| !self.is_spent) {
            return Ok(Some(chunk.clone()));
        }
        if self.ended {
            return Ok(None);
        }
        // A chunk is whole, so its buffer is no larger than what it holds.
        let chunk = read_chunk(self.reader).await?;
        self.ended = chunk.len() < CHUNK;
        if chunk.is_empty() {
            return Ok(None);
        }
        let chunk = Bytes::from(chunk);
        self.bytes += chunk.len();
        if self.bytes > KEPT {
            self.is_spent = true;
            self.kept = Vec::new();
        } else {
            self.kept.push(chunk.clone());
        }
        Ok(Some(chunk))
    }

    fn is_spent(&self) -> bool {
        self.is_spent
    }
}

/// A source that can seek back to its beginning.
struct SeekableSource<'a, R> {
    reader: &'a mut R,
    /// The offset at which the load begins.
    begin: u64,
    next: usize,
    ended: bool,
}

impl<R: AsyncRead + AsyncSeek + Unpin> ChunkSource for SeekableSource<'_, R> {
    async fn chunk(&mut self, number: usize) -> Result<Option<Bytes>, ClientError> {
        if number == 0 && self.next > 0 {
            self.reader.seek(SeekFrom::Start(self.begin)).await?;
            self.ended = false;
        }
        self.next = number + 1;
        if self.ended {
            return Ok(None);
        }
        let chunk = read_chunk(self.reader).await?;
        self.ended = chunk.len() < CHUNK;
        Ok(Some(Bytes::from(chunk)).filter(|chunk| !chunk.is_empty()))
    }

    fn is_spent(&self) -> bool {
        false
    }
}
