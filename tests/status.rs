//! What `ledgerctl cluster status` and the metrics say, compared with what clients meet, each node a process of its own.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, stream};
use ledger_client::{Append, Client, ContextId, Options};
use ledger_core::slot::{SLOTS, Slot};
use ledger_tests::{Cluster, Node, until};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// How long an append may take that is refused in the end.
const REFUSED: Duration = Duration::from_secs(5);

/// A context for each slot.
fn contexts() -> Vec<ContextId> {
    let mut found = BTreeMap::new();
    for number in 0.. {
        if found.len() == usize::from(SLOTS) {
            break;
        }
        let context = ContextId::new(format!("status-{number}")).unwrap();
        found.entry(Slot::of(&context)).or_insert(context);
    }
    found.into_values().collect()
}

/// How many of these contexts take an append now, whichever of the nodes is asked.
async fn taken(cluster: &Cluster, contexts: &[ContextId]) -> u64 {
    let endpoints: Vec<_> = cluster.running().map(Node::endpoint).collect();
    let options = Options { timeout: REFUSED, ..Options::default() };
    let client = Client::connect(&endpoints.join(","), &options).unwrap();
    let appends = contexts.iter().map(|context| {
        let append = Append::new(context, "facts", "now".to_owned()).unwrap();
        let client = client.clone();
        async move { u64::from(client.append(append).await.is_ok()) }
    });
    stream::iter(appends).buffer_unordered(256).fold(0, async |sum, taken| sum + taken).await
}

/// What status says at a node, and its exit code.
fn status(node: &Node) -> (i32, Value) {
    let (code, said, error) = node.ctl(&["cluster", "status", "--json"]);
    (code, serde_json::from_str(&said).unwrap_or_else(|_| panic!("{code}: {said}{error}")))
}

/// A count, as a metric has it.
fn whole(count: f64) -> u64 {
    format!("{count:.0}").parse().unwrap()
}

