//! What somebody does who listens between nodes, or has the cluster's key and sends what cannot be true.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, StreamExt as _, future::ready};
use ledger_cluster::{
    fuzzing::proven,
    membership::seal::{Keyring, Sealer},
};
use ledger_core::{
    node::{Member, StorageId},
    slot::SLOTS,
};
use ledger_proto::ledger::v1::{
    BelongsRequest, BelongsResponse, CompareAnswer, CompareAsk, FetchRequest, FetchedRange, GreetRequest,
    GreetResponse, KnownAsk, NamedAnswer, NamedAsk, RecoverAnswer, RecoveriesTold, ReplicaReply,
    ReplicateHello, Replicated, SlotAnswer, SlotAnswers, SlotAsk, SlotAsks, SlotClaim, SlotMember,
    SlotNothing, StageProgress, StageRequest,
    replica_service_client::ReplicaServiceClient,
    replica_service_server::{ReplicaService, ReplicaServiceServer},
    replicated::Body,
    slot_answer::Answer,
    slot_ask::Ask,
};
use ledger_store::{ContextId, Options};
use parking_lot::Mutex;
use support::{Node, append, payloads, until};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap, transport::Channel};

const KEY: [u8; 32] = [7; 32];

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Somebody between a node and the others: hears all that they say to it, and may answer in its place.
#[derive(Clone, Default)]
struct Listener(Arc<Heard>);

#[derive(Default)]
struct Heard {
    node: OnceLock<SocketAddr>,
    asks: Mutex<Vec<(MetadataMap, SlotAsks)>>,
    streams: Mutex<Vec<(MetadataMap, ReplicateHello)>>,
    /// Calls are kept from the node.
    keeps: AtomicBool,
    /// Promises are refused with an epoch that nobody can top.
    lies: AtomicBool,
}

impl Listener {
    /// Begins to listen; gives the address that others are to take for the node's.
    async fn begin(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = ReplicaServiceServer::new(self.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        address
    }

    async fn node(&self) -> Result<ReplicaServiceClient<Channel>, Status> {
        connect(*self.0.node.get().unwrap()).await.map_err(|error| Status::unavailable(error.to_string()))
    }
}

async fn connect(address: SocketAddr) -> Result<ReplicaServiceClient<Channel>, tonic::transport::Error> {
    ReplicaServiceClient::connect(format!("http://{address}")).await
}

#[tonic::async_trait]
impl ReplicaService for Listener {
    type ReplicateStream = Answers<ReplicaReply>;
    type FetchStream = Answers<FetchedRange>;
    type StageStream = Answers<StageProgress>;

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetResponse>, Status> {
        self.node().await?.greet(request).await
    }

    async fn belongs(&self, request: Request<BelongsRequest>) -> Result<Response<BelongsResponse>, Status> {
        self.node().await?.belongs(request).await
    }

    async fn slots(&self, request: Request<SlotAsks>) -> Result<Response<SlotAnswers>, Status> {
        let asks = request.get_ref().clone();
        self.0.asks.lock().push((request.metadata().clone(), asks.clone()));
        if self.0.keeps.load(Ordering::SeqCst) {
            return Err(Status::unavailable("kept"));
        }
        if self.0.lies.load(Ordering::SeqCst) {
            let refused = |ask: SlotAsk| SlotAnswer {
                slot: ask.slot,
                answer: Some(Answer::Refused(SlotClaim {
                    epoch: u64::MAX,
                    claimant: "n9".to_owned(),
                    ..SlotClaim::default()
                })),
            };
            return Ok(Response::new(SlotAnswers { answers: asks.asks.into_iter().map(refused).collect() }));
        }
        self.node().await?.slots(request).await
    }

    async fn replicate(
        &self,
        request: Request<Streaming<Replicated>>,
    ) -> Result<Response<Self::ReplicateStream>, Status> {
        let metadata = request.metadata().clone();
        let mut messages = request.into_inner();
        let hello = messages.message().await?.unwrap();
        let Some(Body::Hello(said)) = hello.body.clone() else { panic!("no hello") };
        self.0.streams.lock().push((metadata.clone(), said));
        let all = futures::stream::iter([hello]).chain(messages.filter_map(|message| ready(message.ok())));
        let mut request = Request::new(all);
        *request.metadata_mut() = metadata;
        let answers = self.node().await?.replicate(request).await?.into_inner();
        Ok(Response::new(Box::pin(answers)))
    }

    async fn compare(&self, request: Request<CompareAsk>) -> Result<Response<CompareAnswer>, Status> {
        self.node().await?.compare(request).await
    }

    async fn named(&self, request: Request<NamedAsk>) -> Result<Response<NamedAnswer>, Status> {
        self.node().await?.named(request).await
    }

