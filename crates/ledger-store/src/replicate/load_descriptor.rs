//! A load as the node that has it describes it to others.

use ledger_core::{Hash, HashSuite, Lineage, Size, digest::TreeHead};

use crate::EntryRange;

/// A load of another node, as that node describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadDescriptor {
    /// Lineage of the history that it belongs to.
    pub lineage: Lineage,
    /// Its hash suite.
    pub suite: HashSuite,
    /// Wall-clock time of the context's creation, nanoseconds since the Unix epoch.
    pub created_at_ns: u64,
    /// Tree head that it comes after. At size 0 the root is ignored.
    pub after: TreeHead,
    /// The size with it.
    pub to: Size,
    /// The root with it, if it is known already.
    pub root: Option<Hash>,
}

impl LoadDescriptor {
    /// Describes the load that begins with a range.
    pub fn of_range(range: &EntryRange, to: Size, root: Option<Hash>) -> Self {
        let EntryRange { lineage, suite, created_at_ns, after, .. } = *range;
        Self { lineage, suite, created_at_ns, after, to, root }
    }
}
