//! Nodes of a real cluster in one process: real RocksDB, real UDP, real gRPC on loopback.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ledger_cluster::{
    Cluster, ClusterConfig,
    membership::{Detector, Facts, Incarnation, MembershipConfig, NodeId, NodeLoad, Readiness},
    ownership::routes::SlotOwner,
};
use ledger_core::slot::Slot;
use ledger_store::{Append, Appended, ContextId, Draft, Key, Ledger, Options, StoreError, WriteQuorum};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

/// How long anything may take that a test waits for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    pub(crate) ledger: Ledger,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) gossip: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

/// Settings for quick tests.
pub(crate) fn config(
    name: &str,
    incarnation: u64,
    seeds: &[SocketAddr],
    grpc: SocketAddr,
    ledger: &Ledger,
) -> ClusterConfig {
    let node_id = NodeId::new(name).unwrap();
    let mut membership =
        MembershipConfig::new("test", node_id, Incarnation(incarnation), "127.0.0.1:0".parse().unwrap());
    membership.gossip_interval = Duration::from_millis(50);
    membership.detector = Detector {
        min_silence: Duration::from_millis(500),
        ..Detector::for_interval(membership.gossip_interval)
    };
    membership.seeds = seeds.iter().map(ToString::to_string).collect();
    ClusterConfig {
        membership,
        facts: Facts {
            grpc_address: grpc.to_string(),
            storage_id: ledger.storage(),
            readiness: Readiness::Joining,
            zone: String::new(),
            format: 1,
            load: NodeLoad::default(),
            opened: None,
            durable: None,
            decommission: None,
            owned: Vec::new(),
            halted: Vec::new(),
        },
        replication_factor: 3,
        write_quorum: 2,
        first_nodes: Vec::new(),
        placement_grace: Duration::from_secs(5),
        max_staleness: Some(Duration::from_secs(2)),
        anti_entropy_interval: Duration::from_millis(300),
        catch_up_rate: 0,
        replication: 64 << 20,
        replicated: 32 << 20,
        serving: 32 << 20,
        tls: None,
    }
}

impl Node {
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) async fn start(name: &str, dir: &Path, seeds: &[SocketAddr]) -> Self {
        Self::start_with(name, dir, seeds, |_| ()).await
    }

    /// With other settings.
    pub(crate) async fn start_with(
        name: &str,
        dir: &Path,
        seeds: &[SocketAddr],
        set: impl FnOnce(&mut ClusterConfig),
    ) -> Self {
        let options = Options { clustered: true, lanes: 2, ..Options::default() };
        let begun = Instant::now();
        let ledger = loop {
            match Ledger::open_with(dir, options.clone()) {
                Ok(ledger) => break ledger,
                // What was killed lets go of it in a moment.
                Err(_) if begun.elapsed() < DEADLINE => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error}"),
            }
        };
        let incarnation = ledger.next_incarnation().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let grpc = listener.local_addr().unwrap();
        let mut config = config(name, incarnation.0, seeds, grpc, &ledger);
        set(&mut config);
        let cluster = Arc::new(Cluster::join(ledger.clone(), config).await.unwrap());
        let gossip = cluster.membership().gossip_address();
        let service = cluster.service();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
        });
        Self { ledger, cluster, gossip, stop, server }
    }

    /// Falls silent at once: no goodbye.
    pub(crate) async fn kill(self) {
        let ledger = self.fall_silent().await;
        tokio::task::spawn_blocking(move || ledger.close()).await.unwrap().unwrap();
    }

    /// Falls silent at once, and leaves its ledger as it is.
    pub(crate) async fn fall_silent(self) -> Ledger {
        self.stop.cancel();
        drop(self.cluster);
        self.server.await.unwrap();
        self.ledger
    }

    pub(crate) async fn append(&self, context: &ContextId, text: &str) -> Result<Appended, StoreError> {
        self.append_with(context, text, WriteQuorum::Configured).await
    }

    pub(crate) async fn append_with(
        &self,
        context: &ContextId,
        text: &str,
        quorum: WriteQuorum,
    ) -> Result<Appended, StoreError> {
        let draft =
            Draft { key: Key::new("k").unwrap(), payload: text.to_owned().into(), metadata: [].into() };
        let entry_id = Some(ledger_store::EntryId::new(text).unwrap());
        self.ledger.append_async(Append { entry_id, quorum, ..Append::new(context.clone(), draft) }).await
    }

    pub(crate) fn owns(&self, slot: Slot) -> bool {
        matches!(self.cluster.routes().borrow().get(slot).map(|route| &route.owner), Some(SlotOwner::Me(_)))
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "{what} did not come true in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The node that owns a context's slot.
pub(crate) fn owner<'a>(nodes: &'a [Node], context: &ContextId) -> Option<&'a Node> {
    nodes.iter().find(|node| node.owns(Slot::of(context)))
}

/// Where a context is, as each node knows it.
fn routes(nodes: &[Node], context: &ContextId) -> Vec<Option<ledger_cluster::ownership::routes::SlotRoute>> {
    nodes.iter().map(|node| node.cluster.routes().borrow().get(Slot::of(context)).cloned()).collect()
}

/// Appends at whoever owns the context, again until it is acknowledged.
pub(crate) async fn append(nodes: &[Node], context: &ContextId, text: &str) -> Appended {
    let begun = Instant::now();
    loop {
        if let Some(owner) = owner(nodes, context) {
            match tokio::time::timeout(Duration::from_secs(2), owner.append(context, text)).await {
                Ok(Ok(appended)) => return appended,
                Ok(Err(error)) => tracing::info!(%error, "append"),
                Err(_) => tracing::info!("append timed out"),
            }
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "{text} was not acknowledged in time: {:?}",
            routes(nodes, context)
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn payloads(node: &Node, context: &ContextId) -> Result<Vec<String>, StoreError> {
    let page = node.ledger.get(context, &ledger_store::Filter::default())?;
    Ok(page.entries.iter().map(|entry| String::from_utf8(entry.payload.to_vec()).unwrap()).collect())
}