    async fn known(&self, request: Request<KnownAsk>) -> Result<Response<RecoverAnswer>, Status> {
        self.node().await?.known(request).await
    }

    async fn recoveries(&self, request: Request<RecoveriesTold>) -> Result<Response<RecoveriesTold>, Status> {
        self.node().await?.recoveries(request).await
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let answers = self.node().await?.fetch(request).await?.into_inner();
        Ok(Response::new(Box::pin(answers)))
    }

    async fn stage(&self, request: Request<StageRequest>) -> Result<Response<Self::StageStream>, Status> {
        let answers = self.node().await?.stage(request).await?.into_inner();
        Ok(Response::new(Box::pin(answers)))
    }
}

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

async fn start(
    number: usize,
    dirs: &[tempfile::TempDir],
    nodes: &[Node],
    listener: Option<&Listener>,
) -> Node {
    let seeds: Vec<SocketAddr> = nodes.iter().map(|node| node.gossip).collect();
    let heard_at = match listener {
        Some(listener) => Some((listener.clone(), listener.begin().await)),
        None => None,
    };
    Node::start_with(&format!("n{number}"), dirs[number].path(), &seeds, |config| {
        config.membership.keyring = Keyring::of(&[KEY]);
        if let Some((listener, address)) = heard_at {
            listener.0.node.set(config.facts.grpc_address.parse().unwrap()).unwrap();
            config.facts.grpc_address = address.to_string();
        }
    })
    .await
}

fn owned(nodes: &[Node]) -> usize {
    nodes.iter().map(|node| node.cluster.routes().borrow().owned()).sum()
}

async fn three(dirs: &[tempfile::TempDir], listener: &Listener) -> Vec<Node> {
    let mut nodes = Vec::new();
    for number in 0..3 {
        let listener = (number == 0).then_some(listener);
        let node = start(number, dirs, &nodes, listener).await;
        nodes.push(node);
    }
    until("every slot has an owner", || owned(&nodes) == usize::from(SLOTS)).await;
    nodes
}

fn to_member(member: &Member) -> SlotMember {
    SlotMember { node_id: member.node.to_string(), storage_id: member.storage.0.to_vec().into() }
}

/// A promise for all slots, in an epoch that no other could follow.
fn last_word(from: SlotMember, to: SlotMember) -> SlotAsks {
    let claimant = from.node_id.clone();
    let ask = |slot| SlotAsk {
        slot: u32::from(slot),
        claim: Some(SlotClaim { epoch: u64::MAX, claimant: claimant.clone(), ..SlotClaim::default() }),
        ask: Some(Ask::Promise(SlotNothing {})),
    };
    SlotAsks { from: Some(from), to: Some(to), asks: (0..SLOTS).map(ask).collect() }
}

/// Puts a proof that was heard into a request.
fn show<T>(request: &mut Request<T>, heard: &MetadataMap) {
    let proof = heard.get_bin("converge-call-bin").expect("each call has a proof").clone();
    request.metadata_mut().insert_bin("converge-call-bin", proof);
}

/// The epochs that a node's records know, the highest of them.
fn highest(node: &Node) -> u64 {
    let records = node.ledger.slot_records().unwrap();
    records.iter().map(|(_, record)| record.highest_epoch().0).max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_overheard_opens_nothing_and_all_slots_keep_their_owners() {
    log();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let listener = Listener::default();
    let mut nodes = three(&dirs, &listener).await;
    let context = ContextId::new("a").unwrap();
    append(&nodes, &context, "before").await;

    let (metadata, heard) = listener.0.asks.lock().last().cloned().expect("questions were asked");
    let (stream, hello) = listener.0.streams.lock().last().cloned().expect("streams were begun");
    let mut node = listener.node().await.unwrap();
    let with = |metadata: &MetadataMap, asks: SlotAsks| {
        let mut request = Request::new(asks);
        show(&mut request, metadata);
        request
    };
    let attack = last_word(heard.from.clone().unwrap(), heard.to.clone().unwrap());
    // The same again, another question with its proof, and with that of a stream.
    for (metadata, asks) in
        [(&metadata, heard.clone()), (&metadata, attack.clone()), (&stream, attack.clone())]
    {
        let refused = node.slots(with(metadata, asks)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    let mut again =
        Request::new(futures::stream::iter([Replicated { body: Some(Body::Hello(hello.clone())) }]));
    show(&mut again, &stream);
    assert_eq!(node.replicate(again).await.unwrap_err().code(), Code::PermissionDenied);
    // Without any, and as nodes did before there were sessions: the key's proof of that time was good for ever.
    assert_eq!(node.slots(attack.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    let names = format!("{}/{}", attack.from.as_ref().unwrap().node_id, attack.to.as_ref().unwrap().node_id);
    let sealed = Sealer::new("test", Keyring::of(&[KEY])).seal(names.as_bytes()).unwrap();
    let mut old = Request::new(attack.clone());
    old.metadata_mut().insert_bin("converge-peer-bin", tonic::metadata::MetadataValue::from_bytes(&sealed));
    old.metadata_mut().insert("converge-caller", attack.from.as_ref().unwrap().node_id.parse().unwrap());
    assert_eq!(node.slots(old).await.unwrap_err().code(), Code::PermissionDenied);

    // A proof that was not used yet is good for what it was made for, and nothing else.
    listener.0.keeps.store(true, Ordering::SeqCst);
    listener.0.asks.lock().clear();
    // Whoever owns slots that are another's hands them over, which asks.
    let other = nodes.pop().unwrap();
    other.kill().await;
    until("questions were kept", || !listener.0.asks.lock().is_empty()).await;
    let (unused, asks) = listener.0.asks.lock().first().cloned().unwrap();
    let mut attack = last_word(asks.from.clone().unwrap(), asks.to.clone().unwrap());
    let refused = node.slots(with(&unused, attack.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    listener.0.keeps.store(false, Ordering::SeqCst);
    let other = start(2, &dirs, &nodes, None).await;
    nodes.push(other);
    until("every slot has an owner", || owned(&nodes) == usize::from(SLOTS)).await;
    append(&nodes, &context, "between").await;

    for node in &nodes {
        assert!(highest(node) < 1 << 40, "{}", highest(node));
    }
    for node in nodes.drain(..) {
        node.kill().await;
    }
    // Of a life before: the node has another nonce now.
    let listener = Listener::default();
    let nodes = three(&dirs, &listener).await;
    attack.to = Some(to_member(nodes[0].cluster.me()));
    for asks in [heard, attack] {
        let refused = listener.node().await.unwrap().slots(with(&metadata, asks)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    }
    append(&nodes, &context, "after").await;
    let expected = ["before", "between", "after"];
    for node in &nodes {
        until("all is read", || payloads(node, &context).is_ok_and(|found| found == expected)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_sends_an_epoch_that_cannot_be_is_refused_and_nothing_is_written() {
    log();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let listener = Listener::default();
    let mut nodes = three(&dirs, &listener).await;
    let (me, other) = (nodes[0].cluster.me().clone(), nodes[1].cluster.me().clone());
    let channel = Channel::from_shared(format!("http://{}", listener.0.node.get().unwrap())).unwrap();
    let channel = channel.connect().await.unwrap();
    let as_other =
        |keys: &[[u8; 32]], to: Member| proven(channel.clone(), "test", Keyring::of(keys), other.clone(), to);
    let attack = last_word(to_member(&other), to_member(&me));
    let known = highest(&nodes[0]);
    let refused = as_other(&[KEY], me.clone()).slots(attack.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("18446744073709551615"), "{refused}");
    assert_eq!(highest(&nodes[0]), known);
    assert!(nodes[0].cluster.counters().implausible.load(Ordering::Relaxed) > 0);
    // Who has another key, or means another directory, does not get so far.
    let stranger = as_other(&[[8; 32]], me.clone()).slots(attack.clone()).await.unwrap_err();
    assert_eq!(stranger.code(), Code::PermissionDenied, "{stranger}");
    let wiped = Member { storage: StorageId([0; 16]), ..me.clone() };
    let stranger = as_other(&[KEY], wiped).slots(attack).await.unwrap_err();
    assert_eq!(stranger.code(), Code::FailedPrecondition, "{stranger}");

    // Answers with such an epoch are no answers: whoever asked goes on, and claims nothing above it.
    listener.0.lies.store(true, Ordering::SeqCst);
    let context = ContextId::new("a").unwrap();
    let killed = nodes.pop().unwrap();
    killed.kill().await;
    until("the lie was told", || nodes[1].cluster.counters().implausible.load(Ordering::Relaxed) > 0).await;
    listener.0.lies.store(false, Ordering::SeqCst);
    until("every slot has an owner", || owned(&nodes) == usize::from(SLOTS)).await;
    append(&nodes, &context, "x").await;
    for node in &nodes {
        assert!(highest(node) < 1 << 40, "{}", highest(node));
    }
}

#[test]
fn nothing_counts_as_held_that_was_never_sent() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { clustered: true, lanes: 1, ..Options::default() };
    let ledger = ledger_store::Ledger::open_with(dir.path(), options).unwrap();
    let peer = ledger_core::replication::Peer::new(3).unwrap();
    assert_eq!(ledger.advance_peer_durable(peer, 0, 0), Ok(()));
    assert_eq!(ledger.advance_peer_durable(peer, 0, u64::MAX), Err(0));
    assert_eq!(ledger.advance_peer_durable(peer, 9, 1), Err(0), "there is no such lane");
    ledger.close().unwrap();
}
