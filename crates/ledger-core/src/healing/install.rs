//! Whether a staged history takes the place of the damaged one. The lane decides it, at the moment of installing, with
//! nothing else writing to the slot.

use crate::{Size, digest::TreeHead, ownership::Claim};

/// This node's head of the damaged context at the moment of installing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadAtInstall {
    /// There is no head: something removed the context, or only its name is left.
    Absent,
    /// This node cannot read the head.
    Unreadable,
    /// This node can read the head.
    Present {
        /// The tree head.
        head: TreeHead,
        /// Whether the head points to other rows than when the staging began, because a load or the owner's history replaced
        /// them.
        is_replaced: bool,
    },
}

/// What the lane knows when it decides whether to install a staged history. There is one case for each kind of
/// [proof](super::HealProof).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallCase {
    /// [`HealProof::Head`](super::HealProof::Head).
    ByHead,
    /// [`HealProof::Digest`](super::HealProof::Digest).
    ByDigest {
        /// Whether the digest proves the staged tree head: [`proves_by_digest`](super::proves_by_digest).
        is_proven: bool,
    },
    /// [`HealProof::Claim`](super::HealProof::Claim).
    InClaim {
        /// Whether the owner has everything that was ever acknowledged.
        is_complete: bool,
        /// Whether the lane could not move this node's entries beyond the owner's to a fork, because it cannot read them.
        is_tail_lost: bool,
        /// A higher claim that this node promised.
        higher: Option<Claim>,
        /// Whether this replica is in sync in that claim, so that what it has counts.
        is_in_sync: bool,
    },
}

/// What the lane does with a staged history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallDecision {
    /// Put it in place.
    Install,
    /// The context grew meanwhile. Add the entries up to this tree head, from this node's rows if those can be read;
    /// else fetch them. Then decide again.
    Extend(TreeHead),
    /// This node's history goes further than the owner's. Move its entries after this size, which nobody acknowledged, to a
    /// fork. Then decide again.
    ForkTail(Size),
    /// Something else replaced the damaged rows meanwhile: drop the staged history, and take the context for healthy. The
    /// scrub finds any damage of the new rows.
    Obsolete,
    /// Leave everything as it is.
    Refuse(HealRefusal),
}

/// Why the lane does not install a staged history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HealRefusal {
    /// The entries are of another history than this node had.
    #[error("the other node holds another history")]
    OtherHistory,
    /// This node can no longer read the head that was to prove it.
    #[error("its head cannot be read any more")]
    HeadLost,
    /// The digest does not prove it.
    #[error("its head cannot be read, and nothing kept here shows that another node has all of it")]
    Unproven,
    /// This node promised a higher claim: another node decides by now.
    #[error("a higher claim was promised: {} of node {}", .0.epoch, .0.claimant)]
    HigherClaim(Claim),
    /// This replica is in sync in the claim: what it has counts.
    #[error("this replica is in sync in the claim")]
    InSync,
    /// This node's history goes further than the owner's, and may be the only one that has an acknowledged entry.
    #[error("this node's copy goes further than the owner's: {0} entries")]
    GoesFurther(Size),
}

impl InstallCase {
    /// Decides what to do with a staged history that reaches `staged`.
    pub fn decide(&self, local: HeadAtInstall, staged: TreeHead) -> InstallDecision {
        match self {
            Self::ByHead => match local {
                HeadAtInstall::Unreadable => InstallDecision::Refuse(HealRefusal::HeadLost),
                HeadAtInstall::Absent | HeadAtInstall::Present { is_replaced: true, .. } => {
                    InstallDecision::Obsolete
                }
                HeadAtInstall::Present { head, .. } if head.size < staged.size => InstallDecision::Obsolete,
                HeadAtInstall::Present { head, .. } if head.size > staged.size => {
                    InstallDecision::Extend(head)
                }
                HeadAtInstall::Present { head, .. } if head != staged => {
                    InstallDecision::Refuse(HealRefusal::OtherHistory)
                }
                HeadAtInstall::Present { .. } => InstallDecision::Install,
            },
            // Nothing was appended since the head was lost: an append needs the head, or writes it anew.
            Self::ByDigest { is_proven } => match local {
                HeadAtInstall::Present { .. } => InstallDecision::Obsolete,
                _ if *is_proven => InstallDecision::Install,
                _ => InstallDecision::Refuse(HealRefusal::Unproven),
            },
            Self::InClaim { higher: Some(higher), .. } => {
                InstallDecision::Refuse(HealRefusal::HigherClaim(higher.clone()))
            }
            Self::InClaim { is_in_sync: true, .. } => InstallDecision::Refuse(HealRefusal::InSync),
            Self::InClaim { is_complete, is_tail_lost, .. } => match local {
                HeadAtInstall::Present { head, .. } if head.size > staged.size => {
                    match (is_complete, is_tail_lost) {
                        (false, _) => InstallDecision::Refuse(HealRefusal::GoesFurther(head.size)),
                        (true, false) => InstallDecision::ForkTail(staged.size),
                        (true, true) => InstallDecision::Install,
                    }
                }
                _ => InstallDecision::Install,
            },
        }
    }
}
