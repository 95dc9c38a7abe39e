//! Lives in which more members are met than there are numbers for, and volumes are wiped again and again.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ledger_cluster::{
    ClusterConfig,
    membership::{
        Facts, Identity, Incarnation, Membership, MembershipConfig, NodeId, NodeLoad, Readiness, StorageId,
    },
};
use ledger_core::{ownership::slot_manager::DecommissionMode, replication::MAX_PEERS, slot::SLOTS};
use ledger_store::{ContextId, WriteQuorum};
use support::{DEADLINE, Node, append, owner, payloads, until};

/// Three nodes whose slots all have owners, and the identity of their cluster.
async fn three(dirs: &[tempfile::TempDir]) -> (Vec<Node>, Arc<Identity>) {
    let mut nodes: Vec<Node> = Vec::new();
    let mut identity = Arc::default();
    for (number, dir) in dirs.iter().enumerate() {
        let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
        let keep = |config: &mut ClusterConfig| identity = Arc::clone(&config.membership.identity);
        nodes.push(Node::start_with(&format!("n{number}"), dir.path(), &seeds, keep).await);
    }
    until("every slot has an owner", || owned(&nodes) == usize::from(SLOTS)).await;
    until("the cluster has an identity", || identity.cluster().is_some()).await;
    (nodes, identity)
}

fn owned(nodes: &[Node]) -> usize {
    nodes.iter().map(|node| node.cluster.routes().borrow().owned()).sum()
}

/// A member that gossips, and that nobody may give slots: it is about to leave for good.
async fn passer_by(number: usize, seeds: &[SocketAddr], identity: &Arc<Identity>) -> Membership {
    let node = NodeId::new(format!("passer-by-{number}")).unwrap();
    let mut config = MembershipConfig::new("test", node, Incarnation(1), "127.0.0.1:0".parse().unwrap());
    // Slower than the members: what so many of them say costs most of the test's time.
    config.gossip_interval = Duration::from_millis(200);
    config.seeds = seeds.iter().map(ToString::to_string).collect();
    config.identity = Arc::clone(identity);
    let facts = Facts {
        // Nobody listens there.
        grpc_address: "127.0.0.1:9".to_owned(),
        storage_id: StorageId(((number + 1) as u128).to_be_bytes()),
        readiness: Readiness::Draining,
        zone: String::new(),
        format: 1,
        load: NodeLoad::default(),
        opened: None,
        durable: None,
        decommission: Some(DecommissionMode::Replaced),
        owned: Vec::new(),
        halted: Vec::new(),
    };
    Membership::start(config, facts).await.unwrap()
}

/// Whether a node sees passers-by of these numbers as alive, or as not.
fn sees(node: &Node, numbers: std::ops::Range<usize>, alive: bool) -> bool {
    let view = Arc::clone(&node.cluster.membership().view().borrow());
    numbers.into_iter().all(|number| {
        let name = NodeId::new(format!("passer-by-{number}")).unwrap();
        view.get(&name).is_some_and(|member| member.alive == alive)
    })
}

/// Appends with a copy on every member of the slot, again until it is acknowledged.
async fn append_everywhere(nodes: &[Node], context: &ContextId, text: &str) {
    let begun = Instant::now();
    loop {
        if let Some(owner) = owner(nodes, context) {
            let appending = owner.append_with(context, text, WriteQuorum::All);
            if let Ok(Ok(appended)) = tokio::time::timeout(Duration::from_secs(2), appending).await {
                assert_eq!(appended.copies, nodes.len());
                return;
            }
        }
        assert!(begun.elapsed() < DEADLINE, "{text} did not get a copy on every node in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends a node and starts another one of the same name, on an empty directory.
async fn wipe(nodes: &mut Vec<Node>, at: usize, dirs: &mut [tempfile::TempDir]) {
    let node = nodes.remove(at);
    let name = node.cluster.me().node.clone();
    node.kill().await;
    dirs[at] = tempfile::tempdir().unwrap();
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
    nodes.insert(at, Node::start(name.as_str(), dirs[at].path(), &seeds).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_takes_part_however_many_were_met_before_it() {
    let mut dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let (mut nodes, identity) = three(&dirs).await;
    let context = ContextId::new("a").unwrap();
    append(&nodes, &context, "before").await;
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
    let met = usize::from(MAX_PEERS) + 10;
    for first in (0..met).step_by(25) {
        let numbers = first..first + 25;
        let mut here = Vec::new();
        for number in numbers.clone() {
            here.push(passer_by(number, &seeds, &identity).await);
        }
        until("they are seen", || nodes.iter().all(|node| sees(node, numbers.clone(), true))).await;
        drop(here);
        until("they are gone", || nodes.iter().all(|node| sees(node, numbers.clone(), false))).await;
    }
    // One more than there are numbers for, by far: a member with an empty directory.
    wipe(&mut nodes, 2, &mut dirs).await;
    append_everywhere(&nodes, &context, "after").await;
    for node in &nodes {
        until("all is read on every node", || {
            payloads(node, &context).is_ok_and(|all| all == ["before", "after"])
        })
        .await;
    }
}

async fn wiped_again_and_again(times: usize) {
    let mut dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let (mut nodes, _) = three(&dirs).await;
    let context = ContextId::new("a").unwrap();
    let mut expected = Vec::new();
    for round in 0..times {
        let text = format!("round {round}");
        append_everywhere(&nodes, &context, &text).await;
        expected.push(text);
        wipe(&mut nodes, round % 3, &mut dirs).await;
    }
    append_everywhere(&nodes, &context, "last").await;
    expected.push("last".to_owned());
    let me: Vec<_> = nodes.iter().map(|node| node.cluster.me().clone()).collect();
    for node in &nodes {
        until("all is read on every node", || payloads(node, &context).is_ok_and(|all| all == expected))
            .await;
        // Nothing is left of those who were there before.
        let view = Arc::clone(&node.cluster.membership().view().borrow());
        assert_eq!(view.members.len(), 3);
        assert!(me.iter().all(|me| view.get(&me.node).is_some_and(|now| now.storage_id == me.storage)));
        assert_eq!(node.ledger.forks(None, None, 10).unwrap().forks.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_wiped_one_after_the_other_and_nothing_is_lost() {
    wiped_again_and_again(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes"]
async fn a_hundred_volumes_are_wiped_and_nothing_is_lost() {
    wiped_again_and_again(100).await;
}
