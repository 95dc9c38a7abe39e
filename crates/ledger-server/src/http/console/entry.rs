//! An entry as the console shows it.

use ledger_proto::context::v1::Entry;
use ledger_store::{EntryView, IdView};
use serde::Serialize;

use crate::{http::console::digits::Digits, limits};

/// An entry with the beginning of its payload.
#[derive(Debug, Serialize)]
pub(super) struct EntrySummary {
    pub(super) sequence: u64,
    id: String,
    key: String,
    /// Milliseconds since the Unix epoch: what a browser's clock counts in.
    at_ms: u64,
    lamport: Digits,
    hash: String,
    metadata: ledger_core::entry::Metadata,
    #[serde(flatten)]
    preview: Preview,
}

/// A payload's beginning: as text, if it is text, else in hex.
#[derive(Debug, Serialize)]
struct Preview {
    size: usize,
    text: Option<String>,
    hex: Option<String>,
    cut: bool,
}

impl EntrySummary {
    /// An entry of this node.
    pub(super) fn of(entry: &EntryView<'_>) -> Self {
        let id = match entry.id {
            IdView::Bits(bits) => hex::encode(bits),
            IdView::Text(text) => text.to_owned(),
        };
        let metadata = entry.metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        Self {
            sequence: entry.sequence.0,
            id,
            key: entry.key.to_owned(),
            at_ms: entry.appended_at_ns / 1_000_000,
            lamport: Digits(entry.lamport.0),
            hash: entry.content_hash.to_string(),
            metadata: metadata.collect(),
            preview: Preview::of(entry.payload),
        }
    }

    /// An entry that came from another node.
    pub(super) fn of_message(entry: Entry) -> Self {
        Self {
            sequence: entry.sequence,
            id: entry.id,
            key: entry.key,
            at_ms: entry.appended_at_ns / 1_000_000,
            lamport: Digits(entry.lamport_clock),
            hash: hex::encode(&entry.content_hash),
            metadata: entry.metadata,
            preview: Preview::of(&entry.payload),
        }
    }
}

impl Preview {
    fn of(payload: &[u8]) -> Self {
        let size = payload.len();
        let start = &payload[..size.min(limits::PREVIEW)];
        let cut = start.len() < size;
        let text = match std::str::from_utf8(start) {
            Ok(text) => Some(text),
            // The cut may go through a character.
            Err(error) if cut && error.error_len().is_none() => {
                std::str::from_utf8(&start[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        let hex = text.is_none().then(|| hex::encode(&start[..start.len().min(limits::PREVIEW / 8)]));
        let cut = cut || hex.as_ref().is_some_and(|hex| hex.len() < 2 * size);
        Self { size, text: text.map(str::to_owned), hex, cut }
    }
}
