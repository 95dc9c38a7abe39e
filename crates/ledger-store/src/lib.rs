//! Durable, provable, append-only contexts on RocksDB: the storage of Converge Ledger, and its embedded
//! API.
//!
//! ```
//! use ledger_store::{ContextId, Draft, Filter, Key, Ledger};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let ledger = Ledger::open(dir.path())?;
//! let context = ContextId::new("growth-strategy-001")?;
//! let fact = Draft { key: Key::new("facts")?, payload: "market_size: 2.4B".into(), metadata: [].into() };
//!
//! // Returns when the entry is on disk.
//! let appended = ledger.append(&context, fact)?;
//! assert_eq!(appended.entry.sequence.0, 1);
//!
//! let page = ledger.get(&context, &Filter::default())?;
//! assert_eq!(page.entries[0].payload, "market_size: 2.4B");
//! # ledger.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! One append, top to bottom: [`Ledger::append`] → `lane` (a thread with a queue: batch, assign sequence and
//! Lamport time, hash, extend the tree) → `commit` (one RocksDB write) → `syncer` (one sync for all that wait) →
//! acknowledge → `tail` (wake the watchers).
//!
//! What nodes of a cluster need of each other's stores:
//!
//! | module | holds |
//! | --- | --- |
//! | `digests`, `index` | what every slot holds: as digests in memory, and as a listing on disk |
//! | `compare` | answers to the questions of a comparison |
//! | `ranges` | entries as they are stored, for another node to take |
//! | `verify` | entries from another node, checked before any is staged |
//! | `incoming_load`, `uncommitted_loads` | loads that are staged here for another node, and what of loads must stay together |
//! | `heal` | restoring a damaged context from another node's copy |
//! | `forks` | histories that were left, and the evidence why |
//! | `rows` | reading several rows as they were at one moment |

pub mod budget;
mod directory;
pub mod engine;
mod error;
mod integrity;
mod ledger;
mod log_limit;
mod options;
mod read;
pub mod replicate;
mod shared;
#[cfg(test)]
mod testing;
mod types;
mod write;

pub use directory::meta::FORMAT;
pub use directory::set_aside::{SetAside, set_aside, set_aside_before, want_replacement, wants_replacement};
pub use error::StoreError;
pub use integrity::forks::{Evidence, ForkCursor, ForkInfo, ForkList, Tip};
pub use integrity::heal::Healing;
pub use ledger::Ledger;
pub use ledger_core::replication::WriteQuorum;
pub use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Head, Key, Lineage, Position, Sequence, Size,
    clock::LamportClock,
    entry::{Draft, Metadata},
    tree::proof::{ConsistencyProof, InclusionProof},
};
pub use log_limit::LogLimit;
pub use options::{Durability, Options};
pub use read::snapshot::SnapshotStream;
pub use read::view::{EntryView, IdView};
pub use read::watch::Watch;
pub use replicate::cluster_api::{ForkOutcome, PendingFetched, PendingReplication, SyncStates};
pub use replicate::incoming_load::{IncomingLoad, LoadDescriptor, StagedLoad};
pub use replicate::ranges::{EntryRange, SentRange};
pub use types::*;
pub use write::load::{LOAD, Load};
