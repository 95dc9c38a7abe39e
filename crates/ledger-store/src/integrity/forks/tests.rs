use std::collections::BTreeMap;

use ledger_core::{Entry, Epoch, Hash, HashSuite, Key, Lineage, slot::Slot};
use proptest::prelude::*;

use super::{
    evidence::{decode, encode},
    *,
};
use crate::{
    Filter, Ledger, Page,
    testing::{self, Writer},
    write::state::ContextState,
};

fn evidence() -> Evidence {
    let theirs = Tip { size: Size(9), root: Hash([9; 32]), epoch: Epoch::new(4, 2) };
    Evidence { theirs, reason: "the owner's history differs".to_owned() }
}

type Row = (Vec<u8>, Vec<u8>);

/// All rows but those that a fork adds.
fn rows(db: &Db) -> BTreeMap<&'static str, Vec<Row>> {
    let families = families::ALL.into_iter().filter(|family| *family != families::FORKS);
    families
        .map(|family| {
            let mut rows = Vec::new();
            db.scan(family, &[], &[0xff; 30], false, |key, value| {
                if key != NUMBERS {
                    rows.push((key.to_vec(), value.to_vec()));
                }
                true
            })
            .unwrap();
            (family, rows)
        })
        .collect()
}

fn fork_rows(db: &Db) -> usize {
    let mut count = 0;
    db.scan(families::FORKS, &[], &[0xff; 30], false, |_, _| {
        count += 1;
        true
    })
    .unwrap();
    count
}

/// All entries of a fork, in pages.
fn all_entries(db: &Db, context: &ContextId, fork: u64, max_bytes: usize) -> Vec<Entry> {
    let mut filter = Filter { max_bytes, ..Filter::default() };
    let mut all = Vec::new();
    loop {
        let page = entries(db, context, fork, &filter).unwrap();
        all.extend(page.entries);
        filter.after = page.covered;
        if !page.more {
            return all;
        }
    }
}

