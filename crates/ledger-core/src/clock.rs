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

/// A received time is further above the context's own than a context may jump: taken, it would use up the clock, and no
/// append to the context could follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "received_lamport {received} is more than {max_ahead} (max_lamport_ahead) above the context's own Lamport time \
     {local}: send the time of an entry that was read"
)]
pub struct TooFarAhead {
    /// The context's time.
    pub local: u64,
    /// The time that came with the append.
    pub received: u64,
    /// The most that a received time may be above the context's own.
    pub max_ahead: u64,
}

/// Logical time of a context: the time of its newest entry, 0 before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LamportClock(pub u64);

impl LamportClock {
    /// Returns whether a received time is plausible: at most `max_ahead` above this one.
    ///
    /// # Errors
    /// [`TooFarAhead`] names both times.
    pub const fn check_received(self, received: u64, max_ahead: u64) -> Result<(), TooFarAhead> {
        if received > self.0.saturating_add(max_ahead) {
            return Err(TooFarAhead { local: self.0, received, max_ahead });
        }
        Ok(())
    }

    /// Returns the time of the next event: `max(local, received) + 1`. `received` is 0 for a local event.
    ///
    /// # Errors
    ///
    /// [`ClockOverflow`] if the time would exceed 2^64 − 1.
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
    fn a_received_time_may_be_so_far_ahead_and_no_further() {
        assert_eq!(LamportClock(5).check_received(0, 10), Ok(()));
        assert_eq!(LamportClock(5).check_received(15, 10), Ok(()));
        let refused = TooFarAhead { local: 5, received: 16, max_ahead: 10 };
        assert_eq!(LamportClock(5).check_received(16, 10), Err(refused));
        assert_eq!(LamportClock(u64::MAX - 1).check_received(u64::MAX, 10), Ok(()));
    }

    #[test]
    fn the_clock_never_wraps() {
        assert!(LamportClock(u64::MAX).next(0).is_err());
        assert!(LamportClock(0).next(u64::MAX).is_err());
        assert_eq!(LamportClock(0).next(u64::MAX - 1), Ok(LamportClock(u64::MAX)));
    }
}
