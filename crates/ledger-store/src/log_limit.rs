//! Limits log lines that a peer or a disk could otherwise cause without end.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines allowed in each [`WINDOW`].
const LINES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(30);

/// Allows some of the log lines of one call site and counts the others; see [`limited!`](crate::limited).
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<Option<State>>);

#[derive(Debug)]
struct State {
    begun: Instant,
    passed: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Creates a limit that allows the first lines.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Returns `Some` if the line is to be written, with how many lines were suppressed since the last one written.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        let state = state.get_or_insert(State { begun: now, passed: 0, suppressed: 0 });
        if now.saturating_duration_since(state.begun) >= WINDOW {
            (state.begun, state.passed) = (now, 0);
        }
        if state.passed >= LINES {
            state.suppressed += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

/// Writes a log line as the `tracing` macro of that name does, but only a few per window. The field `suppressed` says
/// how many lines were dropped since the previous one. Use it for whatever a peer or a disk can cause repeatedly.
#[macro_export]
macro_rules! limited {
    ($level:ident, $($line:tt)+) => {{
        static LIMIT: $crate::LogLimit = $crate::LogLimit::new();
        if let Some(suppressed) = LIMIT.pass() {
            ::tracing::$level!(suppressed, $($line)+);
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_becomes_a_few_and_what_was_left_out_is_counted() {
        let limit = LogLimit::new();
        let begun = Instant::now();
        let passed: Vec<_> = (0..1000).filter_map(|_| limit.pass_at(begun)).collect();
        assert_eq!(passed, [0; LINES as usize]);
        assert_eq!(limit.pass_at(begun + WINDOW / 2), None);
        assert_eq!(limit.pass_at(begun + WINDOW), Some(1001 - u64::from(LINES)));
        assert_eq!(limit.pass_at(begun + WINDOW), Some(0));
    }
}
