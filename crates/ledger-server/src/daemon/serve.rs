//! The life of a node: open, bind, serve, drain, close.
//!
//! | phase | /readyz | health | new requests | watchers | appends in flight |
//! | --- | --- | --- | --- | --- | --- |
//! | serving | 200 | `SERVING` | answered | live | |
//! | handing over (in a cluster) | 200 | `NOT_SERVING` | answered, while the slots go to other nodes, for at most half of `shutdown_grace` | live | |
//! | draining | 503 | `NOT_SERVING` | refused, `UNAVAILABLE` with a retry delay | ended the same way | finished and acknowledged, for at most `shutdown_grace` |
//! | closed | | | connection refused | | |

use std::{
    fs,
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use ledger_cluster::{Cluster, membership::Replaced};
use ledger_core::checkpoint::Signer;
use ledger_proto::{
    ledger::v1::{
        cluster_service_server::SERVICE_NAME as CLUSTER, integrity_service_server::SERVICE_NAME as INTEGRITY,
    },
    wire::{
        context::v1::context_service_server::SERVICE_NAME as CONTEXT,
        ledger::v1::ledger_service_server::SERVICE_NAME as LEDGER,
    },
};
use ledger_store::{Ledger, Options, StoreError};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    daemon::{
        error::{EndError, StartError},
        grpc_services,
        hand_over::hand_over,
        keys, opening, permissions, ready_file, replacement, upkeep,
    },
    grpc::{
        connection::{Connections, Descriptors, raise_limit},
        tls,
    },
    http::http_router,
    membership::operators,
    metrics::Metrics,
    node::{
        Node,
        mode::{NodeMode, Standalone},
    },
    settings::config::Config,
    supervise::Supervisor,
};

/// How long health watchers may still read that the node stops.
const FINAL_HEALTH_TIME: Duration = Duration::from_millis(100);
/// How long the store may take to close, after the grace of a shutdown.
const CLOSE_TIMEOUT: Duration = Duration::from_mins(2);
/// The services whose health is reported; the empty name stands for the node.
const SERVICES: [&str; 5] = ["", CONTEXT, LEDGER, INTEGRITY, CLUSTER];

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
    ///
    /// # Errors
    /// [`StartError`]: nothing serves, and the store is closed again.
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
        let mode = node_mode(&config, &ledger, grpc).await?;
        let node = Arc::new(Node::new(ledger, config, Arc::clone(&metrics), signer, mode));
        let supervisor = Supervisor::new(metrics);
        let health = HealthReporter::new();
        for service in SERVICES {
            health.set_service_status(service, ServingStatus::Serving).await;
        }

        let routes = grpc_services::routes(&node, &health)?;
        let http_stop = CancellationToken::new();
        let clients = Connections::new(descriptors.clients);
        let grpc_task = grpc_services::start(&supervisor, &node, grpc_listener, tls, clients, routes);
        http_router::start(&supervisor, &node, http_listener, http_stop.clone());
        upkeep::start(&supervisor, &node);
        keys::start(&supervisor, &node).map_err(StartError::Runtime)?;
        if let Some(path) = &node.config.ready_file {
            let reason = |reason| StartError::ReadyFile { path: path.clone(), reason };
            ready_file::write(path, grpc, http).map_err(reason)?;
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
                    replaced = cluster.replaced() => {
                        record_later_start(&self.node.ledger, &replaced).await;
                        replaced.into()
                    }
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
    ///
    /// # Errors
    /// [`EndError::Close`]: the store did not close cleanly.
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
///
/// # Errors
/// [`StartError`] if it does not start, else [`EndError`], or why it could not leave its cluster.
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
    match tokio::time::timeout(most, ledger_store::blocking::spawn(work)).await {
        Ok(done) => done.unwrap_or_else(|error| Err(StoreError::Io(error.to_string()))),
        Err(_) => Err(StoreError::Io(format!("it was not done within {} s", most.as_secs()))),
    }
}

/// Notes the later start of this node, so that the next one here is later still: an empty directory on a machine whose clock
/// is behind would otherwise begin with a number that the other nodes take for an old process for ever.
async fn record_later_start(ledger: &Ledger, replaced: &Replaced) {
    let (ledger, later) = (ledger.clone(), replaced.incarnation);
    let recorded = ledger_store::blocking::spawn(move || ledger.record_incarnation(later)).await;
    if let Ok(Err(error)) = recorded {
        tracing::warn!(%error, "the number of the later start could not be noted");
    }
}

/// Whether the node runs alone or, with a name, as a member of a cluster, which it joins.
async fn node_mode(config: &Config, ledger: &Ledger, grpc: SocketAddr) -> Result<NodeMode, StartError> {
    if config.node_id.is_none() {
        return Ok(NodeMode::Standalone(Standalone::new(config, &ledger.storage_id(), grpc)));
    }
    let (reading, settings) = (ledger.clone(), config.clone());
    let read = move || {
        let incarnation = reading.next_incarnation()?;
        Ok::<_, StartError>(settings.cluster_config(reading.storage(), incarnation, grpc)?)
    };
    let read = ledger_store::blocking::spawn(read).await;
    match read.map_err(|error| StartError::Services(error.to_string()))?? {
        Some(cluster) => Ok(NodeMode::Clustered(Arc::new(Cluster::join(ledger.clone(), cluster).await?))),
        None => Ok(NodeMode::Standalone(Standalone::new(config, &ledger.storage_id(), grpc))),
    }
}

fn bind(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let listen = |reason| StartError::Listen { key, address, reason };
    let listener = TcpListener::bind(address).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    Ok((listener, bound))
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
