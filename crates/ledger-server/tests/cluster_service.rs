//! Who is there, who holds what, and who writes it, on a node by itself and in a cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{collections::BTreeMap, io, sync::Mutex};

use ledger_client::{Append, Appender, Client, Options, Receipts};
use ledger_core::{
    ContextId,
    node::NodeId,
    rendezvous,
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::{
    ClusterChange, DrainRequest, LocateRequest, MembersRequest, WatchClusterRequest,
    cluster_service_client::ClusterServiceClient,
};
use ledger_server::daemon::error::EndError;
use support::{DEADLINE, TestNode, append, assert_retry, copy_dir, field, free_ports, until};
use tonic::{Code, Streaming, transport::Channel};

/// What a watcher of the cluster knows.
struct Watched {
    changes: Streaming<ClusterChange>,
    owners: BTreeMap<u32, String>,
}

impl Watched {
    async fn start(client: &mut ClusterServiceClient<Channel>) -> Self {
        let changes = client.watch_cluster(WatchClusterRequest {}).await.unwrap().into_inner();
        Self { changes, owners: BTreeMap::new() }
    }

    fn owned_by(&self, name: &str) -> usize {
        self.owners.values().filter(|owner| *owner == name).count()
    }

    /// Listens until it is so.
    async fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) {
        let heard = async {
            while !reached(self) {
                let change = self.changes.message().await.unwrap().unwrap();
                self.owners.extend(change.slots.into_iter().map(|location| (location.slot, location.owner)));
            }
        };
        let heard = tokio::time::timeout(DEADLINE, heard).await;
        assert!(heard.is_ok(), "{what}: {} of a, {} of b", self.owned_by("a"), self.owned_by("b"));
    }
}

