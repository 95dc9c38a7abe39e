//! Nodes that behave as those of a cluster towards a client: each takes appends only for the slots it owns, and
//! names the owner for others. They are servers of their own, on ports of the loopback interface, and can be
//! killed. Behind them is one real ledger.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use ledger_client::{Client, ContextId, Options};
use ledger_core::slot::{SLOTS, Slot};
use ledger_proto::{
    context::v1::{self as context, context_service_server::ContextService},
    ledger::v1::{
        self as ledger, cluster_service_server::ClusterService, ledger_service_server::LedgerService,
    },
};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, body::Body, transport::Channel};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::Service;

/// Nodes in front of a ledger.
pub(crate) struct Cluster {
    shared: Arc<Shared>,
    running: Vec<Option<Runtime>>,
}

struct Shared {
    addresses: Vec<SocketAddr>,
    table: Mutex<Table>,
}

/// What the nodes know and do.
pub(crate) struct Table {
    /// By slot.
    owners: Vec<Option<usize>>,
    /// Where each node's ledger is.
    backends: Vec<Channel>,
    pub manner: Manner,
    /// By node.
    pub counts: Vec<Counts>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Appends taken to the ledger.
    pub taken: u64,
    /// Appends refused because the node is not the owner.
    pub refused: u64,
    /// Questions for owners answered.
    pub located: u64,
    /// Other requests passed on to the ledger.
    pub passed_on: u64,
}

/// How nodes behave.
#[derive(Debug, Clone)]
pub(crate) struct Manner {
    /// Nodes that know nothing of owners: Locate is not there, and everything is taken.
    pub lone: bool,
    /// Whoever is not the owner takes an append to it.
    pub forwards: bool,
    /// A refusal says where the owner is.
    pub names_owner: bool,
    /// The code of a refusal.
    pub code: Code,
    /// Locate says that this is the owner of everything.
    pub locates: Option<String>,
    /// Refusals name this node, whatever is true.
    pub misleads: Option<String>,
    /// An answer to an append is lost this often: one of so many.
    pub loses_answers: Option<u64>,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            lone: false,
            forwards: false,
            names_owner: true,
            code: Code::Unavailable,
            locates: None,
            misleads: None,
            loses_answers: None,
        }
    }
}

impl Cluster {
    /// So many nodes in front of a ledger; slots are dealt out in turn.
    pub(crate) async fn start(count: usize, backend: SocketAddr) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..count {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let channel = Channel::from_shared(format!("http://{backend}")).unwrap().connect_lazy();
        let table = Table {
            owners: (0..usize::from(SLOTS)).map(|slot| Some(slot % count)).collect(),
            backends: vec![channel; count],
            manner: Manner::default(),
            counts: vec![Counts::default(); count],
        };
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let shared = Arc::new(Shared { addresses, table: Mutex::new(table) });
        let mut cluster = Self { shared, running: Vec::new() };
        for (index, listener) in listeners.into_iter().enumerate() {
            let running = cluster.run(index, listener.into_std().unwrap());
            cluster.running.push(Some(running));
        }
        cluster
    }

    /// Each node has a runtime of its own, so that killing it cuts its connections.
    fn run(&self, index: usize, listener: std::net::TcpListener) -> Runtime {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let node = Node { index, shared: Arc::clone(&self.shared) };
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            tonic::transport::Server::builder().serve_with_incoming(node, incoming).await.unwrap();
        });
        runtime
    }

    /// The node is gone, as by kill -9.
    pub(crate) fn kill(&mut self, index: usize) {
        self.running[index].take().unwrap().shutdown_background();
    }

    /// It is there again, at its address.
    pub(crate) async fn revive(&mut self, index: usize) {
        let address = self.shared.addresses[index];
        let bind = || async { TcpListener::bind(address).await.ok() };
        let listener = crate::support::until("the address is free", bind).await;
        self.running[index] = Some(self.run(index, listener.into_std().unwrap()));
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap()
    }

    pub(crate) fn url(&self, index: usize) -> String {
        format!("http://{}", self.shared.addresses[index])
    }

    /// All addresses, as a user writes them.
    pub(crate) fn urls(&self) -> String {
        (0..self.running.len()).map(|index| self.url(index)).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.urls(), &Options::default()).unwrap()
    }

    pub(crate) fn owner(&self, context: &ContextId) -> Option<usize> {
        self.table().owners[usize::from(Slot::of(context).number())]
    }

    /// The slot of a context moves.
    pub(crate) fn give(&self, context: &ContextId, to: Option<usize>) {
        self.table().owners[usize::from(Slot::of(context).number())] = to;
    }

    /// Everything that one node owns goes to another.
    pub(crate) fn give_all(&self, from: usize, to: Option<usize>) {
        let mut table = self.table();
        table.owners.iter_mut().filter(|owner| **owner == Some(from)).for_each(|owner| *owner = to);
    }

    /// A node shows another ledger from now on.
    pub(crate) fn set_backend(&self, index: usize, backend: SocketAddr) {
        let channel = Channel::from_shared(format!("http://{backend}")).unwrap().connect_lazy();
        self.table().backends[index] = channel;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for runtime in self.running.drain(..).flatten() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Node {
    index: usize,
    shared: Arc<Shared>,
}

impl Node {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap()
    }

    fn backend(&self) -> Channel {
        self.table().backends[self.index].clone()
    }

    /// Whether to take an append; the refusal if not.
    fn admit(&self, context_id: &str) -> Result<(), Status> {
        let slot =
            Slot::of(&ContextId::new(context_id).map_err(|e| Status::invalid_argument(e.to_string()))?);
        let mut table = self.table();
        let owner = table.owners[usize::from(slot.number())];
        let manner = table.manner.clone();
        if manner.lone || owner == Some(self.index) || (manner.forwards && owner.is_some()) {
            table.counts[self.index].taken += 1;
            return Ok(());
        }
        table.counts[self.index].refused += 1;
        let mut names = HashMap::new();
        let address = owner.map(|owner| self.shared.addresses[owner].to_string());
        if let Some(address) = manner.misleads.or(address).filter(|_| manner.names_owner) {
            names.insert("owner".to_owned(), "another".to_owned());
            names.insert("owner_address".to_owned(), address);
        }
        let mut details = ErrorDetails::with_error_info("NOT_OWNER", "converge.ledger", names);
        details.set_retry_info(Some(Duration::from_millis(20)));
        Err(Status::with_error_details(manner.code, "another node owns this context", details))
    }

    /// Whether the answer to this append is lost on the way.
    fn loses_answer(&self) -> bool {
        let table = self.table();
        table.manner.loses_answers.is_some_and(|every| table.counts[self.index].taken.is_multiple_of(every))
    }
}

