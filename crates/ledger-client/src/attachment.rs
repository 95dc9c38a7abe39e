//! A writer's hold on a context: the one party that knows what was written repairs what was lost.
//!
//! A ledger can lose what it acknowledged: with one copy, by the loss of a disk or by an older copy of it put back;
//! with copies on fewer than half of the nodes, by a partition. The writer keeps its newest appends and the
//! position after them. Whenever its owner may be another, or may have come back, it first compares that
//! position with the ledger's, and writes again what is missing, with the same entry ids, in order, before
//! anything new.
//!
//! | the writer is | when | and then |
//! | --- | --- | --- |
//! | unsure | at first; after a failure; at another owner; when the connection was lost; after [`SURE_FOR`] without an append | compares |
//! | behind | the ledger lacks something it wrote | writes it again, compares |
//! | sure | the ledger's history passes through its position | writes what waits |

mod buffer;
mod compare;

use std::{collections::HashMap, time::Duration};

use ledger_core::{ContextId, Position, Sequence};
use tokio::time::Instant;

use self::buffer::{Buffer, StoredAt, WriterMark};
use crate::{
    Append, Appended, Client, ClientError, Durability,
    address::Address,
    retry::{Attempts, Failed},
    route::Aim,
};

/// How long a writer trusts a connection that has not ended: behind one that something else keeps open, nobody
/// restarts a node and puts back an older disk in less.
pub const SURE_FOR: Duration = Duration::from_secs(1);
/// Appends under way when many are written again.
const WINDOW: usize = 1024;

/// How much a writer keeps. When there is no room, the oldest acknowledged appends are dropped; what is not
/// acknowledged never is.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// Appends.
    pub max_entries: usize,
    /// Bytes of them.
    pub max_bytes: usize,
    /// An append that was acknowledged with so many copies is not kept; `None`: all are, as long as there is room.
    pub copies: Option<u32>,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self { max_entries: 16 * 1024, max_bytes: 32 << 20, copies: None }
    }
}

/// A writer's hold on a context.
///
/// An append that fails with [`ClientError::Unavailable`] or [`ClientError::TimedOut`] stays kept, and is written
/// before the next one: it need not be repeated. After any other error it is not.
#[derive(Debug)]
pub struct Attachment {
    client: Client,
    context: ContextId,
    options: AttachOptions,
    buffer: Buffer,
    /// The position the writer began at.
    base: Option<Position>,
    /// The position after its newest entry.
    position: Option<Position>,
    /// The owner it was last sure of.
    sure: Option<OwnerCertainty>,
    /// Copies there should be, and with which an append is acknowledged.
    copies: Option<(u32, u32)>,
}

/// What makes a writer sure that its owner is the one it was.
#[derive(Debug)]
struct OwnerCertainty {
    owner: Address,
    since: Instant,
    /// Connections to it that had ended.
    ends: u64,
}

/// What attaching again found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reattached {
    /// Appends that were written (again): the ledger had lost them, or never acknowledged them.
    pub written: usize,
    /// Where the context stands after the writer's newest entry.
    pub position: Position,
}

impl Attachment {
    pub(crate) fn new(
        client: Client,
        context: ContextId,
        position: Option<Position>,
        options: AttachOptions,
    ) -> Self {
        let buffer = Buffer::new(options.max_entries, options.max_bytes);
        let base = position;
        Self { client, context, options, buffer, base, position, sure: None, copies: None }
    }

