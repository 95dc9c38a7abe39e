//! The slot index lists the contexts of a slot, bucket by bucket, without reading all heads.
//!
//! A context has an index row exactly while it has a head: one batch writes, or removes, both.

use std::collections::BTreeSet;

use ledger_core::{ContextId, digest::Bucket, slot::Slot};
use rocksdb::WriteBatch;

use crate::{
    StoreError, directory::meta, engine::db::Db, engine::errors::io_error, engine::families,
    engine::rows::Rows, limited,
};

/// In `meta`: the index is complete. Directories of builds without an index lack this row.
const WHOLE: &[u8] = b"slot-index";
/// Version of the index rows.
const VERSION: [u8; 1] = [1];
/// Size of one write while the index is built, in bytes.
const REBUILD_BATCH_BYTES: usize = 1 << 20;

fn prefix(slot: Slot, bucket: Bucket) -> [u8; 3] {
    let [first, second] = slot.number().to_be_bytes();
    [first, second, bucket.0]
}

fn key(context: &ContextId) -> Vec<u8> {
    [&prefix(Slot::of(context), Bucket::of(context))[..], context.as_str().as_bytes()].concat()
}

/// Adds a new context's row to the batch of its first head.
pub(crate) fn put(db: &Db, batch: &mut WriteBatch, context: &ContextId) -> Result<(), StoreError> {
    batch.put_cf(db.family(families::SLOTS)?, key(context), []);
    Ok(())
}

/// Adds the removal of a context's row to the batch that removes its head.
pub(crate) fn remove(db: &Db, batch: &mut WriteBatch, context: &ContextId) -> Result<(), StoreError> {
    batch.delete_cf(db.family(families::SLOTS)?, key(context));
    Ok(())
}

/// Returns whether the index has a context: it has a head then, or lost one to damage.
pub(crate) fn has(rows: &impl Rows, context: &ContextId) -> Result<bool, StoreError> {
    let row = rows.get(families::SLOTS, &key(context), |_| ());
    row.map(|row| row.is_some()).map_err(|error| io_error(&error))
}

/// Calls `visit` with the contexts of each bucket in order, starting after `after`. When `visit` returns false, the
/// scan continues with the next bucket.
pub(crate) fn scan(
    rows: &impl Rows,
    slot: Slot,
    buckets: &BTreeSet<Bucket>,
    after: Option<&ContextId>,
    mut visit: impl FnMut(&str) -> bool,
) -> Result<(), StoreError> {
    // The key of the next slot's record sorts before that slot's first bucket.
    let Some(mut cursor) = rows.cursor(families::SLOTS, &(slot.number() + 1).to_be_bytes()) else {
        return Ok(());
    };
    // The cursor is beyond the buckets read so far. Seeking is what costs, so do it only when needed.
    let mut next = None;
    for bucket in buckets {
        let prefix = prefix(slot, *bucket);
        match (next, after) {
            (Some(next), _) if *bucket < next => continue,
            (Some(next), None) if *bucket == next => {}
            // The smallest key beyond this one.
            (_, Some(after)) => cursor.seek([&prefix[..], after.as_str().as_bytes(), &[0]].concat()),
            (_, None) => cursor.seek(prefix),
        }
        while let Some(name) = cursor.key().and_then(|row| row.strip_prefix(&prefix)) {
            match std::str::from_utf8(name) {
                Ok(name) if !visit(name) => break,
                Ok(_) => {}
                Err(_) => limited!(error, ?name, "the slot index has a malformed name"),
            }
            cursor.next();
        }
        cursor.status().map_err(|error| io_error(&error))?;
        let Some(row) = cursor.key() else { break };
        next = row.get(prefix.len() - 1).copied().map(Bucket);
    }
    Ok(())
}

