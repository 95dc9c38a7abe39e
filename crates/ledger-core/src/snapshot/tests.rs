use bytes::Bytes;
use proptest::prelude::*;

use super::{
    layout::{FRAME_TAG, TRAILER_TAG},
    *,
};
use crate::{
    Entry, EntryId, Key, Sequence,
    entry::{Draft, Metadata},
    limits::{MAX_METADATA_PAIRS, MAX_PAYLOAD},
    log::Stamp,
    tree::RightEdge,
};

const GOLDEN: &[u8] = include_bytes!("golden/version-1.snapshot");

/// A history of drafts with their ids, under one header.
fn history(suite: HashSuite, drafts: Vec<(EntryId, Draft)>) -> (Header, Vec<Entry>) {
    let context = ContextId::new("growth-strategy-001").unwrap();
    let mut head = Head::new(suite, Lineage(*b"lineage-of-tests"), 1_795_213_514_000_000_000);
    let mut edge = RightEdge::default();
    let mut entries = Vec::new();
    for (i, (id, draft)) in (0u64..).zip(drafts) {
        let stamp = Stamp {
            id,
            now_ns: 1_795_213_514_528_943_038 + i,
            received_lamport: 3 * i,
            epoch: Epoch::new(1 + (i / 4) as u32, 7),
        };
        entries.push(head.append(&mut edge, &context, draft, stamp, &mut |_, _| ()).unwrap());
    }
    (Header::of(&context, &head, 1_795_213_600_000_000_000), entries)
}

fn draft(key: &str, payload: impl Into<Bytes>, metadata: &[(&str, &str)]) -> Draft {
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Draft { key: Key::new(key).unwrap(), payload: payload.into(), metadata }
}

fn golden_history() -> (Header, Vec<Entry>) {
    let bits = |n: u8| EntryId::from_bits([n; 16]);
    history(
        HashSuite::Blake3,
        vec![
            (bits(1), draft("facts", "market_size: 2.4B", &[])),
            (bits(2), draft("traces", "agent:analyst started", &[("agent_id", "analyst"), ("cycle", "5")])),
            (EntryId::new("retry-7").unwrap(), draft("évals", vec![0, 255, 1], &[("évaluation", "✓")])),
            (bits(4), draft("facts", "", &[("empty", "")])),
            (bits(5), draft("facts", "x".repeat(300), &[])),
        ],
    )
}

fn encode(header: &Header, entries: &[Entry]) -> Result<Vec<u8>, SnapshotError> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(header.clone());
    encoder.start(&mut out);
    for entry in entries {
        encoder.push(entry, &mut out)?;
    }
    encoder.finish(&mut out)?;
    Ok(out)
}

/// Feeds pieces of the given lengths, over and over. Gives all items, or the error.
fn decode_in(bytes: &[u8], pieces: &[usize], limits: Limits) -> (Vec<Item>, Result<(), SnapshotError>) {
    let mut decoder = Decoder::new(limits);
    let mut items = Vec::new();
    let mut rest = bytes;
    let mut pieces = pieces.iter().cycle();
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at((*pieces.next().unwrap()).clamp(1, rest.len()));
        rest = tail;
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next(), Err(error.clone()), "an error stays");
                    return (items, Err(error));
                }
            }
        }
    }
    (items, decoder.finish())
}

fn decode(bytes: &[u8]) -> (Vec<Item>, Result<(), SnapshotError>) {
    decode_in(bytes, &[bytes.len().max(1)], Limits::default())
}

fn error_of(bytes: &[u8]) -> SnapshotError {
    let (items, result) = decode(bytes);
    assert!(!items.contains(&Item::End), "no end");
    result.unwrap_err()
}

fn items(header: Header, entries: Vec<Entry>) -> Vec<Item> {
    let entries = entries.into_iter().map(Item::Entry);
    std::iter::once(Item::Header(header)).chain(entries).chain([Item::End]).collect()
}

/// A snapshot whose one frame holds these bytes; the trailer is only there.
fn with_frame(header: &Header, frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::new(header.clone()).start(&mut out);
    let compressed = zstd_frame::Deflater::default().deflate(frame).unwrap();
    put_frame(&mut out, &compressed, frame.len() as u32);
    out.push(TRAILER_TAG);
    out.extend([0; 64]);
    out
}

