//! Encodes records on disk: a version byte, the fields in bincode, and a little-endian CRC-32 (IEEE 802.3) of both.
//! No other module knows bincode.
//!
//! The checksum keeps reads cheap: it detects damage at a fraction of the cost of the content hash. The scrub,
//! proofs, snapshots and loads check the content hash. See docs/adr/0005-record-checksum.md.
//!
//! A reader of version N reads all versions ≤ N and reports a higher one as such. Decoding is bounded:
//! variable-length fields are borrowed from the value, and the only counted list has a limit.

use bincode::{
    BorrowDecode, Encode,
    config::{Configuration, standard},
};
use ledger_core::{
    ContextId, Entry, Epoch, Hash, HashSuite, Head, Lineage, Sequence,
    clock::LamportClock,
    entry::Metadata,
    limits::{MAX_METADATA, MAX_METADATA_PAIRS},
    tree::{Frontier, tile::encode_hashes},
};

use crate::read::view::{EntryView, IdView};

mod slot;
#[cfg(test)]
mod tests;

pub use slot::{decode_slot, encode_slot};

/// Version of the records below.
const VERSION: u8 = 1;

/// Why a record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A newer build wrote it.
    #[error("its record has version {0}, and this build reads up to {VERSION}: use a newer build")]
    Newer(u8),
    /// Its bytes do not match its checksum: some of them changed.
    #[error("its record is not what was written: the checksum does not match")]
    Checksum,
    /// It has no valid encoding.
    #[error("its record cannot be decoded: {0}")]
    Malformed(String),
}

impl RecordError {
    pub(crate) fn new(reason: impl std::fmt::Display) -> Self {
        Self::Malformed(reason.to_string())
    }
}

#[derive(Encode, BorrowDecode)]
enum IdRecord<'a> {
    /// The ledger generated it.
    Bits([u8; 16]),
    /// The writer chose it.
    Text(&'a str),
    /// The writer chose it, and it has the form of a generated id.
    Chosen([u8; 16]),
}

#[derive(Encode, BorrowDecode)]
struct EntryRecord<'a> {
    id: IdRecord<'a>,
    key: &'a str,
    lamport: u64,
    appended_at_ns: u64,
    epoch: u64,
    content_hash: [u8; 32],
    /// The metadata pairs, encoded separately with their own limit; empty if there are none.
    metadata: &'a [u8],
    payload: &'a [u8],
}

#[derive(Encode, BorrowDecode)]
struct HeadRecord<'a> {
    number: u64,
    suite: u8,
    size: u64,
    lamport: u64,
    epoch: u64,
    lineage: [u8; 16],
    created_at_ns: u64,
    /// The peaks of the tree, 32 bytes each.
    peaks: &'a [u8],
}

/// Metadata pairs, sorted by key.
type Pairs<'a> = Vec<(&'a str, &'a str)>;
/// Most bytes that decoding metadata may allocate: the pairs and their texts.
const METADATA_LIMIT: usize = MAX_METADATA_PAIRS * 64 + MAX_METADATA;

pub(crate) fn encode<T: Encode>(record: &T, out: &mut Vec<u8>) -> Result<(), RecordError> {
    out.clear();
    out.push(VERSION);
    bincode::encode_into_std_write(record, out, standard()).map_err(RecordError::new)?;
    let checksum = crc32fast::hash(out);
    out.extend_from_slice(&checksum.to_le_bytes());
    Ok(())
}

pub(crate) fn decode<'a, T: BorrowDecode<'a, ()>>(bytes: &'a [u8]) -> Result<T, RecordError> {
    let (checked, checksum) =
        bytes.split_last_chunk::<4>().ok_or_else(|| RecordError::new("it is too short"))?;
    if crc32fast::hash(checked) != u32::from_le_bytes(*checksum) {
        return Err(RecordError::Checksum);
    }
    let body = match checked.split_first() {
        Some((&VERSION, body)) => body,
        Some((&version, _)) if version > VERSION => return Err(RecordError::Newer(version)),
        _ => return Err(RecordError::new("it has no version")),
    };
    let (record, read): (T, usize) =
        bincode::borrow_decode_from_slice::<T, Configuration>(body, standard()).map_err(RecordError::new)?;
    if read != body.len() {
        return Err(RecordError::new(format_args!("{} bytes follow it", body.len() - read)));
    }
    Ok(record)
}

