//! What the node counts and measures, as Prometheus reads it.
//!
//! Each node has a recorder of its own (no global one), and hot paths hold their counters: counting is an
//! atomic addition.

mod alive;
mod descriptions;
mod rpc;

use std::time::Duration;

use ledger_store::Stats;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tonic::Code;

pub use alive::Alive;
pub use rpc::Rpc;

use crate::{memory::Memory, metrics::descriptions::describe};

/// Bounds of latency histograms, seconds.
const LATENCIES: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

struct Method {
    started: Counter,
    seconds: Histogram,
}

/// Everything the node counts.
pub struct Metrics {
    recorder: PrometheusRecorder,
    methods: Vec<Method>,
    /// Entries appended and acknowledged.
    pub appended_entries: Counter,
    /// Bytes of their payloads.
    pub appended_bytes: Counter,
    /// From accepting appends of a stream to their last result.
    pub append_chunk_seconds: Histogram,
    /// Entries sent to readers.
    pub read_entries: Counter,
    /// Entries sent to watchers.
    pub watched_entries: Counter,
    /// Watchers connected.
    pub watchers: Gauge,
    /// Times a watcher had to read the store, because it started in the past or was slow.
    pub watch_history_reads: Counter,
    /// Appends sent on to the owner.
    pub forwarded_appends: Counter,
    /// Times a writer appended again to a context that another had taken over.
    pub interleaved_writers: Counter,
    /// Append streams open.
    pub append_streams: Gauge,
    /// Observers of contexts whose streams are here.
    pub observers: Gauge,
    /// TLS handshakes that failed or took too long.
    pub failed_handshakes: Counter,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new();
        // Only an empty list of bounds is refused.
        let recorder =
            builder.set_buckets(&LATENCIES).unwrap_or_else(|_| PrometheusBuilder::new()).build_recorder();
        describe(&recorder);
        let counter = |name: &'static str| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        let gauge = |name: &'static str| recorder.register_gauge(&Key::from_static_name(name), &METADATA);
        let method = |(_, name): &(Rpc, &'static str)| {
            let labels = vec![Label::from_static_parts("rpc", name)];
            Method {
                started: recorder
                    .register_counter(&Key::from_parts("ledger_requests_total", labels.clone()), &METADATA),
                seconds: recorder
                    .register_histogram(&Key::from_parts("ledger_request_seconds", labels), &METADATA),
            }
        };
        let build =
            [Label::new("version", env!("CARGO_PKG_VERSION")), Label::new("os", std::env::consts::OS)];
        recorder.register_gauge(&Key::from_parts("ledger_build_info", build.to_vec()), &METADATA).set(1.0);
        Self {
            methods: Rpc::ALL.iter().map(method).collect(),
            appended_entries: counter("ledger_appended_entries_total"),
            appended_bytes: counter("ledger_appended_payload_bytes_total"),
            append_chunk_seconds: recorder
                .register_histogram(&Key::from_static_name("ledger_append_chunk_seconds"), &METADATA),
            read_entries: counter("ledger_read_entries_total"),
            watched_entries: counter("ledger_watched_entries_total"),
            watchers: gauge("ledger_watchers"),
            watch_history_reads: counter("ledger_watch_history_reads_total"),
            forwarded_appends: counter("ledger_forwarded_appends_total"),
            interleaved_writers: counter("ledger_interleaved_writers_total"),
            append_streams: gauge("ledger_append_streams"),
            observers: gauge("ledger_observers"),
            failed_handshakes: counter("ledger_failed_handshakes_total"),
            recorder,
        }
    }

    /// A request began.
    pub fn started(&self, rpc: Rpc) {
        self.methods[rpc as usize].started.increment(1);
    }

    /// A unary request was answered after so long.
    pub fn answered(&self, rpc: Rpc, after: Duration) {
        self.methods[rpc as usize].seconds.record(after);
    }

    /// A request, or an entry of a batch, was refused.
    pub fn refused(&self, rpc: Rpc, code: Code) {
        let labels =
            vec![Label::from_static_parts("rpc", rpc.name()), Label::new("code", format!("{code:?}"))];
        let key = Key::from_parts("ledger_refused_total", labels);
        self.recorder.register_counter(&key, &METADATA).increment(1);
    }

    /// A supervised task failed and is started again.
    pub fn task_restarted(&self, task: &'static str) {
        let key = Key::from_parts("ledger_task_restarts_total", vec![Label::from_static_parts("task", task)]);
        self.recorder.register_counter(&key, &METADATA).increment(1);
    }

    /// A connection without a call under way was closed for another.
    pub fn connection_closed_for_another(&self, listener: &'static str) {
        self.count_connection("ledger_connections_evicted_total", listener);
    }

    /// A connection was refused: all there may be have calls under way.
    pub fn connection_refused(&self, listener: &'static str) {
        self.count_connection("ledger_connections_refused_total", listener);
    }

    fn count_connection(&self, name: &'static str, listener: &'static str) {
        let key = Key::from_parts(name, vec![Label::from_static_parts("listener", listener)]);
        self.recorder.register_counter(&key, &METADATA).increment(1);
    }

    /// Moves what histograms gathered into their buckets: bounds their memory when nobody reads them.
    pub fn upkeep(&self) {
        self.handle().run_upkeep();
    }

    /// The text that Prometheus reads, with what the store says of itself: what it cannot say now is left out.
    pub fn render(&self, stats: &Stats, writable: bool) -> String {
        let counters = [
            ("ledger_store_appended_entries_total", stats.appended),
            ("ledger_store_commits_total", stats.commits),
            ("ledger_store_failed_commits_total", stats.failed_commits),
            ("ledger_store_scrubbed_entries_total", stats.scrubbed),
        ];
        for (name, value) in counters {
            self.set_total(name, value);
        }
        let gauges = [
            ("ledger_store_quarantined_contexts", Some(stats.quarantined)),
            ("ledger_store_damaged_families", Some(stats.damaged_families)),
            ("ledger_store_damaged_slots", Some(stats.damaged_slots)),
            ("ledger_store_compacts", Some(stats.compacts.into())),
            ("ledger_store_contexts_estimate", stats.contexts),
            ("ledger_store_disk_bytes", stats.disk_bytes),
            ("ledger_store_memory_bytes", stats.memory_bytes),
            ("ledger_store_writable", Some(u64::from(writable))),
        ];
        let mut unknown = Vec::new();
        for (name, value) in gauges {
            match value {
                Some(value) => self.set_gauge(name, value as f64),
                None => unknown.push(name),
            }
        }
        without(self.handle().render(), &unknown)
    }

    /// Describes what others count, before it is set.
    pub(crate) fn describe(
        &self,
        counters: &[(&'static str, &'static str)],
        gauges: &[(&'static str, &'static str)],
    ) {
        for (name, text) in counters {
            self.recorder.describe_counter((*name).into(), None, (*text).into());
        }
        for (name, text) in gauges {
            self.recorder.describe_gauge((*name).into(), None, (*text).into());
        }
    }

    /// What somebody else counts.
    pub(crate) fn set_total(&self, name: &'static str, value: u64) {
        self.recorder.register_counter(&Key::from_static_name(name), &METADATA).absolute(value);
    }

    /// What somebody else measures.
    pub(crate) fn set_gauge(&self, name: &'static str, value: f64) {
        self.recorder.register_gauge(&Key::from_static_name(name), &METADATA).set(value);
    }

    /// What is held of the memory.
    pub fn set_memory(&self, memory: &Memory) {
        for share in memory.shares() {
            let labels = vec![Label::from_static_parts("share", share.name())];
            let set = |name: &'static str, value: usize| {
                let key = Key::from_parts(name, labels.clone());
                self.recorder.register_gauge(&key, &METADATA).set(value as f64);
            };
            set("ledger_memory_used_bytes", share.used());
            set("ledger_memory_share_bytes", share.capacity());
        }
    }

    fn handle(&self) -> PrometheusHandle {
        self.recorder.handle()
    }
}

