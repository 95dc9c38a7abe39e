//! A node keeps to its memory, whatever its clients do, and serves the honest ones meanwhile.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use ledger_proto::{
    context::v1::{
        AppendRequest, Durability, GetRequest, LoadRequest, context_service_client::ContextServiceClient,
    },
    ledger::v1::{
        AppendBatch, AppendItem, BroadcastRequest, ContextsRequest, JoinRequest, LoadChunk, LocateRequest,
        SnapshotChunk, WatchClusterRequest, WatchRequest, cluster_service_client::ClusterServiceClient,
        interest_event::Event, ledger_service_client::LedgerServiceClient,
    },
};
use ledger_tests::{Cluster, Node, cluster, node, repository, until_async};
use prost::Message as _;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::{Code, body::Body, transport::Channel};
use tower::Service as _;

/// What the nodes here are told to keep to.
const MEMORY: u64 = 256 << 20;
/// The most that they may take, beside what they count with what the allocator keeps: half as much again is what a control group
/// has left, of which this is the default.
const MOST: u64 = MEMORY + MEMORY / 2;

const APPEND: &str = "converge.context.v1.ContextService/Append";
const GET: &str = "converge.context.v1.ContextService/Get";
const SNAPSHOT: &str = "converge.context.v1.ContextService/Snapshot";
const LOAD: &str = "converge.context.v1.ContextService/Load";
const GREET: &str = "converge.ledger.v1.ReplicaService/Greet";
const CONTEXTS: &str = "converge.ledger.v1.ClusterService/Contexts";
const JOIN: &str = "converge.ledger.v1.ClusterService/Join";
const WATCH_CLUSTER: &str = "converge.ledger.v1.ClusterService/WatchCluster";
const WATCH: &str = "converge.context.v1.ContextService/Watch";
const STREAM_APPEND: &str = "converge.ledger.v1.LedgerService/Append";
const STREAM_GET: &str = "converge.ledger.v1.LedgerService/Get";
const STREAM_SNAPSHOT: &str = "converge.ledger.v1.LedgerService/Snapshot";
const STREAM_WATCH: &str = "converge.ledger.v1.LedgerService/Watch";

/// A node with little memory, and the most that it took so far.
struct Small {
    node: Node,
    peak: Arc<AtomicU64>,
    _dir: TempDir,
}

impl Small {
    fn start() -> Self {
        Self::start_in(TempDir::new().unwrap(), &[])
    }

    fn start_in(dir: TempDir, flags: &[&str]) -> Self {
        let node = Node::start_with(&dir.path().join("data"), &[&["--memory", "256MiB"], flags].concat());
        let peak = peak_of(node.pid());
        Self { node, peak, _dir: dir }
    }

    async fn channel(&self) -> Channel {
        channel(&self.node, 64 << 10).await
    }

    /// Somebody honest appends and reads.
    async fn serves(&self, what: &str) {
        let mut client = ContextServiceClient::new(self.channel().await);
        let append = AppendRequest {
            context_id: "honest".into(),
            key: "facts".into(),
            payload: what.to_owned().into(),
            ..Default::default()
        };
        let sequence = until_async(what, async || {
            Some(client.append(append.clone()).await.ok()?.into_inner().entry?.sequence)
        })
        .await;
        let get =
            GetRequest { context_id: "honest".into(), after_sequence: sequence - 1, ..Default::default() };
        let got = until_async(what, async || Some(client.get(get.clone()).await.ok()?.into_inner())).await;
        assert_eq!(got.entries[0].payload, what.as_bytes());
    }

    fn check(&self) {
        check(&self.peak);
    }

    /// A context with so many entries of so many bytes each.
    async fn fill(&self, entries: usize, payload: usize) {
        fill(&self.node, "large", entries, payload).await;
    }
}

