//! Why a history was left, as it is kept: the record at sequence 0 of a fork.

use bincode::{BorrowDecode, Encode};
use ledger_core::{ContextId, Epoch, Hash, HashSuite, Lineage, Sequence, Size};

use super::ForkRows;
use crate::{
    engine::families,
    engine::record::{self, RecordError},
};

/// Longest reason that is kept, bytes.
const MAX_REASON: usize = 1024;

/// Where a history stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Number of entries.
    pub size: Size,
    /// Merkle root at that size.
    pub root: Hash,
    /// The epoch of the newest entry.
    pub epoch: Epoch,
}

/// Why a history is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Where the history stood that takes its place.
    pub theirs: Tip,
    /// In words; cut to 1024 bytes.
    pub reason: String,
}

/// A history that was left, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkInfo {
    /// The context.
    pub context: ContextId,
    /// The fork's number: of this node, and given once.
    pub fork: u64,
    /// What it has in common with the history that took its place: its entries are those after.
    pub common: Size,
    /// Where it stood when it was left.
    pub ours: Tip,
    /// Where the other one stood then.
    pub theirs: Tip,
    /// Which history it was.
    pub lineage: Lineage,
    /// Its hash suite.
    pub suite: HashSuite,
    /// When it was left: wall-clock time, nanoseconds since the Unix epoch.
    pub left_at_ns: u64,
    /// Why, in words.
    pub reason: String,
}

#[derive(Encode, BorrowDecode)]
struct TipRecord {
    size: u64,
    root: [u8; 32],
    epoch: u64,
}

/// The row at sequence 0 of a fork. Its number is in the key.
#[derive(Encode, BorrowDecode)]
struct EvidenceRecord<'a> {
    context: &'a str,
    suite: u8,
    lineage: [u8; 16],
    common: u64,
    ours: TipRecord,
    theirs: TipRecord,
    left_at_ns: u64,
    reason: &'a str,
}

/// Encodes the evidence of a fork.
pub(super) fn encode(info: &ForkInfo, out: &mut Vec<u8>) -> Result<(), RecordError> {
    let tip = |tip: &Tip| TipRecord { size: tip.size.0, root: tip.root.0, epoch: tip.epoch.0 };
    let record = EvidenceRecord {
        context: info.context.as_str(),
        suite: info.suite.code(),
        lineage: info.lineage.0,
        common: info.common.0,
        ours: tip(&info.ours),
        theirs: tip(&info.theirs),
        left_at_ns: info.left_at_ns,
        reason: &info.reason[..info.reason.floor_char_boundary(MAX_REASON)],
    };
    record::encode(&record, out)
}

/// Decodes the evidence of a fork, if it is that.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Option<(ForkRows, ForkInfo)>, RecordError> {
    let Some((place, number, sequence)) = families::fork_of(key) else {
        return Err(RecordError::new("its key is malformed"));
    };
    if sequence != Sequence(0) {
        return Ok(None);
    }
    let record: EvidenceRecord<'_> = record::decode(value)?;
    let tip = |tip: &TipRecord| Tip { size: Size(tip.size), root: Hash(tip.root), epoch: Epoch(tip.epoch) };
    let info = ForkInfo {
        context: ContextId::new(record.context).map_err(RecordError::new)?,
        fork: number,
        common: Size(record.common),
        ours: tip(&record.ours),
        theirs: tip(&record.theirs),
        lineage: Lineage(record.lineage),
        suite: HashSuite::from_code(record.suite)
            .ok_or_else(|| RecordError::new(format_args!("hash suite {} is unknown", record.suite)))?,
        left_at_ns: record.left_at_ns,
        reason: record.reason.to_owned(),
    };
    Ok(Some((ForkRows { place, number }, info)))
}
