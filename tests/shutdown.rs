//! Stopping under load, starting again, and configuration, with the real binary.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{collections::BTreeSet, fs, net::TcpListener, path::Path, process::Command, sync::Arc};

use futures::future::join_all;
use ledger_tests::{
    History, Node,
    load::{self, Outcome, Progress},
    node::{Stopped, ledgerd},
};
use tempfile::TempDir;
use tonic::Code;

/// The node did not have to cut anybody off, for which it would wait as long as clients are given.
fn assert_nobody_held_it_up(stopped: &Stopped) {
    assert!(!stopped.log.contains("did not end in time"), "{}", stopped.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_under_load_loses_nothing_and_ends_with_success() {
    let data = TempDir::new().unwrap();
    let mut all = Outcome::default();
    let mut contexts = BTreeSet::new();
    for round in 0..5_u64 {
        let node = Node::start(data.path());
        let rpc = node.rpc().await;
        let progress = Progress::towards(20_000);
        let streams: Vec<_> = (0..4_u64)
            .map(|stream| {
                let names: Vec<_> = (0..16).map(|n| format!("stream-{stream}-{n}")).collect();
                contexts.extend(names.clone());
                let first = (round * 4 + stream) << 32;
                tokio::spawn(load::stream(rpc.clone(), names, 1024, first, Arc::clone(&progress)))
            })
            .collect();
        // Unary appends run along.
        let unary = tokio::spawn({
            let rpc = rpc.clone();
            async move {
                let mut acknowledged = Vec::new();
                loop {
                    match rpc.append_fact(&format!("unary-{round}"), b"x").await {
                        Ok(entry) => acknowledged.push(entry),
                        Err(status) => return (acknowledged, status),
                    }
                }
            }
        });
        progress.reached().await;
        let stopped = tokio::task::spawn_blocking(move || node.stop()).await.unwrap();
        assert_eq!(stopped.status.code(), Some(0), "{}", stopped.log);
        assert_nobody_held_it_up(&stopped);
        assert!(!stopped.log.contains("panicked"), "{}", stopped.log);
        for stream in join_all(streams).await {
            let outcome = stream.unwrap();
            if let Some(ended) = &outcome.ended {
                // Told in words, or the transport says that the connection was gone before it could be.
                let is_transport = std::error::Error::source(ended).is_some();
                assert!(ended.code() == Code::Unavailable || is_transport, "{ended:?}");
            }
            for (code, message) in &outcome.refused {
                assert_eq!(Code::from(*code), Code::Unavailable, "{message}");
            }
            all.add(outcome);
        }
        let (acknowledged, _) = unary.await.unwrap();

        let node = Node::start(data.path());
        let rpc = node.rpc().await;
        let entries = rpc.entries(&format!("unary-{round}"), 0).await.unwrap();
        assert!(entries.len() >= acknowledged.len(), "unary appends were lost");
        assert_eq!(entries[..acknowledged.len()], acknowledged);
        node.stop_cleanly();
    }
    let node = Node::start(data.path());
    let rpc = node.rpc().await;
    for context in &contexts {
        let (_, entries) = History::read_all(&rpc, context).await.unwrap();
        all.assert_kept(context, &entries);
    }
    assert!(all.count() >= 100_000);
    node.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_does_not_hold_up_a_shutdown() {
    let data = TempDir::new().unwrap();
    let node = Node::start(data.path());
    let rpc = node.rpc().await;
    rpc.append_fact("c", b"1").await.unwrap();
    let request =
        ledger_proto::context::v1::WatchRequest { context_id: "c".to_owned(), ..Default::default() };
    let mut events = rpc.context.clone().watch(request).await.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap().unwrap().entry.unwrap().sequence, 1);
    let stopped = tokio::task::spawn_blocking(move || node.stop()).await.unwrap();
    assert_eq!(stopped.status.code(), Some(0), "{}", stopped.log);
    assert_nobody_held_it_up(&stopped);
    // The watcher is told to try elsewhere; it must not believe the context ended.
    let status = events.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

/// The effective configuration, as `ledgerd config` prints it: value and source by key.
fn effective(command: &mut Command) -> impl Fn(&str) -> (String, String) + use<> {
    let output = command.arg("config").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    move |key| {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{key} = ")))
            .unwrap_or_else(|| panic!("{text}"));
        let (value, source) = line.split_once(" = ").unwrap().1.split_once(" # ").unwrap();
        (value.trim().trim_matches('"').to_owned(), source.trim().to_owned())
    }
}

fn file(dir: &Path, text: &str) -> std::path::PathBuf {
    let path = dir.join("ledger.toml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let dir = TempDir::new().unwrap();
    let path = file(
        dir.path(),
        "cluster = \"from-file\"\nlanes = 3\nhash_suite = \"sha256\"\ngrpc_listen = \"127.0.0.2:1000\"\n",
    );
    let config = effective(
        ledgerd()
            .arg("--config")
            .arg(&path)
            .args(["--cluster", "from-flag"])
            .env("LEDGER_CLUSTER", "from-environment")
            .env("LEDGER_LANES", "2")
            .env("GRPC_PORT", "6000"),
    );
    let from_file = format!("file {}", path.display());
    assert_eq!(config("cluster"), ("from-flag".to_owned(), "flag".to_owned()));
    assert_eq!(config("lanes"), ("2".to_owned(), "environment".to_owned()));
    assert_eq!(config("hash_suite"), ("sha256".to_owned(), from_file));
    assert_eq!(config("durability"), ("always".to_owned(), "default".to_owned()));
    // The predecessor's variable sets the port alone.
    assert_eq!(config("grpc_listen").0, "127.0.0.2:6000");

    let config = effective(ledgerd().env("GRPC_PORT", "6000").args(["--grpc-listen", "127.0.0.1:7000"]));
    assert_eq!(config("grpc_listen"), ("127.0.0.1:7000".to_owned(), "flag".to_owned()));
    let config = effective(&mut ledgerd());
    assert_eq!(config("grpc_listen"), ("0.0.0.0:50051".to_owned(), "default".to_owned()));
}

#[test]
fn a_wrong_configuration_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let path = file(dir.path(), "colour = \"blue\"\n");
    let cases: [(Command, &[&str]); 3] = [
        (
            {
                let mut command = ledgerd();
                command.arg("--config").arg(&path);
                command
            },
            &["colour", "ledger.toml"],
        ),
        (
            {
                let mut command = ledgerd();
                command.env("GRPC_PORT", "port");
                command
            },
            &["GRPC_PORT"],
        ),
        (
            {
                let mut command = ledgerd();
                command.args(["--max-entry", "0"]);
                command
            },
            &["max_entry", "flag"],
        ),
    ];
    for (mut command, parts) in cases {
        let output = command.arg("--data-dir").arg(dir.path().join("data")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        for part in parts {
            assert!(said.contains(part), "{part} in: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_predecessors_port_variable_is_where_the_node_listens() {
    let data = TempDir::new().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = ledgerd();
    command.env("GRPC_PORT", port.to_string()).env("LEDGER_DATA_DIR", data.path());
    command.args(["--http-listen", "127.0.0.1:0"]);
    let node = Node::try_run(command).unwrap_or_else(|refused| panic!("{}", refused.log));
    assert_eq!(node.grpc.port(), port);

    // The port is taken now: the next node says so.
    let other = TempDir::new().unwrap();
    let taken = format!("127.0.0.1:{port}");
    let output = ledgerd()
        .args(["--http-listen", "127.0.0.1:0", "--grpc-listen", &taken, "--data-dir"])
        .arg(other.path())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains(&taken), "{said}");
    node.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_answer_where_they_always_do() {
    let data = TempDir::new().unwrap();
    let node = Node::start(data.path());
    node.rpc().await.append_fact("c", b"1").await.unwrap();
    let (healthy, ready) = (node.http_get("/healthz"), node.http_get("/readyz"));
    assert!(!healthy.is_empty() && !ready.is_empty());
    assert_eq!(node.metric("ledger_appended_entries_total"), Some(1.0));
    assert_eq!(node.metric("ledger_store_writable"), Some(1.0));
    node.stop_cleanly();
}
