//! A page of a context's entries.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
};
use ledger_core::{ContextId, Sequence};
use ledger_proto::context::v1::{GetRequest, context_service_client::ContextServiceClient};
use ledger_store::{Covered, Filter};
use serde::Serialize;
use tonic::transport::Channel;

use crate::{
    grpc::convert,
    grpc::status::Refusal,
    http::console::{
        entry::EntrySummary,
        query::{HttpRefusal, QueryParameters},
    },
    limits,
    node::Node,
    routing::route,
};

#[derive(Debug, Serialize)]
pub(super) struct EntriesPage {
    entries: Vec<EntrySummary>,
    latest: u64,
    covered: u64,
    more: bool,
}

/// `/api/entries`
pub(super) async fn entries(
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
