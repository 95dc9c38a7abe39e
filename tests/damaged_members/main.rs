//! A flipped byte in a table file of a running member of a cluster: it is said, healed and holds, and nobody takes what
//! cannot be read for absent.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

mod owner;
mod trio;

use std::{
    fs,
    time::{Duration, Instant},
};

use ledger_core::{ContextId, node::NodeId, rendezvous, slot::Slot};
use ledger_proto::ledger::v1::WatchRequest;
use ledger_tests::{load::payload, until_async};
use tokio::time::timeout;
use trio::{NAMES, Trio, flip, neighbours};

/// Entries of the context that is damaged.
const ENTRIES: u64 = 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Owner,
    Replica,
}

/// One byte of a family flips at a member while it runs; then each other member is started anew while another context of
/// the bucket grows. Nothing is lost, nothing is forked, and the next entry is the next.
async fn survives(family: &str, at: At, flags: &[&str]) {
    let (damaged, other) = neighbours();
    let mut trio = Trio::start(flags);
    trio.owner(&damaged, true).await;
    for number in 1..=ENTRIES {
        assert_eq!(trio.append(0, &damaged, number).await, number);
    }
    let mut others = 0;
    for number in 1..=5 {
        others = trio.append(0, &other, number).await;
    }
    trio.forget(&[&damaged, &other]).await;
    let owner = trio.owner(&damaged, true).await;
    // Its head is in memory, and in a newer table file than that of the other.
    others += 1;
    assert_eq!(trio.append(owner, &other, others).await, others);
    let hurt = if at == At::Owner { owner } else { (owner + 1) % NAMES.len() };
    assert!(flip(&trio.data(hurt), family) > 0, "no table file holds {family}");

    for index in (0..NAMES.len()).filter(|index| *index != hurt) {
        trio.kill(index);
        // Another context of the bucket grows while it is away, so that it has to compare. A node that meets the damage
        // in a compaction owns nothing for a moment: then it grows when the other is back.
        others += 1;
        let _ = timeout(Duration::from_secs(3), trio.append(hurt, &other, others)).await;
        trio.begin(index);
        assert_eq!(trio.append(index, &other, others).await, others);
        trio.owner(&other, false).await;
    }
    trio.all_have(&damaged, ENTRIES).await;
    trio.all_have(&other, others).await;
    trio.in_step(&[&damaged, &other]).await;
    assert_eq!(trio.append(0, &damaged, ENTRIES + 1).await, ENTRIES + 1, "the next entry is the next");
    // An entry that was acknowledged long ago is found by its id.
    assert_eq!(trio.append(1, &damaged, 3).await, 3);
    // Of the other one a node may leave a try that was never acknowledged.
    assert_eq!(trio.forks(&damaged).await, 0, "nothing is left because of what a disk cannot read");

    // And nothing of this depends on what the damaged node remembers.
    trio.kill(hurt);
    let started = trio.try_begin(hurt);
    if let Err(log) = started {
        // A directory may be refused. It is then as any disk that is replaced.
        assert!(log.contains("damaged"), "{log}");
        fs::remove_dir_all(trio.data(hurt)).unwrap();
        trio.begin(hurt);
    }
    let reader = (hurt + 1) % NAMES.len();
    assert_eq!(trio.append(reader, &damaged, ENTRIES + 2).await, ENTRIES + 2);
    trio.all_have(&damaged, ENTRIES + 2).await;
    assert_eq!(trio.forks(&damaged).await, 0);
}

macro_rules! survived {
    ($($name:ident: $family:literal, $at:expr;)+) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            survives($family, $at, &["--scrub-rate", "0"]).await;
        }
    )+};
}

survived! {
    a_head_that_its_owner_cannot_read_is_neither_forked_nor_begun_again: "heads", At::Owner;
    a_head_that_a_replica_cannot_read_is_restored: "heads", At::Replica;
    entries_that_their_owner_cannot_read_are_restored_by_a_replica: "entries", At::Owner;
    entries_that_a_replica_cannot_read_are_restored_by_their_owner: "entries", At::Replica;
    entry_ids_that_their_owner_cannot_read_are_restored: "ids", At::Owner;
}

