//! Gauges that count what is alive.

use metrics::Gauge;

/// A gauge that counts what is alive: one more now, one less when this is dropped.
#[derive(Debug)]
pub struct Alive(Gauge);

impl Alive {
    /// One more.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
