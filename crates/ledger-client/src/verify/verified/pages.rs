//! Reads a context in pages, and proves each before the caller receives it.

use std::sync::Arc;

use ledger_core::{ContextId, Sequence};

use super::{entry::VerifiedEntry, read_tree::ReadTree};
use crate::{
    connection::core::Client,
    error::ClientError,
    read::{
        pages::Pages,
        selection::{ReadFrom, Selection},
    },
    verify::trust::{Trust, TrustedCheckpoint},
};

/// A context being read as of a trusted checkpoint, every entry proven.
#[derive(Debug)]
pub struct VerifiedPages {
    client: Client,
    context: ContextId,
    trust: Trust,
    selection: Selection,
    /// Set when the first page is read.
    progress: Option<Progress>,
    finished: bool,
}

#[derive(Debug)]
struct Progress {
    checkpoint: Arc<TrustedCheckpoint>,
    tree: ReadTree,
    pages: Pages,
    /// The pages come from the owner: no other node has more.
    from_owner: bool,
}

impl Client {
    /// As [`Client::get`], with every entry proven: see [`crate::verified`]. It reads the entries that are there when it
    /// begins, and fails if the ledger does not show all of them.
    pub fn get_verified(&self, context: &ContextId, selection: Selection, trust: &Trust) -> VerifiedPages {
        VerifiedPages {
            client: self.clone(),
            context: context.clone(),
            trust: trust.clone(),
            selection,
            progress: None,
            finished: false,
        }
    }
}

impl VerifiedPages {
    /// The next page, of the selected entries: it may be empty though others follow. `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] if the ledger leaves out, changes or adds entries; else as
    /// [`Client::trusted_checkpoint`] and [`Pages::next`].
    pub async fn next(&mut self) -> Result<Option<Vec<VerifiedEntry>>, ClientError> {
        if self.finished {
            return Ok(None);
        }
        if self.progress.is_none() && !self.begin().await? {
            self.finished = true;
            return Ok(None);
        }
        let Some(progress) = &mut self.progress else { return Ok(None) };
        let size = progress.checkpoint.head().size.0;
        // The tree keeps the entries while the proof is awaited: a caller that drops this future loses none.
        while progress.tree.unproven_count() == 0 {
            let Some(page) = progress.pages.next().await? else {
                progress.read_rest_from_owner(&self.client, &self.context, &self.selection)?;
                continue;
            };
            for entry in page.into_iter().filter(|entry| entry.sequence.0 <= size) {
                progress.tree.push(entry)?;
            }
        }
        let proven = progress.tree.prove(&self.client, &progress.checkpoint).await?;
        let mut page: Vec<_> = proven.filter(|entry| self.selection.matches(entry)).collect();
        self.finished = progress.tree.size() == size;
        if self.selection.limit > 0 {
            page.truncate(self.selection.limit as usize);
            self.selection.limit -= page.len() as u32;
            self.finished |= self.selection.limit == 0;
        }
        Ok(Some(page))
    }

    /// All entries.
    ///
    /// # Errors
    ///
    /// As [`VerifiedPages::next`].
    pub async fn collect(mut self) -> Result<Vec<VerifiedEntry>, ClientError> {
        let mut all = Vec::new();
        while let Some(page) = self.next().await? {
            all.extend(page);
        }
        Ok(all)
    }

    /// The checkpoint as of which this reads the context; `None` before the first page.
    pub fn checkpoint(&self) -> Option<&TrustedCheckpoint> {
        self.progress.as_ref().map(|progress| &*progress.checkpoint)
    }

    /// Fetches the checkpoint and opens the pages. False if there is nothing to read.
    async fn begin(&mut self) -> Result<bool, ClientError> {
        let checkpoint = match self.selection.read_from {
            ReadFrom::Owner => self.client.trusted_by_owner(&self.context, &self.trust).await?,
            ReadFrom::AnyReplica => self.client.trusted_checkpoint(&self.context, &self.trust).await?,
        };
        let (after, size) = (self.selection.after.0, checkpoint.head().size.0);
        let tree = ReadTree::begin(&self.client, after.min(size), &checkpoint).await?;
        let pages = unfiltered(&self.client, &self.context, tree.size(), self.selection.read_from);
        let from_owner = self.selection.read_from == ReadFrom::Owner;
        self.progress = Some(Progress { checkpoint: Arc::new(checkpoint), tree, pages, from_owner });
        Ok(after < size)
    }
}

impl Progress {
    /// The node has no more pages: a replica may be behind, so the rest comes from the owner.
    fn read_rest_from_owner(
        &mut self,
        client: &Client,
        context: &ContextId,
        selection: &Selection,
    ) -> Result<(), ClientError> {
        if self.from_owner {
            return Err(ClientError::NotVerified(format!(
                "the ledger shows context {context} after entry {} up to entry {} only, and there are {}",
                selection.after,
                self.tree.size(),
                self.checkpoint.head().size
            )));
        }
        self.from_owner = true;
        self.pages = unfiltered(client, context, self.tree.size(), ReadFrom::Owner);
        Ok(())
    }
}

fn unfiltered(client: &Client, context: &ContextId, after: u64, read_from: ReadFrom) -> Pages {
    client.get(context, Selection { after: Sequence(after), read_from, ..Selection::default() })
}
