//! Damage: found by reads and by the scrub, named, never served as good, healed by a load.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use ledger_core::healing::{HealProof, LocalHead};
use ledger_store::{Filter, Ledger, Options, Sequence, StoreError};
use support::{append_many, context, copy_dir, draft, flipped, remove_row, small, tamper};

/// A ledger of a damaged context "c" of 700 entries and an intact context "other".
fn damaged(family: &str, row: usize, at: impl Fn(usize) -> usize) -> (tempfile::TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    append_many(&ledger, &context("c"), 700, &mut Vec::new());
    let snapshot = ledger.snapshot(&context("c")).unwrap().collect::<Result<Vec<_>, _>>().unwrap().concat();
    ledger.close().unwrap();
    drop(ledger);
    tamper(dir.path(), family, |number, _, value| (number == row).then(|| flipped(value, at(value.len()))));
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    ledger.append(&context("other"), draft("k", "x")).unwrap();
    (dir, snapshot)
}

fn sequence_of(error: &StoreError) -> u64 {
    match error {
        StoreError::Damaged { context, sequence, .. } if context.as_str() == "c" => sequence.0,
        error => panic!("expected damage of context c, got: {error}"),
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::yield_now();
    }
}

#[test]
fn a_flipped_byte_of_a_record_is_found_by_reading_and_named() {
    for (row, at) in [(0, 1), (122, 40), (400, 70), (699, 30)] {
        let (dir, _) = damaged("entries", row, |len| len - at);
        let ledger = Ledger::open_with(dir.path(), small()).unwrap();
        let read = ledger.get(&context("c"), &Filter::default()).unwrap_err();
        assert_eq!(sequence_of(&read), row as u64 + 1);
        // From then on the whole context is refused, by the same name.
        let page = ledger.get(&context("c"), &Filter { limit: 1, ..Filter::default() });
        assert_eq!(sequence_of(&page.unwrap_err()), row as u64 + 1);
        assert!(ledger.snapshot(&context("c")).is_err());
        assert_eq!(ledger.damage().len(), 1);
        assert_eq!(ledger.get(&context("other"), &Filter::default()).unwrap().entries.len(), 1);
    }
}

#[test]
fn the_scrub_finds_damage_nobody_reads() {
    let scrubbing = || Options { scrub_rate: 1 << 30, scrub_pause: Duration::from_millis(1), ..small() };
    for (family, row, expected) in [("entries", 300, 301), ("tiles", 0, 1), ("tiles", 1, 257)] {
        let (dir, _) = damaged(family, row, |len| if family == "tiles" { 5 } else { len - 1 });
        let ledger = Ledger::open_with(dir.path(), scrubbing()).unwrap();
        wait_until("the scrub's finding", || !ledger.damage().is_empty());
        let found = ledger.damage();
        assert_eq!((found[0].context.as_str(), found[0].sequence), ("c", Sequence(expected)), "{found:?}");
        assert_eq!(sequence_of(&ledger.get(&context("c"), &Filter::default()).unwrap_err()), expected);
    }
}

#[test]
fn the_scrub_finds_nothing_in_a_ledger_that_is_whole_and_being_written() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { scrub_rate: 1 << 30, scrub_pause: Duration::from_millis(1), ..small() };
    let ledger = Ledger::open_with(dir.path(), options).unwrap();
    let mut all = Vec::new();
    while ledger.stats().scrubbed < 20_000 {
        append_many(&ledger, &context("c"), 100, &mut all);
    }
    assert!(ledger.damage().is_empty(), "{:?}", ledger.damage());
}

#[test]
fn a_damaged_head_takes_no_append() {
    let (dir, _) = damaged("heads", 0, |len| len - 10);
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let error = ledger.append(&context("c"), draft("k", "x")).unwrap_err();
    assert_eq!(sequence_of(&error), 0, "{error}");
    ledger.append(&context("other"), draft("k", "x")).unwrap();
}

/// A ledger of a context "c" of 700 entries whose head is gone.
fn without_head() -> (tempfile::TempDir, Vec<u8>) {
    let (dir, snapshot) = damaged("heads", usize::MAX, |_| 0);
    remove_row(dir.path(), "heads", b"c");
    (dir, snapshot)
}

