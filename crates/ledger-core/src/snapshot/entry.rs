//! The encoding of one entry inside a frame.

use bytes::{Buf as _, Bytes};

use crate::{
    ContextId, Entry, EntryId, Epoch, Key, Sequence,
    clock::LamportClock,
    entry::{Metadata, check_metadata},
    limits::{MAX_LOADED_LAMPORT, MAX_METADATA, MAX_METADATA_PAIRS, MAX_PAYLOAD},
};

use super::{
    Limits, SnapshotError, SnapshotSection,
    fields::{Reader, put_len16, put_len32},
};

const ID_BITS: u8 = 0;
const ID_TEXT: u8 = 1;

/// Appends an entry; nothing is written if it is over a limit of the format.
pub(super) fn encode(entry: &Entry, out: &mut Vec<u8>) -> Result<(), SnapshotError> {
    let place = SnapshotSection::Entry(entry.sequence);
    place.limit("a payload in bytes", entry.payload.len() as u64, MAX_PAYLOAD as u64)?;
    check_metadata_at(place, &entry.metadata)?;

    out.extend_from_slice(&entry.lamport.0.to_be_bytes());
    out.extend_from_slice(&entry.appended_at_ns.to_be_bytes());
    out.extend_from_slice(&entry.epoch.0.to_be_bytes());
    out.extend_from_slice(&entry.content_hash.0);
    if let Some(bits) = entry.id.bits() {
        out.push(ID_BITS);
        out.extend_from_slice(&bits);
    } else {
        out.push(ID_TEXT);
        entry.id.with_text(|text| put_len16(out, text.as_bytes()));
    }
    put_len16(out, entry.key.as_str().as_bytes());
    out.extend_from_slice(&(entry.metadata.len() as u32).to_be_bytes());
    for (key, value) in &entry.metadata {
        put_len32(out, key.as_bytes());
        put_len32(out, value.as_bytes());
    }
    put_len32(out, &entry.payload);
    Ok(())
}

/// Takes the entry with this sequence from the front of a frame. Its payload shares the frame's memory.
pub(super) fn decode(
    frame: &mut Bytes,
    context_id: &ContextId,
    sequence: Sequence,
    limits: Limits,
) -> Result<Entry, SnapshotError> {
    let place = SnapshotSection::Entry(sequence);
    let short = || place.corrupt("its frame ends within it");
    let mut reader = Reader::new(frame);

    let lamport = LamportClock(reader.u64().ok_or_else(short)?);
    place.limit("a Lamport time", lamport.0, MAX_LOADED_LAMPORT)?;
    let appended_at_ns = reader.u64().ok_or_else(short)?;
    let epoch = Epoch(reader.u64().ok_or_else(short)?);
    let content_hash = reader.hash().ok_or_else(short)?;
    let id = match reader.u8().ok_or_else(short)? {
        ID_BITS => EntryId::from_bits(reader.array().ok_or_else(short)?),
        ID_TEXT => {
            let id = EntryId::new(text(place, reader.len16().ok_or_else(short)?)?)
                .map_err(|e| place.corrupt(e.to_string()))?;
            // One entry has one encoding.
            if id.bits().is_some() {
                return Err(place.corrupt("its id is written as text but has the form of 128 bits"));
            }
            id
        }
        form => return Err(place.corrupt(format!("its id has the unknown form {form}"))),
    };
    let key = Key::new(text(place, reader.len16().ok_or_else(short)?)?)
        .map_err(|e| place.corrupt(e.to_string()))?;
    let metadata = metadata(place, &mut reader)?;
    let len = reader.u32().ok_or_else(short)?;
    place.limit("a payload in bytes", len.into(), limits.max_payload.min(MAX_PAYLOAD) as u64)?;
    let payload = reader.bytes(len as usize).ok_or_else(short)?;

    let entry = Entry {
        context_id: context_id.clone(),
        sequence,
        id,
        key,
        payload: frame.slice_ref(payload),
        metadata,
        appended_at_ns,
        lamport,
        epoch,
        content_hash,
    };
    let used = frame.len() - reader.remaining();
    frame.advance(used);
    Ok(entry)
}

fn metadata(place: SnapshotSection, reader: &mut Reader<'_>) -> Result<Metadata, SnapshotError> {
    let short = || place.corrupt("its frame ends within it");
    let pairs = reader.u32().ok_or_else(short)?;
    place.limit("metadata pairs", pairs.into(), MAX_METADATA_PAIRS as u64)?;
    let mut metadata = Metadata::new();
    for _ in 0..pairs {
        let key = text(place, reader.len32().ok_or_else(short)?)?;
        let value = text(place, reader.len32().ok_or_else(short)?)?;
        if metadata.last_key_value().is_some_and(|(before, _)| before.as_str() >= key) {
            return Err(place.corrupt("its metadata is not sorted by key"));
        }
        metadata.insert(key.to_owned(), value.to_owned());
    }
    check_metadata_at(place, &metadata)?;
    Ok(metadata)
}

fn check_metadata_at(place: SnapshotSection, metadata: &Metadata) -> Result<(), SnapshotError> {
    check_metadata(metadata).or_else(|over| {
        place.limit("metadata pairs", over.pairs as u64, MAX_METADATA_PAIRS as u64)?;
        place.limit("metadata in bytes", over.bytes as u64, MAX_METADATA as u64)
    })
}

fn text(place: SnapshotSection, bytes: &[u8]) -> Result<&str, SnapshotError> {
    std::str::from_utf8(bytes).map_err(|_| place.corrupt("a text of it is not UTF-8"))
}
