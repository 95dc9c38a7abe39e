//! The column families and their keys, in one table.
//!
//! | family | key | value | changes |
//! | --- | --- | --- | --- |
//! | `heads` | context id | [`record`](crate::engine::record) of the head | with every commit |
//! | `entries` | slot16 ‖ number64 ‖ sequence64 | record of the entry | never |
//! | `tiles` | slot16 ‖ number64 ‖ level8 ‖ index64 | up to 256 hashes; level [`KEYS_LEVEL`]: the keys in a tile of level 0 | until full |
//! | `ids` | number64 ‖ entry id | sequence64 | never |
//! | `forks` | slot16 ‖ number64 ‖ fork64 ‖ sequence64 | record of an entry that left the canonical history; sequence 0: of the evidence why | never |
//! | `slots` | slot16 | record of what was promised and accepted | by claims |
//! | `slots` | slot16 ‖ bucket8 ‖ context id | empty: the slot index. Longer than the key of any record | with the context's first and last head |
//! | `meta` | name | format version, storage id, signing seed, … | rarely |
//!
//! Integers are big-endian, so keys sort in numeric order. A node gives each context a local *number* when it first
//! sees it. The number keeps rows short, and lets a lane install another history by switching the number in the head.
//!
//! A number with its highest bit set is *apart*: its rows in `entries` and `tiles` have 0xffff in place of the slot,
//! so they sort after the rows of all slots. No damaged block of a slot's rows can block reading them. Contexts that
//! are restored because of damage get such numbers.

use ledger_core::{EntryId, Sequence, slot::Slot, tree::TileId};

/// Context id → head.
pub(crate) const HEADS: &str = "heads";
/// Entries.
pub(crate) const ENTRIES: &str = "entries";
/// Tiles and key summaries.
pub(crate) const TILES: &str = "tiles";
/// Entry ids.
pub(crate) const IDS: &str = "ids";
/// Histories that were forked off.
pub(crate) const FORKS: &str = "forks";
/// Slot records and the slot index.
pub(crate) const SLOTS: &str = "slots";
/// Facts about the directory as a whole.
pub(crate) const META: &str = "meta";

/// All families.
pub(crate) const ALL: [&str; 7] = [HEADS, ENTRIES, TILES, IDS, FORKS, SLOTS, META];

/// The level under which `tiles` holds the key summary of a level-0 tile.
pub(crate) const KEYS_LEVEL: u8 = 0xff;

/// The bit that is set in numbers that are apart.
pub(crate) const SEPARATE_BIT: u64 = 1 << 63;
/// Replaces the slot in the keys of rows that are apart: no slot has this number.
const SEPARATE_SLOT: u16 = u16::MAX;

/// Where a context's rows are: the prefix of its keys in `entries` and `tiles`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowLocation {
    pub(crate) slot: Slot,
    pub(crate) number: u64,
}

impl RowLocation {
    fn prefix(self) -> [u8; 10] {
        let slot = if self.number & SEPARATE_BIT == 0 { self.slot.number() } else { SEPARATE_SLOT };
        self.prefix_of(slot)
    }

    fn prefix_of(self, slot: u16) -> [u8; 10] {
        let mut key = [0; 10];
        key[..2].copy_from_slice(&slot.to_be_bytes());
        key[2..].copy_from_slice(&self.number.to_be_bytes());
        key
    }

    /// Returns the key of an entry.
    pub(crate) fn entry(self, sequence: Sequence) -> [u8; 18] {
        let mut key = [0; 18];
        key[..10].copy_from_slice(&self.prefix());
        key[10..].copy_from_slice(&sequence.0.to_be_bytes());
        key
    }

    /// Returns the key of a tile.
    pub(crate) fn tile(self, tile: TileId) -> [u8; 19] {
        let mut key = [0; 19];
        key[..10].copy_from_slice(&self.prefix());
        key[10] = tile.level;
        key[11..].copy_from_slice(&tile.index.to_be_bytes());
        key
    }

    /// Returns the key of the key summary of a level-0 tile.
    pub(crate) fn keys(self, index: u64) -> [u8; 19] {
        self.tile(TileId { level: KEYS_LEVEL, index })
    }

