//! The contexts of the cluster, and one of them by itself.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
};
use ledger_core::{
    ContextId,
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::{CheckpointRequest, ContextsRequest};
use serde::Serialize;

use crate::{
    grpc::status::Refusal,
    http::console::{
        digits::Digits,
        query::{HttpRefusal, QueryParameters},
    },
    limits,
    node::Node,
    routing::listing,
    services::integrity_service,
};

#[derive(Debug, Serialize)]
struct ContextRow {
    id: String,
    size: u64,
    lamport: Digits,
    epoch: Digits,
    suite: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Listing {
    contexts: Vec<ContextRow>,
    more: bool,
    next: String,
    /// Slots whose contexts are missing, and why; empty: the listing is whole.
    missing: Vec<String>,
}

/// `/api/contexts`
pub(super) async fn contexts(
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
pub(super) struct ContextDetail {
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

/// `/api/context`
pub(super) async fn context(
    State(node): State<Arc<Node>>,
    Query(asked): Query<QueryParameters>,
) -> Result<Json<ContextDetail>, HttpRefusal> {
    let context = ContextId::new(&asked.id).map_err(Refusal::from)?;
    let request = CheckpointRequest { context_id: asked.id.clone(), ..CheckpointRequest::default() };
    // By a node that keeps it, which signs it with its own key.
    let made = integrity_service::checkpoint(&node, request, false).await?;
    let checkpoint = made.checkpoint.unwrap_or_default();
    let location = node.location(Slot::of(&context), Some(&context));
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
}
