//! Healing: how a node restores a context that it cannot read any more, from its own rows or from another node's.
//!
//! Damage is not absence. What cannot be read stays where it is until a history stands beside it that is proven to be
//! the one that was lost; only then does it take that history's place. Nothing here reads a disk, a clock or a network.
//!
//! | question | answered by |
//! | --- | --- |
//! | Which damaged context is tried when? Which disk is unreliable, which slot cannot be healed? | [`HealSchedule`] |
//! | From whom? | [`HealSource`], [`heal_sources`] |
//! | What proves which history is right? | [`HealProof`], [`proves_by_digest`] |
//! | What must a fetched range satisfy? | [`check_staged`] |
//! | Which step comes next? | [`HealAttempt`] |
//! | May the staged history take the place of the damaged one? | [`InstallCase::decide`] |
//!
//! Counterparts: Ceph's scrub and repair, ZFS's self-healing reads. "Protocol-Aware Recovery for Consensus-Based
//! Storage" (Alagappan et al., FAST 2018) shows why a damaged member of a quorum must neither vote nor be taken for an
//! empty one.

mod attempt;
mod install;
mod proof;
mod schedule;
mod source;
mod staged;
#[cfg(test)]
mod tests;

pub use attempt::{HealAttempt, HealEffect, HealEvent, HealOutcome, LocalHead};
pub use install::{HeadAtInstall, HealRefusal, InstallCase, InstallDecision};
pub use proof::{HealProof, proves_by_digest};
pub use schedule::{HealSchedule, IMPAIRED_AFTER, MAX_DUE, MAX_RELAPSES};
pub use source::{HealSource, heal_sources};
pub use staged::check_staged;
