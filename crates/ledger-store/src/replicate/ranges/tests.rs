use ledger_core::{Head, slot::Slot};
use rocksdb::WriteBatch;

use super::*;
use crate::{
    engine::families::RowLocation,
    testing::{self, Writer},
    write::state::ContextState,
};

/// Applies ranges as a replica does, and returns the resulting state.
fn take(db: &Db, context: &ContextId, ranges: &[EntryRange]) -> ContextState {
    let first = &ranges[0];
    let place = RowLocation { slot: Slot::of(context), number: 9 };
    let mut state = ContextState::new(place, Head::new(first.suite, first.lineage, first.created_at_ns));
    for range in ranges {
        assert_eq!((state.head.size(), state.head.root()), (range.after.size, range.after.root));
        let mut batch = WriteBatch::default();
        let (mut rest, mut count) = (&range.records[..], 0);
        while let Some((len, more)) = rest.split_first_chunk::<4>() {
            let (record, more) = more.split_at(u32::from_le_bytes(*len) as usize);
            let sequence = state.head.size().newest().0 + 1;
            let entry = record::decode_entry(context, Sequence(sequence), record).unwrap();
            state.accept(db, &mut batch, context, &entry, false, record).unwrap();
            (rest, count) = (more, count + 1);
        }
        assert_eq!(count, range.count);
        assert_eq!(state.head.root(), range.root);
        db.write_unsynced(batch).unwrap();
    }
    state
}

#[test]
fn a_history_read_in_ranges_is_the_same_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    for (number, suite) in [(1, HashSuite::Blake3), (2, HashSuite::Sha256)] {
        let mut writer = Writer::of(&db, &format!("c-{number}"), number, suite);
        writer.append(3000);
        let to = writer.extent().size;
        for max_bytes in [1, 10_000, 1 << 20] {
            let mut ranges: Vec<EntryRange> = Vec::new();
            // One at a time is slow for so many.
            let to = if max_bytes == 1 { Size(300) } else { to };
            let mut after = Size(0);
            while after < to {
                let range = read(&db, &writer.context, after, to, max_bytes).unwrap();
                assert_eq!(range.after.size, after);
                assert!(range.count == 1 || range.records.len() <= max_bytes);
                assert!(max_bytes > 1 || range.count == 1);
                after = Size(after.0 + range.count);
                ranges.push(range);
            }
            assert_eq!(after, to);
            let other = tempfile::tempdir().unwrap();
            let state = take(&testing::open(other.path()), &writer.context, &ranges);
            if to == writer.extent().size {
                assert_eq!(state.head, writer.state.head);
            }
        }
    }
}

#[test]
fn a_range_ends_where_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut writer = Writer::new(&db, "c", 1);
    writer.append(700);
    for (after, to) in [(0, 1), (255, 256), (256, 257), (100, 600), (699, 700), (0, 700)] {
        let range = read(&db, &writer.context, Size(after), Size(to), usize::MAX).unwrap();
        assert_eq!((range.after.size.0, range.count), (after, to - after));
        assert_eq!((range.lineage, range.created_at_ns), (writer.state.head.lineage, 11));
    }
}

#[test]
fn a_history_that_is_shorter_or_missing_is_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut writer = Writer::new(&db, "c", 1);
    writer.append(10);
    let unknown = ContextId::new("unknown").unwrap();
    for (context, after, to, size) in [
        (&writer.context, 5, 11, 10),
        (&writer.context, 11, 12, 10),
        (&writer.context, 5, 5, 10),
        (&writer.context, 6, 5, 10),
        (&writer.context, u64::MAX - 1, u64::MAX, 10),
        (&unknown, 0, 1, 0),
    ] {
        let error = read(&db, context, Size(after), Size(to), 100).unwrap_err();
        let is_said = matches!(&error, StoreError::OutOfRange { size: said, .. } if *said == size);
        assert!(is_said, "{error}");
    }
}

#[test]
fn a_damaged_record_is_never_sent() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut writer = Writer::new(&db, "c", 1);
    writer.append(20);
    let mut batch = WriteBatch::default();
    let family = db.family(families::ENTRIES).unwrap();
    batch.put_cf(family, writer.state.place.entry(Sequence(7)), b"other bytes");
    batch.delete_cf(family, writer.state.place.entry(Sequence(12)));
    db.write(batch).unwrap();
    let read = |after, to| read(&db, &writer.context, Size(after), Size(to), usize::MAX);
    let damaged_at = |error| match error {
        StoreError::Damaged { sequence, .. } => sequence.0,
        error => panic!("{error}"),
    };
    assert_eq!(damaged_at(read(0, 20).unwrap_err()), 7);
    assert_eq!(damaged_at(read(11, 20).unwrap_err()), 12);
}

/// `cargo test --release -p ledger-store -- --ignored a_million_entries --nocapture`
#[test]
#[ignore = "measures"]
fn a_million_entries_are_read_in_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open_with(dir.path(), &crate::Options::default());
    let mut writer = Writer::new(&db, "c", 1);
    for _ in 0..1000 {
        writer.append_saying(1000, &"x".repeat(256));
    }
    for max_bytes in [256 << 10, 1 << 20, 4 << 20] {
        let (mut after, mut ranges, to) = (Size(0), 0, writer.extent().size);
        let begun = std::time::Instant::now();
        while after < to {
            after.0 += read(&db, &writer.context, after, to, max_bytes).unwrap().count;
            ranges += 1;
        }
        let rate = to.0 as f64 / begun.elapsed().as_secs_f64();
        println!("{rate:.0} entries/s in {ranges} ranges of {max_bytes} bytes");
    }
}
