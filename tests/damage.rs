//! A flipped byte in a stopped node's files: found, named, never served as good.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use ledger_proto::context::v1::{AppendRequest, Entry, GetRequest, SnapshotRequest, WatchRequest};
use ledger_tests::{History, Node, Rpc, load::payload, setting, until};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tempfile::TempDir;
use tonic::{Code, Status};

const ENTRIES: u64 = 700;
const DAMAGED: u64 = 345;

/// A data directory, cleanly closed, with `ENTRIES` entries in "damaged" and in "intact".
async fn written() -> (TempDir, Vec<Entry>, Vec<u8>) {
    let data = TempDir::new().unwrap();
    let node = Node::start(data.path());
    let rpc = node.rpc().await;
    for tag in 1..=ENTRIES {
        for context in ["damaged", "intact"] {
            let request = AppendRequest {
                context_id: context.to_owned(),
                key: format!("key-{}", tag % 7),
                payload: if context == "damaged" { payload(tag) } else { Bytes::from(format!("fact {tag}")) },
                ..AppendRequest::default()
            };
            rpc.append(request).await.unwrap();
        }
    }
    let (_, entries) = History::read_all(&rpc, "damaged").await.unwrap();
    let snapshot = rpc.snapshot("damaged").await.unwrap();
    node.stop_cleanly();
    (data, entries, snapshot)
}

/// The files that RocksDB keeps entries in.
fn tables(dir: &Path) -> Vec<PathBuf> {
    files(dir, "sst")
}

