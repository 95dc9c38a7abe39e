//! The life of a node: open, bind, serve, drain, close.
//!
//! | phase | /readyz | health | new requests | watchers | appends in flight |
//! | --- | --- | --- | --- | --- | --- |
//! | serving | 200 | `SERVING` | answered | live | |
//! | handing over (in a cluster) | 200 | `NOT_SERVING` | answered, while the slots go to other nodes, for at most half of `shutdown_grace` | live | |
//! | draining | 503 | `NOT_SERVING` | refused, `UNAVAILABLE` with a retry delay | ended the same way | finished and acknowledged, for at most `shutdown_grace` |
//! | closed | | | connection refused | | |

use std::{
    fmt, fs,
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use futures::StreamExt as _;
use ledger_cluster::{
    Cluster, JoinError, Reidentified,
    membership::{GossipEnded, Readiness, Replaced, ViewMember},
    ownership::routes::Routes,
    peers::call_auth::operators::OperatorAuthenticator,
};
use ledger_core::checkpoint::Signer;
use ledger_cork::Corked;
use ledger_proto::{
    DESCRIPTORS,
    ledger::v1::{
        cluster_service_server::{ClusterServiceServer, SERVICE_NAME as CLUSTER},
        integrity_service_server::{IntegrityServiceServer, SERVICE_NAME as INTEGRITY},
    },
    wire::{
        context::v1::context_service_server::{ContextServiceServer, SERVICE_NAME as CONTEXT},
        ledger::v1::ledger_service_server::{LedgerServiceServer, SERVICE_NAME as LEDGER},
    },
};
use ledger_store::{Ledger, Options, StoreError};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::layer::util::{Identity, Stack};

use crate::{
    daemon::keys,
    daemon::opening,
    daemon::permissions,
    daemon::replacement::{self, DamagedForGood},
    daemon::supervise::{Supervisor, TaskKind, TaskOutcome},
    grpc::admission::Admission,
    grpc::connection::{self, Connections, CountCalls, Descriptors, Listener, raise_limit},
    grpc::tls,
    http::http_router,
    http::metrics::Metrics,
    limits,
    membership::mode::{NodeMode, Standalone},
    membership::operators,
    memory,
    node::Node,
    services::cluster_service::Members,
    services::context_service::Contexts,
    services::integrity_service::Integrity,
    services::ledger_service::Streams,
    settings::args,
    settings::config::{Config, ConfigError},
};

/// How often histograms are emptied into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long health watchers may still read that the node stops.
const FINAL_HEALTH_TIME: Duration = Duration::from_millis(100);
/// How long the store may take to close, after the grace of a shutdown.
const CLOSE_TIMEOUT: Duration = Duration::from_mins(2);
/// The services whose health is reported; the empty name stands for the node.
const SERVICES: [&str; 5] = ["", CONTEXT, LEDGER, INTEGRITY, CLUSTER];

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting turned out wrong when it was used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node cannot take part in its cluster.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The runtime cannot be started.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key}): {reason}")]
    Listen {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: io::Error,
    },
    /// A TLS file cannot be read or used.
    #[error("cannot use the TLS file {} ({key}): {reason}", path.display())]
    Tls {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The ready file cannot be written.
    #[error("cannot write the ready file {}: {reason}", path.display())]
    ReadyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The services do not fit together.
    #[error("cannot set up the services: {0}")]
    Services(String),
}

