//! Pipelined appends: many under way, each to the owner of its context, wherever it moves.
//!
//! One task, the router, has the state: see [`router`]. Nothing is delayed to make messages larger.
//!
//! What holds whatever happens to nodes: an append that was sent has exactly one receipt; entries of one context
//! are stored in the order of its appends, each once. Their receipts come in that order too, but for one that is refused
//! for good, or needs fewer copies: it may come before those of earlier appends, which the tag tells. Every append has
//! an entry id, made here if the caller gave none, so one that may have been stored can be sent again.

mod outgoing;
mod pending;
mod router;

use std::{collections::VecDeque, sync::Arc};

use ledger_core::{ContextId, EntryId, Epoch, Hash, Position, Sequence, clock::LamportClock};
use ledger_proto::ledger::v1::{AppendResult, AppendResults};
use tokio::sync::{Semaphore, mpsc};
use tonic::Code;

use self::router::Router;
use crate::{Append, Client, ClientError, convert};

/// Appends taken from the caller at once, and most of one message.
const MAX_ITEMS: usize = 256;

/// The sending side of a stream of appends. Drop it, or call [`Appender::finish`], to end the stream.
#[derive(Debug)]
pub struct Appender {
    queue: mpsc::Sender<SentAppend>,
    window: Arc<Semaphore>,
    next_tag: u64,
}

/// The receiving side: one receipt for every append.
#[derive(Debug)]
pub struct Receipts {
    news: mpsc::UnboundedReceiver<RouterMessage>,
    window: Arc<Semaphore>,
    ready: VecDeque<Receipt>,
    positions: Vec<(ContextId, Position)>,
    finished: bool,
}

/// An append on its way to the router.
#[derive(Debug)]
struct SentAppend {
    tag: u64,
    append: Append,
}

/// What the router tells the receiving side. Bounded by the window: what is told has not been given back.
#[derive(Debug)]
enum RouterMessage {
    /// What a node answered; the tags are the caller's.
    Results(AppendResults),
    /// Receipts that no node gave.
    Failed(Vec<Receipt>),
    /// Everything sent has its receipt, and nothing more will be sent.
    Finished,
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
    /// How many nodes it is known to be durable on; 0: the node does not say.
    pub copies: u32,
}

pub(crate) async fn open(client: &Client, window: usize) -> Result<(Appender, Receipts), ClientError> {
    let window = window.clamp(1, Semaphore::MAX_PERMITS);
    let room = Arc::new(Semaphore::new(window));
    let (queue, sent) = mpsc::channel(window.min(8 * MAX_ITEMS));
    let (told, news) = mpsc::unbounded_channel();
    let router = Router::start(client.clone(), sent, told, Arc::clone(&room)).await?;
    tokio::spawn(router.run());
    let appender = Appender { queue, window: Arc::clone(&room), next_tag: 0 };
    let receipts =
        Receipts { news, window: room, ready: VecDeque::new(), positions: Vec::new(), finished: false };
    Ok((appender, receipts))
}

impl Appender {
    /// Sends an append; waits while as many as the window allows are under way. Returns its tag: 0, 1, 2, …
    ///
    /// Fails when nobody holds the receipts any more.
    pub async fn send(&mut self, append: Append) -> Result<u64, ClientError> {
        let ended = || ClientError::Unavailable("the stream of appends has ended".into());
        let permit = self.window.acquire().await.map_err(|_| ended())?;
        let tag = self.next_tag;
        self.queue.send(SentAppend { tag, append }).await.map_err(|_| ended())?;
        // Given back with the receipt.
        permit.forget();
        self.next_tag += 1;
        Ok(tag)
    }

    /// Sends no more: the receipts end once everything sent has its own.
    pub fn finish(self) {}
}

impl Receipts {
    /// The next receipt; `None` when all have come and the appender has finished.
    ///
    /// An append that the ledger refused has an error in its receipt, and others go on. If no node takes the
    /// appends of a context for as long as [`crate::Options::timeout`], each of them has a receipt with
    /// [`ClientError::Unavailable`], and so has every later one of that context, or of another in its slot: none is
    /// stored behind one that may be missing. Another appender begins anew.
    pub async fn next(&mut self) -> Result<Option<Receipt>, ClientError> {
        loop {
            if let Some(receipt) = self.ready.pop_front() {
                return Ok(Some(receipt));
            }
            if self.finished {
                return Ok(None);
            }
            match self.news.recv().await {
                Some(RouterMessage::Results(results)) => self.take(results)?,
                Some(RouterMessage::Failed(receipts)) => {
                    self.window.add_permits(receipts.len());
                    self.ready.extend(receipts);
                }
                Some(RouterMessage::Finished) => self.finished = true,
                None => {
                    return Err(ClientError::Unavailable(
                        "the task of the stream of appends has ended".into(),
                    ));
                }
            }
        }
    }

    /// Where the contexts stood of which the latest message acknowledged entries.
    pub fn positions(&self) -> &[(ContextId, Position)] {
        &self.positions
    }

    fn take(&mut self, answer: AppendResults) -> Result<(), ClientError> {
        let AppendResults { results, positions, copies } = answer;
        self.window.add_permits(results.len());
        self.ready.extend(results.into_iter().map(|result| Receipt::of(&result, copies)));
        self.positions = positions
            .into_iter()
            .map(|at| Ok((ContextId::new(at.context_id)?, convert::position(at.position)?)))
            .collect::<Result<_, ClientError>>()?;
        Ok(())
    }
}

impl Receipt {
    fn of(from: &AppendResult, copies: u32) -> Self {
        let tag = from.tag;
        let result = match &from.error {
            Some(error) => Err(ClientError::of(Code::from(error.code), &error.message)),
            None => stored(from, copies),
        };
        Self { tag, result }
    }
}

fn stored(from: &AppendResult, copies: u32) -> Result<Stored, ClientError> {
    Ok(Stored {
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
