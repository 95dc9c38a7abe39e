//! The services of the contract, and the streams they serve.

pub mod append_stream;
pub mod cluster_service;
pub mod context_service;
pub mod integrity_service;
pub mod interest;
pub mod ledger_service;
pub mod loading;
pub mod newest_positions;
pub mod observe;
pub mod pages;
pub mod watcher;
pub mod writers;
