//! Where a request is served: here, or by the node that can.

pub mod failover;
pub mod listing;
pub mod owner_loss;
pub mod route;
pub mod upstream;
