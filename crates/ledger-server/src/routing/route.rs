//! Where a request is served: here, or by the node that can.
//!
//! Any node takes any request. Appends and loads go to the slot's owner, one hop and no further: a node that is asked
//! by another and is not the owner says so. Reads are served by any replica that shows the slot, else they go to the
//! owner.

use std::{future::Future, time::Duration};

use ledger_cluster::{
    Cluster,
    ownership::routes::{SlotOwner, SlotRoute},
};
use ledger_core::{
    ContextId, Epoch,
    node::{Member, NodeId},
    slot::Slot,
};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status, metadata::MetadataMap, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    grpc::call,
    grpc::status::{ERROR_DOMAIN, NOT_OWNER, RETRY_NOT_OWNER, Refusal},
    node::Node,
    node::mode::NodeMode,
    node::writers::Writer,
    routing::owner_loss::RemoteOwner,
};

/// Marks a request that a node sends on.
const FORWARDED: &str = "converge-forwarded";
/// How long a request waits for a slot that is changing its owner.
const OWNER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for news of owners before trying again.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// Where a request is served.
#[derive(Debug, Clone)]
pub enum Destination {
    /// By this node; appends in this epoch, if it is one of a cluster.
    Here(Option<Epoch>),
    /// By another one: the owner, or a replica that may show the slot.
    There {
        /// The connection to it.
        channel: Channel,
        /// What it owns, if it is the owner.
        owner: Option<RemoteOwner>,
    },
}

impl Destination {
    pub(crate) fn replica(channel: Channel) -> Self {
        Self::There { channel, owner: None }
    }
}

/// Whether a request comes from another node, which expects an answer of this one.
pub fn is_forwarded(metadata: &MetadataMap) -> bool {
    metadata.contains_key(FORWARDED)
}

/// Until when a request waits for a slot that is changing its owner.
pub fn deadline() -> Instant {
    call::deadline_within(OWNER_TIMEOUT)
}

/// A request that is sent on.
pub fn forwarded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
    if let Some(call) = call::current().filter(|call| call.is_unary()) {
        request.set_timeout(call.deadline().saturating_duration_since(Instant::now()));
    }
    request
}

/// An append, or a stream of them, that is sent on for its writer.
pub fn forwarded_append<T>(message: T, writer: Option<&Writer>) -> Request<T> {
    let mut request = forwarded(message);
    if let Some(writer) = writer {
        writer.write_to(request.metadata_mut());
    }
    request
}

impl Node {
    /// Where appends to a context go.
    ///
    /// # Errors
    /// `UNAVAILABLE`: nobody owns the slot, the owner cannot be reached, or the request was sent on and this node is not the owner.
    pub fn writes(&self, context: &ContextId, is_forwarded: bool) -> Result<Destination, Refusal> {
        let NodeMode::Clustered(cluster) = &self.mode else { return Ok(Destination::Here(None)) };
        let slot = Slot::of(context);
        let routes = cluster.routes();
        let routes = routes.borrow();
        match routes.get(slot) {
            Some(SlotRoute { owner: SlotOwner::Me(epoch), .. }) => Ok(Destination::Here(Some(*epoch))),
            Some(SlotRoute { owner: SlotOwner::Other(node, _), .. }) => {
                let address = routes.addresses.get(node).map_or("", String::as_str);
                let refusal = || Refusal::not_owner(node.as_str(), address);
                if is_forwarded {
                    return Err(refusal());
                }
                let owner = || Some(RemoteOwner { slot, node: node.clone() });
                let there = |channel| Destination::There { channel, owner: owner() };
                cluster.channel(node).map(there).ok_or_else(refusal)
            }
            Some(SlotRoute { owner: SlotOwner::Nobody(why), unowned_since, .. }) => {
                let is_permanent = unowned_since.is_some_and(|since| since.elapsed() >= OWNER_TIMEOUT);
                Err(Refusal { is_permanent, ..no_owner(why) })
            }
            None => Err(no_owner("this node has just started")),
        }
    }

    /// Where a context is read.
    ///
    /// # Errors
    /// `UNAVAILABLE`: no node shows the context now, or none that may be asked.
    pub fn reads(
        &self,
        context: &ContextId,
        at_owner: bool,
        is_forwarded: bool,
    ) -> Result<Destination, Refusal> {
        let NodeMode::Clustered(cluster) = &self.mode else { return Ok(Destination::Here(None)) };
        let slot = Slot::of(context);
        let is_shown = !at_owner && self.ledger.is_visible(slot);
        if is_shown
            && !is_forwarded
            && self.ledger.is_damaged(context)
            && let Some(destination) = self.undamaged(cluster, context)
        {
            return Ok(destination);
        }
        if is_shown && (is_forwarded || !self.is_falling_behind(slot)) {
            return Ok(Destination::Here(None));
        }
        match self.writes(context, is_forwarded) {
            // The owner hears too few members: somebody else may own it by now.
            Ok(Destination::Here(_)) if !self.ledger.is_visible(slot) => {
                Err(self.may_be_old("too few of its members answer the owner, which this node is"))
            }
            Ok(destination) => Ok(destination),
            Err(_) if is_shown => Ok(Destination::Here(None)),
            // Nobody owns it, or its owner cannot be asked again: another replica may show it.
            Err(refusal) if at_owner || is_forwarded => Err(refusal),
            Err(refusal) => another_replica(cluster, slot)
                .map(Destination::replica)
                .ok_or_else(|| self.may_be_old(&refusal.message)),
        }
    }

