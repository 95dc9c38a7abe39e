//! The server of Converge Ledger: gRPC services over a [`Ledger`](ledger_store::Ledger), and the daemon `ledgerd`.
//!
//! A request, top to bottom: a service ([`context_service`](services::context_service), [`ledger_service`](services::ledger_service), [`integrity_service`](services::integrity_service),
//! [`cluster_service`](services::cluster_service)) → [`convert`](grpc::convert) (checks everything a client sent) → the store → [`convert`](grpc::convert) back, or
//! [`status`](grpc::status) where it failed. [`serve`](daemon::serve) starts and stops all of it, [`supervise`](daemon::supervise) keeps it running.
//!
//! | module | holds |
//! | --- | --- |
//! | [`args`](settings::args), [`config`](settings::config), [`units`](settings::units) | the settings: defaults, file, environment, flags |
//! | [`serve`](daemon::serve) | start, supervise, shut down |
//! | [`supervise`](daemon::supervise) | tasks that are restarted one for one |
//! | [`node`] | what all services share |
//! | [`mode`](membership::mode), [`cluster_view`](membership::cluster_view) | how the node stands: by itself, or in a cluster as it sees it |
//! | [`operators`](membership::operators), [`admin`](membership::admin) | what operators have the node do to its cluster, and who may |
//! | [`opening`](daemon::opening), [`replacement`](daemon::replacement) | the data directory opened, set aside where it cannot be, and given up where it is damaged for good |
//! | [`keys`](daemon::keys), [`load_meter`](daemon::load_meter) | the cluster's keys read again; what the node says it has to do |
//! | [`memory`] | one budget for what clients make the node hold |
//! | [`admission`](grpc::admission), [`call`](grpc::call), [`methods`](grpc::methods) | every call's place, deadline and account of bytes |
//! | [`request_body`](grpc::request_body), [`scan`](grpc::scan) | requests as their bytes arrive |
//! | [`limits`] | every other bound |
//! | [`watcher`](services::watcher), [`newest_positions`](services::newest_positions) | one watcher: history, then the live tail; and its bookmarks |
//! | [`encode`](grpc::encode) | entries in the contract's encoding, from where they lie |
//! | [`pages`](services::pages) | a context read in pages, ahead of the client |
//! | [`append_stream`](services::append_stream) | the pipelined append |
//! | [`writers`](services::writers) | whether several writers take turns on a context |
//! | [`interest`](services::interest), [`observe`](services::observe) | observers of contexts, and their streams wherever the owner moves |
//! | [`http_router`](http::http_router), [`console`](http::console), [`metrics`](http::metrics) | probes, Prometheus, a page to look at contexts |

pub mod daemon;
pub mod grpc;
pub mod http;
pub mod limits;
pub mod membership;
pub mod memory;
pub mod node;
pub mod routing;
pub mod services;
pub mod settings;

pub use daemon::serve::{Server, StartError};
pub use settings::config::Config;
