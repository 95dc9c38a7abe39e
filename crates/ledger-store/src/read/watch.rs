//! Watching: history, then the live tail, without a gap.

use std::sync::Arc;

use ledger_core::{ContextId, Key, Sequence, Size};
use tokio::sync::watch;

use crate::{
    Covered, EntryView, Filter, Page, StoreError,
    ledger::Inner,
    read::pages::{Visit, damaged},
    read::tail::Tail,
};

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
        let context = self.context.clone();
        let mut entries = Vec::new();
        let mut take = |view: EntryView<'_>| {
            entries.push(view.to_entry(&context)?);
            Ok(())
        };
        let read = match self.recent(limit, max_bytes, usize::MAX, &mut take) {
            Some(read) => read,
            None => self.stored(limit, max_bytes, usize::MAX, &mut take),
        };
        let Covered { latest, covered, more, larger } = read?;
        Ok(Page { entries, latest, covered, more, larger })
    }

    /// As [`Watch::read`] of the store, without copying: calls `visit` with each entry where it lies. A first entry that is
    /// larger than `max_bytes` is left for the next time: [`Covered::larger`].
    pub fn visit(
        &mut self,
        limit: usize,
        max_bytes: usize,
        mut visit: impl FnMut(EntryView<'_>),
    ) -> Result<Covered, StoreError> {
        let mut visit = |view: EntryView<'_>| {
            visit(view);
            Ok(())
        };
        self.stored(limit, max_bytes, max_bytes, &mut visit)
    }

    /// As [`Watch::visit`], but only from memory: `None` if it would have to read the store.
    pub fn visit_recent(
        &mut self,
        limit: usize,
        max_bytes: usize,
        mut visit: impl FnMut(EntryView<'_>),
    ) -> Option<Result<Covered, StoreError>> {
        let mut visit = |view: EntryView<'_>| {
            visit(view);
            Ok(())
        };
        self.recent(limit, max_bytes, max_bytes, &mut visit)
    }

    fn stored(
        &mut self,
        limit: usize,
        max_bytes: usize,
        max_first: usize,
        visit: &mut Visit<'_>,
    ) -> Result<Covered, StoreError> {
        let filter = Filter { key: self.key.clone(), after: self.delivered, limit, max_bytes, max_first };
        let mut delivered = self.delivered;
        let mut visit = |view: EntryView<'_>| {
            delivered = view.sequence;
            visit(view)
        };
        let read = self.inner.visit(&self.context, &filter, &mut visit);
        self.delivered = delivered;
        let covered = read?;
        self.delivered = covered.covered.max(self.delivered);
        // A page is read up to the size it saw; whatever is longer moves the tail.
        self.tail.reach(covered.latest);
        Ok(covered)
    }

    fn recent(
        &mut self,
        limit: usize,
        max_bytes: usize,
        max_first: usize,
        visit: &mut Visit<'_>,
    ) -> Option<Result<Covered, StoreError>> {
        if let Err(error) = self.inner.shared.quarantine.check(&self.context) {
            return Some(Err(error));
        }
        let latest = *self.size.borrow_and_update();
        // Only what is shown as durable is delivered; the entries are remembered just before.
        let shown = latest.0.saturating_sub(self.delivered.0);
        let recent = self.tail.recent_after(self.delivered, (limit as u64).min(shown) as usize)?;
        let (mut covered, mut bytes, mut larger) = (self.delivered, 0, None);
        for entry in &recent {
            let weight = crate::read::pages::weight(entry);
            if bytes + weight > max_bytes && bytes > 0 {
                break;
            }
            if bytes == 0 && weight > max_first {
                larger = Some(weight);
                break;
            }
            if self.key.as_ref().is_none_or(|key| *key == entry.key) {
                let visited = entry.id.with_text(|id| visit(EntryView::of(entry, id)));
                if let Err(error) = visited {
                    return Some(Err(damaged(&self.context, entry.sequence, &error.to_string())));
                }
                bytes += weight;
            }
            covered = entry.sequence;
        }
        if covered == self.delivered && shown > 0 && limit > 0 && larger.is_none() {
            return None;
        }
        self.delivered = covered;
        Some(Ok(Covered { latest, covered, more: covered < latest.newest(), larger }))
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
