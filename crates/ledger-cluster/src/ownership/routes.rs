//! The owner and members of each slot, for routing requests.

use std::{collections::HashMap, sync::Arc, time::Instant};

use ledger_core::{
    Epoch,
    node::{Member, NodeId},
    ownership::slot_manager::{Owner, SlotManager},
    slot::{SLOTS, Slot},
};

/// All routes, as one node knows them at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    slots: Vec<Arc<SlotRoute>>,
    /// gRPC addresses of nodes, `host:port`.
    pub addresses: HashMap<NodeId, String>,
}

/// The route of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRoute {
    /// Its owner.
    pub owner: SlotOwner,
    /// Its members, as far as this node knows.
    pub members: Vec<Member>,
    /// The members that are in sync with the owner; only the owner knows.
    pub in_sync: Vec<Member>,
    /// Whether this node owns it and accepts no appends at the moment, because too few members are in sync.
    pub is_halted: bool,
    /// Since when it has no owner.
    pub unowned_since: Option<Instant>,
}

/// The owner of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotOwner {
    /// This node, in an epoch.
    Me(Epoch),
    /// Another node, in an epoch.
    Other(NodeId, Epoch),
    /// No node, and why.
    Nobody(String),
}

impl Routes {
    pub(crate) fn of(
        slots: &SlotManager,
        addresses: HashMap<NodeId, String>,
        before: &Self,
        now: Instant,
    ) -> Self {
        let halted = slots.halted();
        let route = |slot| {
            let owner = match slots.owner(slot) {
                Owner::Me(epoch) => SlotOwner::Me(epoch),
                Owner::Other(node, epoch) => SlotOwner::Other(node, epoch),
                Owner::Nobody(Some(why)) => SlotOwner::Nobody(why.to_string()),
                Owner::Nobody(None) if slots.is_member(slot) || slots.record(slot).placement.is_none() => {
                    SlotOwner::Nobody("a replica is about to take it".to_owned())
                }
                Owner::Nobody(None) => {
                    SlotOwner::Nobody("none of its replicas is seen to own it: they know more".to_owned())
                }
            };
            let placement = slots.record(slot).placement.as_ref();
            let members = placement.map_or_else(Vec::new, |placement| placement.members.members().to_vec());
            let in_sync = slots.in_sync(slot).map_or_else(Vec::new, |set| set.iter().cloned().collect());
            let is_halted = halted.binary_search(&slot).is_ok();
            let since = || before.get(slot).and_then(|route| route.unowned_since).unwrap_or(now);
            let unowned_since = matches!(owner, SlotOwner::Nobody(_)).then(since);
            Arc::new(SlotRoute { owner, members, in_sync, is_halted, unowned_since })
        };
        Self { slots: (0..SLOTS).filter_map(Slot::new).map(route).collect(), addresses }
    }

    /// Returns the route of a slot; `None` while nothing is known yet.
    pub fn get(&self, slot: Slot) -> Option<&SlotRoute> {
        self.slots.get(usize::from(slot.number())).map(AsRef::as_ref)
    }

    /// Returns the owner of a slot and its address, if another node owns it.
    pub fn owner_address(&self, slot: Slot) -> Option<(&NodeId, &str)> {
        match &self.get(slot)?.owner {
            SlotOwner::Other(node, _) => {
                self.addresses.get_key_value(node).map(|(node, at)| (node, at.as_str()))
            }
            _ => None,
        }
    }

    /// Returns whether a node owns any slot.
    pub fn owns_any(&self, node: &NodeId) -> bool {
        self.slots.iter().any(|route| matches!(&route.owner, SlotOwner::Other(owner, _) if owner == node))
    }

    /// Counts the slots without an owner.
    pub fn unowned(&self) -> usize {
        self.slots.iter().filter(|route| matches!(route.owner, SlotOwner::Nobody(_))).count()
    }

    /// Counts the slots that this node owns and accepts appends for now.
    pub fn taking(&self) -> usize {
        let takes = |route: &&Arc<SlotRoute>| matches!(route.owner, SlotOwner::Me(_)) && !route.is_halted;
        self.slots.iter().filter(takes).count()
    }

    /// Counts the slots that this node owns.
    pub fn owned(&self) -> usize {
        self.slots.iter().filter(|route| matches!(route.owner, SlotOwner::Me(_))).count()
    }
}
