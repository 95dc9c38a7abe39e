//! The paths of readers: pages, proofs, snapshots, watches, and which slots are visible.

pub(crate) mod pages;
pub(crate) mod prove;
pub(crate) mod snapshot;
pub(crate) mod tail;
pub(crate) mod view;
pub(crate) mod visibility;
pub(crate) mod watch;
