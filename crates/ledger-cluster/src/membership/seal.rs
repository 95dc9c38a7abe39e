//! Sealing of gossip datagrams under the cluster's keys.
//!
//! | bytes | sealed | plain |
//! | --- | --- | --- |
//! | 1 | [`SEALED`] or [`SEALED_OF`] | [`PLAIN`] or [`PLAIN_OF`] |
//! | 8 | cluster tag | cluster tag |
//! | 16 | identity of the cluster, in the `…_OF` formats only | the same |
//! | 24 | nonce, random | |
//! | rest | XChaCha20-Poly1305 of the payload, with its 16-byte tag | the payload |
//!
//! The cipher is that of draft-irtf-cfrg-xchacha-03: its nonce is long enough to be drawn at random for every
//! datagram. The associated data are the version byte and the cluster's id, so a datagram of another cluster does not
//! open even under the same key. The cluster tag is a hash of the id in plain text. It distinguishes "another
//! cluster" from "an unknown key", and it is all that separates clusters without keys.
//!
//! A node whose cluster has an identity sends it in every datagram. Builds without identities drop such datagrams.
//!
//! A replayed datagram opens. That is harmless, because gossip's values carry versions and only move forward.

use std::{fmt, sync::Arc};

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};

pub use ledger_core::cluster_key::{KeyringError, MAX_KEYS};
use ledger_core::{
    cluster_key::{self, CallKey},
    node::ClusterId,
};

#[cfg(test)]
mod tests;

/// First byte of a sealed datagram: format 1.
pub const SEALED: u8 = 0xc1;
/// First byte of a datagram of a cluster without keys: format 1.
pub const PLAIN: u8 = 0xc0;
/// First byte of a sealed datagram that carries the cluster's identity.
pub const SEALED_OF: u8 = 0xc3;
/// First byte of a plain datagram that carries the cluster's identity.
pub const PLAIN_OF: u8 = 0xc2;
/// Most bytes that sealing adds to a payload.
pub const OVERHEAD: usize = 1 + TAG + IDENTITY + NONCE + MAC;

const TAG: usize = 8;
const IDENTITY: usize = 16;
const NONCE: usize = 24;
const MAC: usize = 16;

/// The cluster's keys: the first one seals, and all of them open. Cheap to clone; never printed.
///
/// To rotate a key: configure `old, new` on every node, then `new, old` on every node, then `new` on every node. At
/// each step every node opens what any other seals.
#[derive(Clone, Default)]
pub struct Keyring(Arc<[Key]>);

/// A key, in its two uses.
#[derive(Clone)]
struct Key {
    cipher: XChaCha20Poly1305,
    proves: CallKey,
}

impl Keyring {
    /// Returns a keyring without keys: datagrams are sent in plain. Use it for a single node or a fully trusted
    /// network.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads keys from text: see [`cluster_key::parse`].
    ///
    /// # Errors
    /// A [`KeyringError`] says which is wrong.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        Ok(Self::of(&cluster_key::parse(text)?))
    }

    /// Returns a keyring of these keys; the first one seals.
    pub fn of(keys: &[[u8; 32]]) -> Self {
        let key =
            |key: &[u8; 32]| Key { cipher: XChaCha20Poly1305::new(key.into()), proves: CallKey::of(key) };
        Self(keys.iter().map(key).collect())
    }

    /// Returns whether there is no key, so that datagrams are sent in plain.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.0.len())
    }
}

/// Why a datagram did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not sealed, and this node has keys.
    #[error("the datagram is not sealed, and this cluster has keys")]
    NotSealed,
    /// No key of this node opens it: it was sealed with another key, or is damaged.
    #[error("no cluster key of this node opens the datagram")]
    UnknownKey,
    /// It was sent in another cluster.
    #[error("the datagram is of another cluster")]
    AnotherCluster,
    /// It is too short or of an unknown format.
    #[error("the datagram has no known format")]
    Malformed,
}

/// The datagram could not be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a datagram could not be sealed: the operating system gave no random numbers")]
pub struct SealError;

/// Seals and opens the datagrams of one cluster.
#[derive(Debug, Clone)]
pub struct Sealer {
    keyring: Keyring,
    tag: [u8; TAG],
    /// The cluster's name, which is part of the authenticated data.
    name: Arc<str>,
    identity: Option<ClusterId>,
}

impl Sealer {
    /// Creates the sealer of a cluster.
    pub fn new(cluster_id: &str, keyring: Keyring) -> Self {
        let hash = blake3::derive_key("converge-ledger gossip cluster tag v1", cluster_id.as_bytes());
        let mut tag = [0; TAG];
        tag.copy_from_slice(&hash[..TAG]);
        Self { keyring, tag, name: cluster_id.into(), identity: None }
    }

    /// Returns the same sealer with this identity of the cluster.
    #[must_use]
    pub fn with_identity(&self, identity: Option<ClusterId>) -> Self {
        Self { identity, ..self.clone() }
    }

