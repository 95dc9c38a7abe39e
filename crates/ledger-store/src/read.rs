//! The paths of readers: pages, proofs, snapshots, watchers, and what they may see.

pub(crate) mod pages;
pub(crate) mod prove;
pub(crate) mod snapshot;
pub(crate) mod tail;
pub(crate) mod view;
pub(crate) mod visibility;
pub(crate) mod watch;
