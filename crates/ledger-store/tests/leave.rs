//! Leaving a history in a claim.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod support;

use futures::executor::block_on;
use ledger_core::{digest::TreeHead, node::NodeId, ownership::Claim, slot::Slot};
use ledger_store::{Epoch, Evidence, ForkOutcome, Hash, Ledger, Size, Tip, replicate::replica::RecordChange};

use support::{append_many, context};

#[test]
fn nothing_is_left_in_a_claim_once_a_higher_one_was_promised() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), support::small()).unwrap();
    let context = context("a");
    append_many(&ledger, &context, 10, &mut Vec::new());
    let extent = || {
        let head = ledger.head(&context).unwrap().unwrap();
        TreeHead { size: head.size(), root: head.root() }
    };
    let claim = |counter| Claim {
        epoch: Epoch::new(counter, 1),
        claimant: NodeId::new(format!("n{counter}")).unwrap(),
        storage: None,
    };
    let (low, high) = (claim(8), claim(9));
    let before = extent();
    let leave = |claim: Claim| {
        let theirs = Tip { size: Size(44), root: Hash([7; 32]), epoch: Epoch(77) };
        let evidence = Evidence { theirs, reason: "the owner's history differs".to_owned() };
        block_on(ledger.fork_history(context.clone(), claim, Size(6), extent(), evidence)).unwrap()
    };
    block_on(ledger.change_slots(vec![(Slot::of(&context), RecordChange::Promise(high.clone()))])).unwrap();
    assert_eq!(leave(low), ForkOutcome::Refused(high.clone()));
    assert_eq!(extent(), before);
    assert_eq!(leave(high), ForkOutcome::Forked(Size(6)));
    assert_eq!(extent().size, Size(6));
    ledger.close().unwrap();
}
