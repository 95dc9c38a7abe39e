//! The two hash suites.
//!
//! A context's suite is chosen when it is created and recorded in its head. Code that hashes is generic
//! over [`Hasher`], so the choice is made once per batch and never inside a loop.

use std::fmt;

use sha2::Digest as _;

/// A 32-byte hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Takes a hash from a slice of exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Reads 64 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which hash function a context uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum HashSuite {
    /// BLAKE3: the default.
    #[default]
    Blake3,
    /// SHA-256: for tooling of RFC 9162 and C2SP transparency logs.
    Sha256,
}

impl HashSuite {
    /// Returns the suite's number in stored formats.
    pub const fn code(self) -> u8 {
        match self {
            Self::Blake3 => 1,
            Self::Sha256 => 2,
        }
    }

    /// Returns the suite of a number in stored formats.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Blake3),
            2 => Some(Self::Sha256),
            _ => None,
        }
    }

    /// Returns the suite's name in configuration and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }

    /// Returns the suite of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Blake3, Self::Sha256].into_iter().find(|suite| suite.name() == name)
    }
}

impl fmt::Display for HashSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A hash function, and the tree hashes of RFC 9162 §2.1.1 made from it.
pub trait Hasher {
    /// The suite this is.
    const SUITE: HashSuite;

    /// Returns the hash of the bytes.
    fn digest(bytes: &[u8]) -> Hash;

    /// Returns the hash of a leaf: `H(0x00 ‖ data)`.
    fn leaf(data: &Hash) -> Hash {
        let mut input = [0; 33];
        input[1..].copy_from_slice(&data.0);
        Self::digest(&input)
    }

    /// Returns the hash of an inner node: `H(0x01 ‖ left ‖ right)`.
    fn node(left: &Hash, right: &Hash) -> Hash {
        let mut input = [1; 65];
        input[1..33].copy_from_slice(&left.0);
        input[33..].copy_from_slice(&right.0);
        Self::digest(&input)
    }

    /// The hash of no metadata, `H(0x00000000)`: most entries have none.
    const NO_METADATA: Hash;

    /// Returns the root of the empty tree: `H("")`.
    fn empty_root() -> Hash {
        Self::digest(b"")
    }
}

/// BLAKE3 (<https://github.com/BLAKE3-team/BLAKE3-specs>), of [`HashSuite::Blake3`].
#[derive(Debug, Clone, Copy)]
pub struct Blake3;

/// SHA-256 (FIPS 180-4), of [`HashSuite::Sha256`].
#[derive(Debug, Clone, Copy)]
pub struct Sha256;

impl Hasher for Blake3 {
    const SUITE: HashSuite = HashSuite::Blake3;
    const NO_METADATA: Hash = Hash([
        0xec, 0x2b, 0xd0, 0x3b, 0xf8, 0x6b, 0x93, 0x5f, 0xa3, 0x4d, 0x71, 0xad, 0x7e, 0xbb, 0x04, 0x9f, 0x1f,
        0x10, 0xf8, 0x7d, 0x34, 0x3e, 0x52, 0x15, 0x11, 0xd8, 0xf9, 0xe6, 0x62, 0x56, 0x20, 0xcd,
    ]);

    fn digest(bytes: &[u8]) -> Hash {
        Hash(*blake3::hash(bytes).as_bytes())
    }
}

impl Hasher for Sha256 {
    const SUITE: HashSuite = HashSuite::Sha256;
    const NO_METADATA: Hash = Hash([
        0xdf, 0x3f, 0x61, 0x98, 0x04, 0xa9, 0x2f, 0xdb, 0x40, 0x57, 0x19, 0x2d, 0xc4, 0x3d, 0xd7, 0x48, 0xea,
        0x77, 0x8a, 0xdc, 0x52, 0xbc, 0x49, 0x8c, 0xe8, 0x05, 0x24, 0xc0, 0x14, 0xb8, 0x11, 0x19,
    ]);

    fn digest(bytes: &[u8]) -> Hash {
        Hash(sha2::Sha256::digest(bytes).into())
    }
}

/// Runs a generic function with the hasher of a suite: `with_suite!(suite, H => frontier.root::<H>())`.
#[macro_export]
macro_rules! with_suite {
    ($suite:expr, $hasher:ident => $body:expr) => {
        match $suite {
            $crate::HashSuite::Blake3 => {
                type $hasher = $crate::hash::Blake3;
                $body
            }
            $crate::HashSuite::Sha256 => {
                type $hasher = $crate::hash::Sha256;
                $body
            }
        }
    };
}
