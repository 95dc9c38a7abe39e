//! Watches a context: its history, then the live tail, without a gap.

use std::sync::Arc;

use ledger_core::{ContextId, Key, Position, Sequence, Size};
use tokio::sync::watch;

use crate::{
    Covered, EntryView, Filter, Page, StoreError, error::damaged, read::pages::Visit, read::tail::Tail,
    store::Store,
};

/// A watcher of one context: delivers every entry after its start once, in order.
///
/// Call [`Watch::read`] until it returns nothing, then wait for [`Watch::changed`], and repeat. A watcher that falls
/// behind reads the store; it loses no entry and buffers nothing.
#[derive(Debug)]
pub struct Watch {
    store: Arc<Store>,
    context: ContextId,
    key: Option<Key>,
    delivered: Sequence,
    tail: Arc<Tail>,
    size: watch::Receiver<Size>,
}

impl Watch {
    pub(crate) fn new(store: Arc<Store>, context: ContextId, key: Option<Key>, after: Sequence) -> Self {
        // Join the tail before reading the store: whichever comes later sees a commit in between.
        let tail = store.shared.publisher.tails.join(&context);
        let size = tail.subscribe();
        Self { store, context, key, delivered: after, tail, size }
    }

    /// Returns the committed entries after those already delivered, without waiting for more. Recent ones come from
    /// memory, older ones from the store, which may wait for the disk. An empty page with `more` false means that
    /// there is nothing new.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
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

    /// Does what [`Watch::read`] does from the store, without copying: calls `visit` with each entry. Leaves a first
    /// entry that is larger than `max_bytes` for the next call and reports it in [`Covered::larger`].
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
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

    /// Does what [`Watch::visit`] does, but only from memory: `None` if it would have to read the store.
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
        let read = self.store.visit(&self.context, &filter, &mut visit);
        self.delivered = delivered;
        let covered = read?;
        self.delivered = covered.covered.max(self.delivered);
        // The page ends at the size that it saw; a context that is longer by now moves the tail.
        self.tail.reach(covered.latest);
        if !covered.more && self.tail.position_at(covered.latest).is_none() {
            // Nothing was committed since the context is watched: read the position from its head.
            let head = self.store.with_quarantine(&self.context, |db| db.head(&self.context))?;
            if let Some((_, head)) = head {
                self.tail.record_position(head.position());
            }
        }
        Ok(covered)
    }

    fn recent(
        &mut self,
        limit: usize,
        max_bytes: usize,
        max_first: usize,
        visit: &mut Visit<'_>,
    ) -> Option<Result<Covered, StoreError>> {
        if let Err(error) = self.store.shared.quarantine.check(&self.context) {
            return Some(Err(error));
        }
        let latest = *self.size.borrow_and_update();
        // Deliver only entries up to the committed size: the buffer may be ahead of it for a moment.
        let available = latest.0.saturating_sub(self.delivered.0);
        let recent = self.tail.recent_after(self.delivered, (limit as u64).min(available) as usize)?;
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
        if covered == self.delivered && available > 0 && limit > 0 && larger.is_none() {
            return None;
        }
        self.delivered = covered;
        Some(Ok(Covered { latest, covered, more: covered < latest.newest(), larger }))
    }

    /// Waits until there may be something to read. Cancellation-safe: dropping the future loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when the ledger closes.
    pub async fn changed(&mut self) -> Result<(), StoreError> {
        let delivered = self.delivered;
        let mut closed = self.store.closed.subscribe();
        tokio::select! {
            size = self.size.wait_for(|size| size.newest() > delivered) => {
                size.map(|_| ()).map_err(|_| StoreError::Closed)
            }
            _ = closed.wait_for(|closed| *closed) => Err(StoreError::Closed),
        }
    }

    /// Does what [`Watch::changed`] does, but blocks the thread.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when the ledger closes.
    pub fn wait(&mut self) -> Result<(), StoreError> {
        futures::executor::block_on(self.changed())
    }

    /// Returns the position of the history, if everything up to its end was delivered.
    pub fn position(&self) -> Option<Position> {
        self.tail.position_at(Size(self.delivered.0))
    }

    /// Returns the sequence up to which everything was delivered or filtered out.
    pub fn delivered(&self) -> Sequence {
        self.delivered
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.store.shared.publisher.tails.leave(&self.context);
    }
}
