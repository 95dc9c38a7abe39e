//! Rules that a run can disable, to prove that the simulation notices.

named! {
    /// The rule that a run disables.
    #[derive(Default)]
    DisabledRule {
        #[default]
        Nothing = "nothing",
        /// Replicas promise whatever they are asked to.
        NoPromiseCheck = "no-promise-check",
        /// A disk reports writes as durable before they are.
        NoSync = "no-sync",
        /// A takeover counts the members that gossip reports, not the recorded ones.
        MembersOffGossip = "members-off-gossip",
        /// A replica discards a history that differs from the owner's.
        ForksDropped = "forks-dropped",
        /// An owner continues after it was stopped.
        StaleOwner = "stale-owner",
        /// Readers see entries before they are committed.
        UnstableShown = "unstable-shown",
        /// What cannot be read counts as absent.
        DamageIsAbsence = "damage-is-absence",
        /// A response that ends early is taken for the end of catching up.
        EarlyEndIsEnd = "early-end-is-end",
        /// An owner counts a replica's copies of a slot of which the replica refused a part.
        RefusalUnheard = "refusal-unheard",
        /// A node accepts messages from other clusters.
        ClustersMerge = "clusters-merge",
        /// A node shows readers what it has, however long ago its lease ended.
        NoLease = "no-lease",
        /// A node that fetches a load installs the parts as they arrive.
        LoadsInParts = "loads-in-parts",
        /// An owner acknowledges what a load finds there already, committed or not.
        LoadsUnsettled = "loads-unsettled",
        /// A node keeps what callers wait for that are gone, and answers who does not read.
        GoneKept = "gone-kept",
    }
}
