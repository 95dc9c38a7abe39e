//! The cluster's keys as text, and what proves to have one without showing it.

use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// Most keys of a keyring. Two are enough for a rotation, and a node tries each on foreign datagrams.
pub const MAX_KEYS: usize = 8;

/// The context of BLAKE3's key derivation, for the keys that prove calls.
const PROVES: &str = "converge-ledger calls between nodes v1";

/// Makes the keyed hashes that prove calls: derived from a key of the cluster, so that neither use tells of the other.
#[derive(Clone)]
pub struct CallKey([u8; blake3::KEY_LEN]);

impl CallKey {
    /// Derives the key from a key of the cluster.
    pub fn of(key: &[u8; 32]) -> Self {
        Self(blake3::derive_key(PROVES, key))
    }

    /// Derives the key from the name of a cluster without keys: anybody who knows the name can make it.
    pub fn open(cluster: &str) -> Self {
        Self(blake3::derive_key(PROVES, cluster.as_bytes()))
    }

    /// Returns the keyed hash of a text: whoever has no key of the cluster cannot make it.
    pub fn prove(&self, text: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, text)
    }

    /// Returns whether these bytes are the keyed hash of a text. It compares hashes in constant time.
    pub fn is_proven(&self, text: &[u8], by: &[u8]) -> bool {
        <[u8; 32]>::try_from(by).is_ok_and(|by| self.prove(text) == by)
    }
}

impl std::fmt::Debug for CallKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CallKey")
    }
}

/// Why a text is not a keyring. Messages name keys by their place and never show them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// A key is neither hex nor base64 of 32 bytes.
    #[error(
        "cluster key {number} is not 32 bytes in hex (64 digits) or base64 (43 or 44 characters): make one with `openssl rand -hex 32`"
    )]
    NotAKey {
        /// The key's place in the text, from 1.
        number: usize,
    },
    /// A key appears twice.
    #[error("cluster key {number} repeats an earlier one: list each key once, the one to seal with first")]
    Repeated {
        /// The place of the second one, from 1.
        number: usize,
    },
    /// There are too many keys.
    #[error("more than {MAX_KEYS} cluster keys are given: remove those no node seals with any more")]
    TooMany,
    /// The text has no key.
    #[error(
        "no cluster key is given: write one in hex or base64 on a line by itself, or configure no keys at all"
    )]
    Empty,
}

/// Reads keys from a file or an environment variable: one to a line, or separated by commas or blanks; each 32 bytes in hex or
/// base64. Lines that start with `#` are comments. There is at least one.
///
/// # Errors
/// A [`KeyringError`] says which is wrong.
pub fn parse(text: &str) -> Result<Vec<[u8; 32]>, KeyringError> {
    let mut seen = Vec::new();
    let words = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split([',', ' ', '\t', '\r']))
        .filter(|word| !word.is_empty());
    for (index, word) in words.enumerate() {
        let number = index + 1;
        let key = decode(word).ok_or(KeyringError::NotAKey { number })?;
        if seen.contains(&key) {
            return Err(KeyringError::Repeated { number });
        }
        if seen.len() == MAX_KEYS {
            return Err(KeyringError::TooMany);
        }
        seen.push(key);
    }
    if seen.is_empty() { Err(KeyringError::Empty) } else { Ok(seen) }
}

fn decode(word: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    if hex::decode_to_slice(word, &mut key).is_ok() {
        return Some(key);
    }
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    [STANDARD, URL_SAFE]
        .iter()
        .find_map(|alphabet| GeneralPurpose::new(alphabet, config).decode(word).ok())
        .and_then(|bytes| bytes.try_into().ok())
}
