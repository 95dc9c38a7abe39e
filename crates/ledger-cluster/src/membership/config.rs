//! Settings of a node's gossip, and the reasons to refuse them.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use chitchat::{Chitchat, ChitchatConfig, ChitchatId, FailureDetectorConfig};
use ledger_core::node::{Incarnation, NodeId};
use tokio::sync::watch;

use super::{
    facts::{BadText, check},
    identity::Identity,
};
use crate::{
    membership::seal::Keyring,
    membership::seeds::{SeedError, Seeds},
};

/// Settings of the failure detector: phi accrual (Hayashibara et al., 2004) as chitchat implements it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detector {
    /// A node counts as dead when it is silent for this many times the mean interval between its heartbeats.
    pub phi_threshold: f64,
    /// Number of heartbeats that the mean is taken over.
    pub window: usize,
    /// The interval assumed before any was measured.
    pub initial_interval: Duration,
    /// Longer intervals do not enter the mean.
    pub max_interval: Duration,
    /// A node never counts as dead before it was silent for this long, however fast its heartbeats were.
    pub min_silence: Duration,
}

impl Detector {
    /// Returns settings that suit a gossip interval: dead after four to eight intervals of silence.
    pub fn for_interval(gossip_interval: Duration) -> Self {
        Self {
            phi_threshold: 8.0,
            window: 200,
            initial_interval: gossip_interval,
            max_interval: gossip_interval.saturating_mul(20),
            min_silence: gossip_interval.saturating_mul(4),
        }
    }
}

/// How a node takes part in gossip.
#[derive(Debug, Clone)]
pub struct MembershipConfig {
    /// The cluster's name; datagrams of other clusters are dropped.
    pub cluster_id: String,
    /// This node's permanent name.
    pub node_id: NodeId,
    /// Number of this start: higher than at any earlier start.
    pub incarnation: Incarnation,
    /// The UDP address to listen on; port 0 takes a free port.
    pub gossip_listen: SocketAddr,
    /// The UDP address at which other nodes reach this one; `None` if it is the address listened on. Port 0 stands
    /// for the port listened on.
    pub gossip_advertise: Option<SocketAddr>,
    /// Where to look for others: `host:port` or `address:port`. Nodes may start in any order.
    pub seeds: Vec<String>,
    /// The cluster's keys.
    pub keyring: Keyring,
    /// How often a node gossips, with up to three others.
    pub gossip_interval: Duration,
    /// When a node counts as dead.
    pub detector: Detector,
    /// How long a dead node stays in the view and its incarnation is remembered.
    pub dead_node_grace: Duration,
    /// Where other nodes gossiped last: contacted like seeds, as long as those nodes are not heard.
    pub known: Vec<SocketAddr>,
    /// To which cluster the node belongs.
    pub identity: Arc<Identity>,
    /// How often DNS names among the seeds are looked up while other nodes are alive; otherwise more often.
    pub seed_refresh: Duration,
}

impl MembershipConfig {
    /// Returns the default settings: gossip twice a second, dead after two to four seconds of silence, remembered for
    /// an hour, names looked up every 30 seconds; no seeds, no keys.
    pub fn new(
        cluster_id: impl Into<String>,
        node_id: NodeId,
        incarnation: Incarnation,
        gossip_listen: SocketAddr,
    ) -> Self {
        let gossip_interval = Duration::from_millis(500);
        Self {
            cluster_id: cluster_id.into(),
            node_id,
            incarnation,
            gossip_listen,
            gossip_advertise: None,
            seeds: Vec::new(),
            keyring: Keyring::none(),
            gossip_interval,
            detector: Detector::for_interval(gossip_interval),
            dead_node_grace: Duration::from_hours(1),
            known: Vec::new(),
            identity: Arc::default(),
            seed_refresh: Duration::from_secs(30),
        }
    }

