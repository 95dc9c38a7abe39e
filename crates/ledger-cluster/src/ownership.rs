//! Which nodes own and keep slots: the driver, and every way into and out of a cluster.

pub mod decommission;
pub(crate) mod driver;
pub(crate) mod formation;
pub mod ownership_check;
pub mod recovery;
pub mod routes;
pub(crate) mod stale_volume;
