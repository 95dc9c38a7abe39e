//! Entries encoded as the contract has them, from where they lie: the hot path of every stream of entries.
//!
//! Protocol Buffers, "Encoding": <https://protobuf.dev/programming-guides/encoding/>. The fields are those of
//! `converge.context.v1.Entry`; a test compares with the generated code.

use bytes::Bytes;
use ledger_core::ContextId;
use ledger_store::{EntryView, IdView};
use prost::encoding::{WireType, encode_key, encode_varint};

/// Bytes of an entry beside its texts, metadata and payload: tags, lengths, numbers and the hash, at most.
const FIXED: usize = 160;

/// An entry without its context's name: for streams of one context, which the request named.
pub fn entry(view: &EntryView<'_>) -> Bytes {
    write(view, None)
}

/// An entry with its context's name.
pub fn named_entry(view: &EntryView<'_>, context: &ContextId) -> Bytes {
    write(view, Some(context))
}

/// Entries of one answer, one after the other in one buffer: one allocation for all of them.
#[derive(Debug, Default)]
pub struct Entries {
    out: Vec<u8>,
    /// Where each one ends.
    ends: Vec<usize>,
}

impl Entries {
    /// Adds an entry, without its context's name.
    pub fn push(&mut self, view: &EntryView<'_>) {
        write_into(&mut self.out, view, None);
        self.ends.push(self.out.len());
    }

    /// The entries, which share the buffer.
    pub fn finish(self) -> Vec<Bytes> {
        let mut rest = Bytes::from(self.out);
        let mut begin = 0;
        let cut = |end| {
            let entry = rest.split_to(end - begin);
            begin = end;
            entry
        };
        self.ends.into_iter().map(cut).collect()
    }
}

fn write(view: &EntryView<'_>, context: Option<&ContextId>) -> Bytes {
    let mut out = Vec::new();
    write_into(&mut out, view, context);
    out.into()
}

fn write_into(out: &mut Vec<u8>, view: &EntryView<'_>, context: Option<&ContextId>) {
    let metadata: usize = view.metadata.iter().map(|(key, value)| key.len() + value.len() + 16).sum();
    let name = context.map_or("", ContextId::as_str);
    let id = match view.id {
        IdView::Bits(_) => 32,
        IdView::Text(text) => text.len(),
    };
    let capacity = FIXED + view.payload.len() + view.key.len() + metadata + name.len() + id;
    out.reserve(capacity);
    match view.id {
        IdView::Bits(bits) => {
            let mut text = [0; 32];
            // It fits: 16 bytes are 32 digits.
            let _ = hex::encode_to_slice(bits, &mut text);
            bytes(out, 1, &text);
        }
        IdView::Text(text) => bytes(out, 1, text.as_bytes()),
    }
    bytes(out, 2, view.key.as_bytes());
    bytes(out, 3, view.payload);
    number(out, 4, view.sequence.0);
    number(out, 5, view.appended_at_ns);
    for (key, value) in &view.metadata {
        let mut pair = Vec::with_capacity(key.len() + value.len() + 16);
        bytes(&mut pair, 1, key.as_bytes());
        bytes(&mut pair, 2, value.as_bytes());
        encode_key(6, WireType::LengthDelimited, out);
        encode_varint(pair.len() as u64, out);
        out.extend_from_slice(&pair);
    }
    number(out, 7, view.lamport.0);
    bytes(out, 8, &view.content_hash.0);
    bytes(out, 9, name.as_bytes());
    number(out, 10, view.epoch.0);
}

/// What is empty or zero is not written: proto3's default.
fn bytes(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    if !value.is_empty() {
        encode_key(tag, WireType::LengthDelimited, out);
        encode_varint(value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

fn number(out: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value, out);
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::{Entry, EntryId, Epoch, Hash, Key, Sequence, clock::LamportClock};
    use prost::Message as _;

    use super::*;
    use crate::grpc::convert;

    fn sample(id: &str, payload: &[u8], metadata: &[(&str, &str)]) -> Entry {
        Entry {
            context_id: ContextId::new("growth").unwrap(),
            sequence: Sequence(300),
            id: EntryId::new(id).unwrap(),
            key: Key::new("facts").unwrap(),
            payload: Bytes::copy_from_slice(payload),
            metadata: metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
            appended_at_ns: u64::MAX,
            lamport: LamportClock(7),
            epoch: Epoch(1 << 20),
            content_hash: Hash([9; 32]),
        }
    }

    #[test]
    fn an_entry_is_encoded_as_the_generated_code_encodes_it() {
        let long = "x".repeat(300);
        for entry in [
            sample("retry-7", b"", &[]),
            sample("f164eb721c26e7afb239f66b118ebaaa", b"hello", &[("a", "1"), ("b", ""), ("", "c")]),
            sample("x", &vec![0; 70_000], &[("long", &long)]),
        ] {
            let id = entry.id.to_string();
            let view = EntryView::of(&entry, &id);
            assert_eq!(named_entry(&view, &entry.context_id), convert::entry(entry.clone()).encode_to_vec());
            let unnamed = ledger_proto::context::v1::Entry {
                context_id: String::new(),
                ..convert::entry(entry.clone())
            };
            assert_eq!(super::entry(&view), unnamed.encode_to_vec());
            let mut entries = Entries::default();
            entries.push(&view);
            entries.push(&view);
            assert_eq!(entries.finish(), [unnamed.encode_to_vec(), unnamed.encode_to_vec()]);
        }
    }
}
