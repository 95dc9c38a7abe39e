//! The gRPC services, put together and served.

use std::{fmt, net::TcpListener, sync::Arc};

use futures::StreamExt as _;
use ledger_cluster::peers::call_auth::operators::OperatorAuthenticator;
use ledger_cork::Corked;
use ledger_proto::{
    DESCRIPTORS,
    ledger::v1::{
        cluster_service_server::ClusterServiceServer, integrity_service_server::IntegrityServiceServer,
    },
    wire::{
        context::v1::context_service_server::ContextServiceServer,
        ledger::v1::ledger_service_server::LedgerServiceServer,
    },
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Router;
use tonic_health::server::HealthReporter;
use tower::layer::util::{Identity, Stack};

use crate::{
    daemon::error::StartError,
    grpc::{
        admission::Admission,
        connection::{self, Connections, CountCalls, Listener},
    },
    limits,
    node::Node,
    services::{
        cluster_service::Members, context_service::Contexts, integrity_service::Integrity,
        ledger_service::Streams,
    },
    supervise::{Supervisor, TaskKind, TaskOutcome},
};

/// The services, behind the layers that count calls, and account for them.
pub(super) type Services = Router<Stack<Admission, Stack<CountCalls, Identity>>>;

/// The cluster service, some of whose methods are operators'.
fn cluster_service(node: &Arc<Node>) -> OperatorAuthenticator<ClusterServiceServer<Members>> {
    let service = ClusterServiceServer::new(Members(Arc::clone(node)));
    match node.mode.cluster() {
        Some(cluster) => cluster.for_operators(service),
        None => OperatorAuthenticator::without_key(service),
    }
}

/// All gRPC services.
///
/// # Errors
/// [`StartError::Services`]: the descriptions of the services do not fit together.
pub(super) fn routes(node: &Arc<Node>, health: &HealthReporter) -> Result<Services, StartError> {
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
        .layer(Admission::new(&node.config, &node.memory, &node.unread))
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

/// Serves them until the node drains, and again if that fails.
pub(super) fn start(
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
