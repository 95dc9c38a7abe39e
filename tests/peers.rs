//! Who is a node, and where the others are: as processes.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
    sync::atomic::{AtomicU8, Ordering},
};

use ledger_proto::ledger::v1::LoadChunk;
use ledger_tests::{Node, Refused, node::ledgerd, until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

/// Exit codes of `ledgerd`.
const REPLACED: i32 = 6;
const TAKEN: i32 = 7;
const FORCED: i32 = 130;

/// Where a node is: an address of its own on the loopback network, with ports that were free just now.
#[derive(Debug, Clone, Copy)]
struct Place {
    gossip: SocketAddr,
    grpc: SocketAddr,
}

impl Place {
    fn new() -> Self {
        static LAST: AtomicU8 = AtomicU8::new(1);
        let ip = [127, 14, (std::process::id() % 250) as u8 + 1, LAST.fetch_add(1, Ordering::Relaxed)];
        let gossip = UdpSocket::bind(SocketAddr::from((ip, 0))).unwrap().local_addr().unwrap();
        let grpc = TcpListener::bind(SocketAddr::from((ip, 0))).unwrap().local_addr().unwrap();
        Self { gossip, grpc }
    }
}

fn try_start(name: &str, dir: &Path, place: Place, seeds: &str) -> Result<Node, Refused> {
    try_start_with(name, dir, place, seeds, "2s")
}

fn try_start_with(name: &str, dir: &Path, place: Place, seeds: &str, grace: &str) -> Result<Node, Refused> {
    let mut command = ledgerd();
    command.arg("--data-dir").arg(dir).args(["--node-id", name, "--http-listen", "127.0.0.1:0"]);
    command.args(["--grpc-listen", &place.grpc.to_string(), "--gossip-listen", &place.gossip.to_string()]);
    command.args(["--gossip-interval", "100ms", "--shutdown-grace", grace]);
    if !seeds.is_empty() {
        command.args(["--seeds", seeds]);
    }
    Node::try_run(command)
}

fn start(name: &str, dir: &Path, place: Place, seeds: &str) -> Node {
    try_start(name, dir, place, seeds)
        .unwrap_or_else(|refused| panic!("ledgerd ended with {}:\n{}", refused.status, refused.log))
}

/// The nodes that a node hears, itself included, as the metric shows them.
fn alive(node: &Node) -> Option<String> {
    node.metric("ledger_cluster_members_alive").map(|alive| alive.to_string())
}

/// Waits until a node sees so many, itself included.
fn sees(node: &Node, count: usize) {
    until("the nodes see each other", || (alive(node)? == count.to_string()).then_some(()));
}

struct Three {
    dirs: [TempDir; 3],
    places: [Place; 3],
    nodes: Vec<Option<Node>>,
}

impl Three {
    fn start() -> Self {
        let dirs = [(); 3].map(|()| TempDir::new().unwrap());
        let places = [(); 3].map(|()| Place::new());
        let seeds = places[0].gossip.to_string();
        let nodes = (0..3).map(|at| Some(start(&format!("n{at}"), dirs[at].path(), places[at], &seeds)));
        let three = Self { nodes: nodes.collect(), dirs, places };
        three.nodes.iter().flatten().for_each(|node| sees(node, 3));
        three
    }

    fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().unwrap()
    }
}

fn is_ready(node: &Node) -> bool {
    node.http_get("/readyz").starts_with("ready")
}

#[test]
fn a_second_process_of_a_name_is_refused_while_the_first_is_well_and_told_where_that_is() {
    let three = Three::start();
    let (dir, place) = (TempDir::new().unwrap(), Place::new());
    // Whether it is told of the first one, or of one that knows it, or of one that is the same.
    for seeds in [three.places[1].gossip.to_string(), three.places[0].gossip.to_string()] {
        let refused = try_start("n0", dir.path(), place, &seeds).unwrap_err();
        assert_eq!(refused.status.code(), Some(TAKEN), "{}", refused.log);
        for part in
            [three.places[0].gossip.to_string(), three.places[0].grpc.to_string(), "node_id".to_owned()]
        {
            assert!(refused.log.contains(&part), "{part}: {}", refused.log);
        }
    }
    assert!(is_ready(three.node(0)));
    three.nodes.iter().flatten().for_each(|node| sees(node, 3));
    // Under another name it takes part.
    let fourth = start("n3", dir.path(), place, &three.places[1].gossip.to_string());
    sees(&fourth, 4);
}

