//! What a node's part in a cluster counts, as Prometheus reads it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ledger_cluster::{Cluster, ownership::routes::Routes};
use ledger_core::{
    node::Member,
    slot::{SLOTS, Slot},
};

use crate::{membership::cluster_view, metrics::Metrics};

const COUNTERS: [(&str, &str); 24] = [
    ("ledger_cluster_takeovers_total", "Slots that this node came to own."),
    ("ledger_cluster_handovers_total", "Slots that their owner asked this node to take over."),
    ("ledger_cluster_streams_lost_total", "Replication streams to other nodes that were lost."),
    ("ledger_cluster_comparisons_total", "Comparisons with other nodes."),
    ("ledger_cluster_questions_total", "Questions asked in comparisons: round trips."),
    ("ledger_cluster_compared_bytes_total", "Bytes of these questions and their answers."),
    ("ledger_cluster_comparing_microseconds_total", "Time of comparisons until what differs was known."),
    ("ledger_cluster_differing_contexts_total", "Contexts that comparisons found to differ."),
    (
        "ledger_cluster_anti_entropy_total",
        "Hashes of slots in step that owners sent, compared with what is held here.",
    ),
    ("ledger_cluster_anti_entropy_differences_total", "Those of them that were others."),
    ("ledger_cluster_fetched_entries_total", "Entries fetched to catch up."),
    ("ledger_cluster_fetched_bytes_total", "Bytes of entries fetched to catch up."),
    ("ledger_cluster_forks_total", "Histories left for the owner's."),
    ("ledger_cluster_healed_contexts_total", "Damaged contexts that were restored from another node."),
    (
        "ledger_cluster_calls_refused_total",
        "Calls between nodes that were refused: without the cluster's key, or with a proof that was used before.",
    ),
    (
        "ledger_cluster_implausible_total",
        "Messages of other nodes that were refused because a number in them cannot be true.",
    ),
    ("ledger_gossip_received_total", "Gossip datagrams received."),
    ("ledger_gossip_sent_total", "Gossip datagrams sent."),
    (
        "ledger_gossip_dropped_total",
        "Gossip datagrams dropped: in plain, of another cluster or key, malformed.",
    ),
    ("ledger_gossip_unsealed_total", "Those of them that were in plain, though this node has keys."),
    ("ledger_gossip_foreign_total", "Those of them that were of another cluster or key."),
    (
        "ledger_gossip_other_cluster_total",
        "Gossip datagrams dropped because they are of another cluster, which has the same name and keys.",
    ),
    ("ledger_gossip_send_failed_total", "Gossip datagrams that could not be sent."),
    ("ledger_gossip_bad_values_total", "Values in gossip that could not be read."),
];

const GAUGES: [(&str, &str); 10] = [
    ("ledger_cluster_members_alive", "Nodes that are heard, this one included."),
    (
        "ledger_cluster_members_away",
        "Nodes that keep copies of slots that this one keeps too, and are not heard, or not with the directory that they had.",
    ),
    ("ledger_cluster_slots_owned", "Slots that this node owns, and takes appends to now."),
    (
        "ledger_cluster_slots_without_owner",
        "Slots that take no appends now, as this node sees it: no node owns them, or their owner has too few copies in step.",
    ),
    (
        "ledger_cluster_replicas_in_step",
        "Copies on other nodes of slots owned here: those that hold what is here.",
    ),
    (
        "ledger_cluster_replicas_behind",
        "Copies on other nodes of slots owned here: those away, or that lack something.",
    ),
    ("ledger_cluster_slots_catching_up", "Slots that this node is bringing in step with their owners."),
    ("ledger_cluster_others", "Other clusters that are heard, of the same name and keys: look at the seeds."),
    ("ledger_gossip_keys", "Keys that gossip carries for a node, of the node with most of them."),
    (
        "ledger_gossip_incarnations",
        "Starts of nodes that gossip names, earlier ones that are not forgotten yet among them.",
    ),
];

/// Takes what the cluster counted so far.
pub fn take(metrics: &Metrics, cluster: &Cluster) {
    metrics.describe(&COUNTERS, &GAUGES);
    let (counted, membership) = (cluster.counters(), cluster.membership());
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let gossip = membership.counts();
    let totals = [
        read(&counted.takeovers),
        read(&counted.handovers),
        read(&counted.streams_lost),
        read(&counted.comparisons),
        read(&counted.questions),
        read(&counted.compared_bytes),
        read(&counted.comparing_us),
        read(&counted.differing),
        read(&counted.digest_checkpoints),
        read(&counted.differences),
        read(&counted.fetched_entries),
        read(&counted.fetched_bytes),
        read(&counted.forks),
        read(&counted.healed),
        read(&counted.calls_refused),
        read(&counted.implausible),
        gossip.received,
        gossip.sent,
        gossip.dropped_unsealed + gossip.dropped_foreign + gossip.dropped_malformed + gossip.dropped_other,
        gossip.dropped_unsealed,
        gossip.dropped_foreign,
        gossip.dropped_other,
        gossip.send_failed,
        membership.bad_values(),
    ];
    for ((name, _), value) in COUNTERS.into_iter().zip(totals) {
        metrics.set_total(name, value);
    }
    let view = cluster.view();
    let view = view.borrow();
    let routes = Arc::clone(&cluster.routes().borrow());
    let (in_step, behind) = replicas(&routes, cluster.me());
    let values = [
        view.alive().count() as u64,
        cluster_view::away(&view, &routes, cluster.me()).len() as u64,
        routes.taking() as u64,
        cluster_view::halted_slots(&view, &routes) as u64,
        in_step,
        behind,
        read(&counted.catching_up),
        membership.identity().others().len() as u64,
        membership.most_keys(),
        membership.incarnations(),
    ];
    for ((name, _), value) in GAUGES.into_iter().zip(values) {
        metrics.set_gauge(name, value as f64);
    }
}

/// Copies on other nodes of the slots that this one owns: those in step, and the others.
fn replicas(routes: &Routes, me: &Member) -> (u64, u64) {
    let (mut in_step, mut behind) = (0, 0);
    for route in (0..SLOTS).filter_map(Slot::new).filter_map(|slot| routes.get(slot)) {
        // Only the owner knows; one that takes no appends for want of copies too.
        if route.in_sync.is_empty() {
            continue;
        }
        for member in route.members.iter().filter(|member| *member != me) {
            *(if route.in_sync.contains(member) { &mut in_step } else { &mut behind }) += 1;
        }
    }
    (in_step, behind)
}
