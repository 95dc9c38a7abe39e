//! Probes, shutdown, supervision: the node around the services.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ledger_proto::ledger::v1::{AppendBatch, WatchRequest};
use ledger_server::{settings::config::TestPanic, settings::units::HumanDuration};
use support::{
    DEADLINE, TestNode, append, append_all, assert_retry, assert_told_or_cut_off, get, item, next_entry,
    until, watch,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[tokio::test]
async fn probes_answer() {
    let node = TestNode::start().await;
    append_all(&mut node.contexts().await, "c", &["1"]).await;
    assert_eq!(node.http("/healthz").await.0, 200);
    assert_eq!(node.http("/readyz").await.0, 200);
    let (code, metrics) = node.http("/metrics").await;
    assert_eq!(code, 200);
    for line in ["ledger_appended_entries_total 1", "ledger_store_writable 1", "ledger_build_info{"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let mut health = HealthClient::new(node.channel().await);
    for service in ["", "converge.context.v1.ContextService", "converge.ledger.v1.LedgerService"] {
        let request = HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status, 1, "{service}");
    }
    node.stop().await;
}

#[tokio::test]
async fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let node = TestNode::start().await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(node.channel().await);
    let mut answers =
        client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in
        ["converge.context.v1.ContextService", "converge.ledger.v1.LedgerService", "grpc.health.v1.Health"]
    {
        assert!(names.iter().any(|listed| listed == name), "{name} in {names:?}");
    }
    drop(answers);
    node.stop().await;
}

#[tokio::test]
async fn the_console_shows_contexts_and_runs_nothing_foreign() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    client
        .append(append("<script>alert(1)</script>", "facts", "<img src=x onerror=alert(1)>"))
        .await
        .unwrap();
    client.append(append("<script>alert(1)</script>", "facts", vec![0xff, 0, 1])).await.unwrap();
    let (code, page) = node.http("/").await;
    assert_eq!(code, 200);
    assert!(page.contains("content-security-policy: default-src 'none'; script-src 'sha256-"), "{page}");
    let (code, list) = node.http("/api/contexts?limit=10").await;
    assert_eq!(code, 200);
    assert!(list.contains("content-type: application/json") && list.contains("alert(1)"), "{list}");
    let id = "%3Cscript%3Ealert(1)%3C/script%3E";
    let (code, entries) = node.http(&format!("/api/entries?id={id}&limit=10")).await;
    assert_eq!(code, 200);
    assert!(
        entries.contains("\"text\":\"<img src=x onerror=alert(1)>\"")
            && entries.contains("\"hex\":\"ff0001\""),
        "{entries}"
    );
    let (code, context) = node.http(&format!("/api/context?id={id}")).await;
    assert_eq!(code, 200);
    assert!(context.contains("\"size\":2") && context.contains("signed_note"), "{context}");
    assert!(context.contains("\"lamport\":\"2\"") && context.contains("\"epoch\":\""), "{context}");
    let (code, cluster) = node.http("/api/cluster").await;
    assert_eq!(code, 200);
    assert!(cluster.contains("\"copies\":1") && cluster.contains("\"slots\":1024"), "{cluster}");
    for path in ["/api/entries", "/api/entries?id=c&after=x", "/api/context?id=%00"] {
        let (code, answer) = node.http(path).await;
        assert_eq!(code, 400, "{path}: {answer}");
    }
    assert_eq!(node.http("/nowhere").await.0, 404);
    node.stop().await;
}

/// Reads until a text has come.
async fn read_to(stream: &mut TcpStream, read: &mut String, text: &str) {
    while !read.contains(text) {
        let mut part = [0; 4096];
        let count = tokio::time::timeout(DEADLINE, stream.read(&mut part)).await.expect(text).unwrap();
        assert!(count > 0, "{text} in {read}");
        read.push_str(&String::from_utf8_lossy(&part[..count]));
    }
}