/// How many slots prefer one of two nodes.
fn preferred_by(name: &str, all: [&str; 2]) -> usize {
    let id = |name: &str| NodeId::new(name).unwrap();
    let first = |slot| rendezvous::preference_order(slot, all.map(id)).swap_remove(0);
    (0..SLOTS).filter_map(Slot::new).filter(|slot| first(*slot) == id(name)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_says_who_owns_what_and_a_node_can_be_drained() {
    let ports = free_ports();
    let (a, b) = tokio::join!(TestNode::join("a", ports, 0), TestNode::join("b", ports, 1));
    let mut client = b.cluster().await;
    let mut watched = Watched::start(&mut client).await;
    watched
        .until("both own slots", |seen| {
            seen.owned_by("a") > 0
                && seen.owned_by("b") > 0
                && seen.owned_by("a") + seen.owned_by("b") == 1024
        })
        .await;
    let answer = client.members(MembersRequest {}).await.unwrap().into_inner();
    assert_eq!((answer.node_id.as_str(), answer.copies, answer.min_copies), ("b", 2, 2));
    let members: Vec<_> = answer.members.iter().map(|member| (&*member.node_id, member.alive)).collect();
    assert_eq!(members, [("a", true), ("b", true)]);
    assert!(answer.members.iter().all(|member| member.incarnation > 0));
    let seen = b.page_with("/api/cluster", "\"node\":\"b\",\"copies\":2").await;
    assert!(seen.contains("\"node\":\"a\",\"address\":"), "{seen}");
    b.page_with("/api/context?id=c", "\"copies\":[{\"node\":\"a\",\"alive\":true").await;

    let mut progress = a.cluster().await.drain(DrainRequest { resume: false }).await.unwrap().into_inner();
    let mut left = Vec::new();
    while let Some(step) = progress.message().await.unwrap() {
        left.push(step.owned);
    }
    assert_eq!(left.last(), Some(&0), "{left:?}");
    watched.until("b owns everything", |seen| seen.owned_by("b") == 1024).await;
    // The owner knows that the other one still keeps copies.
    let request = LocateRequest { context_ids: vec!["demo".into()], slots: Vec::new() };
    let found = client.locate(request).await.unwrap().into_inner().locations;
    assert_eq!(found[0].owner_address, b.server.grpc().to_string());
    assert_eq!(found[0].replicas.iter().filter(|replica| replica.in_step && replica.alive).count(), 2);

    let metrics = b.page_with("/metrics", "ledger_cluster_replicas_in_step 1024").await;
    for line in [
        "# HELP ledger_cluster_slots_owned ",
        "# TYPE ledger_cluster_slots_owned gauge",
        "ledger_cluster_slots_owned 1024",
        "ledger_cluster_slots_without_owner 0",
        "ledger_cluster_replicas_behind 0",
        "ledger_cluster_members_alive 2",
        "# TYPE ledger_cluster_takeovers_total counter",
        "ledger_cluster_forks_total 0",
        "ledger_cluster_anti_entropy_differences_total 0",
        "ledger_gossip_foreign_total 0",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let count = |name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse().unwrap()
    };
    for name in ["takeovers_total", "handovers_total"] {
        assert!(count(&format!("ledger_cluster_{name}")) > 0, "{name}");
    }
    assert!(count("ledger_gossip_received_total") > 0);

    a.cluster().await.drain(DrainRequest { resume: true }).await.unwrap();
    // With two copies of two, a slot that is on its way back could have no owner once a is gone.
    let share = preferred_by("a", ["a", "b"]);
    watched
        .until("a owns its share again", |seen| {
            seen.owned_by("a") == share && seen.owned_by("b") == 1024 - share
        })
        .await;
    // A node hands over before it stops.
    a.stop().await;
    watched.until("b owns everything again", |seen| seen.owned_by("b") == 1024).await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_a_restored_volume_ends_to_be_started_again_as_another_member() {
    let (ports, older) = (free_ports(), tempfile::tempdir().unwrap());
    let (a, b) = tokio::join!(TestNode::join("a", ports, 0), TestNode::join("b", ports, 1));
    let mut watched = Watched::start(&mut a.cluster().await).await;
    watched.until("both are there", |seen| seen.owned_by("a") + seen.owned_by("b") == 1024).await;
    let before = b.server.node().ledger.storage_id();
    let dir = b.stop().await;
    copy_dir(dir.path(), older.path());
    watched.until("a owns everything", |seen| seen.owned_by("a") == 1024).await;
    let b = TestNode::join_in(dir, "b", ports, 1).await;
    // What nobody heard of this start nobody could hold against the next.
    watched.until("b is heard again", |seen| seen.owned_by("b") > 0).await;
    b.stop().await;

    let b = TestNode::join_in(older, "b", ports, 1).await;
    let ended = tokio::time::timeout(DEADLINE, b.server.failed()).await.unwrap();
    assert!(matches!(ended, EndError::Reidentified(_)), "{ended}");
    assert!(ended.to_string().contains("start the node again"), "{ended}");
    // It may have heard that from the other node before that one heard its gossip.
    let mut client = a.cluster().await;
    until("everybody is told why", async || {
        let members = client.members(MembersRequest {}).await.unwrap().into_inner().members;
        members.iter().any(|b| b.node_id == "b" && b.readiness == "set-back").then_some(())
    })
    .await;
    let dir = b.stop().await;

    let b = TestNode::join_in(dir, "b", ports, 1).await;
    let storage = b.server.node().ledger.storage_id();
    assert_ne!(storage, before);
    let mut changes = a.cluster().await.watch_cluster(WatchClusterRequest {}).await.unwrap().into_inner();
    let heard = async {
        let is_back = |change: ClusterChange| {
            change.members.iter().any(|member| member.storage_id == storage && member.readiness == "ready")
        };
        while !is_back(changes.message().await.unwrap().unwrap()) {}
    };
    tokio::time::timeout(DEADLINE, heard).await.unwrap();
    b.stop().await;
    a.stop().await;
}

#[tokio::test]
async fn a_lone_node_is_its_only_member() {
    let node = TestNode::start_with(|config| config.zone = Some("eu-1a".into())).await;
    let answer = node.cluster().await.members(MembersRequest {}).await.unwrap().into_inner();
    assert_eq!((answer.cluster_id.as_str(), answer.copies, answer.min_copies), ("converge", 1, 1));
    let [member] = &answer.members[..] else { panic!("{answer:?}") };
    assert_eq!(member.node_id, answer.node_id);
    assert_eq!(member.storage_id, node.server.node().ledger.storage_id());
    assert_eq!(member.address, node.server.grpc().to_string());
    assert_eq!((member.readiness.as_str(), member.zone.as_str(), member.alive), ("ready", "eu-1a", true));
    assert_eq!(member.slots_owned, 1024);
    node.stop().await;
}

#[tokio::test]
async fn a_lone_node_owns_whatever_is_asked_for() {
    let node = TestNode::start().await;
    let mut client = node.cluster().await;
    let request = LocateRequest { context_ids: vec!["demo".into()], slots: vec![7, 1023] };
    let found = client.locate(request).await.unwrap().into_inner().locations;
    let slot = Slot::of(&ContextId::new("demo").unwrap());
    let expected = [("demo", u32::from(slot.number())), ("", 7), ("", 1023)];
    for (location, (context, slot)) in found.iter().zip(expected) {
        assert_eq!((location.context_id.as_str(), location.slot), (context, slot));
        assert_eq!(location.owner_address, node.server.grpc().to_string());
        assert_eq!((location.replicas.len(), location.replicas[0].in_step), (1, true));
    }
    let all = client.locate(LocateRequest::default()).await.unwrap().into_inner().locations;
    assert_eq!(all.len(), 1024);
    assert!(all.iter().all(|location| location.owner == found[0].owner && location.reason.is_empty()));
    node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_located_names_its_field() {
    let node = TestNode::start().await;
    let mut client = node.cluster().await;
    for (context_ids, slots, name) in [
        (vec![String::new()], vec![], "context_id"),
        (vec!["c".to_owned(); 1001], vec![], "context_ids"),
        (vec![], vec![1024], "slots"),
        (vec![], vec![u32::MAX], "slots"),
        (vec![], vec![0; 1025], "slots"),
    ] {
        let status = client.locate(LocateRequest { context_ids, slots }).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, name), "{status:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_watch_of_the_cluster_shows_everything_and_ends_with_the_node() {
    let node = TestNode::patient().await;
    let mut changes = node.cluster().await.watch_cluster(WatchClusterRequest {}).await.unwrap().into_inner();
    let first = changes.message().await.unwrap().unwrap();
    assert_eq!((first.members.len(), first.slots.len()), (1, 1024));
    tokio::time::timeout(DEADLINE, node.stop()).await.unwrap();
    assert_retry(&changes.message().await.unwrap_err());
}

#[tokio::test]
async fn a_lone_node_has_nobody_to_drain_to() {
    let node = TestNode::start().await;
    let mut client = node.cluster().await;
    let status = client.drain(DrainRequest { resume: false }).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("by itself"), "{status:?}");
    let mut progress = client.drain(DrainRequest { resume: true }).await.unwrap().into_inner();
    assert_eq!(progress.message().await.unwrap().unwrap().owned, 1024);
    assert!(progress.message().await.unwrap().is_none());
    let (_, metrics) = node.http("/metrics").await;
    assert!(
        metrics.contains("ledger_refused_total{rpc=\"ClusterService/Drain\",code=\"FailedPrecondition\"} 1"),
        "{metrics}"
    );
    node.stop().await;
}

/// Clients of a node, each a writer of its own. What they append is stored before the next is sent.
struct Engine {
    client: Client,
    stream: (Appender, Receipts),
}

impl Engine {
    async fn at(node: &TestNode) -> Self {
        let client = Client::connect(&format!("http://{}", node.server.grpc()), &Options::default()).unwrap();
        let stream = client.appender(8).await.unwrap();
        Self { client, stream }
    }

    async fn append(&self, context: &str) {
        self.client.append(facts(context)).await.unwrap();
    }

    async fn stream(&mut self, context: &str) {
        let (appender, receipts) = &mut self.stream;
        appender.send(facts(context)).await.unwrap();
        receipts.next().await.unwrap().unwrap().result.unwrap();
    }
}

fn facts(context: &str) -> Append {
    Append::new(&ContextId::new(context).unwrap(), "facts", "x").unwrap()
}

/// How often a node counted writers that take turns.
async fn interleaved(node: &TestNode) -> u64 {
    let (_, metrics) = node.http("/metrics").await;
    let value = |line: &str| line.strip_prefix("ledger_interleaved_writers_total ")?.trim().parse().ok();
    metrics.lines().find_map(value).unwrap()
}

/// What all nodes of these tests log.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn writers_that_take_turns_on_a_context_are_counted_and_reported_and_not_refused() {
    // For all threads: what another one meets first would not be logged in this one either.
    tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).init();
    let node = TestNode::start().await;
    let (mut a, mut b) = (Engine::at(&node).await, Engine::at(&node).await);
    assert_ne!(a.client.writer(), b.client.writer());
    assert_eq!(a.client.writer(), a.client.clone().writer());
    a.append("turns-unary").await;
    b.append("turns-unary").await;
    assert_eq!(interleaved(&node).await, 0);
    a.append("turns-unary").await;
    b.append("turns-unary").await;
    assert_eq!(interleaved(&node).await, 2);

    for _ in 0..3 {
        a.stream("turns-stream").await;
        a.stream("turns-stream").await;
        b.stream("turns-stream").await;
    }
    assert_eq!(interleaved(&node).await, 6);
    // A writer is the same whichever way its appends take.
    b.append("turns-stream").await;
    assert_eq!(interleaved(&node).await, 6);
    a.append("turns-stream").await;
    b.stream("turns-stream").await;
    assert_eq!(interleaved(&node).await, 8);
    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    for context in ["context=turns-unary", "context=turns-stream"] {
        let reports: Vec<_> = log.lines().filter(|line| line.contains(context)).collect();
        let [report] = &reports[..] else { panic!("one report of {context} in {log}") };
        for part in [" WARN ", "two writers take turns", a.client.writer(), b.client.writer()] {
            assert!(report.contains(part), "{part} in {report}");
        }
    }
    drop((a, b));
    node.stop().await;
}

#[tokio::test]
async fn a_writer_that_takes_over_for_good_is_not_counted_nor_one_without_a_name() {
    let node = TestNode::start().await;
    for _ in 0..3 {
        let mut engine = Engine::at(&node).await;
        for _ in 0..3 {
            engine.append("demo").await;
            engine.stream("demo").await;
        }
    }
    let (a, b) = (Engine::at(&node).await, Engine::at(&node).await);
    let mut nameless = node.contexts().await;
    for name in ["", "two words", &"x".repeat(65)] {
        a.append("a").await;
        let mut request = tonic::Request::new(append("a", "facts", "x"));
        request.metadata_mut().insert("converge-writer", name.parse().unwrap());
        nameless.append(request).await.unwrap();
        nameless.append(append("a", "facts", "x")).await.unwrap();
        b.append("b").await;
    }
    assert_eq!(interleaved(&node).await, 0);
    drop((a, b, nameless));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_counts_writers_whose_appends_come_through_another_node() {
    let ports = free_ports();
    let (a, b) = tokio::join!(TestNode::join("a", ports, 0), TestNode::join("b", ports, 1));
    let mut watched = Watched::start(&mut b.cluster().await).await;
    watched.until("all slots have owners", |seen| seen.owned_by("a") + seen.owned_by("b") == 1024).await;
    let mut progress = a.cluster().await.drain(DrainRequest { resume: false }).await.unwrap().into_inner();
    while progress.message().await.unwrap().is_some() {}
    watched.until("b owns everything", |seen| seen.owned_by("b") == 1024).await;

    // Two come through the node that owns nothing, over one connection; one appends at the owner.
    let (mut x, mut y) = (Engine::at(&a).await, Engine::at(&a).await);
    let mut direct = Engine::at(&b).await;
    for engine in [&mut x, &mut y, &mut direct] {
        engine.append("handed over").await;
        engine.stream("handed over").await;
    }
    assert_eq!(interleaved(&b).await, 0);
    for _ in 0..2 {
        x.append("unary").await;
        y.append("unary").await;
    }
    assert_eq!(interleaved(&b).await, 2);
    for _ in 0..2 {
        x.stream("stream").await;
        y.stream("stream").await;
        direct.stream("stream").await;
    }
    assert_eq!(interleaved(&b).await, 5);
    let metrics = a.page_with("/metrics", "ledger_interleaved_writers_total 0").await;
    assert!(!metrics.contains("ledger_forwarded_appends_total 0"), "{metrics}");
    drop((x, y, direct, watched, progress));
    a.stop().await;
    b.stop().await;
}
