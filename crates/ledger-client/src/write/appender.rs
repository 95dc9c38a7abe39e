//! Pipelined appends: many in flight, each to the owner of its context, wherever it moves.
//!
//! One task, the router, has the state: see [`router`]. Nothing is delayed to make messages larger.
//!
//! Invariants, whatever happens to nodes: an append that was sent has exactly one receipt; the ledger stores entries of
//! one context in the order of its appends, each once. Their receipts come in that order too, except that the receipt of
//! an append that is refused permanently, or needs fewer copies, may come before those of earlier appends: the tag tells.
//! Every append has an entry id, which the client assigns if the caller gave none, so the client can send an append again
//! that the ledger may have stored.
//!
//! | module | holds |
//! | --- | --- |
//! | `receipt` | what becomes of an append |
//! | `outgoing` | appends to one owner, batched into messages |
//! | `pending` | appends without a receipt |
//! | `router` | the task between caller and owners |

mod outgoing;
mod pending;
mod receipt;
mod router;

use std::{collections::VecDeque, sync::Arc};

use ledger_core::{ContextId, Position};
use ledger_proto::ledger::v1::AppendResults;
use tokio::sync::{Semaphore, mpsc};

pub use self::receipt::{Receipt, Stored};
use self::{
    outgoing::MAX_ITEMS,
    receipt::{RouterMessage, SentAppend},
    router::Router,
};
use super::append::Append;
use crate::{connection::core::Client, convert, error::ClientError};

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
    messages: mpsc::UnboundedReceiver<RouterMessage>,
    window: Arc<Semaphore>,
    ready: VecDeque<Receipt>,
    positions: Vec<(ContextId, Position)>,
    finished: bool,
}

impl Client {
    /// A stream of appends to any contexts: at most `window` are in flight. The ledger stores entries of each context in
    /// the order of its appends; see [`crate::appender`] for the order of the receipts.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unavailable`] or [`ClientError::TimedOut`] if no node responds in time; else as the node refuses the
    /// stream.
    pub async fn appender(&self, window: usize) -> Result<(Appender, Receipts), ClientError> {
        let permits = window.clamp(1, Semaphore::MAX_PERMITS);
        let window = Arc::new(Semaphore::new(permits));
        let (queue, sent) = mpsc::channel(permits.min(8 * MAX_ITEMS));
        let (reports, messages) = mpsc::unbounded_channel();
        let router = Router::start(self.clone(), sent, reports, Arc::clone(&window)).await?;
        tokio::spawn(router.run());
        let appender = Appender { queue, window: Arc::clone(&window), next_tag: 0 };
        let (ready, positions) = (VecDeque::new(), Vec::new());
        Ok((appender, Receipts { messages, window, ready, positions, finished: false }))
    }
}

impl Appender {
    /// Sends an append; waits while as many as the window allows are in flight. Returns its tag: 0, 1, 2, …
    ///
    /// # Errors
    ///
    /// [`ClientError::Unavailable`] once the [`Receipts`] are dropped.
    pub async fn send(&mut self, append: Append) -> Result<u64, ClientError> {
        let ended = || ClientError::Unavailable("the stream of appends has ended".into());
        let permit = self.window.acquire().await.map_err(|_| ended())?;
        let tag = self.next_tag;
        self.queue.send(SentAppend { tag, append }).await.map_err(|_| ended())?;
        // The receiving side returns the permit with the receipt.
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
    /// [`ClientError::Unavailable`], and so has every later one of that context, or of another in its slot: the ledger
    /// stores none behind one that may be missing. Another appender starts afresh.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] or [`ClientError::Id`] if a node returns a malformed position;
    /// [`ClientError::Unavailable`] if the runtime has dropped the stream's task.
    pub async fn next(&mut self) -> Result<Option<Receipt>, ClientError> {
        loop {
            if let Some(receipt) = self.ready.pop_front() {
                return Ok(Some(receipt));
            }
            if self.finished {
                return Ok(None);
            }
            match self.messages.recv().await {
                Some(RouterMessage::Results(results)) => self.add_results(results)?,
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

    /// The positions, after the latest results of a node, of the contexts those results are of.
    pub fn positions(&self) -> &[(ContextId, Position)] {
        &self.positions
    }

    fn add_results(&mut self, results: AppendResults) -> Result<(), ClientError> {
        let AppendResults { results, positions, copies } = results;
        self.window.add_permits(results.len());
        self.ready.extend(results.into_iter().map(|result| Receipt::from_result(&result, copies)));
        self.positions = positions
            .into_iter()
            .map(|at| Ok((ContextId::new(at.context_id)?, convert::position(at.position)?)))
            .collect::<Result<_, ClientError>>()?;
        Ok(())
    }
}
