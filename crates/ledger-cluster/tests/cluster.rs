//! Three nodes: every append is on all of them, whoever is killed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{net::SocketAddr, path::Path, sync::atomic::Ordering, time::Duration};

use ledger_cluster::{ClusterConfig, Reidentified, membership::seal::Keyring, ownership::routes::SlotOwner};
use ledger_core::slot::{SLOTS, Slot};
use ledger_store::{Append, ContextId, Draft, Key, StoreError, WriteQuorum};
use support::{DEADLINE, Node, append, owner, payloads, until};

fn context(name: &str) -> ContextId {
    ContextId::new(name).unwrap()
}

async fn three(dirs: &[tempfile::TempDir]) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for (number, dir) in dirs.iter().enumerate() {
        let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
        nodes.push(Node::start(&format!("n{number}"), dir.path(), &seeds).await);
    }
    until("every slot has an owner", || owned(&nodes) == usize::from(SLOTS)).await;
    nodes
}

fn owned(nodes: &[Node]) -> usize {
    nodes.iter().map(|node| node.cluster.routes().borrow().owned()).sum()
}

fn dirs(count: usize) -> Vec<tempfile::TempDir> {
    (0..count).map(|_| tempfile::tempdir().unwrap()).collect()
}

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

/// Waits until every node gives these entries.
async fn read_everywhere(nodes: &[Node], context: &ContextId, expected: &[String]) {
    for node in nodes {
        let name = &node.cluster.me().node;
        until("the entries are read", || {
            let found = payloads(node, context);
            tracing::debug!(%name, owns = node.owns(Slot::of(context)), found = ?found.as_ref().map(Vec::len), expected = expected.len());
            found.is_ok_and(|found| found == expected)
        })
        .await;
    }
}

/// Kills the node that owns a context; gives its number.
async fn kill_owner(nodes: &mut Vec<Node>, context: &ContextId) -> usize {
    let at = nodes.iter().position(|node| std::ptr::eq(node, owner(nodes, context).unwrap())).unwrap();
    let number = nodes[at].cluster.me().node.to_string()[1..].parse().unwrap();
    nodes.remove(at).kill().await;
    number
}

