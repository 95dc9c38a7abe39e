//! Who is in the cluster, who is alive, and what each node says of itself.
//!
//! Every node publishes its [`Facts`] through chitchat and reads those of the others as a [`View`]. A view is
//! one node's opinion at one moment: it serves to route, to show and to propose. Nothing that must be true
//! (who may append, who counts for a promise) is ever read off it.

pub mod gossip;
pub(crate) mod known_nodes;
pub mod seal;
pub mod seeds;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chitchat::spawn_chitchat;
use ledger_core::{Epoch, ownership::slot_manager::DecommissionMode, slot::Slot};
use parking_lot::Mutex;
use tokio::{
    net::UdpSocket,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    membership::gossip::{GossipControl, GossipCounts, SealedTransport},
    membership::seal::{Keyring, Sealer},
    membership::seeds::{Resolver, Seeds},
};

mod config;
pub mod durability;
pub mod facts;
mod gossip_task;
pub mod identity;
pub mod owned;
mod probe;
pub mod view;

pub use crate::membership::gossip::RunningNode;
pub use config::{Detector, MembershipConfig, StartError};
pub use durability::RolledBack;
pub use facts::{BadText, Facts, NodeLoad, Readiness};
pub use identity::{Identity, OtherCluster};
pub use ledger_core::node::{ClusterId, Incarnation, NodeId, StorageId};
pub use view::{View, ViewMember};

use config::{advertised, chitchat_config};
use gossip_task::{Gossip, GossipTask, SeedGreeter};
use view::ViewBuilder;

/// Gossip ended though nobody asked it to. The view is stale from then on: stop the node, or start the
/// membership again with a higher incarnation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gossip ended by itself ({reason}): this node no longer sees the cluster and must start anew")]
pub struct GossipEnded {
    /// What is known of the cause.
    pub reason: String,
}

/// A later start of this node is there: this process is not the node any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "another process runs as this node, {node}, since this one was started (start {incarnation}, this one is {this_start}{}): this one ends, and what \
     it knows may be old; started again it takes part if the other one is gone", at(.grpc_address)
)]
pub struct Replaced {
    /// The node's name.
    pub node: NodeId,
    /// The later start.
    pub incarnation: Incarnation,
    /// This one.
    pub this_start: Incarnation,
    /// Where the later one's gRPC services are; empty if that is not known.
    pub grpc_address: String,
}

fn at(address: &str) -> String {
    if address.is_empty() { String::new() } else { format!(", at {address}") }
}