    /// The refusal of a read of what may be older than is allowed.
    fn may_be_old(&self, why: &str) -> Refusal {
        let bound = self.config.max_staleness;
        Refusal {
            message: format!(
                "what this node has of the context may be more than {bound} old (max_staleness): {why}; read at another \
                 node, or try again when more nodes of the cluster can be reached"
            ),
            ..Refusal::not_owner("", "")
        }
    }

    /// Reads a context where it can be read: `here`, or `there` at another node. Where damage is met, or nobody answers, the
    /// other replicas are asked, unless only the owner's answer will do.
    ///
    /// # Errors
    /// What the last one that was asked refuses; `UNAVAILABLE` if nobody shows the context.
    pub async fn read_anywhere<T, H, F>(
        &self,
        context: &ContextId,
        at_owner: bool,
        is_forwarded: bool,
        here: impl FnOnce() -> H,
        there: impl Fn(Channel) -> F,
    ) -> Result<T, Refusal>
    where
        H: Future<Output = Result<T, Refusal>>,
        F: Future<Output = Result<T, Refusal>>,
    {
        let destination = self.reads(context, at_owner, is_forwarded)?;
        let (read, unused) = match destination {
            Destination::Here(_) => (here().await, None),
            Destination::There { channel, owner } => {
                let answered = self.unless_owner_lost(owner, Box::pin(there(channel)));
                (answered.await, Some(here))
            }
        };
        let is_elsewhere = |refusal: &Refusal| matches!(refusal.code, Code::DataLoss | Code::Unavailable);
        let refusal = match read {
            Err(refusal) if is_elsewhere(&refusal) && !at_owner && !is_forwarded => refusal,
            read => return read,
        };
        if let Some(here) = unused.filter(|_| self.may_read(context))
            && let Ok(answer) = here().await
        {
            return Ok(answer);
        }
        for channel in self.other_replicas(Slot::of(context)) {
            if let Ok(answer) = there(channel).await {
                return Ok(answer);
            }
        }
        // The owner does not answer, and nobody noticed yet that it is gone; or the lease ended just now.
        if refusal.code == Code::Unavailable && !self.ledger.is_visible(Slot::of(context)) {
            return Err(self.may_be_old(&refusal.message));
        }
        Err(refusal)
    }

    /// Whether a context is shown here, and not known to be damaged.
    fn may_read(&self, context: &ContextId) -> bool {
        self.ledger.is_visible(Slot::of(context)) && !self.ledger.is_damaged(context)
    }

    /// The connections to the other living replicas of a slot.
    pub fn other_replicas(&self, slot: Slot) -> Vec<Channel> {
        self.mode.cluster().map(|cluster| other_replicas(cluster, slot).collect()).unwrap_or_default()
    }

    /// Who may have a copy of a context that is damaged here.
    fn undamaged(&self, cluster: &Cluster, context: &ContextId) -> Option<Destination> {
        match self.writes(context, false) {
            Ok(there @ Destination::There { .. }) => Some(there),
            _ => another_replica(cluster, Slot::of(context)).map(Destination::replica),
        }
    }

    /// Whether this node's copy of a slot falls behind the owner's, because its disk takes no writes.
    fn is_falling_behind(&self, slot: Slot) -> bool {
        let NodeMode::Clustered(cluster) = &self.mode else { return false };
        let is_others = || {
            let routes = cluster.routes();
            let routes = routes.borrow();
            routes.get(slot).is_some_and(|route| matches!(route.owner, SlotOwner::Other(..)))
        };
        self.ledger.writable().is_err() && is_others()
    }

    /// Completes when whoever reads a slot here has to go on elsewhere: the slot is not shown here any more, or
    /// [`Node::is_falling_behind`]. Whoever was sent here by another node goes on reading what stands still.
    pub async fn read_elsewhere(&self, slot: Slot, is_forwarded: bool) {
        let NodeMode::Clustered(cluster) = &self.mode else { return std::future::pending().await };
        let (mut routes, mut writable) = (cluster.routes(), self.ledger.watch_writable());
        let mut hidden = cluster.watch_hidden();
        while self.ledger.is_visible(slot) && (is_forwarded || !self.is_falling_behind(slot)) {
            let is_writable = *writable.borrow_and_update() || is_forwarded;
            tokio::select! {
                Ok(()) = hidden.changed() => {}
                Ok(()) = writable.changed() => {}
                // There is little news of the disk, and much of owners.
                Ok(()) = routes.changed(), if !is_writable => {}
                else => return std::future::pending().await,
            }
        }
    }