/// A context of `size` entries leaves those after `common`. Everything must then be as if it had never had them,
/// and stay so when it goes on.
fn leaving(size: usize, common: usize, suite: HashSuite, then: &[usize]) {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (db, other_db) = (testing::open(dir.path()), testing::open(other_dir.path()));
    index::ensure(&db).unwrap();
    index::ensure(&other_db).unwrap();
    let mut writer = Writer::of(&db, "c", 5, suite);
    writer.append(common).in_epoch(Epoch::new(2, 7)).append_saying(size - common, "left");
    let context = writer.context.clone();
    let mut batch = WriteBatch::default();
    index::put(&db, &mut batch, &context).unwrap();
    db.write(batch).unwrap();
    let (was, all) = (writer.extent(), std::mem::take(&mut writer.all));

    let left = fork_off(&db, &context, Size(common as u64), &evidence()).unwrap();
    assert_eq!((left.was, left.fork), (Some(was), Some(1)));
    let info = list(&db, None, None, 10).unwrap().forks.remove(0);
    assert_eq!((&info.context, info.fork, info.common.0), (&context, 1, common as u64));
    assert_eq!((info.ours.size, info.ours.root, info.ours.epoch), (was.size, was.root, Epoch::new(2, 7)));
    assert_eq!((info.theirs, info.suite, info.lineage), (evidence().theirs, suite, Lineage([7; 16])));
    assert_eq!(info.reason, evidence().reason);
    assert!(info.left_at_ns > 0);
    assert_eq!(all_entries(&db, &context, 1, 1 << 20), all[common..]);

    // One that never had them.
    let mut other = Writer::of(&other_db, "c", 5, suite);
    if common == 0 {
        assert_eq!(left.now, None);
        assert_eq!(rows(&db), rows(&other_db));
        assert_eq!(read_head(&db, &context).unwrap(), None);
        return;
    }
    let mut batch = WriteBatch::default();
    index::put(&other_db, &mut batch, &context).unwrap();
    // The same entries: the writer's ids are its own.
    let mut buffer = Vec::new();
    for entry in &all[..common] {
        let is_chosen = entry.sequence.0.is_multiple_of(3);
        record::encode_entry(entry, is_chosen, &mut buffer).unwrap();
        other.state.accept(&other_db, &mut batch, &context, entry, is_chosen, &buffer).unwrap();
    }
    other.state.put_head(&other_db, &mut batch, &context, &mut buffer).unwrap();
    other_db.write(batch).unwrap();
    assert_eq!(left.now, Some(other.extent()));
    assert_eq!(read_head(&db, &context).unwrap().unwrap().1, other.state.head);
    for (family, rows) in rows(&db) {
        assert!(rows == self::rows(&other_db)[family], "{family} after {common} of {size}");
    }

    // Both go on; what is appended to the one is taken by the other, and every root is the same.
    let mut writer = Writer::resume(&db, &context, &all[..common]);
    for count in then {
        let from = writer.all.len();
        writer.append_saying(*count, "later");
        let mut batch = WriteBatch::default();
        for entry in &writer.all[from..] {
            let is_chosen = entry.sequence.0.is_multiple_of(3);
            record::encode_entry(entry, is_chosen, &mut buffer).unwrap();
            other.state.accept(&other_db, &mut batch, &context, entry, is_chosen, &buffer).unwrap();
        }
        other.state.put_head(&other_db, &mut batch, &context, &mut buffer).unwrap();
        other_db.write(batch).unwrap();
        assert_eq!(writer.position(), other.position());
        assert_eq!(ContextState::load(&db, &context).unwrap().unwrap().head, other.state.head);
        for size in [1, common, common + 1, writer.all.len() / 2 + 1, writer.all.len()] {
            let root = |db| prove::checkpoint(db, &context, Some(Size(size as u64)), suite).unwrap().position;
            assert_eq!(root(&db), root(&other_db), "at {size}");
        }
    }
    for (family, rows) in rows(&db) {
        assert!(rows == self::rows(&other_db)[family], "{family} after going on");
    }
    assert_eq!(all_entries(&db, &context, 1, 5000), all[common..], "the fork stays as it is");
}

