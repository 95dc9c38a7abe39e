//! What a node's part in a cluster counts, as Prometheus reads it.

use std::sync::atomic::{AtomicU64, Ordering};

use ledger_cluster::Cluster;

use crate::metrics::Metrics;

const COUNTERS: [(&str, &str); 15] = [
    ("ledger_cluster_takeovers_total", "Slots that this node came to own."),
    ("ledger_cluster_streams_lost_total", "Replication streams to other nodes that were lost."),
    ("ledger_cluster_comparisons_total", "Comparisons with other nodes."),
    ("ledger_cluster_questions_total", "Questions asked in comparisons: round trips."),
    ("ledger_cluster_compared_bytes_total", "Bytes of these questions and their answers."),
    ("ledger_cluster_comparing_microseconds_total", "Time of comparisons until what differs was known."),
    ("ledger_cluster_differing_contexts_total", "Contexts that comparisons found to differ."),
    ("ledger_cluster_fetched_entries_total", "Entries fetched to catch up."),
    ("ledger_cluster_fetched_bytes_total", "Bytes of entries fetched to catch up."),
    ("ledger_cluster_forks_total", "Histories left for the owner's."),
    ("ledger_gossip_received_total", "Gossip datagrams received."),
    ("ledger_gossip_sent_total", "Gossip datagrams sent."),
    (
        "ledger_gossip_dropped_total",
        "Gossip datagrams dropped: in plain, of another cluster or key, malformed.",
    ),
    ("ledger_gossip_send_failed_total", "Gossip datagrams that could not be sent."),
    ("ledger_gossip_bad_values_total", "Values in gossip that could not be read."),
];

const GAUGES: [(&str, &str); 4] = [
    ("ledger_cluster_members_alive", "Nodes that are heard, this one included."),
    ("ledger_cluster_slots_owned", "Slots that this node owns."),
    ("ledger_cluster_slots_catching_up", "Slots that this node is bringing in step with their owners."),
    ("ledger_gossip_keys", "Keys that gossip carries for a node, of the node with most of them."),
];

/// Takes what the cluster counted so far.
pub fn take(metrics: &Metrics, cluster: &Cluster) {
    metrics.describe(&COUNTERS, &GAUGES);
    let (counted, membership) = (cluster.counters(), cluster.membership());
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let gossip = membership.counts();
    let totals = [
        read(&counted.takeovers),
        read(&counted.streams_lost),
        read(&counted.comparisons),
        read(&counted.questions),
        read(&counted.compared_bytes),
        read(&counted.comparing_us),
        read(&counted.differing),
        read(&counted.fetched_entries),
        read(&counted.fetched_bytes),
        read(&counted.forks),
        gossip.received,
        gossip.sent,
        gossip.dropped_unsealed + gossip.dropped_foreign + gossip.dropped_malformed,
        gossip.send_failed,
        membership.bad_values(),
    ];
    for ((name, _), value) in COUNTERS.into_iter().zip(totals) {
        metrics.set_total(name, value);
    }
    let view = cluster.view();
    let view = view.borrow();
    let owned = view.me().map_or(0, |me| me.owned.len());
    let values =
        [view.alive().count() as u64, owned as u64, read(&counted.catching_up), membership.most_keys()];
    for ((name, _), value) in GAUGES.into_iter().zip(values) {
        metrics.set_gauge(name, value as f64);
    }
}
