//! A cluster of ledger nodes.
//!
//! | module | holds |
//! | --- | --- |
//! | [`cluster`] | a node's part in it: what its server holds |
//! | `driver` | the one task that decides, with [`ledger_core::ownership::Slots`] |
//! | `sending`, `receiving` | the stream from an owner to a replica, seen from both ends |
//! | `following`, `catch_up` | bringing a replica in step |
//! | `leases` | until when readers are shown what this node has |
//! | `healing` | restoring what a disk damaged |
//! | `service` | what other nodes ask |
//! | `door` | who may call the service for nodes, and the proof that comes with a call |
//! | `belonging` | how a node comes to belong to its cluster |
//! | `known` | other nodes' last addresses, on disk |
//! | [`others`] | whether the other nodes hold everything |
//! | [`leaving`] | a node that leaves for good |
//! | [`recovering`] | going on when too many members of a slot are lost |
//! | `set_back` | a node that came back with an older disk |
//! | [`routes`] | where slots are |
//! | [`config`] | the settings of a node that takes part |
//! | [`membership`] | who is in the cluster, who is alive, and what each node says of itself |
//! | [`gossip`] | how that travels: chitchat over sealed UDP datagrams |
//! | [`seal`] | the cluster keys, and sealing and opening a datagram |
//! | [`seeds`] | where a node looks for the others |

mod backoff;
mod belonging;
mod catch_up;
pub mod cluster;
pub mod config;
pub mod door;
mod driver;
mod following;
#[doc(hidden)]
pub mod fuzzing;
mod giving;
pub mod gossip;
mod healing;
mod known;
mod leases;
pub mod leaving;
mod load;
pub mod membership;
pub mod others;
mod pace;
mod peers;
mod receiving;
pub mod recovering;
pub mod routes;
pub mod seal;
pub mod seeds;
mod sending;
pub mod service;
mod set_back;
mod shared;
mod staging;
mod wire;

pub use cluster::{Cluster, JoinError};
pub use config::ClusterConfig;
pub use peers::REQUEST_WINDOW;
pub use set_back::Renewed;
pub use shared::Counters;
