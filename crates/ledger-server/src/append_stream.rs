//! The pipelined append: a stream of batches in, a stream of results out.
//!
//! One task reads batches, checks them and hands each to the store in one call. The response stream is fed by
//! the store's group commits directly: one message out for each, with no task, channel or permit for a single
//! entry. What was accepted and not yet answered is bounded, in entries for each stream and in bytes for
//! the node; at the bound the task reads no further, and HTTP/2 flow control holds the client back. Its results are paid
//! for before it is handed to the store, until the client takes them.
//!
//! In a cluster, entries of slots that other nodes own are sent on to them, on one stream for each owner.
//!
//! | state | leaves it when |
//! | --- | --- |
//! | reading | the client half-closes, fails, or the node drains → finishing |
//! | finishing | the last result was sent → ended, with the status that ended the reading |

mod batch_reader;
mod forward;
mod in_flight;
mod name_cache;
mod result_sender;
mod results;

use std::sync::Arc;

use futures::{Stream, stream};
use ledger_proto::{ledger::v1::AppendResults, wire::ledger::v1::AppendBatch};
use ledger_store::budget::Share;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    append_stream::{
        batch_reader::BatchReader, forward::StreamRouter, in_flight::InFlight, name_cache::NameCache,
        result_sender::ResultSender,
    },
    grpc::call,
    limits,
    metrics::{Alive, Rpc},
    node::Node,
    node::writers::Writer,
};

/// Starts a stream of appends.
pub fn start(
    node: Arc<Node>,
    batches: Streaming<AppendBatch>,
    is_forwarded: bool,
    writer: Option<Writer>,
) -> impl Stream<Item = Result<AppendResults, Status>> + Send {
    node.metrics.started(Rpc::AppendStream);
    let in_flight = Arc::new(InFlight::default());
    let gone = CancellationToken::new();
    let (stored, stored_rx) = mpsc::unbounded_channel();
    let (refused, refused_rx) = mpsc::unbounded_channel();
    let (ended, ended_rx) = oneshot::channel();
    let call = call::current();
    let reader = BatchReader {
        items: Share::new("entries of a stream", limits::APPEND_ITEMS_IN_FLIGHT),
        names: NameCache::new(Arc::clone(&node.memory.calls)),
        in_flight: Arc::clone(&in_flight),
        stored,
        router: StreamRouter::new(is_forwarded, writer.clone(), call.clone()),
        writer,
        call,
        refused,
        node: Arc::clone(&node),
    };
    let alive = Alive::new(&node.metrics.append_streams);
    tokio::spawn(reader.run(batches, gone.clone(), ended));
    let answers = ResultSender {
        stored: stored_rx,
        refused: refused_rx,
        ended: Some(ended_rx),
        in_flight,
        node,
        _gone: gone.drop_guard(),
        _alive: alive,
    };
    stream::unfold(answers, |mut answers| async move { Some((answers.next().await?, answers)) })
}
