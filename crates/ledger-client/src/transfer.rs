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
/// A try of a load that took so long got on …
const LONG: Duration = Duration::from_secs(1);
/// … and so often one that breaks off does not count against the time.
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
    /// ledger has verified all of it, and nothing of it is in place before all of it is, whatever becomes of the owner.
    ///
    /// Goes to the owner, and to another if it moves while no more than [`KEPT`] bytes were sent: what can be read again
    /// is better loaded with [`Client::load_again`].
    pub async fn load(
        &self,
        context: &ContextId,
        fail_if_exists: bool,
        source: &mut (impl AsyncRead + Unpin),
        progress: impl FnMut(u64),
    ) -> Result<Loaded, ClientError> {
        let source = OnlyOnce { reader: source, kept: Vec::new(), bytes: 0, forgotten: false, ended: false };
        self.load_chunks(context, fail_if_exists, source, progress).await
    }

    /// As [`Client::load`], from the beginning again however much was sent: a load of any size outlasts the loss of an
    /// owner. A load that got on for a while has the whole of [`Options::timeout`] to find the next owner, up to
    /// [`LONG_TRIES`] times.
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
        let source = Rewound { reader: source, begin, next: 0, ended: false };
        self.load_chunks(context, fail_if_exists, source, progress).await
    }

    async fn load_chunks(
        &self,
        context: &ContextId,
        fail_if_exists: bool,
        mut source: impl Chunks,
        mut progress: impl FnMut(u64),
    ) -> Result<Loaded, ClientError> {
        let aim = Aim::owner_of(context);
        let mut attempts = Attempts::new(self.options());
        let (mut long_tries, mut may_be_done) = (0, false);
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
            let began = Instant::now();
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
            if may_be_done && failed.status.code() == Code::AlreadyExists {
                return Err(ClientError::AlreadyExists(format!(
                    "{}. The connection broke after an earlier try of this load, so what is there may be its own: a load that \
                     need not be the first finds all of it there then, and changes nothing",
                    failed.status.message()
                )));
            }
            // What a node refused was not done.
            may_be_done |= failed.failure == Failure::Broken && fail_if_exists;
            if source.is_forgotten() {
                return Err(failed.status.into());
            }
            if began.elapsed() > LONG && long_tries < LONG_TRIES && self.options().tries == 0 {
                // It was served meanwhile.
                long_tries += 1;
                attempts = Attempts::new(self.options());
            }
            attempts.after(failed).await?;
        }
    }

    /// One try of a load. The outer error is of the source.
    async fn load_at(
        &self,
        channel: Channel,
        first: LoadChunk,
        source: &mut impl Chunks,
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

/// What is loaded, in chunks.
trait Chunks {
    /// The chunk of a number, counted from 0 one by one, or from 0 again; `None` at the end.
    async fn chunk(&mut self, number: usize) -> Result<Option<Bytes>, ClientError>;

    /// The first chunks are not to be had any more.
    fn is_forgotten(&self) -> bool;
}

/// The next chunk: a whole one, however little comes at a time, or the last one.
async fn read_chunk(reader: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ClientError> {
    let mut chunk = Vec::with_capacity(CHUNK);
    reader.take(CHUNK as u64).read_to_end(&mut chunk).await?;
    Ok(chunk)
}

/// From what can be read once. The first chunks are kept, to be sent again.
struct OnlyOnce<'a, R> {
    reader: &'a mut R,
    kept: Vec<Bytes>,
    bytes: usize,
    /// Some were not kept.
    forgotten: bool,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Chunks for OnlyOnce<'_, R> {
    async fn chunk(&mut self, number: usize) -> Result<Option<Bytes>, ClientError> {
        if let Some(chunk) = self.kept.get(number).filter(|_| !self.forgotten) {
            return Ok(Some(chunk.clone()));
        }
        if self.ended {
            return Ok(None);
        }
        // Whole ones: what is kept takes the space of a chunk.
        let chunk = read_chunk(self.reader).await?;
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

    fn is_forgotten(&self) -> bool {
        self.forgotten
    }
}

/// From what can be read again.
struct Rewound<'a, R> {
    reader: &'a mut R,
    /// Where it begins.
    begin: u64,
    next: usize,
    ended: bool,
}

impl<R: AsyncRead + AsyncSeek + Unpin> Chunks for Rewound<'_, R> {
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

    fn is_forgotten(&self) -> bool {
        false
    }
}
