//! The settings of a node: defaults, file, environment, flags.

pub mod args;
mod check;
pub mod cluster;
pub mod config;
pub mod effective;
pub mod environment;
pub mod error;
mod machine_memory;
pub mod memory_plan;
mod store_options;
pub mod units;
