//! A context in pages.

use ledger_core::{ContextId, Entry, Sequence};
use ledger_proto::{
    context::v1::{self as proto, GetRequest},
    ledger::v1::Page,
};
use tonic::Streaming;

use super::continuity::ContinuityCheck;
pub use super::selection::{ReadFrom, Selection};
use crate::{
    connection::{core::Client, reconnector::Reconnector},
    error::ClientError,
};

/// Reads a context in pages.
#[derive(Debug)]
pub struct Pages {
    reconnector: Reconnector,
    context: ContextId,
    selection: Selection,
    stream: Option<Streaming<Page>>,
    continuity: ContinuityCheck,
    latest: Sequence,
    finished: bool,
}

impl Pages {
    pub(crate) fn new(client: Client, context: ContextId, selection: Selection) -> Self {
        Self {
            reconnector: Reconnector::new(client, selection.destination(&context)),
            context,
            selection,
            stream: None,
            continuity: ContinuityCheck::default(),
            latest: Sequence(0),
            finished: false,
        }
    }

    /// The next page; `None` at the end. After a broken connection the read resumes where it was, at another node if there
    /// is one, without a gap or a repetition.
    ///
    /// # Errors
    ///
    /// [`ClientError::HistoryChanged`] if the history there is another; [`ClientError::NotVerified`] if a page is malformed;
    /// else as the call fails.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, ClientError> {
        while !self.finished {
            let page = match self.stream().await?.message().await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                Err(status) => {
                    self.stream = None;
                    self.reconnector.disconnected(status).await?;
                    continue;
                }
            };
            if page.latest_sequence < self.latest.0 {
                // A context never shrinks: the node is behind.
                self.stream = None;
                if self.reconnector.switch_to_owner() {
                    continue;
                }
                let message = format!(
                    "context {} had {} entries, and has {} now",
                    self.context, self.latest, page.latest_sequence
                );
                return Err(ClientError::HistoryChanged { message, common: None });
            }
            return self.accept_page(page).map(Some);
        }
        self.finished = true;
        Ok(None)
    }

    /// All entries.
    ///
    /// # Errors
    ///
    /// As [`Pages::next`].
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

    /// The stream. A new one begins with the last entry that was delivered.
    async fn stream(&mut self) -> Result<&mut Streaming<Page>, ClientError> {
        if self.stream.is_none() {
            let from = self.continuity.resume_point(self.selection.after);
            self.continuity.stream_begins_after(from);
            let again = u32::from(from < self.selection.after);
            let request = GetRequest {
                context_id: self.context.as_str().to_owned(),
                key: self.selection.key_text(),
                after_sequence: from.0,
                limit: match self.selection.limit {
                    0 => 0,
                    limit => limit.saturating_add(again),
                },
                consistency: match self.selection.read_from {
                    ReadFrom::AnyReplica => proto::Consistency::AnyReplica,
                    ReadFrom::Owner => proto::Consistency::Owner,
                }
                .into(),
            };
            let client = self.reconnector.client.clone();
            let stream = self.reconnector.open(|channel| {
                let (mut service, request) = (client.ledger_service_on(channel), request.clone());
                async move { service.get(request).await }
            });
            self.stream = Some(stream.await?.into_inner());
        }
        self.stream.as_mut().ok_or_else(|| ClientError::Unavailable("there is no stream".into()))
    }

    fn accept_page(&mut self, page: Page) -> Result<Vec<Entry>, ClientError> {
        self.reconnector.received();
        self.latest = Sequence(page.latest_sequence);
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            entries.extend(self.continuity.accept(&self.context, entry)?);
        }
        if let Some(last) = entries.last() {
            self.selection.after = last.sequence;
            self.continuity.delivered(last);
        }
        if self.selection.limit > 0 {
            self.selection.limit = self.selection.limit.saturating_sub(entries.len() as u32);
            // A request with limit 0 would have no limit: the read ends here.
            self.finished = self.selection.limit == 0;
        }
        Ok(entries)
    }
}

impl Client {
    /// Reads a context in pages.
    pub fn get(&self, context: &ContextId, selection: Selection) -> Pages {
        Pages::new(self.clone(), context.clone(), selection)
    }
}