    pub(super) fn validate(&self) -> Result<(), StartError> {
        check("cluster id", &self.cluster_id)?;
        let within = |what, value: Duration, least: Duration, most: Duration| {
            let good = (least..=most).contains(&value);
            if good { Ok(()) } else { Err(StartError::Setting { what, value, least, most }) }
        };
        let (tick, minute, day) =
            (Duration::from_millis(10), Duration::from_mins(1), Duration::from_hours(24));
        let Detector { phi_threshold, window, initial_interval, max_interval, min_silence } = self.detector;
        within("gossip interval", self.gossip_interval, tick, minute)?;
        within("initial heartbeat interval", initial_interval, tick, day)?;
        within("longest heartbeat interval", max_interval, tick, day)?;
        within("shortest silence", min_silence, Duration::ZERO, day)?;
        within("dead node grace", self.dead_node_grace, tick, 30 * day)?;
        within("seed refresh", self.seed_refresh, tick, day)?;
        let detector_is_good = (0.1..=1000.0).contains(&phi_threshold) && (1..=100_000).contains(&window);
        if detector_is_good { Ok(()) } else { Err(StartError::Detector) }
    }
}

/// Why gossip did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A name or an address was refused.
    #[error(transparent)]
    Text(#[from] BadText),
    /// A seed was refused.
    #[error(transparent)]
    Seeds(#[from] SeedError),
    /// A duration is out of bounds.
    #[error("{what} is {value:?}: it must be from {least:?} to {most:?}")]
    Setting {
        /// Name of the setting.
        what: &'static str,
        /// As given.
        value: Duration,
        /// The shortest one allowed.
        least: Duration,
        /// The longest one allowed.
        most: Duration,
    },
    /// The failure detector cannot work with its settings.
    #[error(
        "the failure detector needs a phi threshold from 0.1 to 1000 and a window from 1 to 100000 heartbeats"
    )]
    Detector,
    /// The address cannot be listened on.
    #[error("gossip can't listen at {address}/UDP: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
    /// There is no address that other nodes could use to reach this one.
    #[error(
        "{address} is no address at which other nodes reach this one: give a gossip address to advertise"
    )]
    Advertise {
        /// The configured address.
        address: SocketAddr,
    },
    /// chitchat did not start.
    #[error("gossip did not start: {reason}")]
    Gossip {
        /// chitchat's error.
        reason: String,
    },
}

/// Returns the address to announce: the configured one, or the one listened on.
pub(super) fn advertised(
    listen: SocketAddr,
    advertise: Option<SocketAddr>,
) -> Result<SocketAddr, StartError> {
    let mut address = advertise.unwrap_or(listen);
    if address.port() == 0 {
        address.set_port(listen.port());
    }
    if address.ip().is_unspecified() { Err(StartError::Advertise { address }) } else { Ok(address) }
}

/// Translates the settings for chitchat.
pub(super) fn chitchat_config(
    config: &MembershipConfig,
    gossip_address: SocketAddr,
    seeds: &Seeds,
) -> ChitchatConfig {
    let Detector { phi_threshold, window, initial_interval, max_interval, .. } = config.detector;
    ChitchatConfig {
        chitchat_id: ChitchatId::new(config.node_id.as_str(), config.incarnation.0, gossip_address),
        cluster_id: config.cluster_id.clone(),
        gossip_interval: config.gossip_interval,
        listen_addr: config.gossip_listen,
        // Pass addresses only: the greeter looks up names.
        seed_nodes: seeds.addresses().map(|address| address.to_string()).collect(),
        failure_detector_config: FailureDetectorConfig::new(
            phi_threshold,
            window,
            max_interval,
            initial_interval,
            config.dead_node_grace,
        ),
        // No key is ever deleted, but chitchat requires a value.
        marked_for_deletion_grace_period: config.dead_node_grace,
        catchup_callback: None,
        extra_liveness_predicate: None,
    }
}

/// Returns what makes a chitchat of this node that knows nothing, not even the node's own values.
pub(super) fn fresh_chitchat(
    config: &MembershipConfig,
    gossip_address: SocketAddr,
    seeds: &Seeds,
) -> impl Fn() -> Chitchat + Send + use<> {
    let (config, seeds) = (config.clone(), seeds.clone());
    move || {
        let (_, addresses) = watch::channel(seeds.addresses().collect());
        let chitchat = chitchat_config(&config, gossip_address, &seeds);
        Chitchat::with_chitchat_id_and_seeds(chitchat, addresses, Vec::new())
    }
}