/// Why a node did not end cleanly.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// An essential part kept failing.
    #[error("an essential part of the node kept failing: see the log above")]
    TaskFailed,
    /// The node no longer sees its cluster.
    #[error(transparent)]
    Gossip(#[from] GossipEnded),
    /// The node came back with an older data directory, and is to be started again.
    #[error(transparent)]
    Reidentified(#[from] Reidentified),
    /// A later start of the node is there.
    #[error(transparent)]
    Replaced(#[from] Replaced),
    /// The files are damaged for good, and the node is to be started again.
    #[error(transparent)]
    Damaged(#[from] DamagedForGood),
    /// The store cannot go on.
    #[error(
        "the thread {0} of the store panicked, see the log above: nothing that was acknowledged is lost; start the node again"
    )]
    Panicked(String),
    /// The store failed to close.
    #[error("the store did not close cleanly: {0}")]
    Close(StoreError),
}

/// A node that serves.
#[derive(Debug)]
pub struct Server {
    node: Arc<Node>,
    supervisor: Supervisor,
    health: HealthReporter,
    grpc: SocketAddr,
    http: SocketAddr,
    grpc_task: tokio::task::JoinHandle<()>,
    /// Ends the HTTP server, after everything else.
    http_stop: CancellationToken,
}

impl Server {
    /// Opens the store, binds the addresses and serves. On return, requests are answered.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        permissions::warn_of_open(&config);
        let tls = tls::acceptor(&config)?;
        let descriptors = Descriptors::share(raise_limit(), config.max_connections);
        let options = Options { max_open_files: descriptors.store, ..config.store_options() };
        let ledger = opening::open(&config, options).await?;
        let started = Self::serve(config, ledger.clone(), tls, descriptors).await;
        if started.is_err()
            && let Err(error) = close(ledger).await
        {
            tracing::warn!(%error, "the store did not close cleanly");
        }
        started
    }

    /// Binds the addresses and serves. If it fails the store is to be closed.
    async fn serve(
        config: Config,
        ledger: Ledger,
        tls: Option<TlsAcceptor>,
        descriptors: Descriptors,
    ) -> Result<Self, StartError> {
        let (storage_id, version) = (ledger.storage_id(), env!("CARGO_PKG_VERSION"));
        let key = SigningKey::from_bytes(&ledger.signing_seed());
        let signer = Signer::new(&config.signer_name(&storage_id), &key)
            .map_err(|error| StartError::Services(error.to_string()))?;
        let (grpc_listener, grpc) = bind("grpc_listen", config.grpc_listen)?;
        let (http_listener, http) = bind("http_listen", config.http_listen)?;
        let metrics = Arc::new(Metrics::new());
        let standing = node_mode(&config, &ledger, grpc).await?;
        let node = Arc::new(Node::new(ledger, config, Arc::clone(&metrics), signer, standing));
        let supervisor = Supervisor::new(metrics);
        let health = HealthReporter::new();
        for service in SERVICES {
            health.set_service_status(service, ServingStatus::Serving).await;
        }

        let routes = routes(&node, &health)?;
        let http_stop = CancellationToken::new();
        let clients = Connections::new(descriptors.clients);
        let grpc_task = start_grpc(&supervisor, &node, grpc_listener, tls, clients, routes);
        http_router::start(&supervisor, &node, http_listener, http_stop.clone());
        start_upkeep(&supervisor, &node);
        watch_keys(&supervisor, &node)?;
        if let Some(path) = &node.config.ready_file {
            let reason = |reason| StartError::ReadyFile { path: path.clone(), reason };
            write_ready_file(path, grpc, http).map_err(reason)?;
        }
        let data_dir = node.config.data_dir.display();
        let Descriptors { all, store, clients } = descriptors;
        tracing::debug!(all, store, clients, "file descriptors");
        tracing::info!(version, %data_dir, storage_id, %grpc, %http, pid = std::process::id(), "serving");
        Ok(Self { node, supervisor, health, grpc, http, grpc_task, http_stop })
    }

    /// The address of the gRPC services.
    pub const fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// The address of probes, metrics and console.
    pub const fn http(&self) -> SocketAddr {
        self.http
    }

    /// What the services share.
    pub const fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Completes if the node cannot go on.
    pub async fn failed(&self) -> EndError {
        let blind = async {
            match self.node.mode.cluster() {
                Some(cluster) => tokio::select! {
                    ended = cluster.membership().ended() => ended.into(),
                    renewed = cluster.reidentified() => renewed.into(),
                    replaced = cluster.replaced() => replaced.into(),
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.supervisor.failed() => EndError::TaskFailed,
            thread = self.node.ledger.broken() => EndError::Panicked(thread),
            ended = blind => ended,
            damaged = replacement::wanted(&self.node) => damaged.into(),
        }
    }

    /// Drains and closes: nothing accepted is lost, and everything stored in time is acknowledged.
    pub async fn shutdown(self) -> Result<(), EndError> {
        let grace = self.node.config.shutdown_grace.0;
        tracing::info!(grace_ms = grace.as_millis(), "shutting down");
        for service in SERVICES {
            self.health.set_service_status(service, ServingStatus::NotServing).await;
        }
        let started = Instant::now();
        let is_node = |cluster: &&Arc<Cluster>| !cluster.is_reidentified() && !cluster.is_replaced();
        if let Some(cluster) = self.node.mode.cluster().filter(is_node) {
            hand_over(cluster, grace / 2).await;
        }
        self.node.draining.cancel();
        let mut health = self.health;
        let farewell = async {
            tokio::time::sleep(FINAL_HEALTH_TIME).await;
            // Ends the streams of those who watch the health: the server waits for every stream.
            for service in SERVICES {
                health.clear_service_status(service).await;
            }
        };
        // Ends the streams between nodes, too.
        let leave = async {
            if let Some(cluster) = self.node.mode.cluster() {
                cluster.leave().await;
            }
        };
        let drained = async { tokio::join!(self.grpc_task, farewell, leave) };
        if tokio::time::timeout(grace.saturating_sub(started.elapsed()), drained).await.is_err() {
            tracing::warn!(
                grace_ms = grace.as_millis(),
                "some clients did not end in time: cutting them off"
            );
        }
        let closed = close(self.node.ledger.clone()).await;
        self.http_stop.cancel();
        self.supervisor.stop().await;
        if let Some(path) = &self.node.config.ready_file {
            // Somebody may have removed it before.
            let _ = fs::remove_file(path);
        }
        closed.map_err(EndError::Close)?;
        tracing::info!("shut down");
        Ok(())
    }
}

/// Serves until `shutdown` completes, or the node cannot go on.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let server = Server::start(config).await?;
    let left = async {
        match server.node.mode.cluster() {
            Some(cluster) => operators::decommissioned(cluster).await,
            None => std::future::pending().await,
        }
    };
    let failure = tokio::select! {
        () = shutdown => None,
        () = left => None,
        failure = server.failed() => Some(failure),
    };
    let (failure, left) = if let Some(failure) = failure {
        (Some(failure), Ok(()))
    } else {
        tokio::select! {
            left = operators::decommission_before_stop(&server.node) => (None, left),
            failure = server.failed() => (Some(failure), Ok(())),
        }
    };
    let closed = server.shutdown().await;
    // Why it ended comes first: a supervisor goes by that.
    let Some(failure) = failure else { return Ok(closed.map(|()| left)??) };
    if let Err(error) = closed {
        tracing::error!("{error}");
    }
    Err(failure.into())
}

/// Closes the store. The process ends after that: its threads must not outlive what they work with. A disk that does not
/// answer any more is not waited for: what was acknowledged is in the log.
async fn close(ledger: Ledger) -> Result<(), StoreError> {
    within(CLOSE_TIMEOUT, move || ledger.close()).await
}

/// What a thread that may hang brings, if it does so in time.
async fn within(
    most: Duration,
    work: impl FnOnce() -> Result<(), StoreError> + Send + 'static,
) -> Result<(), StoreError> {
    match tokio::time::timeout(most, tokio::task::spawn_blocking(work)).await {
        Ok(done) => done.unwrap_or_else(|error| Err(StoreError::Io(error.to_string()))),
        Err(_) => Err(StoreError::Io(format!("it was not done within {} s", most.as_secs()))),
    }
}

/// Serves until SIGTERM or SIGINT, and ends the process. A second signal ends it at once.
pub fn main(config: Config) -> ! {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads(config.store_options().lanes()))
        .enable_all()
        .max_blocking_threads(memory::blocking_threads(config.memory))
        .build()
        .map_err(StartError::Runtime);
    let ended = match runtime {
        Ok(runtime) => {
            let stdin_counts = config.exit_when_stdin_closes;
            let ended = runtime.block_on(async { run(config, asked_to_stop(stdin_counts)).await });
            // What hangs on a client or a disk is not waited for again.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => end_process(args::EXIT_SUCCESS),
        Err(error) => {
            tracing::error!("{error:#}");
            end_process(exit_code(&error))
        }
    }
}

/// Ends the process, without the destructors of its libraries: a thread that still reads, or hangs on a disk, would find
/// the locks destroyed that it waits for, and the process would be aborted instead.
fn end_process(code: u8) -> ! {
    // Nobody may read it any more.
    let _ = io::Write::flush(&mut io::stdout());
    signal_hook::low_level::exit(code.into())
}

/// Threads of the runtime. A lane needs about half a processor; more threads than processors would only take
/// turns, at the price of a switch for every request.
fn worker_threads(lanes: usize) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cpus.saturating_sub(lanes.div_ceil(2)).max(1)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(EndError::Replaced(_)) => return args::EXIT_REPLACED,
        Some(EndError::Panicked(_)) => return args::EXIT_PANICKED,
        _ => {}
    }
    match error.downcast_ref() {
        Some(StartError::Config(_)) => args::EXIT_CONFIG,
        Some(StartError::Store(_) | StartError::Join(JoinError::Store(_))) => args::EXIT_DATA_DIR,
        Some(
            StartError::Listen { .. }
            | StartError::Tls { .. }
            | StartError::ReadyFile { .. }
            | StartError::Join(JoinError::Gossip(_)),
        ) => args::EXIT_LISTEN,
        Some(StartError::Join(JoinError::NameTaken { .. })) => args::EXIT_TAKEN,
        Some(
            StartError::Runtime(_) | StartError::Services(_) | StartError::Join(JoinError::Reidentified(_)),
        )
        | None => args::EXIT_FAILED,
    }
}

