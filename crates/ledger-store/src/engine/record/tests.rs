use std::collections::BTreeMap;

use bytes::Bytes;
use ledger_core::{
    EntryId, Key,
    node::{Member, NodeId, ReplicaSet, StorageId},
    ownership::{Claim, Placement, SlotRecord},
};
use proptest::prelude::*;

use super::*;

fn entry(id: &str, metadata: BTreeMap<String, String>, payload: &[u8]) -> Entry {
    Entry {
        context_id: ContextId::new("c").unwrap(),
        sequence: Sequence(7),
        id: EntryId::new(id).unwrap(),
        key: Key::new("facts").unwrap(),
        payload: Bytes::copy_from_slice(payload),
        metadata,
        appended_at_ns: 1,
        lamport: LamportClock(2),
        epoch: Epoch(3),
        content_hash: Hash([4; 32]),
    }
}

fn payload_is_odd(entry: &Entry) -> bool {
    entry.payload.len() % 2 == 1
}

/// Appends the checksum that completes a record.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    [bytes, &crc32fast::hash(bytes).to_le_bytes()].concat()
}

#[test]
fn any_flipped_bit_is_found() {
    let mut bytes = Vec::new();
    encode_entry(&entry("retry-1", BTreeMap::new(), b"xyz"), true, &mut bytes).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(peek_entry(&flipped), Err(RecordError::Checksum));
    }
}

#[test]
fn records_are_golden() {
    let mut bytes = Vec::new();
    encode_entry(&entry("retry-1", [("k".into(), "v".into())].into(), b"xyz"), true, &mut bytes).unwrap();
    let hash = "04".repeat(32);
    assert_eq!(
        hex::encode(&bytes),
        format!("01010772657472792d310566616374730201 03{hash}0501016b01760378797abb199447").replace(' ', "")
    );

    let head = Head::new(HashSuite::Sha256, Lineage([5; 16]), 9);
    encode_head(300, &head, &mut bytes).unwrap();
    let checksum = hex::encode(crc32fast::hash(&bytes[..bytes.len() - 4]).to_le_bytes());
    assert_eq!(hex::encode(&bytes), format!("01fb2c0102000000{}0900{checksum}", "05".repeat(16)));
    assert_eq!(decode_head(&bytes).unwrap(), (300, head));
}

fn slot_record() -> SlotRecord {
    let node = |name: &str| NodeId::new(name).unwrap();
    let member = |name: &str, byte: u8| Member { node: node(name), storage: StorageId([byte; 16]) };
    SlotRecord {
        promised: Some(Claim::new(Epoch(300), &member("ledger-1", 9))),
        accepted: Epoch(7),
        placement: Some(Placement {
            epoch: Epoch(7),
            members: ReplicaSet::new([member("a", 1), member("b", 2)]).unwrap(),
            is_confirmed: true,
            previous: Some(ReplicaSet::new([member("a", 1)]).unwrap()),
        }),
        is_formed: true,
    }
}

#[test]
fn a_slots_record_is_golden_and_comes_back_as_it_was() {
    let mut bytes = Vec::new();
    encode_slot(&slot_record(), &mut bytes).unwrap();
    let (body, _) = bytes.split_last_chunk::<4>().unwrap();
    let members = format!("020161{}0162{}", "01".repeat(16), "02".repeat(16));
    let before = format!("010161{}", "01".repeat(16));
    let record = |members: &str| {
        let (members_len, before_len) = (members.len() / 2, before.len() / 2);
        format!("01fb2c01086c65646765722d31070701{members_len:02x}{members}{before_len:02x}{before}01")
    };
    assert_eq!(hex::encode(body), record(&format!("{members}{}", "09".repeat(16))));
    assert_eq!(decode_slot(&bytes).unwrap(), slot_record());
    // As an older build wrote it: the promise names the node only.
    let mut older = slot_record();
    older.promised = Some(Claim { storage: None, ..older.promised.unwrap() });
    encode_slot(&older, &mut bytes).unwrap();
    let (body, _) = bytes.split_last_chunk::<4>().unwrap();
    assert_eq!(hex::encode(body), record(&members));
    assert_eq!(decode_slot(&bytes).unwrap(), older);
    // So does a promise of a slot that has no members yet.
    let unplaced = SlotRecord { promised: slot_record().promised, ..SlotRecord::default() };
    encode_slot(&unplaced, &mut bytes).unwrap();
    let bare = Claim { storage: None, ..unplaced.promised.unwrap() };
    let expected = SlotRecord { promised: Some(bare), ..SlotRecord::default() };
    assert_eq!(decode_slot(&bytes).unwrap(), expected);
    encode_slot(&SlotRecord::default(), &mut bytes).unwrap();
    assert_eq!(decode_slot(&bytes).unwrap(), SlotRecord::default());
}

#[test]
fn a_newer_record_is_refused_by_name() {
    assert_eq!(decode_head(&sealed(&[9, 0, 0])), Err(RecordError::Newer(9)));
}

proptest! {
    #[test]
    fn an_entry_comes_back_as_it_was(
        id in "[a-z0-9]{1,40}",
        metadata in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let entry = entry(&id, metadata, &payload);
        let mut bytes = Vec::new();
        encode_entry(&entry, payload_is_odd(&entry), &mut bytes).unwrap();
        let view = view_entry(entry.sequence, &bytes).unwrap();
        prop_assert_eq!(view.is_id_chosen, payload_is_odd(&entry) || entry.id.bits().is_none());
        prop_assert_eq!(decode_entry(&entry.context_id, entry.sequence, &bytes).unwrap(), entry);
    }

    #[test]
    fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let context = ContextId::new("c").unwrap();
        let versioned = sealed(&[&[VERSION][..], &bytes].concat());
        let _ = (decode_entry(&context, Sequence(1), &versioned), decode_head(&versioned), peek_entry(&versioned));
        let _ = decode_slot(&versioned);
    }
}
