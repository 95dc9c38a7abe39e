//! From terms to a snapshot.

use std::{fmt::Display, mem::size_of};

use bytes::Bytes;

use crate::{
    ContextId, EntryId, Hash, Key, Sequence,
    clock::LamportClock,
    entry::{Metadata, check_metadata},
    limits::{MAX_LOADED_LAMPORT, MAX_METADATA_PAIRS, MAX_PAYLOAD},
};

use super::{
    LegacyEntry, LegacyError, Limits, Snapshot, VERSION,
    error::{FieldOwner, FoundInstead},
    inflate,
    term::Reader,
};

/// What an entry takes beside its fields: its hash, and its place in the table of ids.
const ENTRY: usize = size_of::<LegacyEntry>() + 128;
/// What a pair of metadata takes beside its bytes.
const PAIR: usize = 2 * size_of::<String>() + 64;

/// Asked for bytes of memory as they are needed.
type Room<'a> = &'a mut dyn FnMut(usize) -> bool;

pub(super) fn decode(blob: Bytes, limits: Limits, room: Room<'_>) -> Result<Snapshot, LegacyError> {
    let term = inflate::open(&blob, limits.max_uncompressed)?;
    // What was compressed is of no use any more.
    drop(blob);
    // The version comes last in the map, and decides what the rest may be.
    let version = version(&term)?;
    let has_hashes = version >= 2;
    let mut context_id = None;
    let mut sequence = None;
    let mut merkle_root = None;
    let mut entries = None;

    let mut reader = Reader::new(&term);
    for _ in 0..reader.map()? {
        let owner = FieldOwner::Snapshot;
        match reader.atom()? {
            b"context_id" => {
                let id = ContextId::new(reader.text()?).map_err(|e| invalid("context_id", owner, &e))?;
                once("context_id", owner, &mut context_id, id)?;
            }
            b"sequence" => once("sequence", owner, &mut sequence, Sequence(reader.unsigned()?))?,
            b"merkle_root" if has_hashes => {
                let root = hash("merkle_root", owner, reader.binary()?)?;
                once("merkle_root", owner, &mut merkle_root, root)?;
            }
            b"entries" => {
                let list = decode_entries(&term, &mut reader, has_hashes, limits, room)?;
                once("entries", owner, &mut entries, list)?;
            }
            _ => reader.skip()?,
        }
    }
    let owner = FieldOwner::Snapshot;
    if has_hashes {
        merkle_root = Some(needed("merkle_root", owner, merkle_root)?);
    }
    let snapshot = Snapshot {
        context_id: needed("context_id", owner, context_id)?,
        version,
        sequence: needed("sequence", owner, sequence)?,
        merkle_root,
        entries: needed("entries", owner, entries)?,
    };
    check_sequences(&snapshot)?;
    Ok(snapshot)
}

/// Returns the version, after a walk over the whole term that also shows that it is one.
fn version(term: &[u8]) -> Result<u64, LegacyError> {
    let mut version = None;
    let mut reader = Reader::new(term);
    for _ in 0..reader.map()? {
        match reader.atom()? {
            b"version" => once("version", FieldOwner::Snapshot, &mut version, reader.unsigned()?)?,
            _ => reader.skip()?,
        }
    }
    if reader.remaining() > 0 {
        return Err(LegacyError::TrailingBytes { count: reader.remaining() });
    }
    match needed("version", FieldOwner::Snapshot, version)? {
        0 => Err(invalid("version", FieldOwner::Snapshot, &"it is 0, which never existed")),
        version if version > VERSION => Err(LegacyError::NewerVersion { version }),
        version => Ok(version),
    }
}

fn decode_entries(
    term: &Bytes,
    reader: &mut Reader<'_>,
    has_hashes: bool,
    limits: Limits,
    room: Room<'_>,
) -> Result<Vec<LegacyEntry>, LegacyError> {
    let count = reader.list()?;
    limit("a number of entries", count, limits.max_entries)?;
    let mut entries = Vec::new();
    for position in 1..=count {
        let entry = decode_entry(term, reader, position, has_hashes, limits)?;
        if !room(weight(&entry)) {
            return Err(LegacyError::NoRoom);
        }
        entries.push(entry);
    }
    if count > 0 {
        reader.nil()?;
    }
    entries.sort_by_key(|entry| entry.sequence);
    Ok(entries)
}

/// Returns what an entry takes beside its payload, which is a part of the blob.
fn weight(entry: &LegacyEntry) -> usize {
    let metadata: usize = entry.metadata.iter().map(|(key, value)| PAIR + key.len() + value.len()).sum();
    ENTRY + entry.key.as_str().len() + 2 * size_of::<EntryId>() + metadata
}

