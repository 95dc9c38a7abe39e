//! Whether this node itself stood still: a process that was stopped, a machine that was moved or slept.

use std::time::{Duration, Instant};

/// Notices gaps between observations that this node makes many times in `shortest`.
#[derive(Debug)]
pub(super) struct StallDetector {
    shortest: Duration,
    last: Option<Instant>,
}

impl StallDetector {
    pub(super) const fn new(shortest: Duration) -> Self {
        Self { shortest, last: None }
    }

    /// Returns for how long this node stood still before this observation; zero for less than `shortest`. It heard nobody in
    /// that time, whoever was there: the time must not count against others.
    pub(super) fn observe(&mut self, now: Instant) -> Duration {
        let gap = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        if gap < self.shortest { Duration::ZERO } else { gap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_gap_that_is_long_enough_to_miss_a_heartbeat_counts() {
        let shortest = Duration::from_secs(1);
        let (mut detector, begin) = (StallDetector::new(shortest), Instant::now());
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        assert_eq!(detector.observe(at(5000)), Duration::ZERO, "the first observation has none before it");
        assert_eq!(detector.observe(at(5999)), Duration::ZERO);
        assert_eq!(detector.observe(at(6999)), shortest);
        assert_eq!(detector.observe(at(20_999)), Duration::from_secs(14));
        assert_eq!(detector.observe(at(21_000)), Duration::ZERO, "a gap counts once");
    }
}
