use std::{collections::BTreeMap, fs, io::Write as _, path::PathBuf};

use flate2::{Compression, write::ZlibEncoder};

use super::{format::FORMAT_TAG, *};
use crate::{
    ContextId, Hash, Key, Sequence,
    legacy::term::{MAX_DEPTH, tag},
};

/// What the predecessor wrote, and what it said about it.
struct Fixture {
    blob: Vec<u8>,
    facts: BTreeMap<String, String>,
    proofs: Vec<LegacyProof>,
    rows: Vec<Vec<String>>,
}

fn fixture(name: &str) -> Fixture {
    let path = PathBuf::from("../../tests/fixtures").join(name);
    let blob = fs::read(path.with_extension("etf")).unwrap();
    let text = fs::read_to_string(path.with_extension("tsv")).unwrap();
    let mut fixture = Fixture { blob, facts: BTreeMap::new(), proofs: Vec::new(), rows: Vec::new() };
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            ["# proof", index, siblings] => {
                let sibling = |text: &str| match text.split_once(':').unwrap() {
                    ("left", hash) => Sibling::Left(Hash::from_hex(hash).unwrap()),
                    ("right", hash) => Sibling::Right(Hash::from_hex(hash).unwrap()),
                    _ => panic!("{text}"),
                };
                fixture.proofs.push(LegacyProof {
                    index: index.parse().unwrap(),
                    siblings: siblings.split(',').map(sibling).collect(),
                });
            }
            [fact, value] if fact.starts_with("# ") => {
                fixture.facts.insert(fact[2..].to_owned(), value.to_owned());
            }
            [columns] if columns.starts_with("# columns") => {}
            _ => fixture.rows.push(fields.into_iter().map(str::to_owned).collect()),
        }
    }
    fixture
}

fn decode(blob: &[u8]) -> Result<Snapshot, LegacyError> {
    Snapshot::decode(blob.to_vec(), Limits::default())
}

/// The blob without its compression.
fn plain(blob: &[u8]) -> Vec<u8> {
    [&[FORMAT_TAG][..], &inflate::open(&blob.to_vec().into(), 1 << 20).unwrap()].concat()
}

/// The plain blob, compressed.
fn compressed(plain: &[u8]) -> Vec<u8> {
    let mut out = vec![FORMAT_TAG, 80];
    out.extend((plain.len() as u32 - 1).to_be_bytes());
    let mut zlib = ZlibEncoder::new(out, Compression::default());
    zlib.write_all(&plain[1..]).unwrap();
    zlib.finish().unwrap()
}

/// Replaces the only occurrence of some bytes.
fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

const FIXTURES: [&str; 4] = ["empty", "one-entry", "five-entries", "version-1"];

#[test]
fn every_field_of_every_fixture_is_read() {
    for name in FIXTURES {
        let fixture = fixture(name);
        assert!(is_legacy(&fixture.blob));
        let snapshot = decode(&fixture.blob).unwrap();
        let none = |text: &str| (text != "-").then(|| text.to_owned());
        assert_eq!(snapshot.context_id.as_str(), fixture.facts["context_id"]);
        assert_eq!(snapshot.sequence.to_string(), fixture.facts["sequence"]);
        assert_eq!(snapshot.version.to_string(), fixture.facts["version"]);
        assert_eq!(snapshot.merkle_root.map(|root| root.to_string()), none(&fixture.facts["merkle_root"]));
        assert_eq!(snapshot.entries.len(), fixture.rows.len());
        for (entry, row) in snapshot.entries.iter().zip(&fixture.rows) {
            let metadata: Vec<_> = entry.metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let read = [
                Some(entry.sequence.to_string()),
                Some(entry.id.to_string()),
                Some(entry.key.to_string()),
                Some(hex::encode(&entry.payload)),
                Some(entry.appended_at_ns.to_string()),
                entry.lamport.map(|time| time.0.to_string()),
                entry.content_hash.map(|hash| hash.to_string()),
                Some(metadata.join("&")),
            ];
            let expected: Vec<_> = row.iter().map(|field| none(field)).collect();
            assert_eq!(read[..], expected[..], "{name}");
        }
        snapshot.verify().unwrap();
    }
}

