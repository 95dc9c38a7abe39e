//! The state of a writer.

use ledger_core::{ContextId, Position, Sequence};
use tokio::time::Instant;

use super::buffer::Buffer;
use crate::{
    connection::{address::Address, core::Client},
    error::ClientError,
};

/// How much a writer keeps. Over the limits it drops the oldest acknowledged appends, and never one that is not
/// acknowledged.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// Appends.
    pub max_entries: usize,
    /// Bytes of them.
    pub max_bytes: usize,
    /// The writer does not keep an append that the ledger acknowledged with so many copies; `None`: it keeps all, within
    /// the limits.
    pub copies: Option<u32>,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self { max_entries: 16 * 1024, max_bytes: 32 << 20, copies: None }
    }
}

/// A writer of a context that repairs what the ledger lost.
///
/// The writer keeps an append that fails with [`ClientError::Unavailable`] or [`ClientError::TimedOut`], and writes it
/// before the next one: the caller need not repeat it. After any other error the writer drops it.
#[derive(Debug)]
pub struct Attachment {
    pub(super) client: Client,
    pub(super) context: ContextId,
    pub(super) options: AttachOptions,
    pub(super) buffer: Buffer,
    /// The position at which the writer began.
    pub(super) base: Option<Position>,
    /// The position after its newest entry.
    pub(super) position: Option<Position>,
    /// The owner whose history passed through the position, when the writer last compared.
    pub(super) verified_owner: Option<VerifiedOwner>,
    /// The replication factor and the write quorum of the cluster.
    pub(super) copies: Option<(u32, u32)>,
}

/// An owner whose history the writer has compared with its own.
#[derive(Debug)]
pub(super) struct VerifiedOwner {
    pub(super) address: Address,
    pub(super) since: Instant,
    /// How many connections to it had closed by then: unchanged, it has not restarted.
    pub(super) closed_connections: u64,
}

impl Attachment {
    pub(super) fn new(
        client: Client,
        context: ContextId,
        position: Option<Position>,
        options: AttachOptions,
    ) -> Self {
        let buffer = Buffer::new(options.max_entries, options.max_bytes);
        let base = position;
        Self { client, context, options, buffer, base, position, verified_owner: None, copies: None }
    }

    /// The owner at an address, as of now.
    pub(super) fn verified_owner_at(&self, address: Address) -> VerifiedOwner {
        let closed_connections = self.client.nodes().closed_connections(&address);
        VerifiedOwner { address, since: Instant::now(), closed_connections }
    }

    pub(super) fn missing_error(&self, first: u64) -> ClientError {
        ClientError::Missing { context: self.context.clone(), first: Sequence(first) }
    }
}
