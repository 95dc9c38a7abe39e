//! The settings of a [`SlotManager`](super::SlotManager): how many copies, and how long it waits for what.

use crate::millis::Millis;
use crate::node::NodeId;

/// The settings by which a slot manager claims, keeps and moves slots.
#[derive(Debug, Clone)]
pub struct OwnershipSettings {
    /// How many members a slot should have, 1 to 7.
    pub replication_factor: usize,
    /// How many members must have an append on disk before the owner acknowledges it.
    pub write_quorum: usize,
    /// The nodes that form the cluster, the first time. Empty: the nodes that gossip shows, once they are
    /// `replication_factor`.
    pub first_nodes: Vec<NodeId>,
    /// How long a node listens to gossip after its start before it claims anything.
    pub settle_time: Millis,
    /// How long each member waits for the one before it to claim a slot that nobody owns.
    pub claim_turn: Millis,
    /// How long members may take to answer a request.
    pub response_timeout: Millis,
    /// How long a member may take to catch up before the takeover that waits for it starts again.
    pub catch_up_timeout: Millis,
    /// How long a node must be alive before an owner hands slots back to it. A new owner also keeps a slot for this long: it may
    /// not have heard yet why the owner before gave the slot away.
    pub stable_after: Millis,
    /// How long an owner may have fewer members in sync, or catching up, than an append needs copies. After that it takes no more
    /// appends: it refuses writers at once, instead of letting them wait for copies that nobody can make.
    pub quorum_loss_grace: Millis,
    /// How long a node may be away before another node takes its place in a member set.
    pub placement_grace: Millis,
    /// How many slots an owner hands over or moves at a time.
    pub max_transfers: usize,
    /// How old the state may be that readers see: see [`SlotManager::visible_until`](super::SlotManager::visible_until).
    /// `None`: without a limit.
    pub max_staleness: Option<Millis>,
}

impl Default for OwnershipSettings {
    fn default() -> Self {
        Self {
            replication_factor: 3,
            write_quorum: 2,
            first_nodes: Vec::new(),
            settle_time: 1_500,
            claim_turn: 1_000,
            response_timeout: 1_500,
            catch_up_timeout: 60_000,
            stable_after: 3_000,
            quorum_loss_grace: 10_000,
            placement_grace: 600_000,
            max_transfers: 128,
            max_staleness: Some(10_000),
        }
    }
}
