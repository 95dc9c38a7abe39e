//! The predecessor's snapshots, over gRPC: what it wrote is what a client reads.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{collections::BTreeMap, fs, path::PathBuf};

use ledger_proto::context::v1::Entry;
use ledger_tests::{History, Node, repository};
use tempfile::TempDir;
use tonic::Code;

/// An entry as the predecessor's own listing has it.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    sequence: u64,
    id: String,
    key: String,
    payload: String,
    appended_at_ns: u64,
    lamport_clock: Option<u64>,
    metadata: BTreeMap<String, String>,
}

/// A blob and what is in it.
struct Fixture {
    name: String,
    blob: Vec<u8>,
    context: String,
    sequence: u64,
    entries: Vec<Expected>,
}

fn fixtures() -> Vec<Fixture> {
    let dir = repository().join("tests/fixtures");
    let mut blobs: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "etf"))
        .collect();
    blobs.sort();
    assert!(blobs.len() >= 4);
    blobs.iter().map(fixture).collect()
}

fn fixture(path: &PathBuf) -> Fixture {
    let text = fs::read_to_string(path.with_extension("tsv")).unwrap();
    let (comments, rows): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('#'));
    let header = |name: &str| {
        comments
            .iter()
            .find_map(|line| line.strip_prefix(&format!("# {name}\t")))
            .unwrap_or_else(|| panic!("{} has no {name}", path.display()))
            .to_owned()
    };
    Fixture {
        name: path.file_name().unwrap().to_string_lossy().into_owned(),
        blob: fs::read(path).unwrap(),
        context: header("context_id"),
        sequence: header("sequence").parse().unwrap(),
        entries: rows.into_iter().map(row).collect(),
    }
}

fn row(line: &str) -> Expected {
    let column: Vec<_> = line.split('\t').collect();
    Expected {
        sequence: column[0].parse().unwrap(),
        id: column[1].to_owned(),
        key: column[2].to_owned(),
        payload: column[3].to_owned(),
        appended_at_ns: column[4].parse().unwrap(),
        // Version 1 has none.
        lamport_clock: column[5].parse().ok(),
        metadata: column
            .get(7)
            .into_iter()
            .flat_map(|pairs| pairs.split('&'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
    }
}

fn as_listed(entry: &Entry, with_lamport: bool) -> Expected {
    Expected {
        sequence: entry.sequence,
        id: entry.id.clone(),
        key: entry.key.clone(),
        payload: hex::encode(&entry.payload),
        appended_at_ns: entry.appended_at_ns,
        lamport_clock: with_lamport.then_some(entry.lamport_clock),
        metadata: entry.metadata.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_predecessors_snapshots_read_back_as_it_listed_them() {
    for fixture in fixtures() {
        let data = TempDir::new().unwrap();
        let node = Node::start(data.path());
        let rpc = node.rpc().await;
        let answer = rpc.load(&fixture.context, &fixture.blob, true).await.unwrap();
        assert_eq!(answer.entries_restored, fixture.sequence, "{}", fixture.name);
        assert_eq!(answer.latest_sequence, fixture.sequence, "{}", fixture.name);

        let (_, entries) = History::read_all(&rpc, &fixture.context).await.unwrap();
        assert_eq!(entries.len(), fixture.entries.len(), "{}", fixture.name);
        for (entry, expected) in entries.iter().zip(&fixture.entries) {
            assert_eq!(&as_listed(entry, expected.lamport_clock.is_some()), expected, "{}", fixture.name);
        }

        // The clock goes on from where the predecessor's stood.
        let newest = entries.last().map_or(0, |entry| entry.lamport_clock);
        let next = rpc.append_fact(&fixture.context, b"next").await.unwrap();
        assert_eq!(next.sequence, fixture.sequence + 1, "{}", fixture.name);
        assert_eq!(next.lamport_clock, newest + 1, "{}", fixture.name);

        // What was loaded is a prefix of what is there now: nothing to do.
        let again = rpc.load(&fixture.context, &fixture.blob, false).await.unwrap();
        assert_eq!(again.entries_restored, 0, "{}", fixture.name);
        let exists = rpc.load(&fixture.context, &fixture.blob, true).await.unwrap_err();
        assert_eq!(exists.code(), Code::AlreadyExists, "{}", fixture.name);

        // And it is as durable as what was appended.
        node.kill();
        let node = Node::start(data.path());
        let (history, _) = History::read_all(&node.rpc().await, &fixture.context).await.unwrap();
        assert_eq!(history.size(), fixture.sequence + 1, "{}", fixture.name);
        node.stop_cleanly();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_of_the_predecessor_moves_on_as_a_snapshot_of_ours() {
    let data = TempDir::new().unwrap();
    let node = Node::start(data.path());
    let rpc = node.rpc().await;
    for fixture in fixtures().into_iter().filter(|fixture| fixture.sequence > 0) {
        let (old, new) = (format!("old {}", fixture.name), format!("new {}", fixture.name));
        rpc.load(&old, &fixture.blob, true).await.unwrap();
        let snapshot = rpc.snapshot(&old).await.unwrap();
        rpc.load(&new, &snapshot, true).await.unwrap();
        let (_, before) = History::read_all(&rpc, &old).await.unwrap();
        let (_, after) = History::read_all(&rpc, &new).await.unwrap();
        let content = |entries: &[Entry]| {
            entries.iter().map(|e| (e.key.clone(), e.payload.clone(), e.metadata.clone())).collect::<Vec<_>>()
        };
        assert_eq!(content(&before), content(&after), "{}", fixture.name);
    }
    node.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_snapshot_is_refused_and_nothing_of_it_is_written() {
    let data = TempDir::new().unwrap();
    let node = Node::start(data.path());
    let rpc = node.rpc().await;
    let fixture = fixtures().into_iter().find(|fixture| fixture.name == "five-entries.etf").unwrap();
    let good = &fixture.blob;
    let mut bad: Vec<(String, Vec<u8>)> = Vec::new();
    for len in [0, 1, 2, good.len() / 2, good.len() - 1] {
        bad.push((format!("cut off after {len} bytes"), good[..len].to_vec()));
    }
    for at in (0..good.len()).step_by(7) {
        let mut blob = good.clone();
        blob[at] ^= 1;
        bad.push((format!("a flipped bit in byte {at}"), blob));
    }
    bad.push(("a byte too many".to_owned(), [good.as_slice(), b"x"].concat()));
    let mut accepted = Vec::new();
    for (number, (what, blob)) in bad.into_iter().enumerate() {
        let context = format!("tampered-{number}");
        if let Err(status) = rpc.load(&context, &blob, true).await {
            let expected = [Code::InvalidArgument, Code::DataLoss];
            assert!(expected.contains(&status.code()), "{what}: {status}");
            assert!(!status.message().is_empty(), "{what}");
            assert!(rpc.entries(&context, 0).await.unwrap().is_empty(), "{what}: something was written");
            continue;
        }
        // Some fields are in no hash of the predecessor's: ids and metadata, for one.
        let entries = rpc.entries(&context, 0).await.unwrap();
        for (entry, expected) in entries.iter().zip(&fixture.entries) {
            let got = as_listed(entry, true);
            assert_eq!(
                (got.sequence, &got.key, &got.payload, got.appended_at_ns),
                (expected.sequence, &expected.key, &expected.payload, expected.appended_at_ns),
                "{what}: hashed content changed and was accepted"
            );
        }
        accepted.push(what);
    }
    println!("accepted, outside of what the predecessor hashed: {accepted:?}");
    node.stop_cleanly();
}
