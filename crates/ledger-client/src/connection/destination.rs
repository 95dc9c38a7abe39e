//! Which node a call needs.

use ledger_core::{ContextId, slot::Slot};

use super::retry::FailedCall;
use crate::error::failure::Failure;

/// Which node a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Any node.
    AnyNode,
    /// Any node that keeps a copy of the slot. A node that does not refuses, and names the owner.
    AnyReplica(Slot),
    /// The owner of the slot.
    Owner(Slot),
}

impl Destination {
    pub(crate) fn owner_of(context: &ContextId) -> Self {
        Self::Owner(Slot::of(context))
    }

    pub(crate) fn replica_of(context: &ContextId) -> Self {
        Self::AnyReplica(Slot::of(context))
    }

    /// Where the call goes after a failure: to the owner if the node refused because it is not that.
    pub(crate) fn after_failure(self, failed: &FailedCall) -> Self {
        match &failed.failure {
            Failure::NotOwner { .. } => self.owner(),
            _ => self,
        }
    }

    /// The owner, where this is a replica.
    pub(crate) const fn owner(self) -> Self {
        match self {
            Self::AnyReplica(slot) | Self::Owner(slot) => Self::Owner(slot),
            Self::AnyNode => Self::AnyNode,
        }
    }

    pub(crate) const fn slot(self) -> Option<Slot> {
        match self {
            Self::AnyNode => None,
            Self::AnyReplica(slot) | Self::Owner(slot) => Some(slot),
        }
    }
}