    /// Returns the key of a client's entry id.
    pub(crate) fn id(self, id: &EntryId) -> Vec<u8> {
        id.with_text(|text| [&self.number.to_be_bytes(), text.as_bytes()].concat())
    }

    /// Returns the key of an entry of a fork; sequence 0 is the key of its evidence.
    pub(crate) fn fork(self, fork: u64, sequence: Sequence) -> [u8; 26] {
        let mut key = [0; 26];
        key[..10].copy_from_slice(&self.prefix_of(self.slot.number()));
        key[10..18].copy_from_slice(&fork.to_be_bytes());
        key[18..].copy_from_slice(&sequence.0.to_be_bytes());
        key
    }

    /// Returns the first key of the context and the first key beyond it, in `entries` and `tiles`.
    pub(crate) fn range(self) -> ([u8; 10], [u8; 10]) {
        (self.prefix(), Self { number: self.number + 1, ..self }.prefix())
    }

    /// Returns the same range for `ids`.
    pub(crate) fn id_range(self) -> ([u8; 8], [u8; 8]) {
        (self.number.to_be_bytes(), (self.number + 1).to_be_bytes())
    }
}

/// Returns the sequence in an entry's key.
pub(crate) fn sequence_of(key: &[u8]) -> Option<Sequence> {
    Some(Sequence(u64::from_be_bytes(key.get(10..18)?.try_into().ok()?)))
}

/// Returns the row location of the context, the fork and the sequence in a key of `forks`.
pub(crate) fn fork_of(key: &[u8]) -> Option<(RowLocation, u64, Sequence)> {
    let (slot, rest) = key.split_first_chunk::<2>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (fork, rest) = rest.split_first_chunk::<8>()?;
    let place =
        RowLocation { slot: Slot::new(u16::from_be_bytes(*slot))?, number: u64::from_be_bytes(*number) };
    Some((place, u64::from_be_bytes(*fork), Sequence(u64::from_be_bytes(rest.try_into().ok()?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_golden() {
        let place = RowLocation { slot: Slot::new(0x0123).unwrap(), number: 0x0405 };
        assert_eq!(hex::encode(place.entry(Sequence(0x0607))), "012300000000000004050000000000000607");
        assert_eq!(
            hex::encode(place.tile(TileId { level: 1, index: 2 })),
            "01230000000000000405010000000000000002"
        );
        assert_eq!(hex::encode(place.keys(2)), "01230000000000000405ff0000000000000002");
        assert_eq!(hex::encode(place.id(&EntryId::new("a").unwrap())), "000000000000040561");
        assert_eq!(sequence_of(&place.entry(Sequence(9))), Some(Sequence(9)));
        assert_eq!(sequence_of(b"short"), None);
        let fork = place.fork(0x08, Sequence(0x09));
        assert_eq!(hex::encode(fork), "0123000000000000040500000000000000080000000000000009");
        assert_eq!(fork_of(&fork), Some((place, 8, Sequence(9))));
        assert_eq!(fork_of(&fork[..25]), None);
    }

    #[test]
    fn rows_that_are_apart_come_after_those_of_all_slots() {
        let last =
            RowLocation { slot: Slot::new(ledger_core::slot::SLOTS - 1).unwrap(), number: SEPARATE_BIT - 1 };
        let apart = RowLocation { slot: Slot::new(3).unwrap(), number: SEPARATE_BIT | 9 };
        assert_eq!(hex::encode(apart.entry(Sequence(2))), "ffff80000000000000090000000000000002");
        assert!(last.range().1.as_slice() < apart.range().0.as_slice());
        assert!(last.id_range().0 < apart.id_range().0);
        // Forks are listed by slot, wherever the context's rows are.
        assert_eq!(fork_of(&apart.fork(1, Sequence(4))), Some((apart, 1, Sequence(4))));
    }

    #[test]
    fn a_range_holds_its_context_and_no_other() {
        let place = RowLocation { slot: Slot::new(5).unwrap(), number: 7 };
        let (first, beyond) = place.range();
        let next = RowLocation { number: 8, ..place };
        assert!(first.as_slice() <= place.entry(Sequence(0)).as_slice());
        assert!(place.keys(u64::MAX).as_slice() < beyond.as_slice());
        assert!(beyond.as_slice() <= next.entry(Sequence(0)).as_slice());
    }
}
