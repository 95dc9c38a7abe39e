//! Calls are answered in time, and say what they waited for.

#![allow(clippy::unwrap_used, reason = "a test stops where it fails")]

mod support;

use std::{sync::Arc, time::Duration};

use ledger_proto::{
    context::v1::{AppendRequest, Durability, LoadRequest, SnapshotRequest},
    ledger::v1::AppendBatch,
};
use ledger_server::settings::units::{ByteSize, HumanDuration};
use support::{TestNode, append, free_ports, item, until};
use tonic::{Code, Request};

/// A node of a cluster of two, whose other member is gone: it takes appends with one copy.
async fn alone() -> TestNode {
    let ports = free_ports();
    let join = async |name: &str, own: usize| {
        TestNode::start_with(|config| {
            config.node_id = Some(name.into());
            config.gossip_listen = ([127, 0, 0, 1], ports[own]).into();
            config.seeds = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
            config.gossip_interval = HumanDuration(Duration::from_millis(50));
            (config.copies, config.min_copies, config.lanes) = (2, Some(1), 1);
            config.call_timeout = HumanDuration(Duration::from_secs(2));
            config.shutdown_grace = HumanDuration::seconds(20);
        })
        .await
    };
    let (one, other) = tokio::join!(join("alpha", 0), join("beta", 1));
    let mut contexts = one.contexts().await;
    until("both hold what is appended", async || {
        let appended = contexts.append(all("first")).await.ok()?.into_inner();
        (appended.copies == 2).then_some(())
    })
    .await;
    drop(other.stop().await);
    until("one goes on alone", async || {
        let appended = contexts.append(append("c", "facts", "second")).await.ok()?.into_inner();
        (appended.copies == 1).then_some(())
    })
    .await;
    one
}

fn all(payload: &'static str) -> AppendRequest {
    AppendRequest { durability: Durability::All.into(), ..append("c", "facts", payload) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_needs_a_dead_member_is_answered_in_time_and_names_it() {
    let node = Box::pin(alone()).await;
    let mut contexts = node.contexts().await;

    // With the client's deadline, which the answer comes before …
    let mut request = Request::new(all("x"));
    request.set_timeout(Duration::from_secs(1));
    let status = contexts.append(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("beta"), "{status:?}");

    // … with the node's own, and on a stream.
    let status = contexts.append(all("y")).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("beta"), "{status:?}");
    let batch = AppendBatch { items: vec![item(7, all("z")), item(8, append("c", "facts", "w"))] };
    let batches = futures::StreamExt::chain(futures::stream::iter([batch]), futures::stream::pending());
    let mut results = node.ledger().await.append(batches).await.unwrap().into_inner();
    let mut answered = Vec::new();
    while answered.len() < 2 {
        answered.extend(results.message().await.unwrap().unwrap().results);
    }
    answered.sort_by_key(|result| result.tag);
    let error = answered[0].error.clone().unwrap();
    assert_eq!(error.code, Code::DeadlineExceeded as i32, "{error:?}");
    assert!(error.message.contains("beta"), "{error:?}");
    assert!(answered[1].error.is_none(), "one copy is enough for it: {answered:?}");

    // What is stored stays, each once.
    let stored = contexts.get(support::get("c")).await.unwrap().into_inner().entries;
    for payload in ["x", "y", "z", "w"] {
        assert_eq!(stored.iter().filter(|entry| entry.payload == payload).count(), 1, "{payload}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_abandoned_calls_were_accepted_with_counts_and_comes_back() {
    let node = Box::pin(alone()).await;
    let memory = Arc::clone(&node.server.node().memory);
    let contexts = node.contexts().await;
    let call = |n: u32| {
        let mut contexts = contexts.clone();
        let payload = vec![n as u8; 100_000];
        let request = AppendRequest { durability: Durability::All.into(), ..append("c", "facts", payload) };
        tokio::spawn(async move { contexts.append(request).await })
    };
    let calls: Vec<_> = (0..20).map(call).collect();
    until("they count", async || (memory.in_flight.used() >= 2_000_000).then_some(())).await;
    // Their callers go.
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    until("all of it came back", async || (memory.in_flight.used() == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_a_slot_that_has_long_been_without_an_owner_learns_why_at_once() {
    let ports = free_ports();
    // Of two nodes that are to form the cluster the other one never comes.
    let node = TestNode::start_with(|config| {
        config.node_id = Some("alpha".into());
        config.gossip_listen = ([127, 0, 0, 1], ports[0]).into();
        config.gossip_interval = HumanDuration(Duration::from_millis(50));
        config.first_nodes = vec!["alpha".into(), "beta".into()];
        config.copies = 2;
    })
    .await;
    let mut contexts = node.contexts().await;
    let waits = "a call no longer waits for an owner";
    until(waits, async || {
        let began = std::time::Instant::now();
        let status = contexts.append(append("c", "facts", "x")).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        // What a moment might have changed is waited for for three seconds.
        (began.elapsed() < Duration::from_millis(1500)).then_some(())
    })
    .await;
}

/// A snapshot of a context with so many entries of 1000 bytes.
async fn snapshot_of(node: &TestNode, entries: u64) -> Vec<u8> {
    let payload = |n: u64| n.to_be_bytes().repeat(125);
    let items: Vec<_> = (0..entries).map(|n| item(n, append("source", "k", payload(n)))).collect();
    let batches: Vec<_> = items.chunks(1000).map(|items| AppendBatch { items: items.to_vec() }).collect();
    let mut results = node.ledger().await.append(futures::stream::iter(batches)).await.unwrap().into_inner();
    let mut answered = 0;
    while let Some(message) = results.message().await.unwrap() {
        answered += message.results.len() as u64;
    }
    assert_eq!(answered, entries);
    let request = SnapshotRequest { context_id: "source".into() };
    let mut chunks = node.ledger().await.snapshot(request).await.unwrap().into_inner();
    let mut snapshot = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        snapshot.extend_from_slice(&chunk.data);
    }
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_load_came_with_counts_until_the_load_has_ended_not_the_call() {
    let node = TestNode::start_with(|config| config.max_snapshot_message = ByteSize::mib(16)).await;
    let snapshot = snapshot_of(&node, 40_000).await;
    let (memory, loads) = (Arc::clone(&node.server.node().memory), &node.server.node().loads);
    let contexts = node.contexts().await.max_encoding_message_size(usize::MAX);
    let mut tries = 0;
    until("a call is given up while its load goes on", async || {
        tries += 1;
        let load = LoadRequest {
            context_id: format!("c{tries}"),
            snapshot: snapshot.clone().into(),
            ..Default::default()
        };
        let mut contexts = contexts.clone();
        let call = tokio::spawn(async move { contexts.load(load).await });
        until("it runs", async || (loads.running() == 1 || call.is_finished()).then_some(())).await;
        call.abort();
        // It may have been answered.
        let _ = call.await;
        let mut seen = 0;
        while loads.running() == 1 {
            let used = memory.receiving.used();
            // It may have ended meanwhile.
            if loads.running() == 1 {
                assert!(used >= snapshot.len(), "{used} of {}", snapshot.len());
                seen += 1;
            }
            tokio::task::yield_now().await;
        }
        (seen > 100).then_some(())
    })
    .await;
    until("all of it came back", async || (memory.receiving.used() == 0).then_some(())).await;
}
