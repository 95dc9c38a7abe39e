//! The operations of the contract, as metrics label them.

/// An operation of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the operation of the contract with that name")]
pub enum Rpc {
    Append,
    Get,
    Snapshot,
    Load,
    Watch,
    AppendStream,
    GetStream,
    SnapshotStream,
    LoadStream,
    WatchStream,
    Checkpoint,
    InclusionProof,
    ConsistencyProof,
    Forks,
    ForkEntries,
    Contexts,
    Members,
    Locate,
    WatchCluster,
    Drain,
    Decommission,
    Recover,
    Recoveries,
    Join,
    Leave,
    Broadcast,
}

impl Rpc {
    pub(super) const ALL: [(Self, &'static str); 26] = [
        (Self::Append, "ContextService/Append"),
        (Self::Get, "ContextService/Get"),
        (Self::Snapshot, "ContextService/Snapshot"),
        (Self::Load, "ContextService/Load"),
        (Self::Watch, "ContextService/Watch"),
        (Self::AppendStream, "LedgerService/Append"),
        (Self::GetStream, "LedgerService/Get"),
        (Self::SnapshotStream, "LedgerService/Snapshot"),
        (Self::LoadStream, "LedgerService/Load"),
        (Self::WatchStream, "LedgerService/Watch"),
        (Self::Checkpoint, "IntegrityService/Checkpoint"),
        (Self::InclusionProof, "IntegrityService/InclusionProof"),
        (Self::ConsistencyProof, "IntegrityService/ConsistencyProof"),
        (Self::Forks, "IntegrityService/Forks"),
        (Self::ForkEntries, "IntegrityService/ForkEntries"),
        (Self::Contexts, "ClusterService/Contexts"),
        (Self::Members, "ClusterService/Members"),
        (Self::Locate, "ClusterService/Locate"),
        (Self::WatchCluster, "ClusterService/WatchCluster"),
        (Self::Drain, "ClusterService/Drain"),
        (Self::Decommission, "ClusterService/Decommission"),
        (Self::Recover, "ClusterService/Recover"),
        (Self::Recoveries, "IntegrityService/Recoveries"),
        (Self::Join, "ClusterService/Join"),
        (Self::Leave, "ClusterService/Leave"),
        (Self::Broadcast, "ClusterService/Broadcast"),
    ];

    /// The label.
    pub const fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_stand_at_their_own_index() {
        for (index, (rpc, _)) in Rpc::ALL.iter().enumerate() {
            assert_eq!(*rpc as usize, index);
        }
    }
}
