//! Finds the node that a call needs, and learns from calls that fail.
//!
//! | the call needs | goes to |
//! | --- | --- |
//! | any node | the one used before, until it fails |
//! | any replica of a context | the same, until one says that only the owner knows |
//! | the owner | the owner in the cache; else the one that a node names; else any node, which forwards |

use std::time::Duration;

use ledger_core::slot::Slot;
use ledger_proto::ledger::v1::LocateRequest;
use tonic::{Code, Status, transport::Channel};

use super::{address::Address, core::Client, destination::Destination, nodes::RetryAfter, retry::FailedCall};
use crate::error::failure::Failure;

/// How long a node may take to say who owns a slot before the client asks another.
const LOCATE_TIMEOUT: Duration = Duration::from_secs(2);

/// A node, and the channel to it.
#[derive(Debug, Clone)]
pub(crate) struct NodeChannel {
    pub(crate) address: Address,
    pub(crate) channel: Channel,
}

impl Client {
    /// The node to call now. At most one request to another node finds it.
    pub(crate) async fn find_node(
        &self,
        destination: Destination,
        retry_after: &RetryAfter,
    ) -> Result<NodeChannel, FailedCall> {
        if let Some((address, channel)) = self.nodes().single()
            && (!matches!(destination, Destination::Owner(_)) || self.owners().is_empty())
        {
            return Ok(NodeChannel { address: address.clone(), channel: channel.clone() });
        }
        let address = match destination {
            Destination::AnyNode | Destination::AnyReplica(_) => self.nodes().choose(retry_after),
            Destination::Owner(slot) => self.find_owner(slot, retry_after).await?,
        };
        self.channel_to(address)
    }

    /// The owner of a slot as the cache or a node names it, or a node that forwards to the owner.
    async fn find_owner(&self, slot: Slot, retry_after: &RetryAfter) -> Result<Address, FailedCall> {
        if let Some(owner) = self.known_owner(slot, retry_after) {
            return Ok(owner);
        }
        let node = self.nodes().choose(retry_after);
        if self.nodes().single().is_none() {
            self.locate(&node, &[slot]).await?;
        }
        Ok(self.known_owner(slot, retry_after).unwrap_or(node))
    }

    /// As [`Client::find_node`], for the owners of many slots, with one request to one node. One result per slot.
    pub(crate) async fn find_owners(
        &self,
        wanted: &[(Slot, RetryAfter)],
    ) -> Vec<Result<NodeChannel, FailedCall>> {
        let is_unknown = |(slot, retry_after): &&(_, _)| self.known_owner(*slot, retry_after).is_none();
        let unknown: Vec<_> = wanted.iter().filter(is_unknown).map(|(slot, _)| *slot).collect();
        let nobody = RetryAfter::default();
        let node = self.nodes().choose(wanted.first().map_or(&nobody, |(_, retry_after)| retry_after));
        let located = if unknown.is_empty() { Ok(()) } else { self.locate(&node, &unknown).await };
        let target = |(slot, retry_after): &(_, _)| {
            let address = match (self.known_owner(*slot, retry_after), &located) {
                (Some(owner), _) => owner,
                (None, Ok(())) => self.nodes().choose(retry_after),
                (None, Err(failed)) => return Err(failed.clone()),
            };
            self.channel_to(address)
        };
        wanted.iter().map(target).collect()
    }

    /// The owner of a slot, if the cache has it and no failure makes the client avoid it.
    fn known_owner(&self, slot: Slot, retry_after: &RetryAfter) -> Option<Address> {
        self.owners().get(slot).filter(|owner| !self.nodes().is_avoided(owner, retry_after))
    }

    fn channel_to(&self, address: Address) -> Result<NodeChannel, FailedCall> {
        match self.nodes().channel(&address) {
            Ok(channel) => Ok(NodeChannel { address, channel }),
            Err(error) => Err(FailedCall::new(address, Status::invalid_argument(error.to_string()))),
        }
    }

    /// Asks a node who owns slots, and caches its response. A slot of which the node knows no owner stays unknown.
    pub(crate) async fn locate(&self, node: &Address, slots: &[Slot]) -> Result<(), FailedCall> {
        let failed = |status| FailedCall::new(node.clone(), status);
        let channel = self.channel_to(node.clone())?.channel;
        let request = LocateRequest {
            slots: slots.iter().map(|slot| slot.number().into()).collect(),
            ..LocateRequest::default()
        };
        let mut service = self.cluster_service_on(channel);
        let Ok(response) = tokio::time::timeout(LOCATE_TIMEOUT, service.locate(request)).await else {
            let status = Status::unavailable(format!("{node} did not answer within {LOCATE_TIMEOUT:?}"));
            let failed = FailedCall { failure: Failure::ConnectionLost, ..failed(status) };
            self.learn_from_failure(Destination::AnyNode, &failed);
            return Err(failed);
        };
        match response.map_err(failed) {
            Ok(response) => {
                self.nodes().record_success(node);
                for location in response.into_inner().locations {
                    let named = u16::try_from(location.slot).ok().and_then(Slot::new);
                    let owner = node.resolve(&location.owner_address);
                    let (Some(named), Some(owner)) = (named, owner) else { continue };
                    self.owners().insert(named, owner);
                }
                Ok(())
            }
            // A standalone node, or one of a version without owners: it accepts every append itself.
            Err(failed) if failed.failure == Failure::Permanent => {
                self.nodes().record_success(node);
                if failed.status.code() == Code::Unimplemented {
                    self.owners().insert_standalone(node.clone());
                }
                Ok(())
            }
            Err(failed) => {
                self.learn_from_failure(Destination::AnyNode, &failed);
                Err(failed)
            }
        }
    }

    /// Updates the cache of owners, and which nodes to avoid, from a call that failed.
    pub(crate) fn learn_from_failure(&self, destination: Destination, failed: &FailedCall) {
        match (&failed.failure, destination.slot()) {
            (Failure::NotOwner { owner, .. }, Some(slot)) => {
                self.owners().forget(slot, &failed.node);
                if let Some(owner) = owner.as_deref().and_then(|owner| failed.node.resolve(owner))
                    && owner != failed.node
                {
                    self.nodes().clear_avoidance(&owner);
                    self.owners().insert(slot, owner);
                }
            }
            (Failure::NotReady { .. }, Some(slot)) => self.owners().forget(slot, &failed.node),
            (Failure::ConnectionLost, _) => {
                self.nodes().record_connection_failure(&failed.node);
                self.owners().forget_node(&failed.node);
            }
            (Failure::NotOwner { .. } | Failure::NotReady { .. }, None) | (Failure::Permanent, _) => {}
        }
    }
}
