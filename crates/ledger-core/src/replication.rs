//! Replication of an owner's commits: when a commit has enough copies, and what a replica does with what it is sent.
//!
//! An owner numbers its commits 1, 2, 3, … It sends them to each replica in order. A replica answers with the number up to
//! which everything that it was sent is durable. So one number for each replica tells how far it is, for all slots. The number
//! plays the part of Raft's `matchIndex` (Ongaro, "Consensus: Bridging Theory and Practice", 2014, §3.5), and of the offset
//! that a Kafka follower fetches from.
//!
//! | question | answered by |
//! | --- | --- |
//! | What does a node decide about the commits of its slots, as owner and as replica? | [`SlotCommits`] |
//! | Owner: which commits have enough copies? | [`PendingCommits`] |
//! | Owner: which appends have the copies that their writers asked for? | [`WriteQuorum`] |
//! | Replica: what becomes of what an owner sends? | [`replica`] |
//! | Replica: which commits may readers see? | [`UncommittedWrites`] |

mod peer;
mod pending_commits;
mod quorum_waiters;
pub mod replica;
pub mod slot_commits;
#[cfg(test)]
mod tests;
mod uncommitted_writes;

pub use peer::{MAX_PEERS, Peer, PeerSet};
pub use pending_commits::{Committed, PendingCommits};
pub use quorum_waiters::WriteQuorum;
pub use slot_commits::{CommitIndex, SlotCommits};
pub use uncommitted_writes::UncommittedWrites;
