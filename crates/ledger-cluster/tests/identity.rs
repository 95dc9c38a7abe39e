//! A cluster that has formed is that one: it takes no other for itself, and whoever joins it belongs to it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use ledger_cluster::membership::ClusterId;
use ledger_core::{
    Epoch,
    node::{Member, NodeId, ReplicaSet},
    ownership::{Claim, Placement, SlotRecord},
    slot::{SLOTS, Slot},
};
use ledger_store::{ContextId, Ledger, Options};
use support::{Node, append, payloads, until};
use tempfile::TempDir;

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

fn dirs(count: usize) -> Vec<TempDir> {
    (0..count).map(|_| tempfile::tempdir().unwrap()).collect()
}

fn id(node: &Node) -> Option<ClusterId> {
    *node.ledger.cluster_id().borrow()
}

fn others(node: &Node) -> Vec<ClusterId> {
    node.cluster.membership().identity().others().into_iter().map(|other| other.id).collect()
}

fn owned(nodes: &[Node]) -> usize {
    nodes.iter().map(|node| node.cluster.routes().borrow().owned()).sum()
}

async fn all_owned(nodes: &[Node]) {
    until("every slot has an owner", || owned(nodes) == usize::from(SLOTS)).await;
}

fn seen(node: &Node) -> Vec<String> {
    node.cluster.view().borrow().members.iter().map(|member| member.node_id.to_string()).collect()
}

/// Three nodes whose names begin so.
async fn three(prefix: &str, dirs: &[TempDir], seeds: &[SocketAddr]) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for (number, dir) in dirs.iter().enumerate().take(3) {
        let seeds: Vec<SocketAddr> =
            nodes.iter().map(|node| node.gossip).chain(seeds.iter().copied()).collect();
        nodes.push(Node::start(&format!("{prefix}{number}"), dir.path(), &seeds).await);
    }
    nodes
}

