//! Reads a context out as a snapshot.

use std::sync::Arc;

use ledger_core::{
    Entry, Sequence,
    snapshot::{Encoder, Header},
};

use crate::{
    Filter, StoreError, engine::db::Db, engine::families::RowLocation, engine::heads::read_head, ids,
    read::pages, store::Store,
};

/// Bytes of entries read at a time.
const PAGE_BYTES: usize = 1 << 20;

/// A snapshot that is being read: an iterator over chunks of some hundred kibibytes. The context may grow meanwhile;
/// the snapshot ends at the size it had when the snapshot began.
#[derive(Debug)]
pub struct SnapshotStream {
    store: Arc<Store>,
    header: Header,
    source: Option<Source>,
}

/// The source of a snapshot, until its end was returned.
struct Source {
    encoder: Encoder,
    place: RowLocation,
    head: ledger_core::Head,
    done: Sequence,
    started: bool,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("place", &self.place).field("done", &self.done).finish_non_exhaustive()
    }
}

impl SnapshotStream {
    pub(crate) fn begin(store: Arc<Store>, context: &ledger_core::ContextId) -> Result<Self, StoreError> {
        let now = ids::now_ns();
        let (place, head) = match store.with_quarantine(context, |db| db.head(context))? {
            Some(found) => found,
            // An unknown context reads as empty; nothing uses its number.
            None => (
                RowLocation { slot: ledger_core::slot::Slot::of(context), number: 0 },
                ledger_core::Head::new(store.shared.options.suite, ledger_core::Lineage([0; 16]), 0),
            ),
        };
        let header = Header::of(context, &head, now);
        let encoder = Encoder::new(header.clone());
        let source = Some(Source { encoder, place, head, done: Sequence(0), started: false });
        Ok(Self { store, header, source })
    }

    /// Returns what the snapshot says about its context.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

impl Iterator for SnapshotStream {
    type Item = Result<Vec<u8>, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut source = self.source.take()?;
        let mut chunk = Vec::new();
        if !source.started {
            source.encoder.start(&mut chunk);
            source.started = true;
        }
        while chunk.is_empty() && source.done < self.header.count.newest() {
            let page = self.store.database.get().and_then(|db| source.page(&db, &self.header));
            let pushed = page.and_then(|entries| {
                source.done = entries.last().map_or(source.done, |entry| entry.sequence);
                entries
                    .iter()
                    .try_for_each(|entry| source.encoder.push(entry, &mut chunk))
                    .map_err(Into::into)
            });
            if let Err(error) = pushed {
                self.store.shared.quarantine.record(&error);
                return Some(Err(error));
            }
        }
        if chunk.is_empty() {
            return Some(source.encoder.finish(&mut chunk).map(|()| chunk).map_err(Into::into));
        }
        self.source = Some(source);
        Some(Ok(chunk))
    }
}

impl Source {
    /// Reads the next entries from where the rows are now: a load may have installed another copy.
    fn page(&mut self, db: &Db, header: &Header) -> Result<Vec<Entry>, StoreError> {
        let filter = Filter { after: self.done, max_bytes: PAGE_BYTES, ..Filter::default() };
        loop {
            match pages::page_at(db, &header.context_id, self.place, &self.head, &filter) {
                Err(error @ StoreError::Damaged { .. }) => match read_head(db, &header.context_id)? {
                    Some((place, _)) if place != self.place => self.place = place,
                    _ if pages::moved(db, &header.context_id, self.place, &self.head)? => {
                        let (context, size) = (header.context_id.clone(), header.count.0);
                        return Err(StoreError::HistoryChanged { context, size });
                    }
                    _ => return Err(error),
                },
                page => return page.map(|page| page.entries),
            }
        }
    }
}
