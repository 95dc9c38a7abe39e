//! The reader of the predecessor's snapshots: Erlang terms, plain and compressed.

use std::io::Write as _;

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use ledger_core::{
    Sequence,
    legacy::{Limits, Snapshot},
};

use crate::Outcome;

const FIXTURES: [&[u8]; 4] = [
    include_bytes!("../../../../tests/fixtures/empty.etf"),
    include_bytes!("../../../../tests/fixtures/one-entry.etf"),
    include_bytes!("../../../../tests/fixtures/five-entries.etf"),
    include_bytes!("../../../../tests/fixtures/version-1.etf"),
];

/// What the predecessor wrote, as it is and without compression.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = FIXTURES.iter().map(|fixture| fixture.to_vec()).collect();
    for fixture in FIXTURES {
        if let [131, 80, _, _, _, _, zlib @ ..] = fixture {
            let mut plain = vec![131];
            if std::io::copy(&mut ZlibDecoder::new(zlib), &mut plain).is_ok() {
                seeds.push(plain);
            }
        }
    }
    seeds
}

/// Laws: the sequences are 1, 2, 3, …; compression changes nothing.
pub(super) fn run(input: &[u8]) -> Outcome {
    let limits = Limits { max_uncompressed: 16 << 20, ..Limits::default() };
    let result = Snapshot::decode(input.to_vec(), limits);
    if let [131, first, ..] = input
        && *first != 80
        && let Some(compressed) = compress(&input[1..])
    {
        assert_eq!(Snapshot::decode(compressed, limits), result, "compression changes nothing");
    }
    match result {
        Err(error) => Outcome::of(&error.to_string()),
        Ok(snapshot) => {
            let sequences = snapshot.entries.iter().map(|entry| entry.sequence);
            assert!(sequences.eq((1..=snapshot.sequence.0).map(Sequence)), "no gaps");
            match snapshot.verify() {
                Err(error) => Outcome::of(&error.to_string()),
                Ok(()) => Outcome::of(&"*".repeat(snapshot.entries.len())),
            }
        }
    }
}

fn compress(term: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![131, 80];
    out.extend(u32::try_from(term.len()).ok()?.to_be_bytes());
    let mut zlib = ZlibEncoder::new(out, Compression::fast());
    zlib.write_all(term).ok()?;
    zlib.finish().ok()
}