fn put_frame(out: &mut Vec<u8>, compressed: &[u8], uncompressed: u32) {
    out.push(FRAME_TAG);
    out.extend((compressed.len() as u32).to_be_bytes());
    out.extend(uncompressed.to_be_bytes());
    out.extend(compressed);
}

#[test]
#[ignore = "writes the golden file; only for a new version of the format"]
fn write_the_golden_file() {
    let (header, entries) = golden_history();
    let path = "src/snapshot/golden/version-1.snapshot";
    std::fs::write(path, encode(&header, &entries).unwrap()).unwrap();
}

#[test]
fn the_golden_file_holds_what_was_written() {
    let (header, entries) = golden_history();
    assert_eq!(decode(GOLDEN), (items(header, entries), Ok(())));
    assert!(is_snapshot(GOLDEN));
}

#[test]
fn the_header_is_encoded_as_documented() {
    let (header, _) = golden_history();
    let mut body = vec![0, 19];
    body.extend(b"growth-strategy-001");
    body.push(1);
    body.extend(5u64.to_be_bytes());
    body.extend(header.root.0);
    body.extend(13u64.to_be_bytes());
    body.extend(Epoch::new(2, 7).0.to_be_bytes());
    body.extend(b"lineage-of-tests");
    body.extend(1_795_213_514_000_000_000u64.to_be_bytes());
    body.extend(1_795_213_600_000_000_000u64.to_be_bytes());
    let mut expected = b"CVGLSNAP\x00\x01".to_vec();
    expected.extend((body.len() as u32).to_be_bytes());
    expected.extend(body);

    let mut out = Vec::new();
    let mut encoder = Encoder::new(header);
    encoder.start(&mut out);
    assert_eq!(out, expected);
    assert_eq!(&GOLDEN[..expected.len()], expected);
    encoder.start(&mut out);
    assert_eq!(out, expected, "the second start does nothing");
}

#[test]
fn an_entry_is_encoded_as_documented() {
    let (_, entries) = golden_history();
    let entry = &entries[2];
    let mut expected = Vec::new();
    expected.extend(7u64.to_be_bytes());
    expected.extend(1_795_213_514_528_943_040u64.to_be_bytes());
    expected.extend(Epoch::new(1, 7).0.to_be_bytes());
    expected.extend(entry.content_hash.0);
    expected.extend(b"\x01\x00\x07retry-7");
    expected.extend("\x00\x06évals".bytes());
    expected.extend([0, 0, 0, 1]);
    expected.extend("\x00\x00\x00\x0bévaluation\x00\x00\x00\x03✓".bytes());
    expected.extend([0, 0, 0, 3, 0, 255, 1]);
    let mut out = Vec::new();
    entry::encode(entry, &mut out).unwrap();
    assert_eq!(out, expected);

    out.clear();
    entry::encode(&entries[0], &mut out).unwrap();
    assert_eq!(out[56..73], [[0].as_slice(), &[1; 16]].concat(), "128 bits");
}