#[test]
fn after_leaving_a_context_is_as_if_it_had_never_had_what_it_left() {
    for (size, common) in [
        (1, 0),
        (300, 0),
        (2, 1),
        (256, 255),
        (257, 255),
        (257, 256),
        (258, 257),
        (600, 256),
        (600, 257),
        (65_600, 65_535),
        (65_600, 65_536),
        (65_600, 65_537),
        (66_100, 65_792),
        (66_100, 300),
    ] {
        leaving(size, common, HashSuite::Blake3, &[1, 254, 1, 1, 600]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn after_leaving_at_any_size_the_roots_are_those_of_one_that_never_had_the_suffix(
        common in prop_oneof![0_usize..4, 250..260_usize, 508..516_usize, 0..1500_usize],
        more in prop_oneof![1_usize..4, 250..260_usize, 1..1500_usize],
        then in prop::collection::vec(prop_oneof![1_usize..4, 250..260_usize, 1..700_usize], 1..4),
        is_sha in any::<bool>(),
    ) {
        let suite = if is_sha { HashSuite::Sha256 } else { HashSuite::Blake3 };
        leaving(common + more, common, suite, &then);
    }
}

#[test]
fn where_there_is_nothing_to_leave_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut writer = Writer::new(&db, "c", 1);
    writer.append(5);
    let before = rows(&db);
    let extent = Some(writer.extent());
    let left = fork_off(&db, &writer.context, Size(5), &evidence()).unwrap();
    assert_eq!(left, ForkResult { fork: None, was: extent, now: extent });
    let unknown = ContextId::new("unknown").unwrap();
    assert_eq!(
        fork_off(&db, &unknown, Size(0), &evidence()).unwrap(),
        ForkResult { fork: None, was: None, now: None }
    );
    for (context, common, size) in [(&writer.context, 6, 5), (&unknown, 1, 0)] {
        let error = fork_off(&db, context, Size(common), &evidence()).unwrap_err();
        assert!(matches!(error, StoreError::OutOfRange { size: has, .. } if has == size), "{error}");
    }
    assert_eq!(rows(&db), before);
    assert_eq!(fork_rows(&db), 0);
}

/// Copies what is on disk, as a crash would leave it.
fn crash(db: Db, dir: &std::path::Path) -> Db {
    // Without closing: the log is replayed.
    db.sync().unwrap();
    drop(db);
    let db = testing::open(dir);
    clean_up(&db);
    db
}

#[test]
fn a_fork_that_a_failed_disk_interrupted_is_undone_when_the_database_is_reopened() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), testing::options()).unwrap();
    let database = &ledger.store().database;
    let db = database.get().unwrap();
    let mut writer = Writer::new(&db, "c", 1 << 40);
    writer.append(10);
    let (context, place, head) = (writer.context.clone(), writer.state.place, writer.state.head.clone());
    let before = rows(&db);
    copy(&db, &context, &head, Size(3), begin(&db, place).unwrap()).unwrap();
    assert_eq!(fork_rows(&db), 7);
    drop(db);
    database.reopen().unwrap();
    let db = database.get().unwrap();
    assert_eq!(fork_rows(&db), 0);
    let after = rows(&db);
    // Ids that the ledger generated get rows too: a record does not always say who chose the id.
    assert!(before[families::IDS].iter().all(|row| after[families::IDS].contains(row)));
    assert_eq!(
        (&after[families::ENTRIES], &after[families::META]),
        (&before[families::ENTRIES], &before[families::META])
    );
}

#[test]
fn what_a_crash_leaves_before_the_switch_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut writer = Writer::new(&db, "c", 1);
    // Entries of which each fills a batch.
    writer.append(500).append_saying(6, &"x".repeat(BATCH_BYTES));
    let (context, place, head) = (writer.context.clone(), writer.state.place, writer.state.head.clone());
    let all = std::mem::take(&mut writer.all);
    let before = rows(&db);

    let fork = begin(&db, place).unwrap();
    let db = crash(db, dir.path());
    assert_eq!(rows(&db), before, "it had only begun");

    let db = {
        copy(&db, &context, &head, Size(300), begin(&db, place).unwrap()).unwrap();
        assert!(rows(&db)[families::IDS].len() < before[families::IDS].len());
        assert_eq!(fork_rows(&db), 206);
        assert_eq!(list(&db, None, None, 10).unwrap(), ForkList::default(), "it is no fork yet");
        crash(db, dir.path())
    };
    assert_ids_serve(&db, place, &all);
    assert_eq!(fork_rows(&db), 0);
    // It is undone in pieces: a crash in between leaves a part of it.
    let db = {
        let fork = begin(&db, place).unwrap();
        copy(&db, &context, &head, Size(300), fork).unwrap();
        let mut batch = WriteBatch::default();
        let sequence = Sequence(301);
        batch.delete_cf(db.family(families::FORKS).unwrap(), fork.row(sequence));
        let id = place.id(&all[300].id);
        batch.put_cf(db.family(families::IDS).unwrap(), id, sequence.0.to_be_bytes());
        db.write(batch).unwrap();
        crash(db, dir.path())
    };
    assert_ids_serve(&db, place, &all);
    assert_eq!((fork_rows(&db), rows(&db)[families::META].len()), (0, before[families::META].len()));

    // And then it is left for good, under a number of its own.
    let left = fork_off(&db, &context, Size(300), &evidence()).unwrap();
    assert!(left.fork > Some(fork.number));
    let db = crash(db, dir.path());
    let list = list(&db, Some(&context), None, 10).unwrap();
    assert_eq!(list.forks.len(), 1);
    assert_eq!(all_entries(&db, &context, list.forks[0].fork, 1), all[300..]);
    assert_eq!(ContextState::load(&db, &context).unwrap().unwrap().head.size(), Size(300));
}

