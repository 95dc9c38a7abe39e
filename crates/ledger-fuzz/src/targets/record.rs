//! Records on disk: entries, heads and slots. What is behind the checksum is what is changed.

use ledger_core::{
    ContextId, Epoch, Hash, HashSuite, Head, Lineage, Sequence,
    node::{Member, NodeId, ReplicaSet, StorageId},
    ownership::{Claim, SlotRecord},
    tree::Frontier,
};
use ledger_store::engine::record::{
    decode_entry, decode_head, decode_slot, encode_entry, encode_head, encode_slot,
};

use crate::Outcome;

/// One head, one slot and one entry of every shape.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let mut bytes = Vec::new();
    for size in [0_u64, 1, 1000] {
        let mut head = Head::new(HashSuite::Blake3, Lineage([7; 16]), 1);
        let peaks = vec![Hash([9; 32]); size.count_ones() as usize];
        if let Some(frontier) = Frontier::from_peaks(size, peaks) {
            head.frontier = frontier;
        }
        if encode_head(300, &head, &mut bytes).is_ok() {
            seeds.push(unsealed(&bytes));
        }
    }
    for record in slots() {
        if encode_slot(&record, &mut bytes).is_ok() {
            seeds.push(unsealed(&bytes));
        }
    }
    for snapshot in super::snapshot::entries() {
        if encode_entry(&snapshot, seeds.len() % 2 == 0, &mut bytes).is_ok() {
            seeds.push(unsealed(&bytes));
        }
    }
    seeds
}

/// A slot that nobody claimed, one that was promised, and one that was accepted.
fn slots() -> Vec<SlotRecord> {
    let mut records = vec![SlotRecord::default()];
    let Ok(node) = NodeId::new("ledger-0") else { return records };
    let member = Member { node, storage: StorageId([5; 16]) };
    if let Some(claim) = Claim::lowest_above(Epoch(7 << 20), &member)
        && let Ok((promised, _)) = SlotRecord::default().promise(&claim)
        && let Ok(set) = ReplicaSet::new([member])
    {
        records.extend(promised.accept(&claim, &set, true, None));
        records.push(promised);
    }
    records
}

fn unsealed(record: &[u8]) -> Vec<u8> {
    record[..record.len().saturating_sub(4)].to_vec()
}

/// Law: what decodes encodes to something that decodes to the same.
pub(super) fn run(input: &[u8]) -> Outcome {
    let Ok(context) = ContextId::new("fuzz") else { return Outcome::of("") };
    // As it comes, it has no checksum or a wrong one: refused, whatever it is.
    let _ = (decode_head(input), decode_slot(input), decode_entry(&context, Sequence(1), input));
    let input = &[input, &crc32fast::hash(input).to_le_bytes()].concat();
    let mut bytes = Vec::new();
    let head = match decode_head(input) {
        Ok((number, head)) => {
            if encode_head(number, &head, &mut bytes).is_ok() {
                assert_eq!(decode_head(&bytes), Ok((number, head)));
            }
            "head".to_owned()
        }
        Err(error) => error.to_string(),
    };
    let entry = match decode_entry(&context, Sequence(1), input) {
        Ok(entry) => {
            if encode_entry(&entry, input.len() % 2 == 0, &mut bytes).is_ok() {
                assert_eq!(decode_entry(&context, Sequence(1), &bytes), Ok(entry));
            }
            "entry".to_owned()
        }
        Err(error) => error.to_string(),
    };
    let slot = match decode_slot(input) {
        Ok(record) => {
            if encode_slot(&record, &mut bytes).is_ok() {
                assert_eq!(decode_slot(&bytes), Ok(record));
            }
            "slot".to_owned()
        }
        Err(error) => error.to_string(),
    };
    Outcome::of(&format!("{head}; {entry}; {slot}"))
}
