//! Pipelined appends: many under way on one stream.
//!
//! There is one task, which gathers what is waiting into a message and sends it; results are read by
//! whoever holds the [`Receipts`]. Nothing is delayed to make messages larger.

use std::{collections::VecDeque, sync::Arc};

use ledger_core::{ContextId, EntryId, Epoch, Hash, Position, Sequence, clock::LamportClock};
use ledger_proto::ledger::v1::{AppendBatch, AppendItem, AppendResult, AppendResults};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::{Append, Client, ClientError, convert};

/// Most appends of one message.
const MAX_ITEMS: usize = 256;
/// A message takes no further append at so many bytes of payload.
const MAX_BYTES: usize = 1 << 20;
/// Messages that wait to be sent.
const MESSAGES: usize = 16;

/// The sending side of a stream of appends. Drop it, or call [`Appender::finish`], to end the stream.
#[derive(Debug)]
pub struct Appender {
    items: mpsc::Sender<(AppendItem, OwnedSemaphorePermit)>,
    window: Arc<Semaphore>,
    next_tag: u64,
}

/// The receiving side: one receipt for every append.
#[derive(Debug)]
pub struct Receipts {
    stream: Streaming<AppendResults>,
    window: Arc<Semaphore>,
    ready: VecDeque<Receipt>,
    positions: Vec<(ContextId, Position)>,
}

/// What became of one append.
#[derive(Debug)]
pub struct Receipt {
    /// The number that [`Appender::send`] returned.
    pub tag: u64,
    /// Where and how it is stored.
    pub result: Result<Stored, ClientError>,
}

/// A stored entry, without what the sender knows.
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
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// The id was known: this is the first result.
    pub repeated: bool,
}

pub(crate) async fn open(client: &Client, window: usize) -> Result<(Appender, Receipts), ClientError> {
    let window = window.clamp(1, Semaphore::MAX_PERMITS);
    let permits = Arc::new(Semaphore::new(window));
    let (items, queue) = mpsc::channel(window.min(8 * MAX_ITEMS));
    let (messages, outgoing) = mpsc::channel(MESSAGES);
    tokio::spawn(gather(queue, messages));
    let stream = client.ledger_service().append(ReceiverStream::new(outgoing)).await?.into_inner();
    let appender = Appender { items, window: Arc::clone(&permits), next_tag: 0 };
    Ok((appender, Receipts { stream, window: permits, ready: VecDeque::new(), positions: Vec::new() }))
}

/// Makes messages of whatever waits, and ends when either side has gone.
async fn gather(
    mut queue: mpsc::Receiver<(AppendItem, OwnedSemaphorePermit)>,
    messages: mpsc::Sender<AppendBatch>,
) {
    let mut waiting = Vec::with_capacity(MAX_ITEMS);
    while queue.recv_many(&mut waiting, MAX_ITEMS).await > 0 {
        let (mut items, mut bytes) = (Vec::with_capacity(waiting.len()), 0);
        for (item, permit) in waiting.drain(..) {
            // Given back by the receipt.
            permit.forget();
            bytes += item.request.as_ref().map_or(0, |request| request.payload.len());
            items.push(item);
            if bytes >= MAX_BYTES {
                bytes = 0;
                if messages.send(AppendBatch { items: std::mem::take(&mut items) }).await.is_err() {
                    return;
                }
            }
        }
        if !items.is_empty() && messages.send(AppendBatch { items }).await.is_err() {
            return;
        }
    }
}

impl Appender {
    /// Sends an append; waits while as many as the window allows are under way. Returns its tag: 0, 1, 2, …
    ///
    /// Fails when the stream has ended: the receipts say why.
    pub async fn send(&mut self, append: Append) -> Result<u64, ClientError> {
        let ended = || ClientError::Unavailable("the stream of appends has ended".to_owned());
        let permit = Arc::clone(&self.window).acquire_owned().await.map_err(|_| ended())?;
        let tag = self.next_tag;
        let item = AppendItem { tag, request: Some(append.into_request()) };
        self.items.send((item, permit)).await.map_err(|_| ended())?;
        self.next_tag += 1;
        Ok(tag)
    }

    /// Sends no more: the receipts end once everything sent has its own.
    pub fn finish(self) {}
}

impl Receipts {
    /// The next receipt; `None` when all have come and the appender has finished.
    pub async fn next(&mut self) -> Result<Option<Receipt>, ClientError> {
        loop {
            if let Some(receipt) = self.ready.pop_front() {
                return Ok(Some(receipt));
            }
            match self.stream.message().await {
                Ok(Some(message)) => self.take(message)?,
                Ok(None) => return Ok(None),
                Err(status) => {
                    // Whoever waits for room is told that there will be none.
                    self.window.close();
                    return Err(status.into());
                }
            }
        }
    }

    /// Where the contexts stood of which the latest message acknowledged entries.
    pub fn positions(&self) -> &[(ContextId, Position)] {
        &self.positions
    }

    fn take(&mut self, message: AppendResults) -> Result<(), ClientError> {
        self.window.add_permits(message.results.len());
        self.ready.extend(message.results.into_iter().map(Receipt::from));
        self.positions = message
            .positions
            .into_iter()
            .map(|at| Ok((ContextId::new(at.context_id)?, convert::position(at.position)?)))
            .collect::<Result<_, ClientError>>()?;
        Ok(())
    }
}

impl From<AppendResult> for Receipt {
    fn from(from: AppendResult) -> Self {
        let tag = from.tag;
        let result = match &from.error {
            Some(error) => Err(ClientError::of(Code::from(error.code), &error.message)),
            None => stored(&from),
        };
        Self { tag, result }
    }
}

fn stored(from: &AppendResult) -> Result<Stored, ClientError> {
    Ok(Stored {
        sequence: Sequence(from.sequence),
        lamport: LamportClock(from.lamport_clock),
        appended_at_ns: from.appended_at_ns,
        id: EntryId::new(&from.entry_id)?,
        content_hash: convert::hash(&from.content_hash, "content_hash")?,
        epoch: Epoch(from.epoch),
        repeated: from.repeated_id,
    })
}