/// The text without some metrics: a value from before would pass for one of now.
fn without(text: String, names: &[&str]) -> String {
    if names.is_empty() {
        return text;
    }
    let name_of = |line: &str| {
        let line = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).unwrap_or(line);
        line.split([' ', '{']).next().unwrap_or_default().to_owned()
    };
    text.split_inclusive('\n').filter(|line| !names.contains(&name_of(line).trim_end())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_rendered() {
        let metrics = Metrics::new();
        metrics.started(Rpc::Append);
        metrics.answered(Rpc::Append, Duration::from_micros(300));
        metrics.refused(Rpc::Get, Code::InvalidArgument);
        metrics.appended_entries.increment(7);
        let alive = Alive::new(&metrics.watchers);
        let text = metrics.render(&Stats { commits: 3, ..Stats::default() }, true);
        for line in [
            "ledger_requests_total{rpc=\"ContextService/Append\"} 1",
            "ledger_request_seconds_bucket{rpc=\"ContextService/Append\",le=\"0.0005\"} 1",
            "ledger_refused_total{rpc=\"ContextService/Get\",code=\"InvalidArgument\"} 1",
            "ledger_appended_entries_total 7",
            "ledger_watchers 1",
            "ledger_store_commits_total 3",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        drop(alive);
        assert!(metrics.render(&Stats::default(), true).contains("ledger_watchers 0"));
    }

    #[test]
    fn what_the_store_cannot_say_now_is_not_rendered() {
        let (metrics, known) =
            (Metrics::new(), Stats { disk_bytes: Some(7), compacts: true, ..Stats::default() });
        let text = metrics.render(&known, true);
        assert!(text.contains("ledger_store_disk_bytes 7\n"), "{text}");
        assert!(!text.contains("ledger_store_memory_bytes"), "{text}");
        let text = metrics.render(&Stats { compacts: true, ..Stats::default() }, false);
        for gone in ["ledger_store_disk_bytes", "ledger_store_memory_bytes", "ledger_store_contexts_estimate"]
        {
            assert!(!text.contains(gone), "{gone} in {text}");
        }
        for line in [
            "ledger_store_compacts 1\n",
            "ledger_store_writable 0\n",
            "ledger_store_quarantined_contexts 0\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
