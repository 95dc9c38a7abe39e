//! Slots of which this node cannot read something. A replica with damage promises nothing of the slot, because what it
//! cannot read may be the longest history there is. So this node cannot take the slot, not even from itself.
//!
//! | this node is | and the slot is | what this node does |
//! | --- | --- | --- |
//! | replica | damaged | does not claim it: its own replica would refuse |
//! | owner | damaged | goes on with it, and moves no member: it could not take the slot again |
//! | owner | impaired: damaged for long | hands it over to a member in sync, if the others can take it without this one |
//! | owner that halted the slot | impaired | steps down, if the others can take it without this one |
//!
//! While it owns the slot nobody gives up anything because of the damage: what an owner cannot read is no evidence.

use super::{Effect, Millis, OwnerState, Role, SlotManager};
use crate::{node::PromiseQuorum, slot::Slot};

impl SlotManager {
    /// Returns whether this node cannot read something of the slot.
    pub(super) fn is_damaged(&self, slot: Slot) -> bool {
        self.damage.damaged.contains(&slot)
    }

    /// Returns whether this node could not restore the slot's damage for a while.
    pub(super) fn is_impaired(&self, slot: Slot) -> bool {
        self.damage.impaired.contains(&slot)
    }

    /// Returns whether this node should leave a slot that it owns to the others, which can take it without this node's
    /// promise.
    pub(super) fn should_leave_damaged(&self, slot: Slot, owner: &OwnerState) -> bool {
        self.is_impaired(slot) && self.others_can_take(owner)
    }

    /// Returns whether the other members that are alive are enough for a takeover without this node's promise. With
    /// availability first they never are: this node may have the only copy of an acknowledged entry.
    pub(super) fn others_can_take(&self, owner: &OwnerState) -> bool {
        let others = owner.members.members().iter().filter(|member| **member != self.me);
        let alive = others.filter(|member| self.is_alive(member) && self.is_writable(&member.node)).count();
        match owner.members.promise_quorum(self.settings.write_quorum) {
            PromiseQuorum::AtLeast(needed) => alive >= needed,
            PromiseQuorum::EveryLive => false,
        }
    }

    /// Leaves a slot that this node halted and cannot read completely. Returns whether it did.
    pub(super) fn leave_halted(&mut self, now: Millis, slot: Slot, effects: &mut Vec<Effect>) -> bool {
        let leaves = match &self.state(slot).role {
            Role::Owner(owner) => {
                owner.is_halted_for_quorum.is_some() && self.should_leave_damaged(slot, owner)
            }
            Role::Candidate(_) | Role::Replica => false,
        };
        if leaves {
            self.step_down(now, slot, None, effects);
        }
        leaves
    }
}
