//! The memory that a load holds.

use std::sync::Arc;

use ledger_core::snapshot;

use crate::{
    StoreError,
    budget::{Permit, Share},
};

/// Bytes that a load of one of our own snapshots takes: what was fed and not read, an ordinary frame, what it writes at
/// once, and what is compared with it. Larger entries take more.
pub const LOAD: usize = 2 << 20;
/// The bytes of [`LOAD`] that are for a frame.
const ORDINARY_FRAME: usize = 4 * snapshot::FRAME_TARGET;

/// Returns the most bytes that a load of one of our own snapshots takes if no payload is larger than this.
pub(crate) const fn largest(payload: usize) -> usize {
    LOAD + snapshot::needs(payload)
}

/// Returns the bytes that a load of one of our own snapshots takes while it reads a frame that needs so many.
pub(super) fn with_frame(needed: usize) -> usize {
    LOAD + needed.saturating_sub(ORDINARY_FRAME)
}

/// The memory that one load holds. It never waits for more, because what others wait for may be what it holds.
#[derive(Debug)]
pub(super) struct LoadMemory {
    share: Arc<Share>,
    held: Permit,
}

impl LoadMemory {
    pub(super) fn of(share: &Arc<Share>) -> Self {
        Self { share: Arc::clone(share), held: share.charge(0) }
    }

    /// Returns the bytes of memory that there are for all loads.
    pub(super) fn capacity(&self) -> usize {
        self.share.capacity()
    }

    /// Returns the bytes that it holds.
    pub(super) fn amount(&self) -> usize {
        self.held.amount()
    }

    /// Holds at least so many bytes.
    pub(super) fn hold(&mut self, needed: usize) -> Result<(), StoreError> {
        let all = self.share.capacity();
        let more = needed.saturating_sub(self.held.amount());
        match self.share.try_acquire(more).filter(|_| needed <= all) {
            Some(more) => self.held.merge(more),
            None => return Err(StoreError::NoLoadMemory { needed, all }),
        }
        Ok(())
    }

    /// Holds so many bytes more.
    pub(super) fn add(&mut self, more: usize) -> Result<(), StoreError> {
        self.hold(self.held.amount() + more)
    }

    /// Gives back what exceeds so many bytes.
    pub(super) fn shrink(&mut self, bytes: usize) {
        self.held.resize(self.held.amount().min(bytes));
    }
}
