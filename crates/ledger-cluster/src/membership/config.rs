//! How a node takes part in gossip, and why it may be refused.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use chitchat::{ChitchatConfig, ChitchatId, FailureDetectorConfig};
use ledger_core::node::{Incarnation, NodeId};

use super::{
    facts::{BadText, check},
    identity::Identity,
};
use crate::{
    membership::seal::Keyring,
    membership::seeds::{SeedError, Seeds},
};

/// How a node judges that another one is dead: phi accrual (Hayashibara et al., 2004) as chitchat has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detector {
    /// A node is dead when it is silent for this many times the mean interval between its heartbeats.
    pub phi_threshold: f64,
    /// Heartbeats of which the mean is taken.
    pub window: usize,
    /// The interval assumed before any was measured.
    pub initial_interval: Duration,
    /// Longer intervals don't enter the mean.
    pub max_interval: Duration,
    /// A node is never dead before it was silent for so long, however quick its heartbeats were.
    pub min_silence: Duration,
}

impl Detector {
    /// Settings that suit an interval of gossip: dead after four to eight intervals of silence.
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
    /// The cluster's name; datagrams of others are dropped.
    pub cluster_id: String,
    /// This node's stable name.
    pub node_id: NodeId,
    /// This start of it: higher than at any start before.
    pub incarnation: Incarnation,
    /// The UDP address to listen at; port 0 takes a free one.
    pub gossip_listen: SocketAddr,
    /// The UDP address others reach this node at; `None` if it is the one it listens at. Port 0 stands for
    /// the port it listens at.
    pub gossip_advertise: Option<SocketAddr>,
    /// Where to look for others: `host:port` or `address:port`. Nodes may start in any order.
    pub seeds: Vec<String>,
    /// The cluster's keys.
    pub keyring: Keyring,
    /// How often a node gossips, with up to three others.
    pub gossip_interval: Duration,
    /// When a node counts as dead.
    pub detector: Detector,
    /// How long a dead node stays in the view, and its incarnation is remembered.
    pub dead_node_grace: Duration,
    /// Where other nodes gossiped last: asked like seeds, and greeted as long as they are not heard.
    pub known: Vec<SocketAddr>,
    /// To which cluster the node belongs.
    pub identity: Arc<Identity>,
    /// How often DNS names among the seeds are looked up while other nodes are alive; more often otherwise.
    pub seed_refresh: Duration,
}

impl MembershipConfig {
    /// The usual settings: gossip twice a second, dead after two to four seconds of silence, remembered for
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

/// Why gossip didn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A name or an address was refused.
    #[error(transparent)]
    Text(#[from] BadText),
    /// A seed was refused.
    #[error(transparent)]
    Seeds(#[from] SeedError),
    /// A duration is out of its bounds.
    #[error("{what} is {value:?}: it must be from {least:?} to {most:?}")]
    Setting {
        /// Which one.
        what: &'static str,
        /// As given.
        value: Duration,
        /// The least allowed.
        least: Duration,
        /// The most allowed.
        most: Duration,
    },
    /// The failure detector can't work with its settings.
    #[error(
        "the failure detector needs a phi threshold from 0.1 to 1000 and a window from 1 to 100000 heartbeats"
    )]
    Detector,
    /// The address can't be listened at.
    #[error("gossip can't listen at {address}/UDP: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// Other nodes can't be told where this one is.
    #[error(
        "{address} is no address at which other nodes reach this one: give a gossip address to advertise"
    )]
    Advertise {
        /// The address as it stands.
        address: SocketAddr,
    },
    /// chitchat didn't start.
    #[error("gossip did not start: {reason}")]
    Gossip {
        /// What it says.
        reason: String,
    },
}

/// The address to tell others: the one given, or the one listened at.
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

/// The same in chitchat's terms.
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
        // Addresses only: names are looked up by the greeter.
        seed_nodes: seeds.addresses().map(|address| address.to_string()).collect(),
        failure_detector_config: FailureDetectorConfig::new(
            phi_threshold,
            window,
            max_interval,
            initial_interval,
            config.dead_node_grace,
        ),
        // No key is ever deleted; chitchat wants a figure.
        marked_for_deletion_grace_period: config.dead_node_grace,
        catchup_callback: None,
        extra_liveness_predicate: None,
    }
}
