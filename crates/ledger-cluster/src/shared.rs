//! What the parts of a node's cluster runtime share.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use ledger_core::{
    Epoch,
    node::{Member, NodeId},
    ownership::{
        Claim,
        slot_manager::{Event, Millis, SlotKnowledge},
    },
    plausible::PlausibleBounds,
    replication::Peer,
    slot::Slot,
};
use ledger_store::{
    Ledger, StoreError,
    budget::Share,
    limited,
    replicate::replica::{Outbox, Outgoing, RecordChange, RecordChanged, StagingRequest},
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, metadata::MetadataMap};

use crate::{
    catch_up::throttle::CatchUpThrottle,
    config::ClusterConfig,
    membership::{RolledBack, View},
    ownership::decommission::{DecommissionState, DecommissionStatus},
    ownership::formation::FormationFence,
    ownership::recovery::Decisions,
    ownership::routes::Routes,
    ownership::stale_volume::Reidentified,
    peers::Peers,
    peers::call_auth::{self, Credentials},
    peers::wire,
    replicate::staging,
};

/// What the parts share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) me: Member,
    pub(crate) ledger: Ledger,
    pub(crate) config: ClusterConfig,
    pub(crate) credentials: Arc<Credentials>,
    /// Until the cluster has an identity: who asked this node whether it belongs to one, and whether it is about to form one.
    pub(crate) formation: FormationFence,
    pub(crate) is_forming: AtomicBool,
    /// The highest epoch known of any slot: what others send is compared with it.
    pub(crate) highest: AtomicU64,
    pub(crate) peers: Peers,
    /// Memory for what other nodes' lanes wrote, until it is written here.
    pub(crate) replicated: Arc<Share>,
    /// Memory for entries on their way to nodes that catch up.
    pub(crate) serving: Arc<Share>,
    /// To the driver.
    pub(crate) events: mpsc::Sender<DriverMessage>,
    /// To the driver, from lanes, which must not wait: at most one for each slot that was stopped.
    pub(crate) from_lanes: mpsc::UnboundedSender<Vec<Event>>,
    /// To the followers: slots to bring in sync with an owner.
    pub(crate) sync_tasks: mpsc::Sender<SyncTask>,
    pub(crate) routes: watch::Sender<Arc<Routes>>,
    /// How often a slot was no longer shown, because its lease ended or the node left it.
    pub(crate) hidden: watch::Sender<u64>,
    /// What the driver's time is counted from.
    pub(crate) started: Instant,
    /// Streams from other nodes, so that a new one ends the old one first.
    pub(crate) incoming: Mutex<BTreeMap<NodeId, Incoming>>,
    /// What others that catch up may be given.
    pub(crate) throttle: Arc<CatchUpThrottle>,
    pub(crate) counters: Counters,
    /// The nodes as this one sees them.
    pub(crate) view: watch::Receiver<Arc<View>>,
    /// This node's directory turned out to be older than it had said …
    pub(crate) rolled_back: OnceLock<RolledBack>,
    /// … and how that ended.
    pub(crate) reidentified: watch::Sender<Option<Reidentified>>,
    /// Whether this node leaves for good …
    pub(crate) decommission: watch::Sender<DecommissionState>,
    /// … and how far it is.
    pub(crate) decommission_status: watch::Sender<DecommissionStatus>,
    /// What operators decided after losses.
    pub(crate) decisions: Decisions,
    pub(crate) cancel: CancellationToken,
}

/// The stream from another node: there is one at a time.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    /// Held as long as it is served.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// Ends it.
    pub(crate) ends: CancellationToken,
}

/// What the driver is told.
#[derive(Debug)]
pub(crate) enum DriverMessage {
    /// These happened.
    Events(Vec<Event>),
    /// Owners hand slots over to this node. The answer names those that it does not take.
    Handover(Vec<(Slot, Claim)>, oneshot::Sender<BTreeSet<Slot>>),
    /// Another node asks what is known of slots.
    SlotQuery(Vec<Slot>, oneshot::Sender<Vec<(Slot, SlotKnowledge)>>),
    /// The stream to a peer is lost. The answer comes when the lanes know: before that no other may be begun.
    PeerDisconnected(Member, oneshot::Sender<()>),
}

