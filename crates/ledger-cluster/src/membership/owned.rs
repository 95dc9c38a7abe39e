//! Encodes the slots that a node owns into at most [`GROUPS`] values.
//!
//! Value `g` covers slots 64 g to 64 g + 63, so a change of ownership rewrites only the values of its groups. A value
//! is base64 (RFC 4648 §5, no padding) of runs of neighbouring slots that share an epoch:
//!
//! | varint | content |
//! | --- | --- |
//! | gap | slots skipped since the end of the previous run (the first: since slot 64 g) |
//! | more | slots of the run after its first |
//! | step | its epoch minus that of the previous run (the first: minus 0), zigzag |
//!
//! Varints and zigzag are those of Protocol Buffers. A node that owns everything in one epoch needs a dozen
//! characters per value; [`MAX_VALUE`] is the worst case of 64 slots.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ledger_core::{
    Epoch, plausible,
    slot::{SLOTS, Slot},
};

/// Number of values.
pub const GROUPS: u16 = 16;
/// Longest value in characters: 64 runs of a one-byte gap, a one-byte length and a ten-byte epoch.
pub const MAX_VALUE: usize = (64 * 12 * 4usize).div_ceil(3);

const GROUP: u16 = SLOTS / GROUPS;
const _: () = assert!(GROUP == 64 && GROUP * GROUPS == SLOTS);

/// Encodes slots into one value per group; a group without slots gets an empty value. If a slot is given twice, its
/// highest epoch counts.
pub fn encode(owned: &[(Slot, Epoch)]) -> Vec<String> {
    let mut epochs = vec![None; usize::from(SLOTS)];
    for &(slot, epoch) in owned {
        if let Some(known) = epochs.get_mut(usize::from(slot.number())) {
            *known = (*known).max(Some(epoch));
        }
    }
    epochs.chunks(usize::from(GROUP)).map(encode_group).collect()
}

fn encode_group(epochs: &[Option<Epoch>]) -> String {
    let mut bytes = Vec::new();
    let (mut gap, mut before) = (0, 0);
    for run in epochs.chunk_by(|a, b| a == b) {
        let Some(Epoch(epoch)) = run[0] else {
            gap = run.len() as u64;
            continue;
        };
        put(&mut bytes, gap);
        put(&mut bytes, run.len() as u64 - 1);
        put(&mut bytes, zigzag(epoch.wrapping_sub(before).cast_signed()));
        (gap, before) = (0, epoch);
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes the slots of a group's value, in order; `None` if the value is malformed, or if an epoch leaves no higher
/// one.
pub fn decode(group: u16, value: &str) -> Option<Vec<(Slot, Epoch)>> {
    if group >= GROUPS || value.len() > MAX_VALUE {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(value).ok()?;
    let mut rest = bytes.as_slice();
    let (mut at, mut epoch) = (0u64, 0u64);
    let mut owned = Vec::new();
    while !rest.is_empty() {
        let first = at.checked_add(take(&mut rest)?)?;
        at = first.checked_add(take(&mut rest)?)?.checked_add(1)?;
        epoch = epoch.wrapping_add(unzigzag(take(&mut rest)?).cast_unsigned());
        if at > u64::from(GROUP) || !plausible::leaves_room(Epoch(epoch)) {
            return None;
        }
        for place in first..at {
            owned.push((Slot::new(group * GROUP + place as u16)?, Epoch(epoch)));
        }
    }
    Some(owned)
}

/// Encodes slots without epochs as one value: base64 of a bit for each slot, slot 0 being the lowest bit of the first
/// byte, up to the last non-zero byte.
pub fn encode_set(slots: &[Slot]) -> String {
    let mut bits = [0u8; SLOTS as usize / 8];
    for slot in slots {
        if let Some(byte) = bits.get_mut(usize::from(slot.number() / 8)) {
            *byte |= 1 << (slot.number() % 8);
        }
    }
    let len = bits.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    URL_SAFE_NO_PAD.encode(&bits[..len])
}

/// Decodes the slots of such a value, in order; `None` if the value is malformed.
pub fn decode_set(value: &str) -> Option<Vec<Slot>> {
    if value.len() > usize::from(SLOTS).div_ceil(6) {
        return None;
    }
    let bits = URL_SAFE_NO_PAD.decode(value).ok()?;
    let is_set = |slot: &Slot| {
        let byte = bits.get(usize::from(slot.number() / 8)).copied().unwrap_or_default();
        byte & (1 << (slot.number() % 8)) != 0
    };
    (bits.len() <= usize::from(SLOTS) / 8).then(|| (0..SLOTS).filter_map(Slot::new).filter(is_set).collect())
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)).cast_unsigned()
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1).cast_signed() ^ -(n & 1).cast_signed()
}