/// Reads that meet damage go to a member that can answer, and what was healed stays healed.
#[tokio::test(flavor = "multi_thread")]
async fn a_healed_context_stays_healed_and_its_readers_never_notice() {
    let (damaged, other) = neighbours();
    let scrub = ["--scrub-rate", "1GiB", "--scrub-pause", "200ms"];
    let mut trio = Trio::start(&scrub);
    trio.owner(&damaged, true).await;
    for number in 1..=ENTRIES {
        trio.append(0, &damaged, number).await;
    }
    trio.append(0, &other, 1).await;
    trio.forget(&[&damaged, &other]).await;
    let owner = trio.owner(&damaged, true).await;
    let hurt = (owner + 1) % NAMES.len();
    let rpc = trio.rpc(hurt).await;
    assert!(flip(&trio.data(hurt), "entries") > 0);
    let healed = || trio.node(hurt).metric("ledger_cluster_healed_contexts_total").unwrap_or_default();
    let passes = || trio.node(hurt).log().matches("scrub pass done").count();
    // Every read through the node from the moment of the damage on, until it has been well for ten passes of the scrub.
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut since = None;
    while since.is_none_or(|begun| passes() < begun + 10) {
        assert!(Instant::now() < deadline, "it is not healed for good:\n{}", trio.node(hurt).log());
        let read = rpc.entries(&damaged, 0).await;
        let read = read.unwrap_or_else(|status| panic!("a read met the damage: {status}"));
        assert_eq!(read.len() as u64, ENTRIES);
        match (healed() > 0.0 && trio.damaged(hurt) == Some(0.0), since) {
            (true, None) => since = Some(passes()),
            (true, Some(_)) => {}
            (false, _) => since = None,
        }
    }
    let times = healed();
    assert!(times < 4.0, "it was healed {times} times: it does not hold");
    trio.all_have(&damaged, ENTRIES).await;
}

/// A node that takes a slot over fetches from a member whose damage nobody has read yet: what does not come is not taken
/// for all there is, and waits for the member that has it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_cannot_read_is_missing_from_a_takeover() {
    // So slow that the node that is to take over has nothing written when the owner ends.
    let mut trio = Trio::start(&["--catch-up-rate", "1KiB", "--scrub-rate", "0"]);
    let names = || NAMES.iter().map(|name| NodeId::new(*name).unwrap());
    let of =
        |context: &str| rendezvous::preference_order(Slot::of(&ContextId::new(context).unwrap()), names());
    let context = "taken-over";
    let order = of(context).into_iter().map(|node| names().position(|name| name == node).unwrap());
    let [owner, taker, source] = order.collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(trio.owner(context, true).await, owner, "the first in order has it");

    trio.kill(taker);
    for number in 1..=ENTRIES {
        assert_eq!(trio.append(source, context, number).await, number);
    }
    // What it holds is in a table file, and in no cache.
    trio.nodes[source].take().unwrap().stop_cleanly();
    trio.begin(source);
    until_async("the source is in step", async || {
        let location = trio.located(owner, context).await?;
        location.replicas.iter().any(|of| of.node_id == NAMES[source] && of.in_step).then_some(())
    })
    .await;
    assert_eq!(trio.owner(context, false).await, owner);
    assert!(flip(&trio.data(source), "entries") > 0);

    trio.begin(taker);
    until_async("it has begun to catch up", async || {
        (trio.node(taker).metric("ledger_cluster_fetched_entries_total")? >= ENTRIES as f64).then_some(())
    })
    .await;
    trio.kill(owner);
    until_async("the damage is met", async || (trio.damaged(source)? > 0.0).then_some(())).await;
    trio.begin(owner);
    assert_eq!(trio.append(taker, context, ENTRIES + 1).await, ENTRIES + 1, "the next entry is the next");
    trio.all_have(context, ENTRIES + 1).await;
    assert_eq!(trio.forks(context).await, 0, "nothing is left because of what a disk cannot read");
}