    /// After a request was refused: waits for news of owners, and is `Ok` if it is to be tried again. `is_safe`: it was
    /// certainly not done, or has an id.
    ///
    /// # Errors
    /// The refusal, if it is final; `UNAVAILABLE` when the node is shutting down.
    pub async fn should_retry(
        &self,
        refusal: Refusal,
        is_safe: bool,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        self.serving()?;
        let may_pass = refusal.code == Code::Unavailable && !refusal.is_permanent;
        if may_pass && is_safe && self.owner_changed(deadline).await {
            return Ok(());
        }
        Err(refusal)
    }

    /// Waits for news of owners, or a moment; false at the deadline.
    pub async fn owner_changed(&self, deadline: Instant) -> bool {
        let now = Instant::now();
        if now >= deadline {
            return false;
        }
        if let NodeMode::Clustered(cluster) = &self.mode {
            let mut routes = cluster.routes();
            // Either way it is time to try again.
            let _ = timeout_at(deadline.min(now + RETRY_PAUSE), routes.changed()).await;
        }
        true
    }
}

/// A replica that may show a slot though it has no owner.
fn another_replica(cluster: &Cluster, slot: Slot) -> Option<Channel> {
    other_replicas(cluster, slot).next()
}

/// The connections to the other living replicas of a slot.
fn other_replicas(cluster: &Cluster, slot: Slot) -> impl Iterator<Item = Channel> {
    let routes = cluster.routes();
    let mut members = routes.borrow().get(slot).map(|route| route.members.clone()).unwrap_or_default();
    if let Some(SlotOwner::Other(owner, _)) = routes.borrow().get(slot).map(|route| &route.owner) {
        owner_first(&mut members, owner);
    }
    let view = cluster.view();
    let others = members.into_iter().filter(|member| member != cluster.me());
    let alive = others.filter(move |member| view.borrow().get(&member.node).is_some_and(|node| node.alive));
    alive.filter_map(|member| cluster.channel(&member.node))
}

/// The owner lacks nothing; the others stay in order.
fn owner_first(members: &mut [Member], owner: &NodeId) {
    members.sort_by_key(|member| member.node != *owner);
}

/// The refusal of a context that no node owns.
pub fn no_owner(why: &str) -> Refusal {
    Refusal {
        message: format!("no node owns this context at the moment ({why}): try again"),
        ..Refusal::not_owner("", "")
    }
}

/// The refusal of the node that a request was sent on to, and whether it was certainly not done.
#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
pub fn refusal(status: Status) -> (Refusal, bool) {
    let is_not_owner = status
        .get_details_error_info()
        .is_some_and(|info| info.domain == ERROR_DOMAIN && info.reason == NOT_OWNER);
    // A broken connection has other codes, too.
    let is_transport = std::error::Error::source(&status).is_some();
    let code = match status.code() {
        _ if is_transport => Code::Unavailable,
        // What tonic makes of a timeout on this side.
        Code::Cancelled if status.message() == "Timeout expired" => Code::DeadlineExceeded,
        code => code,
    };
    let message = if is_transport {
        format!("the node that has the context does not answer: {}", status.message())
    } else {
        status.message().to_owned()
    };
    // Without a delay, exhausted resources are so for good.
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let retry = retry.or_else(|| (code == Code::Unavailable).then_some(RETRY_NOT_OWNER));
    let refusal = Refusal { retry, ..Refusal::new(code, message) };
    (refusal, is_not_owner)
}

/// The answer of the node that a request was sent on to.
///
/// # Errors
/// The refusal of the other node; `UNAVAILABLE` if it does not answer.
pub async fn answer<T>(answered: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Refusal> {
    answered.await.map(Response::into_inner).map_err(|status| refusal(status).0)
}

#[cfg(test)]
mod tests {
    use ledger_core::node::StorageId;

    use super::*;
    use crate::node::writers;

    #[test]
    fn what_is_sent_on_names_its_writer() {
        let mut metadata = MetadataMap::new();
        metadata.insert(writers::METADATA, tonic::metadata::MetadataValue::from_static("a"));
        let writer = Writer::of(&metadata);
        assert!(writer.is_some());
        let request = forwarded_append((), writer.as_ref());
        assert!(is_forwarded(request.metadata()));
        assert_eq!(Writer::of(request.metadata()), writer);
        assert_eq!(Writer::of(forwarded_append((), None).metadata()), None);
    }

    #[test]
    fn the_owner_is_asked_first_and_the_others_in_their_order() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let member = |name: &str| Member { node: node(name), storage: StorageId([1; 16]) };
        let names = |members: &[Member]| {
            members.iter().map(|member| member.node.to_string()).collect::<Vec<_>>().join(" ")
        };
        for (owner, expected) in [("c", "c b d a"), ("b", "b d c a"), ("x", "b d c a")] {
            let mut members = ["b", "d", "c", "a"].map(member);
            owner_first(&mut members, &node(owner));
            assert_eq!(names(&members), expected, "{owner} owns it");
        }
    }
}
