//! Attachments: the writer of a context, which knows what it wrote, repairs what the ledger lost.
//!
//! A ledger can lose what it acknowledged: with one copy, when a disk is lost or an operator restores an older copy of it;
//! with copies on fewer than half of the nodes, in a partition. The writer keeps its newest appends and the position after
//! them. Whenever the owner may have changed or restarted, the writer first compares that position with the owner's
//! history, and writes the missing entries again, with the same entry ids, in order, before anything new.
//!
//! | the owner is | when | then the writer |
//! | --- | --- | --- |
//! | unverified | at first; after a failure; at another owner; when the connection was lost; after [`SURE_FOR`] without an append | compares |
//! | behind | it lacks an entry of the writer | writes that again, compares |
//! | verified | its history passes through the writer's position | writes the appends that wait |

mod buffer;
mod compare;
mod state;

use std::{collections::HashMap, time::Duration};

use ledger_core::{ContextId, Position};

pub use self::state::{AttachOptions, Attachment};
use self::{
    buffer::{StoredAt, WriterMark},
    state::VerifiedOwner,
};
use super::append::{Append, Appended, Durability};
use crate::{
    connection::{
        address::Address,
        core::Client,
        destination::Destination,
        nodes::RetryAfter,
        retry::{Attempts, FailedCall, backoff_delay},
    },
    error::ClientError,
};

/// How long a writer trusts a connection that has not closed. A proxy may keep one open while an operator restarts the
/// node behind it with an older disk, but nobody does that in less.
pub const SURE_FOR: Duration = Duration::from_secs(1);
/// Appends in flight when the writer writes many again.
const WINDOW: usize = 1024;

/// The result of a comparison with the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reattached {
    /// Appends that the writer wrote (again): the ledger had lost them, or never acknowledged them.
    pub written: usize,
    /// The position after the writer's newest entry.
    pub position: Position,
}

