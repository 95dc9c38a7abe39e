//! The streams from owners to replicas, and what they carry.

pub(crate) mod leases;
pub(crate) mod owner_stream;
pub(crate) mod replica_stream;
pub(crate) mod staging;
