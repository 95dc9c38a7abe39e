//! A replica that refuses a part of a commit: it concerns that slot, and no other on the stream.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{net::SocketAddr, sync::atomic::Ordering};

use ledger_cluster::ownership::routes::SlotOwner;
use ledger_core::{
    Epoch,
    ownership::Claim,
    slot::{SLOTS, Slot},
};
use ledger_store::{ContextId, WriteQuorum, replicate::replica::RecordChange};
use support::{Node, append, owner, payloads, until};

fn epoch(node: &Node, slot: Slot) -> Option<Epoch> {
    match node.cluster.routes().borrow().get(slot)?.owner {
        SlotOwner::Me(epoch) => Some(epoch),
        _ => None,
    }
}

fn streams_lost(nodes: &[Node]) -> u64 {
    nodes.iter().map(|node| node.cluster.counters().streams_lost.load(Ordering::Relaxed)).sum()
}

/// Appends until all three members have the entry: whoever lacks something at first gets in sync.
async fn append_everywhere(nodes: &[Node], context: &ContextId, text: &str) {
    let mut attempt = 0;
    loop {
        let Some(owner) = owner(nodes, context) else {
            tokio::task::yield_now().await;
            continue;
        };
        attempt += 1;
        let text = format!("{text}-{attempt}");
        let appended = owner.append_with(context, &text, WriteQuorum::All);
        match tokio::time::timeout(support::DEADLINE, appended).await.expect("it came in time") {
            Ok(appended) if appended.copies == 3 => return,
            Ok(_) | Err(_) => assert!(attempt < 1000, "not every member got in sync"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_a_replica_promised_to_another_claim_leaves_the_other_slots_of_the_stream_alone() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut nodes: Vec<Node> = Vec::new();
    for (number, dir) in dirs.iter().enumerate() {
        let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
        nodes.push(Node::start(&format!("n{number}"), dir.path(), &seeds).await);
    }
    let owned = || nodes.iter().map(|node| node.cluster.routes().borrow().owned()).sum::<usize>();
    until("every slot has an owner", || owned() == usize::from(SLOTS)).await;
    // Two contexts of different slots that one node owns.
    let names = (0..100).map(|number| ContextId::new(format!("c{number}")).unwrap());
    let mut of_first = names.filter(|context| nodes[0].owns(Slot::of(context)));
    let refused = of_first.next().unwrap();
    let slot = Slot::of(&refused);
    let other = of_first.find(|context| Slot::of(context) != slot).unwrap();
    for context in [&refused, &other] {
        append_everywhere(&nodes, context, "first").await;
    }
    let (before, lost) =
        ((epoch(&nodes[0], slot).unwrap(), epoch(&nodes[0], Slot::of(&other))), streams_lost(&nodes));

    // A replica promises the slot to a higher claim, and its owner does not hear of it.
    let higher = Claim::lowest_above(before.0, nodes[1].cluster.me()).unwrap();
    let changed = nodes[1].ledger.change_slots(vec![(slot, RecordChange::Promise(higher))]).await.unwrap();
    assert!(changed[0].1.outcome.is_ok());
    // The replica refuses what is appended now; whoever owns the slot next claims it above the promise.
    append(&nodes, &refused, "second").await;
    append_everywhere(&nodes, &other, "second").await;
    until("the slot is owned above the promise", || {
        nodes.iter().any(|node| epoch(node, slot).is_some_and(|now| now > before.0))
    })
    .await;
    append_everywhere(&nodes, &refused, "third").await;

    assert_eq!(epoch(&nodes[0], Slot::of(&other)), before.1, "nobody took the other slot");
    assert_eq!(streams_lost(&nodes), lost, "no stream broke");
    let expected = payloads(owner(&nodes, &refused).unwrap(), &refused).unwrap();
    assert!(expected.iter().any(|text| text == "second"));
    for node in &nodes {
        until("all is read on every node", || payloads(node, &refused).is_ok_and(|all| all == expected))
            .await;
    }
    for node in nodes {
        node.kill().await;
    }
}
