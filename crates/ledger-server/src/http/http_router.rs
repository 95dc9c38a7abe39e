//! The HTTP port: probes, metrics, and the console.
//!
//! | path | answers |
//! | --- | --- |
//! | `/healthz` | 200 while the process is up |
//! | `/readyz` | 200 while the node is not stopping and its disk takes writes; else 503 and why |
//! | `/metrics` | Prometheus' text format |
//! | `/`, `/api/…` | the [`console`](crate::http::console), read-only |

use std::{net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio_util::sync::CancellationToken;

use crate::{
    grpc::connection::{Connections, Listener},
    http::cluster_metrics,
    http::console,
    limits,
    node::Node,
    settings::config::TestPanic,
    supervise::{Supervisor, TaskKind, TaskOutcome},
};

/// Starts the HTTP server, to be restarted by itself if it fails.
pub fn start(supervisor: &Supervisor, node: &Arc<Node>, listener: TcpListener, stop: CancellationToken) {
    let app = router(Arc::clone(node));
    let test_panic = CancellationToken::new();
    if node.config.test_panic != Some(TestPanic::Console) {
        test_panic.cancel();
    }
    let connections = Connections::new(limits::HTTP_CONNECTIONS);
    let metrics = Arc::clone(&node.metrics);
    supervisor.spawn("http", TaskKind::BestEffort, stop.clone(), move || {
        let (listener, app, stop) = (listener.try_clone(), app.clone(), stop.clone());
        let test_panic = test_panic.clone();
        let (connections, metrics) = (Arc::clone(&connections), Arc::clone(&metrics));
        async move {
            let listener = Listener::new(listener?, "http", connections, metrics)?;
            let serve = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned());
            tokio::select! {
                ended = serve => ended?,
                () = panic_once(test_panic) => {}
            }
            TaskOutcome::Ok(())
        }
    });
}

/// For tests of the supervision: panics soon after the first start, if asked for.
async fn panic_once(done: CancellationToken) {
    if !done.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        done.cancel();
        panic!("asked to panic by test_panic = console");
    }
    std::future::pending::<()>().await;
}

/// All paths.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(console::routes())
        .with_state(node)
}

async fn ready(State(node): State<Arc<Node>>) -> (StatusCode, String) {
    let ready = match node.serving() {
        Ok(()) => node.ledger.writable().map_err(|error| error.to_string()),
        Err(refusal) => Err(refusal.message),
    };
    match ready {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
    }
}

async fn metrics(State(node): State<Arc<Node>>) -> axum::response::Response {
    match node.read(|ledger| Ok((ledger.stats(), ledger.writable().is_ok()))).await {
        Ok((stats, writable)) => {
            if let Some(cluster) = node.mode.cluster() {
                cluster_metrics::take(&node.metrics, cluster);
            }
            node.metrics.set_memory(&node.memory);
            let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
            ([kind], node.metrics.render(&stats, writable)).into_response()
        }
        Err(refusal) => (StatusCode::SERVICE_UNAVAILABLE, refusal.message).into_response(),
    }
}