/// Calls `visit` with the contexts of all slots, ordered by slot, bucket and name.
pub(crate) fn everything(rows: &impl Rows, mut visit: impl FnMut(Slot, &str)) -> Result<(), StoreError> {
    rows.scan(families::SLOTS, &[], &[0xff], false, |row, _| {
        let Some((slot, [_, name @ ..])) = row.split_first_chunk::<2>() else { return true };
        let slot = Slot::new(u16::from_be_bytes(*slot));
        if let (Some(slot), Ok(name)) = (slot, std::str::from_utf8(name)) {
            visit(slot, name);
        }
        true
    })
    .map_err(|error| io_error(&error))
}

/// Does what [`scan`] does from the names of the heads, for a damaged index. Within a slot the contexts come in name
/// order.
pub(crate) fn scan_heads(
    rows: &impl Rows,
    slot: Slot,
    buckets: &BTreeSet<Bucket>,
    after: Option<&ContextId>,
    mut visit: impl FnMut(&str) -> bool,
) -> Result<(), StoreError> {
    let first = after.map_or_else(Vec::new, |after| [after.as_str().as_bytes(), &[0]].concat());
    rows.scan(families::HEADS, &first, &[0xff], false, |name, _| {
        let name = std::str::from_utf8(name).ok().and_then(|name| ContextId::new(name).ok());
        match name.filter(|name| Slot::of(name) == slot && buckets.contains(&Bucket::of(name))) {
            Some(name) => visit(name.as_str()),
            None => true,
        }
    })
    .map_err(|error| io_error(&error))
}