#[test]
fn the_predecessors_proofs_are_verified() {
    let mut count = 0;
    for name in FIXTURES {
        let fixture = fixture(name);
        let snapshot = decode(&fixture.blob).unwrap();
        for proof in &fixture.proofs {
            let root = snapshot.merkle_root.unwrap();
            let leaf = snapshot.entries[proof.index as usize].content_hash.unwrap();
            assert!(verify_proof(&leaf, proof, &root));
            assert!(!verify_proof(&root, proof, &root), "another leaf");
            assert!(!verify_proof(&leaf, proof, &leaf), "another root");
            let moved = LegacyProof { index: proof.index + 1, ..proof.clone() };
            assert!(!verify_proof(&leaf, &moved, &root), "another index");
            let far = LegacyProof { index: proof.index + (1 << proof.siblings.len()), ..proof.clone() };
            assert!(!verify_proof(&leaf, &far, &root), "an index outside of the tree");
            count += 1;
        }
        let empty = LegacyProof { index: 0, siblings: Vec::new() };
        let leaf = Hash([7; 32]);
        assert!(!verify_proof(&leaf, &empty, &leaf), "a proof of nothing");
    }
    assert_eq!(count, 4);
}

#[test]
fn the_content_hash_is_over_erlangs_terms() {
    let context = ContextId::new("c").unwrap();
    let key = Key::new("k").unwrap();
    let hash = |sequence, integer: &[u8]| {
        let mut term = b"\x83l\0\0\0\x05m\0\0\0\x01cm\0\0\0\x01km\0\0\0\x02\0\xff".to_vec();
        term.extend(integer);
        term.extend(b"a\x09j");
        let expected = <crate::hash::Sha256 as crate::hash::Hasher>::digest(&term);
        assert_eq!(content_hash(&context, &key, &[0, 255], Sequence(sequence), 9), expected, "{sequence}");
    };
    hash(0, b"a\x00");
    hash(255, b"a\xff");
    hash(256, b"b\0\0\x01\0");
    hash(0x7fff_ffff, b"b\x7f\xff\xff\xff");
    hash(0x8000_0000, b"n\x04\0\0\0\0\x80");
    hash(0x01_0000_0000, b"n\x05\0\0\0\0\0\x01");
    hash(u64::MAX, b"n\x08\0\xff\xff\xff\xff\xff\xff\xff\xff");
}

#[test]
fn the_predecessors_tree_does_not_tell_an_odd_leaf_from_two() {
    let [a, b, c] = [1, 2, 3].map(|n| Hash([n; 32]));
    assert_eq!(root(&[a, b, c]), root(&[a, b, c, c]), "the reason it is not kept");
    assert_ne!(root(&[a]), a);
    assert_eq!(root(&[a]), root(&[a, a]));
}

#[test]
fn a_damaged_entry_is_named() {
    let blob = plain(&fixture("five-entries").blob);
    let changed = replace(&blob, b"objective: increase_demand", b"objective: decrease_demand");
    let error = decode(&compressed(&changed)).unwrap().verify().unwrap_err();
    assert!(matches!(error, LegacyError::HashMismatch { sequence: Sequence(2), .. }), "{error}");
    assert!(error.to_string().contains("entry 2 "), "{error}");

    let root = decode(&blob).unwrap().merkle_root.unwrap();
    let changed = replace(&blob, &root.0, &[9; 32]);
    let error = decode(&changed).unwrap().verify().unwrap_err();
    assert!(matches!(error, LegacyError::RootMismatch { stored: Hash([9, ..]), .. }), "{error}");

    let changed = replace(&blob, b"12a5e4ac5f8e05311ad40b7749071bf0", b"f164eb721c26e7afb239f66b118ebaaa");
    let error = decode(&changed).unwrap().verify().unwrap_err();
    assert!(matches!(error, LegacyError::DuplicateId { first: Sequence(1), second: Sequence(2), .. }));
}

#[test]
fn every_flipped_bit_and_truncation_is_an_error_or_another_snapshot() {
    for name in FIXTURES {
        let blob = fixture(name).blob;
        for blob in [plain(&blob), blob] {
            for len in 0..blob.len() {
                assert!(decode(&blob[..len]).is_err(), "{name} cut to {len}");
            }
            for at in 0..blob.len() {
                for bit in 0..8 {
                    let mut changed = blob.clone();
                    changed[at] ^= 1 << bit;
                    let _ = decode(&changed).and_then(|snapshot| snapshot.verify());
                }
            }
        }
    }
}

#[test]
fn a_flipped_bit_of_hashed_content_never_verifies() {
    let original = decode(&fixture("five-entries").blob).unwrap();
    let blob = plain(&fixture("five-entries").blob);
    for at in 0..blob.len() {
        let mut changed = blob.clone();
        changed[at] ^= 1;
        let Ok(snapshot) = decode(&changed) else { continue };
        if snapshot.verify().is_ok() {
            // Only what the predecessor's hashes leave out may differ.
            assert_eq!(snapshot.context_id, original.context_id);
            assert_eq!(snapshot.merkle_root, original.merkle_root);
            for (entry, original) in snapshot.entries.iter().zip(&original.entries) {
                assert_eq!(entry.payload, original.payload);
                assert_eq!(entry.key, original.key);
                assert_eq!(entry.appended_at_ns, original.appended_at_ns);
            }
        }
    }
}

