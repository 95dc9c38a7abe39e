//! The Lamport clock of a context (Lamport, "Time, Clocks, and the Ordering of Events in a Distributed
//! System", CACM 1978).

/// The clock would pass its highest value: it never wraps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the Lamport clock would overflow: local time {local}, received time {received}")]
pub struct ClockOverflow {
    /// The context's time.
    pub local: u64,
    /// The time that came with the append, or 0.
    pub received: u64,
}

/// Logical time of a context: the time of its newest entry, 0 before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LamportClock(pub u64);

impl LamportClock {
    /// The time of the next event: `max(local, received) + 1`. `received` is 0 for a local event.
    pub const fn next(self, received: u64) -> Result<Self, ClockOverflow> {
        let latest = if self.0 > received { self.0 } else { received };
        match latest.checked_add(1) {
            Some(time) => Ok(Self(time)),
            None => Err(ClockOverflow { local: self.0, received }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_the_local_and_the_received() {
        assert_eq!(LamportClock(0).next(0), Ok(LamportClock(1)));
        assert_eq!(LamportClock(7).next(3), Ok(LamportClock(8)));
        assert_eq!(LamportClock(3).next(7), Ok(LamportClock(8)));
    }

    #[test]
    fn the_clock_never_wraps() {
        assert!(LamportClock(u64::MAX).next(0).is_err());
        assert!(LamportClock(0).next(u64::MAX).is_err());
        assert_eq!(LamportClock(0).next(u64::MAX - 1), Ok(LamportClock(u64::MAX)));
    }
}
