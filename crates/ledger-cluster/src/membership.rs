//! Which nodes are in the cluster, which of them are alive, and what each reports about itself.
//!
//! Every node publishes its [`Facts`] through chitchat and reads those of the others as a [`View`]. A view is one
//! node's opinion at one moment: use it to route, to display and to propose. Nothing that must be true (who may
//! append, whose promise counts) may depend on it.

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
mod ended;
pub mod facts;
mod gossip_task;
pub mod identity;
mod limits;
pub mod owned;
mod probe;
pub mod view;

pub use crate::membership::gossip::RunningNode;
pub use config::{Detector, MembershipConfig, StartError};
pub use durability::RolledBack;
pub use ended::{GossipEnded, Replaced};
pub use facts::{BadText, Facts, NodeLoad, Readiness};
pub use identity::{Identity, OtherCluster};
pub use ledger_core::node::{ClusterId, Incarnation, NodeId, StorageId};
pub use view::{View, ViewMember};

use config::{advertised, chitchat_config, fresh_chitchat};
use gossip_task::{Gossip, GossipTask, SeedGreeter};
use view::ViewBuilder;

/// This node's part in the cluster. Dropping it silences the node at once, as a crash would; [`Self::shutdown`]
/// notifies the others.
#[derive(Debug)]
pub struct Membership {
    gossip_address: SocketAddr,
    gossip_interval: Duration,
    control: GossipControl,
    facts: watch::Sender<Facts>,
    /// The readiness that the node would report with a writable disk, and whether its disk is writable.
    ready: Mutex<(Readiness, bool)>,
    view: watch::Receiver<Arc<View>>,
    lost: view::LostMembers,
    bad_values: Arc<AtomicU64>,
    most_keys: Arc<AtomicU64>,
    incarnations: Arc<AtomicU64>,
    ended: watch::Receiver<Option<GossipEnded>>,
    replaced: watch::Receiver<Option<Replaced>>,
    identity: Arc<Identity>,
    chitchat: Gossip,
    cancel: CancellationToken,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl Membership {
    /// Starts to gossip. Seeds may start later.
    ///
    /// # Errors
    /// [`StartError`] if a setting is refused or the gossip address cannot be bound.
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
        let own = chitchat_config(&config, gossip_address, &seeds);
        control.incarnations().lock().set_me(own.chitchat_id.clone());
        let chitchat = spawn_chitchat(own, values, &transport).await;
        let chitchat =
            Gossip(Arc::new(chitchat.map_err(|error| StartError::Gossip { reason: format!("{error:#}") })?));

        let me = (config.node_id.clone(), config.incarnation);
        let (bad_values, most_keys) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let incarnations = Arc::new(AtomicU64::new(0));
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
            incarnations: Arc::clone(&incarnations),
            replaced: replaced_tx,
            refreshed: 0,
            control: control.clone(),
            fresh: fresh_chitchat(&config, gossip_address, &seeds),
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
            incarnations,
            ended,
            replaced,
            identity,
            chitchat,
            cancel,
            tasks: Mutex::new(tasks),
        })
    }

    /// Watches the members as this node sees them.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Returns the UDP address at which other nodes reach this one.
    pub fn gossip_address(&self) -> SocketAddr {
        self.gossip_address
    }

    /// Returns the process that already runs under this node's name, from another directory or on another machine, if
    /// it responds. Call this before the node takes the name.
    pub async fn find_namesake(config: &MembershipConfig, storage: StorageId) -> Option<RunningNode> {
        probe::find_namesake(config, storage, config.identity.cluster()).await
    }

    /// Returns which cluster this node belongs to, and which other clusters it hears.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Sets the cluster that this node belongs to, and announces it.
    pub(crate) fn set_cluster(&self, id: ClusterId) {
        self.control.belongs(id);
    }

    /// Returns what happened to the datagrams so far.
    pub fn counts(&self) -> GossipCounts {
        self.control.counts()
    }

    /// Returns how many values of other nodes were malformed and ignored so far.
    pub fn bad_values(&self) -> u64 {
        self.bad_values.load(Ordering::Relaxed)
    }

    /// Returns the number of gossip keys of the node with the most. It does not depend on the number of contexts.
    pub fn most_keys(&self) -> u64 {
        self.most_keys.load(Ordering::Relaxed)
    }

    /// Returns the number of incarnations of nodes that gossip names, this node's own among them.
    pub fn incarnations(&self) -> u64 {
        self.incarnations.load(Ordering::Relaxed)
    }

    /// Announces what this node is ready for.
    pub fn set_readiness(&self, readiness: Readiness) {
        let mut ready = self.ready.lock();
        ready.0 = readiness;
        self.say_ready(*ready);
    }

    /// Announces whether this node's disk accepts writes.
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

    /// Announces which slots this node owns; if a slot is given twice, the highest epoch counts.
    pub fn set_owned(&self, owned: Vec<(Slot, Epoch)>) {
        self.set(|facts| &mut facts.owned, owned);
    }

    /// Announces for which of its slots this node accepts no appends at the moment.
    pub fn set_halted(&self, halted: Vec<Slot>) {
        self.set(|facts| &mut facts.halted, halted);
    }

    /// Sets all members that an operator ever declared lost: if one returns, it counts for nothing.
    pub fn set_lost(&self, lost: Arc<ledger_core::ownership::DeclaredLosses>) {
        *self.lost.write() = lost;
    }

    /// Announces whether this node is being decommissioned.
    pub fn set_decommission(&self, leaving: Option<DecommissionMode>) {
        self.set(|facts| &mut facts.decommission, leaving);
    }

    /// Announces how far this node's data directory is durable; an earlier announcement remains true. Each change
    /// travels to all nodes, so call this about once a second.
    pub fn set_durable(&self, mark: u64) {
        self.set(|facts| &mut facts.durable, Some(mark));
    }

    /// Announces this node's load. Each change travels to all nodes, so round the figures and set them every few
    /// seconds.
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

    /// Replaces the cluster's keys, from the next datagram on. See [`Keyring`] for the steps of a rotation.
    pub fn set_keyring(&self, keyring: Keyring) {
        self.control.set_keyring(keyring);
    }

    /// Waits until this node hears of a later start of itself.
    pub fn replaced(&self) -> impl Future<Output = Replaced> + use<> {
        let mut replaced = self.replaced.clone();
        async move {
            if let Ok(found) = replaced.wait_for(Option::is_some).await
                && let Some(replaced) = &*found
            {
                return replaced.clone();
            }
            // The membership was dropped.
            std::future::pending().await
        }
    }

    /// Returns whether this node heard of a later start of itself.
    pub fn is_replaced(&self) -> bool {
        self.replaced.borrow().is_some()
    }

    /// Waits for gossip to end by itself, which it should not.
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

    /// Notifies the other nodes that this one is leaving, and stops. Takes less than a second, or less than three
    /// gossip intervals if those are shorter.
    pub async fn shutdown(self) {
        self.leave().await;
    }

    /// Does what [`Membership::shutdown`] does, for a shared membership.
    pub async fn leave(&self) {
        self.set_readiness(Readiness::Leaving);
        let mut view = self.view.clone();
        let said = view.wait_for(|view| view.me().is_none_or(|me| me.readiness == Readiness::Leaving));
        // Without a reply the gossip task is gone, and nobody can say goodbye.
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
        // Both fail only if the server is gone already.
        drop(self.chitchat.0.initiate_shutdown());
        drop(timeout(GOODBYE_PAUSE, gone).await);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.chitchat.0.abort();
    }
}

/// How often a leaving node notifies each living peer, because datagrams get lost.
const GOODBYES: u32 = 3;
const GOODBYE_PAUSE: Duration = Duration::from_millis(250);
