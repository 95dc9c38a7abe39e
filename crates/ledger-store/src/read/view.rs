//! A view of an entry in the store's buffer, for passing on many entries without copying each.

use bytes::Bytes;
use ledger_core::{ContextId, Entry, EntryId, Epoch, Hash, Key, Sequence, clock::LamportClock, id::IdError};

/// An entry of a page, borrowed from the store. The page says which context it belongs to.
#[derive(Debug, Clone)]
pub struct EntryView<'a> {
    /// Sequence in the context.
    pub sequence: Sequence,
    /// Its id.
    pub id: IdView<'a>,
    /// Whether the writer chose the id, which makes a retry safe. Unknown (false) for a view of an entry in memory.
    pub is_id_chosen: bool,
    /// Its kind, as the writer named it.
    pub key: &'a str,
    /// Its content.
    pub payload: &'a [u8],
    /// Its metadata, ordered by key.
    pub metadata: Vec<(&'a str, &'a str)>,
    /// Wall-clock time of the append, nanoseconds since the Unix epoch.
    pub appended_at_ns: u64,
    /// Lamport time.
    pub lamport: LamportClock,
    /// The epoch in which it was written.
    pub epoch: Epoch,
    /// Its canonical hash.
    pub content_hash: Hash,
}

/// An entry's id, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdView<'a> {
    /// 128 bits, shown as 32 lower-case hex digits.
    Bits([u8; 16]),
    /// Text that a client chose.
    Text(&'a str),
}

impl<'a> EntryView<'a> {
    /// A view of an entry in memory, whose id is lent as text by `id`.
    pub fn of(entry: &'a Entry, id: &'a str) -> Self {
        Self {
            sequence: entry.sequence,
            is_id_chosen: false,
            id: entry.id.bits().map_or(IdView::Text(id), IdView::Bits),
            key: entry.key.as_str(),
            payload: &entry.payload,
            metadata: entry.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            appended_at_ns: entry.appended_at_ns,
            lamport: entry.lamport,
            epoch: entry.epoch,
            content_hash: entry.content_hash,
        }
    }

    /// Copies the entry.
    ///
    /// # Errors
    /// [`IdError`] if the id is malformed.
    pub fn to_entry(&self, context: &ContextId) -> Result<Entry, IdError> {
        Ok(Entry {
            context_id: context.clone(),
            sequence: self.sequence,
            id: match self.id {
                IdView::Bits(bits) => EntryId::from_bits(bits),
                IdView::Text(text) => EntryId::new(text)?,
            },
            key: Key::new(self.key)?,
            payload: Bytes::copy_from_slice(self.payload),
            metadata: self.metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
            appended_at_ns: self.appended_at_ns,
            lamport: self.lamport,
            epoch: self.epoch,
            content_hash: self.content_hash,
        })
    }

    /// What it counts towards a page's bytes: its variable parts.
    pub(crate) fn weight(&self, context_id: usize) -> usize {
        let metadata: usize = self.metadata.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
        self.payload.len() + self.key.len() + metadata + 128 + context_id
    }
}