/// What the ledger behind answers to a request.
pub(crate) async fn pass_on(mut backend: Channel, request: http::Request<Body>) -> http::Response<Body> {
    let ready = std::future::poll_fn(|cx| Service::poll_ready(&mut backend, cx)).await;
    let answer = match ready {
        Ok(()) => backend.call(request).await,
        Err(error) => Err(error),
    };
    answer.unwrap_or_else(|error| Status::unavailable(error.to_string()).into_http())
}

/// Appends and Locate are answered here; all else by the ledger.
impl Service<http::Request<Body>> for Node {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let node = self.clone();
        match request.uri().path() {
            "/converge.context.v1.ContextService/Append" => {
                context::context_service_server::ContextServiceServer::new(node)
                    .max_decoding_message_size(usize::MAX)
                    .call(request)
            }
            "/converge.ledger.v1.LedgerService/Append" => {
                ledger::ledger_service_server::LedgerServiceServer::new(node)
                    .max_decoding_message_size(usize::MAX)
                    .call(request)
            }
            "/converge.ledger.v1.ClusterService/Locate" => {
                ledger::cluster_service_server::ClusterServiceServer::new(node).call(request)
            }
            _ => Box::pin(async move {
                node.table().counts[node.index].passed_on += 1;
                Ok(pass_on(node.backend(), request).await)
            }),
        }
    }
}

#[tonic::async_trait]
impl ContextService for Node {
    async fn append(
        &self,
        request: Request<context::AppendRequest>,
    ) -> Result<Response<context::AppendResponse>, Status> {
        let request = request.into_inner();
        self.admit(&request.context_id)?;
        let mut ledger = context::context_service_client::ContextServiceClient::new(self.backend());
        let answer = ledger.append(request).await?;
        if self.loses_answer() {
            return Err(Status::unavailable("stored, but the answer is lost"));
        }
        Ok(answer)
    }

    async fn get(&self, _: Request<context::GetRequest>) -> Result<Response<context::GetResponse>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    async fn snapshot(
        &self,
        _: Request<context::SnapshotRequest>,
    ) -> Result<Response<context::SnapshotResponse>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    async fn load(
        &self,
        _: Request<context::LoadRequest>,
    ) -> Result<Response<context::LoadResponse>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    type WatchStream = BoxStream<'static, Result<context::WatchEvent, Status>>;

    async fn watch(&self, _: Request<context::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("forwarded"))
    }
}

#[tonic::async_trait]
impl LedgerService for Node {
    type AppendStream = BoxStream<'static, Result<ledger::AppendResults, Status>>;

    /// Refuses items one by one, when they come, as an owner does that has handed a slot over.
    async fn append(
        &self,
        request: Request<Streaming<ledger::AppendBatch>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (batches, taken) = mpsc::unbounded_channel();
        let (refused, refusals) = mpsc::unbounded_channel();
        let mut ledger = ledger::ledger_service_client::LedgerServiceClient::new(self.backend());
        let answers = ledger.append(UnboundedReceiverStream::new(taken)).await?.into_inner();
        let node = self.clone();
        tokio::spawn(async move { node.sort(request.into_inner(), &batches, &refused).await });
        let refusals = UnboundedReceiverStream::new(refusals).map(Ok);
        let results: Pin<Box<dyn Stream<Item = _> + Send>> =
            Box::pin(futures::stream::select(answers, refusals));
        Ok(Response::new(results))
    }