/// Hands over what the node owns while it still serves: who writes hears of a new owner, and of no failure.
async fn hand_over(cluster: &Cluster, grace: Duration) {
    cluster.drain(true).await;
    let (mut routes, mut view) = (cluster.routes(), cluster.view());
    let me = &cluster.me().node;
    let takes_over = |other: &ViewMember| {
        other.alive
            && other.node_id != *me
            && matches!(other.readiness, Readiness::Joining | Readiness::Ready)
    };
    let handed_over = async {
        // Whoever takes a slot may need this node's copy until it owns it.
        let is_left = |routes: &Routes| routes.owned() + routes.unowned() > 0;
        while is_left(&routes.borrow_and_update()) && view.borrow_and_update().members.iter().any(takes_over)
        {
            tokio::select! {
                Ok(()) = routes.changed() => {}
                Ok(()) = view.changed() => {}
                else => return,
            }
        }
    };
    let in_time = tokio::time::timeout(grace, handed_over).await.is_ok();
    let owned = cluster.routes().borrow().owned();
    match owned {
        0 => tracing::info!("handed over"),
        _ if in_time => tracing::info!(owned, "there is no other node to hand over to"),
        _ => tracing::warn!(owned, "some slots were not handed over in time: others will take them over"),
    }
}

/// How the node stands: by itself, or with a name in a cluster.
async fn node_mode(config: &Config, ledger: &Ledger, grpc: SocketAddr) -> Result<NodeMode, StartError> {
    if config.node_id.is_none() {
        return Ok(NodeMode::Standalone(Standalone::new(config, &ledger.storage_id(), grpc)));
    }
    let (reading, settings) = (ledger.clone(), config.clone());
    let read = move || {
        let incarnation = reading.next_incarnation()?;
        Ok::<_, StartError>(settings.cluster_config(reading.storage(), incarnation, grpc)?)
    };
    let read = tokio::task::spawn_blocking(read).await;
    match read.map_err(|error| StartError::Services(error.to_string()))?? {
        Some(cluster) => Ok(NodeMode::Clustered(Arc::new(Cluster::join(ledger.clone(), cluster).await?))),
        None => Ok(NodeMode::Standalone(Standalone::new(config, &ledger.storage_id(), grpc))),
    }
}

