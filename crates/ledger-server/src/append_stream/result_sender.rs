//! Turns the store's group commits into messages of results.

use std::{collections::HashMap, mem, sync::Arc};

use bytes::Bytes;
use ledger_core::{ContextId, Position};
use ledger_proto::ledger::v1::{AppendResult, AppendResults, ContextPosition};
use ledger_store::{BatchResults, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::DropGuard;
use tonic::{Code, Status};

use crate::{
    append_stream::{
        in_flight::{Chunk, InFlight},
        results::{RefusedResults, failed, succeeded},
    },
    grpc::convert,
    grpc::status::Refusal,
    limits,
    metrics::{Alive, Rpc},
    node::Node,
};

/// Turns group commits into messages of results.
pub(super) struct ResultSender {
    pub(super) node: Arc<Node>,
    pub(super) stored: mpsc::UnboundedReceiver<BatchResults>,
    pub(super) refused: mpsc::UnboundedReceiver<RefusedResults>,
    pub(super) ended: Option<oneshot::Receiver<Status>>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) _gone: DropGuard,
    pub(super) _alive: Alive,
}

impl ResultSender {
    /// The next message; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<AppendResults, Status>> {
        tokio::select! {
            biased;
            Some(results) = self.stored.recv() => Some(Ok(self.coalesce(results))),
            Some((results, _room)) = self.refused.recv() => Some(Ok(results)),
            else => self.end().await,
        }
    }

    /// All results were sent: the stream ends as the reading did.
    async fn end(&mut self) -> Option<Result<AppendResults, Status>> {
        let status = self.ended.take()?.await.unwrap_or_else(|_| {
            let refusal = Refusal::internal("reading the stream failed inside the server");
            self.node.refuse(Rpc::AppendStream, refusal)
        });
        if status.code() == Code::Ok { None } else { Some(Err(status)) }
    }

    /// One message for a group commit, and for others that are there already.
    fn coalesce(&mut self, first: BatchResults) -> AppendResults {
        let mut message = AppendResults::default();
        let mut size = 0;
        let mut next = Some(first);
        let mut commits = 0;
        while let Some(batch) = next {
            commits += 1;
            size += self.convert(batch, &mut message);
            let has_capacity =
                message.results.len() < limits::RESULTS_PER_MESSAGE && size < limits::RESULTS_BYTES;
            next = if has_capacity { self.stored.try_recv().ok() } else { None };
        }
        if commits > 1 {
            keep_newest(&mut message.positions);
        }
        message
    }

    /// Converts the results of a group commit; gives about how many bytes they take.
    fn convert(&self, batch: BatchResults, message: &mut AppendResults) -> usize {
        message.copies = min_copies_of(message.copies, u32::try_from(batch.copies).unwrap_or(u32::MAX));
        let hashes: Vec<u8> = batch
            .results
            .iter()
            .flat_map(|result| result.result.as_ref().map_or([0; 32], |stored| stored.content_hash.0))
            .collect();
        let hashes = Bytes::from(hashes);
        let (mut entries, mut payload) = (0, 0);
        message.results.reserve(batch.results.len());
        let metrics = &self.node.metrics;
        let mut chunks = self.in_flight.lock();
        for (index, result) in batch.results.into_iter().enumerate() {
            let finished = |chunk: &mut Chunk| {
                metrics.append_chunk_seconds.record(chunk.started.elapsed());
                mem::take(&mut chunk.reserved).hand_over(chunk.tags.len() * limits::RESULT);
            };
            let Some(tag) = chunks.answer(result.tag, finished) else { continue };
            message.results.push(match result.result {
                Ok(stored) => {
                    entries += 1;
                    payload += stored.payload_bytes as u64;
                    succeeded(tag, &stored, hashes.slice(index * 32..(index + 1) * 32))
                }
                Err(error) => self.failed(tag, error),
            });
        }
        drop(chunks);
        metrics.appended_entries.increment(entries);
        metrics.appended_bytes.increment(payload);
        let position = |(context, position): (ContextId, Position)| ContextPosition {
            context_id: context.as_str().to_owned(),
            position: Some(convert::position(&position)),
        };
        let names: usize = batch.positions.iter().map(|(context, _)| context.as_str().len() + 80).sum();
        message.positions.extend(batch.positions.into_iter().map(position));
        hashes.len() * 4 + names
    }

    fn failed(&self, tag: u64, error: StoreError) -> AppendResult {
        let slot = if let StoreError::NotCopied { slot } = &error { Some(*slot) } else { None };
        let refusal = Refusal::from(error);
        let refusal =
            slot.map_or_else(|| refusal.clone(), |slot| self.node.explain_not_copied(slot, refusal.clone()));
        self.node.metrics.refused(Rpc::AppendStream, refusal.code);
        failed(tag, refusal)
    }
}

/// The fewer copies of two; 0 says nothing.
fn min_copies_of(one: u32, other: u32) -> u32 {
    if one == 0 || other == 0 { one.max(other) } else { one.min(other) }
}

/// Of several positions of a context, the newest.
fn keep_newest(positions: &mut Vec<ContextPosition>) {
    let size = |position: &ContextPosition| position.position.as_ref().map_or(0, |position| position.size);
    let mut newest: HashMap<String, ContextPosition> = HashMap::with_capacity(positions.len());
    for position in positions.drain(..) {
        match newest.get_mut(&position.context_id) {
            Some(known) if size(known) >= size(&position) => {}
            Some(known) => *known = position,
            None => {
                newest.insert(position.context_id.clone(), position);
            }
        }
    }
    positions.extend(newest.into_values());
}
