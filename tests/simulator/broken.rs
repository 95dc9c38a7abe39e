//! Rules left out on purpose, to see that the simulation notices.

/// What is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DisabledRule {
    /// Nothing.
    #[default]
    Nothing,
    /// Replicas promise whatever they are asked.
    NoPromiseCheck,
    /// What is written is called durable before it is.
    NoSync,
    /// A takeover counts in the members that gossip shows, not in those that are recorded.
    MembersOffGossip,
    /// A history that differs from the owner's is thrown away.
    ForksDropped,
    /// An owner that was told to stop goes on.
    StaleOwner,
    /// Readers see entries before they have their copies.
    UnstableShown,
    /// What cannot be read counts as not being there.
    DamageIsAbsence,
    /// What another cluster's nodes say is heard like that of one's own.
    ClustersMerge,
    /// Readers are shown what a node has, however long ago it heard that it is a member.
    NoLease,
    /// Whoever fetches what a load brought puts it in place as it comes.
    LoadsInParts,
    /// What a load finds there already is said to be there, whatever copies it has.
    LoadsUnsettled,
}

impl DisabledRule {
    /// Every rule that can be left out.
    pub const ALL: [Self; 11] = [
        Self::NoPromiseCheck,
        Self::NoSync,
        Self::MembersOffGossip,
        Self::ForksDropped,
        Self::StaleOwner,
        Self::UnstableShown,
        Self::DamageIsAbsence,
        Self::ClustersMerge,
        Self::NoLease,
        Self::LoadsInParts,
        Self::LoadsUnsettled,
    ];

    /// As it is named in the environment.
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