#[test]
fn every_flipped_bit_is_noticed() {
    for at in 0..GOLDEN.len() {
        for bit in 0..8 {
            let mut bytes = GOLDEN.to_vec();
            bytes[at] ^= 1 << bit;
            error_of(&bytes);
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    for len in 0..GOLDEN.len() {
        let error = error_of(&GOLDEN[..len]);
        assert!(matches!(error, SnapshotError::Truncated { bytes, .. } if bytes == len as u64), "{error}");
    }
}

#[test]
fn bytes_after_the_end_are_noticed() {
    let bytes = [GOLDEN, b"x"].concat();
    for pieces in [&[1][..], &[GOLDEN.len(), 1], &[usize::MAX]] {
        let (items, result) = decode_in(&bytes, pieces, Limits::default());
        assert_eq!(items.last(), Some(&Item::End));
        assert_eq!(result, Err(SnapshotError::TrailingBytes { bytes: GOLDEN.len() as u64 }));
    }
}

#[test]
fn the_wrong_thing_is_told_from_a_damaged_one() {
    assert_eq!(error_of(b"{\"entries\": []}"), SnapshotError::NotASnapshot);
    assert_eq!(error_of(b"CX"), SnapshotError::NotASnapshot);
    assert!(!is_snapshot(b"CVGLSNA"));

    let mut newer = GOLDEN.to_vec();
    newer[9] = 2;
    let error = error_of(&newer);
    assert_eq!(error, SnapshotError::NewerVersion { version: 2 });
    let message = error.to_string();
    assert!(message.contains("version 2") && message.contains("up to 1"), "{message}");

    let mut checksum = GOLDEN.to_vec();
    *checksum.last_mut().unwrap() ^= 1;
    assert!(matches!(error_of(&checksum), SnapshotError::Checksum { .. }));

    let mut root = GOLDEN.to_vec();
    let at = root.len() - 64;
    root[at] ^= 1;
    assert!(matches!(
        error_of(&root),
        SnapshotError::RootMismatch { claimed_by: SnapshotSection::Trailer, .. }
    ));
}

#[test]
fn a_damaged_entry_is_named() {
    type Change = fn(&mut Entry);
    let changes: [(Change, &str); 5] = [
        (|e| e.payload = Bytes::from_static(b"other"), "content hash"),
        (|e| e.lamport.0 = 4, "Lamport"),
        (|e| e.epoch = Epoch(0), "epoch"),
        (|e| e.appended_at_ns += 1, "content hash"),
        (|e| e.content_hash.0[7] ^= 1, "content hash"),
    ];
    let (header, entries) = golden_history();
    for (change, part) in changes {
        let mut frame = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let mut entry = entry.clone();
            if i == 2 {
                change(&mut entry);
            }
            entry::encode(&entry, &mut frame).unwrap();
        }
        let (items, result) = decode(&with_frame(&header, &frame));
        assert_eq!(items.len(), 3, "header and the two entries before");
        let message = result.unwrap_err().to_string();
        assert!(message.contains("entry 3 ") && message.contains(part), "{message}");
    }
}

#[test]
fn entries_that_are_left_out_or_doubled_are_noticed() {
    let (header, entries) = golden_history();
    for order in
        [&[0, 1, 2, 3][..], &[0, 2, 3, 4], &[0, 1, 1, 2, 3, 4], &[1, 0, 2, 3, 4], &[0, 1, 2, 3, 4, 4]]
    {
        let mut frame = Vec::new();
        for i in order {
            entry::encode(&entries[*i], &mut frame).unwrap();
        }
        assert!(matches!(error_of(&with_frame(&header, &frame)), SnapshotError::Corrupt { .. }), "{order:?}");
    }
}

#[test]
fn an_entry_has_one_encoding() {
    let (header, _) = golden_history();
    let start = [[0; 24].as_slice(), &[0; 32]].concat();
    let id = [&[1, 0, 32][..], b"f164eb721c26e7afb239f66b118ebaaa"].concat();
    let error = error_of(&with_frame(&header, &[start.clone(), id, vec![0; 64]].concat()));
    assert!(error.to_string().contains("128 bits"), "{error}");

    let error = error_of(&with_frame(&header, &[&u64::MAX.to_be_bytes()[..], &start[8..]].concat()));
    assert!(error.to_string().contains("a Lamport time of 18446744073709551615"), "{error}");

    let id = [[0].as_slice(), &[7; 16], &[0, 1, b'k']].concat();
    let pair = |key: u8| [0, 0, 0, 1, key, 0, 0, 0, 0];
    let metadata = [[0, 0, 0, 2].as_slice(), &pair(b'b'), &pair(b'a'), &[0; 4]].concat();
    let error = error_of(&with_frame(&header, &[start, id, metadata].concat()));
    assert!(error.to_string().contains("sorted"), "{error}");
}

#[test]
fn a_wrong_snapshot_is_never_finished() {
    let (header, entries) = golden_history();
    let changes: [fn(&mut Header); 4] =
        [|h| h.count.0 += 1, |h| h.root.0[0] ^= 1, |h| h.lamport.0 += 1, |h| h.epoch.0 += 1];
    for change in changes {
        let mut header = header.clone();
        change(&mut header);
        assert!(encode(&header, &entries).is_err());
    }
    let mut fewer = header.clone();
    fewer.count.0 -= 1;
    let message = encode(&fewer, &entries).unwrap_err().to_string();
    assert!(message.contains("entry 5 "), "{message}");

    let mut encoder = Encoder::new(header);
    let mut other = entries[0].clone();
    other.context_id = ContextId::new("other").unwrap();
    let message = encoder.push(&other, &mut Vec::new()).unwrap_err().to_string();
    assert!(message.contains("context other"), "{message}");
}

#[test]
fn an_empty_context_has_a_snapshot() {
    for suite in [HashSuite::Blake3, HashSuite::Sha256] {
        let (header, _) = history(suite, Vec::new());
        let bytes = encode(&header, &[]).unwrap();
        assert_eq!(decode(&bytes), (items(header, Vec::new()), Ok(())));
    }
}

#[test]
fn a_large_entry_is_a_frame_of_its_own() {
    let noise: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
    let drafts = [&b"small"[..], &noise, b"small"]
        .map(|payload| draft("facts", Bytes::copy_from_slice(payload), &[]))
        .into_iter()
        .zip(1u8..)
        .map(|(draft, n)| (EntryId::from_bits([n; 16]), draft))
        .collect();
    let (header, entries) = history(HashSuite::Sha256, drafts);
    let bytes = encode(&header, &entries).unwrap();
    let expected = items(header, entries);
    assert_eq!(decode(&bytes), (expected.clone(), Ok(())));
    assert_eq!(decode_in(&bytes, &[1, 70_001], Limits::default()), (expected, Ok(())));

    let (_, result) =
        decode_in(&bytes, &[bytes.len()], Limits { max_payload: 2_999_999, ..Limits::default() });
    let error = result.unwrap_err();
    assert!(
        matches!(error, SnapshotError::Limit { place: SnapshotSection::Entry(Sequence(2)), .. }),
        "{error}"
    );
}

#[test]
fn frames_stay_near_their_target() {
    let drafts = (0..4000u64)
        .map(|i| {
            let mut id = [0; 16];
            id[8..].copy_from_slice(&i.to_be_bytes());
            (EntryId::from_bits(id), draft("facts", vec![i as u8; 256], &[]))
        })
        .collect();
    let (header, entries) = history(HashSuite::Blake3, drafts);
    let mut encoder = Encoder::new(header.clone());
    let mut bytes = Vec::new();
    encoder.start(&mut bytes);
    let mut frames = 0;
    for entry in &entries {
        let from = bytes.len();
        encoder.push(entry, &mut bytes).unwrap();
        if bytes.len() > from {
            let uncompressed = u32::from_be_bytes(bytes[from + 5..from + 9].try_into().unwrap());
            assert!((FRAME_TARGET - 512..=FRAME_TARGET).contains(&(uncompressed as usize)));
            frames += 1;
        }
    }
    encoder.finish(&mut bytes).unwrap();
    assert!(frames >= 4);
    assert_eq!(decode(&bytes), (items(header, entries), Ok(())));
}

#[test]
fn limits_are_told_with_their_values() {
    let (header, _) = golden_history();
    let mut start = Vec::new();
    Encoder::new(header.clone()).start(&mut start);

    let mut huge = start.clone();
    put_frame(&mut huge, b"compressed", u32::MAX);
    let error = error_of(&huge);
    assert!(matches!(error, SnapshotError::Limit { place: SnapshotSection::Frame(1), .. }), "{error}");
    assert!(error.to_string().contains(&u32::MAX.to_string()), "{error}");

    let (_, result) = decode_in(GOLDEN, &[GOLDEN.len()], Limits { max_entries: 4, ..Limits::default() });
    assert!(matches!(
        result,
        Err(SnapshotError::Limit { place: SnapshotSection::Header, value: 5, max: 4, .. })
    ));

    let mut long = GOLDEN[..10].to_vec();
    long.extend(u32::MAX.to_be_bytes());
    assert!(matches!(error_of(&long), SnapshotError::Limit { place: SnapshotSection::Header, .. }));
}

#[test]
fn a_frame_that_lies_about_its_size_is_refused() {
    let (header, entries) = golden_history();
    let mut frame = Vec::new();
    for entry in &entries {
        entry::encode(entry, &mut frame).unwrap();
    }
    let compressed = zstd_frame::Deflater::default().deflate(&frame).unwrap();
    let len = frame.len() as u32;
    let twice = [compressed.clone(), compressed.clone()].concat();
    // An empty skippable frame of zstd.
    let skippable = vec![0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    let cut = compressed[..compressed.len() - 1].to_vec();
    for (compressed, len) in [
        (compressed.clone(), len - 1),
        (compressed.clone(), len + 1),
        (compressed, 0),
        (twice, len),
        (skippable, len),
        (cut, len),
        (Vec::new(), len),
        (vec![0; 5000], 1),
    ] {
        let mut bytes = Vec::new();
        Encoder::new(header.clone()).start(&mut bytes);
        put_frame(&mut bytes, &compressed, len);
        bytes.push(TRAILER_TAG);
        let error = error_of(&bytes);
        assert!(matches!(error, SnapshotError::Corrupt { place: SnapshotSection::Frame(1), .. }), "{error}");
    }
}

#[test]
fn a_frame_that_wants_a_large_window_is_refused() {
    let (header, _) = golden_history();
    let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
    compressor.set_parameter(zstd::zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
    compressor.set_parameter(zstd::zstd_safe::CParameter::WindowLog(24)).unwrap();
    let compressed = compressor.compress(&vec![0; 16 << 20]).unwrap();
    let mut bytes = Vec::new();
    Encoder::new(header).start(&mut bytes);
    put_frame(&mut bytes, &compressed, 16 << 20);
    let error = error_of(&bytes);
    assert!(error.to_string().contains("zstd says"), "{error}");
}

#[test]
fn an_entry_over_a_limit_of_the_format_is_not_written() {
    let (_, entries) = golden_history();
    let mut entry = entries[0].clone();
    entry.metadata = (0..=MAX_METADATA_PAIRS).map(|i| (i.to_string(), String::new())).collect::<Metadata>();
    let mut out = Vec::new();
    let error = entry::encode(&entry, &mut out).unwrap_err();
    assert!(matches!(error, SnapshotError::Limit { value: 1025, .. }), "{error}");
    entry.metadata = Metadata::from([("k".to_owned(), "x".repeat(64 * 1024))]);
    assert!(entry::encode(&entry, &mut out).is_err());
    assert!(out.is_empty());
    assert!(Limits { max_payload: MAX_PAYLOAD, ..Limits::default() }.max_frame() > MAX_PAYLOAD);
    assert!(Limits { max_payload: usize::MAX, ..Limits::default() }.max_frame() > MAX_PAYLOAD);
}

fn any_id() -> impl Strategy<Value = EntryId> {
    prop_oneof![
        any::<[u8; 16]>().prop_map(EntryId::from_bits),
        "[a-zA-Z0-9é✓ -]{1,40}".prop_map(|text| EntryId::new(&text).unwrap()),
    ]
}

fn any_draft() -> impl Strategy<Value = Draft> {
    let payload = prop_oneof![
        9 => prop::collection::vec(any::<u8>(), 0..300),
        1 => prop::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| bytes.repeat(100_000)),
    ];
    let metadata = prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4);
    ("[a-zé]{1,9}", payload, metadata).prop_map(|(key, payload, metadata)| Draft {
        key: Key::new(key).unwrap(),
        payload: payload.into(),
        metadata,
    })
}

fn any_history() -> impl Strategy<Value = (Header, Vec<Entry>)> {
    let suite = prop_oneof![Just(HashSuite::Blake3), Just(HashSuite::Sha256)];
    (suite, prop::collection::vec((any_id(), any_draft()), 0..12))
        .prop_map(|(suite, drafts)| history(suite, drafts))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any history comes back as it was, in whatever pieces it comes.
    #[test]
    fn what_is_written_is_read(
        (header, entries) in any_history(),
        pieces in prop::collection::vec(1usize..5000, 1..8),
    ) {
        let bytes = encode(&header, &entries).unwrap();
        prop_assert_eq!(decode_in(&bytes, &pieces, Limits::default()), (items(header, entries), Ok(())));
    }

    /// Whatever one byte is changed to, and wherever the bytes end: an error, and no end.
    #[test]
    fn what_was_damaged_is_refused(
        (header, entries) in any_history(),
        at in any::<prop::sample::Index>(),
        change in 1u8..,
        end in any::<prop::sample::Index>(),
        pieces in prop::collection::vec(1usize..5000, 1..8),
    ) {
        let bytes = encode(&header, &entries).unwrap();
        let mut changed = bytes.clone();
        changed[at.index(bytes.len())] ^= change;
        for damaged in [&changed[..], &bytes[..end.index(bytes.len())]] {
            let (items, result) = decode_in(damaged, &pieces, Limits::default());
            prop_assert!(result.is_err());
            prop_assert!(!items.contains(&Item::End));
        }
    }

    /// Bytes of no meaning behind a valid start are an error, never a panic.
    #[test]
    fn noise_is_refused(start in 0..GOLDEN.len(), noise in prop::collection::vec(any::<u8>(), 0..600)) {
        let (items, result) = decode(&[&GOLDEN[..start], &noise].concat());
        prop_assert!(result.is_err() && !items.contains(&Item::End));
    }
}
