//! Owners that are gone: whoever waits for the answer of one goes on as soon as this node knows that another has its slot.
//!
//! A paused node keeps its connections, and what was sent to it is answered when they time out, or when it goes on. The
//! cluster notices sooner.

use std::sync::Arc;

use ledger_cluster::{
    Cluster,
    membership::View,
    ownership::routes::{Routes, SlotOwner},
};
use ledger_core::{node::NodeId, slot::Slot};
use tokio::sync::watch;
use tonic::Code;

use crate::{
    grpc::status::{RETRY_NOT_OWNER, Refusal},
    node::Node,
    node::mode::NodeMode,
};

/// Another node, and a slot that it owns, as far as this one knew when it asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteOwner {
    /// What it owns.
    pub slot: Slot,
    /// Its name.
    pub node: NodeId,
}

impl Node {
    /// What an owner answers, unless it is gone before it does. `None`: whoever is asked is none, and is waited for.
    ///
    /// # Errors
    /// What the owner refuses; `UNAVAILABLE` if it is gone: whether it did what it was asked for is not known.
    pub async fn unless_owner_lost<T, E: From<Refusal>>(
        &self,
        owner: Option<RemoteOwner>,
        answered: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (NodeMode::Clustered(cluster), Some(owner)) = (&self.mode, owner) else { return answered.await };
        let RemoteOwner { slot, node } = owner;
        let is_lost = move |routes: &Routes, owner: &NodeId| !owns(routes, slot, owner);
        tokio::select! {
            biased;
            answer = answered => answer,
            () = gone(cluster, node.clone(), is_lost) => Err(refusal(&node).into()),
        }
    }

    /// Completes when a node that others asked as an owner is not heard any more, and owns nothing now.
    pub fn gone(&self, owner: NodeId) -> impl Future<Output = Refusal> + Send + 'static {
        let is_lost = |routes: &Routes, owner: &NodeId| !routes.owns_any(owner);
        let gone = self.mode.cluster().map(|cluster| gone(cluster, owner.clone(), is_lost));
        async move {
            match gone {
                Some(gone) => gone.await,
                None => std::future::pending().await,
            }
            refusal(&owner)
        }
    }
}

/// What is said of a question to an owner that is gone: whether it was done is not known.
fn refusal(owner: &NodeId) -> Refusal {
    let message = format!("node {owner}, which owned the context, does not answer any more: try again");
    Refusal { retry: Some(RETRY_NOT_OWNER), ..Refusal::new(Code::Unavailable, message) }
}

/// Completes when an owner is not heard any more, and `is_lost` says that what was asked of it is not its own now.
fn gone(
    cluster: &Cluster,
    owner: NodeId,
    is_lost: impl Fn(&Routes, &NodeId) -> bool + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let is_gone = move |routes: &Arc<Routes>, view: &Arc<View>| {
        !view.get(&owner).is_some_and(|member| member.alive) && is_lost(routes, &owner)
    };
    until(cluster.routes(), cluster.view(), is_gone)
}

/// Whether another node owns a slot.
fn owns(routes: &Routes, slot: Slot, node: &NodeId) -> bool {
    routes.get(slot).is_some_and(|route| matches!(&route.owner, SlotOwner::Other(owner, _) if owner == node))
}

/// Completes when two values that change are so; never, if they do not change any more.
async fn until<A, B>(mut a: watch::Receiver<A>, mut b: watch::Receiver<B>, is_so: impl Fn(&A, &B) -> bool) {
    loop {
        if is_so(&a.borrow_and_update(), &b.borrow_and_update()) {
            return;
        }
        let changed = tokio::select! {
            changed = a.changed() => changed,
            changed = b.changed() => changed,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_for_an_owner_goes_on_once_it_is_silent_and_another_has_the_slot() {
        let (owner, routes) = watch::channel("a");
        let (alive, view) = watch::channel(true);
        let mut gone = pin!(until(routes, view, |owner, is_alive| *owner != "a" && !is_alive));
        assert!(poll!(gone.as_mut()).is_pending());
        // It is handed over: the one that hands it over answers.
        owner.send_replace("b");
        assert!(poll!(gone.as_mut()).is_pending());
        owner.send_replace("a");
        alive.send_replace(false);
        assert!(poll!(gone.as_mut()).is_pending());
        owner.send_replace("b");
        assert!(poll!(gone.as_mut()).is_ready());
    }
}
