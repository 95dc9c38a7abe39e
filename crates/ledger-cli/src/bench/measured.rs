//! What was measured, as one object or one line.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// What was measured.
pub(super) struct Measured {
    operations: u64,
    elapsed: Duration,
    latency: Histogram<u64>,
    more: Vec<(&'static str, Value)>,
}

impl Measured {
    pub(super) fn new(operations: u64, elapsed: Duration, latency: Histogram<u64>) -> Self {
        Self { operations, elapsed, latency, more: Vec::new() }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.more.push((name, value.into()));
        self
    }

    fn rate(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(super) fn object(&self, name: &str) -> Value {
        let mut object = json!({
            "bench": name,
            "ops_per_second": (self.rate() * 10.0).round() / 10.0,
            "p50_us": micros(&self.latency, 0.5),
            "p99_us": micros(&self.latency, 0.99),
            "operations": self.operations,
            "seconds": (self.elapsed.as_secs_f64() * 1000.0).round() / 1000.0,
        });
        for (name, value) in &self.more {
            object[*name] = value.clone();
        }
        object
    }

    pub(super) fn text(&self, name: &str) -> String {
        let mut text = format!(
            "{name}: {:.0} per second; p50 {} µs, p99 {} µs; {} in {:.1} s",
            self.rate(),
            micros(&self.latency, 0.5),
            micros(&self.latency, 0.99),
            self.operations,
            self.elapsed.as_secs_f64()
        );
        for (name, value) in &self.more {
            text = format!("{text}; {name} {value}");
        }
        text
    }
}

/// A histogram of nanoseconds, up to a minute.
pub(super) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

/// Records a latency.
pub(super) fn record(latency: &mut Histogram<u64>, since: Instant) {
    latency.saturating_record(since.elapsed().as_nanos() as u64);
}

/// A quantile in microseconds.
pub(super) fn micros(latency: &Histogram<u64>, quantile: f64) -> f64 {
    (latency.value_at_quantile(quantile) as f64 / 100.0).round() / 10.0
}
