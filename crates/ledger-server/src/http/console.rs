//! The console: one page to look at contexts, and the JSON behind it. It reads and never writes.
//!
//! Everything a writer chose (names, keys, metadata, payloads) is hostile: it leaves here as JSON only, the
//! page puts it in place as text only, and the page may load and run nothing but what it carries.
//!
//! | path | query | answers |
//! | --- | --- | --- |
//! | `/` | | the page |
//! | `/api/cluster` | | the nodes, as this one sees them |
//! | `/api/contexts` | `prefix`, `after`, `limit` | a page of the listing |
//! | `/api/context` | `id` | size, Lamport time, epoch, root, signed checkpoint; who owns and who keeps it |
//! | `/api/entries` | `id`, `key`, `after`, `limit` | entries with previews of their payloads |
//! | `/api/tail` | `id`, `key`, `after` | the same, live, as server-sent events |

use std::{
    convert::Infallible,
    sync::{Arc, LazyLock},
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderName, StatusCode, header},
    response::{
        Html, IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use ledger_core::{
    ContextId, Key, Sequence,
    hash::{Hasher as _, Sha256},
    slot::{SLOTS, Slot},
};
use ledger_proto::{
    context::v1::{Entry, GetRequest, context_service_client::ContextServiceClient},
    ledger::v1::{CheckpointRequest, ContextsRequest},
};
use ledger_store::{Covered, EntryView, Filter, IdView};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tonic::{Code, Status, transport::Channel};

use crate::{
    grpc::convert,
    grpc::encode,
    grpc::status::Refusal,
    http::metrics::Rpc,
    limits,
    membership::mode::NodeMode,
    node::Node,
    routing::listing,
    routing::relay,
    routing::route,
    services::integrity_service,
    services::watcher::{ContextWatcher, WatcherBatch},
};

const PAGE: &str = include_str!("console.html");

/// The page may run and show its own inline script and style, known by their hashes, and ask its own server.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let inline = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
        BASE64_STANDARD.encode(Sha256::digest(inline.map_or("", |(inline, _)| inline).as_bytes()).0)
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style"),
    )
});

static TAILS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(limits::CONSOLE_TAILS)));

/// The console's paths.
pub fn routes() -> Router<Arc<Node>> {
    Router::new()
        .route("/", get(page))
        .route("/api/cluster", get(cluster))
        .route("/api/contexts", get(contexts))
        .route("/api/context", get(context))
        .route("/api/entries", get(entries))
        .route("/api/tail", get(tail))
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    (headers, Html(PAGE))
}

/// What a request asks for; each path uses some of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct QueryParameters {
    id: String,
    prefix: String,
    key: String,
    after: String,
    limit: u32,
}

impl QueryParameters {
    fn sequence(&self) -> Result<Sequence, Refusal> {
        if self.after.is_empty() {
            return Ok(Sequence(0));
        }
        let wrong = || Refusal::field("after", "after is not a sequence: send a number");
        self.after.parse().map(Sequence).map_err(|_| wrong())
    }
}

#[derive(Debug, Serialize)]
struct Cluster {
    name: String,
    /// Who answers.
    node: String,
    copies: u32,
    min_copies: u32,
    nodes: Vec<NodeSummary>,
    /// Slots there are, and those that take appends now.
    slots: u32,
    taking: u32,
    /// Nodes that keep copies and are not heard.
    away: Vec<String>,
}

/// A node.
#[derive(Debug, Serialize)]
struct NodeSummary {
    node: String,
    address: String,
    state: String,
    alive: bool,
    slots: u32,
    entries_per_second: u64,
    contexts: u64,
    zone: String,
}

async fn cluster(State(node): State<Arc<Node>>) -> Json<Cluster> {
    let members = node.mode.members(&node);
    let taking = members.members.iter().map(|member| member.slots_owned).sum();
    let seen = |member: ledger_proto::ledger::v1::Member| NodeSummary {
        node: member.node_id,
        address: member.address,
        state: member.readiness,
        alive: member.alive,
        slots: member.slots_owned,
        entries_per_second: member.entries_per_second,
        contexts: member.contexts,
        zone: member.zone,
    };
    Json(Cluster {
        name: members.cluster_id,
        node: members.node_id,
        copies: members.copies,
        min_copies: members.min_copies,
        nodes: members.members.into_iter().map(seen).collect(),
        slots: SLOTS.into(),
        taking,
        away: node.mode.away(),
    })
}

/// A number that may pass 2^53, where JavaScript rounds: a string of digits, as `ledgerctl --json` writes it.
#[derive(Debug, Clone, Copy)]
struct Digits(u64);

impl Serialize for Digits {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}

