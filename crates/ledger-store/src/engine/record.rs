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
    node::{MAX_NODE_ID, MAX_REPLICAS, Member, NodeId, NodeIdError, ReplicaSet, StorageId},
    ownership::{Claim, Placement, SlotRecord},
    tree::{Frontier, tile::encode_hashes},
};

use crate::read::view::{EntryView, IdView};

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

#[derive(Encode, BorrowDecode)]
struct SlotRow<'a> {
    /// The promised epoch; 0 with an empty claimant: nothing was promised.
    promised_epoch: u64,
    promised_to: &'a str,
    accepted: u64,
    placed_in: u64,
    is_confirmed: bool,
    /// The members, encoded separately with their own limit; empty if none were recorded. The data directory that the promise
    /// was made to follows them, if it is known: builds that know nothing of it read over it.
    members: &'a [u8],
    /// The members that these are to replace, encoded the same way; empty once the move is confirmed.
    before: &'a [u8],
    was_formed: bool,
}

/// Members: node and storage id.
type Members<'a> = Vec<(&'a str, [u8; 16])>;
/// Most bytes that decoding members may allocate.
const MEMBERS_LIMIT: usize = MAX_REPLICAS * (64 + MAX_NODE_ID);

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

/// Encodes what a replica promised and accepted for a slot.
///
/// # Errors
/// [`RecordError`] if a field cannot be encoded.
pub fn encode_slot(record: &SlotRecord, out: &mut Vec<u8>) -> Result<(), RecordError> {
    let placement = record.placement.as_ref();
    let mut members = encode_members(placement.map(|placement| &placement.members))?;
    // Without members there is nothing that it could follow: then the record names the node only.
    if let Some(storage) = record.promised.as_ref().and_then(|claim| claim.storage)
        && !members.is_empty()
    {
        members.extend_from_slice(&storage.0);
    }
    let before = encode_members(placement.and_then(|placement| placement.previous.as_ref()))?;
    let row = SlotRow {
        promised_epoch: record.promised.as_ref().map_or(0, |claim| claim.epoch.0),
        promised_to: record.promised.as_ref().map_or("", |claim| claim.claimant.as_str()),
        accepted: record.accepted.0,
        placed_in: record.placement.as_ref().map_or(0, |placement| placement.epoch.0),
        is_confirmed: record.placement.as_ref().is_some_and(|placement| placement.is_confirmed),
        members: &members,
        before: &before,
        was_formed: record.is_formed,
    };
    encode(&row, out)
}

fn encode_members(set: Option<&ReplicaSet>) -> Result<Vec<u8>, RecordError> {
    let Some(set) = set else { return Ok(Vec::new()) };
    let members = set.members().iter();
    let members: Members<'_> = members.map(|member| (member.node.as_str(), member.storage.0)).collect();
    bincode::encode_to_vec(members, standard()).map_err(RecordError::new)
}

