//! A context as a commit left it.

use ledger_core::{
    ContextId, Entry, Epoch, Head, Position, Size, digest::TreeHead, ownership::Claim, replication::PeerSet,
    slot::Slot,
};

use crate::{EntryRange, engine::families::RowLocation, replicate::replica::Part};

/// A context as a commit left it.
#[derive(Debug)]
pub(crate) struct WrittenContext {
    pub(crate) context: ContextId,
    pub(crate) rows: RowLocation,
    pub(crate) head: Head,
    /// Its tree head, and the one before the commit.
    pub(crate) tree_head: TreeHead,
    pub(crate) watched: Option<Vec<Entry>>,
    pub(crate) appended: u64,
    pub(crate) origin: WriteOrigin,
    pub(crate) records: Vec<u8>,
    pub(crate) tree_head_before: Option<TreeHead>,
    /// Whether a load brought the entries.
    pub(crate) is_load: bool,
    /// Rows that are obsolete once this is committed.
    pub(crate) replaced_rows: Option<RowLocation>,
}

impl WrittenContext {
    pub(crate) fn position(&self) -> Position {
        let TreeHead { size, root } = self.tree_head;
        Position { size, root, epoch: self.head.epoch, lineage: self.head.lineage }
    }

    /// Returns what was written to it, to be sent in a claim.
    pub(crate) fn part(&mut self, slot: Slot, claim: &Claim) -> Part {
        let head = &self.head;
        let empty = || TreeHead { size: Size(0), root: Head::new(head.suite, head.lineage, 0).root() };
        Part {
            slot,
            claim: claim.clone(),
            context: self.context.clone(),
            range: EntryRange {
                lineage: head.lineage,
                suite: head.suite,
                created_at_ns: head.created_at_ns,
                after: self.tree_head_before.unwrap_or_else(empty),
                root: self.tree_head.root,
                count: self.appended,
                records: std::mem::take(&mut self.records).into(),
            },
            is_load: self.is_load,
        }
    }
}

/// Which node wrote a context's new entries as owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteOrigin {
    /// This node, in an epoch; it sends them to these peers.
    Owner(Epoch, PeerSet),
    /// The owner of an epoch, in its commit of this number; 0: this node fetched them.
    Replicated(Epoch, u64),
}
