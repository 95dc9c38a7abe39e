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
//! One append, top to bottom: [`Ledger::append`] → `command` → `lane` (a thread with a queue: batch, assign sequence and
//! Lamport time, hash, extend the tree) → `commit` (one RocksDB write) → `syncer` (one sync for all that wait) →
//! `publish` (readers and watchers see it) → `waiters` (callers are answered).
//!
//! | room | holds |
//! | --- | --- |
//! | `ledger` | the public face, by operation |
//! | `store` | the open store: database, lanes, background threads |
//! | `engine` | RocksDB: families and keys, rows and records, opening and reopening |
//! | `directory` | the data directory: format, identity, promises |
//! | `write` | lanes, group commits, the syncer, publishing, loads |
//! | `read` | pages, proofs, tails, watchers, snapshots |
//! | `replicate` | what nodes of a cluster request from each other's stores |
//! | `integrity` | the scrub, quarantine, healing, forks |
//!
//! No two files import each other: what both sides of a boundary name is in a file below them (`command` between the
//! callers of lanes and the lanes, `replica` between the lanes of different nodes, `publish` between lanes and readers).

pub mod blocking;
pub mod budget;
mod directory;
pub mod engine;
mod error;
mod ids;
mod integrity;
mod ledger;
mod log_limit;
mod options;
mod read;
pub mod replicate;
mod shared;
mod store;
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
pub use replicate::incoming_load::{IncomingLoad, StagedLoad};
pub use replicate::load_descriptor::LoadDescriptor;
pub use replicate::pending::{PendingFetched, PendingReplication, SyncStates};
pub use replicate::ranges::{EntryRange, SentRange};
pub use types::*;
pub use write::command::ForkOutcome;
pub use write::load::{LOAD, Load};
