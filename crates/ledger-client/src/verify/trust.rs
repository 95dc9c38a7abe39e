//! What a caller trusts of a ledger, and checkpoints that the client verified against it.
//!
//! A node's word proves nothing by itself: an impostor can make up roots, and a node can show one history to one caller
//! and another to the next. So only this module makes a [`TrustedCheckpoint`], and only after it verified what a node
//! states against
//!
//! | the caller has | the client checks that | the trust rests on |
//! | --- | --- | --- |
//! | verifier keys ([`Trust::in_keys`]) | the checkpoint is signed by one of them, and is of this cluster and context | who gave the caller the keys |
//! | a checkpoint that it accepted before ([`KnownCheckpoints`]) | the tree of the earlier is proven to be a prefix of that of the later | the first one, which the caller took on trust |
//!
//! A caller can have both at once. [`Basis`] says which it was, so that nobody takes a first use for more.

mod anchors;
mod checkpoint;
mod contents;
mod file;
mod known;

pub use self::anchors::Trust;
pub use self::checkpoint::{Basis, TrustedCheckpoint};
pub use self::known::KnownCheckpoints;
