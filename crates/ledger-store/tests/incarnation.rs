//! A directory counts the starts of its node.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use ledger_store::Ledger;

#[test]
fn no_start_has_the_number_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = None;
    for _ in 0..3 {
        let ledger = Ledger::open(dir.path()).unwrap();
        for _ in 0..2 {
            let next = ledger.next_incarnation().unwrap();
            assert!(Some(next) > last, "{next} after {last:?}");
            last = Some(next);
        }
        ledger.close().unwrap();
    }
    // A wiped disk has forgotten them all.
    let wiped = tempfile::tempdir().unwrap();
    let first = Ledger::open(wiped.path()).unwrap().next_incarnation().unwrap();
    assert!(Some(first) > last, "{first} after {last:?}");
}