/// Completes at the first signal, or at the end of standard input if that counts. From then on, another signal
/// ends the process, and does so if the node ends by itself meanwhile: signals are heard as long as the process lives.
fn asked_to_stop(stdin_counts: bool) -> impl Future<Output = ()> {
    let asked = CancellationToken::new();
    tokio::spawn(watch_signals(stdin_counts, asked.clone()));
    asked.cancelled_owned()
}

async fn watch_signals(stdin_counts: bool, asked: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals: stop the node with SIGKILL, which is safe for its data");
        return;
    };
    let by = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = end_of_stdin(), if stdin_counts => "the end of standard input",
    };
    tracing::info!(by, "asked to stop");
    asked.cancel();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::warn!("asked again: ending at once");
    end_process(args::EXIT_FORCED);
}

/// Completes when standard input ends: whoever held the other end of the pipe closed it, or died.
async fn end_of_stdin() {
    let mut stdin = tokio::io::stdin();
    // An error is an end, too.
    let _ = tokio::io::copy(&mut stdin, &mut tokio::io::sink()).await;
}

fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let listen = |reason| StartError::Listen { key, address, reason };
    let listener = TcpListener::bind(address).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    Ok((listener, bound))
}

/// The services, behind the layers that count calls, and account for them.
type Services = Router<Stack<Admission, Stack<CountCalls, Identity>>>;