/// This node's part in the cluster. Dropping it falls silent at once, as a crash would; [`Self::shutdown`] says
/// goodbye.
#[derive(Debug)]
pub struct Membership {
    gossip_address: SocketAddr,
    gossip_interval: Duration,
    control: GossipControl,
    facts: watch::Sender<Facts>,
    /// What it would be ready for with a disk that takes writes, and whether it has one.
    ready: Mutex<(Readiness, bool)>,
    view: watch::Receiver<Arc<View>>,
    lost: view::LostMembers,
    bad_values: Arc<AtomicU64>,
    most_keys: Arc<AtomicU64>,
    ended: watch::Receiver<Option<GossipEnded>>,
    replaced: watch::Receiver<Option<Replaced>>,
    identity: Arc<Identity>,
    chitchat: Gossip,
    cancel: CancellationToken,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl Membership {
    /// Starts to gossip. Seeds need not be there yet.
    pub async fn start(config: MembershipConfig, facts: Facts) -> Result<Self, StartError> {
        config.validate()?;
        facts.validate()?;
        let seeds = Seeds::parse(&config.seeds)?;
        let bind = |source| StartError::Bind { address: config.gossip_listen, source };
        let socket = UdpSocket::bind(config.gossip_listen).await.map_err(bind)?;
        let gossip_address = advertised(socket.local_addr().map_err(bind)?, config.gossip_advertise)?;

        let ready = Mutex::new((facts.readiness, true));
        let sealer = Sealer::new(&config.cluster_id, config.keyring.clone());
        let identity = Arc::clone(&config.identity);
        let control = GossipControl::of(&sealer, Arc::clone(&identity), facts.storage_id);
        let transport = SealedTransport::new(socket, control.clone());
        let values = facts.to_values();
        let chitchat =
            spawn_chitchat(chitchat_config(&config, gossip_address, &seeds), values, &transport).await;
        let chitchat =
            Gossip(Arc::new(chitchat.map_err(|error| StartError::Gossip { reason: format!("{error:#}") })?));

        let me = (config.node_id, config.incarnation);
        let (bad_values, most_keys) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (facts, facts_rx) = watch::channel(facts);
        let (view_tx, view) = watch::channel(Arc::new(View::empty(me.clone())));
        control.sees(view.clone());
        let (ended_tx, ended) = watch::channel(None);
        let (replaced_tx, replaced) = watch::channel(None);
        let (cancel, lost) = (CancellationToken::new(), view::LostMembers::default());
        let mut keeper = GossipTask {
            chitchat: chitchat.clone(),
            facts: facts_rx,
            view: view_tx,
            roster: ViewBuilder::new(
                me,
                config.detector.min_silence,
                Arc::clone(&identity),
                Arc::clone(&lost),
            ),
            identity: Arc::clone(&identity),
            bad_values: Arc::clone(&bad_values),
            most_keys: Arc::clone(&most_keys),
            replaced: replaced_tx,
            refreshed: 0,
        };
        keeper.refresh(&[]).await;
        let run = keeper.run(config.gossip_interval, ended_tx, cancel.clone());
        let mut tasks = vec![AbortOnDropHandle::new(tokio::spawn(run))];
        if seeds.has_names() || !config.known.is_empty() {
            let greeter = SeedGreeter {
                chitchat: chitchat.clone(),
                known: config.known.clone(),
                resolver: Resolver::new(&seeds, config.gossip_listen),
                refresh: config.seed_refresh,
                alone: config.seed_refresh.min(config.gossip_interval.max(Duration::from_millis(500))),
            };
            let cancel = cancel.clone();
            let run = async move { cancel.run_until_cancelled(greeter.run()).await.unwrap_or_default() };
            tasks.push(AbortOnDropHandle::new(tokio::spawn(run)));
        }
        Ok(Self {
            gossip_address,
            gossip_interval: config.gossip_interval,
            control,
            facts,
            ready,
            view,
            lost,
            bad_values,
            most_keys,
            ended,
            replaced,
            identity,
            chitchat,
            cancel,
            tasks: Mutex::new(tasks),
        })
    }

    /// The members as this node sees them, from now on.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// The UDP address others reach this node at.
    pub fn gossip_address(&self) -> SocketAddr {
        self.gossip_address
    }

    /// Who runs under this node's name already, from another directory or another machine, if it answers: to be asked before
    /// the name is taken.
    pub async fn find_namesake(config: &MembershipConfig, storage: StorageId) -> Option<RunningNode> {
        probe::find_namesake(config, storage, config.identity.cluster()).await
    }

    /// To which cluster this node belongs, and which others are heard.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// This node belongs to a cluster, and says so.
    pub(crate) fn set_cluster(&self, id: ClusterId) {
        self.control.belongs(id);
    }

    /// What became of the datagrams so far.
    pub fn counts(&self) -> GossipCounts {
        self.control.counts()
    }

    /// Values heard of other nodes that didn't parse and were left out, so far.
    pub fn bad_values(&self) -> u64 {
        self.bad_values.load(Ordering::Relaxed)
    }

    /// Keys that gossip carries for a node, of the node that has most of them: the same whatever the number of contexts.
    pub fn most_keys(&self) -> u64 {
        self.most_keys.load(Ordering::Relaxed)
    }

    /// Says what this node is ready for.
    pub fn set_readiness(&self, readiness: Readiness) {
        let mut ready = self.ready.lock();
        ready.0 = readiness;
        self.say_ready(*ready);
    }

    /// Says whether this node's disk takes writes.
    pub fn set_writable(&self, is_writable: bool) {
        let mut ready = self.ready.lock();
        ready.1 = is_writable;
        self.say_ready(*ready);
    }

    fn say_ready(&self, (readiness, is_writable): (Readiness, bool)) {
        let is_leaving = readiness == Readiness::Leaving;
        let readiness = if is_writable || is_leaving { readiness } else { Readiness::ReadOnly };
        self.set(|facts| &mut facts.readiness, readiness);
    }

    /// Says which slots this node owns; of a slot given twice the highest epoch counts.
    pub fn set_owned(&self, owned: Vec<(Slot, Epoch)>) {
        self.set(|facts| &mut facts.owned, owned);
    }

    /// Says to which of the slots it owns this node takes no appends at the moment.
    pub fn set_halted(&self, halted: Vec<Slot>) {
        self.set(|facts| &mut facts.halted, halted);
    }

    /// These members were declared lost by an operator, all there ever were: they count for nothing if they are back.
    pub fn set_lost(&self, lost: Arc<ledger_core::ownership::DeclaredLosses>) {
        *self.lost.write() = lost;
    }

    /// Says whether this node leaves for good.
    pub fn set_decommission(&self, leaving: Option<DecommissionMode>) {
        self.set(|facts| &mut facts.decommission, leaving);
    }

    /// Says how far this node's data directory is durable; what was once said stays true. Each change travels to all
    /// nodes: say it about once a second.
    pub fn set_durable(&self, mark: u64) {
        self.set(|facts| &mut facts.durable, Some(mark));
    }

    /// Says what this node has to do. Each change travels to all nodes: round the figures, and set them every
    /// few seconds.
    pub fn set_load(&self, load: NodeLoad) {
        self.set(|facts| &mut facts.load, load);
    }

    fn set<T: PartialEq>(&self, field: impl Fn(&mut Facts) -> &mut T, value: T) {
        self.facts.send_if_modified(|facts| {
            let field = field(facts);
            let changed = *field != value;
            *field = value;
            changed
        });
    }

    /// Exchanges the cluster's keys, from the next datagram on. See [`Keyring`] for the steps of a rotation.
    pub fn set_keyring(&self, keyring: Keyring) {
        self.control.set_keyring(keyring);
    }

    /// Waits until a later start of this node is heard.
    pub fn replaced(&self) -> impl Future<Output = Replaced> + use<> {
        let mut replaced = self.replaced.clone();
        async move {
            if let Ok(found) = replaced.wait_for(Option::is_some).await
                && let Some(replaced) = &*found
            {
                return replaced.clone();
            }
            // The membership is gone.
            std::future::pending().await
        }
    }

    /// Whether a later start of this node was heard.
    pub fn is_replaced(&self) -> bool {
        self.replaced.borrow().is_some()
    }

    /// Waits for gossip to end by itself, which it shouldn't.
    pub fn ended(&self) -> impl Future<Output = GossipEnded> + use<> {
        let mut ended = self.ended.clone();
        async move {
            let lost = || GossipEnded { reason: "its task is gone".to_owned() };
            ended
                .wait_for(Option::is_some)
                .await
                .map_or_else(|_| lost(), |ended| ended.clone().unwrap_or_else(lost))
        }
    }

    /// Tells the others that this node is leaving, and stops. Takes less than a second, or three of the
    /// intervals of gossip if they are shorter.
    pub async fn shutdown(self) {
        self.leave().await;
    }

    /// As [`Membership::shutdown`], for one that is shared.
    pub async fn leave(&self) {
        self.set_readiness(Readiness::Leaving);
        let mut view = self.view.clone();
        let said = view.wait_for(|view| view.me().is_none_or(|me| me.readiness == Readiness::Leaving));
        // Without an answer the keeper is gone, and there is nobody to say goodbye.
        if matches!(timeout(GOODBYE_PAUSE, said).await, Ok(Ok(_))) {
            for _ in 0..GOODBYES {
                let peers = self.chitchat.peers().await;
                if peers.is_empty() {
                    break;
                }
                for peer in peers {
                    self.chitchat.greet(peer);
                }
                sleep(self.gossip_interval.min(GOODBYE_PAUSE)).await;
            }
        }
        self.cancel.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            drop(task.await);
        }
        let gone = self.chitchat.0.termination_watcher();
        // Both fail only when the server is gone already.
        drop(self.chitchat.0.initiate_shutdown());
        drop(timeout(GOODBYE_PAUSE, gone).await);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.chitchat.0.abort();
    }
}

/// How often a leaving node tells each living peer: datagrams get lost.
const GOODBYES: u32 = 3;
const GOODBYE_PAUSE: Duration = Duration::from_millis(250);