/// Builds the index of a directory that lacks one. After a crash it starts over.
pub(crate) fn ensure(db: &Db) -> Result<(), StoreError> {
    if meta::read::<1>(db, WHOLE)?.is_some() {
        return Ok(());
    }
    let (mut batch, mut contexts) = (WriteBatch::default(), 0_u64);
    let mut written = Ok(());
    db.scan(families::HEADS, &[], &[0xff], false, |name, _| {
        let Some(context) = std::str::from_utf8(name).ok().and_then(|name| ContextId::new(name).ok()) else {
            limited!(error, ?name, "a head has a malformed name");
            return true;
        };
        contexts += 1;
        written = put(db, &mut batch, &context);
        if written.is_ok() && batch.size_in_bytes() >= REBUILD_BATCH_BYTES {
            written = db.write_unsynced(std::mem::take(&mut batch));
        }
        written.is_ok()
    })
    .map_err(|error| io_error(&error))?;
    written?;
    // This row is the last one in the log: if it survives a crash, so do the others.
    batch.put_cf(db.family(families::META)?, WHOLE, VERSION);
    db.write_unsynced(batch)?;
    db.sync()?;
    if contexts > 0 {
        tracing::info!(contexts, "the slot index was made");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ledger_core::{
        Epoch,
        node::NodeId,
        ownership::{Claim, SlotRecord},
        slot::SLOTS,
    };

    use super::*;
    use crate::{directory::slot_records, testing};

    fn context(number: usize) -> ContextId {
        ContextId::new(format!("context-{number}")).unwrap()
    }

    /// Lists the whole index, in order.
    fn all(db: &Db) -> Vec<ContextId> {
        let mut found = Vec::new();
        for slot in (0..SLOTS).filter_map(Slot::new) {
            let buckets = (0..=u8::MAX).map(Bucket).collect();
            scan(&db.snapshot(), slot, &buckets, None, |name| {
                let context = ContextId::new(name).unwrap();
                assert_eq!(Slot::of(&context), slot);
                found.push(context);
                true
            })
            .unwrap();
        }
        found
    }

    #[test]
    fn keys_are_golden() {
        let context = ContextId::new("a").unwrap();
        let (slot, bucket) = (Slot::of(&context).number(), Bucket::of(&context).0);
        assert_eq!(hex::encode(key(&context)), format!("{slot:04x}{bucket:02x}61"));
    }

    /// Tests any buckets, any start name, and leaving a bucket early anywhere.
    #[test]
    fn a_scan_finds_what_a_look_at_each_name_would() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let slot = Slot::of(&context(0));
        let contexts: BTreeSet<_> =
            (0..).map(context).filter(|context| Slot::of(context) == slot).take(60).collect();
        let mut batch = WriteBatch::default();
        for context in &contexts {
            put(&db, &mut batch, context).unwrap();
        }
        db.write(batch).unwrap();
        let used: BTreeSet<_> = contexts.iter().map(Bucket::of).collect();
        for step in 1..=5 {
            let wanted: BTreeSet<_> = (0..=u8::MAX).step_by(step).map(Bucket).collect();
            for buckets in [&wanted & &used, wanted] {
                for after in [None, contexts.iter().nth(7 * step)] {
                    for most in [1, 2, usize::MAX] {
                        let mut found: BTreeMap<Bucket, Vec<ContextId>> = BTreeMap::new();
                        scan(&db.snapshot(), slot, &buckets, after, |name| {
                            let context = ContextId::new(name).unwrap();
                            let of_bucket = found.entry(Bucket::of(&context)).or_default();
                            of_bucket.push(context);
                            of_bucket.len() < most
                        })
                        .unwrap();
                        let mut expected: BTreeMap<Bucket, Vec<ContextId>> = BTreeMap::new();
                        for context in
                            contexts.iter().filter(|context| after.is_none_or(|after| *context > after))
                        {
                            let bucket = Bucket::of(context);
                            if buckets.contains(&bucket)
                                && expected.get(&bucket).is_none_or(|known| known.len() < most)
                            {
                                expected.entry(bucket).or_default().push(context.clone());
                            }
                        }
                        assert_eq!(found, expected, "every {step}th bucket, after {after:?}, at most {most}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_directory_from_before_gets_its_index_once() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let mut contexts: Vec<_> = (0..3000).map(context).collect();
        for context in &contexts {
            testing::Writer::new(&db, context.as_str(), 1).append(1);
        }
        assert!(all(&db).is_empty(), "heads alone do not make rows");
        ensure(&db).unwrap();
        contexts.sort_by_key(|context| (Slot::of(context), Bucket::of(context), context.clone()));
        assert_eq!(all(&db), contexts);

        let mut batch = WriteBatch::default();
        remove(&db, &mut batch, &contexts[7]).unwrap();
        db.write(batch).unwrap();
        ensure(&db).unwrap();
        assert_eq!(all(&db).len(), contexts.len() - 1, "a second time nothing is made");
    }

    #[test]
    fn the_index_and_the_records_of_slots_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let slots: Vec<_> = [0, 1, SLOTS - 1].into_iter().filter_map(Slot::new).collect();
        let claim = Claim { epoch: Epoch::new(3, 1), claimant: NodeId::new("a").unwrap(), storage: None };
        let record = SlotRecord { promised: Some(claim), ..SlotRecord::default() };
        let records: BTreeMap<_, _> = slots.iter().map(|slot| (*slot, record.clone())).collect();
        slot_records::write(&db, &records, None).unwrap();
        let mut batch = WriteBatch::default();
        let family = db.family(families::SLOTS).unwrap();
        for slot in &slots {
            for bucket in [Bucket(0), Bucket(u8::MAX)] {
                batch.put_cf(family, [&prefix(*slot, bucket)[..], b"c"].concat(), []);
            }
        }
        db.write(batch).unwrap();
        for slot in slots {
            assert_eq!(slot_records::read(&db, slot).unwrap(), record);
            for (bucket, rows) in [(0, 1), (1, 0), (254, 0), (255, 1)] {
                let mut found = 0;
                scan(&db.snapshot(), slot, &[Bucket(bucket)].into(), None, |name| {
                    assert_eq!(name, "c");
                    found += 1;
                    true
                })
                .unwrap();
                assert_eq!(found, rows, "bucket {bucket} of slot {}", slot.number());
            }
        }
        assert_eq!(slot_records::read(&db, Slot::new(2).unwrap()).unwrap(), SlotRecord::default());
    }
}