fn decode_entry(
    term: &Bytes,
    reader: &mut Reader<'_>,
    position: u64,
    has_hashes: bool,
    limits: Limits,
) -> Result<LegacyEntry, LegacyError> {
    let owner = FieldOwner::Entry(position);
    let mut sequence = None;
    let mut id = None;
    let mut key = None;
    let mut payload = None;
    let mut appended_at_ns = None;
    let mut metadata = None;
    let mut lamport = None;
    let mut content_hash = None;
    for _ in 0..reader.map()? {
        match reader.atom()? {
            b"sequence" => once("sequence", owner, &mut sequence, Sequence(reader.unsigned()?))?,
            b"id" => {
                let value = EntryId::new(&reader.text()?).map_err(|e| invalid("id", owner, &e))?;
                once("id", owner, &mut id, value)?;
            }
            b"key" => {
                let value = Key::new(reader.text()?).map_err(|e| invalid("key", owner, &e))?;
                once("key", owner, &mut key, value)?;
            }
            b"payload" => {
                let value = reader.binary()?;
                let max = limits.max_payload.min(MAX_PAYLOAD);
                limit("a payload in bytes", value.len() as u64, max as u64)?;
                once("payload", owner, &mut payload, term.slice_ref(value))?;
            }
            b"appended_at_ns" => once("appended_at_ns", owner, &mut appended_at_ns, reader.unsigned()?)?,
            b"metadata" => once("metadata", owner, &mut metadata, decode_metadata(reader, owner)?)?,
            b"lamport_clock" if has_hashes => {
                let value = reader.unsigned()?;
                limit("a Lamport time", value, MAX_LOADED_LAMPORT)?;
                once("lamport_clock", owner, &mut lamport, LamportClock(value))?;
            }
            b"content_hash" if has_hashes => {
                let value = hash("content_hash", owner, reader.binary()?)?;
                once("content_hash", owner, &mut content_hash, value)?;
            }
            _ => reader.skip()?,
        }
    }
    if has_hashes {
        lamport = Some(needed("lamport_clock", owner, lamport)?);
        content_hash = Some(needed("content_hash", owner, content_hash)?);
    }
    Ok(LegacyEntry {
        sequence: needed("sequence", owner, sequence)?,
        id: needed("id", owner, id)?,
        key: needed("key", owner, key)?,
        payload: needed("payload", owner, payload)?,
        appended_at_ns: needed("appended_at_ns", owner, appended_at_ns)?,
        metadata: needed("metadata", owner, metadata)?,
        lamport,
        content_hash,
    })
}

fn decode_metadata(reader: &mut Reader<'_>, owner: FieldOwner) -> Result<Metadata, LegacyError> {
    let pairs = reader.map()?;
    limit("metadata pairs", pairs, MAX_METADATA_PAIRS as u64)?;
    let mut metadata = Metadata::new();
    for _ in 0..pairs {
        let key = reader.text()?;
        let value = reader.text()?;
        if metadata.insert(key, value).is_some() {
            return Err(invalid("metadata", owner, &"it has a key twice"));
        }
    }
    check_metadata(&metadata).map_err(|e| invalid("metadata", owner, &e))?;
    Ok(metadata)
}

/// Checks that the sorted entries are 1, 2, 3, … up to the snapshot's sequence.
fn check_sequences(snapshot: &Snapshot) -> Result<(), LegacyError> {
    let mut expected = Sequence(1);
    for entry in &snapshot.entries {
        let found = entry.sequence;
        if found != expected {
            return Err(LegacyError::Gap { expected, found: FoundInstead::Entry(found) });
        }
        if found > snapshot.sequence {
            return Err(LegacyError::Gap { expected, found: FoundInstead::Beyond(found) });
        }
        expected = Sequence(found.0.saturating_add(1));
    }
    if snapshot.sequence.0 != snapshot.entries.len() as u64 {
        return Err(LegacyError::Gap { expected, found: FoundInstead::End });
    }
    Ok(())
}

fn hash(field: &'static str, owner: FieldOwner, bytes: &[u8]) -> Result<Hash, LegacyError> {
    Hash::from_slice(bytes)
        .ok_or_else(|| invalid(field, owner, &format!("it has {} bytes, but a hash has 32", bytes.len())))
}

/// Sets a field that must not have been set.
fn once<T>(
    field: &'static str,
    owner: FieldOwner,
    slot: &mut Option<T>,
    value: T,
) -> Result<(), LegacyError> {
    match slot.replace(value) {
        Some(_) => Err(invalid(field, owner, &"it comes twice")),
        None => Ok(()),
    }
}

fn needed<T>(field: &'static str, owner: FieldOwner, slot: Option<T>) -> Result<T, LegacyError> {
    slot.ok_or_else(|| invalid(field, owner, &"it is missing"))
}

fn invalid(field: &'static str, owner: FieldOwner, reason: &impl Display) -> LegacyError {
    LegacyError::Field { field, owner, reason: reason.to_string() }
}

fn limit(what: &'static str, value: u64, max: u64) -> Result<(), LegacyError> {
    if value > max {
        return Err(LegacyError::Limit { what, value, max });
    }
    Ok(())
}
