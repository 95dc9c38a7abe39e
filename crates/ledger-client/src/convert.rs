//! From the wire to the core's types. The client checks what a ledger sends like any input from the network.

use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Key, Lineage, Position, Sequence, Size,
    clock::LamportClock,
};
use ledger_proto::context::v1 as proto;

use crate::error::ClientError;

pub(crate) fn entry(context: &ContextId, from: proto::Entry) -> Result<Entry, ClientError> {
    if !from.context_id.is_empty() && from.context_id != context.as_str() {
        return Err(ClientError::NotVerified(format!("entry {} is of another context", from.sequence)));
    }
    Ok(Entry {
        context_id: context.clone(),
        sequence: Sequence(from.sequence),
        id: EntryId::new(&from.id)?,
        key: Key::new(from.key)?,
        payload: from.payload,
        metadata: from.metadata,
        appended_at_ns: from.appended_at_ns,
        lamport: LamportClock(from.lamport_clock),
        epoch: Epoch(from.epoch),
        content_hash: hash(&from.content_hash, "content_hash")?,
    })
}

pub(crate) fn hash(bytes: &[u8], what: &str) -> Result<Hash, ClientError> {
    Hash::from_slice(bytes).ok_or_else(|| ClientError::malformed(what))
}

pub(crate) fn hashes<B: AsRef<[u8]>>(list: &[B]) -> Result<Vec<Hash>, ClientError> {
    list.iter().map(|bytes| hash(bytes.as_ref(), "a proof's hash")).collect()
}

pub(crate) fn suite(name: &str) -> Result<HashSuite, ClientError> {
    HashSuite::from_name(name)
        .ok_or_else(|| ClientError::NotVerified(format!("hash suite {name:?} is unknown")))
}

pub(crate) fn lineage(bytes: &[u8]) -> Result<Lineage, ClientError> {
    bytes.try_into().map(Lineage).map_err(|_| ClientError::malformed("lineage"))
}

pub(crate) fn position(from: Option<proto::Position>) -> Result<Position, ClientError> {
    let from = from.ok_or_else(|| ClientError::malformed("position"))?;
    Ok(Position {
        size: Size(from.size),
        root: hash(&from.root, "root")?,
        epoch: Epoch(from.epoch),
        lineage: lineage(&from.lineage)?,
    })
}

pub(crate) fn position_to(from: &Position) -> proto::Position {
    proto::Position {
        size: from.size.0,
        root: from.root.0.to_vec().into(),
        epoch: from.epoch.0,
        lineage: from.lineage.0.to_vec().into(),
    }
}

/// Checks that an entry continues a stream: its sequence is higher than the last.
pub(crate) fn check_next(after: Sequence, entry: &Entry) -> Result<(), ClientError> {
    if entry.sequence <= after {
        return Err(ClientError::NotVerified(format!("entry {} came after entry {after}", entry.sequence)));
    }
    Ok(())
}
