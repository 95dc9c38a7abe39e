//! The evidence why a history was forked off: the record at sequence 0 of a fork.

use bincode::{BorrowDecode, Encode};
use ledger_core::{ContextId, Epoch, Hash, HashSuite, Lineage, Sequence, Size};

use super::rows::ForkRows;
use crate::{
    engine::families,
    engine::record::{self, RecordError},
};

/// Longest stored reason, in bytes.
const MAX_REASON: usize = 1024;

/// The end of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Number of entries.
    pub size: Size,
    /// Merkle root at that size.
    pub root: Hash,
    /// The epoch of the newest entry.
    pub epoch: Epoch,
}

/// Why a history is forked off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The end of the history that takes its place.
    pub theirs: Tip,
    /// The reason in words; cut to 1024 bytes.
    pub reason: String,
}

/// A fork and its evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkInfo {
    /// The context.
    pub context: ContextId,
    /// Number of the fork, unique on this node.
    pub fork: u64,
    /// Size that it shares with the history that took its place: the fork holds the entries after it.
    pub common: Size,
    /// Its end when it was forked off.
    pub ours: Tip,
    /// The end of the other history at that time.
    pub theirs: Tip,
    /// Its lineage.
    pub lineage: Lineage,
    /// Its hash suite.
    pub suite: HashSuite,
    /// When it was forked off: wall-clock time, nanoseconds since the Unix epoch.
    pub left_at_ns: u64,
    /// The reason in words.
    pub reason: String,
}

#[derive(Encode, BorrowDecode)]
struct TipRecord {
    size: u64,
    root: [u8; 32],
    epoch: u64,
}

/// The row at sequence 0 of a fork. The key holds the fork's number.
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

/// Decodes the evidence of a fork; `None` if the row is an entry.
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
