//! Watching a context: what is there, then what is to come.

use std::collections::VecDeque;

use futures::{Stream, stream};
use ledger_core::{ContextId, Entry, Position, Sequence};
use ledger_proto::{
    context::v1 as proto,
    ledger::v1::{WatchBatch, WatchRequest},
};
use tonic::{Status, Streaming};

use crate::{
    Client, ClientError, Selection, convert,
    reading::{Reading, Seam},
};

/// A context being watched.
#[derive(Debug)]
pub struct Watch {
    reading: Reading,
    context: ContextId,
    selection: Selection,
    stream: Option<Streaming<WatchBatch>>,
    seam: Seam,
    /// What came and was not yet handed out, and the position that holds when it has been.
    ready: VecDeque<Entry>,
    bookmark: Option<Position>,
    position: Option<Position>,
}

impl Watch {
    pub(crate) fn new(client: Client, context: ContextId, selection: Selection) -> Self {
        Self {
            reading: Reading::new(client, selection.aim(&context)),
            context,
            selection,
            stream: None,
            seam: Seam::default(),
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

    /// The next entry. Waits for it; `None` never comes while the context can be watched. May be dropped while it
    /// waits: nothing is lost.
    ///
    /// What breaks off goes on where it broke off, at another node if there is one, without a gap or a repetition:
    /// [`ClientError::HistoryChanged`] if it is not the same history there.
    pub async fn next(&mut self) -> Result<Option<Entry>, ClientError> {
        loop {
            if let Some(entry) = self.next_ready() {
                return Ok(Some(entry));
            }
            match self.receive().await? {
                Ok(batch) => self.take(batch)?,
                Err(status) => {
                    self.stream = None;
                    self.reading.broke(status).await?;
                }
            }
        }
    }

    /// The next entry, if it is here already.
    pub(crate) fn next_ready(&mut self) -> Option<Entry> {
        let entry = self.ready.pop_front()?;
        self.selection.after = entry.sequence;
        self.seam.delivered(&entry);
        self.pass_bookmark();
        Some(entry)
    }

    /// The entries as a stream, which ends after an error. See [`Watch::next`], which tells the position too.
    pub fn into_stream(self) -> impl Stream<Item = Result<Entry, ClientError>> + Send + Unpin {
        Box::pin(stream::try_unfold(self, async |mut watch| {
            Ok(watch.next().await?.map(|entry| (entry, watch)))
        }))
    }

    /// The newest position the ledger gave of which everything was handed out or filtered out: where another watch
    /// can resume.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    async fn receive(&mut self) -> Result<Result<WatchBatch, Status>, ClientError> {
        if self.stream.is_none() {
            let request = self.request();
            let client = self.reading.client.clone();
            let stream = self.reading.open(|channel| {
                let (mut service, request) = (client.ledger_service_on(channel), request.clone());
                async move { service.watch(request).await }
            });
            self.stream = Some(stream.await?.into_inner());
        }
        let Some(stream) = &mut self.stream else { return Ok(Err(Status::unavailable("no stream"))) };
        let batch = stream.message().await;
        Ok(batch.and_then(|batch| batch.ok_or_else(|| Status::unavailable("the ledger ended the watch"))))
    }

    /// From the newest position that the ledger proved, or from the last entry on: what was handed out after that
    /// comes again and is checked.
    fn request(&mut self) -> WatchRequest {
        let position = match &self.position {
            // Every history passes through no entry at all.
            Some(position) if position.size.0 > 0 => convert::position_to(position),
            _ => {
                let size = self.seam.overlap(self.selection.after).0;
                proto::Position { size, ..proto::Position::default() }
            }
        };
        self.seam.begin(Sequence(position.size));
        WatchRequest {
            context_id: self.context.as_str().to_owned(),
            key: self.selection.key_text(),
            resume_after: Some(position),
            bookmark_interval_ms: 0,
        }
    }

    fn take(&mut self, batch: WatchBatch) -> Result<(), ClientError> {
        self.reading.came();
        for entry in batch.entries {
            self.ready.extend(self.seam.take(&self.context, entry)?);
        }
        if batch.bookmark.is_some() {
            self.bookmark = Some(convert::position(batch.bookmark)?);
        }
        self.pass_bookmark();
        Ok(())
    }

    /// A position holds when all before it was handed out.
    fn pass_bookmark(&mut self) {
        if self.ready.is_empty()
            && let Some(bookmark) = self.bookmark.take()
        {
            self.position = Some(bookmark);
        }
    }
}