#[test]
fn the_wrong_thing_is_told() {
    let blob = plain(&fixture("one-entry").blob);
    assert_eq!(decode(b""), Err(LegacyError::NotLegacy));
    assert_eq!(decode(b"CVGLSNAP"), Err(LegacyError::NotLegacy));
    assert!(matches!(decode(&[131]), Err(LegacyError::Truncated { .. })));
    assert!(matches!(decode(&[131, 80, 0, 0]), Err(LegacyError::Truncated { .. })));
    assert!(matches!(decode(&[131, tag::NIL]), Err(LegacyError::Unexpected { at: 0, .. })));
    assert_eq!(decode(&[&blob[..], b"x"].concat()), Err(LegacyError::TrailingBytes { count: 1 }));
    let with_tail = [&compressed(&blob)[..], b"xyz"].concat();
    assert_eq!(decode(&with_tail), Err(LegacyError::TrailingBytes { count: 3 }));

    let newer = replace(&blob, b"versiona\x02", b"versiona\x03");
    let error = decode(&newer).unwrap_err();
    assert_eq!(error, LegacyError::NewerVersion { version: 3 });
    assert!(error.to_string().contains("up to 2"), "{error}");
    assert!(decode(&replace(&blob, b"versiona\x02", b"versiona\x00")).is_err());

    for (from, to, part) in [
        (&b"d\0\x07payload"[..], &b"d\0\x07paylord"[..], "payload of entry 1"),
        (b"factsd", b"fac\nsd", "key of entry 1"),
        (b"\x0ccontent_hash", b"\x0ccontent_hush", "content_hash of entry 1"),
        (b"\x0bmerkle_root", b"\x0bmerkle_rood", "merkle_root of the map"),
        (b"sequencea\x01jd", b"sequencea\x02jd", "gap"),
        (b"sequencea\x01d\0\x07version", b"sequencea\x00d\0\x07version", "gap"),
        (b"sequencea\x01d\0\x07version", b"sequencea\x02d\0\x07version", "gap"),
        (b"lamport_clocka\x01", b"lamport_clockb\xff\xff\xff\xff", "integer out of range"),
        (
            b"lamport_clocka\x01",
            b"lamport_clockn\x08\0\xfe\xff\xff\xff\xff\xff\xff\xff",
            "a Lamport time of 18446744073709551614",
        ),
        (b"d\0\x02idm", b"d\0\x02idX", "tag 88 at byte"),
    ] {
        let message = decode(&replace(&blob, from, to)).unwrap_err().to_string();
        assert!(message.contains(part), "{message} should name {part}");
    }
}

/// Terms as newer and older Erlangs write them.
fn atom(name: &str) -> Vec<u8> {
    [&[tag::SMALL_ATOM_UTF8, name.len() as u8][..], name.as_bytes()].concat()
}