#[test]
fn a_context_whose_head_is_lost_is_damaged_and_not_empty() {
    let (dir, snapshot) = without_head();
    let open = || Ledger::open_with(dir.path(), small()).unwrap();
    // Each asks a ledger of its own, which knows of nothing yet.
    let ask: [fn(&Ledger) -> StoreError; 7] = [
        |ledger| ledger.head(&context("c")).unwrap_err(),
        |ledger| ledger.get(&context("c"), &Filter::default()).unwrap_err(),
        |ledger| ledger.checkpoint(&context("c"), None).unwrap_err(),
        |ledger| ledger.snapshot(&context("c")).unwrap_err(),
        |ledger| ledger.append(&context("c"), draft("k", "x")).unwrap_err(),
        |ledger| ledger.watch(&context("c"), None, Sequence(0)).read(10, 1 << 20).unwrap_err(),
        |ledger| {
            ledger.scrub(&context("c")).unwrap();
            ledger.get(&context("c"), &Filter::default()).unwrap_err()
        },
    ];
    for ask in ask {
        let ledger = open();
        assert_eq!(sequence_of(&ask(&ledger)), 0);
        assert_eq!(ledger.damage().len(), 1, "it is quarantined");
    }
    // Nothing is loaded over what may still be there.
    let refused = open().load_from(&context("c"), false, &snapshot[..]).unwrap_err();
    assert_eq!(sequence_of(&refused), 0);
}

#[test]
fn the_scrub_and_a_start_in_a_cluster_find_a_head_that_is_lost() {
    let (dir, _) = without_head();
    let scrubbing = Options { scrub_rate: 1 << 30, scrub_pause: Duration::from_millis(1), ..small() };
    let ledger = Ledger::open_with(dir.path(), scrubbing).unwrap();
    wait_until("the scrub's finding", || !ledger.damage().is_empty());
    assert_eq!((ledger.damage()[0].context.as_str(), ledger.damage()[0].sequence), ("c", Sequence(0)));
    drop(ledger);
    let ledger = Ledger::open_with(dir.path(), Options { clustered: true, ..small() }).unwrap();
    let found: Vec<_> = ledger.damage().into_iter().map(|damage| damage.context).collect();
    assert_eq!(found, [context("c")]);
}

#[test]
fn an_entry_id_beyond_the_history_is_none_and_a_malformed_row_of_one_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let append = |ledger: &Ledger, number: u64| {
        let append = ledger_store::Append {
            entry_id: Some(ledger_store::EntryId::new(&format!("id-{number}")).unwrap()),
            ..ledger_store::Append::new(context("c"), draft("k", format!("payload {number}")))
        };
        futures::executor::block_on(ledger.append_async(append))
    };
    let with_ids_row = |change: fn(&[u8]) -> Option<Vec<u8>>| {
        tamper(dir.path(), "ids", |_, key, _| change(key));
        Ledger::open_with(dir.path(), small()).unwrap()
    };
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    (1..=3).for_each(|number| _ = append(&ledger, number).unwrap());
    drop(ledger);
    // As after a loss of the writes of heads and entries, but not of ids: beyond the end, and of another entry by now.
    let stale = |key: &[u8]| match key {
        key if key.ends_with(b"id-2") => Some(9_u64.to_be_bytes().to_vec()),
        key if key.ends_with(b"id-3") => Some(1_u64.to_be_bytes().to_vec()),
        _ => None,
    };
    let ledger = with_ids_row(stale);
    for (number, sequence) in [(1, 1), (2, 4), (3, 5), (2, 4), (3, 5)] {
        let appended = append(&ledger, number).unwrap();
        assert_eq!(appended.entry.sequence, Sequence(sequence), "id-{number}");
        assert_eq!(appended.entry.payload, format!("payload {number}"));
    }
    drop(ledger);
    let ledger = with_ids_row(|key| key.ends_with(b"id-2").then(|| b"no number".to_vec()));
    assert_eq!(sequence_of(&append(&ledger, 2).unwrap_err()), 0);
}

#[test]
fn a_damaged_context_is_healed_by_loading_its_snapshot() {
    let (dir, snapshot) = damaged("entries", 400, |len| len - 1);
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    assert!(ledger.get(&context("c"), &Filter::default()).is_err());
    let loaded = ledger.load_from(&context("c"), false, &snapshot[..]).unwrap();
    assert_eq!((loaded.restored, loaded.latest.0), (0, 700));
    assert!(ledger.damage().is_empty());
    assert_eq!(ledger.get(&context("c"), &Filter::default()).unwrap().entries.len(), 700);
    ledger.append(&context("c"), draft("k", "x")).unwrap();
}

/// Flips a bit in the middle of the largest table file, which holds the entries.
fn damage_block(dir: &Path) {
    let tables = std::fs::read_dir(dir.join("db")).unwrap().map(|item| item.unwrap().path());
    let tables = tables.filter(|path| path.extension().is_some_and(|extension| extension == "sst"));
    let largest = tables.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(largest, bytes).unwrap();
}