/// The cluster service, some of whose methods are operators'.
fn cluster_service(node: &Arc<Node>) -> OperatorAuthenticator<ClusterServiceServer<Members>> {
    let service = ClusterServiceServer::new(Members(Arc::clone(node)));
    match node.mode.cluster() {
        Some(cluster) => cluster.for_operators(service),
        None => OperatorAuthenticator::without_key(service),
    }
}

/// All gRPC services.
fn routes(node: &Arc<Node>, health: &HealthReporter) -> Result<Services, StartError> {
    let services = |error: &dyn fmt::Display| StartError::Services(error.to_string());
    let config = &node.config;
    let append = limits::append_message(config.max_entry.get());
    let (connection_window, stream_window) = node.memory.windows();
    let load = config.max_snapshot_message.get() + limits::MESSAGE_SLACK;
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(health.clone()),
    );
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut server = tonic::transport::Server::builder()
        .layer(CountCalls)
        .layer(Admission(Arc::clone(node)))
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .max_frame_size(limits::FRAME)
        .http2_max_pending_accept_reset_streams(Some(limits::PENDING_RESETS))
        .http2_keepalive_interval(Some(limits::PING_EVERY))
        .http2_keepalive_timeout(Some(limits::PING_TIMEOUT));
    Ok(server
        .add_optional_service(node.mode.cluster().map(|cluster| cluster.service()))
        .add_service(
            ContextServiceServer::new(Contexts(Arc::clone(node)))
                .max_decoding_message_size(append.max(load))
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(
            LedgerServiceServer::new(Streams(Arc::clone(node)))
                .max_decoding_message_size(append)
                .max_encoding_message_size(usize::MAX),
        )
        .add_service(IntegrityServiceServer::new(Integrity(Arc::clone(node))))
        .add_service(cluster_service(node))
        .add_service(health)
        .add_service(reflection().build_v1().map_err(|error| services(&error))?)
        .add_service(reflection().build_v1alpha().map_err(|error| services(&error))?))
}