/// Every id that the writer chose leads to its entry.
fn assert_ids_serve(db: &Db, place: RowLocation, all: &[Entry]) {
    for entry in all.iter().filter(|entry| entry.sequence.0.is_multiple_of(3)) {
        let found = db.get(families::IDS, &place.id(&entry.id), <[u8]>::to_vec).unwrap();
        assert_eq!(found, Some(entry.sequence.0.to_be_bytes().to_vec()), "entry {}", entry.sequence);
    }
}

#[test]
fn a_history_that_cannot_be_left_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut writer = Writer::new(&db, "c", 1);
    writer.append(400);
    let place = writer.state.place;
    let mut batch = WriteBatch::default();
    batch.put_cf(db.family(families::ENTRIES).unwrap(), place.entry(Sequence(350)), b"other bytes");
    db.write(batch).unwrap();
    let before = rows(&db)[families::HEADS].clone();
    let error = fork_off(&db, &writer.context, Size(100), &evidence()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { sequence: Sequence(350), .. }), "{error}");
    assert_eq!(rows(&db)[families::HEADS], before);
    assert_eq!((fork_rows(&db), list(&db, None, None, 1).unwrap().forks.len()), (0, 0));
    assert_ids_serve(&db, place, &writer.all);
    assert!(!rows(&db)[families::META].iter().any(|(key, _)| key.starts_with(LEAVING)));
}

#[test]
fn whoever_reads_a_history_while_it_is_left_does_not_take_it_for_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut writer = Writer::new(&db, "c", 1);
    writer.append(600);
    let (context, place, head) = (writer.context.clone(), writer.state.place, writer.state.head.clone());
    let read =
        || pages::page_at(&db, &context, place, &head, &Filter::default()).map(|page| page.entries.len());
    let moved = || pages::moved(&db, &context, place, &head).unwrap();
    assert_eq!((read().unwrap(), moved()), (600, false));

    fork_off(&db, &context, Size(300), &evidence()).unwrap();
    assert!(matches!(read(), Err(StoreError::Damaged { sequence: Sequence(301), .. })));
    assert!(moved(), "it is shorter");
    let mut writer = Writer::resume(&db, &context, &writer.all[..300]);
    writer.in_epoch(Epoch::new(2, 2)).append(400);
    assert!(moved(), "it has grown again, to another history");

    // Damage is something else.
    let head = writer.state.head.clone();
    let mut batch = WriteBatch::default();
    batch.delete_cf(db.family(families::ENTRIES).unwrap(), place.entry(Sequence(650)));
    db.write(batch).unwrap();
    writer.append(5);
    assert!(!pages::moved(&db, &context, place, &head).unwrap());
    fork_off(&db, &context, Size(0), &evidence()).unwrap_err();
    let page = pages::page(&db, &context, &Filter::default()).unwrap_err();
    assert!(matches!(page, StoreError::Damaged { sequence: Sequence(650), .. }), "{page}");
}