#[test]
fn a_damaged_block_on_disk_is_damage_too() {
    let (dir, _) = damaged("meta", usize::MAX, |_| 0);
    damage_block(dir.path());
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let error = ledger.get(&context("c"), &Filter::default()).unwrap_err();
    assert!((1..=700).contains(&sequence_of(&error)), "{error}");
    assert!(error.to_string().contains("context c is damaged at sequence"), "{error}");
}

#[test]
fn a_newer_format_is_refused_by_a_plain_message() {
    let (dir, _) = damaged("meta", usize::MAX, |_| 0);
    tamper(dir.path(), "meta", |_, key, _| (key == b"format").then(|| 9_u32.to_be_bytes().to_vec()));
    let error = Ledger::open_with(dir.path(), small()).unwrap_err().to_string();
    assert!(error.contains("format is 9") && error.contains("newer build"), "{error}");
}

/// Copies a closed ledger.
fn copied(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(from, dir.path());
    dir
}

/// A closed ledger of a context "c" of 700 entries, and a copy of it that is open.
fn two_copies() -> (tempfile::TempDir, tempfile::TempDir, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    append_many(&ledger, &context("c"), 700, &mut Vec::new());
    ledger.close().unwrap();
    drop(ledger);
    let copy = copied(dir.path());
    let other = Ledger::open_with(copy.path(), small()).unwrap();
    (dir, copy, other)
}

#[test]
fn a_compaction_that_meets_a_damaged_block_does_not_end_the_writing() {
    let dir = tempfile::tempdir().unwrap();
    let write = |number: u64| {
        let ledger = Ledger::open_with(dir.path(), small()).unwrap();
        for name in ["a", "b", "c", "d"] {
            let many = if number == 0 { 700 } else { 10 };
            append_many(&ledger, &context(&format!("{name}{number}")), many, &mut Vec::new());
        }
        ledger.close()
    };
    // Each time leaves a table file: with so many they are compacted.
    (0..7).for_each(|number| write(number).unwrap());
    damage_block(dir.path());
    // It may be met at once, when what is in memory is written.
    let _ = write(7);

    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    wait_until("the compaction to meet the damage", || {
        let _ = ledger.append(&context("e"), draft("k", "x"));
        !ledger.stats().compacts
    });
    let appended = || ledger.append(&context("e"), draft("k", "after"));
    wait_until("appends to go on", || appended().is_ok());
    let page = ledger.get(&context("e"), &Filter::default()).unwrap();
    assert_eq!(&page.entries.last().unwrap().payload[..], b"after");
    for _ in 0..100 {
        appended().unwrap();
    }
    ledger.close().unwrap();
}

/// Rows under a family's prefix of context "c".
fn rows(dir: &Path, family: &str) -> usize {
    let options = rocksdb::Options::default();
    let path = dir.join("db");
    let families = rocksdb::DB::list_cf(&options, &path).unwrap();
    let db = rocksdb::DB::open_cf_for_read_only(&options, &path, families, false).unwrap();
    db.iterator_cf(db.cf_handle(family).unwrap(), rocksdb::IteratorMode::Start).map(Result::unwrap).count()
}

/// Begins to restore the context, with its head as proof.
fn heal(ledger: &Ledger) -> Option<ledger_store::Healing> {
    let LocalHead::Committed(goal) = ledger.damaged_head(&context("c")).unwrap() else { return None };
    ledger.begin_healing(&context("c"), HealProof::Head, goal).unwrap()
}

/// Feeds what is missing from another ledger.
fn feed(healing: &mut ledger_store::Healing, from: &Ledger) -> Result<(), StoreError> {
    while let Some((after, to)) = healing.missing() {
        healing.take(&from.range(&context("c"), after, to, 10_000)?, None)?;
    }
    Ok(())
}

/// Damages a row of a family, and opens the ledger until its scrub has found that.
fn damaged_row_found(dir: &Path, family: &str, row: usize) -> Ledger {
    tamper(dir, family, |number, _, value| (number == row).then(|| flipped(value, value.len() - 1)));
    let scrubbing = Options { scrub_rate: 1 << 30, scrub_pause: Duration::from_millis(1), ..small() };
    let ledger = Ledger::open_with(dir, scrubbing).unwrap();
    wait_until("the scrub's finding", || !ledger.damage().is_empty());
    ledger
}

