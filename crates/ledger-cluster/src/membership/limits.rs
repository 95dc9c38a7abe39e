//! Bounds on what gossip carries.

/// Most nodes that a view includes. chitchat's messages name every node, so a practical cluster is far smaller.
pub(super) const MAX_NODES: usize = 512;

/// Largest datagram sent or accepted, in bytes: what fits unfragmented into the smallest MTU of IPv6 (1280, RFC 8200
/// §5) after the IPv6 and UDP headers.
pub const MAX_DATAGRAM: usize = 1280 - 40 - 8;