    type GetStream = BoxStream<'static, Result<ledger::Page, Status>>;

    async fn get(&self, _: Request<context::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    type SnapshotStream = BoxStream<'static, Result<ledger::SnapshotChunk, Status>>;

    async fn snapshot(
        &self,
        _: Request<context::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    async fn load(
        &self,
        _: Request<Streaming<ledger::LoadChunk>>,
    ) -> Result<Response<context::LoadResponse>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    type WatchStream = BoxStream<'static, Result<ledger::WatchBatch, Status>>;

    async fn watch(&self, _: Request<ledger::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("forwarded"))
    }
}

impl Node {
    async fn sort(
        &self,
        mut batches: Streaming<ledger::AppendBatch>,
        taken: &mpsc::UnboundedSender<ledger::AppendBatch>,
        refused: &mpsc::UnboundedSender<ledger::AppendResults>,
    ) {
        // What follows a refused append was sent before the client knew.
        let mut poisoned = HashSet::new();
        while let Ok(Some(batch)) = batches.message().await {
            let (mut items, mut results) = (Vec::new(), Vec::new());
            for item in batch.items {
                let context_id = item.request.as_ref().unwrap().context_id.clone();
                if !poisoned.contains(&context_id) && self.admit(&context_id).is_ok() {
                    items.push(item);
                    continue;
                }
                poisoned.insert(context_id);
                results.push(ledger::AppendResult {
                    tag: item.tag,
                    error: Some(ledger::AppendError {
                        code: Code::Unavailable as i32,
                        message: "another node owns this context".to_owned(),
                        retry_after_ms: 20,
                    }),
                    ..ledger::AppendResult::default()
                });
            }
            if !items.is_empty() && taken.send(ledger::AppendBatch { items }).is_err() {
                return;
            }
            if !results.is_empty() {
                let _ = refused.send(ledger::AppendResults { results, ..ledger::AppendResults::default() });
            }
        }
    }
}

#[tonic::async_trait]
impl ClusterService for Node {
    async fn locate(
        &self,
        request: Request<ledger::LocateRequest>,
    ) -> Result<Response<ledger::LocateResponse>, Status> {
        let mut table = self.table();
        if table.manner.lone {
            return Err(Status::unimplemented("a lone node"));
        }
        table.counts[self.index].located += 1;
        let location = |slot: u32| {
            let owner = table.owners[slot as usize];
            let address = owner.map(|owner| self.shared.addresses[owner].to_string());
            ledger::Location {
                slot,
                owner: owner.map(|owner| format!("node-{owner}")).unwrap_or_default(),
                owner_address: table.manner.locates.clone().or(address).unwrap_or_default(),
                ..ledger::Location::default()
            }
        };
        let locations = request.into_inner().slots.into_iter().map(location).collect();
        Ok(Response::new(ledger::LocateResponse { locations }))
    }

    async fn members(
        &self,
        _: Request<ledger::MembersRequest>,
    ) -> Result<Response<ledger::MembersResponse>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    type WatchClusterStream = BoxStream<'static, Result<ledger::ClusterChange, Status>>;

    async fn watch_cluster(
        &self,
        _: Request<ledger::WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    type JoinStream = BoxStream<'static, Result<ledger::InterestEvent, Status>>;

    async fn join(&self, _: Request<ledger::JoinRequest>) -> Result<Response<Self::JoinStream>, Status> {
        Err(Status::unimplemented("not doubled"))
    }

    async fn leave(
        &self,
        _: Request<ledger::LeaveRequest>,
    ) -> Result<Response<ledger::LeaveResponse>, Status> {
        Err(Status::unimplemented("not doubled"))
    }

    async fn broadcast(
        &self,
        _: Request<ledger::BroadcastRequest>,
    ) -> Result<Response<ledger::BroadcastResponse>, Status> {
        Err(Status::unimplemented("not doubled"))
    }

    async fn contexts(
        &self,
        _: Request<ledger::ContextsRequest>,
    ) -> Result<Response<ledger::ContextsResponse>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    type DecommissionStream = BoxStream<'static, Result<ledger::DecommissionProgress, Status>>;

    async fn decommission(
        &self,
        _: Request<ledger::DecommissionRequest>,
    ) -> Result<Response<Self::DecommissionStream>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    async fn recover(
        &self,
        _: Request<ledger::RecoverRequest>,
    ) -> Result<Response<ledger::RecoverResponse>, Status> {
        Err(Status::unimplemented("forwarded"))
    }

    type DrainStream = BoxStream<'static, Result<ledger::DrainProgress, Status>>;

    async fn drain(&self, _: Request<ledger::DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        Err(Status::unimplemented("forwarded"))
    }
}
