//! Watches a context, and proves each entry before the caller receives it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{Stream, stream};
use ledger_core::{ContextId, Sequence};
use tokio::time::Instant;

use super::{entry::VerifiedEntry, read_tree::ReadTree};
use crate::{
    connection::core::Client,
    error::{ClientError, NotExtended},
    read::{selection::Selection, watch::Watch},
    verify::trust::{Trust, TrustedCheckpoint},
};

/// Most entries of one proof.
const MAX_BATCH: usize = 1024;
/// How often the watch stores the newest checkpoint as the known one while entries come.
const STORE_INTERVAL: Duration = Duration::from_secs(1);

/// A context being watched, every entry proven.
#[derive(Debug)]
pub struct VerifiedWatch {
    client: Client,
    context: ContextId,
    trust: Trust,
    selection: Selection,
    /// Set when the first entry is read.
    progress: Option<Progress>,
    ready: VecDeque<VerifiedEntry>,
}

#[derive(Debug)]
struct Progress {
    checkpoint: Arc<TrustedCheckpoint>,
    tree: ReadTree,
    watch: Watch,
    stored_at: Instant,
    is_stored: bool,
}

impl Client {
    /// As [`Client::watch`], with every entry proven: see [`crate::verified`]. Each group of entries that comes costs a
    /// checkpoint.
    pub fn watch_verified(&self, context: &ContextId, selection: Selection, trust: &Trust) -> VerifiedWatch {
        VerifiedWatch {
            client: self.clone(),
            context: context.clone(),
            trust: trust.clone(),
            selection,
            progress: None,
            ready: VecDeque::new(),
        }
    }
}

impl VerifiedWatch {
    /// The next entry. Waits for it; `None` never comes while the context can be watched. Cancel safe: a caller that drops
    /// the future loses no entry.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] if the ledger leaves out, changes or adds entries; [`ClientError::NotExtended`] if its
    /// history does not continue the trusted one; else as [`Client::trusted_checkpoint`] and [`Watch::next`].
    pub async fn next(&mut self) -> Result<Option<VerifiedEntry>, ClientError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            let Some(progress) = &mut self.progress else {
                self.progress = Some(self.begin().await?);
                continue;
            };
            if progress.tree.unproven_count() == 0 {
                let Some(entry) = progress.watch.next().await? else { return Ok(None) };
                progress.push(entry)?;
            }
            while progress.tree.unproven_count() < MAX_BATCH
                && let Some(entry) = progress.watch.next_ready()
            {
                progress.push(entry)?;
            }
            let proven = progress.prove(&self.client, &self.context, &self.trust).await?;
            self.ready.extend(proven.into_iter().filter(|entry| self.selection.matches(entry)));
            if progress.stored_at.elapsed() >= STORE_INTERVAL {
                progress.store(&self.client, &self.trust).await?;
            }
        }
    }

    /// The entries as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<VerifiedEntry, ClientError>> + Send + Unpin {
        Box::pin(stream::try_unfold(self, async |mut watch| {
            Ok(watch.next().await?.map(|entry| (entry, watch)))
        }))
    }

    /// Ends the watch, and stores the newest checkpoint as the known one.
    ///
    /// # Errors
    ///
    /// As [`Client::trusted_checkpoint`].
    pub async fn finish(mut self) -> Result<(), ClientError> {
        match &mut self.progress {
            Some(progress) => progress.store(&self.client, &self.trust).await,
            None => Ok(()),
        }
    }

    /// The newest checkpoint against which the watch has verified entries; `None` before the first.
    pub fn checkpoint(&self) -> Option<&TrustedCheckpoint> {
        self.progress.as_ref().map(|progress| &*progress.checkpoint)
    }

    async fn begin(&self) -> Result<Progress, ClientError> {
        let mut checkpoint = self.client.trusted_checkpoint(&self.context, &self.trust).await?;
        let after = self.selection.after.0.min(checkpoint.head().size.0);
        let selection =
            Selection { after: Sequence(after), read_from: self.selection.read_from, ..Selection::default() };
        let mut watch = self.client.watch(&self.context, selection);
        let mut first = None;
        if checkpoint.head().size.0 == 0 {
            // A context has a hash suite from its first entry on.
            first = watch.next().await?;
            checkpoint = self.client.trusted_checkpoint(&self.context, &self.trust).await?;
        }
        let tree = ReadTree::begin(&self.client, after, &checkpoint).await?;
        let (stored_at, checkpoint) = (Instant::now(), Arc::new(checkpoint));
        let mut progress = Progress { checkpoint, tree, watch, stored_at, is_stored: true };
        if let Some(first) = first {
            progress.push(first)?;
        }
        Ok(progress)
    }
}

impl Progress {
    fn push(&mut self, entry: ledger_core::Entry) -> Result<(), ClientError> {
        self.tree.push(entry)?;
        // Beyond the trusted size only the root at that size shows that the entries continue the trusted tree.
        let (read, trusted) = (self.tree.head(), self.checkpoint.head());
        if read.size == trusted.size && read.root != trusted.root {
            let reason = format!("the entries that came lead to root {}", read.root);
            let (context, evidence) = (self.checkpoint.context().clone(), String::new());
            return Err(Box::new(NotExtended { context, trusted, shown: read, reason, evidence }).into());
        }
        Ok(())
    }

    async fn prove(
        &mut self,
        client: &Client,
        context: &ContextId,
        trust: &Trust,
    ) -> Result<Vec<VerifiedEntry>, ClientError> {
        let read = self.tree.head();
        if read.size <= self.checkpoint.head().size {
            return Ok(self.tree.prove(client, &self.checkpoint).await?.collect());
        }
        let newer = client.trusted_by_reading(context, read, &self.checkpoint, trust).await?;
        self.checkpoint = Arc::new(newer);
        self.is_stored = false;
        Ok(self.tree.take_proven(&self.checkpoint).collect())
    }

    async fn store(&mut self, client: &Client, trust: &Trust) -> Result<(), ClientError> {
        if !self.is_stored {
            client.store_newest(trust, &self.checkpoint).await?;
            (self.is_stored, self.stored_at) = (true, Instant::now());
        }
        Ok(())
    }
}