/// Slots that this node does not hold as their owner does.
#[derive(Debug)]
pub(crate) struct SyncTask {
    pub(crate) owner: Member,
    pub(crate) slots: BTreeMap<Slot, Claim>,
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Entries fetched to catch up.
    pub fetched_entries: AtomicU64,
    /// Bytes of them.
    pub fetched_bytes: AtomicU64,
    /// Damaged contexts that were restored from another node.
    pub healed: AtomicU64,
    /// Histories left for the owner's.
    pub forks: AtomicU64,
    /// Comparisons with other nodes.
    pub comparisons: AtomicU64,
    /// Questions that they took: round trips.
    pub questions: AtomicU64,
    /// Bytes of these questions and of the answers.
    pub compared_bytes: AtomicU64,
    /// Microseconds that they took, until all that differs was known.
    pub comparing_us: AtomicU64,
    /// Contexts that differed.
    pub differing: AtomicU64,
    /// Slots that are being brought in sync with their owners now.
    pub catching_up: AtomicU64,
    /// Marks of owners that were compared with what is here.
    pub digest_checkpoints: AtomicU64,
    /// Those of them that differed.
    pub differences: AtomicU64,
    /// Takeovers that this node completed.
    pub takeovers: AtomicU64,
    /// Slots that their owner asked this node to take over.
    pub handovers: AtomicU64,
    /// Streams to other nodes that were lost.
    pub streams_lost: AtomicU64,
    /// Calls of the service for nodes that were refused at the door: without a proof, or with one that was used before.
    pub calls_refused: AtomicU64,
    /// Messages of other nodes that were refused because a number in them cannot be true.
    pub implausible: AtomicU64,
}

impl Counters {
    pub(crate) fn count_digest_checkpoint(&self, is_different: bool) {
        self.digest_checkpoints.fetch_add(1, Ordering::Relaxed);
        self.differences.fetch_add(is_different.into(), Ordering::Relaxed);
    }
}

impl Shared {
    /// Tells the driver; waits while it has much to do.
    pub(crate) async fn send_events(&self, events: Vec<Event>) {
        // It is gone only when the node stops.
        let _ = self.events.send(DriverMessage::Events(events)).await;
    }

    /// Tells the driver that slots are handed over to this node; gives those that it does not take.
    pub(crate) async fn hand_over(&self, slots: Vec<(Slot, Claim)>) -> BTreeSet<Slot> {
        let (declined, known) = oneshot::channel();
        let _ = self.events.send(DriverMessage::Handover(slots, declined)).await;
        // Without an answer the node stops.
        known.await.unwrap_or_default()
    }

    /// What this node knows of slots, by all that it was told before.
    pub(crate) async fn query_slots(&self, slots: Vec<Slot>) -> Vec<(Slot, SlotKnowledge)> {
        let (answer, known) = oneshot::channel();
        let _ = self.events.send(DriverMessage::SlotQuery(slots, answer)).await;
        // Without an answer the node stops.
        known.await.unwrap_or_default()
    }