/// What status at each node, each node's metrics and each node's list of members say of the slots that take appends, once all of
/// it is the same.
fn agreed(cluster: &Cluster) -> u64 {
    until("all nodes say the same, in status, metrics and members", || {
        let mut said = Vec::new();
        for node in cluster.running() {
            let slots = status(node).1["slots"].clone();
            let count = |name: &str| slots[name].as_u64().unwrap();
            let taking = count("taking_appends");
            assert!(taking + count("without_owner") + count("not_known") == u64::from(SLOTS), "{slots}");
            assert_eq!(count("owned"), taking + count("not_known"), "{slots}");
            said.push(taking);
            let without = node.metric("ledger_cluster_slots_without_owner")?;
            said.push(u64::from(SLOTS) - whole(without));
            let (_, members, _) = node.ctl(&["cluster", "members", "--json"]);
            let members = members.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            said.push(members.map(|member| member["slots_owned"].as_u64().unwrap()).sum());
        }
        said.push(whole(cluster.sum("ledger_cluster_slots_owned")));
        said.iter().all(|other| *other == said[0]).then(|| said[0])
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_nodes_two_die_and_status_metrics_and_clients_agree_on_what_takes_appends() {
    let contexts = contexts();
    let mut cluster = Cluster::start(5, &[]);
    let (code, all) = until("all is well", || Some(status(cluster.node(0))).filter(|(code, _)| *code == 0));
    assert_eq!((code, &all["well"], &all["nodes"]["expected"]), (0, &true.into(), &5.into()), "{all}");
    assert_eq!(taken(&cluster, &contexts).await, u64::from(SLOTS));

    for killed in [3, 4] {
        cluster.kill(killed);
    }
    // Three of ten pairs of replicas are these two.
    let taking = until("nobody waits for the dead any more", || {
        let taking = agreed(&cluster);
        let reasons = status(cluster.node(0)).1["slots"]["reasons"].to_string();
        ((400..900).contains(&taking) && !reasons.contains("about to")).then_some(taking)
    });
    assert_eq!(taken(&cluster, &contexts).await, taking, "as many as was said take appends");
    assert_eq!(agreed(&cluster), taking, "nothing changed meanwhile");
    for node in cluster.running() {
        let (code, said) = status(node);
        assert_eq!((code, &said["well"]), (9, &false.into()), "{said}");
        assert_eq!(
            (&said["nodes"]["expected"], &said["nodes"]["alive"]),
            (&5.into(), &3.into()),
            "the dead keep copies, and are missed: {said}"
        );
        let member = |at: usize, field: &str| said["members"][at][field].clone();
        assert_eq!((member(0, "answered"), member(4, "answered")), (true.into(), false.into()));
        assert_eq!((member(4, "alive"), member(4, "slots_owned")), (false.into(), 0.into()));
        assert!(member(4, "slots_kept").as_u64().unwrap() > 0, "{said}");
        assert_eq!(node.metric("ledger_cluster_members_away"), Some(2.0));
        let (code, text, error) = node.ctl(&["cluster", "status"]);
        assert_eq!(code, 9, "{error}");
        for part in ["3 of 5 nodes alive", &format!("{taking} of 1024 slots take appends now"), "take none: "]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(error.contains("not well"), "{error}");
    }

    for killed in [3, 4] {
        cluster.restart(killed);
    }
    cluster.settle();
    until("all is well again", || (status(cluster.node(1)).0 == 0).then_some(()));
    assert_eq!(taken(&cluster, &contexts).await, u64::from(SLOTS));

    // One that leaves for good is missed by nobody.
    let (code, _, error) = cluster.node(4).ctl(&["cluster", "decommission", "n4"]);
    assert_eq!(code, 0, "{error}");
    let stopped = cluster.nodes[4].take().unwrap().wait();
    assert!(stopped.status.success(), "{}", stopped.log);
    for node in cluster.running() {
        let (_, said) = until("all is well without it", || Some(status(node)).filter(|(code, _)| *code == 0));
        assert_eq!((&said["nodes"]["expected"], &said["nodes"]["alive"]), (&4.into(), &4.into()), "{said}");
        let (_, text, _) = node.ctl(&["cluster", "status"]);
        assert!(text.contains("4 of 4 nodes alive") && text.contains("all 1024 slots"), "{text}");
        assert_eq!(node.metric("ledger_cluster_members_away"), Some(0.0));
    }
    assert_eq!(taken(&cluster, &contexts).await, u64::from(SLOTS));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_nodes_two_die_and_the_third_says_that_nothing_takes_appends() {
    let contexts = contexts();
    let mut cluster = Cluster::start(3, &[]);
    for killed in [1, 2] {
        cluster.kill(killed);
    }
    let survivor = || status(cluster.node(0));
    // At once: who does not answer takes nothing.
    let (code, said) = survivor();
    assert!(code == 8 || code == 9, "{code}: {said}");
    until("nothing takes appends", || (agreed(&cluster) == 0).then_some(()));
    let (code, said) = survivor();
    assert_eq!(
        (code, &said["nodes"]["alive"], &said["nodes"]["expected"]),
        (9, &1.into(), &3.into()),
        "{said}"
    );
    let slots = &said["slots"];
    let count = |name: &str| slots[name].as_u64().unwrap();
    assert_eq!((count("owned"), count("without_owner"), count("not_known")), (0, 1024, 0), "{slots}");
    let itself = &said["members"][0];
    assert_eq!(itself["slots_owned"], 0, "{said}");
    assert!(
        itself["slots_halted"].as_u64().unwrap() > 0,
        "what it owns and takes nothing to is told apart: {said}"
    );
    assert_eq!(cluster.node(0).metric("ledger_cluster_slots_owned"), Some(0.0));
    assert_eq!(cluster.node(0).metric("ledger_cluster_slots_without_owner"), Some(1024.0));
    assert_eq!(taken(&cluster, &contexts[..256]).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_answer_and_do_not_hear_each_other_are_named() {
    let dir = TempDir::new().unwrap();
    let keys = dir.path().join("keys");
    std::fs::write(&keys, "11".repeat(32)).unwrap();
    let cluster = Cluster::start(3, &["--cluster-key-file", keys.to_str().unwrap()]);
    until("all is well", || (status(cluster.node(0)).0 == 0).then_some(()));
    // One of them changes its key alone: the others do not hear it any more, nor it them.
    std::fs::write(&keys, "22".repeat(32)).unwrap();
    cluster.node(2).signal(Signal::HUP);
    let apart = |at: usize, of: usize, by: &[&str]| {
        let (code, said) = status(cluster.node(at));
        (code == 9 && said["members"][of]["not_heard_by"] == serde_json::json!(by)).then_some(said)
    };
    let said = until("the others miss it", || apart(0, 2, &["n0", "n1"]));
    assert_eq!(said["members"][2]["answered"], true, "{said}");
    assert_eq!(said["nodes"]["expected"], 3, "{said}");
    // Whichever is asked says both.
    let said = until("it misses the others", || apart(2, 0, &["n2"]));
    assert_eq!(said["members"][1]["not_heard_by"], serde_json::json!(["n2"]), "{said}");
    let (_, text, error) = cluster.node(2).ctl(&["cluster", "status"]);
    assert!(text.contains("n2 answers, and is not heard by n0, n1"), "{text}");
    assert!(error.contains("not well"), "{error}");
}
