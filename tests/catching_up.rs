//! A node that lacks much comes in step again: slot by slot, and fast enough with many small contexts.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use ledger_client::{Append, Client, Options};
use ledger_core::ContextId;
use ledger_tests::{Cluster, Node, PATIENCE, setting, until, until_async};

/// Appends under way.
const UNDER_WAY: usize = 512;

/// Makes so many contexts of one entry each.
async fn make(cluster: &Cluster, name: &str, count: u64) {
    let addresses: Vec<_> = cluster.running().map(Node::endpoint).collect();
    let options = Options { timeout: PATIENCE, ..Options::default() };
    let client = Client::connect(&addresses.join(","), &options).unwrap();
    let appends = futures::stream::iter(0..count).map(|number| {
        let context = ContextId::new(format!("{name}-{number}")).unwrap();
        let append = Append::new(&context, "facts", format!("the only entry of {number}")).unwrap();
        let client = client.clone();
        async move { client.append(append).await.unwrap() }
    });
    appends.buffer_unordered(UNDER_WAY).for_each(async |_| ()).await;
}

fn behind(cluster: &Cluster) -> i64 {
    cluster.sum("ledger_cluster_replicas_behind") as i64
}

/// Waits until copies are missing, and then until none is: how many there were, at each look.
async fn comes_in_step(cluster: &Cluster) -> BTreeSet<i64> {
    until("copies are missing", || (behind(cluster) > 0).then_some(()));
    let mut seen = BTreeSet::new();
    until_async("all copies are in step", async || {
        let now = behind(cluster);
        seen.insert(now);
        (now == 0).then_some(())
    })
    .await;
    cluster.settle();
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_in_step_counts_while_others_still_catch_up() {
    // So slow that every look finds another part of it done.
    let mut cluster = Cluster::start(3, &["--catch-up-rate", "300KiB"]);
    cluster.kill(2);
    until("the others own its slots", || (cluster.sum("ledger_cluster_slots_owned") >= 1024.0).then_some(()));
    make(&cluster, "small", 20_000).await;
    cluster.restart(2);
    let seen = comes_in_step(&cluster).await;
    assert!(seen.len() > 12, "slots missed copies, at each look: {seen:?}");
    let rpc = cluster.node(2).rpc().await.from_itself();
    for number in (0..20_000).step_by(777) {
        let context = format!("small-{number}");
        until_async("it is shown", async || {
            Some(rpc.entries(&context, 0).await.ok()?.len()).filter(|count| *count == 1)
        })
        .await;
    }
}

/// Restarts the last node: when it was in step, and since when it fetched.
async fn catch_up(cluster: &mut Cluster) -> String {
    let begun = Instant::now();
    cluster.restart(2);
    let node = cluster.node(2);
    let has_fetched = || node.metric("ledger_cluster_fetched_entries_total").filter(|count| *count > 0.0);
    until("it fetches", || has_fetched().map(|_| ()));
    let fetched_since = begun.elapsed();
    until_async("all copies are in step", async || {
        // Each look has three nodes print all their metrics: what is measured has the processors.
        tokio::time::sleep(Duration::from_millis(100)).await;
        (behind(cluster) == 0).then_some(())
    })
    .await;
    let in_step = begun.elapsed();
    cluster.settle();
    format!("in step after {in_step:?}, of which it fetched for {:?}", in_step.saturating_sub(fetched_since))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: LEDGERTEST_CONTEXTS says of how many contexts"]
async fn many_small_contexts_are_caught_up_with() {
    let count = setting("LEDGERTEST_CONTEXTS", 200_000);
    let mut cluster = Cluster::start(3, &[]);
    cluster.kill(2);
    until("the others own its slots", || (cluster.sum("ledger_cluster_slots_owned") >= 1024.0).then_some(()));
    make(&cluster, "small", count).await;
    println!("{count} new contexts: restarted, {}", catch_up(&mut cluster).await);
    cluster.kill(2);
    std::fs::remove_dir_all(cluster.data_dir(2)).unwrap();
    println!("{count} contexts: wiped, {}", catch_up(&mut cluster).await);
}
