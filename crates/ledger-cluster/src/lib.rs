//! A cluster of ledger nodes.
//!
//! | module | holds |
//! | --- | --- |
//! | [`cluster`] | a node's part in it: what its server holds |
//! | `driver` | the one task that decides, with [`ledger_core::ownership::SlotManager`] |
//! | `owner_stream`, `replica_stream` | the stream from an owner to a replica, seen from both ends |
//! | `sync_slots`, `catch_up` | bringing a replica in step |
//! | `leases` | until when readers are shown what this node has |
//! | `healing` | restoring what a disk damaged |
//! | `service` | what other nodes ask |
//! | `call_auth` | who may call the service for nodes, and the proof that comes with a call |
//! | `formation` | how a node comes to belong to its cluster |
//! | `known_nodes` | other nodes' last addresses, on disk |
//! | [`ownership_check`](ownership::ownership_check) | whether the other nodes hold everything |
//! | [`decommission`](ownership::decommission) | a node that leaves for good |
//! | [`recovery`](ownership::recovery) | going on when too many members of a slot are lost |
//! | `stale_volume` | a node that came back with an older disk |
//! | [`routes`](ownership::routes) | where slots are |
//! | [`config`] | the settings of a node that takes part |
//! | [`membership`] | who is in the cluster, who is alive, and what each node says of itself |
//! | [`gossip`](membership::gossip) | how that travels: chitchat over sealed UDP datagrams |
//! | [`seal`](membership::seal) | the cluster keys, and sealing and opening a datagram |
//! | [`seeds`](membership::seeds) | where a node looks for the others |

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
