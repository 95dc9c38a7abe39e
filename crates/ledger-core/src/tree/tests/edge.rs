use proptest::prelude::*;

use super::*;
use crate::hash::{Blake3, Sha256};

fn continues_exactly<H: Hasher>(size: usize, more: usize) {
    let all = leaves::<H>(size + more);
    let mut tree = Stored::of::<H>(&all[..size]);
    let mut restored = tree.clone();
    let peaks = tree.frontier.peaks().to_vec();
    restored.frontier = Frontier::from_peaks(size as u64, peaks).unwrap();
    restored.edge = RightEdge::restore::<H>(&restored.frontier, tree.levels()).unwrap();
    assert_eq!(restored, tree);
    for leaf in &all[size..] {
        tree.push::<H>(*leaf);
        restored.push::<H>(*leaf);
    }
    assert_eq!(restored, tree);
    assert_eq!(tree.frontier.root::<H>(), mth::<H>(&all));
}

#[test]
fn a_right_edge_continues_where_tiles_begin_and_end() {
    for size in [0, 1, 255, 256, 257, 511, 512, 65535, 65536, 65537] {
        continues_exactly::<Blake3>(size, 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_right_edge_restored_at_any_size_continues_exactly(size in 0usize..3000, more in 0usize..600) {
        continues_exactly::<Blake3>(size, more);
        continues_exactly::<Sha256>(size, more);
    }

    #[test]
    fn a_right_edge_is_not_restored_from_changed_hashes(
        size in 1usize..3000, at in any::<prop::sample::Index>(), bit in 0usize..256,
    ) {
        let tree = Stored::of::<Blake3>(&leaves::<Blake3>(size));
        let levels = tree.levels();
        let restore = |levels| RightEdge::restore::<Blake3>(&tree.frontier, levels);
        prop_assert!(restore(levels.clone()).is_some());

        let places: Vec<_> =
            levels.iter().enumerate().flat_map(|(level, hashes)| (0..hashes.len()).map(move |i| (level, i))).collect();
        let (level, i) = places[at.index(places.len())];
        let mut changed = levels.clone();
        changed[level][i].0[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(restore(changed).is_none());
        let mut shorter = levels.clone();
        shorter[level].remove(i);
        prop_assert!(restore(shorter).is_none());
        let mut longer = levels.clone();
        longer[level].push(Hash([0; 32]));
        prop_assert!(restore(longer).is_none());
        prop_assert!(restore([levels.clone(), vec![vec![]]].concat()).is_none());
        prop_assert!(restore(levels[1..].to_vec()).is_none());
    }

    #[test]
    fn the_widths_of_a_level_add_up(size in 0u64..200_000, level in 0u8..4) {
        let at_level = size >> (8 * u32::from(level));
        let partial = RightEdge::partial(size, level);
        let width = |index| TileId { level, index }.width_in(size) as u64;
        prop_assert_eq!((0..=partial.index).map(width).sum::<u64>(), at_level);
        prop_assert!((0..partial.index).all(|index| width(index) == 256));
        prop_assert_eq!(width(partial.index + 1), 0);
        prop_assert_eq!(width(u64::MAX), 0);
        prop_assert_eq!(width(1 << 56), 0);
    }
}

#[test]
fn a_level_that_no_tree_has_is_empty() {
    for level in [MAX_LEVELS, 9, 255] {
        assert_eq!(TileId { level, index: 0 }.width_in(u64::MAX), 0);
        assert_eq!(RightEdge::width_of(u64::MAX, level), 0);
    }
}

#[test]
fn peaks_that_do_not_fit_the_size_are_refused() {
    assert_eq!(Frontier::from_peaks(3, vec![Hash([0; 32])]), None);
    assert_eq!(Frontier::from_peaks(0, vec![]), Some(Frontier::default()));
}

#[test]
fn a_tile_is_its_hashes_one_after_the_other() {
    let hashes = data(256);
    let tile = Tile::new(hashes.clone()).unwrap();
    assert_eq!(tile.encode().len(), 256 * 32);
    assert_eq!(tile.encode()[32..64], hashes[1].0);
    assert_eq!(Tile::decode(&tile.encode()), Some(tile));
    for bytes in [0, 31, 33, 257 * 32] {
        assert_eq!(Tile::decode(&vec![0; bytes]), None);
    }
}
