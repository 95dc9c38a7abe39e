//! What a node writes to its log while strangers, peers and clients do all they can to fill it: few lines, each node a process of
//! its own.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream, UdpSocket},
};

use ledger_proto::{
    context::v1::{GetRequest, context_service_client::ContextServiceClient},
    ledger::v1::{SlotAsks, replica_service_client::ReplicaServiceClient},
};
use ledger_tests::{
    Node,
    node::{ledgerctl, ledgerd},
    skip,
    tools::Certificates,
    until,
};
use tempfile::TempDir;
use tonic::{Code, Request, metadata::MetadataValue, transport::Channel};

/// How often each of them tries.
const TIMES: usize = 2_000;
/// Lines that a node may write meanwhile: five of each place in half a minute, and some of its own.
const FEW: usize = 80;

fn lines(node: &Node) -> usize {
    node.log().lines().count()
}

fn assert_few(node: &Node, before: usize, what: &str) {
    let written = lines(node) - before;
    assert!(written <= FEW, "{what}: {written} lines:\n{}", node.log());
}

/// Connects, says something that is no handshake, and goes.
fn knock(at: SocketAddr) {
    // The node may have closed it before all was written.
    if let Ok(mut stream) = TcpStream::connect(at) {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: \x1b[2J\r\n\r\n");
    }
}

#[test]
fn thousands_of_bad_handshakes_and_of_connections_too_many_are_few_lines() {
    let dir = TempDir::new().unwrap();
    let certificates = match Certificates::make(dir.path()) {
        Ok(certificates) => certificates,
        Err(why) => return skip(&format!("bad handshakes: {why}")),
    };
    let (cert, key) = (certificates.path("server.pem"), certificates.path("server.key"));
    let flags = ["--tls-cert", &cert, "--tls-key", &key, "--max-connections", "64"];
    let node = Node::start_with(&dir.path().join("data"), &flags);
    let before = lines(&node);
    for _ in 0..TIMES {
        knock(node.grpc);
    }
    // As many as there may be stay open, and the others come in their place.
    let open: Vec<_> = (0..TIMES).filter_map(|_| TcpStream::connect(node.grpc).ok()).collect();
    until("connections were closed for others, or refused", || {
        let text = node.http_get("/metrics");
        let count = |name: &str| {
            let values =
                text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
            values.filter_map(|value| value.parse::<f64>().ok()).sum::<f64>()
        };
        let gone = count("ledger_connections_evicted_total") + count("ledger_connections_refused_total");
        (count("ledger_failed_handshakes_total") > 100.0 && gone > 100.0).then_some(())
    });
    assert_few(&node, before, "bad handshakes");
    assert!(
        node.log().contains("as many connections as there may be"),
        "it is said, though:\n{}",
        node.log()
    );
    drop(open);
    node.stop_cleanly();
}

/// A node of a cluster of so many.
fn begin(
    name: &str,
    dir: &TempDir,
    gossip: SocketAddr,
    seeds: &[SocketAddr],
    first: &str,
    copies: &str,
) -> Node {
    let seeds = seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut command = ledgerd();
    command.arg("--data-dir").arg(dir.path().join(name));
    command.args([
        "--grpc-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
        "--gossip-interval",
        "100ms",
    ]);
    command.args(["--node-id", name, "--gossip-listen", &gossip.to_string()]);
    if !seeds.is_empty() {
        command.args(["--seeds", &seeds]);
    }
    command.args(["--first-nodes", first, "--copies", copies]);
    Node::try_run(command).unwrap()
}

fn owned(nodes: &[&Node]) -> f64 {
    nodes.iter().filter_map(|node| node.metric("ledger_cluster_slots_owned")).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_another_cluster_and_peers_that_come_and_go_are_few_lines() {
    let dir = TempDir::new().unwrap();
    let free = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gossip = [free(), free(), free()];
    // A cluster of its own that has the same name, which is then told of the other one.
    let stranger = begin("x0", &dir, gossip[2], &[], "x0", "1");
    until("the other cluster forms", || (owned(&[&stranger]) >= 1024.0).then_some(()));
    stranger.stop_cleanly();
    let seeds = &gossip[..2];
    let node = begin("n0", &dir, gossip[0], seeds, "n0,n1", "2");
    let peer = begin("n1", &dir, gossip[1], seeds, "n0,n1", "2");
    until("the cluster forms", || (owned(&[&node, &peer]) >= 1024.0).then_some(()));
    let before = lines(&node);
    let stranger = begin("x0", &dir, gossip[2], seeds, "x0", "1");
    let of_stranger = lines(&stranger);

    let channel = Channel::from_shared(node.endpoint()).unwrap().connect().await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut replicas = ReplicaServiceClient::new(channel.clone());
    let mut contexts = ContextServiceClient::new(channel);
    for number in 0..TIMES {
        // Nobody's datagrams, and such as claim to be of a format.
        let first = [0xc0, 0xc1, 0xc2, 0xc3, 0xff][number % 5];
        socket.send_to(&[&[first][..], &number.to_be_bytes(), &[7; 60]].concat(), gossip[0]).unwrap();
        // Calls between nodes, without a proof and with a bad one.
        let mut asks = Request::new(SlotAsks::default());
        if number % 2 == 0 {
            asks.metadata_mut().insert_bin("converge-call-bin", MetadataValue::from_bytes(&[1; 130]));
        }
        let refused = replicas.slots(asks).await.unwrap_err();
        assert!(matches!(refused.code(), Code::PermissionDenied | Code::Unauthenticated), "{refused}");
        let wrong = contexts
            .get(GetRequest { context_id: "\u{202e}\n".into(), ..GetRequest::default() })
            .await
            .unwrap_err();
        assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong}");
    }
    // The other node goes and comes back, again and again.
    let mut peer = Some(peer);
    for _ in 0..5 {
        peer.take().unwrap().kill();
        until("it is seen to be gone", || (node.metric("ledger_cluster_members_away")? > 0.5).then_some(()));
        peer = Some(begin("n1", &dir, gossip[1], seeds, "n0,n1", "2"));
        until("it is back", || (owned(&[&node, peer.as_ref()?]) >= 1024.0).then_some(()));
    }
    until("the other cluster is refused", || {
        (node.metric("ledger_gossip_other_cluster_total")? > 50.0).then_some(())
    });
    assert_few(&node, before, "the node");
    assert_few(&stranger, of_stranger, "the one of another cluster");
    assert!(node.log().contains("a node of another cluster"), "it is said, though:\n{}", node.log());
    // It goes on being of use.
    let mut append = ledgerctl();
    append.args(["append", "logs", "facts", "x"]).env("LEDGER_ENDPOINT", node.endpoint());
    assert!(append.output().unwrap().status.success());
}
