//! Limits the rate at which a node fetches.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Delays a fetching task to stay within a rate.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// Bytes per second; 0: no limit.
    rate: u64,
    paid: Instant,
}

impl RateLimiter {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, paid: Instant::now() }
    }

    /// Waits until `bytes` more are within the rate.
    pub(crate) async fn acquire(&mut self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        sleep(self.take(bytes, self.rate as f64)).await;
    }

    /// Charges `amount` at a given rate per second. Returns how long to wait until that is within the rate.
    pub(crate) fn take(&mut self, amount: u64, rate: f64) -> Duration {
        let now = Instant::now();
        self.paid = self.paid.max(now) + Duration::from_secs_f64(amount as f64 / rate);
        self.paid - now
    }
}
