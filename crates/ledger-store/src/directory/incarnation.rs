//! Numbers the starts in which this directory takes part in a cluster.

use std::time::{SystemTime, UNIX_EPOCH};

use ledger_core::node::Incarnation;
use rocksdb::WriteBatch;

use crate::{StoreError, directory::meta, engine::db::Db, engine::families};

/// A number of this size is no time in milliseconds: whoever announces it must not use up this directory's count.
const MAX_HEARD: u64 = 1 << 62;
const INCARNATION_KEY: &[u8] = b"incarnation";

/// Returns the number of the next start; it is on disk before it is returned. It is higher than any before, and at
/// least the wall-clock time in milliseconds. The clock serves a node whose disk was wiped: the node has forgotten
/// its starts, and its peers, which remember them, would otherwise take it for an outdated process.
pub(crate) fn next(db: &Db) -> Result<Incarnation, StoreError> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let kept = meta::read(db, INCARNATION_KEY)?.map_or(0, u64::from_be_bytes);
    let next = after(kept, u64::try_from(clock).unwrap_or(0))
        .ok_or_else(|| StoreError::Io("the count of starts is used up: the record is damaged".into()))?;
    let mut batch = WriteBatch::default();
    batch.put_cf(db.family(families::META)?, INCARNATION_KEY, next.to_be_bytes());
    db.write_unsynced(batch)?;
    db.sync()?;
    Ok(Incarnation(next))
}

/// Records that a later start of this node was heard of, so that the next one here is later still, even if the clock is
/// behind and the directory was empty. It is on disk when this returns.
pub(crate) fn record(db: &Db, heard: Incarnation) -> Result<(), StoreError> {
    let kept = meta::read(db, INCARNATION_KEY)?.map_or(0, u64::from_be_bytes);
    if !(kept..MAX_HEARD).contains(&heard.0) {
        return Ok(());
    }
    let mut batch = WriteBatch::default();
    batch.put_cf(db.family(families::META)?, INCARNATION_KEY, heard.0.to_be_bytes());
    db.write_unsynced(batch)?;
    db.sync()
}

fn after(kept: u64, clock: u64) -> Option<u64> {
    Some(kept.checked_add(1)?.max(clock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_counted_even_if_the_clock_went_back() {
        assert_eq!(after(7, 0), Some(8));
        assert_eq!(after(1_795_213_514_528, 5), Some(1_795_213_514_529));
        assert_eq!(after(u64::MAX, 5), None);
    }

    #[test]
    fn a_wiped_disk_starts_above_what_it_forgot() {
        let before = after(3, 1_795_213_514_528).unwrap();
        assert!(after(0, 1_795_213_514_529).unwrap() > before);
    }
}