async fn with_one_identity(nodes: &[Node]) -> ClusterId {
    until("all belong to one cluster", || {
        id(&nodes[0]).is_some() && nodes.iter().all(|node| id(node) == id(&nodes[0]))
    })
    .await;
    id(&nodes[0]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_whose_seeds_name_each_other_stay_two_and_both_say_so() {
    log();
    let (dirs_a, dirs_b) = (dirs(3), dirs(3));
    let mut a = three("a", &dirs_a, &[]).await;
    all_owned(&a).await;
    let b = three("b", &dirs_b, &[]).await;
    all_owned(&b).await;
    let (of_a, of_b) = (with_one_identity(&a).await, with_one_identity(&b).await);
    assert_ne!(of_a, of_b);
    let context = ContextId::new("demo").unwrap();
    append(&a, &context, "a").await;
    append(&b, &context, "b").await;

    // One node of one is started again with seeds that name the other, as a copy of a manifest has them.
    for dir in [&dirs_a[2], &dirs_b[2]] {
        let kept = dir.path().join("peers");
        until("it keeps where the others are", || {
            std::fs::read_to_string(&kept).is_ok_and(|text| text.lines().count() == 3)
        })
        .await;
    }
    a.pop().unwrap().kill().await;
    a.push(Node::start("a2", dirs_a[2].path(), &[b[0].gossip]).await);
    until("both sides notice", || others(&a[2]) == [of_b] && others(&b[0]) == [of_a]).await;
    // And the other way round.
    let mut b = b;
    b.pop().unwrap().kill().await;
    b.push(Node::start("b2", dirs_b[2].path(), &[a[1].gossip]).await);
    until("both sides notice", || others(&b[2]) == [of_a] && others(&a[1]) == [of_b]).await;
    assert!(
        [&a[1], &a[2], &b[0], &b[2]].iter().all(|node| node.cluster.membership().counts().dropped_other > 0)
    );
    all_owned(&a).await;
    all_owned(&b).await;
    append(&a, &context, "a2").await;
    append(&b, &context, "b2").await;
    for (nodes, name, identity, entries) in [(&a, "a", of_a, ["a", "a2"]), (&b, "b", of_b, ["b", "b2"])] {
        for node in nodes {
            assert_eq!(seen(node), [0, 1, 2].map(|number| format!("{name}{number}")));
            assert_eq!(id(node), Some(identity));
            until("the entries are read", || payloads(node, &context).is_ok_and(|found| found == entries))
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_belongs_to_none_belongs_to_the_cluster_that_it_joins_from_then_on() {
    log();
    let (dirs_a, dirs_b) = (dirs(4), dirs(3));
    let a = three("a", &dirs_a, &[]).await;
    let b = three("b", &dirs_b, &[]).await;
    let (of_a, of_b) = (with_one_identity(&a).await, with_one_identity(&b).await);
    // It hears of both at once, and stays with one.
    let seeds = [a[0].gossip, b[0].gossip, a[1].gossip, b[1].gossip];
    let fresh = Node::start("c", dirs_a[3].path(), &seeds).await;
    until("it belongs to one", || id(&fresh).is_some()).await;
    let joined = id(&fresh).unwrap();
    let (its, another) = if joined == of_a { (&a, &b) } else { (&b, &a) };
    assert!([of_a, of_b].contains(&joined));
    until("all see it", || its.iter().all(|node| seen(node).contains(&"c".to_owned()))).await;
    until("it is refused by the other", || !others(&fresh).is_empty()).await;
    assert!(another.iter().all(|node| !seen(node).contains(&"c".to_owned())), "{:?}", seen(&another[0]));
    until("it sees them, too", || seen(&fresh).len() == 4).await;
    let kept = dirs_a[3].path().join("peers");
    until("it keeps where they are", || {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.lines().count() == 4)
    })
    .await;
    fresh.kill().await;
    // Also if it is told of the other one only.
    let fresh = Node::start("c", dirs_a[3].path(), &[another[0].gossip]).await;
    until("it is refused by the other", || !others(&fresh).is_empty()).await;
    assert_eq!(id(&fresh), Some(joined));
    // It still knows where its own cluster was.
    until("all see it again", || {
        its.iter().all(|node| seen(node).contains(&"c".to_owned()) && seen(&fresh).len() == 4)
    })
    .await;
}

/// A directory as a build left it that knew of no identity: with members of every slot.
fn formed_before(dir: &Path) -> (Ledger, Member) {
    let name = dir.file_name().unwrap().to_str().unwrap().replace('.', "");
    let ledger = Ledger::open_with(dir, Options { clustered: true, lanes: 2, ..Options::default() }).unwrap();
    let member = Member { node: NodeId::new(format!("old-{name}")).unwrap(), storage: ledger.storage() };
    (ledger, member)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_formed_without_an_identity_agrees_on_one_and_is_none_of_another() {
    log();
    let (dirs_a, old) = (dirs(3), dirs(3));
    let opened: Vec<(Ledger, Member)> = old.iter().map(|dir| formed_before(dir.path())).collect();
    let set = ReplicaSet::new(opened.iter().map(|(_, member)| member.clone())).unwrap();
    let names: Vec<String> = opened.iter().map(|(_, member)| member.node.to_string()).collect();
    for (ledger, member) in opened {
        let epoch = Epoch::new(2, 7);
        let placement = Placement { epoch, members: set.clone(), is_confirmed: true, previous: None };
        let record = SlotRecord {
            promised: Some(Claim::new(epoch, &set.members()[0])),
            accepted: epoch,
            placement: Some(placement),
            ..SlotRecord::default()
        };
        let records: BTreeMap<Slot, SlotRecord> =
            (0..SLOTS).filter_map(Slot::new).map(|slot| (slot, record.clone())).collect();
        ledger.keep_slot_records(&records).unwrap();
        ledger.close().unwrap();
        drop(member);
    }
    let a = three("a", &dirs_a, &[]).await;
    let of_a = with_one_identity(&a).await;

    // Two of three are not enough: the third could know more. All the while they hear of another cluster.
    let mut nodes: Vec<Node> = Vec::new();
    for (name, dir) in names.iter().zip(&old).take(2) {
        let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).chain([a[0].gossip]).collect();
        nodes.push(Node::start(name, dir.path(), &seeds).await);
    }
    all_owned(&nodes).await;
    until("they refuse the other", || nodes.iter().all(|node| others(node) == [of_a])).await;
    assert!(nodes.iter().all(|node| id(node).is_none()));
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
    nodes.push(Node::start(&names[2], old[2].path(), &seeds).await);
    let agreed = with_one_identity(&nodes).await;
    assert_ne!(agreed, of_a);
    append(&nodes, &ContextId::new("x").unwrap(), "x").await;
    assert!(a.iter().all(|node| seen(node).len() == 3), "{:?}", seen(&a[0]));
}
