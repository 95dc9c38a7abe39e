//! Machines alone, event by event.

use std::collections::BTreeMap;

use super::*;
use crate::{
    ContextId, Epoch, Hash, Size,
    compare::{
        CompareRequest, CompareResponse, ContextStatus, Finding, ListedContext, Page, Roots, Side, Verdict,
    },
    digest::{Bucket, ContextSummary, Digest, TreeHead},
    loads::LoadSpan,
    node::{Member, NodeId, StorageId},
    ownership::Claim,
    slot::Slot,
};

mod fetch;
mod run;
mod schedule;

fn context(number: u32) -> ContextId {
    ContextId::new(format!("context-{number}")).unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn member(name: &str) -> Member {
    Member { node: node(name), storage: StorageId([7; 16]) }
}

fn claim(epoch: u64) -> Claim {
    Claim::new(Epoch(epoch), &member("owner"))
}

fn root(seed: u64) -> Hash {
    Hash(*blake3::hash(&seed.to_be_bytes()).as_bytes())
}

fn head(size: u64) -> TreeHead {
    TreeHead { size: Size(size), root: root(size) }
}

fn summary(context: &ContextId, size: u64) -> ContextSummary {
    let TreeHead { size, root } = head(size);
    ContextSummary { context: context.clone(), size, root, epoch: Epoch(1) }
}
