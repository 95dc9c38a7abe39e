//! The search for the owners of groups.

use std::mem;

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use ledger_core::slot::Slot;

use super::group::{GroupNumber, Groups};
use crate::connection::{core::Client, locate::NodeChannel, retry::FailedCall};

/// The owner of each group, or why nobody named it.
pub(super) type FoundOwners = Vec<(GroupNumber, Result<NodeChannel, FailedCall>)>;

/// The groups that need an owner, and the searches in progress.
pub(super) struct OwnerSearch {
    queue: Vec<GroupNumber>,
    running: FuturesUnordered<BoxFuture<'static, FoundOwners>>,
}

impl OwnerSearch {
    pub(super) fn new() -> Self {
        Self { queue: Vec::new(), running: FuturesUnordered::new() }
    }

    /// Queues a group. The next [`OwnerSearch::start`] searches for all that are queued, with one request.
    pub(super) fn queue(&mut self, group: GroupNumber) {
        self.queue.push(group);
    }

    /// Whether no search is in progress.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// The result of the next search that ends.
    pub(super) async fn next(&mut self) -> Option<FoundOwners> {
        self.running.next().await
    }

    /// Searches for the owners of the queued groups. Returns them at once if the client has one address, to which
    /// everything goes.
    pub(super) fn start(&mut self, client: &Client, groups: &Groups) -> Option<FoundOwners> {
        if self.queue.is_empty() {
            return None;
        }
        let queue = mem::take(&mut self.queue);
        if let Some(node) = single_node(client) {
            return Some(queue.into_iter().map(|group| (group, Ok(node.clone()))).collect());
        }
        let wanted: Vec<_> = queue
            .iter()
            .filter_map(|group| Some((Slot::new(*group)?, groups.get(*group).retry_after.clone())))
            .collect();
        let client = client.clone();
        let search = async move { queue.into_iter().zip(client.find_owners(&wanted).await).collect() };
        self.running.push(search.boxed());
        None
    }
}

/// The only node, if the client has one address.
pub(super) fn single_node(client: &Client) -> Option<NodeChannel> {
    let (address, channel) = client.nodes().single()?;
    Some(NodeChannel { address: address.clone(), channel: channel.clone() })
}
