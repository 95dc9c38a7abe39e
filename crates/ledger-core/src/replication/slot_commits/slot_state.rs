//! What the machine remembers of a slot: in what claim this node owns it, and what readers see of it.

use crate::{
    Epoch,
    ownership::Claim,
    replication::{Peer, PeerSet},
};

/// What the machine remembers of a slot.
#[derive(Debug, Default)]
pub(super) struct SlotState {
    /// In what claim this node owns the slot or is about to.
    pub(super) ownership: Option<SlotOwnership>,
    pub(super) visibility: Visibility,
    /// This replica accepted the slot from the owner of this epoch, at this number in its stream, and does not show it yet.
    pub(super) accepted_at: Option<(Epoch, u64)>,
}

/// A slot that this node owns or is about to own.
#[derive(Debug)]
pub(super) struct SlotOwnership {
    pub(super) claim: Claim,
    pub(super) stream_peers: PeerSet,
    /// Peers on the stream that accepted an offer of it, and have refused no part since.
    pub(super) accepted: PeerSet,
    pub(super) phase: Phase,
    /// Whether this node promised a higher claim: it never serves the slot in this claim again.
    pub(super) is_fenced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Offering,
    Serving,
    Stopping,
}

/// Why a slot takes no appends on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotServing {
    /// This node owns the slot and stopped its appends, to hand it over: another node will take them in a moment.
    Stopping,
    /// This node does not own the slot, or not any more.
    NotOwner,
}

impl SlotOwnership {
    pub(super) fn new(claim: Claim) -> Self {
        let (stream_peers, accepted) = (PeerSet::default(), PeerSet::default());
        Self { claim, stream_peers, accepted, phase: Phase::Offering, is_fenced: false }
    }

    pub(super) fn serving_epoch(&self) -> Result<(Epoch, PeerSet), NotServing> {
        match self.phase {
            Phase::Serving => Ok((self.claim.epoch, self.stream_peers)),
            Phase::Stopping => Err(NotServing::Stopping),
            Phase::Offering => Err(NotServing::NotOwner),
        }
    }

    pub(super) fn claim_and_stream_peers(&self) -> (&Claim, PeerSet) {
        (&self.claim, self.stream_peers)
    }

    /// Goes on in another claim, and returns whether it is another one. Commits that wait were appended in an earlier epoch, and
    /// appends are stopped: the commits belong to this claim from now on.
    pub(super) fn enter(&mut self, claim: &Claim) -> bool {
        if self.claim == *claim {
            return false;
        }
        debug_assert!(self.claim < *claim, "this node claims a slot in rising epochs");
        self.claim = claim.clone();
        self.is_fenced = false;
        self.accepted = PeerSet::default();
        if self.phase == Phase::Serving {
            self.phase = Phase::Offering;
        }
        true
    }

    /// Stops sending to a peer, and forgets what it accepted.
    pub(super) fn remove_peer(&mut self, peer: Peer) {
        self.stream_peers.remove(peer);
        self.accepted.remove(peer);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.phase == Phase::Stopping
    }

    /// Returns whether the phase may be, for [`SlotCommits::check`].
    pub(super) fn is_consistent(&self) -> bool {
        let is_sent = self.accepted.without(self.stream_peers).is_empty();
        is_sent && !(self.is_fenced && self.phase == Phase::Serving)
    }
}

/// Whether readers see a slot, as long as its lease lasts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Visibility {
    /// The node refuses readers, because it does not know what of the slot is committed. Writes need no pinning.
    #[default]
    Hidden,
    /// The node refuses readers until the owner's commit index reaches what this replica accepted. The lane pins writes.
    Withheld,
    /// Readers see what is committed. The lane pins writes until they are committed.
    Visible,
}

/// One slot's part of a commit, while it waits for copies.
#[derive(Debug)]
pub(super) struct PendingPart<W, A> {
    pub(super) write: Option<W>,
    pub(super) answers: A,
}
