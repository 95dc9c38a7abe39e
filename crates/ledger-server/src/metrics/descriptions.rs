//! What each metric says, in words: Prometheus shows it beside the figures.

use metrics::{Recorder as _, Unit};
use metrics_exporter_prometheus::PrometheusRecorder;

/// Describes what a node counts and measures by itself.
pub(super) fn describe(recorder: &PrometheusRecorder) {
    let counters = [
        ("ledger_requests_total", "Requests begun, by method."),
        ("ledger_refused_total", "Requests or entries refused, by method and gRPC code."),
        ("ledger_appended_entries_total", "Entries appended and acknowledged."),
        ("ledger_appended_payload_bytes_total", "Bytes of payloads appended and acknowledged."),
        ("ledger_read_entries_total", "Entries sent in answer to Get."),
        (
            "ledger_connections_evicted_total",
            "Connections without a call that were closed for others, by listener.",
        ),
        (
            "ledger_connections_refused_total",
            "Connections refused because all there may be had calls, by listener.",
        ),
        ("ledger_failed_handshakes_total", "TLS handshakes that failed or took too long."),
        ("ledger_watched_entries_total", "Entries sent to watchers."),
        ("ledger_watch_history_reads_total", "Times a watcher read the store instead of recent memory."),
        ("ledger_forwarded_appends_total", "Appends sent on to the owner of their context."),
        (
            "ledger_interleaved_writers_total",
            "Times a writer appended again to a context that another had taken over.",
        ),
        ("ledger_task_restarts_total", "Restarts of supervised tasks."),
        ("ledger_store_appended_entries_total", "Entries stored since the node started."),
        ("ledger_store_commits_total", "Group commits since the node started."),
        ("ledger_store_failed_commits_total", "Group commits that failed since the node started."),
        ("ledger_store_scrubbed_entries_total", "Entries the scrub has checked since the node started."),
    ];
    for (name, text) in counters {
        recorder.describe_counter(name.into(), None, text.into());
    }
    let gauges = [
        ("ledger_build_info", "Version of the node."),
        ("ledger_watchers", "Watchers connected."),
        ("ledger_append_streams", "Append streams open."),
        ("ledger_observers", "Observers of contexts whose streams are here."),
        ("ledger_store_quarantined_contexts", "Contexts found damaged."),
        (
            "ledger_store_damaged_families",
            "Families of the database with damage that is of no single context: replace the data directory.",
        ),
        (
            "ledger_store_damaged_slots",
            "Slots whose record of what was promised is damaged and lost: the directory joins as a new one.",
        ),
        ("ledger_store_compacts", "0 after RocksDB met a damaged table file: replace the data directory."),
        (
            "ledger_store_contexts_estimate",
            "Number of contexts: in a cluster of those in slots that this node keeps; estimated on a lone node.",
        ),
        ("ledger_store_disk_bytes", "Bytes of table files."),
        ("ledger_store_memory_bytes", "Bytes of memory that RocksDB uses."),
        ("ledger_store_writable", "1 if appends can be acknowledged."),
        ("ledger_memory_used_bytes", "Bytes held of a share of the memory."),
        ("ledger_memory_share_bytes", "Bytes that the share has."),
    ];
    for (name, text) in gauges {
        recorder.describe_gauge(name.into(), None, text.into());
    }
    let histograms = [
        ("ledger_request_seconds", "Time to answer unary requests, by method."),
        ("ledger_append_chunk_seconds", "Time from accepting entries of a stream to their last result."),
    ];
    for (name, text) in histograms {
        recorder.describe_histogram(name.into(), Some(Unit::Seconds), text.into());
    }
}