/// The most memory that a process takes from now on.
fn peak_of(pid: u32) -> Arc<AtomicU64> {
    let peak = Arc::new(AtomicU64::new(0));
    let measured = Arc::downgrade(&peak);
    std::thread::spawn(move || {
        while let Some(peak) = measured.upgrade() {
            peak.fetch_max(node::resident(pid), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    peak
}

fn check(peak: &AtomicU64) {
    let peak = peak.load(Ordering::Relaxed);
    println!("at most {} MiB", peak >> 20);
    assert!(peak < MOST, "{} MiB of {}", peak >> 20, MOST >> 20);
}

/// A connection that lets so many bytes of an answer come before it is read.
async fn channel(node: &Node, window: u32) -> Channel {
    let endpoint = Channel::from_shared(node.endpoint()).unwrap();
    endpoint.initial_stream_window_size(window).connect().await.unwrap()
}

async fn fill(node: &Node, context: &str, entries: usize, payload: usize) {
    let mut client = ContextServiceClient::new(channel(node, 64 << 10).await);
    for n in 0..entries {
        // It does not compress.
        let mut seed = n as u64 + 1;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()
        };
        let payload: Vec<u8> = (0..payload.div_ceil(8)).flat_map(|_| random()).take(payload).collect();
        let request = AppendRequest {
            context_id: context.into(),
            key: "facts".into(),
            payload: payload.into(),
            ..Default::default()
        };
        client.append(request).await.unwrap();
    }
}

/// What a node's metrics say of a share: held, and all of it.
fn share(node: &Node, name: &str) -> (f64, f64) {
    let metrics = node.http_get("/metrics");
    let value = |metric: &str| {
        let of = format!("{metric}{{share=\"{name}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&of)?.trim().parse().ok())
    };
    (value("ledger_memory_used_bytes").unwrap(), value("ledger_memory_share_bytes").unwrap())
}

/// A request's body: these bytes, and the end or nothing more.
struct Sent {
    parts: VecDeque<Bytes>,
    ends: bool,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.parts.pop_front() {
            Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// Begins a call; the answer, of which nothing is read.
async fn call(
    channel: &Channel,
    method: &str,
    parts: Vec<Bytes>,
    ends: bool,
) -> Result<http::Response<Body>, tonic::transport::Error> {
    let request = http::Request::post(format!("http://node/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Sent { parts: parts.into(), ends }))
        .unwrap();
    let mut channel = channel.clone();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
    channel.call(request).await
}

fn framed(message: &[u8]) -> Bytes {
    let len = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &len[..], message].concat().into()
}

/// The status that an answer ends with.
async fn status(answer: http::Response<Body>) -> Code {
    let (parts, mut body) = answer.into_parts();
    let mut trailers = parts.headers;
    while let Some(Ok(frame)) =
        std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx)).await
    {
        if let Ok(found) = frame.into_trailers() {
            trailers = found;
        }
    }
    let code = trailers.get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<i32>().ok());
    Code::from(code.unwrap_or(-1))
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_million_empty_items_in_one_batch_are_refused_before_they_are_decoded() {
    let small = Small::start();
    let channel = small.channel().await;
    let batch = framed(&[0x0a, 0].repeat(8 << 20));
    let answer = call(&channel, STREAM_APPEND, vec![batch], true).await.unwrap();
    assert_eq!(status(answer).await, Code::InvalidArgument);
    // One append with a million pairs of metadata, which are more than an entry may have.
    let pairs: Vec<u8> = (0..1_000_000_u32)
        .flat_map(|n| [&[0x22, 6, 0x0a, 4][..], &(n | 0x2020_2020).to_le_bytes()].concat())
        .collect();
    let answer = call(&channel, APPEND, vec![framed(&pairs)], true).await.unwrap();
    assert_eq!(status(answer).await, Code::InvalidArgument);
    small.serves("after the batch").await;
    small.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_never_finished_take_their_share_and_others_go_on() {
    let small = Small::start();
    let begun: Vec<_> = (0..30)
        .map(|n| {
            let endpoint = small.node.endpoint();
            let method = if n % 2 == 0 { APPEND } else { LOAD };
            tokio::spawn(async move {
                let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
                let mut parts = vec![Bytes::from_static(&[0, 0, 0xf0, 0, 0])];
                parts.extend((0..15).map(|_| Bytes::from(vec![0x42; 1 << 20])));
                call(&channel, method, parts, false).await
            })
        })
        .collect();
    for n in 0..5 {
        small.serves(&format!("while messages are begun, {n}")).await;
    }
    small.check();
    begun.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_read_take_their_share_and_others_go_on() {
    let small = Small::start();
    small.fill(8, 4_000_000).await;
    let get = framed(&GetRequest { context_id: "large".into(), ..Default::default() }.encode_to_vec());
    let watch = framed(&WatchRequest { context_id: "large".into(), ..Default::default() }.encode_to_vec());
    // All on one connection, and some more on connections of their own.
    let shared = small.channel().await;
    let mut held = Vec::new();
    for n in 0..400 {
        let (channel, own) =
            if n % 20 == 0 { (small.channel().await, true) } else { (shared.clone(), false) };
        let (method, request) = match n % 2 {
            0 => (GET, get.clone()),
            _ => (STREAM_WATCH, watch.clone()),
        };
        let begun = tokio::spawn(async move { (call(&channel, method, vec![request], true).await, channel) });
        held.push((begun, own));
    }
    for n in 0..5 {
        small.serves(&format!("while answers are not read, {n}")).await;
    }
    small.check();
    for (call, _) in &held {
        call.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_unary_snapshots_take_turns() {
    let small = Small::start();
    small.fill(20, 200_000).await;
    let snapshot = framed(&[&[0x0a, 5][..], b"large"].concat());
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let (endpoint, request) = (small.node.endpoint(), snapshot.clone());
            tokio::spawn(async move {
                let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
                status(call(&channel, SNAPSHOT, vec![request], true).await.unwrap()).await
            })
        })
        .collect();
    let mut served = 0;
    for call in calls {
        match call.await.unwrap() {
            Code::Ok => served += 1,
            code => assert!(matches!(code, Code::ResourceExhausted | Code::DeadlineExceeded), "{code:?}"),
        }
    }
    assert!(served > 0);
    small.check();

    // One over the limit is refused, and nothing of it is built: the node's peak stays where it was.
    small.fill(60, 1_000_000).await;
    let peak = small.peak.load(Ordering::Relaxed);
    let channel = small.channel().await;
    let answer = call(&channel, SNAPSHOT, vec![snapshot], true).await.unwrap();
    assert_eq!(status(answer).await, Code::ResourceExhausted);
    assert!(small.peak.load(Ordering::Relaxed) <= peak.max(MEMORY), "it was built first");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_writers_and_two_hundred_watchers_are_served_in_256_mebibytes() {
    let small = Small::start();
    let done = Arc::new(AtomicU64::new(0));
    let delivered = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for n in 0..200 {
        let (channel, delivered) = (small.channel().await, Arc::clone(&delivered));
        tasks.push(tokio::spawn(async move {
            let request = WatchRequest { context_id: format!("c{}", n % 8), ..Default::default() };
            let mut batches = LedgerServiceClient::new(channel).watch(request).await.unwrap().into_inner();
            while let Ok(Some(batch)) = batches.message().await {
                delivered.fetch_add(batch.entries.len() as u64, Ordering::Relaxed);
            }
        }));
    }
    for n in 0..64_u32 {
        let (channel, done) = (small.channel().await, Arc::clone(&done));
        tasks.push(tokio::spawn(async move {
            let mut client = ContextServiceClient::new(channel);
            loop {
                let append = AppendRequest {
                    context_id: format!("c{}", n % 8),
                    key: "facts".into(),
                    payload: vec![n as u8; 64 << 10].into(),
                    ..Default::default()
                };
                match client.append(append).await {
                    Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                    Err(status) if status.code() == Code::ResourceExhausted => continue,
                    Err(_) => return,
                };
            }
        }));
    }
    until_async("appends and deliveries flow", async || {
        let (done, delivered) = (done.load(Ordering::Relaxed), delivered.load(Ordering::Relaxed));
        (done >= 2000 && delivered >= 20_000).then_some(())
    })
    .await;
    small.check();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_entry_that_is_taken_can_be_read_by_clients_with_default_settings() {
    let small = Small::start();
    let channel = Channel::from_shared(small.node.endpoint()).unwrap().connect().await.unwrap();
    let mut contexts = ContextServiceClient::new(channel.clone());
    let mut ledger = LedgerServiceClient::new(channel);
    let append = |payload: usize| AppendRequest {
        context_id: "c".repeat(1024),
        key: "k".repeat(256),
        payload: vec![7; payload].into(),
        metadata: (0..1024).map(|n| (format!("{n:04}"), "x".repeat(59))).collect(),
        entry_id: "i".repeat(256),
        ..Default::default()
    };
    // The largest that is taken, with everything else as large as it may be.
    let (mut least, mut most) = (0, 4 << 20);
    while least + 1 < most {
        let middle = usize::midpoint(least, most);
        let request = append(middle);
        let request = AppendRequest { context_id: format!("try-{middle}"), ..request };
        match contexts.append(request).await {
            Ok(_) => least = middle,
            Err(status) => {
                // The client's own limit must not be what stops it.
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                assert!(status.message().contains("max_entry"), "{status:?}");
                most = middle;
            }
        }
    }
    let context = format!("try-{least}");
    assert!(least > 3 << 20, "{least}");
    let get = GetRequest { context_id: context.clone(), ..Default::default() };
    assert_eq!(contexts.get(get.clone()).await.unwrap().into_inner().entries.len(), 1);
    let mut pages = ledger.get(get).await.unwrap().into_inner();
    assert_eq!(pages.message().await.unwrap().unwrap().entries.len(), 1);
    let watch = ledger_proto::context::v1::WatchRequest {
        context_id: context.clone(),
        bookmarks: true,
        ..Default::default()
    };
    let mut events = contexts.watch(watch).await.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap().unwrap().entry.unwrap().sequence, 1);
    let watch = WatchRequest { context_id: context.clone(), ..Default::default() };
    let mut batches = ledger.watch(watch).await.unwrap().into_inner();
    assert_eq!(batches.message().await.unwrap().unwrap().entries.len(), 1);
    let snapshot = ledger_proto::context::v1::SnapshotRequest { context_id: context };
    contexts.snapshot(snapshot.clone()).await.unwrap();
    let mut chunks = ledger.snapshot(snapshot).await.unwrap().into_inner();
    let mut bytes = 0;
    while let Some(SnapshotChunk { data, .. }) = chunks.message().await.unwrap() {
        bytes += data.len();
    }
    assert!(bytes > 0);
}

/// A node of a cluster, of which nobody else is there.
fn member() -> Small {
    let dir = TempDir::new().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, format!("{}\n", "a1".repeat(32))).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let key = key.display().to_string();
    let cluster = ["--node-id", "n0", "--gossip-listen", "127.0.0.1:0", "--cluster-key-file", &key];
    Small::start_in(dir, &[&cluster[..], &["--call-timeout", "2s"]].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn greetings_of_strangers_are_small_and_end_in_time() {
    let small = member();
    // One that says that it is large is refused by its header.
    let large = vec![Bytes::from_static(&[0, 5, 0, 0, 0]), Bytes::from(vec![0x42; 1 << 20])];
    let channel = small.channel().await;
    let answer = call(&channel, GREET, large, false).await.unwrap();
    assert_eq!(status(answer).await, Code::InvalidArgument);
    // One that is never finished is answered before its client asks for it.
    let begun = vec![Bytes::from_static(&[0, 0, 0, 1, 0, 1])];
    let answer = tokio::time::timeout(Duration::from_secs(20), call(&channel, GREET, begun, false));
    let answer = answer.await.expect("it ends").unwrap();
    assert_eq!(status(answer).await, Code::DeadlineExceeded);
    let begun: Vec<_> = (0..12)
        .map(|_| {
            let endpoint = small.node.endpoint();
            tokio::spawn(async move {
                let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
                let mut parts = vec![Bytes::from_static(&[0, 5, 0, 0, 0])];
                parts.extend((0..60).map(|_| Bytes::from(vec![0x42; 1 << 20])));
                status(call(&channel, GREET, parts, false).await.unwrap()).await
            })
        })
        .collect();
    for begun in begun {
        // The connection may be closed before the rest is sent.
        let _ = begun.await;
    }
    small.check();
}

/// So many appends of so many bytes each.
fn batch(context: &str, count: u64, payload: usize) -> Bytes {
    let item = |tag| {
        let request = AppendRequest {
            context_id: context.into(),
            key: "facts".into(),
            payload: vec![7; payload].into(),
            ..Default::default()
        };
        AppendItem { tag, request: Some(request) }
    };
    framed(&AppendBatch { items: (0..count).map(item).collect() }.encode_to_vec())
}

/// Somebody honest appends by a stream, and is told the sequence.
async fn appends_by_a_stream(node: &Node, context: &str) {
    let append = async || {
        let mut client = LedgerServiceClient::new(channel(node, 64 << 10).await);
        let request = AppendRequest { context_id: context.into(), key: "facts".into(), ..Default::default() };
        let items = vec![AppendItem { tag: 5, request: Some(request) }];
        let batches = tokio_stream::iter([AppendBatch { items }]);
        let results = client.append(batches).await.ok()?.into_inner().message().await.ok()??;
        (results.results[0].tag == 5 && results.results[0].sequence > 0).then_some(())
    };
    until_async("an append by a stream", append).await;
}

/// Of a writer that sends batch after batch, and reads no result.
#[tokio::test(flavor = "multi_thread")]
async fn results_that_are_not_read_keep_no_payloads() {
    let small = Small::start();
    // Nothing of the answer is taken before it is read: its window is as good as closed.
    let endpoint = Channel::from_shared(small.node.endpoint()).unwrap();
    let channel = endpoint.initial_stream_window_size(1).connect().await.unwrap();
    let batches = (0..600).map(|_| batch("unread", 1, 1 << 20)).collect();
    let answer = call(&channel, STREAM_APPEND, batches, false).await.unwrap();
    // All of them are taken: the node reads on though nobody reads what it answers.
    let mut client = LedgerServiceClient::new(small.channel().await);
    let watch = WatchRequest { context_id: "unread".into(), bookmark_interval_ms: 100, ..Default::default() };
    let mut batches = client.watch(watch).await.unwrap().into_inner();
    let mut last = 0;
    while last < 600 {
        let batch = tokio::time::timeout(Duration::from_mins(1), batches.message()).await.unwrap();
        last = batch.unwrap().unwrap().entries.last().map_or(last, |entry| entry.sequence);
    }
    small.serves("while results are not read").await;
    small.check();
    drop(answer);
}

/// Two nodes with one copy of each context, and two contexts of the second one.
async fn two_nodes() -> (Cluster, [String; 2]) {
    let cluster = Cluster::start(2, &["--memory", "256MiB", "--copies", "1"]);
    let names: Vec<String> = (0..20).map(|n| format!("context-{n}")).collect();
    let request = LocateRequest { context_ids: names, ..LocateRequest::default() };
    let mut client = ClusterServiceClient::new(channel(cluster.node(0), 64 << 10).await);
    let second = cluster::name(1);
    let names = until_async("the second node owns some", async || {
        let located = client.locate(request.clone()).await.ok()?.into_inner().locations;
        let mut names = located.into_iter().filter(|at| at.owner == second).map(|at| at.context_id);
        Some([names.next()?, names.next()?])
    })
    .await;
    (cluster, names)
}

/// Of contexts that another node has.
#[tokio::test(flavor = "multi_thread")]
async fn answers_of_other_nodes_that_are_not_read_take_their_share_and_small_ones_do_not_wait_for_them() {
    let (cluster, [large, small]) = two_nodes().await;
    let peaks = [0, 1].map(|number| peak_of(cluster.node(number).pid()));
    fill(cluster.node(1), &large, 8, 4_000_000).await;
    fill(cluster.node(1), &small, 1, 5).await;
    let get = framed(&GetRequest { context_id: large.clone(), ..Default::default() }.encode_to_vec());
    let mut held = Vec::new();
    for n in 0..4 {
        // Nothing of the answers is let come, or some of it.
        let channel = channel(cluster.node(0), if n % 2 == 0 { 1 } else { 64 << 10 }).await;
        for _ in 0..8 {
            for method in [GET, STREAM_GET, STREAM_GET, STREAM_SNAPSHOT, STREAM_WATCH, WATCH] {
                let (channel, get) = (channel.clone(), get.clone());
                held.push(tokio::spawn(
                    async move { (call(&channel, method, vec![get], true).await, channel) },
                ));
            }
        }
    }
    let calls = || cluster.node(1).metric("ledger_memory_used_bytes{share=\"calls\"}").unwrap_or_default();
    until_async("the calls are at the other node", async || (calls() > 100.0 * 24e3).then_some(())).await;
    for n in 0..6 {
        let channel = channel(cluster.node(0), 64 << 10).await;
        let get = GetRequest { context_id: small.clone(), ..Default::default() };
        let served = async {
            let got = ContextServiceClient::new(channel.clone()).get(get.clone()).await.unwrap();
            assert_eq!(got.into_inner().entries[0].payload.len(), 5);
            let mut client = LedgerServiceClient::new(channel);
            let mut pages = client.get(get).await.unwrap().into_inner();
            assert_eq!(pages.message().await.unwrap().unwrap().entries[0].payload.len(), 5);
            let watch = WatchRequest { context_id: small.clone(), ..Default::default() };
            let mut batches = client.watch(watch).await.unwrap().into_inner();
            assert_eq!(batches.message().await.unwrap().unwrap().entries[0].payload.len(), 5);
        };
        let begun = std::time::Instant::now();
        // Who reads nothing is ended after 10 s.
        let in_time = tokio::time::timeout(Duration::from_secs(8), served).await;
        println!("served in {} ms", begun.elapsed().as_millis());
        assert!(in_time.is_ok(), "small answers wait for large ones, {n}");
    }
    for peak in &peaks {
        check(peak);
    }
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Of streams of many small appends: of this node, and of another one.
#[tokio::test(flavor = "multi_thread")]
async fn results_that_are_not_read_take_their_share_and_others_append() {
    let (cluster, [one, other]) = two_nodes().await;
    let peaks = [0, 1].map(|number| peak_of(cluster.node(number).pid()));
    let mut held = Vec::new();
    for n in 0..20 {
        let channel = channel(cluster.node(n % 2), 1).await;
        for _ in 0..4 {
            // All that a stream may have in flight, and payloads that take more than what is for sending on.
            let batches = (0..4).map(|_| batch(&one, 4000, 8)).chain((0..40).map(|_| batch(&one, 1, 60_000)));
            let (channel, batches) = (channel.clone(), batches.collect());
            held.push(tokio::spawn(
                async move { (call(&channel, STREAM_APPEND, batches, false).await, channel) },
            ));
        }
    }
    let stored = || cluster.node(1).metric("ledger_appended_entries_total").unwrap_or_default();
    until_async("many are stored", async || (stored() > 100_000.0).then_some(())).await;
    for number in [0, 1] {
        for context in [&one, &other] {
            appends_by_a_stream(cluster.node(number), context).await;
        }
    }
    for peak in &peaks {
        check(peak);
    }
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Who observes a context, here and by way of another node.
#[tokio::test(flavor = "multi_thread")]
async fn observers_that_read_nothing_take_their_share_and_others_meet() {
    let (cluster, [context, _]) = two_nodes().await;
    let peaks = [0, 1].map(|number| peak_of(cluster.node(number).pid()));
    let request = |name: String| JoinRequest {
        context_id: context.clone(),
        observer: name,
        metadata: [("about".to_owned(), "v".repeat(1900))].into(),
    };
    let mut held = Vec::new();
    for n in 0..8 {
        let channel = channel(cluster.node(n % 2), if n < 4 { 1 } else { 64 << 10 }).await;
        for k in 0..50 {
            let (channel, join) = (channel.clone(), framed(&request(format!("{n}-{k}")).encode_to_vec()));
            held.push(tokio::spawn(async move { (call(&channel, JOIN, vec![join], true).await, channel) }));
        }
    }
    let observers = || cluster.sum("ledger_observers");
    until_async("they have come", async || (observers() >= 300.0).then_some(())).await;
    for number in [0, 1] {
        let name = format!("honest-{number}");
        let meets = async || {
            let mut client = ClusterServiceClient::new(channel(cluster.node(number), 64 << 10).await);
            let mut events = client.join(request(name.clone())).await.ok()?.into_inner();
            let Event::Members(members) = events.message().await.ok()??.event? else { return None };
            let mine = members.observers.iter().find(|observer| observer.name == members.observer)?;
            assert_eq!((&mine.name, mine.metadata["about"].len()), (&name, 1900));
            let said = BroadcastRequest {
                context_id: context.clone(),
                from: "test".into(),
                payload: name.clone().into(),
                ..Default::default()
            };
            client.broadcast(said).await.ok()?;
            loop {
                if let Event::Broadcast(message) = events.message().await.ok()??.event? {
                    assert_eq!(message.payload, name.as_bytes());
                    return Some(());
                }
            }
        };
        until_async("an observer meets the others", meets).await;
    }
    for peak in &peaks {
        check(peak);
    }
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_watchers_do_not_read_is_paid_for_before_it_is_built() {
    let small = Small::start();
    small.fill(8, 60_000).await;
    let watch = framed(&WatchRequest { context_id: "large".into(), ..Default::default() }.encode_to_vec());
    let mut held = Vec::new();
    for n in 0..6 {
        let channel = channel(&small.node, if n % 2 == 0 { 1 } else { 64 << 10 }).await;
        for _ in 0..50 {
            for (method, request) in [(WATCH, watch.clone()), (WATCH_CLUSTER, framed(&[]))] {
                let channel = channel.clone();
                held.push(tokio::spawn(async move {
                    (call(&channel, method, vec![request], true).await, channel)
                }));
            }
        }
    }
    let watchers = || small.node.metric("ledger_watchers").unwrap_or_default();
    until_async("they watch", async || (watchers() >= 200.0).then_some(())).await;
    for n in 0..5 {
        small.serves(&format!("while watchers do not read, {n}")).await;
    }
    let mut cluster = ClusterServiceClient::new(small.channel().await);
    let told = until_async("somebody watches the cluster", async || {
        cluster.watch_cluster(WatchClusterRequest {}).await.ok()?.into_inner().message().await.ok()?
    })
    .await;
    assert_eq!((told.members.len(), told.slots.len()), (1, 1024));
    let peak = small.peak.load(Ordering::Relaxed);
    println!("at most {} MiB", peak >> 20);
    // Built at once for all of them it was 118.
    assert!(peak < 100 << 20, "{} MiB", peak >> 20);
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Of contexts with long names, asked for by many at once who do not read what they asked for.
#[tokio::test(flavor = "multi_thread")]
async fn listings_come_in_pages_that_there_is_memory_for_and_all_contexts_are_in_them() {
    let small = Small::start();
    let names: Vec<String> = (0..3000).map(|n| format!("{n:04}-{}", "n".repeat(1000))).collect();
    let item = |(tag, name): (u64, &String)| {
        let request = AppendRequest { context_id: name.clone(), key: "facts".into(), ..Default::default() };
        AppendItem { tag, request: Some(request) }
    };
    let batches: Vec<_> =
        names.chunks(500).map(|names| AppendBatch { items: (0..).zip(names).map(item).collect() }).collect();
    let mut ledger = LedgerServiceClient::new(small.channel().await);
    let mut results = ledger.append(tokio_stream::iter(batches)).await.unwrap().into_inner();
    let mut stored = 0;
    while let Some(answer) = results.message().await.unwrap() {
        stored += answer.results.iter().filter(|result| result.error.is_none()).count();
    }
    assert_eq!(stored, names.len());

    let request = ContextsRequest { limit: 10_000, ..Default::default() };
    let mut held = Vec::new();
    for _ in 0..4 {
        let channel = small.channel().await;
        for _ in 0..30 {
            let (channel, list) = (channel.clone(), framed(&request.encode_to_vec()));
            held.push(tokio::spawn(
                async move { (call(&channel, CONTEXTS, vec![list], true).await, channel) },
            ));
        }
    }
    let mut cluster = ClusterServiceClient::new(small.channel().await);
    let (mut found, mut pages, mut after) = (Vec::new(), 0, String::new());
    loop {
        let request = ContextsRequest { after: after.clone(), ..request.clone() };
        let page = until_async("a page of the listing", async || {
            Some(cluster.contexts(request.clone()).await.ok()?.into_inner())
        })
        .await;
        assert!(page.encoded_len() < 4 << 20, "{}", page.encoded_len());
        found.extend(page.contexts.into_iter().map(|info| info.context_id));
        pages += 1;
        if !page.more {
            break;
        }
        after = page.next;
    }
    assert_eq!(found, names);
    assert!(pages > 1, "the first page has what there is memory for");
    small.check();
    held.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Hundreds of contexts are watched and written, each with more than the newest entries that one may keep.
#[tokio::test(flavor = "multi_thread")]
async fn the_tails_of_watched_contexts_take_their_share() {
    const CONTEXTS: u64 = 400;
    const ENTRIES: u64 = 20;
    let small = Small::start();
    let mut watchers = Vec::new();
    for n in 0..CONTEXTS {
        let mut client = LedgerServiceClient::new(small.channel().await);
        let request = WatchRequest { context_id: format!("w{n}"), ..Default::default() };
        let mut batches = client.watch(request).await.unwrap().into_inner();
        watchers.push(tokio::spawn(async move {
            let mut seen = 0;
            while seen < ENTRIES {
                for entry in batches.message().await.unwrap().unwrap().entries {
                    seen += 1;
                    assert_eq!((entry.sequence, entry.payload.len()), (seen, 60_000));
                }
            }
            seen
        }));
    }
    let mut client = LedgerServiceClient::new(small.channel().await);
    let item = |n: u64| {
        let request = AppendRequest {
            context_id: format!("w{}", n % CONTEXTS),
            key: "facts".into(),
            payload: vec![n as u8; 60_000].into(),
            ..Default::default()
        };
        AppendItem { tag: n, request: Some(request) }
    };
    let batches = (0..CONTEXTS * ENTRIES / 20)
        .map(move |batch| AppendBatch { items: (batch * 20..(batch + 1) * 20).map(item).collect() });
    let mut results = client.append(futures::stream::iter(batches)).await.unwrap().into_inner();
    let (mut answered, mut most) = (0, 0.0_f64);
    while let Some(message) = results.message().await.unwrap() {
        assert!(message.results.iter().all(|result| result.error.is_none()));
        answered += message.results.len() as u64;
        let (used, all) = share(&small.node, "tails");
        assert!(used <= all, "{used} of {all}");
        most = most.max(used / all);
    }
    assert_eq!(answered, CONTEXTS * ENTRIES);
    assert!(most > 0.5, "the tails keep something: {most}");
    for watcher in watchers {
        let seen = tokio::time::timeout(Duration::from_mins(2), watcher).await.expect("all is delivered");
        assert_eq!(seen.unwrap(), ENTRIES);
    }
    small.check();
    until_async("it comes back", async || (share(&small.node, "tails").0 < 1.0).then_some(())).await;
}

/// They are held whole: what they bring, and what they decompress to, is bounded before it is there.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_the_predecessor_take_the_share_of_loads() {
    let small = Small::start();
    let chunk = |n: usize| LoadChunk {
        context_id: if n == 0 { "legacy".into() } else { String::new() },
        data: [&[if n == 0 { 131 } else { 0 }][..], &vec![0; (1 << 20) - 1]].concat().into(),
        ..Default::default()
    };
    // Eight at once, of 400 MiB each.
    let loads = (0..8).map(|_| async {
        let mut client = LedgerServiceClient::new(small.channel().await);
        client.load(futures::stream::iter((0..400).map(chunk))).await.unwrap_err()
    });
    let (_, all) = share(&small.node, "loads");
    for status in futures::future::join_all(loads).await {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let is_told = ["for loads (a part of memory)", "one at a time", "loads run on this node"];
        assert!(is_told.iter().any(|why| status.message().contains(why)), "{status:?}");
    }
    // One that says that it is 1 GiB when it is decompressed.
    let mut client = ContextServiceClient::new(small.channel().await);
    let bomb = [&[131, 80, 0x40, 0, 0, 0][..], &vec![0; 1 << 20]].concat();
    let load = |snapshot: Vec<u8>, context_id: &str| LoadRequest {
        context_id: context_id.into(),
        snapshot: snapshot.into(),
        ..Default::default()
    };
    let status = client.load(load(bomb, "legacy")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains(&format!("this node has {all} for loads")), "{status:?}");
    small.serves("after that").await;
    let fixture = std::fs::read(repository().join("tests/fixtures/five-entries.etf")).unwrap();
    let loaded = client.load(load(fixture, "growth-strategy-001")).await.unwrap().into_inner();
    assert_eq!(loaded.entries_restored, 5);
    let peak = small.peak.load(Ordering::Relaxed);
    println!("at most {} MiB", peak >> 20);
    assert!(peak < MEMORY, "{} MiB", peak >> 20);
    assert!(share(&small.node, "loads").0 < 1.0, "nothing is held for them");
}

/// One of three nodes is hardly ever awake: its connections stand, and it takes next to nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_slow_replica_is_bounded_and_appends_go_on() {
    const BYTES: u64 = 600 << 20;
    const PAYLOAD: usize = 250_000;
    let cluster = Cluster::start(3, &["--memory", "256MiB"]);
    let slow = Arc::new(AtomicU64::new(1));
    let peaks: Vec<_> = cluster.running().map(|node| peak_of(node.pid())).collect();
    let pid = rustix::process::Pid::from_raw(i32::try_from(cluster.node(2).pid()).unwrap()).unwrap();
    let asleep = {
        let slow = Arc::clone(&slow);
        std::thread::spawn(move || {
            while slow.load(Ordering::Relaxed) == 1 {
                rustix::process::kill_process(pid, Signal::STOP).unwrap();
                std::thread::sleep(Duration::from_millis(400));
                rustix::process::kill_process(pid, Signal::CONT).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let done = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for n in 0..32 {
        let endpoint = cluster.node(n % 2).endpoint();
        let (channel, done) =
            (Channel::from_shared(endpoint).unwrap().connect().await.unwrap(), Arc::clone(&done));
        writers.push(tokio::spawn(async move {
            let mut client = ContextServiceClient::new(channel);
            while done.load(Ordering::Relaxed) < BYTES {
                let append = AppendRequest {
                    context_id: format!("r{n}"),
                    key: "facts".into(),
                    payload: vec![n as u8; PAYLOAD].into(),
                    ..Default::default()
                };
                // Whoever has the slot may change meanwhile.
                if client.append(append).await.is_ok() {
                    done.fetch_add(PAYLOAD as u64, Ordering::Relaxed);
                }
            }
        }));
    }
    let mut most = (0.0_f64, 0.0_f64);
    until_async("appends go on", async || {
        for number in 0..2 {
            // What is waiting may be over its share by one commit.
            let (used, all) = share(cluster.node(number), "replication");
            assert!(used <= all + f64::from(17 << 20), "{used} of {all}");
            most = (most.0.max(used), all);
        }
        (done.load(Ordering::Relaxed) >= BYTES).then_some(())
    })
    .await;
    for writer in writers {
        writer.await.unwrap();
    }
    slow.store(0, Ordering::Relaxed);
    asleep.join().unwrap();
    let lost = cluster.sum("ledger_cluster_streams_lost_total");
    let peaks: Vec<_> = peaks.iter().map(|peak| peak.load(Ordering::Relaxed) >> 20).collect();
    println!("at most {peaks:?} MiB, {most:?} bytes waited, {lost} streams were lost");
    assert!(peaks.iter().all(|peak| *peak < MOST >> 20), "{peaks:?}");
    assert!(most.0 > most.1 / 2.0, "so much waited at most: {most:?}");
    // It catches up with all of it.
    cluster.settle();
    let (first, last) =
        (cluster.node(0).rpc().await.from_itself(), cluster.node(2).rpc().await.from_itself());
    for n in 0..32 {
        let context = format!("r{n}");
        until_async("the slow one has what the others have", async || {
            let (one, other) =
                (first.checkpoint(&context).await.ok()?, last.checkpoint(&context).await.ok()?);
            (one.size == other.size && one.root == other.root).then_some(())
        })
        .await;
    }
}

/// Writers that want every copy and give up long before an answer comes.
fn give_up_again_and_again(cluster: &Cluster, numbers: &[usize], given_up: &Arc<AtomicU64>) -> JoinSet<()> {
    const WRITERS: usize = 24;
    let mut writers = JoinSet::new();
    for n in 0..WRITERS {
        let endpoint = cluster.node(numbers[n % numbers.len()]).endpoint();
        let channel = Channel::from_shared(endpoint).unwrap().connect_lazy();
        let given_up = Arc::clone(given_up);
        writers.spawn(async move {
            let mut client = ContextServiceClient::new(channel);
            for count in 0_u64.. {
                let append = AppendRequest {
                    context_id: format!("given-up-{}", (n as u64 + count) % 40),
                    key: "facts".into(),
                    payload: vec![n as u8; 300_000].into(),
                    durability: Durability::All.into(),
                    ..Default::default()
                };
                // The call is dropped where it waits.
                let answer = tokio::time::timeout(Duration::from_millis(30), client.append(append)).await;
                if !matches!(answer, Ok(Ok(_))) {
                    given_up.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    writers
}

/// With a member that is dead, and then without a quorum.
#[tokio::test(flavor = "multi_thread")]
async fn appends_that_were_given_up_take_their_share_and_others_append() {
    const GIVEN_UP: u64 = 6_000;
    let mut cluster = Cluster::start(3, &["--memory", "256MiB"]);
    cluster.kill(2);
    let peaks: Vec<_> = cluster.running().map(|node| peak_of(node.pid())).collect();
    let given_up = Arc::new(AtomicU64::new(0));
    let mut writers = give_up_again_and_again(&cluster, &[0, 1], &given_up);
    let honest = AppendRequest { context_id: "honest".into(), key: "facts".into(), ..Default::default() };
    let mut client = ContextServiceClient::new(channel(cluster.node(0), 64 << 10).await);
    until_async("others append while copies cannot be made", async || {
        let is_served = client.append(honest.clone()).await.is_ok();
        (is_served && given_up.load(Ordering::Relaxed) > GIVEN_UP / 2).then_some(())
    })
    .await;
    // The only other one stands still: nothing is acknowledged any more.
    cluster.node(1).signal(Signal::STOP);
    until_async("more give up", async || (given_up.load(Ordering::Relaxed) > GIVEN_UP).then_some(())).await;
    cluster.node(1).signal(Signal::CONT);
    writers.shutdown().await;
    for number in 0..2 {
        for name in ["in_flight", "forwarding", "receiving"] {
            let node = cluster.node(number);
            until_async("all of it comes back", async || (share(node, name).0 == 0.0).then_some(())).await;
        }
    }
    until_async("others append as before", async || client.append(honest.clone()).await.ok()).await;
    let peaks: Vec<_> = peaks.iter().map(|peak| peak.load(Ordering::Relaxed) >> 20).collect();
    println!("at most {peaks:?} MiB");
    assert!(peaks.iter().all(|peak| *peak < MOST >> 20), "{peaks:?}");
}
