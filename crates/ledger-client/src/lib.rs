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
//! | [`client`] | the client, and where each of its verbs stands |
//! | [`appender`] | pipelined appends |
//! | [`attachment`] | a writer that keeps its newest appends, and writes again what a ledger lost |
//! | [`pages`], [`watch`] | a context in pages, and a context as it grows |
//! | [`transfer`] | snapshots and loads of any size |
//! | [`trust`] | what a caller trusts, and checkpoints verified against it |
//! | [`verified`] | entries that are proven to be those of a trusted checkpoint |
//! | [`proof`] | checkpoints as nodes state them, and proofs between trusted ones |
//! | [`interest`] | who observes a context now, and what the observers broadcast |
//! | [`forks`] | histories that a node left for another one |
//! | [`options`], [`error`] | how to connect, and why a call failed |
//!
//! Inside, each room imports only those above it: `error` and `options`; `connection` (which node a call goes to, and when
//! it is retried); `read`; `verify`; `write`.

pub mod client;
mod connection;
mod convert;
pub mod error;
pub mod forks;
pub mod interest;
pub mod options;
mod read;
pub mod transfer;
mod verify;
mod write;

pub use read::pages;
pub use read::watch;
pub use verify::proof;
pub use verify::trust;
pub use verify::verified;
pub use write::appender;
pub use write::attachment;

pub use appender::{Appender, Receipt, Receipts, Stored};
pub use attachment::{AttachOptions, Attachment, Reattached};
pub use bytes::Bytes;
pub use client::{Append, Appended, Client, ContextInfo, ContextPage, Durability, Unlisted};
pub use error::{ClientError, Interruption, NotExtended, TreeHead};
pub use forks::{Fork, ForkCursor, ForkPages, Tip};
pub use interest::{Interest, InterestEvent, Observer};
pub use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Key, Lineage, Position, Sequence, Size,
    checkpoint::VerifierKey,
    clock::LamportClock,
    entry::Metadata,
    id::IdError,
    tree::{ConsistencyProof, InclusionProof},
};
pub use ledger_proto as proto;
pub use options::{Options, Tls};
pub use pages::{Pages, ReadFrom, Selection};
pub use proof::{Checkpoint, Consistency};
pub use tonic::Code;
pub use transfer::{Loaded, SnapshotInfo};
pub use trust::{Basis, KnownCheckpoints, Trust, TrustedCheckpoint};
pub use verified::{Inclusion, VerifiedEntry, VerifiedPages, VerifiedWatch};
pub use watch::Watch;
