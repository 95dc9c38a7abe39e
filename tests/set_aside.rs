//! A member of a cluster whose directory lost something joins as new by itself, once, if the others hold everything.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{fs, path::Path};

use ledger_tests::{Node, cluster::Cluster, load::payload, until_async};

const CONTEXTS: usize = 20;

async fn append_all(node: &Node, round: u64) {
    let rpc = node.rpc().await;
    for context in 0..CONTEXTS {
        until_async("an append is taken", async || {
            rpc.append_fact(&format!("c{context}"), &payload(round)).await.ok()
        })
        .await;
    }
}

async fn assert_all(node: &Node, rounds: usize) {
    let rpc = node.rpc().await.from_itself();
    for context in 0..CONTEXTS {
        let name = format!("c{context}");
        let read = async || Some(rpc.entries(&name, 0).await.ok()?.len()).filter(|len| *len >= rounds);
        assert_eq!(until_async("the node shows all entries", read).await, rounds, "{name}");
    }
}

fn remove_current(data: &Path) {
    fs::remove_file(data.join("db/CURRENT")).unwrap();
}

/// The log as a power cut of a disk that lies leaves it: acknowledged entries are missing at its end.
fn cut_log(data: &Path) {
    let logs = fs::read_dir(data.join("db")).unwrap().flatten().map(|file| file.path());
    let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let log = logs.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let half = fs::metadata(&log).unwrap().len() / 2;
    fs::File::options().write(true).open(log).unwrap().set_len(half).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_cannot_open_its_directory_keeps_it_and_joins_as_new_once() {
    for damage in [remove_current, cut_log] {
        let mut cluster = Cluster::start(3, &["--lanes", "1"]);
        append_all(cluster.node(0), 1).await;
        cluster.kill(2);
        let data = cluster.data_dir(2);
        damage(&data);
        append_all(cluster.node(0), 2).await;

        cluster.restart(2);
        let log = cluster.node(2).log();
        assert!(log.contains("is set aside") && log.contains("set-aside"), "{log}");
        assert!(data.join("set-aside/db").exists() && data.join("set-aside/WHY").exists());
        assert!(data.join("db/CURRENT").exists());
        cluster.settle();
        append_all(cluster.node(1), 3).await;
        assert_all(cluster.node(2), 3).await;

        // A second time it is left to who looks at the disk.
        cluster.kill(2);
        remove_current(&data);
        for _ in 0..2 {
            let refused = cluster.try_restart(2).unwrap_err();
            assert_eq!(refused.status.code(), Some(3), "{}", refused.log);
            assert!(refused.log.contains("that was done before"), "{}", refused.log);
        }
        fs::remove_dir_all(data.join("set-aside")).unwrap();
        cluster.restart(2);
        cluster.settle();
        assert_all(cluster.node(2), 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_peers_do_not_hold_everything_keeps_its_directory_where_it_is() {
    let mut cluster = Cluster::start(3, &["--lanes", "1"]);
    append_all(cluster.node(0), 1).await;
    // One of three is left, and takes over nothing.
    cluster.kill(1);
    cluster.kill(2);
    let data = cluster.data_dir(2);
    let current = fs::read(data.join("db/CURRENT")).unwrap();
    remove_current(&data);
    let refused = cluster.try_restart(2).unwrap_err();
    assert_eq!(refused.status.code(), Some(3), "{}", refused.log);
    for said in ["was not set aside", "1024 of 1024 slots have no owner", "no answer of n1"] {
        assert!(refused.log.contains(said), "{said}: {}", refused.log);
    }
    assert!(!data.join("set-aside").exists());

    fs::write(data.join("db/CURRENT"), current).unwrap();
    cluster.restart(2);
    append_all(cluster.node(2), 2).await;
    assert_all(cluster.node(2), 2).await;
}
