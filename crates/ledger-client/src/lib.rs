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
//! | [`trust`] | what a caller trusts, and checkpoints that were held against it |
//! | [`verified`] | entries that are proven to be those of a trusted checkpoint |
//! | [`proof`] | checkpoints as nodes state them, and proofs between trusted ones |
//! | [`interest`] | who else looks at a context now, and what they tell each other |
//! | [`forks`] | histories that a node left for another one |
//! | `address`, `nodes`, `owners`, `route` | where a call goes |
//! | `reading` | a stream of answers that goes on elsewhere |
//! | `pulse` | whether a node is there that calls wait for |
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
mod pulse;
mod reading;
mod refusal;
mod retry;
mod route;
pub mod transfer;
pub mod trust;
pub mod verified;
pub mod watch;

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
