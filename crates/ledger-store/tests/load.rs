//! Snapshots and loads.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use ledger_store::{Filter, Ledger, LoadDescriptor, Loaded, Options, Sequence, Size, StoreError};
use support::{append_many, context, draft, small};

fn snapshot_of(ledger: &Ledger, name: &str) -> Vec<u8> {
    ledger.snapshot(&context(name)).unwrap().collect::<Result<Vec<_>, _>>().unwrap().concat()
}

fn everything(ledger: &Ledger, name: &str) -> Vec<ledger_store::Entry> {
    ledger.get(&context(name), &Filter::default()).unwrap().entries
}

#[test]
fn a_snapshot_loads_into_another_ledger_as_it_was() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Ledger::open_with(one.path(), small()).unwrap();
    append_many(&source, &context("c"), 5000, &mut Vec::new());
    let snapshot = snapshot_of(&source, "c");
    let target = Ledger::open_with(two.path(), small()).unwrap();
    let loaded = target.load_from(&context("c"), true, &snapshot[..]).unwrap();
    assert_eq!(loaded, Loaded { restored: 5000, latest: Size(5000) });
    assert_eq!(everything(&target, "c"), everything(&source, "c"));
    assert_eq!(target.head(&context("c")).unwrap(), source.head(&context("c")).unwrap());
    // It goes on from there, and proves what was loaded.
    target.append(&context("c"), draft("k", "x")).unwrap();
    target.prove_inclusion(&context("c"), Sequence(77), None).unwrap();
    target.prove_consistency(&context("c"), Size(5000), None).unwrap();
    drop(target);
    let target = Ledger::open_with(two.path(), small()).unwrap();
    assert_eq!(target.sequence(&context("c")).unwrap(), Sequence(5001));
    assert_eq!(target.lamport(&context("c")).unwrap().0, 5001);
}

#[test]
fn a_prefix_is_extended_and_a_difference_is_named() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Ledger::open_with(one.path(), small()).unwrap();
    let target = Ledger::open_with(two.path(), small()).unwrap();
    let mut all = Vec::new();
    append_many(&source, &context("c"), 300, &mut all);
    let short = snapshot_of(&source, "c");
    append_many(&source, &context("c"), 300, &mut all);
    let long = snapshot_of(&source, "c");
    let load = |bytes: &[u8]| target.load_from(&context("c"), false, bytes);
    assert_eq!(load(&short).unwrap(), Loaded { restored: 300, latest: Size(300) });
    assert_eq!(load(&short).unwrap(), Loaded { restored: 0, latest: Size(300) });
    assert_eq!(load(&long).unwrap(), Loaded { restored: 300, latest: Size(600) });
    assert_eq!(load(&short).unwrap(), Loaded { restored: 0, latest: Size(600) });
    assert_eq!(everything(&target, "c"), all);
    let exists = target.load_from(&context("c"), true, &long[..]).unwrap_err();
    assert!(matches!(exists, StoreError::ContextExists { size: 600, .. }), "{exists}");

    // Histories that part after 600.
    target.append(&context("c"), draft("k", "here")).unwrap();
    source.append(&context("c"), draft("k", "there")).unwrap();
    let error = load(&snapshot_of(&source, "c")).unwrap_err();
    assert!(matches!(&error, StoreError::HistoryDiffers { sequence: Sequence(601), .. }), "{error}");
    assert_eq!(target.sequence(&context("c")).unwrap(), Sequence(601));
}

#[test]
fn another_context_gets_the_content_with_ids_and_hashes_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let mut all = Vec::new();
    append_many(&ledger, &context("c"), 300, &mut all);
    let snapshot = snapshot_of(&ledger, "c");
    let load = || ledger.load_from(&context("copy"), false, &snapshot[..]).unwrap();
    assert_eq!(load().restored, 300);
    assert_eq!(load().restored, 0, "loading again finds everything there");
    let copy = everything(&ledger, "copy");
    for (entry, original) in copy.iter().zip(&all) {
        assert_eq!(
            (entry.draft(), entry.lamport, entry.appended_at_ns),
            (original.draft(), original.lamport, original.appended_at_ns)
        );
        assert_ne!(entry.id, original.id);
    }
    assert_eq!(copy.len(), 300);
}

#[test]
fn a_changed_or_cut_snapshot_writes_nothing() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Ledger::open_with(one.path(), small()).unwrap();
    append_many(&source, &context("c"), 3000, &mut Vec::new());
    let snapshot = snapshot_of(&source, "c");
    let target = Ledger::open_with(two.path(), small()).unwrap();
    for cut in [0, 5, 100, snapshot.len() / 2, snapshot.len() - 1] {
        target.load_from(&context("c"), false, &snapshot[..cut]).unwrap_err();
    }
    for flip in [3, 9, 60, snapshot.len() / 2, snapshot.len() - 40, snapshot.len() - 1] {
        let mut changed = snapshot.clone();
        changed[flip] ^= 4;
        target.load_from(&context("c"), false, &changed[..]).unwrap_err();
    }
    assert!(target.contexts("", "", 10).unwrap().is_empty());
    target.load_from(&context("c"), false, &snapshot[..]).unwrap();
}

