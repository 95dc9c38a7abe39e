//! What readers are shown at the nodes of a cluster that changes: at those that keep a slot, those that left it, and those that
//! are cut off.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use ledger_core::{ContextId, slot::Slot};
use ledger_proto::ledger::v1::{WatchBatch, WatchRequest};
use ledger_tests::{Cluster, Node, PATIENCE, Rpc, until_async};
use tonic::{Code, Streaming};

/// A bound that a test can wait for.
const FLAGS: [&str; 2] = ["--max-staleness", "2s"];

/// Contexts in slots of their own.
fn contexts(count: usize) -> Vec<String> {
    let mut slots = std::collections::BTreeSet::new();
    let names = (0..).map(|number| format!("context-{number}"));
    names.filter(|name| slots.insert(Slot::of(&ContextId::new(name.as_str()).unwrap()))).take(count).collect()
}

async fn append_to_all(node: &Node, contexts: &[String], payload: &str) {
    let rpc = node.rpc().await;
    for context in contexts {
        until_async("an append is taken", async || rpc.append_fact(context, payload.as_bytes()).await.ok())
            .await;
    }
}

/// How many entries a node shows, in every way it can be asked; or which way it is refused or differs.
async fn shown(rpc: &Rpc, node: &Node, context: &str) -> Result<u64, String> {
    let said = |what: &'static str| move |status: tonic::Status| format!("{what}: {status}");
    let entries = rpc.entries(context, 0).await.map_err(said("get"))?.len() as u64;
    let signed = rpc.checkpoint(context).await.map_err(said("checkpoint"))?.size;
    let page = node.http_get(&format!("/api/context?id={context}"));
    let page: serde_json::Value = serde_json::from_str(&page).map_err(|_| format!("console: {page}"))?;
    let on_page = page["size"].as_u64().ok_or_else(|| format!("console: {page}"))?;
    let listed = node.http_get(&format!("/api/entries?id={context}&limit=10"));
    let listed: serde_json::Value =
        serde_json::from_str(&listed).map_err(|_| format!("console: {listed}"))?;
    let on_list = listed["entries"].as_array().map_or(0, Vec::len) as u64;
    if (signed, on_page, on_list) == (entries, entries, entries) {
        return Ok(entries);
    }
    Err(format!("get {entries}, checkpoint {signed}, console {on_page} and {on_list}"))
}

/// Every node shows so many entries of every context within the bound, and never less from then on.
async fn shown_everywhere(cluster: &Cluster, contexts: &[String], expected: u64) {
    for node in cluster.running() {
        let rpc = node.rpc().await;
        for context in contexts {
            let shows = async || (shown(&rpc, node, context).await.ok()? == expected).then_some(());
            until_async(&format!("{} shows {expected} entries of {context}", node.endpoint()), shows).await;
            assert_eq!(shown(&rpc, node, context).await, Ok(expected), "what was shown stays");
        }
    }
}

async fn watch(node: &Node, context: &str) -> Streaming<WatchBatch> {
    let request = WatchRequest { context_id: context.to_owned(), ..WatchRequest::default() };
    until_async("a watch begins", async || {
        let watch = node.rpc().await.ledger.watch(request.clone()).await;
        watch.ok().map(tonic::Response::into_inner)
    })
    .await
}

/// Waits for an entry of that sequence.
async fn next(watch: &mut Streaming<WatchBatch>, sequence: u64, what: &str) {
    let heard = async {
        loop {
            let batch = watch.message().await.unwrap().expect("the watch goes on");
            if batch.entries.iter().any(|entry| entry.sequence == sequence) {
                return;
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, heard).await.is_ok(), "{what}: entry {sequence} is not delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_grows_shows_the_same_at_every_node() {
    let contexts = contexts(20);
    let mut cluster = Cluster::start(3, &FLAGS);
    append_to_all(cluster.node(0), &contexts, "first").await;
    shown_everywhere(&cluster, &contexts, 1).await;
    // Of each context, at each of the nodes that keep it now.
    let mut watches = Vec::new();
    for (number, context) in contexts.iter().enumerate() {
        let mut watch = watch(cluster.node(number % 3), context).await;
        next(&mut watch, 1, context).await;
        watches.push(watch);
    }
    for (expected, nodes) in [(2, 4), (3, 6)] {
        while cluster.nodes.len() < nodes {
            cluster.add();
        }
        cluster.settle();
        append_to_all(cluster.node(nodes - 1), &contexts, "more").await;
        shown_everywhere(&cluster, &contexts, expected).await;
        for (watch, context) in watches.iter_mut().zip(&contexts) {
            next(watch, expected, context).await;
        }
    }
    // A node counts the contexts that it keeps, and not those that it kept once.
    let kept = async || {
        ((cluster.sum("ledger_store_contexts_estimate") - 3.0 * contexts.len() as f64).abs() < 0.5)
            .then_some(())
    };
    until_async("three copies of each context are counted", kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_shrinks_shows_the_same_at_every_node() {
    let contexts = contexts(10);
    let flags = [&FLAGS[..], &["--placement-grace", "2s"]].concat();
    let mut cluster = Cluster::start(5, &flags);
    append_to_all(cluster.node(4), &contexts, "first").await;
    for (expected, leaves) in [(2, 4), (3, 3)] {
        cluster.stop(leaves);
        cluster.settle();
        append_to_all(cluster.node(0), &contexts, "more").await;
        shown_everywhere(&cluster, &contexts, expected).await;
    }
    // They come back: what they kept is old, or none of theirs any more.
    cluster.restart(3);
    cluster.restart(4);
    shown_everywhere(&cluster, &contexts, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_sends_readers_away_after_the_bound() {
    let contexts = contexts(6);
    let mut cluster = Cluster::start(3, &FLAGS);
    append_to_all(cluster.node(0), &contexts, "first").await;
    shown_everywhere(&cluster, &contexts, 1).await;
    let rpc = cluster.node(2).rpc().await;
    let mut watch = watch(cluster.node(2), &contexts[0]).await;
    next(&mut watch, 1, &contexts[0]).await;
    cluster.kill(0);
    cluster.kill(1);
    for context in &contexts {
        let refused = until_async("the reader is refused", async || match rpc.entries(context, 0).await {
            Ok(entries) => {
                assert_eq!(entries.len(), 1, "until then it is shown what there is");
                None
            }
            Err(refused) => Some(refused),
        });
        let refused = refused.await;
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.message().contains("max_staleness"), "{refused}");
        assert_eq!(rpc.checkpoint(context).await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(rpc.snapshot(context).await.unwrap_err().code(), Code::Unavailable);
    }
    // Its client resumes at another node: it is not left waiting for ever.
    let ended = tokio::time::timeout(PATIENCE, watch.message()).await.expect("the watch ends");
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    cluster.restart(1);
    shown_everywhere(&cluster, &contexts, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_bound_a_node_that_is_cut_off_shows_what_it_has() {
    let contexts = contexts(3);
    let mut cluster = Cluster::start(3, &["--max-staleness", "0s"]);
    append_to_all(cluster.node(0), &contexts, "first").await;
    shown_everywhere(&cluster, &contexts, 1).await;
    cluster.kill(0);
    cluster.kill(1);
    let node = cluster.node(2);
    let alone = || (node.metric("ledger_cluster_members_alive") == Some(1.0)).then_some(());
    ledger_tests::until("it knows that it is alone", alone);
    let rpc = node.rpc().await;
    for context in &contexts {
        assert_eq!(rpc.entries(context, 0).await.unwrap().len(), 1);
    }
}
