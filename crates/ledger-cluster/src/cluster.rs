//! A node's part in a cluster, as its server holds it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
    time::{Duration, Instant},
};

use ledger_core::{
    node::{Member, NodeId, ReplicaSet, StorageId},
    ownership::{
        SlotManager, SlotRecord,
        slot_manager::{Event, OwnershipSettings},
    },
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::replica_service_server::ReplicaServiceServer;
use ledger_store::{Ledger, StoreError, budget::Share};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    catch_up::healing,
    catch_up::sync_slots,
    catch_up::throttle::CatchUpThrottle,
    config::ClusterConfig,
    membership::known_nodes,
    membership::seal::{Keyring, Sealer},
    membership::{Membership, Replaced, RunningNode, StartError, View, facts::Readiness},
    ownership::decommission::{self, DecommissionState},
    ownership::driver::Driver,
    ownership::formation::{self, FormationFence},
    ownership::recovery::{self, Decisions},
    ownership::routes::Routes,
    ownership::stale_volume::{self, Reidentified},
    peers::call_auth::{CallAuthenticator, Credentials, operators::OperatorAuthenticator},
    peers::service::Replicas,
    peers::{ChannelUse, Peers},
    replicate::leases::Leases,
    replicate::owner_stream::MAX_MESSAGE,
    shared::{Counters, Shared, StreamOutbox},
};

/// What waits for the driver.
const DRIVER_QUEUE: usize = 1024;
/// Crowds of slots that wait to be brought in step.
const SYNC_QUEUE: usize = 256;

/// Why a node did not join its cluster.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Gossip did not start.
    #[error(transparent)]
    Gossip(#[from] StartError),
    /// The data directory cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data directory was made another one: start the node again.
    #[error(transparent)]
    Reidentified(#[from] Reidentified),
    /// Another process runs under the node's name, and is well.
    #[error(
        "another process runs as node {node}: it gossips at {}, its gRPC services are at {}, its data directory is {}; stop that one first, or \
         give this one a node_id of its own", .found.gossip, .found.grpc, .found.storage
    )]
    NameTaken {
        /// The name.
        node: NodeId,
        /// Who has it.
        found: RunningNode,
    },
}

/// Makes a directory another one that has lost what it promised.
async fn reidentify_forgotten(ledger: &Ledger) -> Reidentified {
    let of = ledger.clone();
    let slots =
        move || (0..SLOTS).filter_map(Slot::new).filter(|slot| of.slot_record(*slot).is_err()).count();
    let count = ledger_store::blocking::spawn(slots).await.unwrap_or_default();
    let ledger = ledger.clone();
    let renewed =
        ledger_store::blocking::spawn(move || stale_volume::reidentify_forgotten(&ledger, count)).await;
    renewed.unwrap_or_else(|error| Reidentified::RecordsUnreadable {
        slots: count,
        reason: StoreError::Io(error.to_string()),
    })
}

