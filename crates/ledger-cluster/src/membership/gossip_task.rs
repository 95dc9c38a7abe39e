//! The tasks that run as long as the membership: publishing and observing, and greeting the nodes behind DNS names.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use chitchat::{Chitchat, ChitchatHandle};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{
    GossipEnded, Replaced,
    facts::{CLUSTER, Facts, PULSE},
    identity::Identity,
    view::{View, ViewBuilder},
};
use crate::membership::{
    gossip::{GossipControl, incarnations::forget_superseded},
    seeds::Resolver,
};

/// chitchat's server, which stops when the membership is dropped.
#[derive(Clone)]
pub(super) struct Gossip(pub(super) Arc<ChitchatHandle>);

impl Gossip {
    /// Returns the gossip addresses of the other living nodes.
    pub(super) async fn peers(&self) -> Vec<SocketAddr> {
        let chitchat = self.0.chitchat();
        let chitchat = chitchat.lock().await;
        let me = chitchat.self_chitchat_id();
        chitchat.live_nodes().filter(|&id| id != me).map(|id| id.gossip_advertise_addr).collect()
    }

    /// Gossips with the node at an address now.
    pub(super) fn greet(&self, address: SocketAddr) {
        // This fails if the server is gone, which the gossip task reports.
        drop(self.0.gossip(address));
    }
}

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gossip({:?})", self.0.chitchat_id())
    }
}

/// Publishes this node's facts and keeps the view up to date.
pub(super) struct GossipTask<F> {
    pub(super) chitchat: Gossip,
    pub(super) facts: watch::Receiver<Facts>,
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) roster: ViewBuilder,
    pub(super) bad_values: Arc<AtomicU64>,
    pub(super) most_keys: Arc<AtomicU64>,
    pub(super) incarnations: Arc<AtomicU64>,
    pub(super) identity: Arc<Identity>,
    pub(super) replaced: watch::Sender<Option<Replaced>>,
    /// Number of refreshes so far.
    pub(super) refreshed: u64,
    pub(super) control: GossipControl,
    /// Makes a chitchat of this node that knows nothing.
    pub(super) fresh: F,
}

/// Number of refreshes between two pulses.
const PULSE_INTERVAL: u64 = 2;

impl<F: Fn() -> Chitchat + Send> GossipTask<F> {
    pub(super) async fn run(
        mut self,
        gossip_interval: Duration,
        ended: watch::Sender<Option<GossipEnded>>,
        cancel: CancellationToken,
    ) {
        let mut live = self.chitchat.0.chitchat().lock().await.live_nodes_watcher();
        let mut tick = interval(gossip_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let gone = self.chitchat.0.termination_watcher();
        tokio::pin!(gone);
        let mut values = self.facts.borrow_and_update().to_values();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                result = &mut gone => {
                    let reason = result.map_or_else(|error| format!("{error:#}"), |()| "stopped".to_owned());
                    tracing::error!(reason, "gossip ended by itself");
                    ended.send_replace(Some(GossipEnded { reason }));
                    return;
                }
                changed = self.facts.changed() => match changed {
                    Ok(()) => values = self.facts.borrow_and_update().to_values(),
                    Err(_) => return,
                },
                // Learn of deaths and births at once; the tick finds what chitchat does not announce.
                Ok(()) = live.changed() => drop(live.borrow_and_update()),
                _ = tick.tick() => {}
            }
            if self.refresh(&values).await {
                live = self.chitchat.0.chitchat().lock().await.live_nodes_watcher();
            }
        }
    }

    /// Publishes the values, and the view if it changed. Returns whether chitchat was replaced by one that knows less.
    pub(super) async fn refresh(&mut self, values: &[(String, String)]) -> bool {
        let mut forgotten = 0;
        let view = {
            let chitchat = self.chitchat.0.chitchat();
            let mut chitchat = chitchat.lock().await;
            let state = chitchat.self_node_state();
            // Set all values each time. An unchanged one costs a comparison, and this corrects values of an earlier
            // life of this node that peers bring back.
            for (key, value) in values {
                state.set(key, value);
            }
            if !values.is_empty() {
                self.refreshed += 1;
                let cluster = self.identity.cluster().map_or_else(String::new, |id| id.to_string());
                state.set(CLUSTER, cluster);
                state.set(PULSE, (self.refreshed / PULSE_INTERVAL).to_string());
            }
            let view = self.roster.observe(&chitchat, Instant::now());
            let mut known = self.control.incarnations().lock();
            forgotten += forget_superseded(&mut chitchat, &mut known, &self.fresh);
            known.set_known(chitchat.node_states().keys());
            self.incarnations.store(chitchat.node_states().len() as u64, Ordering::Relaxed);
            view
        };
        if forgotten > 0 {
            tracing::info!(forgotten, "forgetting earlier incarnations of nodes: there were many");
        }
        self.bad_values.store(self.roster.bad_values, Ordering::Relaxed);
        self.most_keys.store(self.roster.most_keys as u64, Ordering::Relaxed);
        if let Some(replaced) = view.replaced()
            && self.replaced.borrow().is_none()
        {
            tracing::error!("{replaced}");
            self.replaced.send_replace(Some(replaced));
        }
        self.view.send_if_modified(|known| {
            let changed = **known != view;
            if changed {
                *known = Arc::new(view);
            }
            changed
        });
        forgotten > 0
    }
}

/// Looks up the names among the seeds, and greets unknown nodes at their addresses.
pub(super) struct SeedGreeter {
    pub(super) chitchat: Gossip,
    /// Last known addresses of other nodes.
    pub(super) known: Vec<SocketAddr>,
    pub(super) resolver: Resolver,
    pub(super) refresh: Duration,
    pub(super) alone: Duration,
}

impl SeedGreeter {
    pub(super) async fn run(mut self) {
        loop {
            let mut found = self.resolver.resolve().await;
            // Last known addresses work even when DNS is down: a node there is still the one, or knows where the
            // others are.
            found.extend(&self.known);
            let peers = self.chitchat.peers().await;
            let me = self.chitchat.0.chitchat_id().gossip_advertise_addr;
            // Greet even if other nodes are alive, so that two halves of a cluster that lost each other meet again.
            found
                .into_iter()
                .filter(|address| *address != me && !peers.contains(address))
                .for_each(|address| self.chitchat.greet(address));
            sleep(if peers.is_empty() { self.alone } else { self.refresh }).await;
        }
    }
}
