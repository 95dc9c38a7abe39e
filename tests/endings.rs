//! However a node ends, it ends with the exit code of that, and is never aborted on the way: its store is closed before.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    path::Path,
    process::ExitStatus,
};

use ledger_proto::{
    context::v1::{AppendRequest, Durability},
    ledger::v1::LoadChunk,
};
use ledger_tests::{Cluster, Node, PATIENCE, node::ledgerd, until, until_async};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

/// So many starts and ends of each kind: what goes wrong with the threads of a process does so once in many times.
const TIMES: usize = 15;

/// It ended by itself, with this code, and nothing was wrong on the way.
fn ended_with(code: i32, status: ExitStatus, log: &str) {
    assert_eq!(status.code(), Some(code), "{status}\n{log}");
    for word in ["pthread", "terminate called", "abort", "panicked", "Assertion", "still reads from"] {
        assert!(!log.contains(word), "{word}\n{log}");
    }
}

async fn stopped(node: Node, code: i32) {
    let stopped = tokio::task::spawn_blocking(move || node.stop()).await.unwrap();
    ended_with(code, stopped.status, &stopped.log);
}

/// The same store is opened and closed, so that there is something to do for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_node_that_is_told_to_stop_while_it_works_ends_well() {
    let data = TempDir::new().unwrap();
    for _ in 0..TIMES {
        let node = Node::start(data.path());
        let mut writers = Vec::new();
        for writer in 0..4 {
            let (rpc, context) = (node.rpc().await, format!("c{writer}"));
            rpc.append_fact(&context, &[7; 1000]).await.unwrap();
            writers.push(tokio::spawn(async move {
                while rpc.append_fact(&context, &[7; 1000]).await.is_ok() {}
                // It reads as long as the node lets it.
                while rpc.entries(&context, 0).await.is_ok() {}
            }));
        }
        stopped(node, 0).await;
        for writer in writers {
            writer.await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_node_at_once() {
    let data = TempDir::new().unwrap();
    for _ in 0..TIMES {
        let node = Node::start_with(data.path(), &["--shutdown-grace", "10m"]);
        let rpc = node.rpc().await;
        rpc.append_fact("c", b"x").await.unwrap();
        // A load that does not go on holds the node up.
        let begun = LoadChunk { context_id: "loaded".to_owned(), ..LoadChunk::default() };
        let chunks = tokio_stream::once(begun).chain(tokio_stream::pending());
        let mut ledger = rpc.ledger.clone();
        let load = tokio::spawn(async move { ledger.load(chunks).await });
        node.signal_to_stop();
        until("the node heard it", || node.log().contains("asked to stop").then_some(()));
        node.signal_to_stop();
        let ended = tokio::task::spawn_blocking(move || node.wait()).await.unwrap();
        ended_with(130, ended.status, &ended.log);
        assert!(load.await.unwrap().is_err());
    }
}

#[test]
fn a_node_that_does_not_start_ends_with_what_was_in_its_way() {
    let data = TempDir::new().unwrap();
    Node::start(data.path()).stop_cleanly();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let gossip = UdpSocket::bind("127.0.0.1:0").unwrap();
    let [taken, taken_too] = [taken.local_addr(), gossip.local_addr()].map(|it| it.unwrap().to_string());
    let damaged = TempDir::new().unwrap();
    copy_all(data.path(), damaged.path());
    fs::remove_file(damaged.path().join("db/CURRENT")).unwrap();
    let ended = |data: &Path, http: &str, flags: &[&str], code| {
        let mut command = ledgerd();
        command.arg("--data-dir").arg(data).args(["--grpc-listen", "127.0.0.1:0", "--http-listen", http]);
        command.args(flags);
        let refused = Node::try_run(command).unwrap_err();
        ended_with(code, refused.status, &refused.log);
    };
    for _ in 0..TIMES {
        // By then its store is open.
        ended(data.path(), &taken, &[], 4);
        ended(
            data.path(),
            "127.0.0.1:0",
            &["--node-id", "n0", "--gossip-listen", &taken_too, "--seeds", &taken_too],
            4,
        );
        ended(damaged.path(), "127.0.0.1:0", &[], 3);
    }
}

/// Those who write and are not answered, and those who join, hold nothing either.
#[tokio::test(flavor = "multi_thread")]
async fn members_end_well_with_appends_that_wait_and_with_a_directory_that_went_back() {
    let mut cluster = Cluster::start(3, &["--shutdown-grace", "2s"]);
    let append = async |cluster: &Cluster, node: usize| {
        let rpc = cluster.node(node).rpc().await;
        until_async("an append is acknowledged", async || rpc.append_fact("c", b"x").await.ok()).await;
    };
    for _ in 0..3 {
        append(&cluster, 0).await;
        cluster.stop(2);
        let old = TempDir::new().unwrap();
        copy_all(&cluster.data_dir(2), old.path());
        cluster.restart(2);
        cluster.settle();
        append(&cluster, 2).await;
        cluster.stop(2);
        fs::remove_dir_all(cluster.data_dir(2)).unwrap();
        copy_all(old.path(), &cluster.data_dir(2));
        cluster.restart(2);
        let back = cluster.nodes[2].take().unwrap();
        let ended = tokio::task::spawn_blocking(move || back.wait()).await.unwrap();
        ended_with(5, ended.status, &ended.log);
        cluster.restart(2);
        cluster.settle();

        // What it acknowledges as its own copy waits for others, for ever.
        let rpc = cluster.node(0).rpc().await;
        cluster.kill(1);
        cluster.kill(2);
        let (stored, mut any) = tokio::sync::mpsc::channel(64);
        let appends: Vec<_> = (0..64)
            .map(|number| {
                let (rpc, stored) = (rpc.clone(), stored.clone());
                tokio::spawn(async move {
                    let mut request =
                        AppendRequest { context_id: format!("waits {number}"), ..append_of("x") };
                    request.durability = Durability::One.into();
                    if rpc.append(request.clone()).await.is_ok() {
                        stored.send(()).await.unwrap();
                        request.durability = Durability::Unspecified.into();
                        assert!(rpc.append(request).await.is_err());
                    }
                })
            })
            .collect();
        tokio::time::timeout(PATIENCE, any.recv()).await.unwrap();
        stopped(cluster.nodes[0].take().unwrap(), 0).await;
        for append in appends {
            append.await.unwrap();
        }
        (0..3).for_each(|number| cluster.restart(number));
        cluster.settle();
    }
}

fn append_of(payload: &'static str) -> AppendRequest {
    AppendRequest { key: "facts".to_owned(), payload: payload.into(), ..AppendRequest::default() }
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Nothing is lost with it, and nobody waits for what does not come.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_store_loses_a_thread_ends_with_its_own_code_and_goes_on_when_it_is_started_again() {
    let data = TempDir::new().unwrap();
    let node = Node::start_with(data.path(), &["--test-panic", "lane"]);
    let rpc = node.rpc().await;
    rpc.append_fact("kept", b"before").await.unwrap();
    let request =
        AppendRequest { context_id: "kept".into(), key: "test-panic".into(), ..AppendRequest::default() };
    let refused = rpc.append(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    let ended = tokio::task::spawn_blocking(move || node.wait()).await.unwrap();
    assert_eq!(ended.status.code(), Some(8), "{}", ended.log);
    for part in ["a thread of the store panicked", "lane-", "start the node again"] {
        assert!(ended.log.contains(part), "{part}: {}", ended.log);
    }
    let again = Node::start(data.path());
    let rpc = again.rpc().await;
    rpc.append_fact("kept", b"after").await.unwrap();
    let payloads: Vec<_> =
        rpc.entries("kept", 0).await.unwrap().into_iter().map(|entry| entry.payload).collect();
    assert_eq!(payloads, ["before", "after"]);
}
