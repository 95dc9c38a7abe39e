//! Whole clusters in one thread: the state machines of the real nodes, with a network, disks and clocks in memory.
//! One seed decides everything.
//!
//! | here | is in a real node |
//! | --- | --- |
//! | [`node`] | the shell around [`ledger_core::ownership::Slots`] |
//! | [`lane`], [`follow`] | the lane of a store, and the replica's side of it |
//! | [`catch_up`] | catching up with an owner or, as a claimant, with the best replicas |
//! | [`gossip`] | chitchat |
//! | [`disk`], [`network`] | what they are called |
//! | [`client`] | the SDK |
//! | [`faults`] | bad luck, and operators |
//! | [`invariants`] | what must hold |
//! | [`counts`] | metrics |
//! | [`run`] | time |
//!
//! [`broken`] leaves out a rule, to see that it is missed; [`flags`] are those of `just simulate`.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test that cannot go on should stop")]

mod broken;
mod catch_up;
mod client;
mod counts;
mod disk;
mod faults;
mod flags;
mod follow;
mod gossip;
mod healing;
mod history;
mod invariants;
mod lane;
mod message;
mod mischief;
mod network;
mod node;
mod random;
mod run;

pub use broken::Broken;
pub use counts::Counts;
pub use flags::Flags;
pub use run::{Run, run};
