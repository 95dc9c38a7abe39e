//! The record of what a replica promised and accepted for a slot.

use bincode::{BorrowDecode, Encode, config::standard};
use ledger_core::{
    Epoch,
    node::{MAX_NODE_ID, MAX_REPLICAS, Member, NodeId, NodeIdError, ReplicaSet, StorageId},
    ownership::{Claim, Placement, SlotRecord},
};

use super::{RecordError, decode, encode};

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