#[test]
fn a_damaged_context_is_healed_from_another_copy_while_it_grows() {
    for (family, row) in [("entries", 400), ("tiles", 0), ("tiles", 1)] {
        let (dir, _copy, other) = two_copies();
        let ledger = damaged_row_found(dir.path(), family, row);
        let newer = ledger.append(&context("c"), draft("k", "while it is damaged")).unwrap();
        let mut healing = heal(&ledger).expect("it is damaged");
        // What the other one lacks is read here, at the end.
        assert_eq!(healing.missing(), Some((ledger_store::Size(0), newer.position.size)));
        let tail = ledger.range(&context("c"), ledger_store::Size(700), newer.position.size, 10_000).unwrap();
        let up_to = ledger_store::Size(700);
        while let Some((after, _)) = healing.missing().filter(|(after, _)| *after < up_to) {
            healing.take(&other.range(&context("c"), after, up_to, 10_000).unwrap(), None).unwrap();
        }
        healing.take(&tail, None).unwrap();
        ledger.append(&context("c"), draft("k", "while it is healed")).unwrap();
        assert!(healing.finish().unwrap());
        drop(healing);
        assert!(ledger.damage().is_empty());
        let head = ledger.head(&context("c")).unwrap().unwrap();
        ledger.append(&context("c"), draft("k", "healed")).unwrap();
        let entries = ledger.get(&context("c"), &Filter::default()).unwrap().entries;
        assert_eq!(entries.len(), 703);
        assert_eq!(entries[..700], other.get(&context("c"), &Filter::default()).unwrap().entries[..]);
        assert!(ledger.prove_inclusion(&context("c"), Sequence(300), Some(head.size())).is_ok());
        let scrubbed = ledger.stats().scrubbed;
        wait_until("another pass of the scrub", || ledger.stats().scrubbed >= scrubbed + 2 * 703);
        assert!(ledger.damage().is_empty());
        ledger.close().unwrap();
        drop(ledger);
        assert_eq!(rows(dir.path(), "entries"), 703, "what was damaged is gone");
        let ledger = Ledger::open_with(dir.path(), small()).unwrap();
        assert_eq!(ledger.get(&context("c"), &Filter::default()).unwrap().entries, entries);
    }
}

#[test]
fn what_is_computed_from_the_entries_is_restored_from_them() {
    for (family, row) in [("tiles", 0), ("tiles", 1), ("entries", 400)] {
        let (dir, _copy, other) = two_copies();
        let ledger = damaged_row_found(dir.path(), family, row);
        let mut healing = heal(&ledger).expect("it is damaged");
        let taken = healing.take_local();
        if family == "entries" {
            assert_eq!(sequence_of(&taken.unwrap_err()), 401, "what is lost itself needs another node");
            continue;
        }
        taken.unwrap();
        ledger.append(&context("c"), draft("k", "while it is healed")).unwrap();
        assert!(healing.finish().unwrap());
        drop(healing);
        assert!(ledger.damage().is_empty());
        let entries = ledger.get(&context("c"), &Filter::default()).unwrap().entries;
        assert_eq!(entries[..700], other.get(&context("c"), &Filter::default()).unwrap().entries[..]);
        let scrubbed = ledger.stats().scrubbed;
        wait_until("another pass of the scrub", || ledger.stats().scrubbed >= scrubbed + 2 * 701);
        assert!(ledger.damage().is_empty());
    }
}

#[test]
fn another_history_heals_nothing() {
    let (dir, _copy, _other) = two_copies();
    let foreign = tempfile::tempdir().unwrap();
    let foreign = Ledger::open_with(foreign.path(), small()).unwrap();
    append_many(&foreign, &context("c"), 700, &mut Vec::new());
    tamper(dir.path(), "entries", |number, _, value| (number == 5).then(|| flipped(value, value.len() - 1)));
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    assert_eq!(ledger.damaged_head(&context("c")).unwrap(), LocalHead::NotDamaged, "nobody knows yet");
    assert!(ledger.get(&context("c"), &Filter::default()).is_err());
    let mut healing = heal(&ledger).unwrap();
    let error = feed(&mut healing, &foreign).unwrap_err().to_string();
    assert!(error.contains("context c is not restored: the other node holds another history"), "{error}");
    drop(healing);
    assert_eq!(ledger.damage().len(), 1);
    ledger.close().unwrap();
    drop(ledger);
    assert_eq!(rows(dir.path(), "entries"), 700, "what was staged is gone");
}

#[test]
fn a_context_with_a_damaged_block_is_healed_from_another_copy() {
    let (dir, _copy, other) = two_copies();
    damage_block(dir.path());
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    assert!(ledger.get(&context("c"), &Filter::default()).is_err());
    let mut healing = heal(&ledger).unwrap();
    feed(&mut healing, &other).unwrap();
    assert!(healing.finish().unwrap());
    let entries = ledger.get(&context("c"), &Filter::default()).unwrap().entries;
    assert_eq!(entries, other.get(&context("c"), &Filter::default()).unwrap().entries);
}
