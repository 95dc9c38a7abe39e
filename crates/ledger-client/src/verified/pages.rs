//! Reading a context in pages, each proven before it is handed out.

use std::sync::Arc;

use ledger_core::{ContextId, Entry, Sequence};

use super::{VerifiedEntry, chain::Chain};
use crate::{Client, ClientError, Pages, ReadFrom, Selection, Trust, TrustedCheckpoint};

/// A context being read as of a trusted checkpoint, every entry proven.
#[derive(Debug)]
pub struct VerifiedPages {
    client: Client,
    context: ContextId,
    trust: Trust,
    selection: Selection,
    /// From the first page on.
    begun: Option<Begun>,
    finished: bool,
}

#[derive(Debug)]
struct Begun {
    checkpoint: Arc<TrustedCheckpoint>,
    chain: Chain,
    pages: Pages,
    /// The owner is read: nobody knows more.
    is_owners: bool,
}

impl Client {
    /// As [`Client::get`], with every entry proven: see [`crate::verified`]. It reads what is there when it begins, to
    /// the end, and fails if anything of that is not shown.
    pub fn get_verified(&self, context: &ContextId, selection: Selection, trust: &Trust) -> VerifiedPages {
        VerifiedPages {
            client: self.clone(),
            context: context.clone(),
            trust: trust.clone(),
            selection,
            begun: None,
            finished: false,
        }
    }
}

impl VerifiedPages {
    /// The next page, of the entries that are selected: it may be empty though others follow. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<VerifiedEntry>>, ClientError> {
        if self.finished {
            return Ok(None);
        }
        if self.begun.is_none() && !self.begin().await? {
            self.finished = true;
            return Ok(None);
        }
        let Some(begun) = &mut self.begun else { return Ok(None) };
        let size = begun.checkpoint.head().size.0;
        // Kept in the chain while it is proven: nothing is lost if this is dropped meanwhile.
        while begun.chain.unproven() == 0 {
            let Some(page) = begun.pages.next().await? else {
                begun.rest(&self.client, &self.context, &self.selection)?;
                continue;
            };
            for entry in page.into_iter().filter(|entry| entry.sequence.0 <= size) {
                begun.chain.push(entry)?;
            }
        }
        let proven = begun.chain.prove(&self.client, &begun.checkpoint).await?;
        let mut page: Vec<_> = proven.filter(|entry| is_selected(&self.selection, entry)).collect();
        self.finished = begun.chain.size() == size;
        if self.selection.limit > 0 {
            page.truncate(self.selection.limit as usize);
            self.selection.limit -= page.len() as u32;
            self.finished |= self.selection.limit == 0;
        }
        Ok(Some(page))
    }

    /// All entries.
    pub async fn collect(mut self) -> Result<Vec<VerifiedEntry>, ClientError> {
        let mut all = Vec::new();
        while let Some(page) = self.next().await? {
            all.extend(page);
        }
        Ok(all)
    }

    /// The checkpoint as of which the context is read; `None` before the first page.
    pub fn checkpoint(&self) -> Option<&TrustedCheckpoint> {
        self.begun.as_ref().map(|begun| &*begun.checkpoint)
    }

    /// Whether there is anything to read.
    async fn begin(&mut self) -> Result<bool, ClientError> {
        let checkpoint = match self.selection.read_from {
            ReadFrom::Owner => self.client.trusted_by_owner(&self.context, &self.trust).await?,
            ReadFrom::AnyReplica => self.client.trusted_checkpoint(&self.context, &self.trust).await?,
        };
        let (after, size) = (self.selection.after.0, checkpoint.head().size.0);
        let chain = Chain::begin(&self.client, after.min(size), &checkpoint).await?;
        let pages = unfiltered(&self.client, &self.context, chain.size(), self.selection.read_from);
        let is_owners = self.selection.read_from == ReadFrom::Owner;
        self.begun = Some(Begun { checkpoint: Arc::new(checkpoint), chain, pages, is_owners });
        Ok(after < size)
    }
}

impl Begun {
    /// A node has no more to show: a replica may be behind, and the rest is the owner's to show.
    fn rest(
        &mut self,
        client: &Client,
        context: &ContextId,
        selection: &Selection,
    ) -> Result<(), ClientError> {
        if self.is_owners {
            return Err(ClientError::NotVerified(format!(
                "the ledger shows context {context} after entry {} up to entry {} only, and there are {}",
                selection.after,
                self.chain.size(),
                self.checkpoint.head().size
            )));
        }
        self.is_owners = true;
        self.pages = unfiltered(client, context, self.chain.size(), ReadFrom::Owner);
        Ok(())
    }
}

fn unfiltered(client: &Client, context: &ContextId, after: u64, read_from: ReadFrom) -> Pages {
    client.get(context, Selection { after: Sequence(after), read_from, ..Selection::default() })
}

pub(super) fn is_selected(selection: &Selection, entry: &Entry) -> bool {
    entry.sequence > selection.after && selection.key.as_ref().is_none_or(|key| *key == entry.key)
}