#[derive(Debug, Serialize)]
struct ContextRow {
    id: String,
    size: u64,
    lamport: Digits,
    epoch: Digits,
    suite: String,
}

#[derive(Debug, Serialize)]
struct Listing {
    contexts: Vec<ContextRow>,
    more: bool,
    next: String,
    /// Slots whose contexts are missing, and why; empty: the listing is whole.
    missing: Vec<String>,
}

async fn contexts(
    State(node): State<Arc<Node>>,
    Query(asked): Query<QueryParameters>,
) -> Result<Json<Listing>, HttpRefusal> {
    let limit = asked.limit.clamp(1, limits::CONSOLE_ENTRIES as u32);
    let request =
        ContextsRequest { prefix: asked.prefix, after: asked.after, limit, ..ContextsRequest::default() };
    let page = listing::contexts(&node, request).await?;
    let listed = |info: ledger_proto::ledger::v1::ContextInfo| ContextRow {
        id: info.context_id,
        size: info.size,
        lamport: Digits(info.lamport_clock),
        epoch: Digits(info.epoch),
        suite: info.hash_suite,
    };
    let missing = page.unlisted.iter().map(|of| {
        let name = if of.node_id.is_empty() { "no node" } else { &of.node_id };
        format!("{} of {SLOTS} slots: {name}: {}", of.count, of.reason)
    });
    Ok(Json(Listing {
        missing: missing.collect(),
        contexts: page.contexts.into_iter().map(listed).collect(),
        more: page.more,
        next: page.next,
    }))
}

#[derive(Debug, Serialize)]
struct ContextDetail {
    id: String,
    size: u64,
    lamport: Digits,
    epoch: Digits,
    suite: String,
    root: String,
    lineage: String,
    signed_note: String,
    verifier_key: String,
    /// Empty: nobody owns it at the moment.
    owner: String,
    /// Why it takes no appends at the moment; empty: it does.
    reason: String,
    copies: Vec<ReplicaSummary>,
}

/// A node that keeps a context.
#[derive(Debug, Serialize)]
struct ReplicaSummary {
    node: String,
    alive: bool,
    /// Whether it holds what the owner holds; only the owner knows.
    in_step: bool,
}

async fn context(
    State(node): State<Arc<Node>>,
    Query(asked): Query<QueryParameters>,
) -> Result<Json<ContextDetail>, HttpRefusal> {
    let context = ContextId::new(&asked.id).map_err(Refusal::from)?;
    let request = CheckpointRequest { context_id: asked.id.clone(), ..CheckpointRequest::default() };
    // By a node that keeps it, which signs it with its own key.
    let made = integrity_service::checkpoint(&node, request, false).await?;
    let checkpoint = made.checkpoint.unwrap_or_default();
    let location = node.mode.location(Slot::of(&context), Some(&context));
    let copy = |kept: ledger_proto::ledger::v1::Replica| ReplicaSummary {
        node: kept.node_id,
        alive: kept.alive,
        in_step: kept.in_step,
    };
    Ok(Json(ContextDetail {
        id: asked.id,
        size: checkpoint.size,
        lamport: Digits(checkpoint.lamport_clock),
        epoch: Digits(checkpoint.epoch),
        suite: checkpoint.hash_suite,
        root: hex::encode(checkpoint.root),
        lineage: hex::encode(checkpoint.lineage),
        signed_note: made.signed_note,
        verifier_key: made.verifier_key,
        owner: location.owner,
        reason: location.reason,
        copies: location.replicas.into_iter().map(copy).collect(),
    }))
}

/// An entry with the beginning of its payload.
#[derive(Debug, Serialize)]
struct EntrySummary {
    sequence: u64,
    id: String,
    key: String,
    /// Milliseconds since the Unix epoch: what a browser's clock counts in.
    at_ms: u64,
    lamport: Digits,
    hash: String,
    metadata: ledger_core::entry::Metadata,
    #[serde(flatten)]
    preview: Preview,
}

/// A payload's beginning: as text, if it is text, else in hex.
#[derive(Debug, Serialize)]
struct Preview {
    size: usize,
    text: Option<String>,
    hex: Option<String>,
    cut: bool,
}

impl EntrySummary {
    fn of(entry: &EntryView<'_>) -> Self {
        let id = match entry.id {
            IdView::Bits(bits) => hex::encode(bits),
            IdView::Text(text) => text.to_owned(),
        };
        let metadata = entry.metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        Self {
            sequence: entry.sequence.0,
            id,
            key: entry.key.to_owned(),
            at_ms: entry.appended_at_ns / 1_000_000,
            lamport: Digits(entry.lamport.0),
            hash: entry.content_hash.to_string(),
            metadata: metadata.collect(),
            preview: Preview::of(entry.payload),
        }
    }

