//! A data directory that lost something: a ledger is never created over remains, and what was durable is not forgotten.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use ledger_tests::{Node, load::payload};
use tempfile::TempDir;

const ENTRIES: u64 = 60;

/// The directory of a node that was killed after it acknowledged `ENTRIES` entries.
async fn killed() -> TempDir {
    let data = TempDir::new().unwrap();
    let node = Node::start(data.path());
    let rpc = node.rpc().await;
    for tag in 1..=ENTRIES {
        rpc.append_fact("c", &payload(tag)).await.unwrap();
    }
    node.kill();
    data
}

/// What is below a directory, with sizes; without what a start always writes.
fn listing(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .filter(|file| !file.file_name().to_string_lossy().starts_with("LOG"))
        .flat_map(|file| {
            let path = file.path();
            if path.is_dir() { listing(&path) } else { vec![(path, file.metadata().unwrap().len())] }
        })
        .collect();
    found.sort();
    found
}

/// Starts twice, as supervisors do; both must be refused the same way, and nothing may be touched.
fn assert_refused(data: &Path, named: &[&str]) -> String {
    let before = listing(data);
    let mut said = String::new();
    for start in 1..=2 {
        let refused = Node::try_start(data, &[]).expect_err("a ledger was created over what was left of one");
        assert_eq!(refused.status.code(), Some(3), "start {start}: {}", refused.log);
        for part in named {
            assert!(refused.log.contains(part), "start {start} names {part}: {}", refused.log);
        }
        said = refused.log;
    }
    assert_eq!(listing(data), before);
    said
}

