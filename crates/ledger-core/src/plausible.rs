//! Whether the numbers that another node sends can be true.
//!
//! Numbers are counted on from: an epoch near the highest leaves none to claim a slot with, and what was promised stays on
//! disk. So what comes from outside is compared with what this node knows before anything is made of it.

use crate::{Epoch, Size, limits::MAX_SEQUENCE};

/// An epoch counts at most this much further than the highest that a node knows: far more than there are takeovers while a
/// node does not listen.
pub const MAX_EPOCH_JUMP: u64 = 1 << 20;
/// No epoch counts further, whatever is known: as many are left to go on with.
pub const MAX_EPOCH_COUNT: u64 = 1 << 31;
/// No data directory is durable further: RocksDB's numbers have 56 bits.
pub const MAX_DURABLE_INDEX: u64 = (1 << 56) - 1;

/// Why a number that another node sent cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Implausible {
    /// An epoch is too high.
    #[error("the epoch {epoch} counts to {}, and the highest plausible one to {limit}", .epoch.count())]
    Epoch {
        /// The number that a node sent.
        epoch: Epoch,
        /// The highest count that is plausible.
        limit: u64,
    },
    /// A context cannot have so many entries.
    #[error("the size {size} is above {MAX_SEQUENCE}, the most entries that a context can hold")]
    Size {
        /// The number that a node sent.
        size: u64,
    },
    /// Numbers of commits rise.
    #[error("the number {number} does not fit those before it, which go to {known}")]
    Number {
        /// The number that a node sent.
        number: u64,
        /// The newest number that this node knows, which `number` contradicts.
        known: u64,
    },
}

/// The highest epoch that this node knows, by which it tells whether another one is plausible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlausibleBounds {
    highest: Epoch,
}

impl PlausibleBounds {
    /// Makes the bounds from the highest epoch in this node's records and in the cluster's gossip.
    pub const fn above(highest: Epoch) -> Self {
        Self { highest }
    }

    /// Returns the epoch, if it can be one.
    ///
    /// # Errors
    ///
    /// [`Implausible::Epoch`] if the epoch's count is more than [`MAX_EPOCH_JUMP`] above the highest known, or above
    /// [`MAX_EPOCH_COUNT`].
    pub fn epoch(self, epoch: u64) -> Result<Epoch, Implausible> {
        let epoch = Epoch(epoch);
        let limit = self.highest.count().saturating_add(MAX_EPOCH_JUMP).min(MAX_EPOCH_COUNT);
        if epoch.count() <= limit { Ok(epoch) } else { Err(Implausible::Epoch { epoch, limit }) }
    }
}

/// Returns whether an epoch leaves room for higher ones. Nothing more can be said of an epoch if this node knows none to
/// compare it with.
pub const fn leaves_room(epoch: Epoch) -> bool {
    epoch.count() <= MAX_EPOCH_COUNT
}

/// Returns the size, if a context can have it.
///
/// # Errors
///
/// [`Implausible::Size`] if the size is more than [`MAX_SEQUENCE`].
pub const fn size(size: u64) -> Result<Size, Implausible> {
    if size <= MAX_SEQUENCE { Ok(Size(size)) } else { Err(Implausible::Size { size }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_taken_up_to_a_jump_above_what_is_known_and_never_beyond_the_half() {
        for known in [0, 1, 77, 1 << 30] {
            let bounds = PlausibleBounds::above(Epoch::new(known, 5));
            let highest = Epoch::new(known + (1 << 20), u32::MAX);
            assert_eq!(bounds.epoch(highest.0), Ok(highest));
            assert!(bounds.epoch(highest.0 + 1).is_err());
            assert!(bounds.epoch(u64::MAX).is_err());
        }
        let bounds = PlausibleBounds::above(Epoch(u64::MAX));
        assert!(bounds.epoch(Epoch::new(1 << 31, 0).0).is_ok());
        assert!(bounds.epoch(Epoch::new((1 << 31) + 1, 0).0).is_err());
        assert!(bounds.epoch(u64::MAX).is_err(), "one that was taken by mistake takes no other along");
        assert!(!leaves_room(Epoch(1 << 63)), "the count does not wrap");
    }

    #[test]
    fn what_is_refused_is_named_with_its_limit() {
        let text = PlausibleBounds::default().epoch(u64::MAX).unwrap_err().to_string();
        assert!(text.contains("18446744073709551615") && text.contains("1048576"), "{text}");
        assert_eq!(size(MAX_SEQUENCE), Ok(Size(MAX_SEQUENCE)));
        assert!(size(MAX_SEQUENCE + 1).unwrap_err().to_string().contains("4611686018427387904"));
    }
}
