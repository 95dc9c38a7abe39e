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
//! | `answer` | answers to the questions of a comparison |
//! | `ranges` | entries as they are stored, for another node to take |
//! | `verify` | entries from another node, checked before any is staged |
//! | `arriving`, `loaded` | loads that are staged here for another node, and what of loads must stay together |
//! | `heal` | restoring a damaged context from another node's copy |
//! | `forks` | histories that were left, and the evidence why |
//! | `rows` | reading several rows as they were at one moment |

mod answer;
mod arriving;
mod beside;
pub mod budget;
mod cluster;
mod commit;
mod copies;
mod database;
mod db;
mod digests;
mod error;
mod families;
mod forks;
mod heal;
mod home;
mod incarnation;
mod index;
mod keys;
mod lane;
mod ledger;
mod load;
mod loaded;
mod log_limit;
mod marks;
mod meta;
mod notes;
mod options;
mod prove;
mod quarantine;
mod ranges;
mod read;
mod readable;
#[doc(hidden)]
pub mod record;
mod renew;
pub mod replica;
mod rows;
mod scrub;
mod set_aside;
mod shared;
mod slots;
mod snapshot;
mod space;
mod stable;
mod staging;
mod state;
mod syncer;
mod tail;
#[cfg(test)]
mod testing;
mod types;
mod verify;
mod view;
mod watch;
mod watermark;

pub use arriving::{Announced, Arriving, StagedLoad};
pub use cluster::{Following, LeftHistory, SyncStates};
pub use error::StoreError;
pub use forks::{Evidence, ForkCursor, ForkInfo, ForkList, Tip};
pub use heal::Healing;
pub use ledger::Ledger;
pub use ledger_core::replication::Needed;
pub use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Head, Key, Lineage, Position, Sequence, Size,
    clock::LamportClock,
    entry::{Draft, Metadata},
    tree::proof::{ConsistencyProof, InclusionProof},
};
pub use load::{LOAD, Load};
pub use log_limit::LogLimit;
pub use meta::FORMAT;
pub use options::{Durability, Options};
pub use ranges::Range;
pub use set_aside::{SetAside, set_aside, set_aside_before, want_replacement, wants_replacement};
pub use snapshot::SnapshotStream;
pub use types::*;
pub use view::{EntryView, IdView};
pub use watch::Watch;
