use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use super::{note::*, *};

/// The keys and the note of the documentation of golang.org/x/mod/sumdb/note.
const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const PETER_PRIVATE: &str = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const ENOCH: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const TEXT: &str =
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
const NOTE: &str = "\
If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
";
const ENOCH_SIGNATURE: &str = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";

fn peter() -> VerifierKey {
    PETER.parse().unwrap()
}

fn peter_signer() -> Signer {
    let private = BASE64_STANDARD.decode(PETER_PRIVATE).unwrap();
    let (ed25519, seed) = private.split_first().unwrap();
    assert_eq!(*ed25519, 1);
    Signer::new("PeterNeumann", &SigningKey::from_bytes(seed.try_into().unwrap())).unwrap()
}

fn signer(name: &str) -> Signer {
    Signer::new(name, &SigningKey::from_bytes(&[7; 32])).unwrap()
}

fn checkpoint() -> Checkpoint {
    let context = ContextId::new("growth strategy+001").unwrap();
    Checkpoint::of_context("prod", &context, Size(42), Hash([0xab; 32])).unwrap()
}

#[test]
fn the_published_note_is_verified_and_made() {
    assert_eq!(peter().open(NOTE), Ok(TEXT));
    assert_eq!(peter_signer().sign_text(TEXT), NOTE);
    assert_eq!(*peter_signer().verifier_key(), peter());
}

#[test]
fn signatures_of_others_are_passed_over() {
    let both = format!("{NOTE}{ENOCH_SIGNATURE}");
    assert_eq!(peter().open(&both), Ok(TEXT));
    assert_eq!(ENOCH.parse::<VerifierKey>().unwrap().open(&both), Ok(TEXT));
    let name = || "EnochRoot".to_owned();
    assert_eq!(ENOCH.parse::<VerifierKey>().unwrap().open(NOTE), Err(NoteError::NotSigned { name: name() }));
    // The same name with another key is another signer.
    assert_eq!(signer("EnochRoot").verifier_key().open(&both), Err(NoteError::NotSigned { name: name() }));
}

#[test]
fn a_checkpoint_is_golden() {
    let text = "prod/growth strategy+001\n42\nq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=\n";
    assert_eq!(checkpoint().to_string(), text);
    assert_eq!(Checkpoint::parse(text), Ok(checkpoint()));
    let signer = signer("node-1");
    assert_eq!(signer.sign(&checkpoint()), include_str!("golden.note"));
    assert_eq!(signer.verifier_key().to_string(), include_str!("golden.key").trim_end());
    assert_eq!(verify(&signer.sign(&checkpoint()), signer.verifier_key()), Ok(checkpoint()));
}

#[test]
fn a_checkpoint_with_extensions_is_read() {
    let text = format!("{}extension 1\nextension 2\n", checkpoint());
    assert_eq!(Checkpoint::parse(&text), Ok(checkpoint()));
    let signer = signer("node-1");
    assert_eq!(verify(&signer.sign_text(&text), signer.verifier_key()), Ok(checkpoint()));
}

#[test]
fn what_is_not_a_checkpoint_is_refused() {
    use CheckpointError::{Lines, Origin, Root, Size};
    let root = "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=";
    for (text, error) in [
        (String::new(), Lines),
        ("\n".into(), Size),
        (format!("\n1\n{root}\n"), Origin),
        (format!("a\rb\n1\n{root}\n"), Origin),
        (format!("log\n\n{root}\n"), Size),
        (format!("log\n01\n{root}\n"), Size),
        (format!("log\n+1\n{root}\n"), Size),
        (format!("log\n-1\n{root}\n"), Size),
        (format!("log\n18446744073709551616\n{root}\n"), Size),
        ("log\n1\n".into(), Root),
        ("log\n1\nq6ur\n".into(), Root),
        (format!("log\n1\n{}\n", root.trim_end_matches('=')), Root),
        // Set bits behind the last byte: a second text for the same root.
        (format!("log\n1\n{}\n", root.replace("s=", "t=")), Root),
        (format!("log\n1\n {root}\n"), Root),
        (format!("log\n1\n{root}"), Lines),
        (format!("log\n1\n{root}\n\n"), Lines),
        (format!("log\n1\n{root}\nextension\n\nmore\n"), Lines),
    ] {
        assert_eq!(Checkpoint::parse(&text), Err(error), "{text:?}");
    }
    assert_eq!(Checkpoint::new("two\nlines", super::Size(1), Hash([0; 32])), Err(Origin));
    assert_eq!(Checkpoint::new("", super::Size(1), Hash([0; 32])), Err(Origin));
    let largest = format!("log\n{}\n{root}\n", u64::MAX);
    assert_eq!(Checkpoint::parse(&largest).unwrap().size(), super::Size(u64::MAX));
}

#[test]
fn a_signed_text_that_is_no_checkpoint_is_refused() {
    assert_eq!(verify(NOTE, &peter()), Err(NoteError::Checkpoint(CheckpointError::Size)));
}