    /// Appends an entry, after everything that is kept and not acknowledged; returns when it is durable.
    pub async fn append(&mut self, mut append: Append) -> Result<Appended, ClientError> {
        if append.context != self.context {
            let message =
                format!("an append to context {} of a writer of context {}", append.context, self.context);
            return Err(ClientError::Invalid(message));
        }
        let id = append.identify();
        self.buffer.keep(&append, &id)?;
        if !self.buffer.is_newest(&id) {
            // The caller repeats one of those that wait.
            self.within_time(async |this| this.settle(0).await).await?;
            return self.client.append(append).await;
        }
        let appended = self.within_time(async |this| this.write().await).await;
        if let Err(error) = &appended
            && !matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_))
        {
            self.buffer.take_back(&id);
        }
        appended
    }

    /// Compares what was written with what the ledger has, and writes what is missing. [`Attachment::append`] does
    /// so by itself when there is a reason; this is for when the writer wants to know.
    pub async fn reattach(&mut self) -> Result<Reattached, ClientError> {
        self.sure = None;
        let written = self.within_time(async |this| this.settle(0).await).await?;
        let position = self.position.ok_or_else(|| ClientError::malformed("position"))?;
        Ok(Reattached { written, position })
    }

    /// The position after the writer's newest entry: what to attach with after a restart of the writer.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// How many appends are kept.
    pub fn kept(&self) -> usize {
        self.buffer.len()
    }

    /// Gives up what is kept, in the order of writing, and takes the ledger's history as it is: the way on after
    /// [`ClientError::Missing`]. What of it the ledger still has can be appended again all the same: each has its
    /// entry id.
    pub fn reset(&mut self) -> Vec<Append> {
        (self.base, self.position, self.sure) = (None, None, None);
        self.buffer.clear()
    }

    /// All of it within the time of one call.
    async fn within_time<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Self) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let timeout = self.client.options().timeout;
        if let Ok(done) = tokio::time::timeout(timeout, work(self)).await {
            return done;
        }
        self.sure = None;
        Err(ClientError::TimedOut(format!("within {timeout:?}; what was not acknowledged is kept").into()))
    }

    /// Writes everything that waits, the newest append last.
    async fn write(&mut self) -> Result<Appended, ClientError> {
        let aim = Aim::owner_of(&self.context);
        let mut attempts = Attempts::new(self.client.options());
        loop {
            self.settle(1).await?;
            let Some((request, durability)) =
                self.buffer.waiting().next().map(|kept| (kept.append.request(), kept.append.durability))
            else {
                return Err(ClientError::Other {
                    code: tonic::Code::Internal,
                    message: "nothing waits to be written".to_owned(),
                });
            };
            let client = self.client.clone();
            // One try only: between two the ledger may have lost something.
            let tried = client.call_once(aim, &attempts, |channel| {
                let (mut service, request) = (client.context_service_on(channel), client.written(request));
                async move { service.append(request).await }
            });
            match tried.await? {
                Ok((address, answer)) => {
                    let appended = Appended::of(&self.context, answer.into_inner())?;
                    if self.accept(&appended, durability, address).await? {
                        return Ok(appended);
                    }
                }
                Err(failed) => self.failed(&mut attempts, failed).await?,
            }
        }
    }

    async fn failed(&mut self, attempts: &mut Attempts, failed: Failed) -> Result<(), ClientError> {
        self.sure = None;
        attempts.after(failed).await
    }

    /// Takes the acknowledgement of the append that waits. False if the ledger has lost something before it: then
    /// it waits on, and its id keeps it from being stored twice.
    async fn accept(
        &mut self,
        appended: &Appended,
        durability: Durability,
        address: Address,
    ) -> Result<bool, ClientError> {
        let position = appended.position;
        let before = self.position.unwrap_or(position);
        let is_next = position.size.0 == before.size.0 + 1;
        let is_same = position.lineage == before.lineage && position.epoch == before.epoch;
        // The same owner in the same epoch has lost nothing.
        if !(is_next && (is_same || before.size.0 == 0)) && !self.passes_through(&before).await? {
            self.sure = None;
            return Ok(false);
        }
        let entry = &appended.entry;
        if entry.sequence.0 <= before.size.0 {
            // The caller repeated an append of before.
            self.buffer.discard();
            return Ok(true);
        }
        let place = StoredAt { sequence: entry.sequence, content_hash: entry.content_hash };
        let is_safe = self.is_safe(durability);
        self.buffer.acknowledge(place, is_safe);
        // A repetition may be answered with a position further on.
        let root = (position.size.newest() == entry.sequence).then_some(position.root);
        self.buffer.mark(WriterMark { place, epoch: entry.epoch, root });
        self.position = Some(position);
        // A connection that was made meanwhile is noticed by what the answer says.
        self.sure = Some(self.sure_of(address));
        Ok(true)
    }

    /// Makes sure that the ledger has everything that was written, and writes all that waits but the newest
    /// `leave`. Gives how many were written.
    async fn settle(&mut self, leave: usize) -> Result<usize, ClientError> {
        let mut written = 0;
        let mut rounds = 0;
        loop {
            let is_sure = self.is_sure().await;
            let found = if is_sure { None } else { Some(self.compare().await?) };
            let waiting = self.buffer.waiting_count().saturating_sub(leave);
            if waiting == 0 {
                return Ok(written);
            }
            rounds += 1;
            let moved = self.write_waiting(waiting).await?;
            written += waiting;
            match found {
                // All of it was where it had been: it only could not be shown yet.
                Some(found) if !moved => self.restore(found),
                // Compare once more: a ledger that loses things can do so again.
                _ => self.sure = None,
            }
            if rounds > 1 {
                tokio::time::sleep(crate::retry::pause(rounds)).await;
            }
        }
    }

    /// Writes the oldest appends that wait. Gives whether any is now elsewhere than it was before.
    async fn write_waiting(&mut self, count: usize) -> Result<bool, ClientError> {
        // If this ends early, the position is behind what was acknowledged.
        let sure = self.sure.take();
        let appends: Vec<_> =
            self.buffer.waiting().take(count).map(|kept| (kept.append.clone(), kept.before)).collect();
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
        // Receipts that overtook others: of what is refused, or needs fewer copies.
        let mut early = HashMap::new();
        // Tags count from 0.
        for (tag, (append, before)) in (0..).zip(appends) {
            let result = loop {
                if let Some(result) = early.remove(&tag) {
                    break result;
                }
                let receipt = receipts.next().await?.ok_or_else(|| ClientError::malformed("receipt"))?;
                early.insert(receipt.tag, receipt.result);
            };
            // All before it is acknowledged: it is the oldest that waits.
            let stored = match result {
                Ok(stored) => stored,
                Err(error @ (ClientError::Unavailable(_) | ClientError::TimedOut(_))) => return Err(error),
                Err(error) => {
                    let id = self.buffer.discard().map(|kept| kept.id.to_string()).unwrap_or_default();
                    return Err(ClientError::Invalid(format!(
                        "an earlier append of this writer, entry_id {id}, was refused and is not kept any more: \
                         {error}"
                    )));
                }
            };
            let place = StoredAt { sequence: stored.sequence, content_hash: stored.content_hash };
            moved |= before != Some(place);
            let is_safe = self.is_safe(append.durability);
            self.buffer.acknowledge(place, is_safe);
            if before != Some(place) {
                self.buffer.mark(WriterMark { place, epoch: stored.epoch, root: None });
            }
        }
        // What was sent has its receipts: the task has ended or is about to.
        sending.abort();
        self.sure = sure;
        Ok(moved)
    }

    /// Whether the owner is the one it was a moment ago.
    async fn is_sure(&mut self) -> bool {
        let Some(OwnerCertainty { owner, since, ends }) = &self.sure else { return false };
        if since.elapsed() > SURE_FOR || self.client.nodes().ends(owner) != *ends {
            return false;
        }
        let aim = Aim::owner_of(&self.context);
        let target = self.client.target(aim, &crate::nodes::LeftAlone::default()).await;
        target.is_ok_and(|target| target.address == *owner)
    }

    fn sure_of(&self, owner: Address) -> OwnerCertainty {
        let ends = self.client.nodes().ends(&owner);
        OwnerCertainty { owner, since: Instant::now(), ends }
    }

    /// Whether an acknowledgement says that enough copies were made.
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

    fn missing(&self, first: u64) -> ClientError {
        ClientError::Missing { context: self.context.clone(), first: Sequence(first) }
    }
}
