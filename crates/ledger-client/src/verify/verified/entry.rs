//! An entry that a proof vouches for.

use std::{ops::Deref, sync::Arc};

use ledger_core::Entry;

use crate::verify::trust::TrustedCheckpoint;

/// An entry that is proven to be in a context as of a trusted checkpoint. Only a proof makes one.
#[derive(Debug, Clone)]
pub struct VerifiedEntry {
    pub(super) entry: Entry,
    pub(super) checkpoint: Arc<TrustedCheckpoint>,
}

impl VerifiedEntry {
    /// The entry.
    pub const fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The checkpoint of whose tree it is an entry.
    pub fn checkpoint(&self) -> &TrustedCheckpoint {
        &self.checkpoint
    }

    /// The entry alone.
    pub fn into_entry(self) -> Entry {
        self.entry
    }
}

impl Deref for VerifiedEntry {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}
