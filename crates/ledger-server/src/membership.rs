//! The node alone or in a cluster, and what operators have it do there.

pub mod admin;
pub mod cluster_view;
pub mod mode;
pub mod operators;
