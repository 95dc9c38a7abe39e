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
//! | [`client`] | the connection, and what takes one request and one answer |
//! | [`appender`] | pipelined appends |
//! | [`read`] | pages of a context, and watching it |
//! | [`transfer`] | snapshots and loads of any size |
//! | [`proof`] | checkpoints and proofs, verified here before they are believed |
//! | [`retry`] | what is tried again, and when |

pub mod appender;
pub mod client;
mod connect;
mod convert;
pub mod error;
pub mod options;
pub mod proof;
pub mod read;
pub mod retry;
pub mod transfer;

pub use appender::{Appender, Receipt, Receipts};
pub use client::{Append, Appended, Client, ContextInfo};
pub use error::ClientError;
pub use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Key, Lineage, Position, Sequence, Size,
};
pub use options::{Options, Tls};
pub use proof::{Checkpoint, Consistency, Inclusion};
pub use read::{Pages, Selection, Watch};
pub use transfer::{Loaded, SnapshotInfo};
