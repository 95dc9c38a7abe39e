//! The nodes of the cluster.

use std::sync::Arc;

use axum::{Json, extract::State};
use ledger_core::slot::SLOTS;
use serde::Serialize;

use crate::node::Node;

/// The cluster, as this node sees it.
#[derive(Debug, Serialize)]
pub(super) struct Cluster {
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

/// `/api/cluster`
pub(super) async fn cluster(State(node): State<Arc<Node>>) -> Json<Cluster> {
    let members = node.members();
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
        away: node.away(),
    })
}