fn start_grpc(
    supervisor: &Supervisor,
    node: &Arc<Node>,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    clients: Arc<Connections>,
    routes: Services,
) -> tokio::task::JoinHandle<()> {
    let draining = node.draining.clone();
    let until = draining.clone();
    let metrics = Arc::clone(&node.metrics);
    // The last restart takes the listener along, so that a drained node refuses connections.
    let listener = Arc::new(listener);
    supervisor.spawn("grpc", TaskKind::Essential, until, move || {
        let (listener, routes, draining) = (listener.try_clone(), routes.clone(), draining.clone());
        let (tls, clients, metrics) = (tls.clone(), Arc::clone(&clients), Arc::clone(&metrics));
        async move {
            let listener = Listener::new(listener?, "grpc", clients, metrics)?;
            let (accepting, accepted) = connection::incoming(listener, tls);
            let accepted = accepted.map(|connection| connection.map(Corked::lingering));
            let serving = routes.serve_with_incoming_shutdown(accepted, draining.cancelled_owned());
            // Accepting ends, and refuses who comes later, as soon as serving takes no more.
            let (served, ()) = tokio::join!(serving, accepting);
            served?;
            TaskOutcome::Ok(())
        }
    })
}

/// Exchanges the cluster's keys when the node is told to read them again.
fn watch_keys(supervisor: &Supervisor, node: &Arc<Node>) -> Result<(), StartError> {
    let (Some(path), Some(cluster)) = (&node.config.cluster_key_file, node.mode.cluster()) else {
        return keys::ignore(supervisor, node.draining.clone()).map_err(StartError::Runtime);
    };
    let cluster = Arc::clone(cluster);
    let set = move |keyring| cluster.set_keyring(keyring);
    keys::watch(supervisor, path.clone(), node.draining.clone(), set).map_err(StartError::Runtime)
}

fn start_upkeep(supervisor: &Supervisor, node: &Arc<Node>) {
    let node = Arc::clone(node);
    supervisor.spawn("upkeep", TaskKind::BestEffort, CancellationToken::new(), move || {
        let node = Arc::clone(&node);
        async move {
            loop {
                // Nobody is told of a failure: a store that cannot say how it is says so to /metrics.
                if let Ok(stats) = node.read(|ledger| Ok(ledger.stats())).await {
                    let load = node.meter.sample(Instant::now(), &stats);
                    if let Some(cluster) = node.mode.cluster() {
                        cluster.membership().set_load(load);
                    }
                }
                tokio::time::sleep(UPKEEP).await;
                node.metrics.upkeep();
            }
        }
    });
}

/// Written beside and renamed: who sees the file sees all of it.
fn write_ready_file(path: &Path, grpc: SocketAddr, http: SocketAddr) -> io::Result<()> {
    let ready = serde_json::json!({
        "grpc": grpc.to_string(),
        "http": http.to_string(),
        "pid": std::process::id(),
    });
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    fs::write(&beside, format!("{ready}\n"))?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_close_is_not_waited_for_for_ever() {
        let (hung, hangs) = std::sync::mpsc::channel::<()>();
        let closing = tokio::spawn(within(CLOSE_TIMEOUT, move || {
            let _ = hangs.recv();
            Ok(())
        }));
        // It waits by now. The clock does not go on by itself while a thread works.
        tokio::task::yield_now().await;
        tokio::time::advance(2 * CLOSE_TIMEOUT).await;
        assert!(matches!(closing.await.unwrap(), Err(StoreError::Io(_))));
        drop(hung);
        assert!(within(CLOSE_TIMEOUT, || Ok(())).await.is_ok());
    }
}