/// Encodes an entry and whether its writer chose its id. The key of the row holds the context and the sequence.
///
/// # Errors
/// [`RecordError`] if a field cannot be encoded.
pub fn encode_entry(entry: &Entry, is_id_chosen: bool, out: &mut Vec<u8>) -> Result<(), RecordError> {
    let text = match entry.id.bits() {
        Some(_) => String::new(),
        None => entry.id.to_string(),
    };
    let record = EntryRecord {
        id: match entry.id.bits() {
            None => IdRecord::Text(&text),
            Some(bits) if is_id_chosen => IdRecord::Chosen(bits),
            Some(bits) => IdRecord::Bits(bits),
        },
        key: entry.key.as_str(),
        lamport: entry.lamport.0,
        appended_at_ns: entry.appended_at_ns,
        epoch: entry.epoch.0,
        content_hash: entry.content_hash.0,
        metadata: &encode_metadata(&entry.metadata)?,
        payload: &entry.payload,
    };
    encode(&record, out)
}

/// Decodes an entry without checking its content hash.
///
/// # Errors
/// [`RecordError`] if the bytes are damaged, malformed, or of a newer version.
pub fn decode_entry(context_id: &ContextId, sequence: Sequence, bytes: &[u8]) -> Result<Entry, RecordError> {
    view_entry(sequence, bytes)?.to_entry(context_id).map_err(RecordError::new)
}

/// Decodes an entry without copying it and without checking its content hash.
///
/// # Errors
/// [`RecordError`] if the bytes are damaged, malformed, or of a newer version.
pub fn view_entry(sequence: Sequence, bytes: &[u8]) -> Result<EntryView<'_>, RecordError> {
    let record: EntryRecord<'_> = decode(bytes)?;
    Ok(EntryView {
        sequence,
        is_id_chosen: !matches!(record.id, IdRecord::Bits(_)),
        id: match record.id {
            IdRecord::Bits(bits) | IdRecord::Chosen(bits) => IdView::Bits(bits),
            IdRecord::Text(text) => IdView::Text(text),
        },
        key: record.key,
        payload: record.payload,
        metadata: decode_metadata(record.metadata)?,
        appended_at_ns: record.appended_at_ns,
        lamport: LamportClock(record.lamport),
        epoch: Epoch(record.epoch),
        content_hash: Hash(record.content_hash),
    })
}

fn encode_metadata(metadata: &Metadata) -> Result<Vec<u8>, RecordError> {
    if metadata.is_empty() {
        return Ok(Vec::new());
    }
    let pairs: Pairs<'_> = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    bincode::encode_to_vec(pairs, standard()).map_err(RecordError::new)
}

fn decode_metadata(bytes: &[u8]) -> Result<Pairs<'_>, RecordError> {
    if bytes.is_empty() {
        return Ok(Pairs::new());
    }
    let limited = standard().with_limit::<METADATA_LIMIT>();
    let (pairs, _) = bincode::borrow_decode_from_slice(bytes, limited).map_err(RecordError::new)?;
    Ok(pairs)
}

/// Reads only the key and content hash of a stored entry, for callers that inspect many entries and keep few.
pub(crate) fn peek_entry(bytes: &[u8]) -> Result<(&str, Hash), RecordError> {
    let record: EntryRecord<'_> = decode(bytes)?;
    Ok((record.key, Hash(record.content_hash)))
}

/// Encodes a head with the context's number.
///
/// # Errors
/// [`RecordError`] if a field cannot be encoded.
pub fn encode_head(number: u64, head: &Head, out: &mut Vec<u8>) -> Result<(), RecordError> {
    let record = HeadRecord {
        number,
        suite: head.suite.code(),
        size: head.frontier.size(),
        lamport: head.lamport.0,
        epoch: head.epoch.0,
        lineage: head.lineage.0,
        created_at_ns: head.created_at_ns,
        peaks: &encode_hashes(head.frontier.peaks()),
    };
    encode(&record, out)
}

/// Decodes a head and the context's number.
///
/// # Errors
/// [`RecordError`] if the bytes are damaged, malformed, or of a newer version.
pub fn decode_head(bytes: &[u8]) -> Result<(u64, Head), RecordError> {
    let record: HeadRecord<'_> = decode(bytes)?;
    let suite = HashSuite::from_code(record.suite)
        .ok_or_else(|| RecordError::new(format_args!("hash suite {} is unknown", record.suite)))?;
    let peaks = record.peaks.chunks(32).filter_map(Hash::from_slice).collect();
    let frontier = Frontier::from_peaks(record.size, peaks)
        .ok_or_else(|| RecordError::new("its frontier does not fit its size"))?;
    let head = Head {
        suite,
        lamport: LamportClock(record.lamport),
        epoch: Epoch(record.epoch),
        frontier,
        lineage: Lineage(record.lineage),
        created_at_ns: record.created_at_ns,
    };
    Ok((record.number, head))
}