    /// Returns whether it sends the cluster's identity.
    pub(crate) fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// Returns the associated data of a datagram, with or without an identity.
    fn associated(&self, identity: Option<ClusterId>) -> Vec<u8> {
        match identity {
            None => [&[SEALED], self.name.as_bytes()].concat(),
            Some(id) => [&[SEALED_OF], &id.0[..], self.name.as_bytes()].concat(),
        }
    }

    /// Returns the same cluster's sealer with other keys.
    #[must_use]
    pub fn with_keyring(&self, keyring: Keyring) -> Self {
        Self { keyring, ..self.clone() }
    }

    /// Seals a payload into a datagram.
    ///
    /// # Errors
    /// [`SealError`] if there is no random nonce.
    pub fn seal(&self, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE];
        if !self.keyring.is_empty() {
            getrandom::fill(&mut nonce).map_err(|_| SealError)?;
        }
        self.seal_with(nonce, payload)
    }

    fn seal_with(&self, nonce: [u8; NONCE], payload: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut datagram = Vec::with_capacity(OVERHEAD + payload.len());
        let identity = self.identity.map_or_else(Vec::new, |id| id.0.to_vec());
        let Some(Key { cipher, .. }) = self.keyring.0.first() else {
            datagram.push(if identity.is_empty() { PLAIN } else { PLAIN_OF });
            datagram.extend(self.tag);
            datagram.extend(identity);
            datagram.extend(payload);
            return Ok(datagram);
        };
        let payload = Payload { msg: payload, aad: &self.associated(self.identity) };
        let sealed = cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| SealError)?;
        datagram.push(if identity.is_empty() { SEALED } else { SEALED_OF });
        datagram.extend(self.tag);
        datagram.extend(identity);
        datagram.extend(nonce);
        datagram.extend(sealed);
        Ok(datagram)
    }

    /// Opens a datagram and returns its payload. Accepts any bytes.
    ///
    /// # Errors
    /// [`OpenError`] says why it does not open.
    pub fn open(&self, datagram: &[u8]) -> Result<Vec<u8>, OpenError> {
        self.open_of(datagram).map(|(_, payload)| payload)
    }

    /// Opens a datagram and returns its payload and the identity that it carries, if any. Does not compare the
    /// identity with this cluster's.
    ///
    /// # Errors
    /// [`OpenError`] says why it does not open.
    pub fn open_of(&self, datagram: &[u8]) -> Result<(Option<ClusterId>, Vec<u8>), OpenError> {
        let (&version, rest) = datagram.split_first().ok_or(OpenError::Malformed)?;
        if !matches!(version, SEALED | PLAIN | SEALED_OF | PLAIN_OF) {
            return Err(OpenError::Malformed);
        }
        let (tag, mut rest) = rest.split_first_chunk::<TAG>().ok_or(OpenError::Malformed)?;
        if *tag != self.tag {
            return Err(OpenError::AnotherCluster);
        }
        let mut identity = None;
        if matches!(version, SEALED_OF | PLAIN_OF) {
            let (id, after) = rest.split_first_chunk::<IDENTITY>().ok_or(OpenError::Malformed)?;
            (identity, rest) = (Some(ClusterId(*id)), after);
        }
        if matches!(version, PLAIN | PLAIN_OF) {
            let is_open = self.keyring.is_empty();
            return if is_open { Ok((identity, rest.to_vec())) } else { Err(OpenError::NotSealed) };
        }
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>().ok_or(OpenError::Malformed)?;
        if sealed.len() < MAC {
            return Err(OpenError::Malformed);
        }
        let nonce = XNonce::from(*nonce);
        let aad = self.associated(identity);
        let mut opened = self.keyring.0.iter();
        opened
            .find_map(|key| key.cipher.decrypt(&nonce, Payload { msg: sealed, aad: &aad }).ok())
            .map(|payload| (identity, payload))
            .ok_or(OpenError::UnknownKey)
    }

    /// Returns a keyed hash of a text, which only a holder of the cluster's key can compute. Without keys, everybody
    /// who knows the cluster's name can.
    pub(crate) fn prove(&self, text: &[u8]) -> blake3::Hash {
        match self.keyring.0.first() {
            Some(key) => key.proves.prove(text),
            None => CallKey::open(&self.name).prove(text),
        }
    }

    /// Returns whether a hash proves a text with a key of the cluster.
    pub(crate) fn is_proven(&self, text: &[u8], by: blake3::Hash) -> bool {
        if self.keyring.is_empty() {
            return self.prove(text) == by;
        }
        self.keyring.0.iter().any(|key| key.proves.prove(text) == by)
    }

    /// Returns whether the cluster has keys, so that a proof is meaningful.
    pub(crate) fn has_keys(&self) -> bool {
        !self.keyring.is_empty()
    }
}
