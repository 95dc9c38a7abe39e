//! The snapshot reader.

use bytes::Bytes;
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, HashSuite, Head, Key, Lineage,
    entry::Draft,
    log::Stamp,
    snapshot::{Decoder, Encoder, Header, Item, Limits, SnapshotError},
    tree::RightEdge,
};

use crate::Outcome;

const GOLDEN: &[u8] = include_bytes!("../../../ledger-core/src/snapshot/golden/version-1.snapshot");

/// Bytes from the start of a frame to its compressed bytes: tag and two lengths.
const FRAME_HEAD: usize = 1 + 4 + 4;

/// Snapshots of both suites and several sizes.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    [(HashSuite::Blake3, 0), (HashSuite::Blake3, 1), (HashSuite::Sha256, 9)]
        .into_iter()
        .filter_map(|(suite, count)| snapshot(suite, count))
        .chain([GOLDEN.to_vec()])
        .collect()
}

/// Laws: the pieces it comes in change nothing; what is read to its end is written and read as the same.
pub(super) fn run(input: &[u8]) -> Outcome {
    let whole = decode(input, std::iter::repeat(input.len()));
    // Pieces that the input itself decides.
    let pieces = input.iter().rev().cycle().map(|byte| usize::from(*byte) * usize::from(*byte) + 1);
    assert_eq!(decode(input, pieces), whole, "pieces change nothing");

    let (items, result) = whole;
    let text = match &result {
        Ok(()) => {
            assert_eq!(items.last(), Some(&Item::End), "an end");
            let written = encode(&items).unwrap_or_else(|error| panic!("cannot be written again: {error}"));
            let again = decode(&written, std::iter::repeat(written.len()));
            assert_eq!(again, (items.clone(), Ok(())), "what is written is read");
            String::new()
        }
        Err(error) => error.to_string(),
    };
    Outcome::of(&(text + " " + &"*".repeat(items.len())))
}

/// What frames hold, without compression.
pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    seeds().iter().filter_map(|snapshot| frame_of(snapshot)).collect()
}

/// As [`run`], for a snapshot whose one frame holds the input.
pub(super) fn run_frame(input: &[u8]) -> Outcome {
    let envelope = || {
        let compressed = zstd::bulk::compress(input, 1).ok()?;
        let mut out = GOLDEN.get(..header_len(GOLDEN)?)?.to_vec();
        out.push(b'F');
        out.extend(u32::try_from(compressed.len()).ok()?.to_be_bytes());
        out.extend(u32::try_from(input.len()).ok()?.to_be_bytes());
        out.extend(compressed);
        out.push(b'T');
        out.extend([0; 64]);
        Some(out)
    };
    envelope().map_or(Outcome::of("no envelope"), |snapshot| run(&snapshot))
}

fn decode(
    mut input: &[u8],
    mut pieces: impl Iterator<Item = usize>,
) -> (Vec<Item>, Result<(), SnapshotError>) {
    let mut decoder = Decoder::new(Limits { max_payload: 1 << 20, ..Limits::default() });
    let mut items = Vec::new();
    while !input.is_empty() {
        let (piece, rest) = input.split_at(pieces.next().unwrap_or(usize::MAX).clamp(1, input.len()));
        input = rest;
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => return (items, Err(error)),
            }
        }
    }
    (items, decoder.finish())
}

fn encode(items: &[Item]) -> Result<Vec<u8>, SnapshotError> {
    let mut out = Vec::new();
    let mut encoder = None;
    for item in items {
        match item {
            Item::Header(header) => encoder = Some(Encoder::new(header.clone())),
            Item::Entry(entry) => {
                if let Some(encoder) = &mut encoder {
                    encoder.push(entry, &mut out)?;
                }
            }
            Item::End => {}
        }
    }
    if let Some(encoder) = encoder {
        encoder.finish(&mut out)?;
    }
    Ok(out)
}

fn snapshot(suite: HashSuite, count: u8) -> Option<Vec<u8>> {
    let context = ContextId::new("growth-strategy-001").ok()?;
    let mut head = Head::new(suite, Lineage([9; 16]), 1_795_213_514_000_000_000);
    let mut edge = RightEdge::default();
    let entries: Option<Vec<Entry>> = (1..=count)
        .map(|n| {
            let draft = Draft {
                key: Key::new(if n % 2 == 0 { "facts" } else { "traces" }).ok()?,
                payload: Bytes::from(vec![n; usize::from(n) * 20]),
                metadata: (0..n % 3).map(|i| (i.to_string(), "value".to_owned())).collect(),
            };
            let stamp = Stamp {
                id: if n % 3 == 0 { EntryId::new("chosen").ok()? } else { EntryId::from_bits([n; 16]) },
                now_ns: 1_795_213_514_000_000_000 + u64::from(n),
                received_lamport: 0,
                epoch: Epoch::new(u32::from(n / 4), 1),
            };
            head.append(&mut edge, &context, draft, stamp, &mut |_, _| ()).ok()
        })
        .collect();
    let header = Item::Header(Header::of(&context, &head, 1_795_213_600_000_000_000));
    let items: Vec<Item> = std::iter::once(header).chain(entries?.into_iter().map(Item::Entry)).collect();
    encode(&items).ok()
}

/// Where a snapshot's header ends: magic, version, length, header.
fn header_len(snapshot: &[u8]) -> Option<usize> {
    let len = u32::from_be_bytes(snapshot.get(10..14)?.try_into().ok()?);
    Some(14 + len as usize)
}

/// What the first frame of a snapshot holds.
fn frame_of(snapshot: &[u8]) -> Option<Vec<u8>> {
    let frame = snapshot.get(header_len(snapshot)?..)?;
    let (head, rest) = frame.split_at_checked(FRAME_HEAD)?;
    let compressed = u32::from_be_bytes(head[1..5].try_into().ok()?) as usize;
    let uncompressed = u32::from_be_bytes(head[5..9].try_into().ok()?) as usize;
    zstd::bulk::decompress(rest.get(..compressed)?, uncompressed).ok()
}

/// The entries of the golden snapshot.
pub(super) fn entries() -> Vec<Entry> {
    let items = decode(GOLDEN, std::iter::repeat(GOLDEN.len())).0;
    items
        .into_iter()
        .filter_map(|item| if let Item::Entry(entry) = item { Some(entry) } else { None })
        .collect()
}
