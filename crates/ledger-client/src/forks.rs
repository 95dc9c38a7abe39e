//! Forks: histories that a node left for another one. Each node keeps its own: use a client of one address.

use bytes::Bytes;
use ledger_core::{
    ContextId, Entry, Epoch, Hash, HashSuite, Lineage, Sequence, Size,
    clock::LamportClock,
    snapshot::{Encoder, Header, SnapshotError, VERSION},
};
use ledger_proto::ledger::v1::{self as proto, ForkEntriesRequest, ForkPage, ForksRequest};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tonic::Streaming;

use crate::{
    connection::{core::Client, destination::Destination, keepalive::CallGuard},
    convert,
    error::ClientError,
    read::selection::Selection,
    transfer::SnapshotInfo,
};

/// A history that a node left, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// The context.
    pub context: ContextId,
    /// Its number on the node, never reused.
    pub number: u64,
    /// How many entries it has in common with the history that replaced it: the fork's entries are those after.
    pub common: Size,
    /// Its tip when the node left it.
    pub ours: Tip,
    /// The tip of the other history then.
    pub theirs: Tip,
    /// The lineage it was of.
    pub lineage: Lineage,
    /// Its hash suite.
    pub suite: HashSuite,
    /// When the node left it: wall-clock time, nanoseconds since the Unix epoch.
    pub left_at_ns: u64,
    /// Why, in words.
    pub reason: String,
}

/// The end of a history: its size and root, and the epoch of its newest entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Number of entries.
    pub size: Size,
    /// Merkle root at that size.
    pub root: Hash,
    /// The epoch of the newest entry.
    pub epoch: Epoch,
}

/// Where the next page of a listing begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkCursor(Bytes);

/// The entries of a fork being read.
#[derive(Debug)]
pub struct ForkPages {
    context: ContextId,
    pages: Streaming<ForkPage>,
    after: Sequence,
    _call_guard: Option<CallGuard>,
}

impl Client {
    /// The forks of a context, or of all, in an arbitrary but stable order: at most `limit` after a cursor (0: as many as
    /// the node finds fit), and the cursor of the next page if there are more.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] or [`ClientError::Id`] if the response is malformed; else as the call fails.
    pub async fn forks(
        &self,
        context: Option<&ContextId>,
        after: Option<ForkCursor>,
        limit: u32,
    ) -> Result<(Vec<Fork>, Option<ForkCursor>), ClientError> {
        let request = ForksRequest {
            context_id: context.map_or("", ContextId::as_str).to_owned(),
            limit,
            after: after.map(|cursor| cursor.0).unwrap_or_default(),
        };
        let response = self.call(Destination::AnyNode, |channel| {
            let (mut service, request) = (self.integrity_service_on(channel), request.clone());
            async move { service.forks(request).await }
        });
        let response = response.await?.into_inner();
        let forks = response.forks.into_iter().map(Fork::from_proto).collect::<Result<_, _>>()?;
        Ok((forks, (!response.next.is_empty()).then_some(ForkCursor(response.next))))
    }

    /// Reads the entries of a fork.
    ///
    /// # Errors
    ///
    /// [`ClientError::Invalid`] if the node does not have the fork; else as the call fails.
    pub async fn fork_entries(&self, fork: &Fork) -> Result<ForkPages, ClientError> {
        self.fork_entries_after(fork, fork.common.newest()).await
    }

    /// Writes a fork to `out` as a snapshot: the whole history as it was when the node left it, to load into another
    /// context. The client reads the entries in common with the history that replaced it from the context, and calls
    /// `progress` with the bytes so far.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] if what it reads is not that history: then a later fork begins before this one, and the
    /// context lacks the common entries. [`ClientError::Io`] if writing fails; else as the calls fail.
    pub async fn fork_snapshot(
        &self,
        fork: &Fork,
        out: &mut (impl AsyncWrite + Unpin),
        mut progress: impl FnMut(u64),
    ) -> Result<SnapshotInfo, ClientError> {
        let mut writer =
            SnapshotWriter { fork, lamport: self.newest_lamport(fork).await?, encoder: None, bytes: 0 };
        let mut buffer = Vec::new();
        if fork.common.0 > 0 {
            let mut pages = self.get(&fork.context, Selection::default());
            let mut left = fork.common.0;
            while left > 0
                && let Some(mut page) = pages.next().await?
            {
                page.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                left -= page.len() as u64;
                writer.push(&page, &mut buffer)?;
                writer.flush(&mut buffer, out).await?;
                progress(writer.bytes);
            }
        }
        let mut pages = self.fork_entries(fork).await?;
        while let Some(page) = pages.next().await? {
            writer.push(&page, &mut buffer)?;
            writer.flush(&mut buffer, out).await?;
            progress(writer.bytes);
        }
        writer.finish(&mut buffer)?;
        writer.flush(&mut buffer, out).await?;
        out.flush().await?;
        progress(writer.bytes);
        let Tip { size, root, .. } = fork.ours;
        Ok(SnapshotInfo { count: size, root, version: VERSION.into(), bytes: writer.bytes })
    }