async fn size(node: &Node) -> usize {
    node.rpc().await.entries("c", 0).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_current_is_refused_at_every_start_and_opens_when_it_is_back() {
    let data = killed().await;
    let (current, away) = (data.path().join("db/CURRENT"), data.path().join("away"));
    fs::rename(&current, &away).unwrap();
    assert_refused(data.path(), &["CURRENT"]);
    // The same for a directory of a build that had no marker.
    let marker = data.path().join("LEDGER");
    let kept = fs::read(&marker).unwrap();
    fs::remove_file(&marker).unwrap();
    assert_refused(data.path(), &["CURRENT"]);
    fs::write(&marker, kept).unwrap();

    fs::rename(&away, &current).unwrap();
    let node = Node::start(data.path());
    assert_eq!(size(&node).await as u64, ENTRIES);
    node.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_database_is_no_new_one() {
    let data = killed().await;
    fs::remove_dir_all(data.path().join("db")).unwrap();
    assert_refused(data.path(), &["LEDGER"]);
    fs::create_dir(data.path().join("db")).unwrap();
    assert_refused(data.path(), &["LEDGER"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_an_older_build_opens_and_is_marked() {
    let data = killed().await;
    for file in ["LEDGER", "DURABLE"] {
        fs::remove_file(data.path().join(file)).unwrap();
    }
    let node = Node::start(data.path());
    assert_eq!(size(&node).await as u64, ENTRIES);
    node.stop_cleanly();
    fs::remove_file(data.path().join("db/CURRENT")).unwrap();
    assert_refused(data.path(), &["CURRENT"]);
}

/// The newest write-ahead log.
fn log(data: &Path) -> PathBuf {
    let logs = fs::read_dir(data.join("db")).unwrap().flatten().map(|file| file.path());
    let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_cut_short_is_noticed_and_only_an_explicit_number_goes_on_without_it() {
    type Cut = fn(&Path, u64);
    let cuts: [(&str, Cut); 3] = [
        ("by 100 bytes", |log, len| {
            fs::File::options().write(true).open(log).unwrap().set_len(len - 100).unwrap();
        }),
        ("by half", |log, len| fs::File::options().write(true).open(log).unwrap().set_len(len / 2).unwrap()),
        ("deleted", |log, _| fs::remove_file(log).unwrap()),
    ];
    for (how, cut) in cuts {
        let data = killed().await;
        let log = log(data.path());
        cut(&log, fs::metadata(&log).unwrap().len());
        let mut said = String::new();
        // As supervisors do: the second start must not take what the first left for all there was.
        for start in 1..=2 {
            let refused = Node::try_start(data.path(), &[]).expect_err(how);
            assert_eq!(refused.status.code(), Some(3), "{how}, start {start}: {}", refused.log);
            said = refused.log;
        }
        assert!(said.contains("cut short") && said.contains("missing"), "{how}: {said}");
        let number = said.split_once("accept_lost_writes = ").expect(&said).1;
        let number: u64 =
            number.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();

        // Another number accepts nothing.
        let other = (number + 1).to_string();
        let refused = Node::try_start(data.path(), &["--accept-lost-writes", &other]).expect_err(how);
        assert_eq!(refused.status.code(), Some(3), "{how}: {}", refused.log);

        let node = Node::start_with(data.path(), &["--accept-lost-writes", &number.to_string()]);
        assert!(node.log().contains("given up"), "{how}: {}", node.log());
        let left = size(&node).await as u64;
        assert!(left < ENTRIES, "{how}: {left}");
        node.rpc().await.append_fact("c", b"goes on").await.unwrap();
        node.kill();
        let node = Node::start(data.path());
        assert_eq!(size(&node).await as u64, left + 1, "{how}");
        node.stop_cleanly();
    }
}

/// The last record of a log in RocksDB's format: blocks of 32 KiB; a record has a checksum (4 bytes), a length (2, little endian)
/// and a type (1) before its bytes, and leaves a tail shorter than that empty.
fn last_record(log: &[u8]) -> &[u8] {
    const BLOCK: usize = 32 << 10;
    const HEADER: usize = 7;
    let (mut at, mut last) = (0, None);
    while at + HEADER <= log.len() {
        let left = BLOCK - at % BLOCK;
        if left < HEADER {
            at += left;
            continue;
        }
        let len = HEADER + usize::from(u16::from_le_bytes([log[at + 4], log[at + 5]]));
        last = Some(at..at + len);
        at += len;
    }
    &log[last.unwrap()]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_last_record_that_nobody_was_told_of_keeps_no_node_from_starting() {
    for with_old_bytes in [false, true] {
        let data = killed().await;
        let log = log(data.path());
        let mut bytes = fs::read(&log).unwrap();
        // As a power cut may leave one more record: its first half, then nothing, or what was there before.
        let record = last_record(&bytes).to_vec();
        let (half, rest) = record.split_at(record.len() / 2);
        let after =
            if with_old_bytes { bytes[1000..1000 + rest.len()].to_vec() } else { vec![0; rest.len()] };
        bytes.extend(half);
        bytes.extend(after);
        fs::write(&log, &bytes).unwrap();
        let node = Node::start(data.path());
        assert_eq!(size(&node).await as u64, ENTRIES);
        assert!(node.log().contains("not whole"), "{}", node.log());
        node.rpc().await.append_fact("c", b"goes on").await.unwrap();
        node.kill();
        let node = Node::start(data.path());
        assert_eq!(size(&node).await as u64, ENTRIES + 1);
        node.stop_cleanly();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_writes_is_for_its_owner_alone_and_what_is_open_to_others_is_warned_of() {
    let parent = TempDir::new().unwrap();
    let data = parent.path().join("data");
    let node = Node::start(&data);
    node.rpc().await.append_fact("c", b"secret").await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    for (path, _) in listing(&data) {
        assert_eq!(mode(&path) & 0o077, 0, "{} has mode {:o}", path.display(), mode(&path));
    }
    assert!(!node.log().contains("others can"), "{}", node.log());
    node.stop_cleanly();

    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    let node = Node::start(&data);
    let log = node.log();
    assert!(log.contains("others can") && log.contains(&data.display().to_string()), "{log}");
    node.stop_cleanly();
}