#[test]
fn a_process_that_is_not_its_node_any_more_ends_by_itself_and_comes_back_when_the_other_is_gone() {
    let mut three = Three::start();
    let seeds = three.places[1].gossip.to_string();
    let first = three.nodes[0].take().unwrap();
    let pid = Pid::from_raw(i32::try_from(first.pid()).unwrap()).unwrap();
    // It does not answer, as if its machine stood still: another one takes its place.
    kill_process(pid, Signal::STOP).unwrap();
    let (dir, place) = (TempDir::new().unwrap(), Place::new());
    let second = start("n0", dir.path(), place, &seeds);
    sees(&second, 3);
    sees(three.node(1), 3);
    kill_process(pid, Signal::CONT).unwrap();
    let ended = first.wait();
    assert_eq!(ended.status.code(), Some(REPLACED), "{}", ended.log);
    assert!(ended.log.contains("another process runs as this node, n0"), "{}", ended.log);
    // What a supervisor does: as long as the other is well there is no place for it.
    let again = || try_start("n0", three.dirs[0].path(), three.places[0], &seeds);
    let refused = again().unwrap_err();
    assert_eq!(refused.status.code(), Some(TAKEN), "{}", refused.log);
    assert!(refused.log.contains(&place.grpc.to_string()), "{}", refused.log);
    assert!(is_ready(&second));
    second.stop_cleanly();
    let back = again().unwrap_or_else(|refused| panic!("{}:\n{}", refused.status, refused.log));
    sees(&back, 3);
    assert!(is_ready(&back));
}

#[test]
fn with_dns_gone_a_node_with_another_address_joins_by_where_the_others_were() {
    let mut three = Three::start();
    for dir in &three.dirs {
        let kept = dir.path().join("peers");
        until("where the others are is kept", || {
            std::fs::read_to_string(&kept).ok().filter(|text| text.lines().count() == 3)
        });
    }
    let nowhere = "ledger.invalid:7946";
    // Two of three get other addresses, one after the other: each finds one that is where it was, and is found.
    for at in [0, 1] {
        three.nodes[at].take().unwrap().stop_cleanly();
        three.places[at] = Place::new();
        let node = start(&format!("n{at}"), three.dirs[at].path(), three.places[at], nowhere);
        sees(&node, 3);
        three.nodes[at] = Some(node);
        three.nodes.iter().flatten().for_each(|node| sees(node, 3));
        for (dir, _) in three.dirs.iter().zip(0..).filter(|(_, other)| *other != at) {
            let place = three.places[at].gossip.to_string();
            until("the new address is kept", || {
                std::fs::read_to_string(dir.path().join("peers")).ok().filter(|text| text.contains(&place))
            });
        }
    }
    // All had their addresses from before when this one was started: its own is another, and theirs by now, too.
    three.nodes[2].take().unwrap().kill();
    let node = start("n2", three.dirs[2].path(), three.places[2], nowhere);
    sees(&node, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ends_by_itself_hears_signals_all_the_same() {
    let (dirs, places) = ([(); 3].map(|()| TempDir::new().unwrap()), [(); 3].map(|()| Place::new()));
    let seeds = places[0].gossip.to_string();
    let begin =
        |name: &str, at: usize| try_start_with(name, dirs[at].path(), places[at], &seeds, "10m").unwrap();
    let (other, first) = (begin("n1", 0), begin("n0", 1));
    sees(&other, 2);
    sees(&first, 2);
    // A call that does not end holds its shutdown up.
    let begun = LoadChunk { context_id: "loaded".to_owned(), ..LoadChunk::default() };
    let chunks = tokio_stream::once(begun).chain(tokio_stream::pending());
    let mut ledger = first.rpc().await.ledger;
    let load = tokio::spawn(async move { ledger.load(chunks).await });
    let pid = Pid::from_raw(i32::try_from(first.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let second = begin("n0", 2);
    sees(&second, 2);
    kill_process(pid, Signal::CONT).unwrap();
    until("it ends by itself", || first.log().contains("shutting down").then_some(()));
    first.signal_to_stop();
    until("the node heard it", || first.log().contains("asked to stop").then_some(()));
    first.signal_to_stop();
    let ended = first.wait();
    assert_eq!(ended.status.code(), Some(FORCED), "{}", ended.log);
    load.abort();
}
