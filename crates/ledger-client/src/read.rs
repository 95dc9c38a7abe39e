//! Pages of a context, and watching it.

use std::collections::VecDeque;

use ledger_core::{ContextId, Entry, Key, Position, Sequence};
use ledger_proto::{
    context::v1::GetRequest,
    ledger::v1::{Page, WatchBatch, WatchRequest},
};
use tonic::{Status, Streaming};

use crate::{Client, ClientError, client::check_next, convert, retry};

/// Which entries.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only entries of this key.
    pub key: Option<Key>,
    /// Only entries with a higher sequence.
    pub after: Sequence,
    /// At most so many; 0: no limit. Watching ignores it.
    pub limit: u32,
}

impl Selection {
    fn key_text(&self) -> String {
        self.key.as_ref().map(|key| key.as_str().to_owned()).unwrap_or_default()
    }
}

/// A context being read.
#[derive(Debug)]
pub struct Pages {
    client: Client,
    context: ContextId,
    selection: Selection,
    stream: Option<Streaming<Page>>,
    latest: Sequence,
    finished: bool,
    tried: u32,
}

impl Pages {
    pub(crate) fn new(client: Client, context: ContextId, selection: Selection) -> Self {
        Self { client, context, selection, stream: None, latest: Sequence(0), finished: false, tried: 0 }
    }

    /// The next page; `None` at the end. A broken connection is made again where it broke.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, ClientError> {
        loop {
            if self.finished {
                return Ok(None);
            }
            match self.receive().await {
                Ok(Some(page)) => return self.take(page).map(Some),
                Ok(None) => return Ok(None),
                Err(status) => {
                    self.stream = None;
                    self.tried += 1;
                    pause_or_fail(&self.client, self.tried, status).await?;
                }
            }
        }
    }

    /// All entries.
    pub async fn collect(mut self) -> Result<Vec<Entry>, ClientError> {
        let mut all = Vec::new();
        while let Some(page) = self.next().await? {
            all.extend(page);
        }
        Ok(all)
    }

    /// The newest sequence of the context, as of the last page.
    pub fn latest(&self) -> Sequence {
        self.latest
    }

    async fn receive(&mut self) -> Result<Option<Page>, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let request = GetRequest {
                    context_id: self.context.as_str().to_owned(),
                    key: self.selection.key_text(),
                    after_sequence: self.selection.after.0,
                    limit: self.selection.limit,
                    consistency: 0,
                };
                none.insert(self.client.ledger_service().get(request).await?.into_inner())
            }
        };
        stream.message().await
    }

    fn take(&mut self, page: Page) -> Result<Vec<Entry>, ClientError> {
        self.tried = 0;
        self.latest = Sequence(page.latest_sequence);
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            let entry = convert::entry(&self.context, entry)?;
            check_next(self.selection.after, &entry)?;
            self.selection.after = entry.sequence;
            entries.push(entry);
        }
        if self.selection.limit > 0 {
            self.selection.limit = self.selection.limit.saturating_sub(entries.len() as u32);
            // A limit of 0 would mean none: nothing is left to ask for after this.
            self.finished = self.selection.limit == 0;
        }
        Ok(entries)
    }
}

/// Waits before another try, or fails with what the last one said.
async fn pause_or_fail(client: &Client, tried: u32, status: Status) -> Result<(), ClientError> {
    if tried >= client.options.tries || !retry::is_unavailable(&status) {
        return Err(status.into());
    }
    tokio::time::sleep(retry::pause(tried, &status)).await;
    Ok(())
}

/// A context being watched.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    context: ContextId,
    selection: Selection,
    stream: Option<Streaming<WatchBatch>>,
    ready: VecDeque<Entry>,
    position: Option<Position>,
    tried: u32,
}

impl Watch {
    pub(crate) fn new(client: Client, context: ContextId, selection: Selection) -> Self {
        Self { client, context, selection, stream: None, ready: VecDeque::new(), position: None, tried: 0 }
    }

    /// Starts after a position instead of a sequence: if the context's history does not pass through it,
    /// the watch fails with [`ClientError::HistoryChanged`].
    #[must_use]
    pub fn resume_after(mut self, position: Position) -> Self {
        self.selection.after = position.size.newest();
        self.position = Some(position);
        self
    }

    /// The next entry. Waits for it; `None` never comes while the context can be watched.
    pub async fn next(&mut self) -> Result<Option<Entry>, ClientError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                self.selection.after = entry.sequence;
                return Ok(Some(entry));
            }
            match self.receive().await {
                Ok(batch) => self.take(batch)?,
                Err(status) => {
                    self.stream = None;
                    self.tried += 1;
                    pause_or_fail(&self.client, self.tried, status).await?;
                }
            }
        }
    }

    /// The newest position the ledger gave: everything up to it was delivered or filtered out.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    async fn receive(&mut self) -> Result<WatchBatch, Status> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let after = self.selection.after.0;
                // Past the position the ledger proved, only the sequence is known.
                let proven = self.position.as_ref().filter(|position| position.size.0 == after);
                let request = WatchRequest {
                    context_id: self.context.as_str().to_owned(),
                    key: self.selection.key_text(),
                    resume_after: Some(proven.map_or_else(
                        || ledger_proto::context::v1::Position { size: after, ..Default::default() },
                        convert::position_to,
                    )),
                    bookmark_interval_ms: 0,
                };
                none.insert(self.client.ledger_service().watch(request).await?.into_inner())
            }
        };
        stream.message().await?.ok_or_else(|| Status::unavailable("the ledger ended the watch"))
    }

    fn take(&mut self, batch: WatchBatch) -> Result<(), ClientError> {
        self.tried = 0;
        let mut after = self.selection.after;
        for entry in batch.entries {
            let entry = convert::entry(&self.context, entry)?;
            check_next(after, &entry)?;
            after = entry.sequence;
            self.ready.push_back(entry);
        }
        if batch.bookmark.is_some() {
            self.position = Some(convert::position(batch.bookmark)?);
        }
        Ok(())
    }
}