/// Returns the members, and the bytes that follow them.
fn decode_members(bytes: &[u8]) -> Result<(Option<ReplicaSet>, &[u8]), RecordError> {
    if bytes.is_empty() {
        return Ok((None, bytes));
    }
    let limited = standard().with_limit::<MEMBERS_LIMIT>();
    let (members, read): (Members<'_>, usize) =
        bincode::borrow_decode_from_slice(bytes, limited).map_err(RecordError::new)?;
    let members: Vec<_> = members
        .into_iter()
        .map(|(node, storage)| Ok(Member { node: NodeId::new(node)?, storage: StorageId(storage) }))
        .collect::<Result<_, NodeIdError>>()
        .map_err(RecordError::new)?;
    let members = ReplicaSet::new(members).map_err(RecordError::new)?;
    Ok((Some(members), bytes.get(read..).unwrap_or_default()))
}

/// Decodes what a replica promised and accepted for a slot.
///
/// # Errors
/// [`RecordError`] if the bytes are damaged, malformed, or of a newer version.
pub fn decode_slot(bytes: &[u8]) -> Result<SlotRecord, RecordError> {
    let row: SlotRow<'_> = decode(bytes)?;
    let (members, rest) = decode_members(row.members)?;
    let storage = rest.try_into().ok().map(StorageId);
    let promised = match row.promised_to {
        "" => None,
        node => Some(Claim {
            epoch: Epoch(row.promised_epoch),
            claimant: NodeId::new(node).map_err(RecordError::new)?,
            storage,
        }),
    };
    let (previous, _) = decode_members(row.before)?;
    let placement = members.map(|members| Placement {
        epoch: Epoch(row.placed_in),
        members,
        is_confirmed: row.is_confirmed,
        previous,
    });
    Ok(SlotRecord { promised, accepted: Epoch(row.accepted), placement, is_formed: row.was_formed })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use ledger_core::{EntryId, Key};
    use proptest::prelude::*;

    use super::*;

    fn entry(id: &str, metadata: BTreeMap<String, String>, payload: &[u8]) -> Entry {
        Entry {
            context_id: ContextId::new("c").unwrap(),
            sequence: Sequence(7),
            id: EntryId::new(id).unwrap(),
            key: Key::new("facts").unwrap(),
            payload: Bytes::copy_from_slice(payload),
            metadata,
            appended_at_ns: 1,
            lamport: LamportClock(2),
            epoch: Epoch(3),
            content_hash: Hash([4; 32]),
        }
    }

    fn payload_is_odd(entry: &Entry) -> bool {
        entry.payload.len() % 2 == 1
    }

    /// Appends the checksum that completes a record.
    fn sealed(bytes: &[u8]) -> Vec<u8> {
        [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat()
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let mut bytes = Vec::new();
        encode_entry(&entry("retry-1", BTreeMap::new(), b"xyz"), true, &mut bytes).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(peek_entry(&flipped), Err(RecordError::Checksum));
        }
    }

    #[test]
    fn records_are_golden() {
        let mut bytes = Vec::new();
        encode_entry(&entry("retry-1", [("k".into(), "v".into())].into(), b"xyz"), true, &mut bytes).unwrap();
        let hash = "04".repeat(32);
        assert_eq!(
            hex::encode(&bytes),
            format!("01010772657472792d310566616374730201 03{hash}0501016b01760378797abb199447")
                .replace(' ', "")
        );

        let head = Head::new(HashSuite::Sha256, Lineage([5; 16]), 9);
        encode_head(300, &head, &mut bytes).unwrap();
        let checksum = hex::encode(crc32fast::hash(&bytes[..bytes.len() - 4]).to_le_bytes());
        assert_eq!(hex::encode(&bytes), format!("01fb2c0102000000{}0900{checksum}", "05".repeat(16)));
        assert_eq!(decode_head(&bytes).unwrap(), (300, head));
    }

    fn slot_record() -> SlotRecord {
        let node = |name: &str| NodeId::new(name).unwrap();
        let member = |name: &str, byte: u8| Member { node: node(name), storage: StorageId([byte; 16]) };
        SlotRecord {
            promised: Some(Claim::new(Epoch(300), &member("ledger-1", 9))),
            accepted: Epoch(7),
            placement: Some(Placement {
                epoch: Epoch(7),
                members: ReplicaSet::new([member("a", 1), member("b", 2)]).unwrap(),
                is_confirmed: true,
                previous: Some(ReplicaSet::new([member("a", 1)]).unwrap()),
            }),
            is_formed: true,
        }
    }

    #[test]
    fn a_slots_record_is_golden_and_comes_back_as_it_was() {
        let mut bytes = Vec::new();
        encode_slot(&slot_record(), &mut bytes).unwrap();
        let (body, _) = bytes.split_last_chunk::<4>().unwrap();
        let members = format!("020161{}0162{}", "01".repeat(16), "02".repeat(16));
        let before = format!("010161{}", "01".repeat(16));
        let record = |members: &str| {
            let (members_len, before_len) = (members.len() / 2, before.len() / 2);
            format!("01fb2c01086c65646765722d31070701{members_len:02x}{members}{before_len:02x}{before}01")
        };
        assert_eq!(hex::encode(body), record(&format!("{members}{}", "09".repeat(16))));
        assert_eq!(decode_slot(&bytes).unwrap(), slot_record());
        // As an older build wrote it: the promise names the node only.
        let mut older = slot_record();
        older.promised = Some(Claim { storage: None, ..older.promised.unwrap() });
        encode_slot(&older, &mut bytes).unwrap();
        let (body, _) = bytes.split_last_chunk::<4>().unwrap();
        assert_eq!(hex::encode(body), record(&members));
        assert_eq!(decode_slot(&bytes).unwrap(), older);
        // So does a promise of a slot that has no members yet.
        let unplaced = SlotRecord { promised: slot_record().promised, ..SlotRecord::default() };
        encode_slot(&unplaced, &mut bytes).unwrap();
        let bare = Claim { storage: None, ..unplaced.promised.unwrap() };
        let expected = SlotRecord { promised: Some(bare), ..SlotRecord::default() };
        assert_eq!(decode_slot(&bytes).unwrap(), expected);
        encode_slot(&SlotRecord::default(), &mut bytes).unwrap();
        assert_eq!(decode_slot(&bytes).unwrap(), SlotRecord::default());
    }

    #[test]
    fn a_newer_record_is_refused_by_name() {
        assert_eq!(decode_head(&sealed(&[9, 0, 0])), Err(RecordError::Newer(9)));
    }

    proptest! {
        #[test]
        fn an_entry_comes_back_as_it_was(
            id in "[a-z0-9]{1,40}",
            metadata in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
            payload in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let entry = entry(&id, metadata, &payload);
            let mut bytes = Vec::new();
            encode_entry(&entry, payload_is_odd(&entry), &mut bytes).unwrap();
            let view = view_entry(entry.sequence, &bytes).unwrap();
            prop_assert_eq!(view.is_id_chosen, payload_is_odd(&entry) || entry.id.bits().is_none());
            prop_assert_eq!(decode_entry(&entry.context_id, entry.sequence, &bytes).unwrap(), entry);
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let context = ContextId::new("c").unwrap();
            let versioned = sealed(&[&[VERSION][..], &bytes].concat());
            let _ = (decode_entry(&context, Sequence(1), &versioned), decode_head(&versioned), peek_entry(&versioned));
            let _ = decode_slot(&versioned);
        }
    }
}
