//! What a node says, held against what the caller trusts.
//!
//! | module | holds |
//! | --- | --- |
//! | `checkpoint` | a signed size and root, as a node states it |
//! | `prefix` | the proof that one tree is a prefix of another |
//! | [`trust`] | what the caller trusts, and checkpoints that were held against it |
//! | [`proof`] | proofs between trusted checkpoints |
//! | [`verified`] | entries proven to be those of a trusted checkpoint |

pub(crate) mod checkpoint;
mod prefix;
pub mod proof;
pub mod trust;
pub mod verified;
