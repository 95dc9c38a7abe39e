//! What becomes of one append, and what the router reports.

use ledger_core::{EntryId, Epoch, Hash, Sequence, clock::LamportClock};
use ledger_proto::ledger::v1::{AppendResult, AppendResults};
use tonic::Code;

use crate::{convert, error::ClientError, write::append::Append};

/// What became of one append.
#[derive(Debug)]
pub struct Receipt {
    /// The number that [`Appender::send`](super::Appender::send) returned.
    pub tag: u64,
    /// Where and how the ledger stored it, or why not.
    pub result: Result<Stored, ClientError>,
}

/// What the ledger gave a stored entry: sequence, times, hash and epoch. The sender has the rest of the entry.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its sequence.
    pub sequence: Sequence,
    /// Its Lamport time.
    pub lamport: LamportClock,
    /// Wall-clock time, nanoseconds since the Unix epoch.
    pub appended_at_ns: u64,
    /// Its id.
    pub id: EntryId,
    /// Its content hash.
    pub content_hash: Hash,
    /// The epoch in which the owner wrote it.
    pub epoch: Epoch,
    /// The ledger had an entry with this id: this is the first result.
    pub repeated: bool,
    /// How many nodes it is known to be durable on; 0: the node does not say.
    pub copies: u32,
}

/// An append on its way to the router.
#[derive(Debug)]
pub(super) struct SentAppend {
    pub tag: u64,
    pub append: Append,
}

/// What the router reports to the receiving side. Bounded by the window: an append leaves the window when the receiving
/// side takes its receipt out of here.
#[derive(Debug)]
pub(super) enum RouterMessage {
    /// Results of a node, with the caller's tags.
    Results(AppendResults),
    /// Receipts of appends that the router gave up.
    Failed(Vec<Receipt>),
    /// Every append has its receipt, and the caller sends no more.
    Finished,
}

impl Receipt {
    pub(super) fn from_result(from: &AppendResult, copies: u32) -> Self {
        let tag = from.tag;
        let result = match &from.error {
            Some(error) => Err(ClientError::from_code(Code::from(error.code), &error.message)),
            None => Stored::from_result(from, copies),
        };
        Self { tag, result }
    }
}

impl Stored {
    fn from_result(from: &AppendResult, copies: u32) -> Result<Self, ClientError> {
        Ok(Self {
            sequence: Sequence(from.sequence),
            lamport: LamportClock(from.lamport_clock),
            appended_at_ns: from.appended_at_ns,
            id: EntryId::new(&from.entry_id)?,
            content_hash: convert::hash(&from.content_hash, "content_hash")?,
            epoch: Epoch(from.epoch),
            repeated: from.repeated_id,
            copies,
        })
    }
}
