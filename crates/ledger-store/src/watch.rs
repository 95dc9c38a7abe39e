//! Watching: history, then the live tail, without a gap.

use std::sync::Arc;

use ledger_core::{ContextId, Entry, Key, Sequence, Size};
use tokio::sync::watch;

use crate::{Filter, Page, StoreError, ledger::Inner, tail::Tail};

/// A watcher of one context: delivers every entry after its start once, in order.
///
/// Use [`Watch::read`] until it returns nothing, then wait for [`Watch::changed`], and so on. Falling
/// behind costs a reading of the store, never an entry and never memory.
#[derive(Debug)]
pub struct Watch {
    inner: Arc<Inner>,
    context: ContextId,
    key: Option<Key>,
    delivered: Sequence,
    tail: Arc<Tail>,
    size: watch::Receiver<Size>,
}

impl Watch {
    pub(crate) fn new(inner: Arc<Inner>, context: ContextId, key: Option<Key>, after: Sequence) -> Self {
        // First the tail, then the store: what is committed in between is seen by one or the other.
        let tail = inner.shared.tails.join(&context);
        let size = tail.subscribe();
        Self { inner, context, key, delivered: after, tail, size }
    }

    /// What there is beyond what was delivered, without waiting for more: recent entries from memory,
    /// older ones from the store, which may wait for the disk. An empty page that says not `more` means
    /// there is nothing new.
    pub fn read(&mut self, limit: usize, max_bytes: usize) -> Result<Page, StoreError> {
        if let Some(page) = self.read_recent(limit, max_bytes) {
            return page;
        }
        let filter = Filter { key: self.key.clone(), after: self.delivered, limit, max_bytes };
        let page = self.inner.page(&self.context, &filter)?;
        self.delivered = page.covered.max(self.delivered);
        // A page is read up to the size it saw; whatever is longer moves the tail.
        self.tail.reach(page.latest);
        Ok(page)
    }

    /// As [`Watch::read`], but only from memory: `None` if it would have to read the store.
    pub fn read_recent(&mut self, limit: usize, max_bytes: usize) -> Option<Result<Page, StoreError>> {
        if let Err(error) = self.inner.shared.quarantine.check(&self.context) {
            return Some(Err(error));
        }
        let latest = *self.size.borrow_and_update();
        // Only what is shown as durable is delivered; the entries are remembered just before.
        let shown = latest.0.saturating_sub(self.delivered.0);
        let recent = self.tail.recent_after(self.delivered, (limit as u64).min(shown) as usize)?;
        let mut page = Page { entries: Vec::new(), latest, covered: self.delivered, more: false };
        let mut bytes = 0;
        for entry in &recent {
            bytes += crate::read::weight(entry);
            if bytes > max_bytes && !page.entries.is_empty() {
                break;
            }
            page.covered = entry.sequence;
            if self.key.as_ref().is_none_or(|key| *key == entry.key) {
                page.entries.push(Entry::clone(entry));
            }
        }
        if page.covered == self.delivered && shown > 0 && limit > 0 {
            return None;
        }
        page.more = page.covered < latest.newest();
        self.delivered = page.covered;
        Some(Ok(page))
    }

    /// Waits until there may be something to read; fails with [`StoreError::Closed`] when the ledger
    /// closes. Cancellation-safe: dropping the future loses nothing.
    pub async fn changed(&mut self) -> Result<(), StoreError> {
        let delivered = self.delivered;
        let mut closed = self.inner.closed.subscribe();
        tokio::select! {
            size = self.size.wait_for(|size| size.newest() > delivered) => {
                size.map(|_| ()).map_err(|_| StoreError::Closed)
            }
            _ = closed.wait_for(|closed| *closed) => Err(StoreError::Closed),
        }
    }

    /// As [`Watch::changed`], blocking the thread.
    pub fn wait(&mut self) -> Result<(), StoreError> {
        futures::executor::block_on(self.changed())
    }

    /// Everything up to here was delivered or filtered out.
    pub fn delivered(&self) -> Sequence {
        self.delivered
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.inner.shared.tails.leave(&self.context);
    }
}
