//! A real node in this process, on free ports of the loopback interface.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests: each test file uses a part of them"
)]

use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ledger_proto::{
    context::v1::{
        AppendRequest, AppendResponse, Entry, GetRequest, WatchEvent, WatchRequest,
        context_service_client::ContextServiceClient,
    },
    ledger::v1::{
        AppendItem, cluster_service_client::ClusterServiceClient,
        integrity_service_client::IntegrityServiceClient, ledger_service_client::LedgerServiceClient,
    },
};
use ledger_server::{
    Config, Server, StartError,
    settings::units::{ByteSize, HumanDuration},
};
use ledger_store::StoreError;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

/// The longest that a test waits for something.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A node, and the directory it uses.
pub(crate) struct TestNode {
    pub server: Server,
    pub dir: TempDir,
}

pub(crate) fn config(dir: &Path) -> Config {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        data_dir: dir.to_owned(),
        grpc_listen: loopback,
        http_listen: loopback,
        block_cache: ByteSize::mib(8),
        write_buffer: ByteSize::mib(8),
        head_cache: ByteSize::mib(8),
        shutdown_grace: HumanDuration::seconds(5),
        ..Config::default()
    }
}

/// Copies a directory tree in the place of another.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let (item, to) = item.map(|item| (item.path(), to.join(item.file_name()))).unwrap();
        if item.is_dir() {
            copy_dir(&item, &to);
        } else {
            std::fs::copy(item, to).unwrap();
        }
    }
}

/// UDP ports that were free just now.
pub(crate) fn free_ports() -> [u16; 2] {
    let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap().port())
}

impl TestNode {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start_in(dir, change).await
    }

    /// A node that gives its clients longer to end than a test waits.
    pub(crate) async fn patient() -> Self {
        Self::start_with(|config| config.shutdown_grace = HumanDuration(2 * DEADLINE)).await
    }

    /// A node of a cluster of two, which gossip at these ports.
    pub(crate) async fn join(name: &str, ports: [u16; 2], own: usize) -> Self {
        Self::join_in(tempfile::tempdir().unwrap(), name, ports, own).await
    }

    /// The same, on a directory.
    pub(crate) async fn join_in(dir: TempDir, name: &str, ports: [u16; 2], own: usize) -> Self {
        Self::start_in(dir, |config| {
            config.node_id = Some(name.into());
            config.gossip_listen = ([127, 0, 0, 1], ports[own]).into();
            config.seeds = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
            config.gossip_interval = HumanDuration(Duration::from_millis(50));
            config.copies = 2;
            config.lanes = 1;
            // Half of it is for handing over, beside everything else that a machine does.
            config.shutdown_grace = HumanDuration(DEADLINE);
        })
        .await
    }

    pub(crate) async fn start_in(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(dir.path());
        change(&mut config);
        let server = until("the directory is free", async || match Server::start(config.clone()).await {
            // What is left of a node that was stopped lets go of it in a moment.
            Err(StartError::Store(StoreError::Open { .. })) => None,
            started => Some(started.unwrap()),
        });
        Self { server: server.await, dir }
    }

    /// Shuts down, and gives the directory.
    pub(crate) async fn stop(self) -> TempDir {
        self.server.shutdown().await.unwrap();
        self.dir
    }

    /// A page, once a line is in it.
    pub(crate) async fn page_with(&self, path: &str, line: &str) -> String {
        until(line, async || Some(self.http(path).await.1).filter(|page| page.contains(line))).await
    }

    pub(crate) async fn channel(&self) -> Channel {
        channel(self.server.grpc()).await
    }

    pub(crate) async fn contexts(&self) -> ContextServiceClient<Channel> {
        ContextServiceClient::new(self.channel().await)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    pub(crate) async fn ledger(&self) -> LedgerServiceClient<Channel> {
        LedgerServiceClient::new(self.channel().await)
    }

    pub(crate) async fn integrity(&self) -> IntegrityServiceClient<Channel> {
        IntegrityServiceClient::new(self.channel().await)
    }

    pub(crate) async fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel().await)
    }

    /// A plain HTTP request: the status code and all that follows it.
    pub(crate) async fn http(&self, path: &str) -> (u16, String) {
        http(self.server.http(), path).await
    }
}

pub(crate) async fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// Asks for a page, the answer to which is to be read.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

pub(crate) async fn http(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = ask(address, path).await;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer)
}

pub(crate) fn append(context: &str, key: &str, payload: impl Into<Bytes>) -> AppendRequest {
    AppendRequest {
        context_id: context.into(),
        key: key.into(),
        payload: payload.into(),
        ..Default::default()
    }
}

pub(crate) fn get(context: &str) -> GetRequest {
    GetRequest { context_id: context.into(), ..Default::default() }
}

pub(crate) fn watch(context: &str, from_sequence: u64) -> WatchRequest {
    WatchRequest { context_id: context.into(), from_sequence, ..Default::default() }
}

pub(crate) fn item(tag: u64, request: AppendRequest) -> AppendItem {
    AppendItem { tag, request: Some(request) }
}

pub(crate) async fn append_all(
    client: &mut ContextServiceClient<Channel>,
    context: &str,
    payloads: &[&str],
) -> Vec<Entry> {
    let mut entries = Vec::new();
    for payload in payloads {
        let request = append(context, "facts", payload.to_string());
        let AppendResponse { entry, .. } = client.append(request).await.unwrap().into_inner();
        entries.push(entry.unwrap());
    }
    entries
}

pub(crate) async fn next_entry(events: &mut Streaming<WatchEvent>) -> Entry {
    let next = tokio::time::timeout(Duration::from_secs(10), events.message());
    next.await.expect("an event in time").unwrap().unwrap().entry.unwrap()
}

/// Polls until there is a value.
pub(crate) async fn until<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = ready().await {
            return value;
        }
        assert!(begun.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Says `UNAVAILABLE`, and when to try again.
pub(crate) fn assert_retry(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_error_details().retry_info().is_some(), "{status:?}");
}

/// What a call may end with when its node goes: the node's own word, or what the transport made of a connection that
/// went away. That has a source, and any code: tonic says INTERNAL of a GOAWAY that met a request not yet sent.
pub(crate) fn assert_told_or_cut_off(status: &Status) {
    let is_transport = std::error::Error::source(status).is_some();
    assert!(status.code() == Code::Unavailable || is_transport, "{status:?}");
}

pub(crate) fn field(status: &Status) -> String {
    let details = status.get_error_details();
    details.bad_request().map(|bad| bad.field_violations[0].field.clone()).unwrap_or_default()
}
