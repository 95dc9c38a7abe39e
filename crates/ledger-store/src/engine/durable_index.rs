//! Tracks how far the data directory is durable, as a number that only grows while the directory lives.
//!
//! RocksDB gives every change a sequence number and continues the count at the next start. A peer that remembers the
//! highest durable number can therefore recognize an older copy of the directory: it opens at a lower number.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::engine::watermark::Watermark;

/// How far the directory is durable, in RocksDB sequence numbers.
#[derive(Debug, Default)]
pub(crate) struct DurableIndex {
    /// The number at which the directory was opened, before this process wrote anything.
    opened: AtomicU64,
    /// The highest number known to be on disk.
    durable: AtomicU64,
    /// The number at which the current cluster start began; `None` before the first.
    started: Mutex<Option<u64>>,
    /// Records the durable number outside of the write-ahead log.
    watermark: Option<Watermark>,
}

impl DurableIndex {
    /// Creates the index: until the directory is opened it knows only what the watermark says.
    pub(crate) fn new(watermark: Watermark) -> Self {
        Self { watermark: Some(watermark), ..Self::default() }
    }

    /// Returns how far the directory was durable according to the watermark; 0 if that is unknown.
    pub(crate) fn expected(&self) -> u64 {
        self.watermark.as_ref().map_or(0, Watermark::number)
    }

    /// Lowers the watermark to `number`: the operator accepts that later changes are lost.
    ///
    /// # Errors
    /// If the watermark file cannot be written.
    pub(crate) fn accept_loss_after(&self, number: u64) -> std::io::Result<()> {
        self.watermark.as_ref().map_or(Ok(()), |watermark| watermark.reset(number))
    }

    /// Syncs the watermark, because the directory is about to be closed.
    pub(crate) fn close(&self) {
        if let Some(watermark) = &self.watermark {
            watermark.sync();
        }
    }

    /// Records the number at which the directory was opened.
    pub(crate) fn opened(&self, number: u64) {
        self.opened.store(number, Ordering::SeqCst);
    }

    /// Records that a sync made everything up to `number` durable. Take the number before the sync.
    pub(crate) fn synced(&self, number: u64) {
        // The watermark must be written before anything of this sync is acknowledged.
        if let Some(watermark) = &self.watermark {
            watermark.advance(number);
        }
        self.durable.fetch_max(number, Ordering::SeqCst);
    }

    /// Returns the highest number known to be on disk; 0 before the first sync.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::SeqCst)
    }

    /// Begins a cluster start. The first one begins at the number the directory was opened at, because nobody was
    /// promised what opening itself writes. Later ones in the same process begin at the durable number, because
    /// earlier ones may have announced it.
    pub(crate) fn start(&self) {
        let mut started = self.started.lock();
        let from = if started.is_some() { self.durable() } else { self.opened.load(Ordering::SeqCst) };
        *started = Some(from);
    }

    /// Returns the number at which the current start began.
    pub(crate) fn opening(&self) -> u64 {
        self.started.lock().unwrap_or_else(|| self.opened.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_begins_with_what_was_opened_and_the_next_with_what_was_said_since() {
        let marks = DurableIndex::default();
        marks.opened(10);
        assert_eq!((marks.opening(), marks.durable()), (10, 0));
        marks.synced(14);
        marks.start();
        assert_eq!(marks.opening(), 10);
        marks.synced(20);
        marks.synced(17);
        assert_eq!((marks.opening(), marks.durable()), (10, 20));
        marks.start();
        assert_eq!(marks.opening(), 20);
    }
}