/// What nothing heals in place ends with the node copied anew whole, by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_damaged_for_good_has_itself_replaced() {
    let mut trio =
        Trio::start(&["--scrub-rate", "1GiB", "--scrub-pause", "200ms", "--replace-damaged", "1s"]);
    let contexts: Vec<String> = (0..20).map(|number| format!("context-{number}")).collect();
    for context in &contexts {
        trio.append(0, context, 1).await;
    }
    let all: Vec<&str> = contexts.iter().map(String::as_str).collect();
    trio.forget(&all).await;
    assert!(flip(&trio.data(0), "slots") > 0);

    let stopped = trio.nodes[0].take().unwrap().wait();
    assert_eq!(stopped.status.code(), Some(5), "{}", stopped.log);
    assert!(stopped.log.contains("has itself replaced"), "{}", stopped.log);
    // The others lack nothing meanwhile.
    for context in &all {
        assert_eq!(trio.append(1, context, 2).await, 2);
    }
    trio.begin(0);
    assert!(trio.node(0).log().contains("is set aside"), "{}", trio.node(0).log());
    trio.in_step(&all).await;
    for context in &all {
        trio.all_have(context, 2).await;
        assert_eq!(trio.append(0, context, 3).await, 3);
        assert_eq!(trio.forks(context).await, 0);
    }
    assert_eq!(trio.node(0).metric("ledger_store_damaged_families"), Some(0.0));
}

/// The records of what was promised are read by the scrub too, said, and written anew from memory: the node goes on
/// promising, so that slots find owners when another node is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_slot_record_is_said_and_no_promise_is_forgotten() {
    let scrub = ["--scrub-rate", "1GiB", "--scrub-pause", "200ms"];
    let mut trio = Trio::start(&scrub);
    let contexts: Vec<String> = (0..60).map(|number| format!("context-{number}")).collect();
    for context in &contexts {
        trio.append(0, context, 1).await;
    }
    let some: Vec<&str> = contexts.iter().take(5).map(String::as_str).collect();
    trio.forget(&some).await;
    assert!(flip(&trio.data(0), "slots") > 0);
    until_async("the damage is said", async || {
        (trio.node(0).metric("ledger_store_damaged_families")? > 0.0).then_some(())
    })
    .await;
    assert_eq!(trio.node(0).metric("ledger_store_damaged_slots"), Some(0.0), "records are known from memory");

    // Another node is replaced, as documented: an empty directory under the same name.
    trio.kill(1);
    fs::remove_dir_all(trio.data(1)).unwrap();
    trio.begin(1);
    for context in &contexts {
        assert_eq!(trio.append(2, context, 2).await, 2);
    }
    for context in &contexts {
        trio.owner(context, true).await;
        trio.all_have(context, 2).await;
    }
    for (index, name) in NAMES.iter().enumerate() {
        // Passes of the scrub are told each, as often as they were asked for.
        let log = trio.node(index).log();
        let lines = log.lines().filter(|line| !line.contains("scrub pass done")).count();
        assert!(lines < 100, "node {name} wrote {lines} lines:\n{}", trio.node(index).log());
    }
    assert_eq!(trio.append(0, &contexts[0], 2).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_what_its_node_and_the_owner_cannot_read_goes_on_at_the_last_replica() {
    let context = "damaged";
    let mut trio = Trio::start(&["--scrub-rate", "0"]);
    trio.owner(context, true).await;
    for number in 1..=ENTRIES {
        trio.append(0, context, number).await;
    }
    trio.forget(&[context]).await;
    let owner = trio.owner(context, true).await;
    let reader = (owner + 1) % NAMES.len();
    for hurt in [reader, owner] {
        assert!(flip(&trio.data(hurt), "entries") > 0);
    }
    let request = WatchRequest { context_id: context.to_owned(), ..WatchRequest::default() };
    let mut watch = trio.rpc(reader).await.ledger.watch(request).await.unwrap().into_inner();
    let mut seen = 0;
    while seen < ENTRIES {
        let batch = timeout(Duration::from_secs(20), watch.message()).await.expect("it goes on").unwrap();
        for entry in batch.expect("it goes on").entries {
            seen += 1;
            assert_eq!((entry.sequence, entry.payload), (seen, payload(seen)));
        }
    }
}
