//! Keeping to the rate at which a node may fetch.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Slows whoever fetches down to a rate.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes a second; 0: no limit.
    rate: u64,
    paid: Instant,
}

impl Pace {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, paid: Instant::now() }
    }

    /// Waits until so many bytes more are within the rate.
    pub(crate) async fn pay(&mut self, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        self.paid = self.paid.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        sleep_until(self.paid).await;
    }
}
