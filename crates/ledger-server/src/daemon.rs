//! The life of the process: open, serve, supervise, close.

pub mod keys;
pub mod load_meter;
pub mod opening;
pub mod permissions;
pub mod replacement;
pub mod serve;
pub mod supervise;
pub mod telemetry;
