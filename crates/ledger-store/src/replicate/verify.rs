//! Verifies entries from another node before any of them is staged: each against its hash, and all against the
//! history's root.

use ledger_core::{ContextId, Head, Sequence, tree::tile::TILE_HEIGHT};

use crate::{EntryRange, StoreError, engine::record, write::state::VerifiedEntries};

/// The result of checking a range.
pub(crate) enum RangeCheck {
    /// All of it continues the history.
    Continues(VerifiedEntries),
    /// It belongs to another history.
    Diverged,
}

/// Checks all entries of a range but the first `skip`, on a copy of the head, so that nothing of a bad range is
/// staged.
pub(crate) fn check(
    context: &ContextId,
    head: &Head,
    range: &EntryRange,
    skip: u64,
) -> Result<RangeCheck, StoreError> {
    Ok(match verify(context, head, range, skip)? {
        Some(verified) if verified.root == range.root => RangeCheck::Continues(verified),
        _ => RangeCheck::Diverged,
    })
}

/// Does what [`check`] does, without comparing the root. Returns `None` if overlapping entries differ from those here.
pub(crate) fn verify(
    context: &ContextId,
    head: &Head,
    range: &EntryRange,
    skip: u64,
) -> Result<Option<VerifiedEntries>, StoreError> {
    let mut head = head.clone();
    let mut completed = Vec::new();
    let mut entries =
        Vec::with_capacity(usize::try_from(range.count - skip).unwrap_or_default().min(1 << 16));
    let invalid =
        |reason: String| StoreError::Io(format!("what was sent of context {context} is refused: {reason}"));
    for (index, raw) in (0..).zip(range.each_record()) {
        if index < skip {
            continue;
        }
        let sequence = Sequence(range.after.size.0 + index + 1);
        let view = record::view_entry(sequence, &raw).map_err(|error| invalid(error.to_string()))?;
        let is_id_chosen = view.is_id_chosen;
        let mut entry = view.to_entry(context)?;
        // The entry's payload is a copy of bytes in its record: share the record instead of keeping both.
        if let Some(at) = find(&raw, &entry.payload) {
            entry.payload = raw.slice(at..at + entry.payload.len());
        }
        ledger_core::entry::check_metadata(&entry.metadata)?;
        let size = sequence.0;
        let verified = head.verify_next(context, &entry, |height, hash| {
            if height.is_multiple_of(TILE_HEIGHT) {
                completed.push((size, height, hash));
            }
        });
        match verified {
            Ok(()) => entries.push((raw, entry, is_id_chosen)),
            // If overlapping entries differ from those here, the first new entry does not continue this history.
            Err(_) if skip > 0 => return Ok(None),
            Err(error) => return Err(invalid(error.to_string())),
        }
    }
    let root = head.root();
    Ok(Some(VerifiedEntries { head, root, entries, completed }))
}

/// Returns the offset of a payload in its record: it is the last field before the checksum.
fn find(raw: &[u8], payload: &[u8]) -> Option<usize> {
    let at = raw.len().checked_sub(4 + payload.len())?;
    (raw.get(at..at + payload.len())? == payload).then_some(at)
}