#[test]
fn forks_are_listed_in_parts_and_by_context() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut expected = BTreeMap::new();
    for round in 0..3_u64 {
        for number in 0..40 {
            let name = format!("c-{number}");
            // Whatever was there before is another history: its rows are under another number.
            let mut writer = Writer::new(&db, &name, 100 * round + number);
            writer.append(20);
            let fork = fork_off(&db, &writer.context, Size(round), &evidence()).unwrap().fork.unwrap();
            expected.insert(fork, (name, round));
        }
    }
    assert!(expected.keys().copied().eq(1..=120));
    for limit in [1, 7, 119, 120, 1000] {
        let (mut found, mut after, mut parts) = (BTreeMap::new(), None, 0);
        loop {
            let part = list(&db, None, after, limit).unwrap();
            assert!(part.forks.len() <= limit);
            for info in part.forks {
                let value = (info.context.as_str().to_owned(), info.common.0);
                assert_eq!(found.insert(info.fork, value), None);
            }
            parts += 1;
            after = part.next.map(|next| ForkCursor::from_bytes(next.to_bytes()));
            if after.is_none() {
                break;
            }
        }
        assert_eq!(parts, 120_usize.div_ceil(limit));
        assert_eq!(found, expected);
    }
    let context = ContextId::new("c-7").unwrap();
    let of_one = list(&db, Some(&context), None, 10).unwrap();
    assert_eq!(of_one.forks.iter().map(|info| info.common.0).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(of_one.next, None);
    let first = list(&db, Some(&context), None, 1).unwrap();
    assert_eq!(list(&db, Some(&context), first.next, 10).unwrap().forks, of_one.forks[1..]);
    for bytes in [[0xff; 18], [0; 18]] {
        let after = Some(ForkCursor::from_bytes(bytes));
        let expected = if bytes[0] == 0 { 3 } else { 0 };
        assert_eq!(list(&db, Some(&context), after, 10).unwrap().forks.len(), expected);
    }
}

#[test]
fn a_forks_entries_are_read_as_a_filter_says() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut writer = Writer::new(&db, "c", 1);
    writer.append(500);
    let context = writer.context.clone();
    let fork = fork_off(&db, &context, Size(200), &evidence()).unwrap().fork.unwrap();
    let read = |filter: Filter| entries(&db, &context, fork, &filter).unwrap();
    let sequences = |page: &Page| page.entries.iter().map(|entry| entry.sequence.0).collect::<Vec<_>>();

    let rare = read(Filter { key: Some(Key::new("rare").unwrap()), ..Filter::default() });
    assert_eq!(sequences(&rare), [250, 300, 350, 400, 450, 500]);
    assert_eq!((rare.latest, rare.covered, rare.more), (Size(500), Sequence(500), false));
    let limited = read(Filter { limit: 3, ..Filter::default() });
    assert_eq!((sequences(&limited), limited.more), (vec![201, 202, 203], true));
    let after = read(Filter { after: Sequence(498), limit: 2, ..Filter::default() });
    assert_eq!((sequences(&after), after.more), (vec![499, 500], false));
    let one = read(Filter { max_bytes: 1, ..Filter::default() });
    assert_eq!((sequences(&one), one.covered, one.more), (vec![201], Sequence(201), true));
    let none = read(Filter { limit: 0, ..Filter::default() });
    assert_eq!((sequences(&none), none.covered, none.more), (vec![], Sequence(200), true));
    let beyond = read(Filter { after: Sequence(u64::MAX), ..Filter::default() });
    assert_eq!((sequences(&beyond), beyond.more), (vec![], false));

    let error = entries(&db, &context, fork + 1, &Filter::default()).unwrap_err();
    assert!(matches!(error, StoreError::NoSuchFork { .. }), "{error}");
    let mut batch = WriteBatch::default();
    let row = ForkRows { place: writer.state.place, number: fork }.row(Sequence(300));
    batch.delete_cf(db.family(families::FORKS).unwrap(), row);
    db.write(batch).unwrap();
    let error = entries(&db, &context, fork, &Filter::default()).unwrap_err();
    assert!(error.to_string().contains("entry 300 of fork 1 of context c is damaged"), "{error}");
}

