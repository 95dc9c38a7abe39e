//! Changing inputs: bits and bytes, and what breaks readers of formats: lengths, counts, tags, pieces moved.

use rand::{RngExt as _, rngs::Xoshiro256PlusPlus};

/// Inputs don't grow beyond this, bytes.
const MAX_LEN: usize = 64 * 1024;

/// An input made from one of the corpus by a few changes.
pub(crate) fn mutant(rng: &mut Xoshiro256PlusPlus, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = pick(rng, corpus).to_vec();
    // Mostly one or two changes: more seldom get far.
    for _ in 0..1 << rng.random_range(0..4u32) {
        change(rng, &mut input, corpus);
        if rng.random_bool(0.5) {
            break;
        }
    }
    input.truncate(MAX_LEN);
    input
}

fn pick<'a>(rng: &mut Xoshiro256PlusPlus, corpus: &'a [Vec<u8>]) -> &'a [u8] {
    corpus.get(rng.random_range(0..corpus.len().max(1))).map_or(&[], Vec::as_slice)
}

fn change(rng: &mut Xoshiro256PlusPlus, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let len = input.len();
    if len == 0 {
        input.extend(noise(rng, 16));
        return;
    }
    let at = rng.random_range(0..len);
    match rng.random_range(0..12u32) {
        0 | 1 => input[at] ^= 1 << rng.random_range(0..8u32),
        2 => input[at] = rng.random(),
        3 => input[at] = input[at].wrapping_add(if rng.random() { 1 } else { 255 }),
        4 => input.truncate(at),
        5 => drop(input.drain(range(rng, len, 64))),
        6 => {
            let piece = noise(rng, 16);
            insert(input, at, &piece);
        }
        7 => {
            let piece = input[range(rng, len, 256)].to_vec();
            insert(input, at, &piece);
        }
        8 => {
            let piece = input[range(rng, len, 64)].to_vec();
            let end = (at + piece.len()).min(len);
            input[at..end].copy_from_slice(&piece[..end - at]);
        }
        9 => number(rng, input, at),
        10 => resize(rng, input, at),
        _ => {
            let other = pick(rng, corpus);
            if !other.is_empty() {
                let from = rng.random_range(0..other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
}

/// Overwrites a big-endian number with one that is at the edge of something.
fn number(rng: &mut Xoshiro256PlusPlus, input: &mut [u8], at: usize) {
    let width = [1, 2, 4, 8][rng.random_range(0..4usize)];
    let rest = input.len() - at;
    if rest < width {
        return;
    }
    let edges = [
        0,
        1,
        u64::MAX,
        u64::MAX - 1,
        u64::MAX >> 1,
        1 << 63,
        rest as u64,
        (rest - width) as u64,
        (rest - width + 1) as u64,
        input.len() as u64,
        1 << rng.random_range(0..64u32),
    ];
    let value = edges[rng.random_range(0..edges.len())];
    // `u64::MAX` and its likes keep their look at every width.
    input[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}

/// Changes what may be a length, and as many of the bytes behind it.
fn resize(rng: &mut Xoshiro256PlusPlus, input: &mut Vec<u8>, at: usize) {
    let amount = rng.random_range(1..9u8);
    let behind = at + 1;
    if rng.random() {
        input[at] = input[at].wrapping_add(amount);
        let piece: Vec<u8> = noise(rng, usize::from(amount));
        let piece: Vec<u8> = piece.into_iter().cycle().take(amount.into()).collect();
        insert(input, behind, &piece);
    } else {
        input[at] = input[at].wrapping_sub(amount);
        let end = (behind + usize::from(amount)).min(input.len());
        input.drain(behind..end);
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}

fn range(rng: &mut Xoshiro256PlusPlus, len: usize, max: usize) -> std::ops::Range<usize> {
    let from = rng.random_range(0..len);
    from..rng.random_range(from..=len.min(from + max))
}

/// One to `max` random bytes.
fn noise(rng: &mut Xoshiro256PlusPlus, max: usize) -> Vec<u8> {
    (0..rng.random_range(1..=max)).map(|_| rng.random()).collect()
}
