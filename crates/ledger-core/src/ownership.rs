//! Who may write a slot: promises, takeovers, and the members that must have a copy.
//!
//! Each slot has one owner at a time. A node becomes the owner when enough members have promised to refuse every lower claim.
//! Nothing elects a leader by majority vote, and no log records the decisions. A change of owner takes the first phase of Paxos
//! (Lamport, "Paxos Made Simple", 2001) and an append takes none; the members change with the claim, as in Vertical Paxos
//! (Lamport, Malkhi, Zhou, "Vertical Paxos and Primary-Backup Replication", 2009). Nothing here does I/O: each machine takes
//! events and returns what to do, so that the same code runs in a node and in a simulation.
//!
//! ```text
//! Replica ─▶ CollectingPromises ─▶ CatchingUp ─▶ Accepting ─▶ (Confirming) ─▶ Owning ─▶ Replica
//!                    │                  │            │              │            │
//!                    └──────────────────┴────────────┴──────────────┴─ Abandoned ┴─▶ Replica
//!                                          (another node claimed higher, or too few answered)
//! ```
//!
//! | here | Raft | Vertical Paxos | Kafka |
//! | --- | --- | --- | --- |
//! | owner | leader | primary | leader of a partition |
//! | candidate | candidate | proposer in phase 1 | – (the controller chooses) |
//! | replica | follower | acceptor | follower |
//! | [`Epoch`](crate::Epoch) of a [`Claim`] | term | ballot | leader epoch |
//! | [`Promise`] | vote | promise (1b) | – |
//! | [`Placement`] | configuration | configuration | replica assignment |
//! | [`SlotRecord`] | `currentTerm`, `votedFor` | promised and accepted ballot | – |
//!
//! Invariants, with R members of a replica set, m copies for an acknowledgement, and m > R / 2:
//! - A replica never breaks a promise. The promise is on its disk before the answer leaves.
//! - An epoch has one claimant. If two nodes pick the same epoch, a replica promises it to one of them only.
//! - An owner counts the copy of a replica only if the replica accepted the owner's epoch. A replica accepts it when its history
//!   is the owner's. A takeover hears R − m + 1 members. One of them accepted the newest epoch in which anything was
//!   acknowledged, and so holds every acknowledged entry.
//! - The first members of a slot are those that gossip shows to the node that claims it first. They count only once all of them
//!   have accepted each other and enough know that. Until then a takeover needs all of them.
//! - Members are part of what a replica promises, accepts and records. A takeover never reads them from gossip: two views of
//!   gossip could give two sets that share no node.
//! - If operators declared members lost and the others are too few, a takeover does not wait for the lost ones: [`recovery`].

pub mod match_indexes;
pub mod record;
pub mod recovery;
mod refused_part;
pub mod slot_manager;
pub mod takeover;

pub use match_indexes::MatchIndexes;
pub use record::{Claim, HigherClaimPromised, Placement, Promise, ReplicaRefusal, SlotRecord};
pub use recovery::{DeclaredLosses, Recovery, RecoveryApproval};
pub use refused_part::{RefusedPart, WhyRefused};
pub use slot_manager::SlotManager;
pub use takeover::{Effect, Event, Phase, Takeover, TakeoverFailure};

#[cfg(test)]
mod tests;
