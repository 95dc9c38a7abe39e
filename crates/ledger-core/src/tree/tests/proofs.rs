use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::{
    hash::{Blake3, Sha256},
    limits::MAX_SEQUENCE,
};

/// Compares all that is made of a stored tree at `size` with the definitions, without and with its head.
fn is_as_defined<H: Hasher>(tree: &mut Stored, size: usize, index: usize, old: usize) {
    let d = tree.leaves[..size].to_vec();
    let (old_root, root) = (mth::<H>(&d[..old]), mth::<H>(&d));
    let inclusion = if index < size { path::<H>(index, &d) } else { vec![] };
    let consistency = if old == 0 { vec![] } else { proof::<H>(old, &d) };

    for has_head in [false, true] {
        tree.has_head = has_head;
        assert_eq!(root_at::<H, _>(tree, size as u64), Ok(root));
        tree.read_each_tile_once();

        if index < size {
            let made = inclusion_proof::<H, _>(tree, index as u64, size as u64).unwrap();
            tree.read_each_tile_once();
            assert_eq!(made.hashes, inclusion, "leaf {index} of {size}");
            assert_eq!(made.verify_leaf::<H>(d[index], &root), Ok(()));
        }

        let made = consistency_proof::<H, _>(tree, old as u64, size as u64).unwrap();
        tree.read_each_tile_once();
        assert_eq!(made.hashes, consistency, "{old} to {size}");
        assert_eq!(made.verify::<H>(&old_root, &root), Ok(()));
    }
}

#[test]
fn small_trees_are_as_defined_at_every_size() {
    fn check<H: Hasher>() {
        let mut tree = Stored::of::<H>(&leaves::<H>(20));
        for size in 0..=20 {
            for i in 0..=size {
                is_as_defined::<H>(&mut tree, size, i, i);
            }
        }
    }
    check::<Blake3>();
    check::<Sha256>();
}

#[test]
fn trees_are_as_defined_where_tiles_begin_and_end() {
    fn check<H: Hasher>(sizes: &[usize]) {
        let mut tree = Stored::of::<H>(&leaves::<H>(*sizes.last().unwrap()));
        for &size in sizes {
            for (index, old) in [(0, 1), (255, 255), (size / 2, 256), (size - 1, size - 1), (size - 2, 0)] {
                is_as_defined::<H>(&mut tree, size, index, old.min(size));
            }
        }
    }
    check::<Blake3>(&[255, 256, 257, 511, 512, 513, 65535, 65536, 65537]);
    check::<Sha256>(&[255, 256, 257, 511, 512, 513, 767, 768, 769]);
}

/// A tree's size now, an earlier one, a leaf index below and an old size up to that.
fn sizes() -> impl Strategy<Value = (usize, usize, usize, usize)> {
    (1..3000usize)
        .prop_flat_map(|now| (Just(now), 1..=now))
        .prop_flat_map(|(now, size)| (Just(now), Just(size), 0..size, 0..=size))
}