    /// An entry that came from another node.
    fn of_message(entry: Entry) -> Self {
        Self {
            sequence: entry.sequence,
            id: entry.id,
            key: entry.key,
            at_ms: entry.appended_at_ns / 1_000_000,
            lamport: Digits(entry.lamport_clock),
            hash: hex::encode(&entry.content_hash),
            metadata: entry.metadata,
            preview: Preview::of(&entry.payload),
        }
    }
}

impl Preview {
    fn of(payload: &[u8]) -> Self {
        let size = payload.len();
        let start = &payload[..size.min(limits::PREVIEW)];
        let cut = start.len() < size;
        let text = match std::str::from_utf8(start) {
            Ok(text) => Some(text),
            // The cut may go through a character.
            Err(error) if cut && error.error_len().is_none() => {
                std::str::from_utf8(&start[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        let hex = text.is_none().then(|| hex::encode(&start[..start.len().min(limits::PREVIEW / 8)]));
        let cut = cut || hex.as_ref().is_some_and(|hex| hex.len() < 2 * size);
        Self { size, text: text.map(str::to_owned), hex, cut }
    }
}

#[derive(Debug, Serialize)]
struct EntriesPage {
    entries: Vec<EntrySummary>,
    latest: u64,
    covered: u64,
    more: bool,
}

async fn entries(
    State(node): State<Arc<Node>>,
    Query(asked): Query<QueryParameters>,
) -> Result<Json<EntriesPage>, HttpRefusal> {
    let after = asked.sequence()?;
    let context = ContextId::new(&asked.id).map_err(Refusal::from)?;
    let limit = (asked.limit as usize).clamp(1, limits::CONSOLE_ENTRIES);
    let key = convert::key_filter(asked.key.clone())?;
    let here = || async {
        let (context, filter) = (
            context.clone(),
            Filter { key: key.clone(), after, limit, max_bytes: limits::PAGE_BYTES, ..Filter::default() },
        );
        let read = node.read(move |ledger| {
            let mut entries = Vec::new();
            let covered = ledger.visit(&context, &filter, |view| entries.push(EntrySummary::of(&view)))?;
            Ok((entries, covered))
        });
        let (entries, Covered { latest, covered, more, .. }) = read.await?;
        Ok(EntriesPage { entries, latest: latest.0, covered: covered.0, more })
    };
    let there = |channel| entries_there(channel, asked.clone(), after, limit);
    Ok(Json(node.read_anywhere(&context, false, false, here, there).await?))
}

/// The entries, from a node that shows the context.
async fn entries_there(
    channel: Channel,
    asked: QueryParameters,
    after: Sequence,
    limit: usize,
) -> Result<EntriesPage, Refusal> {
    let request = GetRequest {
        context_id: asked.id,
        key: asked.key,
        after_sequence: after.0,
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
        ..GetRequest::default()
    };
    let mut there = ContextServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let page = route::answer(there.get(route::forwarded(request))).await?;
    let latest = page.latest_sequence;
    // A page of as many entries as were asked for is not called truncated.
    let covered = match page.entries.last() {
        _ if page.truncated => page.next_after_sequence,
        Some(last) if page.entries.len() >= limit => last.sequence,
        _ => latest.max(after.0),
    };
    let entries = page.entries.into_iter().map(EntrySummary::of_message).collect();
    Ok(EntriesPage { entries, latest, covered, more: covered < latest })
}

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

async fn tail(
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

/// A refusal as HTTP has it.
struct HttpRefusal(Refusal);

impl From<Refusal> for HttpRefusal {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for HttpRefusal {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(serde_json::json!({ "error": self.0.message }))).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_browser_would_round_is_a_string() {
        let listed = ContextRow {
            id: "c".into(),
            size: 7,
            lamport: Digits((1 << 62) + 1),
            epoch: Digits(u64::MAX),
            suite: "blake3".into(),
        };
        let shown = serde_json::to_value(listed).unwrap();
        assert_eq!(
            (&shown["lamport"], &shown["epoch"]),
            (&"4611686018427387905".into(), &"18446744073709551615".into())
        );
        assert_eq!(shown["size"], 7);
    }

    #[test]
    fn the_page_carries_one_script_and_one_style_and_loads_nothing() {
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
        assert!(PAGE.contains("<script>") && PAGE.contains("<style>"));
        for never in [
            "http://",
            "https://",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            " style=",
            " onclick=",
        ] {
            assert!(!PAGE.contains(never), "{never}");
        }
        assert!(POLICY.starts_with("default-src 'none'; script-src 'sha256-"));
    }
}
