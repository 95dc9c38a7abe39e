//! What clients were told of entries.

use ledger_client::{Entry, EntryId, Epoch, Hash, Sequence, Stored};

/// What tells an entry of a context from every other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) sequence: Sequence,
    pub(crate) epoch: Epoch,
    pub(crate) id: EntryId,
    pub(crate) content_hash: Hash,
}

impl Fact {
    /// What two entries of a context never share.
    pub(crate) const fn place(&self) -> (Sequence, Epoch) {
        (self.sequence, self.epoch)
    }
}

impl From<&Entry> for Fact {
    fn from(entry: &Entry) -> Self {
        Self {
            sequence: entry.sequence,
            epoch: entry.epoch,
            id: entry.id.clone(),
            content_hash: entry.content_hash,
        }
    }
}

impl From<&Stored> for Fact {
    fn from(stored: &Stored) -> Self {
        Self {
            sequence: stored.sequence,
            epoch: stored.epoch,
            id: stored.id.clone(),
            content_hash: stored.content_hash,
        }
    }
}
