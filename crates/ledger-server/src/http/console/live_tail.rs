//! Entries as they come, as server-sent events.

use std::{
    convert::Infallible,
    sync::{Arc, LazyLock},
};

use axum::{
    extract::{Query, State},
    response::sse::{Event, KeepAlive, Sse},
};
use bytes::Bytes;
use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use ledger_core::{ContextId, Key, Sequence};
use ledger_proto::context::v1::Entry;
use prost::Message as _;
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::{
    grpc::convert,
    grpc::encode,
    grpc::status::Refusal,
    http::console::{
        entry::EntrySummary,
        query::{HttpRefusal, QueryParameters},
    },
    limits,
    metrics::Rpc,
    node::Node,
    node::mode::NodeMode,
    services::relay,
    services::watcher::{ContextWatcher, WatcherBatch},
};

/// Bounds the tails that are open at the same time.
static TAILS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(limits::CONSOLE_TAILS)));

/// Entries as they come, from this node or, in a cluster, from whichever shows the context.
fn follow(
    node: &Arc<Node>,
    context: ContextId,
    key: Option<Key>,
    after: Sequence,
) -> BoxStream<'static, Result<Vec<EntrySummary>, Status>> {
    if matches!(node.mode, NodeMode::Standalone(_)) {
        let batches =
            ContextWatcher::new(node, Rpc::Watch, context, key, after, EntrySummary::of).into_stream();
        return batches.map(|batch| batch.map(|batch| batch.entries)).boxed();
    }
    let start = relay::WatchStart { context, key, after, position: None, bookmark_ms: None, is_named: false };
    let batches = relay::watch(node, Rpc::Watch, start, encode::entry, false);
    let decode = |batch: WatcherBatch<Bytes>| {
        let decode = |entry| Entry::decode(entry).map(EntrySummary::of_message);
        let entries: Result<Vec<EntrySummary>, _> = batch.entries.into_iter().map(decode).collect();
        entries.map_err(|error| Status::internal(error.to_string()))
    };
    batches.map(move |batch| batch.and_then(decode)).boxed()
}

/// `/api/tail`
pub(super) async fn tail(
    State(node): State<Arc<Node>>,
    Query(asked): Query<QueryParameters>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, HttpRefusal> {
    let after = asked.sequence()?;
    let context = ContextId::new(&asked.id).map_err(Refusal::from)?;
    let key = convert::key_filter(asked.key)?;
    let permit = Arc::clone(&TAILS).try_acquire_owned().map_err(|_| {
        let message = format!("{} live tails are open, the most here: close one", limits::CONSOLE_TAILS);
        Refusal::new(Code::ResourceExhausted, message)
    })?;
    node.serving()?;
    let batches = follow(&node, context, key, after);
    let events = batches.flat_map(move |batch| {
        let _ = &permit;
        let events: Vec<_> = match batch {
            Ok(entries) => entries.into_iter().map(|entry| Ok(event(&entry))).collect(),
            Err(status) => {
                vec![Ok(Event::default().event("end").data(status.message().replace(['\r', '\n'], " ")))]
            }
        };
        stream::iter(events)
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

fn event(entry: &EntrySummary) -> Event {
    let id = entry.sequence.to_string();
    // JSON has no raw line ends, so it is one line of data.
    Event::default().id(id).json_data(entry).unwrap_or_else(|_| Event::default().event("end"))
}
