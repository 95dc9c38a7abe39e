//! What catching up is for.

/// Whose history counts in a run of catching up, this node's or the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The source owns the slots, so its history counts. What this node has beyond it goes to the forks, and what this node
    /// cannot read is restored from it.
    FollowOwner,
    /// The source's history counts; what this node has beyond it goes to the forks.
    AdoptRemote,
    /// The longer history counts.
    KeepLongest,
}