    /// The time by the driver's clock.
    pub(crate) fn now(&self) -> Millis {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Changes this node's records because another node asks, and tells the driver. Both are done even if the other one does
    /// not wait for the answer: the lanes act on a promise at once, so a driver that did not hear of it would go on
    /// owning what no lane takes appends for.
    pub(crate) async fn change_slots(
        self: &Arc<Self>,
        changes: Vec<(Slot, RecordChange)>,
    ) -> Result<Vec<(Slot, RecordChanged)>, StoreError> {
        let shared = Arc::clone(self);
        let changed = tokio::spawn(async move {
            let changed = shared.ledger.change_slots(changes).await?;
            let recorded =
                changed.iter().map(|(slot, changed)| Event::RecordChanged(*slot, changed.record.clone()));
            shared.send_events(recorded.collect()).await;
            Ok(changed)
        });
        changed.await.unwrap_or_else(|error| Err(StoreError::Io(error.to_string())))
    }

    /// Tells the driver that the stream to a peer is lost, and waits until the lanes know.
    pub(crate) async fn peer_disconnected(&self, peer: &Member) {
        let (done, known) = oneshot::channel();
        if self.events.send(DriverMessage::PeerDisconnected(peer.clone(), done)).await.is_ok() {
            // Without an answer the node stops.
            let _ = known.await;
        }
    }

    /// Whether a member's directory is older than what was heard of it: nothing that it promises or holds counts.
    pub(crate) fn rolled_back(&self, member: &Member) -> Option<RolledBack> {
        let view = self.view.borrow();
        view.get(&member.node).filter(|known| known.storage_id == member.storage)?.rolled_back
    }

    /// Refuses if this node's own directory is older than what it had said.
    pub(crate) fn check_not_rolled_back(&self) -> Result<(), Status> {
        if self.rolled_back.get().is_none() && self.rolled_back(&self.me).is_none() {
            return Ok(());
        }
        Err(Status::unavailable("this node's data directory is older than it was: it joins anew"))
    }

    /// Whether the stream from a node is up. The one to it may be, or not, all the same.
    pub(crate) fn is_served(&self, node: &NodeId) -> bool {
        self.incoming.lock().get(node).is_some_and(|incoming| incoming.turn.try_lock().is_err())
    }

    /// Forgets the nodes that `is_known` does not name and that no stream comes from or waits to.
    pub(crate) fn forget_streams(&self, is_known: impl Fn(&NodeId) -> bool) {
        let mut incoming = self.incoming.lock();
        // Who has or waits for the turn took it with this lock.
        incoming.retain(|node, incoming| is_known(node) || Arc::strong_count(&incoming.turn) > 1);
    }

    /// Who calls, as the door found out.
    pub(crate) fn caller(&self, metadata: &MetadataMap) -> Result<NodeId, Status> {
        self.check_not_rolled_back()?;
        call_auth::caller(metadata)
    }

    /// What numbers of other nodes are compared with.
    pub(crate) fn bounds(&self) -> PlausibleBounds {
        PlausibleBounds::above(Epoch(self.highest.load(Ordering::Relaxed)))
    }

    /// Notes the highest epoch known.
    pub(crate) fn note_epoch(&self, epoch: Epoch) {
        self.highest.fetch_max(epoch.0, Ordering::Relaxed);
    }

    /// Refuses what a node sent. Says so if it has the form and cannot be true: nodes do not err in that.
    pub(crate) fn reject(&self, from: &NodeId, error: &wire::RejectedMessage) -> Status {
        if matches!(error, wire::RejectedMessage::Implausible(_)) {
            self.counters.implausible.fetch_add(1, Ordering::Relaxed);
            limited!(error, %from, %error, "what a node sent is refused: a number in it cannot be true; if it goes on, look after that node");
        }
        Status::invalid_argument(error.to_string())
    }

    /// Whether a request means this node with this data directory.
    pub(crate) fn is_me(&self, to: &Member) -> Result<(), Status> {
        if *to == self.me {
            return Ok(());
        }
        Err(Status::failed_precondition(format!("this is {}, and not {to}", self.me)))
    }
}

/// What the lanes send their messages with.
#[derive(Debug)]
pub(crate) struct StreamOutbox {
    pub(crate) shared: Weak<Shared>,
    /// Of the node: lanes and loads have threads of their own.
    pub(crate) runtime: tokio::runtime::Handle,
}

impl Outbox for StreamOutbox {
    fn send(&self, peer: Peer, what: Outgoing) {
        if let Some(shared) = self.shared.upgrade() {
            shared.peers.send(peer, what);
        }
    }

    fn request_staging(&self, peer: Peer, spread: StagingRequest) {
        if let Some(shared) = self.shared.upgrade() {
            self.runtime.spawn(staging::request_staging(shared, peer, spread));
        }
    }

    fn restart(&self, peer: Peer) {
        if let Some(peer) = self.shared.upgrade().and_then(|shared| shared.peers.numbered(peer)) {
            peer.restart();
        }
    }

    fn stopped(&self, slot: Slot, claim: Claim) {
        if let Some(shared) = self.shared.upgrade() {
            let _ = shared.from_lanes.send(vec![Event::AppendsStopped(slot, claim)]);
        }
    }

    fn ownership_lost(&self, slots: Vec<Slot>) {
        if let Some(shared) = self.shared.upgrade() {
            let _ = shared.from_lanes.send(slots.into_iter().map(Event::OwnershipLost).collect());
        }
    }
}
