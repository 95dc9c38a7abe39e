//! Rules that a run can disable, to prove that the simulation notices.

/// The rule that is disabled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DisabledRule {
    /// None.
    #[default]
    Nothing,
    /// Replicas promise whatever they are asked to.
    NoPromiseCheck,
    /// A disk reports writes as durable before they are.
    NoSync,
    /// A takeover counts the members that gossip reports, not the recorded ones.
    MembersOffGossip,
    /// A replica discards a history that differs from the owner's.
    ForksDropped,
    /// An owner continues after it was stopped.
    StaleOwner,
    /// Readers see entries before they are committed.
    UnstableShown,
    /// What cannot be read counts as absent.
    DamageIsAbsence,
    /// A response that ends early is taken for the end of catching up.
    EarlyEndIsEnd,
    /// A node accepts messages from other clusters.
    ClustersMerge,
    /// A node shows readers what it has, however long ago its lease ended.
    NoLease,
    /// A node that fetches a load installs the parts as they arrive.
    LoadsInParts,
    /// An owner acknowledges what a load finds there already, committed or not.
    LoadsUnsettled,
}

impl DisabledRule {
    /// All rules that can be disabled.
    pub const ALL: [Self; 12] = [
        Self::NoPromiseCheck,
        Self::NoSync,
        Self::MembersOffGossip,
        Self::ForksDropped,
        Self::StaleOwner,
        Self::UnstableShown,
        Self::DamageIsAbsence,
        Self::EarlyEndIsEnd,
        Self::ClustersMerge,
        Self::NoLease,
        Self::LoadsInParts,
        Self::LoadsUnsettled,
    ];

    /// The rule's name in the environment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::NoPromiseCheck => "no-promise-check",
            Self::NoSync => "no-sync",
            Self::MembersOffGossip => "members-off-gossip",
            Self::ForksDropped => "forks-dropped",
            Self::StaleOwner => "stale-owner",
            Self::UnstableShown => "unstable-shown",
            Self::DamageIsAbsence => "damage-is-absence",
            Self::EarlyEndIsEnd => "early-end-is-end",
            Self::ClustersMerge => "clusters-merge",
            Self::NoLease => "no-lease",
            Self::LoadsInParts => "loads-in-parts",
            Self::LoadsUnsettled => "loads-unsettled",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        std::iter::once(Self::Nothing).chain(Self::ALL).find(|broken| broken.name() == name)
    }
}
