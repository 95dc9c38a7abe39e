//! Why a node's part in gossip ended that nobody ended.

use ledger_core::node::{Incarnation, NodeId};

/// Gossip ended although nobody stopped it. The view is stale from then on: stop the node, or start the membership
/// again with a higher incarnation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gossip ended by itself ({reason}): this node no longer sees the cluster and must start anew")]
pub struct GossipEnded {
    /// The cause, as far as it is known.
    pub reason: String,
}

/// A later start of this node is running: this process is no longer the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "another process runs as this node, {node}, since this one was started (start {incarnation}, this one is {this_start}{}): this one ends, and what \
     it knows may be old; started again it takes part if the other one is gone", at(.grpc_address)
)]
pub struct Replaced {
    /// The node's name.
    pub node: NodeId,
    /// The start number of the later process.
    pub incarnation: Incarnation,
    /// The start number of this process.
    pub this_start: Incarnation,
    /// gRPC address of the later process; empty if unknown.
    pub grpc_address: String,
}

fn at(address: &str) -> String {
    if address.is_empty() { String::new() } else { format!(", at {address}") }
}
