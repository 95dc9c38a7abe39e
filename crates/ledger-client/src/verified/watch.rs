//! Watching a context, each entry proven before it is handed out.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{Stream, stream};
use ledger_core::{ContextId, Sequence};
use tokio::time::Instant;

use super::{VerifiedEntry, chain::Chain, pages::is_selected};
use crate::{Client, ClientError, Selection, Trust, TrustedCheckpoint, Watch, error::NotExtended};

/// Most entries proven at once.
const AT_ONCE: usize = 1024;
/// How often the newest checkpoint is kept while entries come.
const KEPT_EVERY: Duration = Duration::from_secs(1);

/// A context being watched, every entry proven.
#[derive(Debug)]
pub struct VerifiedWatch {
    client: Client,
    context: ContextId,
    trust: Trust,
    selection: Selection,
    /// From the first entry on.
    begun: Option<Begun>,
    ready: VecDeque<VerifiedEntry>,
}

#[derive(Debug)]
struct Begun {
    checkpoint: Arc<TrustedCheckpoint>,
    chain: Chain,
    watch: Watch,
    kept: Instant,
    is_kept: bool,
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
            begun: None,
            ready: VecDeque::new(),
        }
    }
}

impl VerifiedWatch {
    /// The next entry. Waits for it; `None` never comes while the context can be watched. May be dropped while it
    /// waits: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<VerifiedEntry>, ClientError> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            let Some(begun) = &mut self.begun else {
                self.begun = Some(self.begin().await?);
                continue;
            };
            if begun.chain.unproven() == 0 {
                let Some(entry) = begun.watch.next().await? else { return Ok(None) };
                begun.push(entry)?;
            }
            while begun.chain.unproven() < AT_ONCE
                && let Some(entry) = begun.watch.next_ready()
            {
                begun.push(entry)?;
            }
            let proven = begun.prove(&self.client, &self.context, &self.trust).await?;
            self.ready.extend(proven.into_iter().filter(|entry| is_selected(&self.selection, entry)));
            if begun.kept.elapsed() >= KEPT_EVERY {
                begun.keep(&self.client, &self.trust).await?;
            }
        }
    }

    /// The entries as a stream, which ends after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<VerifiedEntry, ClientError>> + Send + Unpin {
        Box::pin(stream::try_unfold(self, async |mut watch| {
            Ok(watch.next().await?.map(|entry| (entry, watch)))
        }))
    }

    /// Ends the watch, and keeps the newest checkpoint.
    pub async fn finish(mut self) -> Result<(), ClientError> {
        match &mut self.begun {
            Some(begun) => begun.keep(&self.client, &self.trust).await,
            None => Ok(()),
        }
    }

    /// The newest checkpoint that entries were held against; `None` before the first.
    pub fn checkpoint(&self) -> Option<&TrustedCheckpoint> {
        self.begun.as_ref().map(|begun| &*begun.checkpoint)
    }

    async fn begin(&self) -> Result<Begun, ClientError> {
        let mut checkpoint = self.client.trusted_checkpoint(&self.context, &self.trust).await?;
        let after = self.selection.after.0.min(checkpoint.head().size.0);
        let selection =
            Selection { after: Sequence(after), read_from: self.selection.read_from, ..Selection::default() };
        let mut watch = self.client.watch(&self.context, selection);
        let mut first = None;
        if checkpoint.head().size.0 == 0 {
            // How a context is hashed is known from its first entry on.
            first = watch.next().await?;
            checkpoint = self.client.trusted_checkpoint(&self.context, &self.trust).await?;
        }
        let chain = Chain::begin(&self.client, after, &checkpoint).await?;
        let (kept, checkpoint) = (Instant::now(), Arc::new(checkpoint));
        let mut begun = Begun { checkpoint, chain, watch, kept, is_kept: true };
        if let Some(first) = first {
            begun.push(first)?;
        }
        Ok(begun)
    }
}

impl Begun {
    fn push(&mut self, entry: ledger_core::Entry) -> Result<(), ClientError> {
        self.chain.push(entry)?;
        // Past the trusted size only the entries themselves show that they continue it.
        let (read, trusted) = (self.chain.head(), self.checkpoint.head());
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
        let read = self.chain.head();
        if read.size <= self.checkpoint.head().size {
            return Ok(self.chain.prove(client, &self.checkpoint).await?.collect());
        }
        let newer = client.trusted_by_reading(context, read, &self.checkpoint, trust).await?;
        self.checkpoint = Arc::new(newer);
        self.is_kept = false;
        Ok(self.chain.proven(&self.checkpoint).collect())
    }

    async fn keep(&mut self, client: &Client, trust: &Trust) -> Result<(), ClientError> {
        if !self.is_kept {
            client.keep_newest(trust, &self.checkpoint).await?;
            (self.is_kept, self.kept) = (true, Instant::now());
        }
        Ok(())
    }
}
