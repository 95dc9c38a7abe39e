//! The life of the process: open, serve, close.

pub mod error;
mod grpc_services;
mod hand_over;
mod keys;
mod opening;
pub mod permissions;
pub mod process;
mod ready_file;
mod replacement;
pub mod serve;
pub mod telemetry;
mod upkeep;
