//! A context in pages.

use ledger_core::{ContextId, Entry, Key, Sequence};
use ledger_proto::{
    context::v1::{self as proto, GetRequest},
    ledger::v1::Page,
};
use tonic::Streaming;

use crate::{
    Client, ClientError,
    reading::{Reading, Seam},
    route::Aim,
};

/// Which entries.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only entries of this key.
    pub key: Option<Key>,
    /// Only entries with a higher sequence.
    pub after: Sequence,
    /// At most so many; 0: no limit. Watching ignores it.
    pub limit: u32,
    /// Which node may answer.
    pub read_from: ReadFrom,
}

/// Which node may answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadFrom {
    /// Any that keeps the context: it shows what it knows to be safe, which may be a moment behind.
    #[default]
    AnyReplica,
    /// The owner: everything acknowledged so far.
    Owner,
}

impl Selection {
    /// Only entries of a key.
    pub fn of_key(key: impl Into<String>) -> Result<Self, ClientError> {
        Ok(Self { key: Some(Key::new(key)?), ..Self::default() })
    }

    /// Only entries with a higher sequence.
    #[must_use]
    pub fn after(self, after: Sequence) -> Self {
        Self { after, ..self }
    }

    /// At most so many; 0: no limit.
    #[must_use]
    pub fn at_most(self, limit: u32) -> Self {
        Self { limit, ..self }
    }

    /// From the owner: everything acknowledged so far.
    #[must_use]
    pub fn from_owner(self) -> Self {
        Self { read_from: ReadFrom::Owner, ..self }
    }

    pub(crate) fn key_text(&self) -> String {
        self.key.as_ref().map(|key| key.as_str().to_owned()).unwrap_or_default()
    }

    pub(crate) fn aim(&self, context: &ContextId) -> Aim {
        match self.read_from {
            ReadFrom::AnyReplica => Aim::near(context),
            ReadFrom::Owner => Aim::owner_of(context),
        }
    }
}

/// A context being read.
#[derive(Debug)]
pub struct Pages {
    reading: Reading,
    context: ContextId,
    selection: Selection,
    stream: Option<Streaming<Page>>,
    seam: Seam,
    latest: Sequence,
    finished: bool,
}

impl Pages {
    pub(crate) fn new(client: Client, context: ContextId, selection: Selection) -> Self {
        Self {
            reading: Reading::new(client, selection.aim(&context)),
            context,
            selection,
            stream: None,
            seam: Seam::default(),
            latest: Sequence(0),
            finished: false,
        }
    }

    /// The next page; `None` at the end. What breaks off goes on where it broke off, at another node if there is
    /// one, without a gap or a repetition: [`ClientError::HistoryChanged`] if it is not the same history there.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, ClientError> {
        while !self.finished {
            let page = match self.stream().await?.message().await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                Err(status) => {
                    self.stream = None;
                    self.reading.broke(status).await?;
                    continue;
                }
            };
            if page.latest_sequence < self.latest.0 {
                // Nothing is ever taken from a context: the node is behind.
                self.stream = None;
                if self.reading.ask_owner() {
                    continue;
                }
                let message = format!(
                    "context {} had {} entries, and has {} now",
                    self.context, self.latest, page.latest_sequence
                );
                return Err(ClientError::HistoryChanged { message, common: None });
            }
            return self.take(page).map(Some);
        }
        self.finished = true;
        Ok(None)
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

    /// The stream, which begins with the last entry that was delivered.
    async fn stream(&mut self) -> Result<&mut Streaming<Page>, ClientError> {
        if self.stream.is_none() {
            let from = self.seam.overlap(self.selection.after);
            self.seam.begin(from);
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
            let client = self.reading.client.clone();
            let stream = self.reading.open(|channel| {
                let (mut service, request) = (client.ledger_service_on(channel), request.clone());
                async move { service.get(request).await }
            });
            self.stream = Some(stream.await?.into_inner());
        }
        self.stream.as_mut().ok_or_else(|| ClientError::Unavailable("there is no stream".into()))
    }

    fn take(&mut self, page: Page) -> Result<Vec<Entry>, ClientError> {
        self.reading.came();
        self.latest = Sequence(page.latest_sequence);
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            entries.extend(self.seam.take(&self.context, entry)?);
        }
        if let Some(last) = entries.last() {
            self.selection.after = last.sequence;
            self.seam.delivered(last);
        }
        if self.selection.limit > 0 {
            self.selection.limit = self.selection.limit.saturating_sub(entries.len() as u32);
            // A limit of 0 would mean none: nothing is left to ask for after this.
            self.finished = self.selection.limit == 0;
        }
        Ok(entries)
    }
}
