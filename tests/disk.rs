//! Disks that are full or read-only, and directories that are in use.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use ledger_tests::{
    History, Node, Refused,
    load::{self, Outcome, Progress},
    skip, until_async,
};
use tempfile::TempDir;
use tonic::Code;

/// A small file system of its own, unmounted when dropped.
struct Tmpfs(TempDir);

impl Tmpfs {
    /// `None`, with a message, where this user or container may not mount.
    fn mount(options: &str, for_what: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).output();
        match done {
            Ok(output) if output.status.success() => Some(Self(dir)),
            Ok(output) => {
                let reason = String::from_utf8_lossy(&output.stderr);
                skip(&format!("{for_what}: mounting a tmpfs failed (it needs root): {}", reason.trim()));
                None
            }
            Err(error) => {
                skip(&format!("{for_what}: there is no mount command: {error}"));
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn remount(&self, options: &str) {
        let done =
            Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0.path()).status();
        assert!(done.unwrap().success());
    }

    /// Takes all that is left.
    fn fill(&self) -> PathBuf {
        let path = self.0.path().join("rest");
        Self::fill_more(&path);
        path
    }

    fn fill_more(path: &Path) {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    /// Takes so much of its space.
    fn ballast(&self, bytes: usize) -> PathBuf {
        let path = self.0.path().join("ballast");
        fs::write(&path, vec![1; bytes]).unwrap();
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_appends_loses_nothing_and_recovers_without_a_restart() {
    let Some(disk) = Tmpfs::mount("size=96m", "disk full") else { return };
    let ballast = disk.ballast(40 << 20);
    let node = Node::start_with(&disk.path(), &["--write-buffer", "8MiB"]);
    let rpc = node.rpc().await;

    // Fill it: the load goes on until an append is refused.
    let contexts: Vec<String> = (0..8).map(|n| format!("full-{n}")).collect();
    let mut outcome = Outcome::default();
    let mut first_tag = 0;
    while outcome.refused.is_empty() {
        let progress = Progress::towards(5000);
        let running =
            tokio::spawn(load::stream(rpc.clone(), contexts.clone(), 1024, first_tag, Arc::clone(&progress)));
        tokio::select! {
            () = progress.reached() => {}
            () = refusals(&node) => {}
        }
        progress.stop();
        let done = running.await.unwrap();
        assert!(done.ended.is_none(), "a full disk must not end the stream: {:?}", done.ended);
        outcome.add(done);
        first_tag += 1 << 32;
    }
    assert!(outcome.count() > 1000, "some entries were acknowledged first");
    for (code, message) in &outcome.refused {
        assert_eq!(Code::from(*code), Code::Unavailable, "{message}");
        assert!(message.contains("no space left"), "{message}");
    }

    // While it is full: unary appends say the same, and reads go on.
    let status = rpc.append_fact("full-0", &vec![7; 100_000]).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("no space left"), "{status}");
    check(&node, &contexts, &outcome).await;

    // Space returns: appends work again, in the same process.
    fs::remove_file(ballast).unwrap();
    until_async("appends work again", async || rpc.append_fact("full-0", b"after").await.ok()).await;
    for context in &contexts {
        rpc.append_fact(context, b"and go on").await.unwrap();
    }
    check(&node, &contexts, &outcome).await;

    // And what was acknowledged is on the disk, not only in memory.
    node.kill();
    let node = Node::start_with(&disk.path(), &["--write-buffer", "8MiB"]);
    check(&node, &contexts, &outcome).await;
    node.stop_cleanly();
}

/// Takes all inodes that are left.
fn fill_with_files(place: &Path) {
    fs::create_dir(place).unwrap();
    let mut number = 0;
    while fs::File::create(place.join(number.to_string())).is_ok() {
        number += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_in_another_way_than_by_its_bytes_is_met_in_the_same_way() {
    let Some(disk) = Tmpfs::mount("size=256m,nr_inodes=512", "no inodes left") else { return };
    let node = Node::start_with(&disk.path(), &["--write-buffer", "8MiB"]);
    let rpc = node.rpc().await;
    rpc.append_fact("small", b"before").await.unwrap();
    let inodes = disk.0.path().join("inodes");
    fill_with_files(&inodes);
    // Until its database needs a new file.
    let payload = vec![7; 200_000];
    let refused =
        until_async("an append is refused", async || rpc.append_fact("large", &payload).await.err()).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("no space left"), "{refused}");

    // It finds out that bytes are not what is missing, and reads go on, each at once.
    let read = async || {
        let asked = Instant::now();
        assert_eq!(rpc.entries("small", 0).await.unwrap().len(), 1);
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    };
    until_async("it looks whether files can be made", async || {
        read().await;
        node.log().contains("takes no new files").then_some(())
    })
    .await;
    for _ in 0..200 {
        read().await;
    }
    assert_eq!(node.metric("ledger_store_writable"), Some(0.0));

    fs::remove_dir_all(inodes).unwrap();
    until_async("appends work again", async || rpc.append_fact("small", b"after").await.ok()).await;
    assert_eq!(rpc.entries("small", 0).await.unwrap().len(), 2);
    node.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_does_not_fit_leaves_appends_their_space() {
    let Some(disk) = Tmpfs::mount("size=128m", "a load that does not fit") else { return };
    let node = Node::start_with(&disk.path(), &["--write-buffer", "8MiB"]);
    let rpc = node.rpc().await;
    rpc.append_fact("small", b"before").await.unwrap();
    let elsewhere = TempDir::new().unwrap();
    let snapshot = elsewhere.path().join("snapshot");
    tokio::task::block_in_place(|| {
        large_snapshot(&elsewhere.path().join("source"), &snapshot, 200 << 20);
    });
    let (code, _, said) = node.ctl(&["load", "large", snapshot.to_str().unwrap()]);
    assert!(code != 0 && said.contains("no space left"), "{code}: {said}");

    // Nobody frees anything, and nobody restarts it.
    until_async("appends go on", async || rpc.append_fact("small", b"after").await.ok()).await;
    for _ in 0..20 {
        rpc.append_fact("small", &vec![7; 100_000]).await.unwrap();
    }
    let (code, ..) = node.ctl(&["get", "large"]);
    assert_eq!(code, 7, "nothing of it is there");
    node.stop_cleanly();
}

/// Writes a snapshot of a context of so many bytes that nothing compresses.
fn large_snapshot(source: &Path, snapshot: &Path, bytes: usize) {
    let ledger = ledger_store::Ledger::open(source).unwrap();
    let context = ledger_store::ContextId::new("large").unwrap();
    let mut payload = vec![0; 1 << 20];
    for _ in 0..bytes.div_ceil(payload.len()) {
        rand::fill(&mut payload[..]);
        let draft = ledger_store::Draft {
            key: ledger_store::Key::new("facts").unwrap(),
            payload: payload.clone().into(),
            metadata: [].into(),
        };
        ledger.append(&context, draft).unwrap();
    }
    let mut file = fs::File::create(snapshot).unwrap();
    for chunk in ledger.snapshot(&context).unwrap() {
        file.write_all(&chunk.unwrap()).unwrap();
    }
    ledger.close().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_killed_on_a_full_disk_comes_back_with_everything() {
    let Some(disk) = Tmpfs::mount("size=96m", "crash on a full disk") else { return };
    let ballast = disk.ballast(56 << 20);
    let node = Node::start_with(&disk.path(), &["--write-buffer", "8MiB"]);
    let contexts: Vec<String> = (0..4).map(|n| format!("full-{n}")).collect();
    let progress = Progress::towards(u64::MAX);
    let running =
        tokio::spawn(load::stream(node.rpc().await, contexts.clone(), 512, 0, Arc::clone(&progress)));
    refusals(&node).await;
    node.kill();
    let outcome = running.await.unwrap();
    // Not a byte is left; what it needs to start it holds in reserve.
    let rest = disk.fill();
    for _ in 0..3 {
        let node = Node::start_with(&disk.path(), &["--write-buffer", "8MiB"]);
        check(&node, &contexts, &outcome).await;
        let rpc = node.rpc().await;
        let refused = until_async("an append is refused", async || {
            // Others take what it removes, which a failed write may have left.
            Tmpfs::fill_more(&rest);
            match rpc.append_fact("full-0", b"not now").await {
                Ok(_) => None,
                Err(refused) => Some(refused).filter(|refused| refused.message().contains("MiB are free")),
            }
        })
        .await;
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        node.kill();
    }
    let node = Node::start_with(&disk.path(), &["--write-buffer", "8MiB"]);
    fs::remove_file(rest).unwrap();
    fs::remove_file(ballast).unwrap();
    let goes_on = async || node.rpc().await.append_fact("full-0", b"and goes on").await.ok();
    until_async("appends work again, without a restart", goes_on).await;
    check(&node, &contexts, &outcome).await;
    node.stop_cleanly();
}

/// Waits until the node has refused an append.
async fn refusals(node: &Node) {
    until_async("the disk is full", async || {
        let text = tokio::task::block_in_place(|| node.http_get("/metrics"));
        text.lines()
            .any(|line| line.starts_with("ledger_store_failed_commits_total") && !line.ends_with(" 0"))
            .then_some(())
    })
    .await;
}

/// Everything acknowledged is there, and every history verifies.
async fn check(node: &Node, contexts: &[String], outcome: &Outcome) {
    let rpc = node.rpc().await;
    for context in contexts {
        let (_, entries) = History::read_all(&rpc, context).await.unwrap();
        outcome.assert_kept(context, &entries);
    }
}

fn refused(data: &Path) -> Refused {
    match Node::try_start(data, &[]) {
        Ok(_) => panic!("the node started on {}", data.display()),
        Err(refused) => refused,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_directory_is_refused_with_a_plain_message() {
    let Some(disk) = Tmpfs::mount("size=64m", "read-only directory") else { return };
    let node = Node::start(&disk.path());
    node.rpc().await.append_fact("c", b"before").await.unwrap();
    node.stop_cleanly();

    disk.remount("ro");
    let Refused { status, log } = refused(&disk.path());
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains(&disk.path().display().to_string()), "it names the directory: {log}");
    assert!(log.contains("cannot be written"), "it says what is wrong: {log}");
    assert!(!log.contains("panicked"), "{log}");

    disk.remount("rw");
    let node = Node::start(&disk.path());
    assert_eq!(node.rpc().await.entries("c", 0).await.unwrap().len(), 1);
    node.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_a_directory_is_refused_and_the_first_goes_on() {
    let data = TempDir::new().unwrap();
    let node = Node::start(data.path());
    let rpc = node.rpc().await;
    rpc.append_fact("c", b"before").await.unwrap();

    let Refused { status, log } = refused(data.path());
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains(&data.path().display().to_string()), "it names the directory: {log}");
    assert!(log.contains("another process"), "it says why: {log}");

    rpc.append_fact("c", b"after").await.unwrap();
    node.stop_cleanly();
    let node = Node::start(data.path());
    let (history, _) = History::read_all(&node.rpc().await, "c").await.unwrap();
    assert_eq!(history.size(), 2);
    node.stop_cleanly();
}

#[test]
fn a_file_in_place_of_the_directory_is_refused_with_a_plain_message() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "not a directory").unwrap();
    let Refused { status, log } = refused(&path);
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains(&path.display().to_string()) && !log.contains("panicked"), "{log}");
    assert_eq!(fs::read_to_string(path).unwrap(), "not a directory");
}
