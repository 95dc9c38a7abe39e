//! The server of Converge Ledger: gRPC services over a [`Ledger`](ledger_store::Ledger), and the daemon `ledgerd`.
//!
//! A request, top to bottom: a service ([`context_service`](services::context_service), [`ledger_service`](services::ledger_service), [`integrity_service`](services::integrity_service),
//! [`cluster_service`](services::cluster_service)) → [`convert`](grpc::convert) (checks everything a client sent) → the store → [`convert`](grpc::convert) back, or
//! [`status`](grpc::status) where it failed. [`serve`](daemon::serve) starts and stops all of it, [`supervise`] keeps it running.
//!
//! Each room imports only from rooms below it:
//!
//! | room | holds |
//! | --- | --- |
//! | [`daemon`] | the life of the process: settings read, the data directory opened, services put together, started and stopped |
//! | [`http`] | probes, Prometheus, a page to look at contexts |
//! | [`services`] | the services of the contract, pages of a context, watchers and observers wherever they are served |
//! | [`append_stream`] | the pipelined append, and what of it is sent on to other owners |
//! | [`membership`] | what the node says of its cluster, and what operators have it do there |
//! | [`routing`] | where a request is served: here, or by another node |
//! | [`node`] | what all services share; whether the node runs alone or in a cluster; who writes which context |
//! | [`interest`] | observers of contexts, and what waits for each |
//! | [`grpc`] | every call's place, deadline and account of bytes; requests as their bytes arrive; messages and refusals |
//! | [`supervise`] | tasks that are restarted one for one |
//! | [`metrics`] | what the node counts and measures |
//! | [`memory`] | one budget for what clients make the node hold |
//! | [`settings`] | defaults, file, environment, flags; the plan of the memory |
//! | [`limits`] | every other bound |

#![warn(clippy::disallowed_methods)]

pub mod append_stream;
pub mod daemon;
pub mod grpc;
pub mod http;
pub mod interest;
pub mod limits;
pub mod membership;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod routing;
pub mod services;
pub mod settings;
pub mod supervise;

pub use daemon::{error::StartError, serve::Server};
pub use settings::config::Config;
