//! The requests to a lane, and what it replies.

use ledger_core::{
    ContextId, Epoch, Size,
    digest::{Digest, TreeHead},
    healing::HealProof,
    loads::LoadSpan,
    node::NodeId,
    ownership::Claim,
    replication::{Peer, PeerSet},
    slot::Slot,
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Append, AppendConditions, Appended, BatchResult, BatchResults, StoreError,
    engine::families::RowLocation,
    integrity::forks::Evidence,
    replicate::replica::{
        CommitIndex, OwnerCommand, Part, RecordChange, RecordChanged, ReplicaStatus, ReplicateOutcome,
        SyncState,
    },
    write::state::ContextState,
};

/// Sends a replica's response to a commit: one outcome for each part.
pub(crate) type ReplicateReply = oneshot::Sender<Result<Vec<ReplicateOutcome>, StoreError>>;

/// Reports to the caller of a load, without blocking, whether it is installed.
pub(crate) type Installed = std::sync::mpsc::SyncSender<Result<bool, StoreError>>;

/// Returns which of several lanes a slot belongs to.
pub(crate) fn lane_of(slot: Slot, lanes: usize) -> usize {
    usize::from(slot.number()) % lanes
}

/// A request to a lane.
#[derive(Debug)]
pub(crate) enum Command {
    /// Append one entry.
    Append(Append, oneshot::Sender<Result<Appended, StoreError>>, AppendConditions),
    /// Append several, each with its caller's tag.
    Batch(Vec<(u64, Append)>, mpsc::UnboundedSender<BatchResults>, AppendConditions),
    /// Install another copy of a context's history.
    Install(Box<Install>, Installed),
    /// Reply when everything written to a slot is committed, if this node owns it in this epoch.
    AwaitCommitted(Slot, Epoch, Installed),
    /// Write parts of another node's commit with this number, or fetched ranges (with 0).
    Replicate(Vec<Part>, u64, ReplicateReply),
    /// Change slots' records.
    Change(Vec<(Slot, RecordChange)>, oneshot::Sender<Vec<(Slot, RecordChanged)>>),
    /// Apply ownership decisions to slots.
    Own(Vec<(Slot, OwnerCommand)>),
    /// The stream to a peer broke: stop counting its acknowledgements.
    PeerDisconnected(Peer),
    /// A node's stream restarted: take its slots out of sync until this replica accepts an offer on it.
    StreamStarted(NodeId),
    /// Apply the commit indexes that owners sent.
    AdvanceCommitIndex(Vec<CommitIndex>),
    /// Return the digests of slots, after everything queued before.
    Digests(Vec<Slot>, oneshot::Sender<Vec<(Slot, Digest)>>),
    /// Report, for slots of one owner, the claim promised here and whether this replica is in sync.
    ReplicaStatus(NodeId, Vec<Slot>, oneshot::Sender<Vec<(Slot, ReplicaStatus)>>),
    /// Report the state of claims at this replica.
    SyncStates(Vec<(Slot, Claim)>, oneshot::Sender<Vec<(Slot, SyncState)>>),
    /// Send a peer the digests of slots, at this number of the lane's stream.
    SendDigestCheckpoint(Peer, Vec<Slot>),
    /// Fork off a history for the one that a claim's owner has.
    Fork(Box<ForkRequest>, oneshot::Sender<Result<ForkOutcome, StoreError>>),
    /// Rewrite a slot's record from memory, because it cannot be read on disk.
    RewriteRecord(Slot),
    /// Install the staged history of a damaged context in place of its rows.
    Heal(Box<Heal>, oneshot::Sender<Result<Healed, StoreError>>),
}

/// A history to fork off.
#[derive(Debug)]
pub(crate) struct ForkRequest {
    pub(crate) context: ContextId,
    pub(crate) claim: Claim,
    /// The size up to which both histories are the same.
    pub(crate) common: Size,
    /// The tree head that was compared: the lane forks nothing off if the context has another one by now.
    pub(crate) expected: TreeHead,
    pub(crate) evidence: Evidence,
}

/// The outcome of [`Ledger::fork_history`](crate::Ledger::fork_history).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkOutcome {
    /// The context ends at this size now: it was cut there, or it was no longer what had been compared and is
    /// unchanged.
    Forked(Size),
    /// Nothing was done, because the slot was promised to this higher claim.
    Refused(Claim),
}

/// A history that is staged under a new number and is to replace a context's.
#[derive(Debug)]
pub(crate) struct Install {
    pub(crate) context: ContextId,
    /// Location of the context's rows and its size when staging began; `None`: it did not exist.
    pub(crate) base: Option<(RowLocation, u64)>,
    pub(crate) state: ContextState,
    /// In a cluster: install it only if this node still owns the slot in this epoch.
    pub(crate) epoch: Option<Epoch>,
    /// The added records, to be sent to replicas; empty: the peers that count must have staged them.
    pub(crate) records: Vec<u8>,
    /// The peers that have staged it.
    pub(crate) staged_at: PeerSet,
    /// Peers that failed to stage it: the lane restarts their streams, so they catch up.
    pub(crate) stale_peers: PeerSet,
    /// Generation of the database that holds the staged rows: they may not exist in another one.
    pub(crate) generation: u64,
}

impl Install {
    /// Returns whether it adds entries. If not, it heals existing ones.
    pub(super) fn adds(&self) -> bool {
        self.state.head.frontier.size() > self.base.map_or(0, |(_, size)| size)
    }
}

/// The history of a damaged context, staged under a new number.
#[derive(Debug)]
pub(crate) struct Heal {
    pub(crate) context: ContextId,
    pub(crate) proof: HealProof,
    /// Location of the damaged rows when the staging began, if the head is the proof.
    pub(crate) from: Option<RowLocation>,
    pub(crate) state: ContextState,
    /// The entries that a load brought and that the other node does not know to be committed.
    pub(crate) loaded: Option<LoadSpan>,
    /// Generation of the database that holds the staged rows: they may not exist in another one.
    pub(crate) generation: u64,
}

/// The outcome of healing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Healed {
    /// The history is installed, or something else replaced the damaged rows meanwhile.
    InPlace,
    /// The context has this tree head by now, and the lane cannot read the entries that the staged history lacks.
    Behind(TreeHead),
}

impl Command {
    /// Notifies the caller that nothing was done.
    pub(crate) fn fail(self, error: &StoreError) {
        match self {
            Self::Append(_, reply, _) => _ = reply.send(Err(error.clone())),
            Self::Install(_, done) | Self::AwaitCommitted(_, _, done) => {
                _ = done.try_send(Err(error.clone()));
            }
            Self::Replicate(_, _, reply) => _ = reply.send(Err(error.clone())),
            Self::Fork(_, reply) => _ = reply.send(Err(error.clone())),
            Self::Heal(_, reply) => _ = reply.send(Err(error.clone())),
            // Their callers see that the reply was dropped.
            Self::Change(..)
            | Self::Own(_)
            | Self::PeerDisconnected(_)
            | Self::StreamStarted(_)
            | Self::AdvanceCommitIndex(_)
            | Self::Digests(..)
            | Self::ReplicaStatus(..)
            | Self::RewriteRecord(_)
            | Self::SyncStates(..)
            | Self::SendDigestCheckpoint(..) => {}
            Self::Batch(appends, reply, _) => {
                let failed = |(tag, _)| BatchResult { tag, result: Err(error.clone()) };
                let results = appends.into_iter().map(failed).collect();
                _ = reply.send(BatchResults { results, positions: Vec::new(), copies: 0 });
            }
        }
    }
}
