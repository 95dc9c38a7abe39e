//! `converge.ledger.v1.LedgerService`: the five operations in streaming form.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{collections::HashMap, time::Duration};

use ledger_proto::{
    context::v1::{AppendRequest, GetRequest, Position, SnapshotRequest},
    ledger::v1::{AppendBatch, AppendResult, LoadChunk, WatchBatch, WatchRequest},
};
use support::{TestNode, append, append_all, field, get, item, until};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Streaming};

/// Sends batches, half-closes, and gives all results.
async fn send_all(
    node: &TestNode,
    batches: Vec<AppendBatch>,
) -> (Vec<AppendResult>, HashMap<String, Position>) {
    let mut client = node.ledger().await;
    let mut messages = client.append(tokio_stream::iter(batches)).await.unwrap().into_inner();
    let (mut results, mut positions) = (Vec::new(), HashMap::new());
    while let Some(message) = messages.message().await.unwrap() {
        results.extend(message.results);
        for position in message.positions {
            positions.insert(position.context_id, position.position.unwrap());
        }
    }
    (results, positions)
}

#[tokio::test]
async fn every_entry_gets_one_result_in_order_for_each_context() {
    const ENTRIES: u64 = 20_000;
    let node = TestNode::start().await;
    let name = |n: u64| format!("context-{}", n % 7);
    let items: Vec<_> = (0..ENTRIES).map(|n| item(n, append(&name(n), "facts", n.to_string()))).collect();
    let batches = items.chunks(300).map(|items| AppendBatch { items: items.to_vec() }).collect();
    let (results, positions) = send_all(&node, batches).await;
    assert_eq!(results.len() as u64, ENTRIES);
    let mut newest: HashMap<u64, u64> = HashMap::new();
    for result in &results {
        assert_eq!(result.error, None);
        let newest = newest.entry(result.tag % 7).or_default();
        *newest += 1;
        assert_eq!((result.sequence, result.tag / 7 + 1), (*newest, *newest));
        assert_eq!((result.entry_id.len(), result.content_hash.len()), (32, 32));
    }
    let mut contexts = node.contexts().await;
    for n in 0..7 {
        let size = newest[&n];
        assert_eq!(positions[&name(n)].size, size);
        let last = contexts
            .get(GetRequest { after_sequence: size - 1, ..get(&name(n)) })
            .await
            .unwrap()
            .into_inner();
        assert_eq!((last.entries.len(), last.latest_sequence), (1, size));
        let result = results.iter().rfind(|result| result.tag % 7 == n).unwrap();
        assert_eq!(last.entries[0].content_hash, result.content_hash);
        assert_eq!(last.entries[0].id, result.entry_id);
        assert_eq!(last.entries[0].payload, result.tag.to_string());
    }
    node.stop().await;
}

#[tokio::test]
async fn a_batch_larger_than_what_may_be_in_flight_goes_through() {
    let node = TestNode::start_with(|config| {
        config.max_entry = ledger_server::settings::units::ByteSize(1000);
        config.max_in_flight = ledger_server::settings::units::ByteSize(2000);
    })
    .await;
    let items = (0..20_000).map(|n| item(n, append("c", "k", "x"))).collect();
    let (results, _) = send_all(&node, vec![AppendBatch { items }]).await;
    assert_eq!(results.len(), 20_000);
    assert!(results.iter().all(|result| result.error.is_none()));
    node.stop().await;
}

#[tokio::test]
async fn a_bad_entry_fails_alone_and_the_stream_goes_on() {
    let node = TestNode::start().await;
    let taken = AppendRequest { entry_id: "id".into(), ..append("c", "facts", "x") };
    let items = vec![
        item(1, append("c", "facts", "1")),
        item(2, append("", "facts", "2")),
        item(3, append("c", "", "3")),
        item(4, append("c", "facts", vec![0; (4 << 20) + 1])),
        ledger_proto::ledger::v1::AppendItem { tag: 5, request: None },
        item(6, taken.clone()),
        item(7, taken.clone()),
        item(8, AppendRequest { payload: "y".into(), ..taken }),
        item(9, AppendRequest { durability: 77, ..append("c", "facts", "9") }),
        item(10, append("c", "facts", "10")),
    ];
    let after = AppendBatch { items: vec![item(11, append("c", "facts", "11"))] };
    let (mut results, _) = send_all(&node, vec![AppendBatch { items }, after]).await;
    results.sort_by_key(|result| result.tag);
    let codes: Vec<_> =
        results.iter().map(|r| r.error.as_ref().map_or(Code::Ok, |e| e.code.into())).collect();
    let bad = Code::InvalidArgument;
    assert_eq!(
        codes,
        [
            Code::Ok,
            bad,
            bad,
            Code::ResourceExhausted,
            bad,
            Code::Ok,
            Code::Ok,
            Code::AlreadyExists,
            bad,
            Code::Ok,
            Code::Ok
        ]
    );
    assert!(results[1].error.as_ref().unwrap().message.contains("context_id"));
    let sequence = |tag: usize| results[tag - 1].sequence;
    assert_eq!([sequence(1), sequence(6), sequence(7), sequence(10), sequence(11)], [1, 2, 2, 3, 4]);
    assert!(results[6].repeated_id && !results[5].repeated_id);
    node.stop().await;
}

