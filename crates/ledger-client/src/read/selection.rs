//! Which entries a caller reads, and from which node.

use ledger_core::{ContextId, Entry, Key, Sequence};

use crate::{connection::destination::Destination, error::ClientError};

/// Which entries.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Only entries of this key.
    pub key: Option<Key>,
    /// Only entries with a higher sequence.
    pub after: Sequence,
    /// At most so many; 0: no limit. Watching ignores it.
    pub limit: u32,
    /// Which node may answer.
    pub read_from: ReadFrom,
}

/// Which node may answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadFrom {
    /// Any that keeps the context: it shows what it knows to be committed, which may be a moment behind.
    #[default]
    AnyReplica,
    /// The owner: everything acknowledged so far.
    Owner,
}

impl Selection {
    /// Only entries of a key.
    ///
    /// # Errors
    ///
    /// [`ClientError::Id`] if the key is not valid.
    pub fn of_key(key: impl Into<String>) -> Result<Self, ClientError> {
        Ok(Self { key: Some(Key::new(key)?), ..Self::default() })
    }

    /// Only entries with a higher sequence.
    #[must_use]
    pub fn after(self, after: Sequence) -> Self {
        Self { after, ..self }
    }

    /// At most so many; 0: no limit.
    #[must_use]
    pub fn at_most(self, limit: u32) -> Self {
        Self { limit, ..self }
    }

    /// From the owner: everything acknowledged so far.
    #[must_use]
    pub fn from_owner(self) -> Self {
        Self { read_from: ReadFrom::Owner, ..self }
    }

    /// Whether it selects an entry, by key and sequence.
    pub(crate) fn matches(&self, entry: &Entry) -> bool {
        entry.sequence > self.after && self.key.as_ref().is_none_or(|key| *key == entry.key)
    }

    pub(super) fn key_text(&self) -> String {
        self.key.as_ref().map(|key| key.as_str().to_owned()).unwrap_or_default()
    }

    pub(super) fn destination(&self, context: &ContextId) -> Destination {
        match self.read_from {
            ReadFrom::AnyReplica => Destination::replica_of(context),
            ReadFrom::Owner => Destination::owner_of(context),
        }
    }
}
