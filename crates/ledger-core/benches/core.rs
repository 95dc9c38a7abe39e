//! What an append, a proof and its verification cost in the core: no I/O, one thread.
//!
//! Limits at 1 M entries: a proof is made in under 100 µs and verified in under 10 µs.

#![allow(missing_docs)] // criterion's macros

use std::{collections::HashMap, hint::black_box};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, Key, Sequence,
    clock::LamportClock,
    hash::{Blake3, Hasher, Sha256},
    tree::{
        Frontier, RightEdge, Tile, TileId, TileReader,
        reader::{consistency_proof, inclusion_proof, root_at},
    },
};

const MILLION: u64 = 1_000_000;

/// All tiles of a tree.
#[derive(Default)]
struct Tiles {
    stored: HashMap<TileId, Tile>,
    frontier: Frontier,
    edge: RightEdge,
}

impl Tiles {
    fn of<H: Hasher>(size: u64) -> Self {
        let mut this = Self::default();
        for index in 0..size {
            this.push::<H>(index);
        }
        // What a store recomputes from the entries.
        let partial = RightEdge::partial(size, 0);
        this.stored.extend(Tile::new(this.edge.leaves().to_vec()).map(|tile| (partial, tile)));
        this
    }

    fn push<H: Hasher>(&mut self, index: u64) {
        let Self { stored, frontier, edge } = self;
        frontier.push::<H>(H::leaf(&data(index)), |height, hash| {
            edge.completed(index + 1, height, hash, &mut |id, hashes| {
                stored.extend(Tile::new(hashes.to_vec()).map(|tile| (id, tile)));
            });
        });
    }
}

impl TileReader for Tiles {
    type Error = std::fmt::Error;

    fn tile(&mut self, tile: TileId, _: usize) -> Result<Tile, Self::Error> {
        self.stored.get(&tile).cloned().ok_or(std::fmt::Error)
    }

    fn frontier(&mut self, size: u64) -> Option<Frontier> {
        (size == self.frontier.size()).then(|| self.frontier.clone())
    }
}

fn data(index: u64) -> Hash {
    let mut hash = [0x5a; 32];
    hash[..8].copy_from_slice(&index.to_be_bytes());
    Hash(hash)
}

/// An entry whose payload has 256 bytes.
fn entry() -> Option<Entry> {
    Some(Entry {
        context_id: ContextId::new("growth-strategy-001").ok()?,
        sequence: Sequence(MILLION),
        id: EntryId::from_bits([7; 16]),
        key: Key::new("traces").ok()?,
        payload: vec![b'x'; 256].into(),
        metadata: [("agent_id".to_owned(), "analyst".to_owned())].into(),
        appended_at_ns: 1_795_213_514_531_247_822,
        lamport: LamportClock(MILLION),
        epoch: Epoch::new(1, 7),
        content_hash: Hash([0; 32]),
    })
}

fn suite<H: Hasher>(c: &mut Criterion) {
    let name = H::SUITE.name();
    let mut tree = Tiles::of::<H>(MILLION);
    let root = tree.frontier.root::<H>();

    if let Some(entry) = entry() {
        c.bench_function(&format!("{name}/content hash, 256 bytes"), |b| {
            b.iter(|| black_box(&entry).computed_hash_with::<H>());
        });
    }
    let mut frontier = tree.frontier.clone();
    c.bench_function(&format!("{name}/frontier push"), |b| {
        b.iter(|| frontier.push::<H>(H::leaf(&data(frontier.size())), |_, _| {}));
    });
    let mut frontier = tree.frontier.clone();
    c.bench_function(&format!("{name}/frontier push and root at 1 M"), |b| {
        b.iter(|| {
            frontier.push::<H>(H::leaf(&data(frontier.size())), |_, _| {});
            frontier.root::<H>()
        });
    });

    // Anywhere in the tree: a step that shares no factor with the size.
    let mut at = 0;
    let mut next = move || {
        at = (at + 618_033) % MILLION;
        at
    };
    c.bench_function(&format!("{name}/inclusion proof made at 1 M"), |b| {
        b.iter(|| inclusion_proof::<H, _>(&mut tree, next(), MILLION).is_ok());
    });
    c.bench_function(&format!("{name}/consistency proof made at 1 M"), |b| {
        b.iter(|| consistency_proof::<H, _>(&mut tree, next() + 1, MILLION).is_ok());
    });
    c.bench_function(&format!("{name}/inclusion proof made at an earlier size of 1 M"), |b| {
        b.iter(|| inclusion_proof::<H, _>(&mut tree, next() / 2, MILLION - 1).is_ok());
    });
    c.bench_function(&format!("{name}/root at an earlier size of 1 M"), |b| {
        b.iter(|| root_at::<H, _>(&mut tree, next()).is_ok());
    });
    c.bench_function(&format!("{name}/inclusion proof verified at 1 M"), |b| {
        b.iter_batched(
            || inclusion_proof::<H, _>(&mut tree, next(), MILLION),
            |proof| assert!(proof.is_ok_and(|proof| proof.verify::<H>(&data(proof.index), &root).is_ok())),
            BatchSize::SmallInput,
        );
    });
    c.bench_function(&format!("{name}/consistency proof verified at 1 M"), |b| {
        b.iter_batched(
            || {
                let old_size = next() + 1;
                let old_root = root_at::<H, _>(&mut tree, old_size);
                (consistency_proof::<H, _>(&mut tree, old_size, MILLION), old_root)
            },
            |(proof, old_root)| {
                assert!(old_root.is_ok_and(|old_root| {
                    proof.is_ok_and(|proof| proof.verify::<H>(&old_root, &root).is_ok())
                }));
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, suite::<Blake3>, suite::<Sha256>);
criterion_main!(benches);