#[tokio::test]
async fn results_come_while_the_client_still_sends() {
    let node = TestNode::start().await;
    let (sender, batches) = tokio::sync::mpsc::channel(1);
    let mut client = node.ledger().await;
    let mut messages = client.append(ReceiverStream::new(batches)).await.unwrap().into_inner();
    for n in 1..=50 {
        sender.send(AppendBatch { items: vec![item(n, append("c", "facts", "x"))] }).await.unwrap();
        let message = messages.message().await.unwrap().unwrap();
        assert_eq!((message.results.len(), message.results[0].sequence), (1, n));
        assert_eq!(message.positions[0].position.as_ref().unwrap().size, n);
    }
    drop(sender);
    assert!(messages.message().await.unwrap().is_none());
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_no_results_is_not_read_from_for_ever() {
    let node = TestNode::start().await;
    let (sender, batches) = tokio::sync::mpsc::channel(1);
    let mut client = node.ledger().await;
    let mut messages = client.append(ReceiverStream::new(batches)).await.unwrap().into_inner();
    let mut sent = 0_u64;
    // Small batches, no results taken: sending must come to a halt.
    loop {
        let items = (0..1000).map(|n| item(sent + n, append("c", "k", "x"))).collect();
        let send = sender.send(AppendBatch { items });
        match tokio::time::timeout(Duration::from_secs(2), send).await {
            Ok(result) => result.unwrap(),
            Err(_) => break,
        }
        sent += 1000;
        assert!(sent < 1_000_000, "never held back");
    }
    drop(sender);
    let mut results = 0;
    while let Some(message) = messages.message().await.unwrap() {
        results += message.results.len() as u64;
    }
    assert_eq!(results, sent);
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let node = TestNode::start().await;
    for round in 0..20 {
        let (sender, batches) = tokio::sync::mpsc::channel(4);
        let mut client = node.ledger().await;
        let messages = client.append(ReceiverStream::new(batches)).await.unwrap().into_inner();
        for _ in 0..4 {
            let items = (0..500).map(|n| item(n, append(&format!("c{round}"), "k", "x"))).collect();
            sender.send(AppendBatch { items }).await.unwrap();
        }
        drop(messages);
    }
    let is_free = || node.server.node().memory.in_flight.used() == 0;
    until("all bytes are free", async || is_free().then_some(())).await;
    node.stop().await;
}

#[tokio::test]
async fn a_get_streams_everything_in_pages() {
    let node = TestNode::start().await;
    let items = (0..5000_u64)
        .map(|n| item(n, append("c", if n % 10 == 0 { "rare" } else { "k" }, n.to_string())))
        .collect();
    send_all(&node, vec![AppendBatch { items }]).await;
    let mut client = node.ledger().await;
    let read = |request: GetRequest| {
        let mut client = client.clone();
        async move {
            let mut pages = client.get(request).await.unwrap().into_inner();
            let (mut sequences, mut count) = (Vec::new(), 0);
            while let Some(page) = pages.message().await.unwrap() {
                assert_eq!(page.latest_sequence, 5000);
                sequences.extend(page.entries.iter().map(|entry| entry.sequence));
                count += 1;
            }
            (sequences, count)
        }
    };
    let (all, pages) = read(get("c")).await;
    assert!(all.iter().copied().eq(1..=5000));
    assert!(pages >= 3, "{pages}");
    let (rare, _) = read(GetRequest { key: "rare".into(), ..get("c") }).await;
    assert!(rare.iter().copied().eq((1..=5000).step_by(10)));
    let (some, _) = read(GetRequest { after_sequence: 100, limit: 1200, ..get("c") }).await;
    assert!(some.iter().copied().eq(101..=1300));
    let mut empty = client.get(get("nowhere")).await.unwrap().into_inner();
    assert_eq!(empty.message().await.unwrap().unwrap().latest_sequence, 0);
    assert!(empty.message().await.unwrap().is_none());
    let status = client.get(get("")).await.unwrap_err();
    assert_eq!(field(&status), "context_id");
    node.stop().await;
}

#[tokio::test]
async fn a_snapshot_streams_out_and_in() {
    let node = TestNode::start().await;
    let items = (0..3000_u64).map(|n| item(n, append("c", "k", n.to_be_bytes().repeat(100)))).collect();
    send_all(&node, vec![AppendBatch { items }]).await;
    let mut client = node.ledger().await;
    let mut chunks = client.snapshot(SnapshotRequest { context_id: "c".into() }).await.unwrap().into_inner();
    let mut snapshot = Vec::new();
    let mut first = true;
    while let Some(chunk) = chunks.message().await.unwrap() {
        assert_eq!((chunk.metadata.is_some(), chunk.sequence), (first, if first { 3000 } else { 0 }));
        snapshot.extend_from_slice(&chunk.data);
        first = false;
    }
    let chunks: Vec<_> = snapshot
        .chunks(1000)
        .enumerate()
        .map(|(n, data)| LoadChunk {
            context_id: if n == 0 { "d".into() } else { String::new() },
            fail_if_exists: n == 0,
            data: data.to_vec().into(),
        })
        .collect();
    let truncated = chunks[..chunks.len() - 1].to_vec();
    let status = client.load(tokio_stream::iter(truncated)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let loaded = client.load(tokio_stream::iter(chunks)).await.unwrap().into_inner();
    assert_eq!((loaded.entries_restored, loaded.latest_sequence), (3000, 3000));
    let status = client.load(tokio_stream::iter(Vec::new())).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    node.stop().await;
}

async fn next_batch(batches: &mut Streaming<WatchBatch>) -> WatchBatch {
    tokio::time::timeout(Duration::from_secs(10), batches.message()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_watch_resumes_where_it_stopped() {
    let node = TestNode::start().await;
    let mut contexts = node.contexts().await;
    append_all(&mut contexts, "c", &["1", "2", "3"]).await;
    let mut client = node.ledger().await;
    let request = WatchRequest { context_id: "c".into(), ..Default::default() };
    let mut batches = client.watch(request.clone()).await.unwrap().into_inner();
    let batch = next_batch(&mut batches).await;
    assert_eq!(batch.entries.len(), 3);
    let bookmark = batch.bookmark.expect("a watcher that has caught up knows its position");
    assert_eq!((bookmark.size, bookmark.root.len()), (3, 32));
    drop(batches);

    append_all(&mut contexts, "c", &["4"]).await;
    let resumed = WatchRequest { resume_after: Some(bookmark.clone()), ..request.clone() };
    let mut batches = client.watch(resumed).await.unwrap().into_inner();
    assert_eq!(next_batch(&mut batches).await.entries[0].sequence, 4);

    let elsewhere = Position { root: vec![9; 32].into(), ..bookmark.clone() };
    let other_lineage =
        Position { root: bytes::Bytes::default(), lineage: vec![9; 16].into(), ..bookmark.clone() };
    for token in [elsewhere, other_lineage] {
        let resumed = WatchRequest { resume_after: Some(token), ..request.clone() };
        assert_eq!(client.watch(resumed).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    let malformed =
        WatchRequest { resume_after: Some(Position { root: vec![1].into(), ..bookmark }), ..request };
    let status = client.watch(malformed).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "resume_after"));
    node.stop().await;
}

#[tokio::test]
async fn a_filtered_watch_gets_bookmarks_at_its_interval() {
    let node = TestNode::start().await;
    let mut contexts = node.contexts().await;
    append_all(&mut contexts, "c", &["1", "2"]).await;
    let request = WatchRequest {
        context_id: "c".into(),
        key: "rare".into(),
        bookmark_interval_ms: 50,
        ..Default::default()
    };
    let mut batches = node.ledger().await.watch(request).await.unwrap().into_inner();
    let first = next_batch(&mut batches).await;
    assert_eq!((first.entries.len(), first.bookmark.unwrap().size), (0, 2));
    append_all(&mut contexts, "c", &["3"]).await;
    while next_batch(&mut batches).await.bookmark.unwrap().size < 3 {}
    node.stop().await;
}

#[tokio::test]
async fn contexts_are_listed_in_pages() {
    let node = TestNode::start().await;
    let mut contexts = node.contexts().await;
    for name in ["b/1", "a/2", "a/1", "a/3"] {
        append_all(&mut contexts, name, &["x"]).await;
    }
    let mut client = node.cluster().await;
    let mut list = async |prefix: &str, after: &str, limit| {
        let request = ledger_proto::ledger::v1::ContextsRequest {
            prefix: prefix.into(),
            after: after.into(),
            limit,
            ..Default::default()
        };
        let page = client.contexts(request).await.unwrap().into_inner();
        (page.contexts.into_iter().map(|info| info.context_id).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(list("", "", 0).await, (vec!["a/1".into(), "a/2".into(), "a/3".into(), "b/1".into()], false));
    assert_eq!(list("a/", "", 2).await, (vec!["a/1".into(), "a/2".into()], true));
    assert_eq!(list("a/", "a/2", 2).await, (vec!["a/3".into()], false));
    node.stop().await;
}

#[tokio::test]
async fn a_stream_of_results_can_be_taken_slowly() {
    let node = TestNode::start().await;
    let batches: Vec<_> = (0..100)
        .map(|b| AppendBatch { items: (0..200).map(|n| item(b * 200 + n, append("c", "k", "x"))).collect() })
        .collect();
    let mut client = node.ledger().await;
    let messages = client.append(tokio_stream::iter(batches)).await.unwrap().into_inner();
    let slow = messages.throttle(Duration::from_millis(1));
    tokio::pin!(slow);
    let mut count = 0;
    while let Some(message) = slow.next().await {
        count += message.unwrap().results.len();
    }
    assert_eq!(count, 20_000);
    node.stop().await;
}
