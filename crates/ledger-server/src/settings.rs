//! The settings of a node: defaults, file, environment, flags.

pub mod args;
pub mod config;
pub mod environment;
pub mod units;
