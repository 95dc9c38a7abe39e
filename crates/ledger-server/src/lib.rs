//! The server of Converge Ledger: gRPC services over a [`Ledger`](ledger_store::Ledger), and the daemon `ledgerd`.
//!
//! A request, top to bottom: a service ([`context_service`], [`ledger_service`], [`integrity_service`],
//! [`cluster_service`]) → [`convert`] (checks everything a client sent) → the store → [`convert`] back, or
//! [`status`] where it failed. [`serve`] starts and stops all of it, [`supervise`] keeps it running.
//!
//! | module | holds |
//! | --- | --- |
//! | [`args`], [`config`], [`units`] | the settings: defaults, file, environment, flags |
//! | [`serve`] | start, supervise, shut down |
//! | [`supervise`] | tasks that are restarted one for one |
//! | [`node`] | what all services share |
//! | [`standing`], [`cluster_view`] | how the node stands: by itself, or in a cluster as it sees it |
//! | [`operators`], [`admin`] | what operators have the node do to its cluster, and who may |
//! | [`opening`], [`replacement`] | the data directory opened, set aside where it cannot be, and given up where it is damaged for good |
//! | [`keys`], [`load`] | the cluster's keys read again; what the node says it has to do |
//! | [`memory`] | one budget for what clients make the node hold |
//! | [`admission`], [`call`], [`methods`] | every call's place, deadline and account of bytes |
//! | [`receiving`], [`scan`] | requests as their bytes arrive |
//! | [`limits`] | every other bound |
//! | [`tail`], [`newest`] | one watcher: history, then the live tail; and its bookmarks |
//! | [`encode`] | entries in the contract's encoding, from where they lie |
//! | [`pages`] | a context read in pages, ahead of the client |
//! | [`append_stream`] | the pipelined append |
//! | [`writers`] | whether several writers take turns on a context |
//! | [`interest`], [`observe`] | observers of contexts, and their streams wherever the owner moves |
//! | [`http`], [`console`], [`metrics`] | probes, Prometheus, a page to look at contexts |

pub mod admin;
pub mod admission;
pub mod append_stream;
pub mod args;
pub mod call;
pub mod cluster_metrics;
pub mod cluster_service;
pub mod cluster_view;
pub mod config;
pub mod connection;
pub mod console;
pub mod context_service;
pub mod convert;
pub mod encode;
pub mod environment;
pub mod failover;
pub mod forward;
pub mod gone;
pub mod http;
pub mod integrity_service;
pub mod interest;
pub mod keys;
pub mod ledger_service;
pub mod limits;
pub mod listing;
pub mod load;
pub mod loading;
pub mod memory;
pub mod methods;
pub mod metrics;
pub mod newest;
pub mod node;
pub mod observe;
pub mod opening;
pub mod operators;
pub mod pages;
pub mod permissions;
pub mod receiving;
pub mod relay;
pub mod replacement;
pub mod route;
pub mod scan;
pub mod serve;
pub mod standing;
pub mod status;
pub mod supervise;
pub mod tail;
pub mod telemetry;
pub mod tls;
pub mod units;
pub mod upstream;
pub mod writers;

pub use config::Config;
pub use serve::{Server, StartError};