fn put(bytes: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        n |= bits << shift;
        if byte < 0x80 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    fn round_trip(owned: &[(Slot, Epoch)]) -> (usize, Vec<(Slot, Epoch)>) {
        let values = encode(owned);
        assert_eq!(values.len(), usize::from(GROUPS));
        assert!(values.iter().all(|value| value.len() <= MAX_VALUE));
        let decoded = (0..).zip(&values).flat_map(|(group, value)| decode(group, value).unwrap()).collect();
        (values.iter().map(String::len).sum(), decoded)
    }

    #[test]
    fn owning_every_slot_takes_sixteen_values() {
        let same: Vec<_> = (0..SLOTS).map(|n| (slot(n), Epoch::new(3, 0xabcde))).collect();
        let (len, decoded) = round_trip(&same);
        assert_eq!(decoded, same);
        assert!(len <= 16 * 12, "{len}");
        let differing: Vec<_> =
            (0..SLOTS).map(|n| (slot(n), Epoch::new(u32::from(n * 7 % 100), 0xabcde))).collect();
        let (len, decoded) = round_trip(&differing);
        assert_eq!(decoded, differing);
        assert!(len < 10_000, "{len}");
        let worst: Vec<_> =
            (0..SLOTS).map(|n| (slot(n), Epoch::new(if n % 2 == 0 { 1 << 31 } else { 0 }, 1))).collect();
        assert_eq!(round_trip(&worst).1, worst);
    }

    #[test]
    fn the_text_of_a_value_does_not_change() {
        let owned = [(slot(64), Epoch(1)), (slot(65), Epoch(1)), (slot(127), Epoch::new(2, 5))];
        let values = encode(&owned);
        assert_eq!(values[1], "AAECPQCIgIAC");
        assert!(values.iter().enumerate().all(|(group, value)| group == 1 || value.is_empty()));
    }

    #[test]
    fn a_change_rewrites_the_value_it_touches_only() {
        let mut owned: Vec<_> = (0..SLOTS).map(|n| (slot(n), Epoch::new(1, 7))).collect();
        let before = encode(&owned);
        owned[200].1 = Epoch::new(2, 7);
        let after = encode(&owned);
        let changed: Vec<_> = (0..16).filter(|&group| before[group] != after[group]).collect();
        assert_eq!(changed, [200 / 64]);
    }

    #[test]
    fn a_value_that_leaves_its_group_or_is_cut_is_refused() {
        let text = |varints: &[u64]| {
            let mut bytes = Vec::new();
            for &n in varints {
                put(&mut bytes, n);
            }
            URL_SAFE_NO_PAD.encode(bytes)
        };
        assert_eq!(decode(0, &text(&[63, 0, 2])), Some(vec![(slot(63), Epoch(1))]));
        for bad in [&[63, 1, 2][..], &[64, 0, 2], &[0, 64, 2], &[u64::MAX, 1, 2], &[0, u64::MAX, 2], &[0, 0]]
        {
            assert_eq!(decode(0, &text(bad)), None, "{bad:?}");
        }
        assert_eq!(decode(0, "not base64!"), None);
        assert_eq!(decode(0, &"A".repeat(MAX_VALUE + 1)), None);
        assert_eq!(decode(GROUPS, ""), None);
        assert_eq!(decode(0, &URL_SAFE_NO_PAD.encode([0xff; 11])), None);
    }

    #[test]
    fn a_set_of_slots_is_one_short_value() {
        let all: Vec<_> = (0..SLOTS).map(slot).collect();
        for (set, text) in [(vec![], ""), (vec![slot(0)], "AQ"), (vec![slot(3), slot(8)], "CAE")] {
            assert_eq!((encode_set(&set).as_str(), decode_set(text)), (text, Some(set)));
        }
        assert_eq!((encode_set(&all).len(), decode_set(&encode_set(&all))), (171, Some(all)));
        for bad in ["?", "A", &"A".repeat(172)] {
            assert_eq!(decode_set(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_set_round_trips(set in prop::collection::btree_set(0..SLOTS, 0..200), bytes in prop::collection::vec(any::<u8>(), 0..140)) {
            let set: Vec<_> = set.into_iter().map(slot).collect();
            prop_assert_eq!(decode_set(&encode_set(&set)), Some(set));
            let any = decode_set(&URL_SAFE_NO_PAD.encode(bytes)).unwrap_or_default();
            prop_assert!(any.is_sorted_by(|a, b| a < b));
        }

        #[test]
        fn any_owned_slots_round_trip(owned in prop::collection::btree_map(0..SLOTS, 0..=Epoch::new(1 << 31, u32::MAX).0, 0..200)) {
            let owned: Vec<_> = owned.into_iter().map(|(n, epoch)| (slot(n), Epoch(epoch))).collect();
            prop_assert_eq!(round_trip(&owned).1, owned);
        }

        #[test]
        fn any_text_may_come_in(group in 0..20u16, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(owned) = decode(group, &URL_SAFE_NO_PAD.encode(bytes)) {
                prop_assert!(owned.len() <= 64);
                prop_assert!(owned.is_sorted_by(|a, b| a.0 < b.0));
            }
        }
    }
}
