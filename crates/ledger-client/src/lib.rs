//! The Rust SDK of Converge Ledger.
//!
//! ```no_run
//! use ledger_client::{Append, Client, ContextId, Options};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("http://127.0.0.1:50051", &Options::default())?;
//! let context = ContextId::new("growth-strategy-001")?;
//! let appended = client.append(Append::new(&context, "facts", "market_size: 2.4B")?).await?;
//! println!("stored as entry {}", appended.entry.sequence);
//!
//! let mut watch = client.watch(&context, Default::default());
//! while let Some(entry) = watch.next().await? {
//!     println!("{} {:?}", entry.sequence, entry.payload);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`client`] | the nodes, and what takes one request and one answer |
//! | [`appender`] | pipelined appends |
//! | [`attachment`] | a writer's hold on a context, which puts back what a ledger lost |
//! | [`pages`], [`watch`] | reading a context, and watching it |
//! | [`transfer`] | snapshots and loads of any size |
//! | [`proof`] | checkpoints and proofs, verified here before they are believed |
//! | [`interest`] | who else looks at a context now, and what they tell each other |
//! | [`forks`] | histories that a node left for another one |
//! | `address`, `nodes`, `owners`, `route` | where a call goes |
//! | `reading` | a stream of answers that goes on elsewhere |
//! | `refusal`, `retry` | what is tried again, and when |

mod address;
pub mod appender;
pub mod attachment;
pub mod client;
mod connect;
mod convert;
pub mod error;
pub mod forks;
pub mod interest;
mod nodes;
pub mod options;
mod owners;
pub mod pages;
pub mod proof;
mod reading;
mod refusal;
mod retry;
mod route;
pub mod transfer;
pub mod watch;

pub use appender::{Appender, Receipt, Receipts, Stored};
pub use attachment::{AttachOptions, Attachment, Reattached};
pub use client::{Append, Appended, Client, ContextInfo, ContextPage, Durability, Unlisted};
pub use error::ClientError;
pub use forks::{Fork, ForkCursor, ForkPages, Tip};
pub use interest::{Interest, InterestEvent, Observer};
pub use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Key, Lineage, Position, Sequence, Size,
};
pub use options::{Options, Tls};
pub use pages::{Pages, ReadFrom, Selection};
pub use proof::{Checkpoint, Consistency, Inclusion};
pub use transfer::{Loaded, SnapshotInfo};
pub use watch::Watch;
