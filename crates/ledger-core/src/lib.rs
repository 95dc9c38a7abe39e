//! The pure heart of Converge Ledger.
//!
//! An append-only *context* is a gapless sequence of immutable [entries](entry::Entry), committed to by
//! a Merkle tree (RFC 9162) and ordered across contexts by a Lamport clock. Everything that decides
//! lives here, and nothing here does I/O, reads a clock or draws a random number: time, identity and
//! bytes are handed in.
//!
//! | module | holds |
//! | --- | --- |
//! | [`id`] | the names of things: context, key, entry, sequence, epoch, lineage |
//! | [`hash`] | the two hash suites and the tree's leaf and node hashes |
//! | [`entry`] | an entry and its canonical hash |
//! | [`tree`] | frontier, tiles, roots, proofs and their verification |
//! | [`checkpoint`] | signed statements of a context's size and root |
//! | [`clock`] | the Lamport clock |
//! | [`log`] | the rules of appending: a context's head |
//! | [`snapshot`] | one context as a self-verifying stream |
//! | [`legacy`] | the predecessor's hashes, proofs and snapshots, to verify what is imported |
//! | [`slot`] | how contexts map to slots |
//! | [`node`] | nodes, their disks, and the replica set of a slot |
//! | [`rendezvous`] | which nodes a slot should be on |
//! | [`digest`] | whether two nodes hold the same, in a few bytes |
//! | [`compare`] | finding what differs between two nodes |
//! | [`catch_up`] | obtaining what another node holds: what a claimant and a replica do before they count |
//! | [`ownership`] | who may write a slot: promises, takeovers, copies |
//! | [`healing`] | how what a node cannot read any more is restored, and what proves that it is right |
//! | [`replication`] | when there are copies enough, and what a replica does with what it is sent |
//! | [`loads`] | how a loaded snapshot is installed as a whole or not at all |
//! | [`cluster_key`] | the cluster's keys as text, and what proves to have one |
//! | [`call_proof`] | what is proven of a call to a node, once |
//! | [`plausible`] | whether numbers that another node sends can be true |
//! | [`control_characters`] | characters that steer a terminal |
//! | [`limits`] | every bound on what is accepted |

pub mod call_proof;
pub mod catch_up;
pub mod checkpoint;
pub mod clock;
pub mod cluster_key;
pub mod compare;
pub mod control_characters;
pub mod digest;
pub mod entry;
pub mod hash;
pub mod healing;
pub mod id;
pub mod jitter;
pub mod legacy;
pub mod limits;
pub mod loads;
pub mod log;
mod millis;
pub mod node;
pub mod ownership;
pub mod plausible;
pub mod rendezvous;
pub mod replication;
pub mod slot;
pub mod snapshot;
pub mod tree;

pub use entry::Entry;
pub use hash::{Hash, HashSuite};
pub use id::{ContextId, EntryId, Epoch, Key, Lineage, Sequence, Size};
pub use log::{Head, Position};
