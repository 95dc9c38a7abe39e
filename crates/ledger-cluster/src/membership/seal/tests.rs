use base64::Engine as _;
use proptest::prelude::*;

use super::*;

const OLD: [u8; 32] = [7; 32];
const NEW: [u8; 32] = [9; 32];

fn sealer(keys: &[[u8; 32]]) -> Sealer {
    Sealer::new("prod", Keyring::of(keys))
}

#[test]
fn keys_are_read_in_hex_and_base64() {
    let bytes: [u8; 32] = std::array::from_fn(|i| (i * 8 + 3) as u8);
    let upper = hex::encode_upper(bytes);
    let padded = base64::engine::general_purpose::STANDARD.encode(bytes);
    let url = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    for text in [&hex::encode(bytes), &upper, &padded, &url] {
        let ring = Keyring::parse(&format!("# the key of 2026\n\n  {text}\r\n")).unwrap();
        let datagram = sealer(&[bytes]).seal(b"x").unwrap();
        assert_eq!(Sealer::new("prod", ring).open(&datagram), Ok(b"x".to_vec()), "{text}");
    }
    let two = format!("{},{}", hex::encode(OLD), hex::encode(NEW));
    assert_eq!(Keyring::parse(&two).unwrap().0.len(), 2);
}

#[test]
fn a_bad_key_is_named_by_its_place_and_never_shown() {
    let old = hex::encode(OLD);
    let refused = |text: &str| Keyring::parse(text).unwrap_err();
    assert_eq!(refused(&format!("{old}\nsecretish")), KeyringError::NotAKey { number: 2 });
    assert!(!refused("secretish").to_string().contains("secretish"));
    assert_eq!(refused(&old[2..]), KeyringError::NotAKey { number: 1 });
    assert_eq!(refused(&format!("{old} {old}")), KeyringError::Repeated { number: 2 });
    assert_eq!(refused("# nothing\n\n"), KeyringError::Empty);
    let many: Vec<_> = (0..=MAX_KEYS).map(|i| hex::encode([i as u8; 32])).collect();
    assert_eq!(refused(&many.join("\n")), KeyringError::TooMany);
}

#[test]
fn printing_a_sealer_shows_no_key() {
    let text = format!("{:?}", sealer(&[OLD, NEW]));
    assert!(text.contains("2 keys") && !text.contains("7, 7") && !text.contains("0707"), "{text}");
}

#[test]
fn the_bytes_of_a_datagram_do_not_change() {
    let nonce = std::array::from_fn(|i| i as u8);
    assert_eq!(
        hex::encode(sealer(&[OLD]).seal_with(nonce, b"hello").unwrap()),
        "c1a16875514f01dd12000102030405060708090a0b0c0d0e0f1011121314151617c072c7e995b87831049a110b48ec42d626df0d15b8"
    );
    assert_eq!(hex::encode(sealer(&[]).seal_with(nonce, b"hello").unwrap()), "c0a16875514f01dd1268656c6c6f");
}

#[test]
fn a_datagram_says_which_cluster_it_is_of_and_that_cannot_be_changed() {
    let (ours, theirs) = (ClusterId([1; 16]), ClusterId([2; 16]));
    for keys in [&[OLD][..], &[]] {
        let sealer = sealer(keys);
        let of = |id| sealer.with_identity(id).seal(b"x").unwrap();
        assert_eq!(sealer.open_of(&of(None)), Ok((None, b"x".to_vec())));
        assert_eq!(sealer.open_of(&of(Some(ours))), Ok((Some(ours), b"x".to_vec())));
        assert_eq!(sealer.with_identity(Some(theirs)).open(&of(Some(ours))), Ok(b"x".to_vec()));
        assert_eq!(sealer.open(&of(Some(ours))[..20]), Err(OpenError::Malformed));
    }
    let mut datagram = sealer(&[OLD]).with_identity(Some(ours)).seal(b"x").unwrap();
    datagram[1 + TAG..][..IDENTITY].copy_from_slice(&theirs.0);
    assert_eq!(sealer(&[OLD]).open_of(&datagram), Err(OpenError::UnknownKey));
}

#[test]
fn sealing_adds_the_stated_overhead() {
    let of = sealer(&[OLD]).with_identity(Some(ClusterId([1; 16])));
    assert_eq!(of.seal(&[0; 100]).unwrap().len(), 100 + OVERHEAD);
    assert_eq!(sealer(&[OLD]).seal(&[0; 100]).unwrap().len(), 100 + OVERHEAD - IDENTITY);
    assert!(sealer(&[]).seal(&[0; 100]).unwrap().len() <= 100 + OVERHEAD);
}

#[test]
fn two_datagrams_of_one_payload_differ() {
    assert_ne!(sealer(&[OLD]).seal(b"x").unwrap(), sealer(&[OLD]).seal(b"x").unwrap());
}

#[test]
fn each_step_of_a_rotation_opens_what_its_neighbours_seal() {
    let steps: [&[[u8; 32]]; 4] = [&[OLD], &[OLD, NEW], &[NEW, OLD], &[NEW]];
    for pair in steps.windows(2) {
        for (from, to) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            assert_eq!(sealer(to).open(&sealer(from).seal(b"x").unwrap()), Ok(b"x".to_vec()));
        }
    }
    assert_eq!(sealer(&[NEW]).open(&sealer(&[OLD]).seal(b"x").unwrap()), Err(OpenError::UnknownKey));
}

#[test]
fn what_does_not_open_says_why() {
    let sealed = sealer(&[OLD]).seal(b"x").unwrap();
    let plain = sealer(&[]).seal(b"x").unwrap();
    assert_eq!(sealer(&[OLD]).open(&plain), Err(OpenError::NotSealed));
    assert_eq!(sealer(&[]).open(&sealed), Err(OpenError::UnknownKey));
    assert_eq!(sealer(&[]).open(&plain), Ok(b"x".to_vec()));
    for datagram in [&sealed, &plain] {
        for keys in [&[OLD][..], &[]] {
            let other = Sealer::new("staging", Keyring::of(keys));
            assert_eq!(other.open(datagram), Err(OpenError::AnotherCluster));
        }
    }
    assert_eq!(sealer(&[OLD]).open(b""), Err(OpenError::Malformed));
    assert_eq!(sealer(&[OLD]).open(&sealed[..20]), Err(OpenError::Malformed));
    assert_eq!(sealer(&[OLD]).open(&[0xc4; 200]), Err(OpenError::Malformed));
}

#[test]
fn a_forged_cluster_tag_does_not_carry_a_datagram_over() {
    let mut datagram = Sealer::new("staging", Keyring::of(&[OLD])).seal(b"x").unwrap();
    let ours = sealer(&[OLD]);
    datagram[1..=TAG].copy_from_slice(&ours.tag);
    assert_eq!(ours.open(&datagram), Err(OpenError::UnknownKey));
}

proptest! {
    #[test]
    fn any_flipped_bit_is_noticed(payload in prop::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut datagram = sealer(&[OLD]).seal(&payload).unwrap();
        let at = at.index(datagram.len());
        datagram[at] ^= 1u8 << bit;
        prop_assert!(sealer(&[OLD]).open(&datagram).is_err());
    }

    #[test]
    fn any_bytes_may_come_in(bytes in prop::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
        let mut bytes = bytes;
        if known && let Some(first) = bytes.first_mut() {
            *first = SEALED;
        }
        prop_assert!(sealer(&[OLD]).open(&bytes).is_err());
    }
}
