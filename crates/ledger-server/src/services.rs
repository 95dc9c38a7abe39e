//! The services of the contract, and the streams they serve.

pub mod cluster_service;
pub mod context_service;
pub mod integrity_service;
pub mod ledger_service;
pub mod observe;
pub mod pages;
pub mod relay;
pub mod watcher;
