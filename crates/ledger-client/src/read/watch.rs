//! Watches a context: its entries, then those to come.

use std::collections::VecDeque;

use futures::{Stream, stream};
use ledger_core::{ContextId, Entry, Position, Sequence};
use ledger_proto::{
    context::v1 as proto,
    ledger::v1::{WatchBatch, WatchRequest},
};
use tonic::{Status, Streaming};

use super::{continuity::ContinuityCheck, selection::Selection};
use crate::{
    connection::{core::Client, reconnector::Reconnector},
    convert,
    error::ClientError,
};

/// Watches a context.
#[derive(Debug)]
pub struct Watch {
    reconnector: Reconnector,
    context: ContextId,
    selection: Selection,
    stream: Option<Streaming<WatchBatch>>,
    continuity: ContinuityCheck,
    /// Entries received and not yet delivered, and the position after them.
    ready: VecDeque<Entry>,
    bookmark: Option<Position>,
    position: Option<Position>,
}

impl Watch {
    pub(crate) fn new(client: Client, context: ContextId, selection: Selection) -> Self {
        Self {
            reconnector: Reconnector::new(client, selection.destination(&context)),
            context,
            selection,
            stream: None,
            continuity: ContinuityCheck::default(),
            ready: VecDeque::new(),
            bookmark: None,
            position: None,
        }
    }

    /// Starts after a position instead of a sequence: if the context's history does not pass through it,
    /// the watch fails with [`ClientError::HistoryChanged`].
    #[must_use]
    pub fn resume_after(mut self, position: Position) -> Self {
        self.selection.after = position.size.newest();
        self.position = Some(position);
        self
    }

    /// The next entry. Waits for it; `None` never comes while the context can be watched. Cancel safe: a caller that drops
    /// the future loses no entry.
    ///
    /// After a broken connection the watch resumes where it was, at another node if there is one, without a gap or a
    /// repetition.
    ///
    /// # Errors
    ///
    /// [`ClientError::HistoryChanged`] if the history there is another; [`ClientError::NotVerified`] if an entry is
    /// malformed; else as the stream fails and cannot be opened again.
    pub async fn next(&mut self) -> Result<Option<Entry>, ClientError> {
        loop {
            if let Some(entry) = self.next_ready() {
                return Ok(Some(entry));
            }
            match self.receive().await? {
                Ok(batch) => self.accept_batch(batch)?,
                Err(status) => {
                    self.stream = None;
                    self.reconnector.disconnected(status).await?;
                }
            }
        }
    }

    /// The next entry, if the client has received it.
    pub(crate) fn next_ready(&mut self) -> Option<Entry> {
        let entry = self.ready.pop_front()?;
        self.selection.after = entry.sequence;
        self.continuity.delivered(&entry);
        self.advance_position();
        Some(entry)
    }

    /// The entries as a stream, which ends after an error. See [`Watch::next`], which tells the position too.
    pub fn into_stream(self) -> impl Stream<Item = Result<Entry, ClientError>> + Send + Unpin {
        Box::pin(stream::try_unfold(self, async |mut watch| {
            Ok(watch.next().await?.map(|entry| (entry, watch)))
        }))
    }

    /// The newest position of the ledger up to which the watch has delivered or filtered out every entry: another watch
    /// can resume there.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    async fn receive(&mut self) -> Result<Result<WatchBatch, Status>, ClientError> {
        if self.stream.is_none() {
            let request = self.request();
            let client = self.reconnector.client.clone();
            let stream = self.reconnector.open(|channel| {
                let (mut service, request) = (client.ledger_service_on(channel), request.clone());
                async move { service.watch(request).await }
            });
            self.stream = Some(stream.await?.into_inner());
        }
        let Some(stream) = &mut self.stream else { return Ok(Err(Status::unavailable("no stream"))) };
        let batch = stream.message().await;
        Ok(batch.and_then(|batch| batch.ok_or_else(|| Status::unavailable("the ledger ended the watch"))))
    }

    /// A request that resumes at the newest position of the ledger, or at the last entry: the watch checks the entries that
    /// the ledger repeats.
    fn request(&mut self) -> WatchRequest {
        let position = match &self.position {
            // Every history passes through size 0: that position checks nothing.
            Some(position) if position.size.0 > 0 => convert::position_to(position),
            _ => {
                let size = self.continuity.resume_point(self.selection.after).0;
                proto::Position { size, ..proto::Position::default() }
            }
        };
        self.continuity.stream_begins_after(Sequence(position.size));
        WatchRequest {
            context_id: self.context.as_str().to_owned(),
            key: self.selection.key_text(),
            resume_after: Some(position),
            bookmark_interval_ms: 0,
        }
    }

    fn accept_batch(&mut self, batch: WatchBatch) -> Result<(), ClientError> {
        self.reconnector.received();
        for entry in batch.entries {
            self.ready.extend(self.continuity.accept(&self.context, entry)?);
        }
        if batch.bookmark.is_some() {
            self.bookmark = Some(convert::position(batch.bookmark)?);
        }
        self.advance_position();
        Ok(())
    }

    /// Moves on to the bookmark's position, once every entry before it is delivered.
    fn advance_position(&mut self) {
        if self.ready.is_empty()
            && let Some(bookmark) = self.bookmark.take()
        {
            self.position = Some(bookmark);
        }
    }
}

impl Client {
    /// Watches a context: every entry of the selection, then those to come. The watch reconnects after a broken
    /// connection, without a gap or a repetition.
    pub fn watch(&self, context: &ContextId, selection: Selection) -> Watch {
        Watch::new(self.clone(), context.clone(), selection)
    }
}
