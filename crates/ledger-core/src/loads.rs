//! Loads of snapshots: every node installs what a load brings as a whole or not at all.
//!
//! | question | answered by |
//! | --- | --- |
//! | Owner: which members must stage a load, and when may it be installed? | [`StagingCoordinator`] |
//! | Source: what must a node that fetches a context install as a whole? | [`LoadSpan`] |
//!
//! A load that fits a part of a commit travels in it. The members stage a larger one before any node installs it, so that
//! an owner that ends meanwhile leaves nothing of it anywhere: the two phases are those of a two-phase commit (Gray,
//! "Notes on Data Base Operating Systems", 1978, §5.8.3), but nobody is blocked by an owner that is gone, because what is
//! staged belongs to no history.

mod coordinator;
mod span;
#[cfg(test)]
mod tests;

pub use coordinator::{StagingCoordinator, StagingDecision, StagingProgress, StagingSettings};
pub use span::{LoadSpan, LoadSpanState};
