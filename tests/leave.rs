//! Nodes that leave a cluster for good, each a process of its own: scaling down, SIGTERM, restarts, and what is refused.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{process::Stdio, time::Duration};

use ledger_client::{Append, Client, ContextId, Options, ReadFrom, Selection};
use ledger_tests::{Cluster, Node, cluster::name, node::ledgerctl, until};

/// Contexts of many slots.
const CONTEXTS: usize = 120;

fn decommission(node: &Node, args: &[&str]) -> (i32, String, String) {
    node.ctl(&[&["cluster", "decommission"], args].concat())
}

fn client(node: &Node) -> Client {
    Client::connect(&node.endpoint(), &Options::default()).unwrap()
}

fn context(number: usize) -> ContextId {
    ContextId::new(format!("leave-{number}")).unwrap()
}

/// Appends one entry to each context, all of which must be acknowledged.
async fn append_to_all(client: &Client, round: u64) {
    let appends = (0..CONTEXTS).map(|number| async move {
        let append = Append::new(&context(number), "facts", format!("{number} in round {round}")).unwrap();
        let stored = client.append(append).await;
        let stored = stored.unwrap_or_else(|error| panic!("context {number} takes no appends: {error}"));
        assert_eq!(stored.entry.sequence.0, round + 1);
    });
    futures::future::join_all(appends).await;
}

/// Every context has what was appended in so many rounds, and nothing else.
async fn all_is_there(client: &Client, rounds: usize) {
    for number in 0..CONTEXTS {
        let selection = Selection { read_from: ReadFrom::Owner, ..Selection::default() };
        let entries = client.get(&context(number), selection).collect().await.unwrap();
        let payloads: Vec<_> =
            entries.iter().map(|entry| String::from_utf8(entry.payload.to_vec()).unwrap()).collect();
        let expected: Vec<_> = (0..rounds).map(|round| format!("{number} in round {round}")).collect();
        assert_eq!(payloads, expected);
    }
}