#[test]
fn an_empty_context_has_a_snapshot_too() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let snapshot = snapshot_of(&ledger, "never");
    assert_eq!(
        ledger.load_from(&context("never"), true, &snapshot[..]).unwrap(),
        Loaded { restored: 0, latest: Size(0) }
    );
}

/// They are held whole: within the memory for loads, also what they decompress to and their entries, and one at a time.
#[test]
fn snapshots_of_the_predecessor_take_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), Options { loads: 100_000, ..small() }).unwrap();
    let fixture = std::fs::read("../../tests/fixtures/five-entries.etf").unwrap();
    let refused = |blob: &[u8]| ledger.load_from(&context("c"), false, blob).unwrap_err().to_string();
    let large = [vec![131], vec![0; 100_000]].concat();
    assert!(refused(&large).contains("needs 100001 bytes of memory"), "{}", refused(&large));
    // It says that it is 200 000 bytes when it is decompressed.
    let bomb = [&[131, 80][..], &200_000_u32.to_be_bytes(), &[0; 94]].concat();
    assert!(refused(&bomb).contains("needs 200100 bytes of memory"), "{}", refused(&bomb));

    let mut first = ledger.load(&context("growth-strategy-001"), false).unwrap();
    first.feed(&fixture[..10]).unwrap();
    assert_eq!(refused(&fixture), StoreError::OneAtATime.to_string());
    first.feed(&fixture[10..]).unwrap();
    assert_eq!(first.finish().unwrap().restored, 5);
    ledger.load_from(&context("growth-strategy-001"), false, &fixture[..]).unwrap();
}

#[test]
fn the_predecessors_snapshots_load_with_ids_and_times() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let fixture = |name: &str| std::fs::read(format!("../../tests/fixtures/{name}.etf")).unwrap();
    let load =
        |name: &str, context_id: &str| ledger.load_from(&context(context_id), false, &fixture(name)[..]);
    assert_eq!(load("five-entries", "growth-strategy-001").unwrap(), Loaded { restored: 5, latest: Size(5) });
    assert_eq!(load("one-entry", "growth-strategy-001").unwrap(), Loaded { restored: 0, latest: Size(5) });
    assert_eq!(load("version-1", "legacy-v1").unwrap(), Loaded { restored: 3, latest: Size(3) });
    assert_eq!(load("empty", "never-written").unwrap(), Loaded { restored: 0, latest: Size(0) });
    let entries = everything(&ledger, "growth-strategy-001");
    assert_eq!(entries[4].id.to_string(), "d08d6ecf92c66ddc9bc241a85130571c");
    assert_eq!(entries[4].metadata["évaluation"], "✓");
    assert_eq!((entries[4].lamport.0, entries[4].appended_at_ns), (5, 1_795_213_514_531_361_941));
    assert_eq!(ledger.lamport(&context("legacy-v1")).unwrap().0, 3);
    let mut tampered = fixture("five-entries");
    let middle = tampered.len() / 2;
    tampered[middle] ^= 1;
    ledger.load_from(&context("tampered"), false, &tampered[..]).unwrap_err();
    assert_eq!(ledger.contexts("", "", 10).unwrap().len(), 2);
}

#[test]
fn what_a_crash_left_of_a_load_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    append_many(&ledger, &context("c"), 3000, &mut Vec::new());
    let snapshot = snapshot_of(&ledger, "c");
    let mut load = ledger.load(&context("copy"), false).unwrap();
    load.feed(&snapshot[..snapshot.len() / 2]).unwrap();
    // As a crash would: what was staged is never abandoned.
    std::mem::forget(load);
    let copy = tempfile::tempdir().unwrap();
    support::copy_dir(dir.path(), copy.path());
    let reopened = Ledger::open_with(copy.path(), small()).unwrap();
    assert_eq!(reopened.contexts("", "", 10).unwrap().len(), 1);
    assert_eq!(reopened.load_from(&context("copy"), true, &snapshot[..]).unwrap().restored, 3000);
}

#[test]
fn a_load_staged_for_another_node_is_removed_when_nobody_puts_it_in_place() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = Ledger::open_with(one.path(), small()).unwrap();
    append_many(&source, &context("c"), 300, &mut Vec::new());
    let range = source.range(&context("c"), Size(0), Size(300), 1 << 20).unwrap();
    let target = Ledger::open_with(two.path(), small()).unwrap();
    // More than may be staged at once: each is gone when what stands for it is.
    for _ in 0..100 {
        let announced = LoadDescriptor::of_range(&range, Size(300), Some(range.root));
        let mut arriving = target.stage_load(&context("c"), announced).unwrap().unwrap();
        arriving.take(&range).unwrap();
        let staged = arriving.finish().unwrap();
        assert_eq!((staged.to().size, staged.to().root), (Size(300), range.root));
    }
    assert_eq!(target.sequence(&context("c")).unwrap(), Sequence(0));
}