/// Starts a node again, on its disk.
async fn restart(nodes: &mut Vec<Node>, dirs: &[tempfile::TempDir], number: usize) {
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
    nodes.push(Node::start(&format!("n{number}"), dirs[number].path(), &seeds).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_at_the_owner_is_read_on_every_node() {
    log();
    let dirs = dirs(3);
    let nodes = three(&dirs).await;
    for name in ["a", "b", "c", "d"] {
        let context = context(name);
        let expected: Vec<String> = (0..5).map(|number| format!("{name}{number}")).collect();
        for text in &expected {
            append(&nodes, &context, text).await;
        }
        read_everywhere(&nodes, &context, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_is_killed_and_nothing_acknowledged_is_lost() {
    log();
    let dirs = dirs(3);
    let mut nodes = three(&dirs).await;
    let context = context("a");
    let mut expected = Vec::new();
    for round in 0..3 {
        for number in 0..20 {
            let text = format!("{round}-{number}");
            append(&nodes, &context, &text).await;
            expected.push(text);
        }
        let number = kill_owner(&mut nodes, &context).await;
        let text = format!("{round}-after");
        let begun = std::time::Instant::now();
        append(&nodes, &context, &text).await;
        eprintln!("first append after the owner was killed: {:?}", begun.elapsed());
        expected.push(text);
        restart(&mut nodes, &dirs, number).await;
        read_everywhere(&nodes, &context, &expected).await;
    }
}

/// Text that does not compress.
fn random(seed: &str) -> String {
    blake3::hash(seed.as_bytes()).to_string()
}

/// Flips a bit of an entry in the tables that hold it.
fn damage(dir: &std::path::Path, text: &str) {
    let files = std::fs::read_dir(dir.join("db")).unwrap().map(|file| file.unwrap().path());
    let mut damaged = 0;
    for table in files.filter(|path| path.extension().is_some_and(|extension| extension == "sst")) {
        let mut bytes = std::fs::read(&table).unwrap();
        // Its id has the same bytes, and is in another family.
        let places: Vec<usize> = bytes
            .windows(text.len())
            .enumerate()
            .filter(|(_, at)| *at == text.as_bytes())
            .map(|(at, _)| at)
            .collect();
        for at in &places {
            bytes[at + 1] ^= 1;
        }
        damaged += places.len();
        std::fs::write(table, bytes).unwrap();
    }
    assert!(damaged > 0, "no table holds {text} as it was written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_disk_damaged_is_restored_from_another_node() {
    log();
    let dirs = dirs(3);
    let mut nodes = three(&dirs).await;
    let context = context("a");
    let mut expected: Vec<String> = (0..600_u32).map(|number| random(&number.to_string())).collect();
    for text in &expected {
        append(&nodes, &context, text).await;
    }
    // The owner, which has its slots again when it is back, and then one that follows it.
    for is_owner in [true, false] {
        let owner_of = |nodes: &[Node]| owner(nodes, &context).map(|node| node.cluster.me().node.to_string());
        until("the slot has an owner", || owner_of(&nodes).is_some()).await;
        let found = owner_of(&nodes).unwrap();
        let at =
            nodes.iter().position(|node| (node.cluster.me().node.as_str() == found) == is_owner).unwrap();
        let number: usize = nodes[at].cluster.me().node.to_string()[1..].parse().unwrap();
        read_everywhere(&nodes, &context, &expected).await;
        nodes.remove(at).kill().await;
        damage(dirs[number].path(), &expected[300]);
        restart(&mut nodes, &dirs, number).await;
        if is_owner {
            until("the slot returns", || nodes[2].owns(ledger_core::slot::Slot::of(&context))).await;
        }
        let ledger = nodes[2].ledger.clone();
        let (scrubbed, of) = (ledger.clone(), context.clone());
        tokio::task::spawn_blocking(move || scrubbed.scrub(&of)).await.unwrap().unwrap();
        let healed = || nodes[2].cluster.counters().healed.load(std::sync::atomic::Ordering::Relaxed);
        assert!(ledger.is_damaged(&context) || healed() > 0, "a flipped bit is found");
        let text = random(&format!("while {number} is damaged"));
        append(&nodes, &context, &text).await;
        expected.push(text);
        until("the context is restored", || healed() > 0).await;
        assert!(!ledger.is_damaged(&context));
        read_everywhere(&nodes, &context, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_gets_the_copies_that_it_asks_for_and_is_told() {
    log();
    let dirs = dirs(3);
    let mut nodes = three(&dirs).await;
    let context = context("copies");
    append(&nodes, &context, "first").await;
    let node = owner(&nodes, &context).unwrap();
    until("all members hold the slot", || {
        let routes = node.cluster.routes();
        let routes = routes.borrow();
        routes.get(Slot::of(&context)).is_some_and(|route| route.in_sync.len() == 3)
    })
    .await;
    let all = node.append_with(&context, "all", WriteQuorum::All).await.unwrap();
    assert_eq!(all.copies, 3);
    assert!(node.append_with(&context, "most", WriteQuorum::Majority).await.unwrap().copies >= 2);

    let me = node.cluster.me().node.clone();
    while let Some(other) = nodes.iter().position(|node| node.cluster.me().node != me) {
        nodes.remove(other).kill().await;
    }
    // The others are gone, so only one copy can be had: it is acknowledged, and shown to nobody.
    let one = nodes[0].append_with(&context, "one", WriteQuorum::One).await.unwrap();
    assert_eq!(one.copies, 1);
    if let Ok(shown) = payloads(&nodes[0], &context) {
        assert_eq!(shown, ["first", "all", "most"]);
    }
    // Nobody waits for ever for two: who asks is told so, and why.
    let two = nodes[0].append_with(&context, "two", WriteQuorum::Configured);
    let two = tokio::time::timeout(Duration::from_secs(30), two).await.unwrap();
    assert!(matches!(two, Err(StoreError::NotAcknowledged)), "{two:?}");
    until("it is known why nobody owns the slot", || {
        let routes = nodes[0].cluster.routes();
        let routes = routes.borrow();
        let route = routes.get(Slot::of(&context));
        route.is_some_and(
            |route| matches!(&route.owner, SlotOwner::Nobody(why) if why.contains("of the slot's 3 replicas")),
        )
    })
    .await;
    until("an owner that hears nobody shows nothing, for somebody else may own the slot", || {
        matches!(payloads(&nodes[0], &context), Err(StoreError::NotInStep { .. }))
    })
    .await;

    for number in 0..dirs.len() {
        if format!("n{number}") != me.to_string() {
            restart(&mut nodes, &dirs, number).await;
        }
    }
    append(&nodes, &context, "two").await;
    for node in &nodes {
        until("what was acknowledged is read everywhere", || {
            payloads(node, &context).is_ok_and(|found| found == ["first", "all", "most", "one", "two"])
        })
        .await;
    }
}

/// A snapshot of so many entries of 60 kB, of a ledger elsewhere.
fn snapshot(context: &ContextId, count: usize) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = ledger_store::Ledger::open(dir.path()).unwrap();
    for number in 0..count {
        let payload = format!("{number:>60000}");
        let key = ledger_store::Key::new("k").unwrap();
        let draft = ledger_store::Draft { key, payload: payload.into(), metadata: [].into() };
        elsewhere.append(context, draft).unwrap();
    }
    let snapshot =
        elsewhere.snapshot(context).unwrap().map(|chunk| chunk.unwrap()).collect::<Vec<_>>().concat();
    elsewhere.close().unwrap();
    snapshot
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_loaded_is_on_other_nodes_before_it_is_acknowledged() {
    log();
    let dirs = dirs(3);
    let mut nodes = three(&dirs).await;
    // One that is sent as it is put in place, and one that is too large for that.
    for (name, count) in [("small", 20), ("large", 700)] {
        let context = context(name);
        let snapshot = tokio::task::spawn_blocking({
            let context = context.clone();
            move || snapshot(&context, count)
        });
        let snapshot = snapshot.await.unwrap();
        let ledger = owner(&nodes, &context).unwrap().ledger.clone();
        let loaded = tokio::task::spawn_blocking({
            let context = context.clone();
            move || ledger.load_from(&context, false, snapshot.as_slice())
        });
        assert_eq!(loaded.await.unwrap().unwrap().restored, count as u64);
        let number = kill_owner(&mut nodes, &context).await;
        append(&nodes, &context, "after").await;
        for node in &nodes {
            until("the load is read", || {
                let filter = ledger_store::Filter { max_bytes: usize::MAX, ..Default::default() };
                node.ledger.get(&context, &filter).is_ok_and(|page| page.entries.len() == count + 1)
            })
            .await;
        }
        restart(&mut nodes, &dirs, number).await;
        until("every slot has an owner", || owned(&nodes) == usize::from(SLOTS)).await;
    }
}

/// Copies a directory tree in the place of another.
fn put(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let (item, to) = item.map(|item| (item.path(), to.join(item.file_name()))).unwrap();
        if item.is_dir() {
            put(&item, &to);
        } else {
            std::fs::copy(item, to).unwrap();
        }
    }
}

async fn append_some(nodes: &[Node], context: &ContextId, name: &str, expected: &mut Vec<String>) {
    for number in 0..20 {
        let text = format!("{name}{number}");
        append(nodes, context, &text).await;
        expected.push(text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_volume_is_restored_joins_as_another_member_and_nothing_acknowledged_is_lost() {
    log();
    let dirs = dirs(3);
    let mut nodes = three(&dirs).await;
    let (context, mut expected) = (context("restored"), Vec::new());
    append_some(&nodes, &context, "before", &mut expected).await;
    let number = kill_owner(&mut nodes, &context).await;
    let older = tempfile::tempdir().unwrap();
    put(dirs[number].path(), older.path());
    restart(&mut nodes, &dirs, number).await;
    append_some(&nodes, &context, "after", &mut expected).await;
    read_everywhere(&nodes, &context, &expected).await;

    let last = nodes.len() - 1;
    let before = nodes[last].cluster.me().clone();
    nodes.remove(last).kill().await;
    put(older.path(), dirs[number].path());
    // It notices by what the others remember of it.
    restart(&mut nodes, &dirs, number).await;
    let renewed = tokio::time::timeout(DEADLINE, nodes[last].cluster.reidentified()).await.unwrap();
    let Reidentified::Stale { storage, .. } = renewed else { panic!("{renewed}") };
    assert_ne!(storage, before.storage);
    assert!(nodes[last].append(&context, "stopped").await.is_err());
    until("it owns nothing by what it says", || {
        nodes[..last].iter().all(|node| {
            let view = node.cluster.view();
            let view = view.borrow();
            view.get(&before.node)
                .is_some_and(|member| member.rolled_back.is_some() && member.owned.is_empty())
        })
    })
    .await;
    append_some(&nodes[..last], &context, "meanwhile", &mut expected).await;
    nodes.remove(last).kill().await;

    restart(&mut nodes, &dirs, number).await;
    let me = nodes[last].cluster.me().clone();
    assert_eq!((&me.node, me.storage), (&before.node, storage));
    until("it is a member again, in step", || {
        let Some(owner) = owner(&nodes, &context) else { return false };
        let routes = owner.cluster.routes();
        let routes = routes.borrow();
        routes.get(Slot::of(&context)).is_some_and(|route| {
            route.members.contains(&me) && !route.members.contains(&before) && route.in_sync.contains(&me)
        })
    })
    .await;
    append_some(&nodes, &context, "last", &mut expected).await;
    read_everywhere(&nodes, &context, &expected).await;
    assert!(nodes.iter().all(|node| !node.cluster.is_reidentified()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_gossip_forgot_is_told_by_its_peers_that_its_volume_is_an_older_one() {
    log();
    let (dirs, older) = (dirs(3), tempfile::tempdir().unwrap());
    let forgetful = |config: &mut ClusterConfig| {
        config.membership.dead_node_grace = Duration::from_millis(1500);
        config.membership.keyring = Keyring::of(&[[7; 32]]);
    };
    let mut nodes: Vec<Node> = Vec::new();
    for (number, dir) in dirs.iter().enumerate() {
        let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
        nodes.push(Node::start_with(&format!("n{number}"), dir.path(), &seeds, forgetful).await);
    }
    until("every slot has an owner", || owned(&nodes) == usize::from(SLOTS)).await;
    let (context, mut expected) = (context("forgotten"), Vec::new());
    append_some(&nodes, &context, "before", &mut expected).await;
    nodes.remove(2).kill().await;
    put(dirs[2].path(), older.path());
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
    nodes.push(Node::start_with("n2", dirs[2].path(), &seeds, forgetful).await);
    append_some(&nodes, &context, "after", &mut expected).await;
    read_everywhere(&nodes, &context, &expected).await;
    let name = nodes[2].cluster.me().node.clone();
    nodes.remove(2).kill().await;
    until("gossip forgot it", || nodes.iter().all(|node| node.cluster.view().borrow().get(&name).is_none()))
        .await;

    put(older.path(), dirs[2].path());
    nodes.push(Node::start_with("n2", dirs[2].path(), &seeds, forgetful).await);
    let renewed = tokio::time::timeout(DEADLINE, nodes[2].cluster.reidentified()).await.unwrap();
    assert!(matches!(renewed, Reidentified::Stale { .. }), "{renewed}");
    nodes.remove(2).kill().await;
    nodes.push(Node::start_with("n2", dirs[2].path(), &seeds, forgetful).await);
    append_some(&nodes, &context, "last", &mut expected).await;
    read_everywhere(&nodes, &context, &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_stopped_or_killed_and_started_again_stays_who_it_is() {
    log();
    let dirs = dirs(3);
    let mut nodes = three(&dirs).await;
    let (context, mut expected) = (context("restarted"), Vec::new());
    for round in 0..4 {
        append_some(&nodes, &context, &format!("{round}-"), &mut expected).await;
        let is_set_back =
            |node: &Node| node.cluster.view().borrow().members.iter().any(|m| m.rolled_back.is_some());
        let first = nodes.remove(0);
        let (me, number) = (first.cluster.me().clone(), usize::try_from(round).unwrap() % 3);
        assert_eq!(me.node.as_str(), format!("n{number}"));
        if round % 2 == 0 {
            first.cluster.leave().await;
            first.kill().await;
        } else {
            // What a killed process leaves: the files as they were before the ledger was closed.
            let (ledger, left) = (first.fall_silent().await, tempfile::tempdir().unwrap());
            put(dirs[number].path(), left.path());
            tokio::task::spawn_blocking(move || ledger.close()).await.unwrap().unwrap();
            put(left.path(), dirs[number].path());
        }
        restart(&mut nodes, &dirs, number).await;
        read_everywhere(&nodes, &context, &expected).await;
        assert_eq!(*nodes[2].cluster.me(), me);
        assert!(!nodes.iter().any(|node| is_set_back(node) || node.cluster.is_reidentified()));
    }
}

/// Commits larger than all the memory there is for them at a replica, and as many in flight as may wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_is_replicated_within_the_memory_for_it_and_no_stream_is_cut() {
    const PAYLOAD: usize = 300_000;
    const WRITERS: usize = 8;
    log();
    let dirs = dirs(3);
    let mut nodes: Vec<Node> = Vec::new();
    for (number, dir) in dirs.iter().enumerate() {
        let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
        let set = |config: &mut ClusterConfig| {
            // Records are a little larger than their payloads.
            (config.replication, config.replicated) = (WRITERS * (PAYLOAD + 1000), PAYLOAD / 3);
            config.anti_entropy_interval = Duration::from_mins(10);
        };
        nodes.push(Node::start_with(&format!("n{number}"), dir.path(), &seeds, set).await);
    }
    until("every slot has an owner", || owned(&nodes) == usize::from(SLOTS)).await;
    let contexts: Vec<ContextId> = (0..WRITERS).map(|n| context(&format!("w{n}"))).collect();
    for context in &contexts {
        append(&nodes, context, "first").await;
    }
    let all_copies = async |context: &ContextId, byte: u8| {
        let draft =
            Draft { key: Key::new("k").unwrap(), payload: vec![byte; PAYLOAD].into(), metadata: [].into() };
        let append = Append { quorum: WriteQuorum::All, ..Append::new(context.clone(), draft) };
        owner(&nodes, context).unwrap().ledger.append_async(append).await
    };
    // Whoever lacks something at first comes in step.
    for context in &contexts {
        let mut copies = 0;
        while copies < 3 {
            copies = tokio::time::timeout(DEADLINE, all_copies(context, 0)).await.unwrap().unwrap().copies;
        }
    }
    let lost =
        || nodes.iter().map(|node| node.cluster.counters().streams_lost.load(Ordering::Relaxed)).sum::<u64>();
    let before = lost();
    for round in 1..20 {
        let appends = contexts.iter().map(|context| all_copies(context, round));
        for appended in tokio::time::timeout(DEADLINE, futures::future::join_all(appends)).await.unwrap() {
            assert_eq!(appended.unwrap().copies, 3);
        }
    }
    assert_eq!(lost(), before, "no replica was behind by more than what was in flight");
    for node in &nodes {
        for share in node.cluster.shares() {
            until("nothing is held for what was replicated", || share.used() == 0).await;
        }
    }
}