fn flip(hash: &mut Hash, bit: usize) {
    hash.0[bit / 8 % 32] ^= 1 << (bit % 8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn proofs_at_any_earlier_size_are_as_defined((now, size, index, old) in sizes()) {
        is_as_defined::<Blake3>(&mut Stored::of::<Blake3>(&leaves::<Blake3>(now)), size, index, old);
        is_as_defined::<Sha256>(&mut Stored::of::<Sha256>(&leaves::<Sha256>(now)), size, index, old);
    }

    #[test]
    fn a_changed_inclusion_proof_fails(
        (now, size, index, _) in sizes(), other in 0u64..3000, at in any::<prop::sample::Index>(), bit in 0usize..256,
    ) {
        let mut tree = Stored::of::<Blake3>(&leaves::<Blake3>(now));
        let root = root_at::<Blake3, _>(&mut tree, size as u64).unwrap();
        let proof = inclusion_proof::<Blake3, _>(&mut tree, index as u64, size as u64).unwrap();
        let data = data(size)[index];
        let verify = |change: &dyn Fn(&mut InclusionProof, &mut Hash, &mut Hash)| {
            let (mut proof, mut data, mut root) = (proof.clone(), data, root);
            change(&mut proof, &mut data, &mut root);
            proof.verify_in(crate::HashSuite::Blake3, &data, &root)
        };
        prop_assert_eq!(verify(&|_, _, _| ()), Ok(()));
        prop_assert!(verify(&|_, data, _| flip(data, bit)).is_err());
        prop_assert!(verify(&|_, _, root| flip(root, bit)).is_err());
        let is_too_long = matches!(verify(&|p, _, _| p.hashes.push(root)), Err(ProofError::TooLong { .. }));
        prop_assert!(is_too_long);
        if other != index as u64 {
            prop_assert!(verify(&|p, _, _| p.index = other).is_err());
        }
        if other != size as u64 && other <= now as u64 {
            // The size alone is not bound by the hashes; the size with its root is.
            let root = root_at::<Blake3, _>(&mut tree, other).unwrap();
            prop_assert!(verify(&|p, _, r| (p.size, *r) = (other, root)).is_err());
            prop_assert!(verify(&|_, _, r| *r = root).is_err());
        }
        if !proof.hashes.is_empty() {
            let at = at.index(proof.hashes.len());
            prop_assert!(verify(&|p, _, _| flip(&mut p.hashes[at], bit)).is_err());
            let is_too_short =
                matches!(verify(&|p, _, _| _ = p.hashes.remove(at)), Err(ProofError::TooShort { .. }));
            prop_assert!(is_too_short);
        }
    }

    #[test]
    fn a_changed_consistency_proof_fails(
        (now, size, _, old) in sizes(), other in 0u64..3000, at in any::<prop::sample::Index>(), bit in 0usize..256,
    ) {
        let mut tree = Stored::of::<Sha256>(&leaves::<Sha256>(now));
        let roots = [old, size].map(|size| root_at::<Sha256, _>(&mut tree, size as u64).unwrap());
        let proof = consistency_proof::<Sha256, _>(&mut tree, old as u64, size as u64).unwrap();
        let verify = |change: &dyn Fn(&mut ConsistencyProof, &mut [Hash; 2])| {
            let (mut proof, mut roots) = (proof.clone(), roots);
            change(&mut proof, &mut roots);
            proof.verify_in(crate::HashSuite::Sha256, &roots[0], &roots[1])
        };
        prop_assert_eq!(verify(&|_, _| ()), Ok(()));
        prop_assert!(verify(&|_, roots| flip(&mut roots[0], bit)).is_err());
        prop_assert_eq!(verify(&|_, roots| flip(&mut roots[1], bit)).is_err(), old > 0);
        let is_too_long = matches!(verify(&|p, _| p.hashes.push(roots[0])), Err(ProofError::TooLong { .. }));
        prop_assert!(is_too_long);
        if other != old as u64 {
            prop_assert!(verify(&|p, _| p.old_size = other).is_err());
        }
        if other != size as u64 && other <= now as u64 && old > 0 {
            let root = root_at::<Sha256, _>(&mut tree, other).unwrap();
            prop_assert!(verify(&|p, roots| (p.new_size, roots[1]) = (other, root)).is_err());
            prop_assert!(verify(&|_, roots| roots[1] = root).is_err());
        }
        if !proof.hashes.is_empty() {
            let at = at.index(proof.hashes.len());
            prop_assert!(verify(&|p, _| flip(&mut p.hashes[at], bit)).is_err());
            let is_too_short =
                matches!(verify(&|p, _| _ = p.hashes.remove(at)), Err(ProofError::TooShort { .. }));
            prop_assert!(is_too_short);
        }
    }

    #[test]
    fn nonsense_is_refused_without_a_panic(
        sizes in prop::array::uniform2(prop_oneof![any::<u64>(), 0u64..9, (0u32..64, 0u64..3).prop_map(|(bit, less)| (1u64 << bit).wrapping_sub(less))]),
        count in 0usize..200,
    ) {
        let (hashes, hash) = (vec![Hash([3; 32]); count], Hash([4; 32]));
        let [a, b] = sizes;
        let inclusion = InclusionProof { index: a, size: b, hashes: hashes.clone() };
        prop_assert!(inclusion.verify::<Blake3>(&hash, &hash).is_err());
        let consistency = ConsistencyProof { old_size: a, new_size: b, hashes };
        let fits = a == b && a > 0 && count == 0;
        prop_assert_eq!(consistency.verify::<Blake3>(&hash, &hash).is_ok(), fits);
    }

    #[test]
    fn the_largest_trees_have_proofs(
        (size, old) in (1..=MAX_SEQUENCE).prop_flat_map(|size| (Just(size), 1..=size)),
    ) {
        for (size, old) in [(size, old), (MAX_SEQUENCE, old), (size, size), (MAX_SEQUENCE, MAX_SEQUENCE - 1)] {
            let data = Hash([5; 32]);
            let root_at = |size| root_at::<Blake3, _>(&mut Alike::new(data), size).unwrap();
            let (old_root, root) = (root_at(old), root_at(size));
            let mut reader = Alike::new(data);
            let inclusion = inclusion_proof::<Blake3, _>(&mut reader, old - 1, size).unwrap();
            prop_assert!(reader.read.len() <= 16);
            prop_assert_eq!(inclusion.verify::<Blake3>(&data, &root), Ok(()));
            let mut reader = Alike::new(data);
            let consistency = consistency_proof::<Blake3, _>(&mut reader, old, size).unwrap();
            prop_assert!(reader.read.len() <= 16);
            prop_assert_eq!(consistency.verify::<Blake3>(&old_root, &root), Ok(()));
        }
    }
}

/// A tree of any size whose leaves are all the same, so that all hashes of a level are.
struct Alike {
    data: Hash,
    read: Vec<TileId>,
}

impl Alike {
    fn new(data: Hash) -> Self {
        Self { data, read: vec![] }
    }
}

impl TileReader for Alike {
    type Error = Infallible;

    fn tile(&mut self, tile: TileId, width: usize) -> Result<Tile, Infallible> {
        assert!(!self.read.contains(&tile), "{tile:?} is read twice");
        self.read.push(tile);
        let height = u32::from(tile.level) * TILE_HEIGHT;
        let hash = (0..height).fold(Blake3::leaf(&self.data), |hash, _| Blake3::node(&hash, &hash));
        Ok(Tile::new(vec![hash; width]).unwrap())
    }
}

#[test]
fn the_partial_tile_of_leaves_is_read_only_if_needed() {
    let mut tree = Stored::of::<Blake3>(&leaves::<Blake3>(1000));
    let partial = RightEdge::partial(1000, 0);
    // From one full tile to the next, nothing else is needed; nor for a size that ends with a tile.
    consistency_proof::<Blake3, _>(&mut tree, 256, 512).unwrap();
    inclusion_proof::<Blake3, _>(&mut tree, 300, 768).unwrap();
    root_at::<Blake3, _>(&mut tree, 768).unwrap();
    assert!(!tree.read.contains(&partial));
    assert_eq!(tree.read.iter().filter(|tile| tile.level == 0).count(), 1);
    // With the head, the newest size needs it for its own leaves only.
    tree.has_head = true;
    inclusion_proof::<Blake3, _>(&mut tree, 767, 1000).unwrap();
    consistency_proof::<Blake3, _>(&mut tree, 512, 1000).unwrap();
    assert!(!tree.read.contains(&partial));
    tree.read.clear();
    root_at::<Blake3, _>(&mut tree, 1000).unwrap();
    assert_eq!(tree.read, []);
    inclusion_proof::<Blake3, _>(&mut tree, 768, 1000).unwrap();
    assert!(tree.read.contains(&partial));
}

#[test]
fn what_cannot_be_made_is_an_error() {
    let mut tree = Stored::of::<Blake3>(&leaves::<Blake3>(300));
    let too_large = MAX_SEQUENCE + 1;
    assert_eq!(
        inclusion_proof::<Blake3, _>(&mut tree, 300, 300),
        Err(ReadError::NoSuchLeaf { index: 300, size: 300 })
    );
    assert_eq!(
        inclusion_proof::<Blake3, _>(&mut tree, 0, 0),
        Err(ReadError::NoSuchLeaf { index: 0, size: 0 })
    );
    assert_eq!(
        consistency_proof::<Blake3, _>(&mut tree, 3, 2),
        Err(ReadError::Shrinks { old_size: 3, new_size: 2 })
    );
    for size in [too_large, u64::MAX] {
        assert_eq!(root_at::<Blake3, _>(&mut tree, size), Err(ReadError::TooLarge { size }));
        assert_eq!(inclusion_proof::<Blake3, _>(&mut tree, 0, size), Err(ReadError::TooLarge { size }));
        assert_eq!(consistency_proof::<Blake3, _>(&mut tree, 1, size), Err(ReadError::TooLarge { size }));
    }
    // A size the tree does not have yet: the level 1 tile is too short.
    let tile = TileId { level: 1, index: 0 };
    assert_eq!(root_at::<Blake3, _>(&mut tree, 512), Err(ReadError::Missing { tile, needed: 2, actual: 1 }));
    let none = TileId { level: 0, index: 1 };
    assert_eq!(inclusion_proof::<Blake3, _>(&mut tree, 280, 400), Err(ReadError::Tile(NotStored(none))));
}

#[test]
fn a_frontier_of_an_earlier_size_continues_to_the_same_root() {
    let mut tree = Stored::of::<Blake3>(&leaves::<Blake3>(700));
    for size in [0, 1, 255, 256, 257, 512, 699, 700] {
        let mut frontier = frontier_at::<Blake3, _>(&mut tree, size).unwrap();
        assert_eq!(Frontier::from_peaks(size, frontier.peaks().to_vec()), Some(frontier.clone()));
        for leaf in &tree.leaves[size as usize..] {
            frontier.push::<Blake3>(*leaf, |_, _| {});
        }
        assert_eq!(frontier, tree.frontier);
    }
}
