//! How far the directory is durable, as a number that grows as long as the directory lives.
//!
//! RocksDB numbers every change, and goes on counting at the next start. Whoever remembers the number of what was
//! durable can tell when a directory comes back that is older: it opens with a lower one.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::engine::watermark::Watermark;

/// How far the directory goes.
#[derive(Debug, Default)]
pub(crate) struct DurableIndex {
    /// When it was opened, before anything was written.
    opened: AtomicU64,
    /// What is known to be on disk.
    durable: AtomicU64,
    /// When the present start began; `None` before the first.
    started: Mutex<Option<u64>>,
    /// Keeps what is on disk known from a second place.
    watermark: Option<Watermark>,
}

impl DurableIndex {
    /// Nothing is known yet but what the watermark says.
    pub(crate) fn new(watermark: Watermark) -> Self {
        Self { watermark: Some(watermark), ..Self::default() }
    }

    /// How far the directory was durable, by the second place; 0 if that is not known.
    pub(crate) fn expected(&self) -> u64 {
        self.watermark.as_ref().map_or(0, Watermark::number)
    }

    /// Takes a lower number for how far the directory was durable: what came after it is given up.
    ///
    /// # Errors
    /// If the second place cannot be written.
    pub(crate) fn accept_loss_after(&self, number: u64) -> std::io::Result<()> {
        self.watermark.as_ref().map_or(Ok(()), |watermark| watermark.reset(number))
    }

    /// The directory is being closed.
    pub(crate) fn close(&self) {
        if let Some(watermark) = &self.watermark {
            watermark.sync();
        }
    }

    /// The directory was opened, and goes so far.
    pub(crate) fn opened(&self, number: u64) {
        self.opened.store(number, Ordering::SeqCst);
    }

    /// Everything up to a number that was taken before the sync is on disk.
    pub(crate) fn synced(&self, number: u64) {
        // Before anything of it is acknowledged.
        if let Some(watermark) = &self.watermark {
            watermark.advance(number);
        }
        self.durable.fetch_max(number, Ordering::SeqCst);
    }

    /// What is on disk for sure; 0 before the first sync.
    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::SeqCst)
    }

    /// A start begins. The first one begins with what was opened: what opening writes counts for nothing. Those after it,
    /// in the same process, begin with what the ones before may have spoken of.
    pub(crate) fn start(&self) {
        let mut started = self.started.lock();
        let from = if started.is_some() { self.durable() } else { self.opened.load(Ordering::SeqCst) };
        *started = Some(from);
    }

    /// How far the directory went at the present start.
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