/// All files with an extension.
fn files(dir: &Path, wanted: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for file in fs::read_dir(dir).unwrap().flatten() {
        let path = file.path();
        if path.is_dir() {
            found.extend(files(&path, wanted));
        } else if path.extension().is_some_and(|extension| extension == wanted) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Flips a bit in the middle of the payload of one entry of "damaged", where a table file holds it.
fn flip_in_payload(data: &Path, sequence: u64) {
    let wanted = payload(sequence);
    for path in tables(data) {
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted) {
            bytes[at + wanted.len() / 2] ^= 0x10;
            return fs::write(&path, bytes).unwrap();
        }
    }
    panic!("no table file holds the payload of entry {sequence} as it was written");
}

/// Checks that an error is of the right kind and names the context and a sequence up to the damaged one, in
/// whose block the flipped byte is.
fn assert_names_the_damage(status: &Status) -> u64 {
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    let message = status.message();
    assert!(message.contains("context damaged "), "{message}");
    let (_, after) = message.split_once("sequence ").unwrap_or_else(|| panic!("no sequence in: {message}"));
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    let named = digits.parse().unwrap_or_else(|_| panic!("no sequence in: {message}"));
    assert!((1..=DAMAGED).contains(&named), "{message}");
    named
}

/// Reads by every way there is; all of them must refuse.
async fn read_every_way(rpc: &Rpc) -> Vec<Status> {
    let get = GetRequest { context_id: "damaged".to_owned(), ..GetRequest::default() };
    let filtered = GetRequest { key: format!("key-{}", DAMAGED % 7), ..get.clone() };
    let snapshot = SnapshotRequest { context_id: "damaged".to_owned() };
    let watch = WatchRequest { context_id: "damaged".to_owned(), ..WatchRequest::default() };
    let mut refused = vec![
        rpc.context.clone().get(get).await.unwrap_err(),
        rpc.context.clone().get(filtered).await.unwrap_err(),
        rpc.context.clone().snapshot(snapshot).await.unwrap_err(),
        rpc.entries("damaged", 0).await.unwrap_err(),
    ];
    refused.push(match rpc.context.clone().watch(watch).await {
        Err(status) => status,
        Ok(events) => {
            let mut events = events.into_inner();
            loop {
                match events.message().await {
                    Err(status) => break status,
                    Ok(Some(event)) => {
                        let entry = event.entry.expect("no bookmarks were asked for");
                        assert!(entry.sequence < DAMAGED, "entry {} was served as good", entry.sequence);
                        assert_eq!(entry.payload, payload(entry.sequence));
                    }
                    Ok(None) => panic!("the watch ended as if it were complete"),
                }
            }
        }
    });
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_found_by_reading_and_named_and_other_contexts_go_on() {
    let (data, expected, snapshot) = written().await;
    flip_in_payload(data.path(), DAMAGED);
    // Without the scrub: it is the read that finds it.
    let node = Node::start_with(data.path(), &["--scrub-rate", "0"]);
    let rpc = node.rpc().await;
    for status in read_every_way(&rpc).await {
        assert_names_the_damage(&status);
    }
    let (intact, _) = History::read_all(&rpc, "intact").await.unwrap();
    assert_eq!(intact.size(), ENTRIES);
    rpc.append_fact("intact", b"one more").await.unwrap();
    // A good copy heals it: under another name, and in place.
    assert_eq!(rpc.load("restored", &snapshot, true).await.unwrap().latest_sequence, ENTRIES);
    assert_eq!(History::read_all(&rpc, "restored").await.unwrap().0.size(), ENTRIES);
    rpc.load("damaged", &snapshot, false).await.unwrap();
    assert_eq!(History::read_all(&rpc, "damaged").await.unwrap().1, expected);
    node.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_found_by_the_scrub_without_a_read() {
    let (data, _, _) = written().await;
    flip_in_payload(data.path(), DAMAGED);
    let node = Node::start_with(data.path(), &["--scrub-rate", "1GiB"]);
    until("the scrub reports the damage", || {
        (node.metric("ledger_store_quarantined_contexts")? >= 1.0).then_some(())
    });
    let log = node.log();
    assert!(log.contains("damaged") && log.contains("sequence"), "the log names the damage:\n{log}");
    let rpc = node.rpc().await;
    for status in read_every_way(&rpc).await {
        assert_names_the_damage(&status);
    }
    assert_eq!(History::read_all(&rpc, "intact").await.unwrap().0.size(), ENTRIES);
    node.stop_cleanly();
}

/// The law of damage, for any byte of any table file: a node either says at once that its directory is damaged,
/// or serves each entry as it was written or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn no_flipped_byte_of_any_file_is_ever_served_as_good() {
    let (data, expected, _) = written().await;
    let mut random = SmallRng::seed_from_u64(setting("LEDGERTEST_DAMAGE_SEED", 1));
    let tables = tables(data.path());
    assert!(!tables.is_empty());
    let (mut refused, mut by_read, mut by_scrub, mut unused) = (0, 0, 0, Vec::new());
    let rounds = usize::try_from(setting("LEDGERTEST_DAMAGE_ROUNDS", 30)).unwrap();
    for round in 0..rounds {
        let path = &tables[round % tables.len()];
        let good = fs::read(path).unwrap();
        let (at, bit) = (random.random_range(0..good.len()), random.random_range(0..8));
        let place = format!("byte {at}, bit {bit} of {}", path.file_name().unwrap().display());
        let copy = TempDir::new().unwrap();
        copy_all(data.path(), copy.path());
        let mut bad = good;
        bad[at] ^= 1 << bit;
        fs::write(copy.path().join(path.strip_prefix(data.path()).unwrap()), bad).unwrap();

        let node = match Node::try_start(copy.path(), &["--scrub-rate", "1GiB"]) {
            Ok(node) => node,
            Err(error) => {
                refused += 1;
                assert_eq!(error.status.code(), Some(3), "{place}: {}", error.log);
                let named = error.log.contains("damaged");
                assert!(named && !error.log.contains("panicked"), "{place}: {}", error.log);
                continue;
            }
        };
        let rpc = node.rpc().await;
        let mut found = false;
        for (context, expected) in [("damaged", Some(&expected)), ("intact", None)] {
            let read = History::read_all(&rpc, context).await;
            match read {
                Ok((_, entries)) => {
                    assert!(
                        expected.is_none_or(|good| *good == entries),
                        "{place}: something else was served"
                    );
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::DataLoss, "{place}: {status}");
                    assert!(status.message().contains(&format!("context {context} ")), "{place}: {status}");
                    found = true;
                }
            }
        }
        if found {
            by_read += 1;
        } else {
            until("the scrub has read everything", || node.log().contains("scrub pass done").then_some(()));
            if node.metric("ledger_store_quarantined_contexts") >= Some(1.0) {
                by_scrub += 1;
            } else {
                unused.push(place);
            }
        }
        node.kill();
    }
    // Some bytes mean nothing to anyone, as those of a table's statistics.
    assert!(unused.len() <= 2 + rounds / 10, "too much is found by nobody: {unused:#?}");
    println!(
        "{refused} refused at the start, {by_read} found by reading, {by_scrub} by the scrub, {} in nothing that is used: {unused:#?}",
        unused.len()
    );
}

/// The same law for the write-ahead log of a killed node: a node that starts serves all that was acknowledged, the last
/// record included, and one that cannot says what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn no_flipped_byte_of_the_log_is_ever_served_as_good() {
    let data = TempDir::new().unwrap();
    let node = Node::start(data.path());
    let rpc = node.rpc().await;
    for tag in 1..=100 {
        rpc.append_fact("logged", &payload(tag)).await.unwrap();
    }
    let expected = rpc.entries("logged", 0).await.unwrap();
    node.kill();
    let logs = files(data.path(), "log");
    assert!(!logs.is_empty(), "a killed node leaves a log");
    let log = logs.iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let good = fs::read(log).unwrap();
    let mut random = SmallRng::seed_from_u64(setting("LEDGERTEST_DAMAGE_SEED", 1));
    let (mut refused, mut unused) = (0, 0);
    for _ in 0..setting("LEDGERTEST_DAMAGE_ROUNDS", 30) {
        let (at, bit) = (random.random_range(0..good.len()), random.random_range(0..8));
        let place = format!("byte {at} of {}, bit {bit} of the log", good.len());
        let copy = TempDir::new().unwrap();
        copy_all(data.path(), copy.path());
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        fs::write(copy.path().join(log.strip_prefix(data.path()).unwrap()), bad).unwrap();
        match Node::try_start(copy.path(), &[]) {
            Err(error) => {
                refused += 1;
                assert_eq!(error.status.code(), Some(3), "{place}: {}", error.log);
                let is_named = error.log.contains("damaged") || error.log.contains("cut short");
                assert!(is_named && !error.log.contains("panicked"), "{place}: {}", error.log);
            }
            Ok(node) => {
                let (_, entries) = History::read_all(&node.rpc().await, "logged").await.unwrap();
                assert_eq!(entries, expected, "{place}: something else was served");
                unused += 1;
                node.kill();
            }
        }
    }
    assert!(refused > 0, "damage of the log goes unnoticed");
    println!("{refused} refused at the start, {unused} in nothing that is used");
}

fn copy_all(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(file.file_name());
        if file.path().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_all(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}
