//! The reference vectors of Certificate Transparency (google/certificate-transparency,
//! `merkle_tree_test.cc`): eight leaves, SHA-256.

use super::*;
use crate::hash::{Blake3, Sha256};

const LEAVES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

const ROOTS: [&str; 9] = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

/// Leaf index, size, path.
const PATHS: [(u64, u64, &[&str]); 5] = [
    (0, 1, &[]),
    (
        0,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        &[
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        &[
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
];

/// Old size, new size, proof.
const PROOFS: [(u64, u64, &[&str]); 4] = [
    (1, 1, &[]),
    (
        1,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        &[
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        &[
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
];

/// These leaves are of any length, unlike ours.
fn reference_leaf(data: &str) -> Hash {
    Sha256::digest(&[vec![0], hex::decode(data).unwrap()].concat())
}

fn reference_tree() -> Stored {
    Stored::of::<Sha256>(&LEAVES.map(reference_leaf))
}

fn root(size: u64) -> Hash {
    Hash::from_hex(ROOTS[size as usize]).unwrap()
}

fn hashes(hex: &[&str]) -> Vec<Hash> {
    hex.iter().map(|hash| Hash::from_hex(hash).unwrap()).collect()
}

#[test]
fn roots_are_the_published_ones() {
    let mut tree = reference_tree();
    let mut frontier = Frontier::default();
    for size in 0..=8 {
        assert_eq!(frontier.root::<Sha256>(), root(size));
        assert_eq!(root_at::<Sha256, _>(&mut tree, size), Ok(root(size)));
        if let Some(data) = LEAVES.get(size as usize) {
            frontier.push::<Sha256>(reference_leaf(data), |_, _| {});
        }
    }
}

#[test]
fn inclusion_proofs_are_the_published_ones() {
    let mut tree = reference_tree();
    for (index, size, path) in PATHS {
        let made = inclusion_proof::<Sha256, _>(&mut tree, index, size).unwrap();
        assert_eq!(made, InclusionProof { index, size, hashes: hashes(path) });
    }
}

#[test]
fn consistency_proofs_are_the_published_ones() {
    let mut tree = reference_tree();
    for (old_size, new_size, proof) in PROOFS {
        let made = consistency_proof::<Sha256, _>(&mut tree, old_size, new_size).unwrap();
        assert_eq!(made, ConsistencyProof { old_size, new_size, hashes: hashes(proof) });
    }
}

#[test]
fn proofs_of_all_sizes_fit_the_published_roots_and_no_other() {
    let mut tree = reference_tree();
    for size in 0..=8 {
        for index in 0..size {
            let proof = inclusion_proof::<Sha256, _>(&mut tree, index, size).unwrap();
            for other in 0..=8 {
                for leaf in 0..8 {
                    let verified =
                        proof.verify_leaf::<Sha256>(reference_leaf(LEAVES[leaf as usize]), &root(other));
                    assert_eq!(verified.is_ok(), other == size && leaf == index);
                }
            }
        }
        for old_size in 0..=size {
            let proof = consistency_proof::<Sha256, _>(&mut tree, old_size, size).unwrap();
            for other in 0..=8 {
                assert_eq!(
                    proof.verify::<Sha256>(&root(other), &root(size)).is_ok(),
                    other == old_size,
                    "{proof:?} {other}"
                );
                // The empty tree begins every tree.
                assert_eq!(
                    proof.verify::<Sha256>(&root(old_size), &root(other)).is_ok(),
                    other == size || (old_size == 0 && size > 0),
                    "{proof:?} {other}"
                );
            }
        }
    }
}

#[test]
fn leaves_and_nodes_are_told_apart_by_their_first_byte() {
    fn check<H: Hasher>() {
        let [a, b] = [Hash([7; 32]), Hash([9; 32])];
        assert_eq!(H::leaf(&a), H::digest(&[&[0][..], &a.0].concat()));
        assert_eq!(H::node(&a, &b), H::digest(&[&[1][..], &a.0, &b.0].concat()));
    }
    check::<Blake3>();
    check::<Sha256>();
}
