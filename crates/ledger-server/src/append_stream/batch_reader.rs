//! Reads the batches of a stream, checks them, and hands them to the store or on to the owners of their slots.

use std::{mem, sync::Arc, time::Instant};

use bytes::Bytes;
use ledger_core::{limits::MAX_METADATA_PAIRS, node::NodeId};
use ledger_proto::{
    ledger::v1::{AppendItem, AppendResults},
    wire::ledger::v1::AppendBatch,
};
use ledger_store::{Append, AppendConditions, BatchResults, budget::Share};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::{
    append_stream::{
        forward::{ForwardTarget, StreamRouter},
        in_flight::{Chunk, InFlight},
        name_cache::NameCache,
        results::{RefusedResults, ResultPermit, failed},
    },
    grpc::call::{self, Call},
    grpc::convert,
    grpc::scan,
    grpc::status::Refusal,
    limits,
    metrics::Rpc,
    node::Node,
    node::writers::Writer,
};

/// Reads batches and hands them to the store.
pub(super) struct BatchReader {
    pub(super) node: Arc<Node>,
    pub(super) items: Arc<Share>,
    pub(super) names: NameCache,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) stored: mpsc::UnboundedSender<BatchResults>,
    pub(super) refused: mpsc::UnboundedSender<RefusedResults>,
    pub(super) router: StreamRouter,
    /// Who sends the stream, if it says so.
    pub(super) writer: Option<Writer>,
    pub(super) call: Option<Arc<Call>>,
}

impl BatchReader {
    pub(super) async fn run(
        mut self,
        mut batches: Streaming<AppendBatch>,
        gone: CancellationToken,
        ended: oneshot::Sender<Status>,
    ) {
        let end = loop {
            let batch = tokio::select! {
                biased;
                () = self.node.draining.cancelled() => break Some(Refusal::shutting_down().into()),
                () = gone.cancelled() => break None,
                batch = batches.message() => batch,
            };
            match batch {
                Ok(Some(batch)) => {
                    // Cancelled only when nobody waits for the results any more. What the store has taken it
                    // stores.
                    tokio::select! {
                        biased;
                        () = gone.cancelled() => break None,
                        taken = self.take(batch.items) => if let Err(refusal) = taken { break Some(refusal.into()) },
                    }
                }
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        let _ = ended.send(end.unwrap_or_else(|| Status::ok("")));
    }

    /// Hands a batch to the store, in chunks.
    async fn take(&mut self, mut items: Vec<Bytes>) -> Result<(), Refusal> {
        while items.len() > limits::APPEND_CHUNK_ITEMS {
            let rest = items.split_off(limits::APPEND_CHUNK_ITEMS);
            self.take_chunk(mem::replace(&mut items, rest)).await?;
        }
        self.take_chunk(items).await
    }

    async fn take_chunk(&mut self, items: Vec<Bytes>) -> Result<(), Refusal> {
        let mut tags = Vec::with_capacity(items.len());
        let mut appends = Vec::with_capacity(items.len());
        let mut refused = Vec::new();
        let mut forwarded: Vec<(NodeId, Vec<(AppendItem, usize)>)> = Vec::new();
        let mut bytes = 0;
        for item in items {
            if let Err(refusal) = check_pairs(&item) {
                self.node.metrics.refused(Rpc::AppendStream, refusal.code);
                refused.push(failed(scan::tag_of_item(&item), refusal));
                continue;
            }
            let AppendItem { tag, request } = decoded(item)?;
            let request = request.unwrap_or_default();
            let cost_bytes = convert::cost_bytes(&request);
            let named = self.names.get(&request.context_id);
            let target = named.and_then(|named| Ok((self.router.of(&self.node, &named.context)?, named)));
            let here = match target {
                Ok((ForwardTarget::Here(epoch), named)) => Ok((epoch, named)),
                Ok((ForwardTarget::There(owner), _)) => {
                    let item = (AppendItem { tag, request: Some(request) }, cost_bytes);
                    match forwarded.iter_mut().find(|(node, _)| *node == owner) {
                        Some((_, items)) => items.push(item),
                        None => forwarded.push((owner, vec![item])),
                    }
                    continue;
                }
                Err(refusal) => Err(refusal),
            };
            let checked = here.and_then(|(epoch, named)| {
                let max_entry = self.node.config.max_entry.get();
                let append = convert::append(request, named.context.clone(), max_entry)?;
                if let Some(writer) = &self.writer {
                    self.node.wrote(&named.context, writer, &mut named.writer);
                }
                Ok(Append { epoch, ..append })
            });
            match checked {
                Ok(append) => {
                    bytes += cost_bytes;
                    tags.push(tag);
                    appends.push(append);
                }
                Err(refusal) => {
                    self.node.metrics.refused(Rpc::AppendStream, refusal.code);
                    refused.push(failed(tag, refusal));
                }
            }
        }
        if !refused.is_empty() {
            // Refusals count against the bound too, until they are sent.
            let permit = ResultPermit::of(refused.len(), &self.items, self.call.as_ref()).await?;
            let refused = AppendResults { results: refused, ..AppendResults::default() };
            let _ = self.refused.send((refused, vec![permit]));
        }
        for (owner, items) in forwarded {
            self.node.metrics.forwarded_appends.increment(items.len() as u64);
            self.router.send(&self.node, &owner, items, &self.items, &self.refused).await?;
        }
        if appends.is_empty() {
            return Ok(());
        }
        self.submit(tags, appends, bytes).await
    }

    async fn submit(&self, tags: Vec<u64>, appends: Vec<Append>, bytes: usize) -> Result<(), Refusal> {
        let items = self.items.acquire(tags.len()).await;
        let reserved = call::reserve_results(self.call.clone(), tags.len() * limits::RESULT).await?;
        // A chunk larger than all there is waits for all there is.
        let permit = self.node.memory.in_flight.acquire(bytes).await;
        let started = Instant::now();
        let chunk = Chunk { left: tags.len(), tags, started, _items: items, reserved };
        let first = self.in_flight.push(chunk);
        let tagged = (first..).zip(appends).collect();
        let deadline = Some(started + self.node.config.call_timeout.0);
        let terms = AppendConditions { deadline, permit: Some(Arc::new(permit)) };
        Ok(self.node.ledger.submit(tagged, terms, self.stored.clone()).await?)
    }
}

/// Refuses an item of a batch that would take far more memory decoded than its bytes.
fn check_pairs(item: &[u8]) -> Result<(), Refusal> {
    // A name may be there twice: whether there are too many is checked again.
    if item.len() > limits::METADATA_FIELDS && scan::metadata_of_item(item) > 4 * MAX_METADATA_PAIRS {
        let message =
            format!("metadata has far more pairs than the {MAX_METADATA_PAIRS} that an entry may have");
        return Err(Refusal::field("metadata", message));
    }
    Ok(())
}

fn decoded(item: Bytes) -> Result<AppendItem, Refusal> {
    AppendItem::decode(item).map_err(|error| {
        Refusal::new(Code::InvalidArgument, format!("an item of the batch is malformed: {error}"))
    })
}
