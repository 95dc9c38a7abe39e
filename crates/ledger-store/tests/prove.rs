//! Roots and proofs at every size.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use ledger_store::{Ledger, Sequence, Size, StoreError};
use support::{append_many, context, root_of, small};

#[test]
fn every_proof_verifies_at_every_size() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let context = context("c");
    let mut all = Vec::new();
    append_many(&ledger, &context, 66_000, &mut all);
    let sizes = [1, 2, 3, 255, 256, 257, 511, 512, 1000, 65_535, 65_536, 65_537, 66_000];
    for (at, size) in sizes.into_iter().enumerate() {
        let root = root_of(&all[..size]);
        let checkpoint = ledger.checkpoint(&context, Some(Size(size as u64))).unwrap();
        assert_eq!(checkpoint.position.root, root);
        ledger.check_position(&context, &checkpoint.position).unwrap();
        for sequence in [1, size / 2, size].into_iter().filter(|sequence| *sequence > 0) {
            let proven =
                ledger.prove_inclusion(&context, Sequence(sequence as u64), Some(Size(size as u64))).unwrap();
            assert_eq!((proven.root, proven.content_hash), (root, all[sequence - 1].content_hash));
            proven.proof.verify_in(proven.suite, &proven.content_hash, &root).unwrap();
        }
        for old in &sizes[..=at] {
            let proven =
                ledger.prove_consistency(&context, Size(*old as u64), Some(Size(size as u64))).unwrap();
            assert_eq!((proven.old_root, proven.new_root), (root_of(&all[..*old]), root));
        }
    }
}

#[test]
fn what_is_out_of_range_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let context = context("c");
    let empty = ledger.checkpoint(&context, None).unwrap().position;
    assert_eq!((empty.size, empty.root), (Size(0), root_of(&[])));
    assert!(matches!(
        ledger.checkpoint(&context, Some(Size(1))),
        Err(StoreError::OutOfRange { size: 0, .. })
    ));
    append_many(&ledger, &context, 3, &mut Vec::new());
    for (sequence, size) in [(0, None), (4, None), (3, Some(2)), (1, Some(4))] {
        let error = ledger.prove_inclusion(&context, Sequence(sequence), size.map(Size)).unwrap_err();
        assert!(matches!(error, StoreError::OutOfRange { .. }), "{error}");
    }
    assert!(ledger.prove_consistency(&context, Size(3), Some(Size(2))).is_err());
}

#[test]
fn a_position_off_the_history_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let context = context("c");
    append_many(&ledger, &context, 300, &mut Vec::new());
    let good = ledger.checkpoint(&context, Some(Size(100))).unwrap().position;
    ledger.check_position(&context, &good).unwrap();
    let mut other_root = good;
    other_root.root.0[0] ^= 1;
    let mut other_lineage = good;
    other_lineage.lineage.0[0] ^= 1;
    let longer = ledger_store::Position { size: Size(301), ..good };
    for position in [other_root, other_lineage, longer] {
        let error = ledger.check_position(&context, &position).unwrap_err();
        assert!(matches!(error, StoreError::HistoryChanged { .. }), "{error}");
    }
}
