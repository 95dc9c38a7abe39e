//! Signed notes (<https://c2sp.org/signed-note>): a text and lines of signatures, readable by eye.
//!
//! ```text
//! <text, every line ended>
//! <empty line>
//! — <key name> base64(<key hash> ‖ <signature>)
//! ```
//!
//! Only Ed25519 (signature type 0x01) is known here. The key hash is the first four bytes of
//! SHA-256(name ‖ "\n" ‖ 0x01 ‖ public key); it tells keys apart and proves nothing. Signatures of other
//! keys are passed over, so that a note can carry those of witnesses, or of a key's successor.

use std::{fmt, str::FromStr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ed25519_dalek::{PUBLIC_KEY_LENGTH, SIGNATURE_LENGTH, Signature, Signer as _, SigningKey, VerifyingKey};

use crate::hash::{Hasher, Sha256};

use super::{Checkpoint, CheckpointError, base64::decode_base64};

/// Longest note that a verifier reads, bytes.
pub const MAX_NOTE: usize = 64 * 1024;
/// Most signatures of a note that a verifier reads.
pub const MAX_SIGNATURES: usize = 100;
/// Longest name of a key, bytes.
pub const MAX_KEY_NAME: usize = 256;

/// The signature type of Ed25519.
const ED25519: u8 = 1;
const KEY_HASH_LENGTH: usize = 4;
const SIGNATURE_PREFIX: &str = "— ";

/// Why a note cannot be made, read or trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The name cannot be in a signature line.
    #[error(
        "a key's name must be 1 to {MAX_KEY_NAME} bytes without spaces, control characters and `+`: choose another"
    )]
    KeyName,
    /// The text is not that of a verifier key.
    #[error("this is not a verifier key of the form `<name>+<key hash>+<base64 of an Ed25519 key>`")]
    VerifierKey,
    /// The key's hash is not that of its name and public key.
    #[error("the verifier key of {name} does not match its key hash: it was changed, get it again")]
    KeyHash {
        /// The key's name.
        name: String,
    },
    /// The note is longer than a verifier reads.
    #[error("the note has {bytes} bytes: at most {MAX_NOTE} are read")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// The note has more signatures than a verifier reads.
    #[error("the note has more than {MAX_SIGNATURES} signatures: no more are read")]
    TooManySignatures,
    /// The text is not a note.
    #[error("this is not a signed note: {reason}")]
    Malformed {
        /// What does not fit.
        reason: &'static str,
    },
    /// Only other keys signed the note.
    #[error("the note is not signed by {name}: ask for one that is, or use the verifier key of its signer")]
    NotSigned {
        /// The name of the verifier's key.
        name: String,
    },
    /// The signature is wrong.
    #[error("the note's signature of {name} is wrong: its text or its signature was changed")]
    BadSignature {
        /// The name of the verifier's key.
        name: String,
    },
    /// The text is signed, but no checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// A private key and the name it signs under: that of a node or its cluster.
#[derive(Debug, Clone)]
pub struct Signer {
    verifier: VerifierKey,
    key: SigningKey,
}

impl Signer {
    /// Signs as `name`, which must not have spaces, control characters or `+`.
    ///
    /// # Errors
    ///
    /// [`NoteError::KeyName`] if the name is empty, too long, or has one of these characters.
    pub fn new(name: &str, key: &SigningKey) -> Result<Self, NoteError> {
        Ok(Self { verifier: VerifierKey::new(name, key.verifying_key())?, key: key.clone() })
    }

    /// Returns the public half, for those who verify.
    pub const fn verifier_key(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Returns the checkpoint as a signed note.
    pub fn sign(&self, checkpoint: &Checkpoint) -> String {
        self.sign_text(&checkpoint.to_string())
    }

    /// Signs a text that ends with a newline.
    pub(super) fn sign_text(&self, text: &str) -> String {
        let VerifierKey { name, hash, .. } = &self.verifier;
        let signature = self.key.sign(text.as_bytes()).to_bytes();
        let signature = BASE64_STANDARD.encode([&hash[..], &signature].concat());
        format!("{text}\n{SIGNATURE_PREFIX}{name} {signature}\n")
    }
}

/// A public key with its name: what a verifier is given, as text `<name>+<key hash>+<base64>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    hash: [u8; KEY_HASH_LENGTH],
    key: VerifyingKey,
}

