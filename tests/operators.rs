//! Who may have a node do what is an operator's: each node a process of its own, which is called at an address of this machine
//! that is not a loopback one.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use ledger_core::{
    call_proof::{CallProof, Nonce, body_hash},
    cluster_key::CallKey,
    node::{Incarnation, Member, NodeId, StorageId},
};
use ledger_proto::ledger::v1::{
    DecommissionRequest, DrainRequest, GreetRequest, MembersRequest, RecoverRequest, SlotMember,
    cluster_service_client::ClusterServiceClient, replica_service_client::ReplicaServiceClient,
};
use ledger_tests::{Node, node::ledgerctl, node::ledgerd, repository, until};
use tempfile::TempDir;
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Channel};

/// What only operators may have a node do.
const OPERATORS: [&str; 3] = ["Drain", "Decommission", "Recover"];
/// What clients may: it changes at most contexts, or who looks at them.
const CLIENTS: [&str; 18] = [
    "Append",
    "Broadcast",
    "Checkpoint",
    "ConsistencyProof",
    "Contexts",
    "ForkEntries",
    "Forks",
    "Get",
    "InclusionProof",
    "Join",
    "Leave",
    "Load",
    "Locate",
    "Members",
    "Recoveries",
    "Snapshot",
    "Watch",
    "WatchCluster",
];
const KEY: [u8; 32] = [7; 32];

/// An address of this machine that others could call it at. Nothing is sent to find it.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.254:9").expect("this machine has a network interface beside the loopback one");
    let address = socket.local_addr().unwrap().ip();
    assert!(!address.is_loopback() && !address.is_unspecified(), "{address}");
    address
}

/// Two nodes that keep all, and are called at this machine's own address.
struct Two {
    dir: TempDir,
    nodes: Vec<Node>,
}

impl Two {
    fn start() -> Self {
        Self::start_with(own_address(), &[])
    }

