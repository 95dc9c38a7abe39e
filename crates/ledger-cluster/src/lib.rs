//! A cluster of ledger nodes.
//!
//! | module | holds |
//! | --- | --- |
//! | [`membership`] | who is in the cluster, who is alive, and what each node says of itself |
//! | [`gossip`] | how that travels: chitchat over sealed UDP datagrams |
//! | [`seal`] | the cluster keys, and sealing and opening a datagram |
//! | [`seeds`] | where a node looks for the others |

pub mod gossip;
pub mod membership;
pub mod seal;
pub mod seeds;
