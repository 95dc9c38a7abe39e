//! How far a directory goes, and what becomes of one that turns out to be an older copy of itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;

use ledger_core::{
    Epoch,
    node::{Member, NodeId, ReplicaSet, StorageId},
    ownership::{Claim, Placement, SlotRecord},
    slot::Slot,
};
use ledger_store::{Ledger, StoreError, replicate::replica::RecordChange};
use support::{context, copy_dir, draft, flipped, tamper};

#[test]
fn no_start_opens_below_what_was_durable_however_the_one_before_ended() {
    let dir = tempfile::tempdir().unwrap();
    // What a killed process leaves: the files as they are while it runs.
    let killed = tempfile::tempdir().unwrap();
    let mut durable = 0;
    for round in 0..4 {
        let at = killed.path().join(round.to_string());
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.next_incarnation().unwrap();
        assert!(ledger.opening_index() >= durable, "{} after {durable}", ledger.opening_index());
        assert!(ledger.durable_index() > ledger.opening_index());
        for number in 0..50 {
            let name = context(&format!("{round}-{}", number % 7));
            ledger.append(&name, draft("k", format!("{round}-{number}"))).unwrap();
        }
        let said = ledger.durable_index();
        copy_dir(dir.path(), &at);
        ledger.close().unwrap();
        durable = ledger.durable_index();
        assert!(durable >= said);
        drop(ledger);

        let again = Ledger::open(&at).unwrap();
        assert!(again.opening_index() >= said, "{} after {said}", again.opening_index());
    }
    // Opening alone changes nothing of it.
    let opened = Ledger::open(dir.path()).unwrap().opening_index();
    assert!(opened >= durable);
    assert!(Ledger::open(dir.path()).unwrap().opening_index() >= opened);
}

#[test]
fn an_older_copy_opens_below_what_was_durable() {
    let (dir, older) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ledger = Ledger::open(dir.path()).unwrap();
    ledger.next_incarnation().unwrap();
    ledger.append(&context("a"), draft("k", "first")).unwrap();
    copy_dir(dir.path(), older.path());
    ledger.append(&context("a"), draft("k", "second")).unwrap();
    let copied = Ledger::open(older.path()).unwrap();
    copied.next_incarnation().unwrap();
    assert!(copied.opening_index() < ledger.durable_index());
    assert_eq!(copied.storage(), ledger.storage());
}

fn member(name: &str) -> Member {
    Member { node: NodeId::new(name).unwrap(), storage: StorageId([7; 16]) }
}

#[test]
fn a_renewed_directory_is_another_storage_that_kept_its_entries_and_forgot_its_promises() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let (name, before) = (context("a"), ledger.storage());
    for text in ["one", "two"] {
        ledger.append(&name, draft("k", text)).unwrap();
    }
    let claim = Claim::new(Epoch::new(3, 4), &member("n"));
    let slot = |number| Slot::new(number).unwrap();
    let members = vec![member("n")];
    let placed = |is_confirmed| SlotRecord {
        promised: Some(claim.clone()),
        accepted: claim.epoch,
        placement: Some(Placement {
            epoch: claim.epoch,
            members: ReplicaSet::new(members.clone()).unwrap(),
            is_confirmed,
            previous: None,
        }),
        is_formed: false,
    };
    let records = BTreeMap::from([
        (slot(1), SlotRecord { promised: Some(claim.clone()), ..SlotRecord::default() }),
        (slot(2), placed(false)),
        (slot(3), placed(true)),
        (slot(4), SlotRecord { is_formed: true, ..SlotRecord::default() }),
    ]);
    ledger.keep_slot_records(&records).unwrap();

    let renewed = ledger.reidentify().unwrap();
    assert_ne!(renewed, before);
    assert!(matches!(ledger.append(&name, draft("k", "three")), Err(StoreError::Closed)));
    assert!(matches!(ledger.reidentify(), Err(StoreError::Closed)));
    ledger.close().unwrap();
    drop(ledger);

    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.storage(), renewed);
    let formed = SlotRecord { is_formed: true, ..SlotRecord::default() };
    assert_eq!(ledger.slot_records().unwrap(), [(slot(3), formed.clone()), (slot(4), formed)]);
    assert_eq!(ledger.get(&name, &ledger_store::Filter::default()).unwrap().entries.len(), 2);
    ledger.append(&name, draft("k", "three")).unwrap();
}

/// A directory whose record of slot 3, which was formed, is damaged.
fn with_a_damaged_record() -> (tempfile::TempDir, Slot) {
    let (dir, slot) = (tempfile::tempdir().unwrap(), Slot::new(3).unwrap());
    let ledger = Ledger::open(dir.path()).unwrap();
    let claim = Claim::new(Epoch::new(3, 4), &member("n"));
    let record = SlotRecord { promised: Some(claim), is_formed: true, ..SlotRecord::default() };
    ledger.keep_slot_records(&BTreeMap::from([(slot, record)])).unwrap();
    ledger.close().unwrap();
    drop(ledger);
    tamper(dir.path(), "slots", |_, key, value| {
        (*key == slot.number().to_be_bytes()).then(|| flipped(value, 0))
    });
    (dir, slot)
}

#[test]
fn a_renewed_directory_whose_record_of_a_slot_is_damaged_does_not_form_it_anew() {
    let (dir, slot) = with_a_damaged_record();
    let ledger = Ledger::open(dir.path()).unwrap();
    assert!(matches!(ledger.slot_record(slot), Err(StoreError::SlotDamaged { .. })));
    ledger.reidentify().unwrap();
    ledger.close().unwrap();
    drop(ledger);

    let ledger = Ledger::open(dir.path()).unwrap();
    let formed = SlotRecord { is_formed: true, ..SlotRecord::default() };
    assert_eq!(ledger.slot_records().unwrap(), [(slot, formed)]);
}

#[test]
fn a_record_that_cannot_be_read_is_not_handed_out_as_an_empty_one() {
    let (dir, slot) = with_a_damaged_record();
    let ledger = Ledger::open(dir.path()).unwrap();
    let claim = Claim::new(Epoch::new(1, 1), &member("m"));
    let changes = vec![(slot, RecordChange::Promise(claim))];
    let (_, changed) = futures::executor::block_on(ledger.change_slots(changes)).unwrap().remove(0);
    assert!(matches!(changed.outcome, Err(StoreError::SlotDamaged { .. })), "{changed:?}");
    assert_eq!(changed.record, None);
}