fn binary(bytes: &[u8]) -> Vec<u8> {
    [&[tag::BINARY][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn map(pairs: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut out = vec![tag::MAP];
    out.extend((pairs.len() as u32).to_be_bytes());
    for (key, value) in pairs {
        out.extend(atom(key));
        out.extend(value);
    }
    out
}

fn list(items: &[Vec<u8>]) -> Vec<u8> {
    [&[tag::LIST][..], &(items.len() as u32).to_be_bytes(), &items.concat(), &[tag::NIL]].concat()
}

fn entry(sequence: Vec<u8>, id: &str) -> Vec<u8> {
    map(&[
        ("__struct__", atom("Elixir.Entry")),
        ("sequence", sequence),
        ("id", binary(id.as_bytes())),
        ("key", vec![tag::STRING, 0, 2, b'k', 0xe9]),
        ("payload", binary(&[0, 255])),
        ("appended_at_ns", vec![tag::LARGE_BIG, 0, 0, 0, 9, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]),
        ("metadata", map(&[])),
    ])
}

fn version_1(extra: &[(&str, Vec<u8>)], entries: &[Vec<u8>]) -> Vec<u8> {
    let mut pairs = vec![
        ("version", vec![tag::INTEGER, 0, 0, 0, 1]),
        ("context_id", binary(b"c")),
        ("sequence", vec![tag::SMALL_BIG, 1, 0, entries.len() as u8]),
        ("entries", list(entries)),
    ];
    pairs.extend(extra.iter().cloned());
    [vec![FORMAT_TAG], map(&pairs)].concat()
}

#[test]
fn every_form_of_a_term_is_read() {
    let one = || entry(vec![tag::SMALL_INTEGER, 1], "one");
    let two = || entry(vec![tag::INTEGER, 0, 0, 0, 2], "two");
    let extra = [
        ("f", vec![tag::NEW_FLOAT, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("g", [vec![tag::FLOAT], vec![b'0'; 31]].concat()),
        ("t", vec![tag::SMALL_TUPLE, 2, tag::NIL, tag::STRING, 0, 1, 7]),
        ("u", vec![tag::LARGE_TUPLE, 0, 0, 0, 1, tag::ATOM_UTF8, 0, 1, b'x']),
        ("b", vec![tag::BIT_BINARY, 0, 0, 0, 1, 4, 0xf0]),
        ("i", [list(&[vec![tag::SMALL_BIG, 0, 1], vec![tag::LARGE_BIG, 0, 0, 0, 1, 1, 5]]), vec![]].concat()),
        ("improper", vec![tag::LIST, 0, 0, 0, 1, tag::NIL, tag::SMALL_ATOM, 1, b'x']),
    ];
    let snapshot = decode(&version_1(&extra, &[two(), one()])).unwrap();
    assert_eq!(snapshot.entries.iter().map(|e| e.id.to_string()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(snapshot.entries[0].key.as_str(), "ké");
    assert_eq!(snapshot.entries[1].appended_at_ns, (1 << 56) | 1);
    snapshot.verify().unwrap();

    for (entries, part) in
        [(vec![one(), one()], "entry 1 where entry 2"), (vec![two()], "entry 2 where entry 1")]
    {
        let message = decode(&version_1(&[], &entries)).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let twice = decode(&version_1(&[("sequence", vec![tag::SMALL_INTEGER, 0])], &[one()]));
    assert!(twice.unwrap_err().to_string().contains("twice"));
    let pid = decode(&version_1(&[("pid", vec![88])], &[one()]));
    assert!(pid.unwrap_err().to_string().contains("tag 88"));
    let too_large = entry(vec![tag::SMALL_BIG, 9, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1], "large");
    assert!(decode(&version_1(&[], &[too_large])).unwrap_err().to_string().contains("integer"));
}

#[test]
fn deep_terms_are_refused_without_recursion() {
    let nested = |depth: usize| {
        let mut term = vec![tag::NIL];
        for _ in 0..depth {
            term = [&[tag::SMALL_TUPLE, 1][..], &term].concat();
        }
        term
    };
    assert!(decode(&version_1(&[("x", nested(MAX_DEPTH - 1))], &[])).is_ok());
    let error = decode(&version_1(&[("x", nested(MAX_DEPTH))], &[])).unwrap_err();
    assert!(matches!(error, LegacyError::Limit { value: 65, max: 64, .. }), "{error}");
    let lists = [tag::LIST, 0, 0, 0, 1].repeat(1_000_000);
    assert!(matches!(decode(&version_1(&[("x", lists)], &[])), Err(LegacyError::Limit { .. })));
}

#[test]
fn declared_sizes_are_not_believed() {
    for (tag, name) in
        [(tag::LIST, "list"), (tag::MAP, "map"), (tag::LARGE_TUPLE, "tuple"), (tag::BINARY, "b")]
    {
        let huge = vec![tag, 255, 255, 255, 255];
        let error = decode(&version_1(&[(name, huge)], &[])).unwrap_err();
        assert!(matches!(error, LegacyError::Truncated { .. }), "{error}");
    }
    let map = [FORMAT_TAG, tag::MAP, 255, 255, 255, 255];
    assert!(matches!(decode(&map), Err(LegacyError::Truncated { .. })));

    let blob = plain(&fixture("one-entry").blob);
    for (size, part) in [(355u32, "more bytes"), (357, "fewer bytes"), (u32::MAX, "at most 1073741824")] {
        let mut lying = compressed(&blob);
        lying[2..6].copy_from_slice(&size.to_be_bytes());
        let message = decode(&lying).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let bomb = compressed(&vec![FORMAT_TAG; 50_000_000]);
    assert!(bomb.len() < 100_000);
    let error =
        Snapshot::decode(bomb, Limits { max_uncompressed: 1 << 20, ..Limits::default() }).unwrap_err();
    assert!(matches!(error, LegacyError::Limit { value: 49_999_999, .. }), "{error}");
    assert!(Snapshot::decode(blob.clone(), Limits { max_uncompressed: 100, ..Limits::default() }).is_err());
    assert!(Snapshot::decode(blob.clone(), Limits { max_payload: 16, ..Limits::default() }).is_err());
    assert!(Snapshot::decode(blob.clone(), Limits { max_entries: 0, ..Limits::default() }).is_err());
    let mut asked = 0;
    let within = |most: usize, asked: &mut usize| {
        Snapshot::decode_within(blob.clone(), Limits::default(), |bytes| {
            *asked += bytes;
            *asked <= most
        })
    };
    assert_eq!(within(100, &mut asked), Err(LegacyError::NoRoom));
    let needed = std::mem::take(&mut asked);
    assert!(within(needed, &mut asked).is_ok(), "{needed}");
}
