//! How much the node has to do, as it tells others: rounded, because every change travels to all of them.

use std::time::Instant;

use ledger_cluster::membership::NodeLoad;
use ledger_store::Stats;
use parking_lot::Mutex;

/// Measures between one look and the next.
#[derive(Debug, Default)]
pub struct LoadMeter(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<(Instant, u64)>,
    load: NodeLoad,
}

impl LoadMeter {
    /// Looks: entries per second since the look before.
    pub fn sample(&self, now: Instant, stats: &Stats) -> NodeLoad {
        let mut state = self.0.lock();
        let rate = state.last.map_or(0, |(then, appended)| {
            let millis = now.saturating_duration_since(then).as_millis().max(1);
            let rate = u128::from(stats.appended.saturating_sub(appended)) * 1000 / millis;
            u64::try_from(rate).unwrap_or(u64::MAX)
        });
        state.last = Some((now, stats.appended));
        // Not known while the database is reopened: what was known before is told.
        let contexts = stats.contexts.map_or(state.load.contexts, rounded);
        state.load = NodeLoad { entries_per_second: rounded(rate), contexts };
        state.load
    }

    /// What the last look gave.
    pub fn load(&self) -> NodeLoad {
        self.0.lock().load
    }
}

/// To two digits: 0, 7, 42, 120, 99000.
fn rounded(n: u64) -> u64 {
    let step = 10_u64.pow(n.checked_ilog10().unwrap_or(0).saturating_sub(1));
    n / step * step
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn figures_have_two_digits() {
        for (n, shown) in
            [(0, 0), (7, 7), (42, 42), (127, 120), (99_999, 99_000), (u64::MAX, 18 * 10_u64.pow(18))]
        {
            assert_eq!(rounded(n), shown);
        }
    }

    #[test]
    fn a_rate_is_what_came_since_the_look_before() {
        let (meter, start) = (LoadMeter::default(), Instant::now());
        let at = |seconds, appended| {
            let contexts = (appended != 5501).then_some(1234);
            let stats = Stats { appended, contexts, ..Stats::default() };
            meter.sample(start + Duration::from_secs(seconds), &stats)
        };
        assert_eq!(at(0, 5000), NodeLoad { entries_per_second: 0, contexts: 1200 });
        assert_eq!(at(5, 5500).entries_per_second, 100);
        assert_eq!(at(10, 5500).entries_per_second, 0);
        assert_eq!(
            at(11, 5501),
            NodeLoad { entries_per_second: 1, contexts: 1200 },
            "contexts are not known now"
        );
        // A store that was reopened counts from zero.
        assert_eq!(at(15, 10).entries_per_second, 0);
        assert_eq!(meter.load().contexts, 1200);
    }
}
