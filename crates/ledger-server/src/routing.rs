//! Where a request is served: here, or by the node that can.

pub mod failover;
pub mod forward;
pub mod listing;
pub mod owner_loss;
pub mod relay;
pub mod route;
pub mod upstream;
