//! Who may write a slot: promises, takeovers, copies.
//!
//! There is no leader election and no log of decisions: one owner for each slot, whom enough replicas have
//! promised not to listen to anybody before. This is the first phase of Paxos (Lamport, "The Part-Time
//! Parliament", 1998) for each change of owner, and none for an append. Nothing here does I/O: each machine
//! is given events and gives back what to do, so that the same code runs in a node and in a simulation.
//!
//! ```text
//! Replica ─▶ Asking ─▶ CatchingUp ─▶ Accepting ─▶ (Confirming) ─▶ Owning ─▶ Replica
//!               │            │            │              │             │
//!               └────────────┴────────────┴──────────────┴─ given up ──┴─▶ Replica
//!                                          (somebody claimed higher, or too few answered)
//! ```
//!
//! Invariants, with R members of a replica set, m copies for an acknowledgement, and m > R / 2:
//! - A replica never goes back on a promise: it is on disk before the answer leaves.
//! - An epoch has one claimant. Two who pick the same number are told apart by their names, and a replica
//!   promises it to one of them.
//! - An append counts a copy only of a replica that accepted the owner's epoch, which it does when its
//!   history is the owner's. So a takeover, which hears R − m + 1 members, hears of every acknowledged entry from
//!   one that accepted the newest epoch in which anything was acknowledged.
//! - The first members of a slot are those that gossip shows to whoever claims it first. They count only once all of
//!   them have accepted each other and enough know that: until then a takeover needs all of them.
//! - Which members there are is part of what is promised, accepted and recorded, never read off gossip during
//!   a takeover: two views of gossip could give two sets that share nobody.
//! - Members that an operator declared lost are not waited for where the others are too few: [`recovery`].

pub mod match_indexes;
pub mod record;
pub mod recovery;
pub mod slot_manager;
pub mod takeover;

pub use match_indexes::MatchIndexes;
pub use record::{Claim, HigherClaimPromised, Placement, Promise, ReplicaRefusal, SlotRecord};
pub use recovery::{DeclaredLosses, Recovery, RecoveryApproval};
pub use slot_manager::SlotManager;
pub use takeover::{Effect, Event, Phase, Takeover, TakeoverFailure};

#[cfg(test)]
mod tests;
