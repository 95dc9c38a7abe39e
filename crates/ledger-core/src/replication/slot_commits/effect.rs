//! What the shell does for the commits of a lane's slots.

use crate::{Epoch, ownership::Claim, replication::PeerSet, slot::Slot};

/// What the shell does for the commits of a lane's slots, in the order of the list.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<W, A, Q> {
    /// Let readers see what another owner's commit wrote, or what this node wrote before another owner committed it.
    Publish(W),
    /// Keep track of a write no longer: it is in a slot that no reader sees, whose history may be replaced.
    Unpin(W),
    /// A commit of this node's own has its copies: let readers see what it wrote, and answer those who wait for it.
    Acknowledge {
        /// What the commit wrote, if anything.
        write: Option<W>,
        /// The answers to those who wait for it.
        answers: A,
        /// How many copies are durable, this node's included.
        copies: usize,
    },
    /// Answer a waiter that has the write quorum that it asked for.
    AcknowledgeWaiter {
        /// The waiter.
        waiter: Q,
        /// How many copies are durable, this node's included.
        copies: usize,
    },
    /// Tell those who wait that nobody knows whether their commit gets its copies.
    Fail(A),
    /// Tell a waiter the same.
    FailWaiter(Q),
    /// Send a commit index to peers, behind everything that this node sent them before.
    SendCommitIndex {
        /// The peers; never none.
        peers: PeerSet,
        /// The commit index.
        index: CommitIndex,
    },
    /// A slot takes no more appends, and those that it took have their copies.
    AppendsStopped {
        /// The slot.
        slot: Slot,
        /// The claim in which this node owns it.
        claim: Claim,
    },
    /// Show readers nothing of a slot. Writes to it need no pinning from now on.
    HideSlot(Slot),
    /// Pin writes to a slot from now on. What is there already needs no pinning.
    WithholdSlot(Slot),
    /// Let readers see a slot, as far as its writes are not pinned.
    ShowSlot(Slot),
}

/// An owner's word that everything of a slot up to a commit is committed: show it.
///
/// Counterpart: Raft's `leaderCommit`, for one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitIndex {
    /// The slot.
    pub slot: Slot,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// The commit's number in the stream of the owner's lane.
    pub number: u64,
}
