//! One watcher in a cluster: from this node's own store while it shows the slot, else from a node that does. It goes
//! on from the last entry delivered when that changes, so that no entry is missed and none comes twice.
//!
//! | state | leaves it when |
//! | --- | --- |
//! | choosing | a node shows the slot → here, or there; none does → waits for news |
//! | here | the slot is no longer shown, because this node left it or cannot tell whether it is current, or stands still, or the store fails → choosing, or ended |
//! | there | the stream breaks → choosing; its history changed → ended |

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream, stream::BoxStream};
use ledger_core::{ContextId, Key, Sequence, slot::Slot};
use ledger_proto::{
    context::v1::Position as WirePosition,
    ledger::v1::{WatchBatch, WatchRequest, ledger_service_client::LedgerServiceClient},
};
use prost::Message as _;
use tokio::time::sleep_until;
use tonic::{Code, Status, Streaming};

use crate::{
    grpc::convert,
    grpc::status::Refusal,
    metrics::Rpc,
    node::Node,
    routing::failover::Failover,
    routing::owner_loss::RemoteOwner,
    routing::route::{self, Destination},
    routing::upstream::Upstream,
    services::watcher::{ContextWatcher, EntryEncoder, WatcherBatch},
};

/// Where a watcher starts, and what it is told.
#[derive(Debug, Clone)]
pub struct WatchStart {
    /// The context.
    pub context: ContextId,
    /// Only entries of this key.
    pub key: Option<Key>,
    /// Only entries after this.
    pub after: Sequence,
    /// The position to resume from, checked where the watcher begins.
    pub position: Option<WirePosition>,
    /// Bookmarks: at this interval; 0: with entries; `None`: never.
    pub bookmark_ms: Option<u32>,
    /// Entries carry the context's name.
    pub is_named: bool,
}

/// A watcher wherever the slot is shown.
pub fn watch<F: EntryEncoder<Bytes>>(
    node: &Arc<Node>,
    rpc: Rpc,
    start: WatchStart,
    shape: F,
    is_forwarded: bool,
) -> BoxStream<'static, Result<WatcherBatch<Bytes>, Status>> {
    let relay = WatchRelay {
        node: Arc::clone(node),
        rpc,
        start,
        shape,
        is_forwarded,
        source: Source::Choosing,
        failover: Failover::default(),
    };
    stream::unfold(Some(relay), |relay| async move {
        let mut relay = relay?;
        match relay.next().await {
            Ok(batch) => Some((Ok(batch), Some(relay))),
            Err(status) => Some((Err(status), None)),
        }
    })
    .boxed()
}

struct WatchRelay<F> {
    node: Arc<Node>,
    rpc: Rpc,
    start: WatchStart,
    shape: F,
    is_forwarded: bool,
    source: Source,
    failover: Failover,
}

enum Source {
    Choosing,
    Here(BoxStream<'static, Result<WatcherBatch<Bytes>, Status>>),
    /// At another node: the owner, if it is that.
    There(Box<Streaming<WatchBatch>>, Option<RemoteOwner>),
}

impl<F: EntryEncoder<Bytes>> WatchRelay<F> {
    async fn next(&mut self) -> Result<WatcherBatch<Bytes>, Status> {
        loop {
            let ended = match &mut self.source {
                Source::Choosing => match choose(self.choice()).await {
                    Ok(source) => {
                        self.source = source;
                        self.failover.begin();
                        continue;
                    }
                    Err(refusal) => self.node.refuse(self.rpc, refusal),
                },
                Source::Here(batches) => {
                    let slot = Slot::of(&self.start.context);
                    let batch = tokio::select! {
                        biased;
                        batch = batches.next() => batch,
                        () = self.node.read_elsewhere(slot, self.is_forwarded) => None,
                    };
                    match batch {
                        Some(Ok(batch)) => return Ok(self.delivered(batch)),
                        Some(Err(status)) => status,
                        None => Status::unavailable("the watch ended"),
                    }
                }
                Source::There(batches, owner) => {
                    let draining = self.node.draining.clone();
                    let message = tokio::select! {
                        message = self.node.unless_owner_lost(owner.clone(), batches.message()) => message,
                        () = draining.cancelled() => return Err(Refusal::shutting_down().into()),
                    };
                    match message {
                        Ok(Some(batch)) => {
                            let batch = self.take(batch)?;
                            return Ok(self.delivered(batch));
                        }
                        Ok(None) => Status::unavailable("the watch ended"),
                        Err(status) => route::refusal(status).0.into(),
                    }
                }
            };
            self.node.serving().map_err(Status::from)?;
            // Another node may do what this one cannot; what is wrong with the request is wrong everywhere.
            // One that is damaged here is read elsewhere from now on.
            let may_differ = matches!(ended.code(), Code::Unavailable | Code::DataLoss);
            if self.is_forwarded || !may_differ || !self.may_go_on(ended.code()).await {
                return Err(ended);
            }
            self.source = Source::Choosing;
        }
    }