impl VerifierKey {
    /// Makes the verifier key of a name and a public key.
    ///
    /// # Errors
    ///
    /// [`NoteError::KeyName`] if the name is empty, too long, or has white space, a control character or `+`.
    pub fn new(name: &str, key: VerifyingKey) -> Result<Self, NoteError> {
        let forbidden = |c: char| c.is_whitespace() || c.is_control() || c == '+';
        if name.is_empty() || name.len() > MAX_KEY_NAME || name.contains(forbidden) {
            return Err(NoteError::KeyName);
        }
        let named = [name.as_bytes(), b"\n", &[ED25519], key.as_bytes()].concat();
        let [a, b, c, d, ..] = Sha256::digest(&named).0;
        Ok(Self { name: name.to_owned(), hash: [a, b, c, d], key })
    }

    /// Returns the name it signs under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the public key.
    pub const fn public_key(&self) -> &VerifyingKey {
        &self.key
    }

    /// Returns the text of a note, if this key signed it.
    pub(super) fn open<'a>(&self, note: &'a str) -> Result<&'a str, NoteError> {
        let (text, signatures) = split(note)?;
        let mut signed = false;
        for line in signatures {
            let malformed = NoteError::Malformed { reason: "a signature line is not `— <name> <base64>`" };
            let Some((name, signature)) =
                line.strip_prefix(SIGNATURE_PREFIX).and_then(|rest| rest.split_once(' '))
            else {
                return Err(malformed);
            };
            // Other signature types are longer or shorter, so any length is decoded.
            let Some(signature) = decode_base64(signature, MAX_NOTE) else { return Err(malformed) };
            let Some((hash, signature)) = signature.split_first_chunk() else { return Err(malformed) };
            if name.is_empty() || signature.is_empty() {
                return Err(malformed);
            }
            if name == self.name && *hash == self.hash {
                self.check(text, signature)?;
                signed = true;
            }
        }
        if signed { Ok(text) } else { Err(NoteError::NotSigned { name: self.name.clone() }) }
    }

    fn check(&self, text: &str, signature: &[u8]) -> Result<(), NoteError> {
        <&[u8; SIGNATURE_LENGTH]>::try_from(signature)
            .ok()
            .and_then(|bytes| self.key.verify_strict(text.as_bytes(), &Signature::from_bytes(bytes)).ok())
            .ok_or_else(|| NoteError::BadSignature { name: self.name.clone() })
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = BASE64_STANDARD.encode([&[ED25519], &self.key.as_bytes()[..]].concat());
        write!(f, "{}+{}+{key}", self.name, hex::encode(self.hash))
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        // The base64 may have a `+` of its own; the name has none.
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(hash), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::VerifierKey);
        };
        let key = decode_base64(key, 1 + PUBLIC_KEY_LENGTH).ok_or(NoteError::VerifierKey)?;
        let Some((&ED25519, key)) = key.split_first() else { return Err(NoteError::VerifierKey) };
        let key = VerifyingKey::try_from(key).map_err(|_| NoteError::VerifierKey)?;
        let mut expected = [0; KEY_HASH_LENGTH];
        hex::decode_to_slice(hash, &mut expected).map_err(|_| NoteError::VerifierKey)?;
        let verifier = Self::new(name, key)?;
        if verifier.hash != expected {
            return Err(NoteError::KeyHash { name: verifier.name });
        }
        Ok(verifier)
    }
}

/// Reads a signed checkpoint, if it has a valid signature of this key. Which log it is of, the caller
/// must compare: [`Checkpoint::origin`].
///
/// # Errors
///
/// [`NoteError`] if the text is not a signed note within the bounds, has no valid signature of this key, or is not a
/// checkpoint.
pub fn verify(note: &str, key: &VerifierKey) -> Result<Checkpoint, NoteError> {
    Ok(Checkpoint::parse(key.open(note)?)?)
}

/// Cuts a note into its text and its signature lines, within bounds.
fn split(note: &str) -> Result<(&str, impl Iterator<Item = &str>), NoteError> {
    let malformed = |reason| NoteError::Malformed { reason };
    if note.len() > MAX_NOTE {
        return Err(NoteError::TooLarge { bytes: note.len() });
    }
    if note.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
        return Err(malformed("it has a control character"));
    }
    // The text may have empty lines; the signatures follow the last.
    let separator = note.rfind("\n\n").ok_or(malformed("no empty line separates text and signatures"))?;
    let text = &note[..=separator];
    let signatures = note[separator + 2..]
        .strip_suffix('\n')
        .ok_or(malformed("no signatures follow the text, or the last line is not ended"))?;
    if signatures.split('\n').count() > MAX_SIGNATURES {
        return Err(NoteError::TooManySignatures);
    }
    Ok((text, signatures.split('\n')))
}