    fn start_with(address: IpAddr, flags: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("keys"), hex::encode(KEY)).unwrap();
        fs::write(dir.path().join("others"), hex::encode([8; 32])).unwrap();
        let free = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let gossip = [free(), free()];
        let start = |number: usize| {
            let mut command = ledgerd();
            command.arg("--data-dir").arg(dir.path().join(number.to_string()));
            command.args(["--grpc-listen", &SocketAddr::new(address, 0).to_string()]);
            command.args(["--http-listen", "127.0.0.1:0", "--node-id", &format!("n{number}")]);
            command.args(["--gossip-listen", &gossip[number].to_string(), "--gossip-interval", "100ms"]);
            command.args(["--seeds", &format!("{},{}", gossip[0], gossip[1]), "--first-nodes", "n0,n1"]);
            command.args(["--copies", "2", "--cluster-key-file"]).arg(dir.path().join("keys")).args(flags);
            Node::try_run(command).unwrap()
        };
        let nodes = vec![start(0), start(1)];
        let two = Self { dir, nodes };
        two.settle();
        two
    }

    fn settle(&self) {
        until("both nodes own slots, with all copies", || {
            let sum = |metric: &str| self.nodes.iter().filter_map(|node| node.metric(metric)).sum::<f64>();
            let is_settled =
                sum("ledger_cluster_slots_owned") >= 1024.0 && sum("ledger_cluster_replicas_behind") == 0.0;
            (is_settled && self.owned(0) > 0.0 && self.owned(1) > 0.0).then_some(())
        });
    }

    fn owned(&self, node: usize) -> f64 {
        self.nodes[node].metric("ledger_cluster_slots_owned").unwrap_or_default()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ledgerctl` at the first node: its exit code and what it complained of.
    fn ctl(&self, args: &[&str], key: Option<&str>) -> (i32, String) {
        let mut command = ledgerctl();
        command.args(args).env("LEDGER_ENDPOINT", self.nodes[0].endpoint());
        if let Some(key) = key {
            command.arg("--cluster-key-file").arg(self.file(key));
        }
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

async fn channel(node: &Node) -> Channel {
    Channel::from_shared(node.endpoint()).unwrap().connect().await.unwrap()
}

#[test]
fn an_operator_on_another_machine_needs_the_clusters_key() {
    let two = Two::start();
    let commands: [&[&str]; 4] = [
        &["cluster", "drain"],
        &["cluster", "drain", "--resume"],
        &["cluster", "recover"],
        &["cluster", "decommission", "n1"],
    ];
    for command in commands {
        let (code, error) = two.ctl(command, None);
        assert_ne!(code, 0, "{command:?}");
        for part in ["only operators", "loopback", "--cluster-key-file"] {
            assert!(error.contains(part), "{command:?}: {error}");
        }
        let (code, error) = two.ctl(command, Some("others"));
        assert!(code == 2 && error.contains("another key"), "{command:?}: {code}: {error}");
        let (code, error) = two.ctl(command, Some("nothing-there"));
        assert!(code == 2 && error.contains("nothing-there"), "{command:?}: {code}: {error}");
    }
    assert!(two.owned(0) > 0.0, "nothing of it was done");

    let (code, error) = two.ctl(&["cluster", "drain"], Some("keys"));
    assert_eq!(code, 0, "{error}");
    until("it owns nothing", || (two.owned(0) < 0.5 && two.owned(1) > 1023.5).then_some(()));
    // By the environment, too.
    let mut resume = ledgerctl();
    resume.args(["cluster", "drain", "--resume"]).env("LEDGER_ENDPOINT", two.nodes[0].endpoint());
    let resumed = resume.env("LEDGER_CLUSTER_KEY_FILE", two.file("keys")).output().unwrap();
    assert!(resumed.status.success(), "{resumed:?}");
    two.settle();
    let (code, error) = two.ctl(&["cluster", "recover"], Some("keys"));
    assert_eq!(code, 0, "{error}");
    // The other node is asked through this one's list, and has its own reason to refuse.
    let (code, error) = two.ctl(&["cluster", "decommission", "n1"], Some("keys"));
    assert!(code == 2 && error.contains("copies"), "{code}: {error}");
    assert!(two.nodes[0].log().contains("ledgerctl, who has the cluster's key"), "{}", two.nodes[0].log());
}

#[test]
fn where_a_proxy_makes_everybody_local_only_the_key_counts() {
    let two = Two::start_with(Ipv4Addr::LOCALHOST.into(), &["--operators", "key"]);
    for command in [&["cluster", "drain"][..], &["cluster", "recover"], &["cluster", "decommission", "n1"]] {
        let (code, error) = two.ctl(command, None);
        assert!(code != 0 && error.contains("operators = \"key\""), "{command:?}: {code}: {error}");
    }
    assert!(two.owned(0) > 0.0, "nothing of it was done");
    let (code, error) = two.ctl(&["cluster", "drain"], Some("keys"));
    assert_eq!(code, 0, "{error}");
    until("it owns nothing", || (two.owned(0) < 0.5).then_some(()));

    let mut without = ledgerd();
    without.args(["--data-dir", "/nonexistent", "--operators", "key"]);
    let refused = without.output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && error.contains("cluster_key_file"), "{refused:?}");
}

/// What somebody has who sits beside an operator's connection, or has the key.
struct Session {
    from: Member,
    to: Member,
    caller: Nonce,
    called: Nonce,
}

impl Session {
    async fn greet(channel: Channel) -> Self {
        let members =
            ClusterServiceClient::new(channel.clone()).members(MembersRequest {}).await.unwrap().into_inner();
        let itself = members.members.into_iter().find(|member| member.node_id == members.node_id).unwrap();
        let storage = StorageId::parse(&itself.storage_id).unwrap();
        let to = Member { node: NodeId::new(&itself.node_id).unwrap(), storage };
        let from = Member { node: NodeId::new("somebody").unwrap(), storage: StorageId(rand::random()) };
        let caller: Nonce = rand::random();
        let wire = |member: &Member| {
            let storage_id = member.storage.0.to_vec().into();
            Some(SlotMember { node_id: member.node.to_string(), storage_id })
        };
        let greeting = GreetRequest { from: wire(&from), to: wire(&to), nonce: caller.to_vec().into() };
        let answer = ReplicaServiceClient::new(channel).greet(greeting).await.unwrap().into_inner();
        Self { from, to, caller, called: answer.nonce.as_ref().try_into().unwrap() }
    }

    fn proof(&self, call_number: u64, key: [u8; 32], method: &str, framed: &[u8]) -> Vec<u8> {
        let proof = CallProof {
            from: self.from.clone(),
            incarnation: Incarnation(0),
            caller: self.caller,
            called: self.called,
            call_number,
            body: Some(body_hash(framed)),
        };
        proof.prove_with(&CallKey::of(&key), method, &self.to)
    }
}

fn with<T>(message: T, proof: &[u8]) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert_bin("converge-call-bin", MetadataValue::from_bytes(proof));
    request
}

/// As gRPC sends `DrainRequest { resume: true }`, and one of nothing.
const RESUME: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];
const EMPTY: [u8; 5] = [0; 5];

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_was_overheard_opens_nothing() {
    let two = Two::start();
    let (one, other) = (channel(&two.nodes[0]).await, channel(&two.nodes[0]).await);
    let session = Session::greet(one.clone()).await;
    let resume = DrainRequest { resume: true };
    let drain = DrainRequest { resume: false };
    let is_refused = |answer: Status, why: &str| {
        assert!(answer.code() == Code::PermissionDenied && answer.message().contains(why), "{why}: {answer}");
    };
    let (mut at_one, mut at_other) = (ClusterServiceClient::new(one), ClusterServiceClient::new(other));

    let good = session.proof(1, KEY, "Drain", &RESUME);
    at_one.drain(with(resume, &good)).await.unwrap();
    for service in [&mut at_one, &mut at_other] {
        is_refused(service.drain(with(resume, &good)).await.unwrap_err(), "made before");
        is_refused(service.drain(with(drain, &good)).await.unwrap_err(), "made before");
    }
    // One that was not used yet is good for what it was made for: another message uses it up.
    let unused = session.proof(2, KEY, "Drain", &RESUME);
    is_refused(
        at_other.recover(with(RecoverRequest::default(), &unused)).await.unwrap_err(),
        "does not hold",
    );
    is_refused(at_other.drain(with(drain, &unused)).await.unwrap_err(), "does not hold");
    // With another key, of another node, without any.
    let stranger = session.proof(3, [8; 32], "Drain", &RESUME);
    is_refused(at_one.drain(with(resume, &stranger)).await.unwrap_err(), "does not hold");
    let mut at_neighbour = ClusterServiceClient::new(channel(&two.nodes[1]).await);
    let elsewhere =
        at_neighbour.drain(with(resume, &session.proof(4, KEY, "Drain", &RESUME))).await.unwrap_err();
    assert!(matches!(elsewhere.code(), Code::Unauthenticated | Code::PermissionDenied), "{elsewhere}");
    is_refused(at_one.drain(resume).await.unwrap_err(), "only operators");
    at_one.drain(with(drain, &session.proof(5, KEY, "Drain", &EMPTY))).await.unwrap();
}

/// Passes connections on to a node, and keeps what was sent on each.
fn listen_in(node: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let (address, heard) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::<Vec<u8>>::new())));
    let kept = Arc::clone(&heard);
    thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut server = TcpStream::connect(node).unwrap();
            let (mut answers, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut answers, &mut to_client));
            let kept = Arc::clone(&kept);
            thread::spawn(move || {
                let mut sent = Vec::new();
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = client.read(&mut bytes) {
                    sent.extend(&bytes[..count]);
                    if server.write_all(&bytes[..count]).is_err() {
                        break;
                    }
                }
                // Nobody waits for more.
                let _ = server.shutdown(Shutdown::Write);
                kept.lock().unwrap().push(sent);
            });
        }
    });
    (address, heard)
}

#[test]
fn what_an_operator_sent_is_worth_nothing_on_another_connection() {
    let two = Two::start();
    let (address, heard) = listen_in(two.nodes[0].grpc);
    let mut drain = ledgerctl();
    drain.args(["cluster", "drain", "--endpoint", &format!("http://{address}"), "--cluster-key-file"]);
    let drained = drain.arg(two.file("keys")).output().unwrap();
    assert!(drained.status.success(), "{drained:?}");
    until("it owns nothing", || (two.owned(0) < 0.5 && two.owned(1) > 1023.5).then_some(()));
    let (code, error) = two.ctl(&["cluster", "drain", "--resume"], Some("keys"));
    assert_eq!(code, 0, "{error}");
    two.settle();

    let refused = || two.nodes[0].metric("ledger_cluster_calls_refused_total").unwrap();
    let before = refused();
    let sent = until("all that was sent is known", || {
        // Whatever connection the call was made on.
        let heard = heard.lock().unwrap();
        heard.iter().max_by_key(|sent| sent.len()).cloned()
    });
    let mut again = TcpStream::connect(two.nodes[0].grpc).unwrap();
    again.write_all(&sent).unwrap();
    until("it is refused", || (refused() > before).then_some(()));
    assert!(two.owned(0) > 0.0, "nothing was drained");
    let drains = two.nodes[0].log().matches("asked to drain").count();
    assert_eq!(drains, 2, "once each: {}", two.nodes[0].log());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_that_changes_a_node_is_for_operators_only() {
    let protos = [
        "converge/ledger/v1/cluster",
        "converge/ledger/v1/integrity",
        "converge/ledger/v1/ledger",
        "converge/context/v1/context",
    ];
    let mut methods = BTreeSet::new();
    for proto in protos {
        let text = fs::read_to_string(repository().join(format!("proto/{proto}.proto"))).unwrap();
        let calls = text.lines().filter_map(|line| line.trim().strip_prefix("rpc "));
        methods.extend(calls.map(|call| call.split_once('(').unwrap().0.to_owned()));
    }
    let known: BTreeSet<_> = OPERATORS.iter().chain(&CLIENTS).map(ToString::to_string).collect();
    assert_eq!(methods, known, "a new call belongs into one of the two lists");

    let two = Two::start();
    let mut service = ClusterServiceClient::new(channel(&two.nodes[0]).await);
    let refused = [
        service.drain(DrainRequest::default()).await.unwrap_err(),
        service.decommission(DecommissionRequest::default()).await.unwrap_err(),
        service.recover(RecoverRequest::default()).await.unwrap_err(),
        service.recover(RecoverRequest { apply: true, ..RecoverRequest::default() }).await.unwrap_err(),
    ];
    for refused in refused {
        assert!(
            refused.code() == Code::PermissionDenied && refused.message().contains("loopback"),
            "{refused}"
        );
    }
}