#[tokio::test]
async fn a_live_tail_of_the_console_ends_with_the_node() {
    let node = TestNode::start().await;
    append_all(&mut node.contexts().await, "c", &["one"]).await;
    let mut tail = support::ask(node.server.http(), "/api/tail?id=c").await;
    let mut events = String::new();
    read_to(&mut tail, &mut events, "\"text\":\"one\"").await;
    assert!(events.starts_with("HTTP/1.1 200"), "{events}");
    append_all(&mut node.contexts().await, "c", &["two"]).await;
    read_to(&mut tail, &mut events, "\"text\":\"two\"").await;
    node.stop().await;
    read_to(&mut tail, &mut events, "event: end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shutdown_under_load_loses_nothing_that_was_acknowledged() {
    let node = TestNode::patient().await;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for writer in 0..8 {
        let mut client = node.contexts().await;
        let acknowledged = Arc::clone(&acknowledged);
        writers.push(tokio::spawn(async move {
            loop {
                match client.append(append(&format!("u{writer}"), "k", "x")).await {
                    Ok(_) => acknowledged.fetch_add(1, Ordering::SeqCst),
                    Err(status) => return status,
                };
            }
        }));
    }
    let (sender, batches) = tokio::sync::mpsc::channel(8);
    let mut client = node.ledger().await;
    let mut messages = client.append(ReceiverStream::new(batches)).await.unwrap().into_inner();
    let feeder = tokio::spawn(async move {
        for batch in 0.. {
            let items = (0..100).map(|n| item(batch * 100 + n, append("s", "k", "x"))).collect();
            if sender.send(AppendBatch { items }).await.is_err() {
                return;
            }
        }
    });
    let (told, mut so_far) = tokio::sync::watch::channel(0);
    let streamed = tokio::spawn(async move {
        let mut count = 0;
        loop {
            told.send_replace(count);
            match messages.message().await {
                Ok(Some(message)) => {
                    assert!(message.results.iter().all(|result| result.error.is_none()));
                    count += message.results.len() as u64;
                }
                Ok(None) => panic!("the stream ended as if the client had half-closed"),
                Err(status) => return (count, status),
            }
        }
    });
    let under_load = async {
        so_far.wait_for(|streamed| *streamed >= 2_000).await.unwrap();
        until("unary appends", async || (acknowledged.load(Ordering::SeqCst) >= 200).then_some(())).await;
    };
    tokio::time::timeout(DEADLINE, under_load).await.unwrap();
    let dir = tokio::time::timeout(DEADLINE, node.stop()).await.unwrap();
    for writer in writers {
        assert_told_or_cut_off(&writer.await.unwrap());
    }
    let (streamed, status) = streamed.await.unwrap();
    assert_retry(&status);
    feeder.await.unwrap();

    let node = TestNode::start_in(dir, |_| {}).await;
    let mut client = node.contexts().await;
    let mut stored = 0;
    for writer in 0..8 {
        stored += client.get(get(&format!("u{writer}"))).await.unwrap().into_inner().latest_sequence;
    }
    assert_eq!(stored, acknowledged.load(Ordering::SeqCst));
    let in_stream = client.get(get("s")).await.unwrap().into_inner().latest_sequence;
    assert_eq!(in_stream, streamed, "all that was stored was acknowledged before the end");
    assert!(streamed > 0 && stored > 0);
    node.stop().await;
}

#[tokio::test]
async fn watchers_and_health_learn_of_a_shutdown() {
    let node = TestNode::patient().await;
    append_all(&mut node.contexts().await, "c", &["1"]).await;
    let mut events = node.contexts().await.watch(watch("c", 0)).await.unwrap().into_inner();
    next_entry(&mut events).await;
    let request = WatchRequest { context_id: "c".into(), ..Default::default() };
    let mut batches = node.ledger().await.watch(request).await.unwrap().into_inner();
    batches.message().await.unwrap().unwrap();
    let mut health = HealthClient::new(node.channel().await)
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status, 1);
    let address = node.server.grpc();

    tokio::time::timeout(DEADLINE, node.stop()).await.unwrap();
    assert_retry(&events.message().await.unwrap_err());
    assert_retry(&batches.message().await.unwrap_err());
    assert_eq!(health.message().await.unwrap().unwrap().status, 2);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_client_that_hangs_does_not_hold_the_shutdown_for_ever() {
    let node =
        TestNode::start_with(|config| config.shutdown_grace = HumanDuration(Duration::from_millis(500)))
            .await;
    // An upload that never ends its stream, and a raw connection that never speaks.
    let (sender, chunks) = tokio::sync::mpsc::channel::<ledger_proto::ledger::v1::LoadChunk>(1);
    let mut client = node.ledger().await;
    let load = tokio::spawn(async move { client.load(ReceiverStream::new(chunks)).await });
    let _silent = TcpStream::connect(node.server.grpc()).await.unwrap();
    node.page_with("/metrics", "ledger_requests_total{rpc=\"LedgerService/Load\"} 1").await;
    tokio::time::timeout(DEADLINE, node.stop()).await.unwrap();
    assert_eq!(load.await.unwrap().unwrap_err().code(), Code::Unavailable);
    drop(sender);
}

#[tokio::test]
async fn a_panic_in_a_watch_ends_that_stream_only() {
    let node = TestNode::start_with(|config| config.test_panic = Some(TestPanic::Watch)).await;
    let mut client = node.contexts().await;
    let mut meets = client.watch(watch("c", 0)).await.unwrap().into_inner();
    let mut other = client.watch(watch("d", 0)).await.unwrap().into_inner();
    client.append(append("c", "test-panic", "x")).await.unwrap();
    let status = meets.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    // Storage, appends and other watchers go on, on the same connection.
    append_all(&mut client, "d", &["1"]).await;
    assert_eq!(next_entry(&mut other).await.sequence, 1);
    assert_eq!(client.get(get("c")).await.unwrap().into_inner().latest_sequence, 1);
    node.stop().await;
}

#[tokio::test]
async fn a_panic_in_the_console_is_restarted_while_appends_go_on() {
    let node = TestNode::start_with(|config| config.test_panic = Some(TestPanic::Console)).await;
    let mut client = node.contexts().await;
    let appending = async {
        loop {
            append_all(&mut client, "c", &["x"]).await;
        }
    };
    tokio::select! {
        () = appending => {}
        _ = node.page_with("/metrics", "ledger_task_restarts_total{task=\"http\"} 1") => {}
    }
    node.stop().await;
}
