//! What a node decides about the commits of its slots, as a state machine without I/O: which appends it takes as an owner,
//! when a commit is committed, and what of each slot readers may see, as an owner and as a replica.
//!
//! A shell tells it what happened by calling its methods, and carries out the [`Effect`]s that they add, in order, before
//! it calls the next one. It keeps the machine behind a lock or on one thread: so what is acknowledged comes in the order
//! of the commits.
//!
//! | the node | a commit waits until | then |
//! | --- | --- | --- |
//! | owns the slot | enough copies are durable, this node's included | it is acknowledged, readers see it, and the replicas learn the commit index |
//! | is a replica in sync | the owner's commit index reaches it | readers see it |
//! | is a replica that is not in sync | nothing: no reader sees the slot | – |
//!
//! | file | holds |
//! | --- | --- |
//! | `slot_commits.rs` | the machine: what it remembers, and what others may ask it |
//! | `ownership.rs` | the slots that this node owns: which peers receive them, and whether they take appends |
//! | `commits.rs` | an owner's commits, from their number to their acknowledgement |
//! | `slot_state.rs` | what it remembers of a slot |
//! | `visibility.rs` | what a replica shows readers: hidden, withheld, visible |
//! | `effect.rs` | the values that come out |
//! | `invariants.rs` | what always holds between two calls |
//!
//! Counterparts: the leader's and the follower's `commitIndex` in Raft, for many groups that share one stream; Kafka's
//! high watermark and produce purgatory.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{Peer, PeerSet, PendingCommits, UncommittedWrites};
use crate::{Epoch, ownership::Claim, slot::Slot};

mod commits;
mod effect;
mod invariants;
mod ownership;
mod slot_state;
#[cfg(test)]
mod tests;
mod visibility;

pub use commits::CommitPart;
pub use effect::{CommitIndex, Effect};
pub use slot_state::{NotServing, Visibility};

use slot_state::{PendingPart, Phase, SlotOwnership, SlotState};

/// The state machine of the commits of a lane's slots: it decides which appends an owner takes, when they are committed, and
/// what a replica shows. See the module's documentation.
///
/// `W` is what a commit wrote to a slot, `A` the answers to those who wait for it, and `Q` a waiter with a write quorum of
/// its own.
#[derive(Debug)]
pub struct SlotCommits<W, A, Q> {
    /// Number of the newest commit of this node's own that wrote something; 0: none.
    newest_commit: u64,
    pending: PendingCommits<PendingPart<W, A>, Q>,
    uncommitted: UncommittedWrites<W>,
    /// The slots of which the machine knows anything: at most all that there are.
    slots: HashMap<Slot, SlotState, RandomState>,
}

impl<W, A, Q> Default for SlotCommits<W, A, Q> {
    fn default() -> Self {
        Self {
            newest_commit: 0,
            pending: PendingCommits::default(),
            uncommitted: UncommittedWrites::default(),
            slots: HashMap::default(),
        }
    }
}

impl<W, A, Q> SlotCommits<W, A, Q> {
    /// Returns the number of the newest commit.
    pub fn newest_commit(&self) -> u64 {
        self.newest_commit
    }

    /// Returns the epoch in which appends to a slot are written, and the peers that receive them.
    ///
    /// # Errors
    ///
    /// [`NotServing`] if the slot takes no appends here.
    pub fn serving_epoch(&self, slot: Slot) -> Result<(Epoch, PeerSet), NotServing> {
        self.owned(slot).ok_or(NotServing::NotOwner)?.serving_epoch()
    }

    /// Returns the claim in which this node owns a slot or is about to, and the peers on the slot's stream.
    pub fn ownership(&self, slot: Slot) -> Option<(&Claim, PeerSet)> {
        self.owned(slot).map(SlotOwnership::claim_and_stream_peers)
    }

    /// Returns whether a peer's copies of a slot count.
    pub fn is_in_sync(&self, slot: Slot, peer: Peer) -> bool {
        self.pending.is_in_sync(slot, peer)
    }

    /// Returns how many copies a commit to the slot needs, this node's included, and the peers whose copies count. It needs
    /// 0 if this node does not own the slot.
    pub fn quorum_and_in_sync(&self, slot: Slot) -> (usize, PeerSet) {
        self.pending.quorum_and_in_sync(slot)
    }

    /// Returns whether commits to a slot wait for copies.
    pub fn has_pending(&self, slot: Slot) -> bool {
        self.pending.has_pending(slot)
    }

    /// Returns whether readers may see a slot, as long as its lease lasts.
    pub fn visibility(&self, slot: Slot) -> Visibility {
        self.slots.get(&slot).map_or(Visibility::Hidden, |state| state.visibility)
    }

    fn owned(&self, slot: Slot) -> Option<&SlotOwnership> {
        self.slots.get(&slot)?.ownership.as_ref()
    }
}