impl Attachment {
    /// Appends an entry, after all kept appends that wait; returns when it is durable.
    ///
    /// # Errors
    ///
    /// [`ClientError::Missing`] if the ledger lacks entries that the writer no longer keeps; [`ClientError::Exhausted`] if
    /// too many appends wait; [`ClientError::Invalid`] if the append is of another context; else as [`Client::append`].
    pub async fn append(&mut self, mut append: Append) -> Result<Appended, ClientError> {
        if append.context != self.context {
            let message =
                format!("an append to context {} of a writer of context {}", append.context, self.context);
            return Err(ClientError::Invalid(message));
        }
        let id = append.assign_id();
        self.buffer.push(&append, &id)?;
        if !self.buffer.is_newest(&id) {
            // The caller repeats an append that waits.
            self.with_timeout(async |this| this.write_all_but(0).await).await?;
            return self.client.append(append).await;
        }
        let appended = self.with_timeout(async |this| this.write_newest().await).await;
        if let Err(error) = &appended
            && !matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_))
        {
            self.buffer.discard_newest(&id);
        }
        appended
    }

    /// Compares what the writer wrote with what the ledger has, and writes what is missing. [`Attachment::append`] does
    /// so by itself when there is a reason; this is for a caller that wants to know.
    ///
    /// # Errors
    ///
    /// [`ClientError::Missing`] if the ledger lacks entries that the writer no longer keeps; else as
    /// [`Attachment::append`].
    pub async fn reattach(&mut self) -> Result<Reattached, ClientError> {
        self.verified_owner = None;
        let written = self.with_timeout(async |this| this.write_all_but(0).await).await?;
        let position = self.position.ok_or_else(|| ClientError::malformed("position"))?;
        Ok(Reattached { written, position })
    }

    /// The position after the writer's newest entry: what to attach with after a restart of the writer.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// How many appends the writer keeps.
    pub fn kept(&self) -> usize {
        self.buffer.len()
    }

    /// Empties the buffer, returns its appends in the order of writing, and takes the ledger's history as it is: the way on
    /// after [`ClientError::Missing`]. The caller can append even those again that the ledger still has: each has its entry
    /// id.
    pub fn reset(&mut self) -> Vec<Append> {
        (self.base, self.position, self.verified_owner) = (None, None, None);
        self.buffer.clear()
    }

    /// Runs all of `work` within the timeout of one call.
    async fn with_timeout<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Self) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let timeout = self.client.options().timeout;
        if let Ok(done) = tokio::time::timeout(timeout, work(self)).await {
            return done;
        }
        self.verified_owner = None;
        Err(ClientError::TimedOut(format!("within {timeout:?}; what was not acknowledged is kept").into()))
    }

    /// Writes all appends that wait, the newest one last, and returns the result of that.
    async fn write_newest(&mut self) -> Result<Appended, ClientError> {
        let destination = Destination::owner_of(&self.context);
        let mut attempts = Attempts::new(self.client.options());
        loop {
            self.write_all_but(1).await?;
            let Some((request, durability)) = self
                .buffer
                .waiting()
                .next()
                .map(|buffered| (buffered.append.request(), buffered.append.durability))
            else {
                return Err(ClientError::Other {
                    code: tonic::Code::Internal,
                    message: "nothing waits to be written".to_owned(),
                });
            };
            let client = self.client.clone();
            // One attempt only: between two the ledger may lose an entry.
            let attempt = client.call_once(destination, &attempts, |channel| {
                let (mut service, request) =
                    (client.context_service_on(channel), client.writer_request(request));
                async move { service.append(request).await }
            });
            match attempt.await? {
                Ok((address, response)) => {
                    let appended = Appended::from_response(&self.context, response.into_inner())?;
                    if self.on_acknowledged(&appended, durability, address).await? {
                        return Ok(appended);
                    }
                }
                Err(failed) => self.back_off(&mut attempts, failed).await?,
            }
        }
    }

    async fn back_off(&mut self, attempts: &mut Attempts, failed: FailedCall) -> Result<(), ClientError> {
        self.verified_owner = None;
        attempts.back_off(failed).await
    }

    /// Handles the acknowledgement of the append that waits. False if the ledger has lost an entry before it: then the
    /// append waits on, and its id keeps the ledger from storing it twice.
    async fn on_acknowledged(
        &mut self,
        appended: &Appended,
        durability: Durability,
        address: Address,
    ) -> Result<bool, ClientError> {
        let position = appended.position;
        let before = self.position.unwrap_or(position);
        let is_next = position.size.0 == before.size.0 + 1;
        let is_same = position.lineage == before.lineage && position.epoch == before.epoch;
        // An owner that continues in the same epoch has lost nothing.
        if !(is_next && (is_same || before.size.0 == 0)) && !self.passes_through(&before).await? {
            self.verified_owner = None;
            return Ok(false);
        }
        let entry = &appended.entry;
        if entry.sequence.0 <= before.size.0 {
            // The caller repeated an append from before the attachment.
            self.buffer.discard_oldest_waiting();
            return Ok(true);
        }
        let stored_at = StoredAt { sequence: entry.sequence, content_hash: entry.content_hash };
        let is_safe = self.is_safe(durability);
        self.buffer.acknowledge(stored_at, is_safe);
        // The response to a repeated append may have a later position.
        let root = (position.size.newest() == entry.sequence).then_some(position.root);
        self.buffer.add_mark(WriterMark { stored_at, epoch: entry.epoch, root });
        self.position = Some(position);
        // If the client reconnected meanwhile, the checks of the position above noticed what the node lost.
        self.verified_owner = Some(self.verified_owner_at(address));
        Ok(true)
    }

    /// Verifies that the ledger has every entry of the writer, and writes all appends that wait but the newest `leave`.
    /// Returns how many it wrote.
    async fn write_all_but(&mut self, leave: usize) -> Result<usize, ClientError> {
        let mut written = 0;
        let mut passes = 0;
        loop {
            let is_verified = self.is_owner_verified().await;
            let before = if is_verified { None } else { Some(self.compare().await?) };
            let waiting = self.buffer.waiting_count().saturating_sub(leave);
            if waiting == 0 {
                return Ok(written);
            }
            passes += 1;
            let moved = self.write_waiting(waiting).await?;
            written += waiting;
            match before {
                // Every entry was where it had been: the owner only did not show it yet.
                Some(before) if !moved => self.restore(before),
                // Compare once more: a ledger that lost entries can lose some again.
                _ => self.verified_owner = None,
            }
            if passes > 1 {
                tokio::time::sleep(backoff_delay(passes)).await;
            }
        }
    }

    /// Writes the oldest appends that wait. Returns whether the ledger stored any elsewhere than before.
    async fn write_waiting(&mut self, count: usize) -> Result<bool, ClientError> {
        // If this returns early, the position is behind the acknowledged appends.
        let verified_owner = self.verified_owner.take();
        let appends: Vec<_> = self
            .buffer
            .waiting()
            .take(count)
            .map(|buffered| (buffered.append.clone(), buffered.lost_from))
            .collect();
        let (mut appender, mut receipts) = self.client.appender(WINDOW).await?;
        let sending: Vec<_> = appends.iter().map(|(append, _)| append.clone()).collect();
        let sending = tokio::spawn(async move {
            for append in sending {
                // The receipts say why.
                if appender.send(append).await.is_err() {
                    break;
                }
            }
        });
        let mut moved = false;
        // Receipts that overtook others: of appends that were refused, or need fewer copies.
        let mut early = HashMap::new();
        // Tags count from 0.
        for (tag, (append, lost_from)) in (0..).zip(appends) {
            let result = loop {
                if let Some(result) = early.remove(&tag) {
                    break result;
                }
                let receipt = receipts.next().await?.ok_or_else(|| ClientError::malformed("receipt"))?;
                early.insert(receipt.tag, receipt.result);
            };
            // All appends before it are acknowledged: it is the oldest that waits.
            let stored = match result {
                Ok(stored) => stored,
                Err(error @ (ClientError::Unavailable(_) | ClientError::TimedOut(_))) => return Err(error),
                Err(error) => {
                    let id = self
                        .buffer
                        .discard_oldest_waiting()
                        .map(|buffered| buffered.id.to_string())
                        .unwrap_or_default();
                    return Err(ClientError::Invalid(format!(
                        "an earlier append of this writer, entry_id {id}, was refused and is not kept any more: \
                         {error}"
                    )));
                }
            };
            let stored_at = StoredAt { sequence: stored.sequence, content_hash: stored.content_hash };
            moved |= lost_from != Some(stored_at);
            let is_safe = self.is_safe(append.durability);
            self.buffer.acknowledge(stored_at, is_safe);
            if lost_from != Some(stored_at) {
                self.buffer.add_mark(WriterMark { stored_at, epoch: stored.epoch, root: None });
            }
        }
        // Every append has its receipt: the task has ended or is about to.
        sending.abort();
        self.verified_owner = verified_owner;
        Ok(moved)
    }

    /// Whether the owner is still the one that the writer verified, and has not restarted.
    async fn is_owner_verified(&mut self) -> bool {
        let Some(VerifiedOwner { address, since, closed_connections }) = &self.verified_owner else {
            return false;
        };
        if since.elapsed() > SURE_FOR
            || self.client.nodes().closed_connections(address) != *closed_connections
        {
            return false;
        }
        let destination = Destination::owner_of(&self.context);
        let node = self.client.find_node(destination, &RetryAfter::default()).await;
        node.is_ok_and(|node| node.address == *address)
    }

    /// Whether an acknowledgement with this durability means as many copies as the options ask for.
    fn is_safe(&self, durability: Durability) -> bool {
        let (Some(wanted), Some((copies, min))) = (self.options.copies, self.copies) else { return false };
        let made = match durability {
            Durability::Configured => min,
            Durability::One => 1,
            Durability::Majority => copies / 2 + 1,
            Durability::All => copies,
        };
        made >= wanted
    }
}

impl Client {
    /// A writer of a context that keeps its appends until the ledger has them safely, and writes again what the ledger
    /// lost. `position` is where the writer last saw the context, if it knows.
    pub fn attach(
        &self,
        context: &ContextId,
        position: Option<Position>,
        options: AttachOptions,
    ) -> Attachment {
        Attachment::new(self.clone(), context.clone(), position, options)
    }
}
