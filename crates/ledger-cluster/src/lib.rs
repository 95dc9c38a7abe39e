//! A cluster of ledger nodes.
//!
//! | module | holds |
//! | --- | --- |
//! | [`cluster`] | a node's part in the cluster, as its server uses it |
//! | `driver` | the one task that decides, with [`ledger_core::ownership::SlotManager`] |
//! | `owner_stream`, `replica_stream` | the two ends of the stream from an owner to a replica |
//! | `sync_slots`, `catch_up` | bringing a replica in sync |
//! | `leases` | until when readers may see each slot |
//! | `healing` | restoring damaged contexts from other nodes |
//! | `service` | the requests of other nodes |
//! | `call_auth` | who may call the service for nodes, and the proof in each call |
//! | `formation` | how a node joins its cluster |
//! | `known_nodes` | the last addresses of other nodes, on disk |
//! | [`ownership_check`](ownership::ownership_check) | whether the other nodes own all slots |
//! | [`decommission`](ownership::decommission) | removing a node for good |
//! | [`recovery`](ownership::recovery) | continuing when too many members of a slot are lost |
//! | `stale_volume` | a node that returns with an older disk |
//! | [`routes`](ownership::routes) | the owner and members of each slot |
//! | [`config`] | the settings of a cluster node |
//! | [`membership`] | which nodes are in the cluster and alive, and what each reports about itself |
//! | [`gossip`](membership::gossip) | the transport of membership: chitchat over sealed UDP datagrams |
//! | [`seal`](membership::seal) | the cluster keys, and how datagrams are sealed and opened |
//! | [`seeds`](membership::seeds) | where a node looks for other nodes |

#![warn(clippy::disallowed_methods)]

mod backoff;
mod catch_up;
pub mod cluster;
pub mod config;
#[doc(hidden)]
pub mod fuzzing;
pub mod membership;
pub mod ownership;
pub mod peers;
mod replicate;
mod shared;

pub use cluster::{Cluster, JoinError};
pub use config::ClusterConfig;
pub use ownership::stale_volume::Reidentified;
pub use peers::REQUEST_WINDOW;
pub use shared::Counters;