    /// Waits a moment after a source ended; false if none has served the watcher for too long.
    async fn may_go_on(&mut self, ended: Code) -> bool {
        let until = self.failover.ended();
        if ended == Code::DataLoss {
            sleep_until(self.failover.damaged()).await;
        } else {
            self.failover.unavailable();
        }
        self.node.owner_changed(until).await
    }

    fn choice(&self) -> SourceChoice<F> {
        SourceChoice {
            node: Arc::clone(&self.node),
            rpc: self.rpc,
            start: self.start.clone(),
            shape: self.shape.clone(),
            is_forwarded: self.is_forwarded,
            failover: self.failover,
        }
    }

    /// A batch of another node, as this one hands it out.
    fn take(&self, batch: WatchBatch) -> Result<WatcherBatch<Bytes>, Status> {
        let malformed = |refusal: Refusal| Status::internal(refusal.message);
        let bookmark = batch.bookmark.map(convert::position_of).transpose().map_err(malformed)?;
        let named = self.start.is_named.then(|| self.start.context.as_str());
        let mut last = self.start.after;
        let mut entries = Vec::with_capacity(batch.entries.len());
        for mut entry in batch.entries {
            if entry.sequence <= last.0 {
                continue;
            }
            last = Sequence(entry.sequence);
            if let Some(name) = named {
                name.clone_into(&mut entry.context_id);
            }
            entries.push((entry.sequence, Bytes::from(entry.encode_to_vec())));
        }
        let bookmark = bookmark.filter(|_| self.start.bookmark_ms.is_some());
        let newest = entries.last().map(|(sequence, _)| *sequence);
        let entries = entries.into_iter().map(|(_, entry)| entry).collect();
        Ok(WatcherBatch { entries, bookmark, newest: newest.map(Sequence) })
    }

    /// Notes how far the watcher has come.
    fn delivered(&mut self, batch: WatcherBatch<Bytes>) -> WatcherBatch<Bytes> {
        self.failover.served();
        if let Some(newest) = batch.newest {
            self.start.after = self.start.after.max(newest);
            // It was checked where the watcher began.
            self.start.position = None;
        }
        if let Some(bookmark) = &batch.bookmark {
            self.start.after = self.start.after.max(Sequence(bookmark.size.0));
            self.start.position = Some(convert::position(bookmark));
        }
        batch
    }
}

/// What a source is chosen by: its own copy, for others must not share it meanwhile.
struct SourceChoice<F> {
    node: Arc<Node>,
    rpc: Rpc,
    start: WatchStart,
    shape: F,
    is_forwarded: bool,
    failover: Failover,
}

/// Begins to watch where the slot is shown.
async fn choose<F: EntryEncoder<Bytes>>(choice: SourceChoice<F>) -> Result<Source, Refusal> {
    let SourceChoice { node, rpc, start, shape, is_forwarded, failover } = choice;
    let WatchStart { context, key, after, position, bookmark_ms, .. } = start;
    let mut destination = node.reads(&context, false, is_forwarded)?;
    if let (Destination::Here(_), Some(position)) = (&destination, &position) {
        // A replica may not have come so far yet: whether the history changed, the owner knows.
        let (named, size) = (context.clone(), position.size);
        let is_behind = node.read(move |ledger| Ok(ledger.sequence(&named)?.0 < size)).await?;
        if is_behind {
            destination = node.reads(&context, true, is_forwarded)?;
            if matches!(destination, Destination::Here(_)) {
                // It owns the slot since just now: its lane shows all of it when it has answered.
                node.ledger.digests(vec![Slot::of(&context)]).await?;
            }
        }
    }
    if !is_forwarded && failover.turn(1).is_some() {
        // Neither this node nor the first that was asked can read it: the other replicas in turn.
        let others = node.other_replicas(Slot::of(&context));
        let turn = failover.turn(others.len());
        destination =
            turn.and_then(|turn| others.into_iter().nth(turn)).map_or(destination, Destination::replica);
    }
    match destination {
        Destination::Here(_) => {
            let mut resume = convert::resume(position)?;
            resume.after = after;
            let tail = ContextWatcher::resume(&node, rpc, context, key, resume, shape);
            let tail = tail.await?;
            Ok(Source::Here(match bookmark_ms {
                Some(every_ms) => tail.with_bookmarks(every_ms).into_stream().boxed(),
                None => tail.into_stream().boxed(),
            }))
        }
        Destination::There { channel, owner } => {
            let resume_after =
                position.or_else(|| Some(WirePosition { size: after.0, ..Default::default() }));
            let request = WatchRequest {
                context_id: context.as_str().to_owned(),
                key: key.map(Key::into_string).unwrap_or_default(),
                resume_after,
                bookmark_interval_ms: bookmark_ms.unwrap_or_default(),
            };
            let mut client =
                LedgerServiceClient::new(Upstream::new(channel)).max_decoding_message_size(usize::MAX);
            let batches = route::answer(client.watch(route::forwarded(request)));
            let batches = node.unless_owner_lost(owner.clone(), batches).await?;
            Ok(Source::There(Box::new(batches), owner))
        }
    }
}
