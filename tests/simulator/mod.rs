//! Whole clusters in one thread: the state machines of the real nodes, with a network, disks and clocks in memory.
//! One seed determines everything.
//!
//! | here | is in a real node |
//! | --- | --- |
//! | [`node`], [`perform`], [`streams`], [`node_output`] | the shell around [`ledger_core::ownership::SlotManager`] |
//! | [`lane`], [`replicate`], [`serve`] | the shell around [`ledger_core::replication::SlotCommits`], the replica's side of a lane, and the responses to clients |
//! | [`loads`] | loads, in `ledger_store::write::load` and `ledger_cluster::replicate::staging` |
//! | [`questions`] | calls of other nodes, with retries |
//! | [`catch_up`], [`source`] | the shell around [`ledger_core::catch_up`], and a node that others fetch from |
//! | [`damage`], [`heal`] | what a node cannot read, in `ledger_store::integrity`; the shell around [`ledger_core::healing`] |
//! | [`reopen`], [`kept`] | a database that is opened anew, in `ledger_store::engine`; what is kept for clients |
//! | [`gossip`] | chitchat |
//! | [`disk`], [`network`] | disks and the network |
//! | [`client`], [`clients`] | the SDK |
//! | [`plan`], [`faults`], [`losses`], [`operators`], [`healing`] | what a seed decides, faults, and operators |
//! | [`invariants`], [`note_checks`], [`counts`] | what must hold, and what happened |
//! | [`run`] | time |
//!
//! [`broken`] disables a rule, to prove that the simulation notices; [`flags`] are those of `just simulate`.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test that cannot go on should stop")]

#[macro_use]
mod named;

mod broken;
mod catch_up;
mod client;
mod clients;
mod counts;
mod damage;
mod disk;
mod faults;
mod flags;
mod gossip;
mod heal;
mod healing;
mod history;
mod invariants;
mod kept;
mod lane;
mod loads;
mod losses;
mod message;
mod network;
mod node;
mod node_output;
mod note_checks;
mod operators;
mod perform;
mod plan;
mod prelude;
mod questions;
mod random;
mod reopen;
mod replicate;
mod run;
mod serve;
mod source;
mod streams;

pub use broken::DisabledRule;
pub use counts::Counts;
pub use flags::Flags;
pub use run::{Run, run};
