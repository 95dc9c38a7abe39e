//! The Merkle tree of a context (RFC 9162 §2.1): leaf data are the entries' content hashes.
//!
//! Appending keeps the [`Frontier`] only; what proofs need later is stored as [`tile`]s. A [`reader`] makes
//! roots and [`proof`]s from those, at any size the tree ever had.

pub mod frontier;
pub mod proof;
pub mod reader;
pub mod tile;

#[cfg(test)]
mod tests;

pub use frontier::Frontier;
pub use proof::{ConsistencyProof, InclusionProof, ProofError};
pub use reader::{ReadError, TileReader};
pub use tile::{RightEdge, Tile, TileId};
