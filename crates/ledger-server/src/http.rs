//! The HTTP port: probes, metrics, and the console.

pub mod cluster_metrics;
pub mod console;
pub mod http_router;
