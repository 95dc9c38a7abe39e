//! Gives appends priority: limits what a busy node sends to nodes that catch up.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A busy node sends this many times the entries that it appends itself, so that a node that catches up gains on it.
const CATCH_UP_FACTOR: f64 = 2.0;
/// The least that it sends, in entries per second.
const MIN_RATE: f64 = 20_000.0;
/// How often the rate of appends is measured.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// The measured rate of a node's appends.
#[derive(Debug)]
pub(crate) struct CatchUpThrottle(Mutex<RateSample>);

#[derive(Debug)]
struct RateSample {
    at: Instant,
    appended: u64,
    /// Entries per second in the previous interval.
    rate: f64,
}

impl CatchUpThrottle {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(RateSample { at: now, appended: 0, rate: 0.0 }))
    }

    /// Returns how many entries per second may be sent to a node that catches up while the writers are busy;
    /// `appended` is how many this node has appended so far.
    pub(crate) fn allowed_rate(&self, now: Instant, appended: u64) -> f64 {
        let mut look = self.0.lock();
        let passed = now.saturating_duration_since(look.at);
        if passed >= SAMPLE_INTERVAL {
            let rate = appended.saturating_sub(look.appended) as f64 / passed.as_secs_f64();
            *look = RateSample { at: now, appended, rate };
        }
        (look.rate * CATCH_UP_FACTOR).max(MIN_RATE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_node_gives_in_proportion_to_what_it_appends_and_never_nothing() {
        let start = Instant::now();
        let load = CatchUpThrottle::new(start);
        let given = |millis, appended| load.allowed_rate(start + Duration::from_millis(millis), appended);
        let is = |given: f64, expected: f64| (given - expected).abs() < 1.0;
        assert!(is(given(0, 0), 20_000.0));
        assert!(is(given(100, 90_000), 20_000.0), "too early to tell");
        assert!(is(given(1_000, 50_000), 100_000.0));
        assert!(is(given(1_400, 90_000), 100_000.0), "until it is looked at again");
        assert!(is(given(2_000, 150_000), 200_000.0));
        assert!(is(given(3_000, 150_000), 20_000.0));
        assert!(is(given(4_000, 0), 20_000.0), "a counter that went back");
    }
}