/// A node's part in a cluster. Dropping it falls silent at once, as a crash would.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) shared: Arc<Shared>,
    pub(crate) membership: Arc<Membership>,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl Cluster {
    /// Joins the cluster. The ledger was opened for one ([`ledger_store::Options::clustered`]).
    ///
    /// # Errors
    /// [`JoinError`]: the name is taken, gossip cannot begin, or the store cannot be used.
    pub async fn join(ledger: Ledger, mut config: ClusterConfig) -> Result<Self, JoinError> {
        let me = Member { node: config.membership.node_id.clone(), storage: ledger.storage() };
        let read = {
            let ledger = ledger.clone();
            let read = move || {
                Ok::<_, StoreError>((
                    ledger.slot_records()?,
                    DecommissionState::read(&ledger)?,
                    Decisions::read(&ledger)?,
                ))
            };
            ledger_store::blocking::spawn(read).await
        };
        let (records, departure, decisions) = match read.map_err(|error| StoreError::Io(error.to_string()))? {
            // What was promised is lost: only as a new member may it take part.
            Err(StoreError::SlotDamaged { .. }) => return Err(reidentify_forgotten(&ledger).await.into()),
            read => read?,
        };
        let (events, told) = mpsc::channel(DRIVER_QUEUE);
        let (from_lanes, lanes) = mpsc::unbounded_channel();
        let (sync_tasks, followed) = mpsc::channel(SYNC_QUEUE);
        let incarnation = config.membership.incarnation;
        let sealer = Sealer::new(&config.membership.cluster_id, config.membership.keyring.clone());
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let settings = OwnershipSettings {
            replication_factor: config.replication_factor,
            write_quorum: config.write_quorum,
            first_nodes: config.first_nodes.clone(),
            placement_grace: millis(config.placement_grace),
            max_staleness: config.max_staleness.map(millis),
            settle_time: millis(config.membership.gossip_interval.saturating_mul(4)),
            ..OwnershipSettings::default()
        };
        config.facts.opened = Some(ledger.opening_index());
        config.facts.durable = Some(ledger.durable_index());
        let directory = ledger.directory().to_owned();
        let addresses = {
            let directory = directory.clone();
            ledger_store::blocking::spawn(move || known_nodes::read(&directory)).await.unwrap_or_default()
        };
        config.membership.known = addresses.values().map(|(gossip, _)| *gossip).collect();
        let belongs = *ledger.cluster_id().borrow();
        if let Some(id) = belongs {
            config.membership.identity.set_cluster(id);
        }
        let first = records.iter().find(|(slot, _)| *slot == Slot::FIRST);
        let forming = first.and_then(|(_, record)| record.forming());
        config.membership.identity.set_known_nodes(members_of(&records), forming);
        if let Some(found) = Membership::find_namesake(&config.membership, me.storage).await {
            return Err(JoinError::NameTaken { node: me.node, found });
        }
        config.facts.decommission = departure.mode;
        let membership = Membership::start(config.membership.clone(), config.facts.clone()).await?;
        let membership = Arc::new(membership);
        let credentials = Arc::new(Credentials::new(me.clone(), incarnation, sealer));
        let highest = records.iter().map(|(_, record)| record.highest_epoch()).max().unwrap_or_default();
        membership.set_lost(Arc::clone(&decisions.declared().borrow()));
        let shared = Arc::new(Shared {
            peers: Peers::new(
                config.tls.clone(),
                Arc::clone(&credentials),
                Share::new("replication", config.replication),
            ),
            replicated: Share::new("replicated", config.replicated),
            serving: Share::new("serving", config.serving),
            me: me.clone(),
            ledger: ledger.clone(),
            config,
            credentials,
            formation: FormationFence::default(),
            is_forming: AtomicBool::new(false),
            highest: AtomicU64::new(highest.0),
            events,
            from_lanes,
            sync_tasks,
            routes: watch::Sender::default(),
            hidden: watch::Sender::default(),
            started: Instant::now(),
            incoming: Mutex::default(),
            throttle: Arc::new(CatchUpThrottle::new(Instant::now())),
            counters: Counters::default(),
            view: membership.view(),
            rolled_back: OnceLock::new(),
            reidentified: watch::Sender::default(),
            decommission: watch::Sender::new(departure),
            decommission_status: watch::Sender::default(),
            decisions,
            cancel: CancellationToken::new(),
        });
        // Nothing is shown before this node knows that it is a member.
        for slot in (0..SLOTS).filter_map(Slot::new) {
            ledger.set_lease(slot, Some(shared.started), true);
        }
        let runtime = tokio::runtime::Handle::current();
        ledger.set_outbox(Arc::new(StreamOutbox { shared: Arc::downgrade(&shared), runtime }));
        let driver = Driver {
            shared: Arc::clone(&shared),
            membership: Arc::clone(&membership),
            slots: SlotManager::new(me.clone(), settings, records, 0),
            is_identified: false,
            events: told,
            from_lanes: lanes,
            leases: Leases::default(),
            published: Instant::now(),
            durable_index_sent: Instant::now(),
            alive: std::collections::BTreeSet::new(),
            streams: std::collections::HashMap::new(),
            owned: Vec::new(),
            requesters: std::collections::HashMap::new(),
            changer: None,
        };
        let tasks = vec![
            AbortOnDropHandle::new(tokio::spawn(driver.run())),
            AbortOnDropHandle::new(tokio::spawn(sync_slots::run(Arc::clone(&shared), followed))),
            AbortOnDropHandle::new(tokio::spawn(compare(Arc::clone(&shared)))),
            AbortOnDropHandle::new(tokio::spawn(healing::run(Arc::clone(&shared)))),
            AbortOnDropHandle::new(tokio::spawn(stale_volume::watch_records(Arc::clone(&shared)))),
            AbortOnDropHandle::new(tokio::spawn(formation::keep(
                Arc::clone(&shared),
                Arc::clone(&membership),
            ))),
            AbortOnDropHandle::new(tokio::spawn(known_nodes::keep(
                directory,
                addresses,
                me.node,
                membership.view(),
            ))),
            AbortOnDropHandle::new(tokio::spawn(decommission::run(Arc::clone(&shared)))),
            AbortOnDropHandle::new(tokio::spawn(recovery::run(Arc::clone(&shared), Arc::clone(&membership)))),
        ];
        let is_leaving = departure.mode.is_some();
        membership.set_readiness(if is_leaving { Readiness::Draining } else { Readiness::Ready });
        Ok(Self { shared, membership, tasks: Mutex::new(tasks) })
    }

    /// The service for the other nodes.
    pub fn service(&self) -> CallAuthenticator<ReplicaServiceServer<Replicas>> {
        let service = ReplicaServiceServer::new(Replicas(Arc::clone(&self.shared)))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(usize::MAX);
        CallAuthenticator::new(service, Arc::clone(&self.shared))
    }

    /// A service of which some methods are operators': who proves to have the cluster's key is told to it as an
    /// [`Operator`](crate::peers::call_auth::operators::Operator).
    pub fn for_operators<S>(&self, service: S) -> OperatorAuthenticator<S> {
        OperatorAuthenticator::new(service, Arc::clone(&self.shared))
    }

    /// This node.
    pub fn me(&self) -> &Member {
        &self.shared.me
    }

    /// Returns the memory for commits that wait for other nodes, for commits of others that are being written, and for entries
    /// on their way to nodes that catch up.
    pub fn shares(&self) -> [Arc<Share>; 3] {
        let Shared { replicated, serving, .. } = &*self.shared;
        [Arc::clone(self.shared.peers.share()), Arc::clone(replicated), Arc::clone(serving)]
    }

    /// The settings.
    pub fn config(&self) -> &ClusterConfig {
        &self.shared.config
    }

    /// The nodes as this one sees them, from now on.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.membership.view()
    }

    /// Where slots are, from now on.
    pub fn routes(&self) -> watch::Receiver<Arc<Routes>> {
        self.shared.routes.subscribe()
    }

    /// How often a slot was no longer shown here though it was, from now on: whoever reads it looks elsewhere.
    pub fn watch_hidden(&self) -> watch::Receiver<u64> {
        self.shared.hidden.subscribe()
    }

    /// The membership, for what it counts.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Exchanges the cluster's keys.
    pub fn set_keyring(&self, keyring: Keyring) {
        let sealer = &self.shared.credentials.sealer;
        let next = sealer.read().with_keyring(keyring.clone());
        *sealer.write() = next;
        self.membership.set_keyring(keyring);
    }

    /// Owns nothing from now on (`true`), or what is this node's again. Slots go to others as far as there are
    /// some that hold them; [`Cluster::routes`] shows how many are left.
    pub async fn drain(&self, is_draining: bool) {
        let readiness = if is_draining { Readiness::Draining } else { Readiness::Ready };
        self.membership.set_readiness(readiness);
        self.shared.send_events(vec![Event::Drain(is_draining)]).await;
    }

    /// The connection to another node, for requests that are forwarded to it.
    pub fn channel(&self, node: &ledger_core::node::NodeId) -> Option<tonic::transport::Channel> {
        let view = self.membership.view();
        let member = {
            let view = view.borrow();
            let found = view.get(node)?;
            Member { node: found.node_id.clone(), storage: found.storage_id }
        };
        let peer = self.shared.peers.get(&member)?;
        self.shared.peers.channel_for(&peer, ChannelUse::Requests).ok()
    }

    /// Waits until this node's data directory turns out to be older than what the node had said. It is another one then,
    /// and the ledger is closed: start the node again.
    pub fn reidentified(&self) -> impl Future<Output = Reidentified> + use<> {
        let mut renewed = self.shared.reidentified.subscribe();
        async move {
            if let Ok(found) = renewed.wait_for(Option::is_some).await
                && let Some(renewed) = &*found
            {
                return renewed.clone();
            }
            // The node stopped for another reason.
            std::future::pending().await
        }
    }

    /// Waits until this process is not the node any more, because a later start of it is there: heard in gossip, or told by
    /// another node.
    pub fn replaced(&self) -> impl Future<Output = Replaced> + use<> {
        let (heard, mut told) = (self.membership.replaced(), self.shared.credentials.replaced.subscribe());
        async move {
            tokio::select! {
                replaced = heard => replaced,
                Ok(told) = told.wait_for(Option::is_some) => match &*told {
                    Some(replaced) => replaced.clone(),
                    None => std::future::pending().await,
                },
                else => std::future::pending().await,
            }
        }
    }

    /// Whether this process is not the node any more: see [`Cluster::replaced`].
    pub fn is_replaced(&self) -> bool {
        self.membership.is_replaced() || self.shared.credentials.replaced.borrow().is_some()
    }

    /// Whether the node cannot go on: see [`Cluster::reidentified`].
    pub fn is_reidentified(&self) -> bool {
        self.shared.rolled_back.get().is_some() || self.shared.reidentified.borrow().is_some()
    }

    /// Says goodbye and stops. Drain first: what is owned until then has no owner for a moment.
    pub async fn leave(&self) {
        self.membership.set_durable(self.shared.ledger.durable_index());
        self.membership.leave().await;
        self.shared.cancel.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            task.abort();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

/// The data directories that records of slots name.
pub(crate) fn members_of(records: &[(Slot, SlotRecord)]) -> BTreeSet<StorageId> {
    let placements = records.iter().filter_map(|(_, record)| record.placement.as_ref());
    let sets =
        placements.flat_map(|placement| std::iter::once(&placement.members).chain(&placement.previous));
    sets.flat_map(ReplicaSet::members).map(|member| member.storage).collect()
}

/// Compares with the replicas from time to time.
async fn compare(shared: Arc<Shared>) {
    let mut tick = interval(shared.config.anti_entropy_interval.max(Duration::from_millis(100)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let slots: Vec<Slot> = (0..SLOTS).filter_map(Slot::new).collect();
    loop {
        tick.tick().await;
        for peer in shared.peers.alive() {
            if shared.ledger.send_digest_checkpoint(peer.number, slots.clone()).await.is_err() {
                return;
            }
        }
    }
}
