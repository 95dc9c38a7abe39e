//! Pauses between retries.

use std::time::Duration;

use ledger_core::jitter::Jitter;

/// Pauses between retries. Each pause is twice as long as the previous one, up to a bound, with random jitter, so
/// that clients that failed at the same moment do not retry together.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// Returns the pause before the next try: between half of the current bound and the bound.
    pub(crate) fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.longest);
        let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(jitter().spread(nanos))
    }

    /// Resets the pauses after a long enough success.
    pub(crate) const fn reset(&mut self) {
        self.next = self.first;
    }
}

/// Draws the share that a pause takes of its bound. Without random numbers that is the whole.
pub(crate) fn jitter() -> Jitter {
    let mut random = [0; 2];
    getrandom::fill(&mut random).map_or(Jitter(u16::MAX), |()| Jitter(u16::from_le_bytes(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, longest);
        for whole in [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis) {
            let pause = backoff.pause();
            assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.pause() <= first);
        let mut others = Backoff::new(longest, longest);
        let pauses: std::collections::BTreeSet<_> = (0..32).map(|_| others.pause()).collect();
        assert!(pauses.len() > 16, "{pauses:?}");
    }
}
