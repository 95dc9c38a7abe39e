//! What the nodes of a cluster request from each other's ledgers.

pub(crate) mod compare;
pub(crate) mod digests;
pub(crate) mod incoming_load;
pub(crate) mod lane_replication;
pub(crate) mod load_descriptor;
pub(crate) mod pending;
pub(crate) mod ranges;
pub mod replica;
pub(crate) mod staged_loads;
pub(crate) mod verify;