    /// The Lamport time of the newest entry of a fork.
    async fn newest_lamport(&self, fork: &Fork) -> Result<LamportClock, ClientError> {
        let before = Sequence(fork.ours.size.0.saturating_sub(1));
        let page = self.fork_entries_after(fork, before).await?.next().await?;
        let newest = page.as_deref().and_then(<[Entry]>::last);
        newest
            .map(|entry| entry.lamport)
            .ok_or_else(|| ClientError::malformed("the newest entry of the fork"))
    }

    async fn fork_entries_after(&self, fork: &Fork, after: Sequence) -> Result<ForkPages, ClientError> {
        let context = fork.context.clone();
        let request = ForkEntriesRequest {
            context_id: context.as_str().to_owned(),
            fork: fork.number,
            after_sequence: after.0,
        };
        let pages = self.open(Destination::AnyNode, |channel| {
            let (mut service, request) = (self.integrity_service_on(channel), request.clone());
            async move { service.fork_entries(request).await }
        });
        let (under_way, pages) = pages.await?;
        Ok(ForkPages { context, pages: pages.into_inner(), after, _call_guard: under_way })
    }
}

impl ForkPages {
    /// The next page; `None` at the end. The entries are consecutive.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] if they are not, or one is malformed; else as the stream fails.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, ClientError> {
        let Some(page) = self.pages.message().await? else { return Ok(None) };
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            let entry = convert::entry(&self.context, entry)?;
            if entry.sequence.0 != self.after.0 + 1 {
                let message = format!("entry {} of a fork came after entry {}", entry.sequence, self.after);
                return Err(ClientError::NotVerified(message));
            }
            self.after = entry.sequence;
            entries.push(entry);
        }
        Ok(Some(entries))
    }
}

/// Writes a fork as a snapshot.
struct SnapshotWriter<'a> {
    fork: &'a Fork,
    lamport: LamportClock,
    /// Set when the first entry is written.
    encoder: Option<Encoder>,
    bytes: u64,
}

impl SnapshotWriter<'_> {
    fn push(&mut self, entries: &[Entry], buffer: &mut Vec<u8>) -> Result<(), ClientError> {
        let fork = self.fork;
        for entry in entries {
            let encoder = self.encoder.get_or_insert_with(|| {
                Encoder::new(Header {
                    context_id: fork.context.clone(),
                    suite: fork.suite,
                    count: fork.ours.size,
                    root: fork.ours.root,
                    lamport: self.lamport,
                    epoch: fork.ours.epoch,
                    lineage: fork.lineage,
                    created_at_ns: entry.appended_at_ns,
                    taken_at_ns: fork.left_at_ns,
                })
            });
            encoder.push(entry, buffer).map_err(|error| fork.mismatch(&error))?;
        }
        Ok(())
    }

    fn finish(&mut self, buffer: &mut Vec<u8>) -> Result<(), ClientError> {
        let encoder = self.encoder.take().ok_or_else(|| ClientError::malformed("the fork's entries"))?;
        encoder.finish(buffer).map_err(|error| self.fork.mismatch(&error))
    }

    async fn flush(
        &mut self,
        buffer: &mut Vec<u8>,
        out: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), ClientError> {
        out.write_all(buffer).await?;
        self.bytes += buffer.len() as u64;
        buffer.clear();
        Ok(())
    }
}

impl Fork {
    fn mismatch(&self, error: &SnapshotError) -> ClientError {
        ClientError::NotVerified(format!(
            "fork {} of context {} and what the context has before it are not the history that was left: {error}",
            self.number, self.context
        ))
    }

    /// How many entries it has beyond the common ones.
    pub const fn entries(&self) -> u64 {
        self.ours.size.0.saturating_sub(self.common.0)
    }

    fn from_proto(from: proto::Fork) -> Result<Self, ClientError> {
        Ok(Self {
            context: ContextId::new(from.context_id)?,
            number: from.fork,
            common: Size(from.common_size),
            ours: Tip::from_proto(from.ours)?,
            theirs: Tip::from_proto(from.theirs)?,
            lineage: convert::lineage(&from.lineage)?,
            suite: convert::suite(&from.hash_suite)?,
            left_at_ns: from.left_at_ns,
            reason: from.reason,
        })
    }
}

impl Tip {
    fn from_proto(from: Option<proto::ForkTip>) -> Result<Self, ClientError> {
        let from = from.ok_or_else(|| ClientError::malformed("where a history stood"))?;
        Ok(Self { size: Size(from.size), root: convert::hash(&from.root, "root")?, epoch: Epoch(from.epoch) })
    }
}