#[test]
fn evidence_is_golden_and_comes_back_as_it_was() {
    let context = ContextId::new("c").unwrap();
    let info = ForkInfo {
        context: context.clone(),
        fork: 3,
        common: Size(2),
        ours: Tip { size: Size(300), root: Hash([1; 32]), epoch: Epoch(5) },
        theirs: Tip { size: Size(4), root: Hash([2; 32]), epoch: Epoch(6) },
        lineage: Lineage([7; 16]),
        suite: HashSuite::Sha256,
        left_at_ns: 8,
        reason: "why".to_owned(),
    };
    let mut bytes = Vec::new();
    encode(&info, &mut bytes).unwrap();
    let (body, _) = bytes.split_last_chunk::<4>().unwrap();
    let (lineage, ours, theirs) = ("07".repeat(16), "01".repeat(32), "02".repeat(32));
    assert_eq!(
        hex::encode(body),
        format!("0101630 2{lineage}02fb2c01{ours}0504{theirs}060803776879").replace(' ', "")
    );
    let fork = ForkRows { place: RowLocation { slot: Slot::of(&context), number: 1 }, number: 3 };
    let row = fork.row(Sequence(0));
    assert_eq!(decode(&row, &bytes).unwrap(), Some((fork, info.clone())));
    assert_eq!(decode(&fork.row(Sequence(1)), &bytes).unwrap(), None);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&row, &flipped).is_err());
    }
    // A long reason is cut between characters.
    encode(&ForkInfo { reason: "ä".repeat(1000), ..info }, &mut bytes).unwrap();
    let (_, info) = decode(&row, &bytes).unwrap().unwrap();
    assert_eq!(info.reason, "ä".repeat(512));
}

#[test]
fn a_ledger_shows_its_forks_and_goes_on_with_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let context = ContextId::new("c").unwrap();
    let append = |ledger: &Ledger, text: &str| {
        let draft = ledger_core::entry::Draft {
            key: Key::new("facts").unwrap(),
            payload: text.to_owned().into(),
            metadata: [].into(),
        };
        ledger.append(&context, draft).unwrap().entry
    };
    let ledger = Ledger::open_with(dir.path(), testing::options()).unwrap();
    let all: Vec<_> = (0..10).map(|n| append(&ledger, &n.to_string())).collect();
    ledger.close().unwrap();
    drop(ledger);
    let db = testing::open(&dir.path().join("db"));
    fork_off(&db, &context, Size(4), &evidence()).unwrap();
    let (place, head) = read_head(&db, &context).unwrap().unwrap();
    copy(&db, &context, &head, Size(1), begin(&db, place).unwrap()).unwrap();
    assert_eq!(fork_rows(&db), 7 + 3);
    drop(db);

    let ledger = Ledger::open_with(dir.path(), testing::options()).unwrap();
    let forks = ledger.forks(Some(&context), None, 10).unwrap().forks;
    assert_eq!((forks.len(), forks[0].common, forks[0].ours.size), (1, Size(4), Size(10)));
    let page = ledger.fork_entries(&context, forks[0].fork, &Filter::default()).unwrap();
    assert_eq!(page.entries, all[4..]);
    let next = append(&ledger, "another");
    assert_eq!(next.sequence, Sequence(5));
    assert!(next.lamport > all[3].lamport);
    let page = ledger.get(&context, &Filter::default()).unwrap();
    assert_eq!(page.entries, [&all[..4], &[next]].concat());
    assert!(ledger.damage().is_empty());
    ledger.close().unwrap();
    drop(ledger);
    let db = testing::open(&dir.path().join("db"));
    assert_eq!(fork_rows(&db), 7, "what was not finished is undone");
}

/// `cargo test --release -p ledger-store -- --ignored a_million_entries --nocapture`
#[test]
#[ignore = "measures"]
fn leaving_a_million_entries_takes_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open_with(dir.path(), &crate::Options::default());
    let mut writer = Writer::new(&db, "c", 1);
    for _ in 0..1000 {
        writer.append_saying(1001, &"x".repeat(200));
    }
    let begun = std::time::Instant::now();
    fork_off(&db, &writer.context, Size(1000), &evidence()).unwrap();
    println!("a million entries left: {:?}", begun.elapsed());
    let begun = std::time::Instant::now();
    ContextState::load(&db, &writer.context).unwrap().unwrap();
    println!("the state read again: {:?}", begun.elapsed());
}