fn ends_cleanly(cluster: &mut Cluster, number: usize) -> String {
    let stopped = cluster.nodes[number].take().unwrap().wait();
    assert!(stopped.status.success(), "it ended with {}:\n{}", stopped.status, stopped.log);
    stopped.log
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_are_scaled_down_to_three_one_after_the_other_and_every_context_takes_appends() {
    let mut cluster = Cluster::start(5, &[]);
    append_to_all(&client(cluster.node(0)), 0).await;
    for (leaves, round) in [(4, 1), (3, 2)] {
        let (code, said, error) = decommission(cluster.node(0), &[&name(leaves)]);
        assert_eq!(code, 0, "{error}");
        assert!(said.contains("has left: no slot counts on it"), "{said}");
        // The next goes as soon as this one has ended, with its disk.
        ends_cleanly(&mut cluster, leaves);
        std::fs::remove_dir_all(cluster.data_dir(leaves)).unwrap();
        append_to_all(&client(cluster.node(1)), round).await;
    }
    cluster.settle();
    all_is_there(&client(cluster.node(2)), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sigterm_is_a_leave_for_good_where_that_is_configured_and_nodes_are_enough() {
    let mut cluster = Cluster::start(5, &["--leave-on-shutdown"]);
    append_to_all(&client(cluster.node(0)), 0).await;
    // As a StatefulSet scales down: each as soon as the one before has ended.
    for leaves in [4, 3] {
        cluster.node(leaves).signal_to_stop();
        let log = ends_cleanly(&mut cluster, leaves);
        assert!(log.contains("no slot names this node as a member any more"), "{log}");
    }
    append_to_all(&client(cluster.node(0)), 1).await;
    cluster.settle();
    // Of three, none can go for good: it stops as for a restart.
    cluster.node(2).signal_to_stop();
    let log = ends_cleanly(&mut cluster, 2);
    assert!(log.contains("2 nodes would remain") && log.contains("stopping as for a restart"), "{log}");
    append_to_all(&client(cluster.node(0)), 2).await;
    cluster.restart(2);
    // A pod that is there again, with its old volume, is a member again.
    cluster.restart(3);
    cluster.settle();
    let (_, members, _) = cluster.node(0).ctl(&["cluster", "members"]);
    assert!(!members.contains("decommissioning"), "{members}");
    all_is_there(&client(cluster.node(3)), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_left_stays_away_after_a_restart_until_that_is_cancelled() {
    let mut cluster = Cluster::start(4, &[]);
    append_to_all(&client(cluster.node(0)), 0).await;
    let (code, _, error) = decommission(cluster.node(0), &["n3", "--keep-running"]);
    assert_eq!(code, 0, "{error}");
    cluster.kill(3);
    cluster.restart(3);
    let (code, said, error) = decommission(cluster.node(3), &["n3", "--keep-running", "--json"]);
    assert_eq!(code, 0, "it is done: {error}");
    let last: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["slots"], &last["unknown"], &last["done"]),
        (&0.into(), &0.into(), &true.into()),
        "{said}"
    );
    let (_, members, _) = cluster.node(0).ctl(&["cluster", "members"]);
    assert!(members.contains("decommissioning"), "{members}");
    let (code, _, error) = cluster.node(3).ctl(&["cluster", "drain", "--resume"]);
    assert!(code == 2 && error.contains("--cancel"), "{error}");
    let (code, said, error) = decommission(cluster.node(0), &["n3", "--cancel"]);
    assert_eq!((code, said.trim()), (0, "n3 stays"), "{error}");
    cluster.settle();
    append_to_all(&client(cluster.node(3)), 1).await;
    all_is_there(&client(cluster.node(0)), 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_not_let_go_where_copies_would_fall_short() {
    let mut cluster = Cluster::start(3, &[]);
    append_to_all(&client(cluster.node(0)), 0).await;
    let (code, _, error) = decommission(cluster.node(0), &["n9"]);
    assert!(code == 2 && error.contains("no node is called n9") && error.contains("n0, n1, n2"), "{error}");
    let (code, _, error) = decommission(cluster.node(0), &["n2"]);
    assert_eq!(code, 2, "{error}");
    for part in [
        "2 nodes would remain that can keep copies (n0, n1)",
        "is to have 3",
        "needs 2",
        "start another node first",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    append_to_all(&client(cluster.node(2)), 1).await;
    let (code, said, error) = decommission(cluster.node(0), &["n2", "--force"]);
    assert_eq!(code, 0, "{said}{error}");
    ends_cleanly(&mut cluster, 2);
    append_to_all(&client(cluster.node(0)), 2).await;
    let (code, _, error) = decommission(cluster.node(0), &["n1", "--force"]);
    assert!(code == 2 && error.contains("forced or not"), "{error}");
    let (code, _, error) = decommission(cluster.node(0), &["n2"]);
    assert!(code == 2 && error.contains("does not answer"), "{error}");
    all_is_there(&client(cluster.node(1)), 3).await;
    // One that is new takes the place, and slots have three members again.
    let added = cluster.add();
    until("the new node keeps all slots", || {
        let (_, status, _) = cluster.node(0).ctl(&["cluster", "locate", "leave-0"]);
        status.contains(&name(added)).then_some(())
    });
    cluster.settle();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_no_time_to_leave_says_so_and_goes_on_when_it_is_started_again() {
    let mut cluster = Cluster::start(4, &["--leave-grace", "1s"]);
    append_to_all(&client(cluster.node(0)), 0).await;
    // It may leave, but there is nobody to take its copies.
    cluster.kill(2);
    let dead = until("it sees that one is gone", || {
        let (_, members, _) = cluster.node(3).ctl(&["cluster", "members"]);
        members.contains("dead").then_some(members)
    });
    let (code, _, error) = decommission(cluster.node(0), &["n3"]);
    assert!(code == 2 && error.contains("2 nodes would remain"), "{dead}{error}");
    cluster.restart(2);
    cluster.settle();
    let mut leaving = ledgerctl();
    leaving
        .args(["cluster", "decommission", "n3", "--json"])
        .env("LEDGER_ENDPOINT", cluster.node(0).endpoint());
    // Those that take its copies stop for a while.
    cluster.kill(2);
    cluster.kill(1);
    let mut leaving =
        leaving.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("it leaves", || cluster.node(3).log().contains("leaving for good").then_some(()));
    let stopped = cluster.nodes[3].take().unwrap().stop();
    leaving.wait().unwrap();
    assert_eq!(stopped.status.code(), Some(5), "{}", stopped.log);
    assert!(stopped.log.contains("slots still count on it"), "{}", stopped.log);
    for number in [1, 2, 3] {
        cluster.restart(number);
    }
    // It goes on where it was, and ends by itself.
    ends_cleanly(&mut cluster, 3);
    cluster.settle();
    append_to_all(&client(cluster.node(0)), 1).await;
    all_is_there(&client(cluster.node(1)), 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_gone_without_a_word_are_replaced_after_the_placement_grace() {
    let mut cluster = Cluster::start(5, &["--placement-grace", "2s"]);
    append_to_all(&client(cluster.node(0)), 0).await;
    for (gone, round) in [(4, 1), (3, 2)] {
        cluster.kill(gone);
        std::fs::remove_dir_all(cluster.data_dir(gone)).unwrap();
        until("all copies are made anew", || {
            // It is not 0 as long as a slot names the one that is gone.
            (cluster.node(0).ctl(&["cluster", "status"]).0 == 0).then_some(())
        });
        append_to_all(&client(cluster.node(1)), round).await;
    }
    cluster.settle();
    tokio::time::timeout(Duration::from_mins(1), all_is_there(&client(cluster.node(2)), 3)).await.unwrap();
}
