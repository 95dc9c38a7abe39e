//! Keeping to the rate at which a node may fetch.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Slows whoever fetches down to a rate.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// Bytes a second; 0: no limit.
    rate: u64,
    paid: Instant,
}

impl RateLimiter {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, paid: Instant::now() }
    }

    /// Waits until so many bytes more are within the rate.
    pub(crate) async fn acquire(&mut self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        sleep(self.take(bytes, self.rate as f64)).await;
    }

    /// Takes so much at a rate of its own; gives how long to wait until it is within that.
    pub(crate) fn take(&mut self, amount: u64, rate: f64) -> Duration {
        let now = Instant::now();
        self.paid = self.paid.max(now) + Duration::from_secs_f64(amount as f64 / rate);
        self.paid - now
    }
}
