//! The node alone or in a cluster, and what operators have it do there.

pub mod admin;
pub mod changes;
pub mod cluster_view;
pub mod draining;
pub mod operators;
pub mod overview;
