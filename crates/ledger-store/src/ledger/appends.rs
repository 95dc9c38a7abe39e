//! Appends.

use ledger_core::{ContextId, clock::LamportClock, entry::Draft, slot::Slot};
use tokio::sync::{mpsc, oneshot};

use super::Ledger;
use crate::{
    Append, AppendConditions, Appended, BatchResult, BatchResults, StoreError, ids,
    write::command::{Command, lane_of},
    write::lane::MAX_COMMAND_APPENDS,
};

impl Ledger {
    /// Appends an entry; returns when it is durable. Blocks: async code calls [`Ledger::append_async`].
    ///
    /// # Errors
    /// [`StoreError`] says why nothing was appended. With [`StoreError::NotCopied`] and [`StoreError::Closed`] the
    /// entry may have been appended: retrying is safe with an entry id.
    pub fn append(&self, context: &ContextId, draft: Draft) -> Result<Appended, StoreError> {
        self.append_received(context, draft, LamportClock(0))
    }

    /// Does what [`Ledger::append`] does, with a Lamport time received from elsewhere: the entry's time becomes
    /// `max(local, received) + 1`.
    ///
    /// # Errors
    /// As [`Ledger::append`].
    pub fn append_received(
        &self,
        context: &ContextId,
        draft: Draft,
        received: LamportClock,
    ) -> Result<Appended, StoreError> {
        let append = Append { received_lamport: received.0, ..Append::new(context.clone(), draft) };
        let (reply, result) = oneshot::channel();
        let (queue, command) = self.store.command(append, AppendConditions::default(), reply)?;
        queue.blocking_send(command).map_err(|_| StoreError::Closed)?;
        drop(queue);
        result.blocking_recv().map_err(|_| StoreError::Closed)?
    }

    /// Does what [`Ledger::append`] does, for async code and with all options. Dropping the future does not undo the
    /// append.
    ///
    /// # Errors
    /// As [`Ledger::append`].
    pub async fn append_async(&self, append: Append) -> Result<Appended, StoreError> {
        self.append_on(append, AppendConditions::default()).await
    }

    /// Does what [`Ledger::append_async`] does, under conditions.
    ///
    /// # Errors
    /// As [`Ledger::append`]; [`StoreError::NotCopied`] if the append was not committed before the deadline of the
    /// conditions.
    pub async fn append_on(&self, append: Append, terms: AppendConditions) -> Result<Appended, StoreError> {
        let (reply, result) = oneshot::channel();
        let (queue, command) = self.store.command(append, terms, reply)?;
        queue.send(command).await.map_err(|_| StoreError::Closed)?;
        drop(queue);
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Passes a batch of tagged appends to the lanes; waits while their queues are full. Each append gets exactly
    /// one result, in order for each context; `results` receives one message for each lane and group commit. The
    /// appends hold the permit of the conditions until the last of them is done.
    ///
    /// # Errors
    /// [`StoreError::Closed`], only if no lane received anything; otherwise every append gets its result.
    pub async fn submit(
        &self,
        appends: Vec<(u64, Append)>,
        terms: AppendConditions,
        results: mpsc::UnboundedSender<BatchResults>,
    ) -> Result<(), StoreError> {
        let queues = self.store.lanes.read().clone();
        if queues.is_empty() {
            return Err(StoreError::Closed);
        }
        let mut refused = Vec::new();
        let mut shares: Vec<Vec<(u64, Append)>> = queues.iter().map(|_| Vec::new()).collect();
        for (tag, append) in appends {
            match self.store.check(&append) {
                Ok(()) => shares[lane_of(Slot::of(&append.context), queues.len())].push((tag, append)),
                Err(error) => refused.push(BatchResult { tag, result: Err(error) }),
            }
        }
        if !refused.is_empty() {
            // The caller may be gone.
            let _ = results.send(BatchResults { results: refused, positions: Vec::new(), copies: 0 });
        }
        for (queue, mut share) in queues.iter().zip(shares) {
            while !share.is_empty() {
                let rest = share.split_off(share.len().min(MAX_COMMAND_APPENDS));
                let command = Command::Batch(share, results.clone(), terms.clone());
                share = rest;
                if let Err(mpsc::error::SendError(Command::Batch(batch, ..))) = queue.send(command).await {
                    let failed = batch.into_iter().chain(std::mem::take(&mut share));
                    let failed = failed.map(|(tag, _)| BatchResult { tag, result: Err(StoreError::Closed) });
                    let _ = results.send(BatchResults {
                        results: failed.collect(),
                        positions: Vec::new(),
                        copies: 0,
                    });
                }
            }
        }
        Ok(())
    }

    /// Generates an entry id, for a caller that forwards an append and may have to send it again.
    pub fn new_entry_id() -> ledger_core::EntryId {
        ids::new_entry_id()
    }
}
