//! The Merkle tree of a context (RFC 9162 §2.1): leaf data are the entries' content hashes.
//!
//! Appending keeps the [`Frontier`] only; what proofs need later is stored as [`tile`]s.

pub mod frontier;
pub mod tile;

pub use frontier::Frontier;
pub use tile::{RightEdge, Tile, TileId};