#[test]
fn a_signature_that_does_not_fit_is_refused() {
    let bad = Err(NoteError::BadSignature { name: "PeterNeumann".to_owned() });
    assert_eq!(peter().open(&NOTE.replace("cryptography", "cryptographie")), bad);
    assert_eq!(peter().open(&NOTE.replace("yBwJnAM=", "yBwJnAI=")), bad);
    // Of a wrong length.
    assert_eq!(peter().open(&format!("{TEXT}\n— PeterNeumann x08go/ZJ\n")), bad);
    // A good one does not outweigh a bad one.
    assert_eq!(peter().open(&format!("{NOTE}— PeterNeumann x08go/ZJ\n")), bad);
}

#[test]
fn what_is_not_a_note_is_refused() {
    let line = NOTE.lines().last().unwrap();
    for note in [
        String::new(),
        "\n\n".into(),
        TEXT.into(),
        format!("{TEXT}\n"),
        NOTE.trim_end().into(),
        format!("{NOTE}\n"),
        format!("{TEXT}{line}\n"),
        format!("{TEXT}\n\t{line}\n"),
        NOTE.replace("— ", "- "),
        NOTE.replace("PeterNeumann ", "PeterNeumann"),
        NOTE.replace("PeterNeumann ", "PeterNeumann  "),
        NOTE.replace("— PeterNeumann", "— "),
        NOTE.replace("AM=\n", "AM\n"),
        NOTE.replace("AM=\n", "AM= \n"),
        format!("{NOTE}— other x08g\n"),
    ] {
        assert!(matches!(peter().open(&note), Err(NoteError::Malformed { .. })), "{note:?}");
    }
}

#[test]
fn a_note_is_bounded() {
    let long = format!("{}\n{NOTE}", "x".repeat(MAX_NOTE));
    assert_eq!(peter().open(&long), Err(NoteError::TooLarge { bytes: long.len() }));
    let many = format!("{NOTE}{}", ENOCH_SIGNATURE.repeat(MAX_SIGNATURES));
    assert_eq!(peter().open(&many), Err(NoteError::TooManySignatures));
    let most = format!("{NOTE}{}", ENOCH_SIGNATURE.repeat(MAX_SIGNATURES - 1));
    assert_eq!(peter().open(&most), Ok(TEXT));
}

#[test]
fn a_verifier_key_is_its_text() {
    assert_eq!(peter().to_string(), PETER);
    assert_eq!(peter().name(), "PeterNeumann");
    assert_eq!(
        PETER.replace("Peter", "Petra").parse::<VerifierKey>(),
        Err(NoteError::KeyHash { name: "PetraNeumann".to_owned() })
    );
    for text in [
        "",
        "+",
        "++",
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        "PeterNeumann+c74f20a3+",
        "PeterNeumann+c74f20a3+AQ==",
        "PeterNeumann+c74f20+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+Ahpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWAAAA",
    ] {
        assert_eq!(text.parse::<VerifierKey>(), Err(NoteError::VerifierKey), "{text:?}");
    }
}

#[test]
fn a_key_name_fits_a_signature_line() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let long = "x".repeat(MAX_KEY_NAME + 1);
    for name in ["", " ", "a b", "a+b", "a\nb", "a\u{a0}b", "a\u{2003}b", "a\u{0}", &long] {
        assert_eq!(Signer::new(name, &key).unwrap_err(), NoteError::KeyName, "{name:?}");
    }
    for name in ["n", "node-1.example.com/ledger", "Knoten-Ä", &long[1..]] {
        let signer = Signer::new(name, &key).unwrap();
        assert_eq!(verify(&signer.sign(&checkpoint()), signer.verifier_key()), Ok(checkpoint()));
    }
}

#[test]
fn a_private_key_is_not_shown_by_debug() {
    let shown = format!("{:?}", signer("node-1"));
    assert!(!shown.contains("7, 7, 7") && !shown.contains("070707"), "{shown}");
}

proptest! {
    #[test]
    fn every_checkpoint_is_read_as_it_was_signed(
        origin in "[^\\p{Cc}]{1,64}", size in any::<u64>(), root in any::<[u8; 32]>(),
    ) {
        let checkpoint = Checkpoint::new(origin, Size(size), Hash(root)).unwrap();
        let signer = signer("node-1");
        prop_assert_eq!(verify(&signer.sign(&checkpoint), signer.verifier_key()), Ok(checkpoint));
    }

    #[test]
    fn no_change_of_a_note_is_verified(at in any::<prop::sample::Index>(), to in any::<char>()) {
        let mut chars: Vec<char> = NOTE.chars().collect();
        let at = at.index(chars.len());
        prop_assume!(chars[at] != to);
        chars[at] = to;
        prop_assert!(peter().open(&chars.into_iter().collect::<String>()).is_err());
    }

    #[test]
    fn nonsense_does_not_panic(text in "(\\PC|\n|— ){0,40}") {
        prop_assert!(peter().open(&text).is_err());
        _ = Checkpoint::parse(&text);
        _ = text.parse::<VerifierKey>();
    }
}
