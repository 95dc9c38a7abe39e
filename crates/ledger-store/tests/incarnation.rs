//! A directory counts the starts of its node.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use ledger_core::node::Incarnation;
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

#[test]
fn a_start_after_one_that_was_heard_of_is_later_whatever_the_clock_says() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let own = ledger.next_incarnation().unwrap();
    // A year ahead: the process before this one had another disk and another clock.
    let heard = Incarnation(own.0 + 31_536_000_000);
    ledger.record_incarnation(heard).unwrap();
    ledger.record_incarnation(own).unwrap();
    assert_eq!(ledger.next_incarnation().unwrap(), Incarnation(heard.0 + 1));
    // Nobody uses the count up.
    ledger.record_incarnation(Incarnation(u64::MAX)).unwrap();
    assert_eq!(ledger.next_incarnation().unwrap(), Incarnation(heard.0 + 2));
}
