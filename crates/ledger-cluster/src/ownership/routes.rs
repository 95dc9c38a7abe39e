//! Where slots are: what requests are routed by.

use std::{collections::HashMap, sync::Arc, time::Instant};

use ledger_core::{
    Epoch,
    node::{Member, NodeId},
    ownership::slot_manager::{Owner, SlotManager},
    slot::{SLOTS, Slot},
};

/// Where all slots are, as one node knows it at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    slots: Vec<Arc<SlotRoute>>,
    /// Where nodes are: `host:port`.
    pub addresses: HashMap<NodeId, String>,
}

/// Where a slot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRoute {
    /// Who owns it.
    pub owner: SlotOwner,
    /// Its members, as far as this node knows.
    pub members: Vec<Member>,
    /// Those of them that hold what the owner holds; only the owner knows.
    pub in_sync: Vec<Member>,
    /// This node owns it, and takes no appends at the moment, because too few of them are in sync.
    pub is_halted: bool,
    /// Since when nobody owns it.
    pub unowned_since: Option<Instant>,
}

/// Who owns a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotOwner {
    /// This node.
    Me(Epoch),
    /// Another one.
    Other(NodeId, Epoch),
    /// Nobody: why.
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

    /// Where a slot is; `None` while nothing is known yet.
    pub fn get(&self, slot: Slot) -> Option<&SlotRoute> {
        self.slots.get(usize::from(slot.number())).map(AsRef::as_ref)
    }

    /// The address of a slot's owner, if it is another node.
    pub fn owner_address(&self, slot: Slot) -> Option<(&NodeId, &str)> {
        match &self.get(slot)?.owner {
            SlotOwner::Other(node, _) => {
                self.addresses.get_key_value(node).map(|(node, at)| (node, at.as_str()))
            }
            _ => None,
        }
    }

    /// Whether another node owns any slot.
    pub fn owns_any(&self, node: &NodeId) -> bool {
        self.slots.iter().any(|route| matches!(&route.owner, SlotOwner::Other(owner, _) if owner == node))
    }

    /// Slots without an owner.
    pub fn unowned(&self) -> usize {
        self.slots.iter().filter(|route| matches!(route.owner, SlotOwner::Nobody(_))).count()
    }

    /// Slots that this node owns, and takes appends to now.
    pub fn taking(&self) -> usize {
        let takes = |route: &&Arc<SlotRoute>| matches!(route.owner, SlotOwner::Me(_)) && !route.is_halted;
        self.slots.iter().filter(takes).count()
    }

    /// Slots that this node owns.
    pub fn owned(&self) -> usize {
        self.slots.iter().filter(|route| matches!(route.owner, SlotOwner::Me(_))).count()
    }
}
