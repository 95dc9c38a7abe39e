//! The members as one node sees them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use chitchat::{Chitchat, ChitchatId, NodeState, Version};
use ledger_core::{
    Epoch,
    node::{ClusterId, Incarnation, NodeId, StorageId},
    ownership::slot_manager::DecommissionMode,
    slot::{SLOTS, Slot},
};
use ledger_store::limited;

use parking_lot::RwLock;

use super::{
    durability::{DurabilityHistory, RolledBack},
    ended::Replaced,
    facts::{GossipedFacts, NodeLoad, ParseOutcome, Readiness},
    identity::Identity,
    limits::MAX_NODES,
};

mod stall;

use stall::StallDetector;

/// Most incarnations of nodes that are observed, the newest of each node first.
const MAX_INCARNATIONS: usize = 2 * MAX_NODES;

/// However fast gossip is, a node does not count as cut off before its pulse stood still for this long.
const MIN_PAUSE: Duration = Duration::from_secs(2);

/// A busy moment of this node is shorter than this. A longer one says nothing about the nodes that it did not hear.
const MIN_STALL: Duration = Duration::from_secs(1);

/// A node of the cluster: what it announces, and whether it is heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewMember {
    /// Its permanent name.
    pub node_id: NodeId,
    /// Its start number; a higher one replaces a lower one at once.
    pub incarnation: Incarnation,
    /// Identity of its data directory.
    pub storage_id: StorageId,
    /// The address of its gRPC service, `host:port`.
    pub grpc_address: String,
    /// Its gossip address.
    pub gossip_address: SocketAddr,
    /// The cluster that it belongs to; `None`: it has not joined one yet.
    pub cluster: Option<ClusterId>,
    /// What it announces to be ready for.
    pub readiness: Readiness,
    /// Its zone; may be empty.
    pub zone: String,
    /// Version of its storage format.
    pub format: u32,
    /// Its load.
    pub load: NodeLoad,
    /// Whether it is being decommissioned, or has been.
    pub decommission: Option<DecommissionMode>,
    /// The slots that it announces to own, in order. Those of a dead member are the last ones heard.
    pub owned: Vec<(Slot, Epoch)>,
    /// Those of them for which it announces to accept no appends at the moment, in order.
    pub halted: Vec<Slot>,
    /// Whether it is heard and has not announced to be leaving.
    pub alive: bool,
    /// Whether it takes part in sessions between nodes; nodes of older builds do not.
    pub greets: bool,
    /// Set if its data directory is older than it was reported to be: it has forgotten promises, and counts for
    /// nothing.
    pub rolled_back: Option<RolledBack>,
    /// When this node first saw the incarnation in its present state, alive or dead.
    pub since: Instant,
}

impl ViewMember {
    /// Returns whether it is alive and has not forgotten its promises.
    pub const fn is_usable(&self) -> bool {
        self.alive && self.rolled_back.is_none()
    }
}

impl ViewMember {
    /// Returns whether it announces to accept no appends to a slot at the moment.
    pub fn is_halted(&self, slot: Slot) -> bool {
        self.halted.binary_search(&slot).is_ok()
    }
}

/// All members that a node knows, including itself: one per node id; dead ones until the grace period ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The members, ordered by id.
    pub members: Vec<ViewMember>,
    me: (NodeId, Incarnation),
}

impl View {
    pub(super) fn empty(me: (NodeId, Incarnation)) -> Self {
        Self { members: Vec::new(), me }
    }

    /// Returns the member with that name.
    pub fn get(&self, node_id: &NodeId) -> Option<&ViewMember> {
        let at = self.members.binary_search_by(|member| member.node_id.cmp(node_id)).ok()?;
        self.members.get(at)
    }

    /// Returns this node; `None` if a later incarnation of it was heard, so that this one must stop.
    pub fn me(&self) -> Option<&ViewMember> {
        self.get(&self.me.0).filter(|member| member.incarnation == self.me.1)
    }

    /// Returns whether a name is this node's.
    pub fn is_me(&self, node_id: &NodeId) -> bool {
        self.me.0 == *node_id
    }

    /// Returns the later start of this node, if one was heard.
    pub(super) fn replaced(&self) -> Option<Replaced> {
        let (node, ours) = &self.me;
        let later = self.get(node).filter(|member| member.incarnation > *ours)?;
        Some(Replaced {
            node: node.clone(),
            incarnation: later.incarnation,
            this_start: *ours,
            grpc_address: later.grpc_address.clone(),
        })
    }

    /// Returns the living members.
    pub fn alive(&self) -> impl Iterator<Item = &ViewMember> {
        self.members.iter().filter(|member| member.alive)
    }

    /// Returns the living member that claims a slot, with its epoch; if several do, the one with the highest epoch.
    pub fn claim(&self, slot: Slot) -> Option<(&ViewMember, Epoch)> {
        let claims = self.alive().filter_map(|member| {
            let at = member.owned.binary_search_by_key(&slot, |&(slot, _)| slot).ok()?;
            Some((member, member.owned.get(at)?.1))
        });
        claims.max_by_key(|&(_, epoch)| epoch)
    }

    /// Returns for each member, in order, for how many of the slots that it owns it accepts appends now, and for how
    /// many it does not. If several members claim a slot, the highest epoch counts; dead members own nothing.
    pub fn taking(&self) -> Vec<(usize, usize)> {
        let mut owners = vec![None; usize::from(SLOTS)];
        for (at, member) in self.members.iter().enumerate().filter(|(_, member)| member.is_usable()) {
            for (slot, epoch) in &member.owned {
                let Some(owner) = owners.get_mut(usize::from(slot.number())) else { continue };
                *owner = (*owner).max(Some((*epoch, at, member.is_halted(*slot))));
            }
        }
        let mut counts = vec![(0, 0); self.members.len()];
        for (_, at, is_halted) in owners.into_iter().flatten() {
            if let Some((taking, halted)) = counts.get_mut(at) {
                *(if is_halted { halted } else { taking }) += 1;
            }
        }
        counts
    }
}

/// One incarnation of a node, as heard so far.
#[derive(Debug)]
struct ObservedIncarnation {
    version: Version,
    heard: GossipedFacts,
    /// Keys with a malformed value, with the value's version, so that each is counted once.
    bad: BTreeMap<String, Version>,
    heartbeat: u64,
    heard_at: Instant,
    pulse: Option<u64>,
    pulsed_at: Instant,
    alive: bool,
    since: Instant,
}

/// The members that an operator declared lost: if one returns, it counts for nothing.
pub(super) type LostMembers = Arc<RwLock<Arc<ledger_core::ownership::DeclaredLosses>>>;

/// Builds views from chitchat's state, and remembers what depends on time.
#[derive(Debug)]
pub(super) struct ViewBuilder {
    me: (NodeId, Incarnation),
    identity: Arc<Identity>,
    min_silence: Duration,
    /// A pulse that stood still for this long means that its node is cut off.
    max_pause: Duration,
    stalls: StallDetector,
    seen: HashMap<ChitchatId, ObservedIncarnation>,
    durability: DurabilityHistory,
    /// The rolled-back members that were logged already.
    logged: HashSet<(NodeId, StorageId)>,
    /// The members that an operator declared lost.
    lost: LostMembers,
    pub(super) bad_values: u64,
    /// Number of keys of the node that has the most.
    pub(super) most_keys: usize,
}

impl ViewBuilder {
    pub(super) fn new(
        me: (NodeId, Incarnation),
        min_silence: Duration,
        identity: Arc<Identity>,
        lost: LostMembers,
    ) -> Self {
        let max_pause = min_silence.saturating_mul(2).max(MIN_PAUSE);
        Self {
            me,
            identity,
            min_silence,
            max_pause,
            stalls: StallDetector::new(min_silence.max(MIN_STALL)),
            seen: HashMap::new(),
            durability: DurabilityHistory::default(),
            logged: HashSet::new(),
            lost,
            bad_values: 0,
            most_keys: 0,
        }
    }

    /// Builds the current view.
    pub(super) fn observe(&mut self, chitchat: &Chitchat, now: Instant) -> View {
        let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
        let states = chitchat.node_states();
        self.most_keys = states.values().map(NodeState::num_key_values).max().unwrap_or_default();
        self.seen.retain(|id, _| states.contains_key(id));
        let stalled = self.stalls.observe(now);
        for seen in self.seen.values_mut() {
            seen.heard_at += stalled;
            seen.pulsed_at += stalled;
        }
        self.durability.begin();
        let ours = self.identity.cluster();
        let mut members = BTreeMap::<NodeId, ViewMember>::new();
        // The newest of a node's incarnations come first: many earlier ones leave no later one out.
        for (id, state) in states.iter().rev() {
            if self.seen.len() >= MAX_INCARNATIONS
                && !self.seen.contains_key(id)
                && id != chitchat.self_chitchat_id()
            {
                continue;
            }
            let is_me = id == chitchat.self_chitchat_id();
            let Some(member) = self.member(id, state, live.contains(id), is_me, now) else { continue };
            // Skip a node of another cluster, which a node without a cluster passed on.
            if !is_me && ours.is_some() && member.cluster.is_some_and(|theirs| Some(theirs) != ours) {
                continue;
            }
            let rank = |member: &ViewMember| (member.incarnation, member.alive);
            match members.get(&member.node_id) {
                Some(other) if rank(other) >= rank(&member) => {}
                _ => drop(members.insert(member.node_id.clone(), member)),
            }
        }
        // Check after hearing everything: what contradicts one incarnation is what others announced.
        let mut members: Vec<ViewMember> = members.into_values().collect();
        self.detect_rollbacks(&mut members);
        View { members, me: self.me.clone() }
    }

    /// Determines which members' directories were rolled back; logs each once.
    fn detect_rollbacks(&mut self, members: &mut [ViewMember]) {
        let mut logged = HashSet::new();
        let lost = Arc::clone(&self.lost.read());
        for member in members {
            let directory = (member.node_id.clone(), member.storage_id);
            let is_lost = lost.lost.contains(&ledger_core::node::Member {
                node: member.node_id.clone(),
                storage: member.storage_id,
            });
            member.rolled_back = if is_lost {
                Some(RolledBack { opened: 0, heard: RolledBack::DECLARED_LOST })
            } else {
                self.durability.rolled_back(&directory, member.incarnation)
            };
            let Some(found) = member.rolled_back.filter(|_| member.alive) else { continue };
            let RolledBack { opened, heard } = found;
            if !self.logged.contains(&directory) {
                let (node, storage) = &directory;
                limited!(error, %node, %storage, opened, heard, "a node is back that has forgotten what it promised, and counts for nothing until it joins anew: {found}");
            }
            logged.insert(directory);
        }
        self.logged = logged;
    }

    fn member(
        &mut self,
        id: &ChitchatId,
        state: &NodeState,
        live: bool,
        is_me: bool,
        now: Instant,
    ) -> Option<ViewMember> {
        let seen = self.seen.entry(id.clone()).or_insert_with(|| ObservedIncarnation {
            version: 0,
            heard: GossipedFacts::default(),
            bad: BTreeMap::new(),
            heartbeat: 0,
            heard_at: now,
            pulse: None,
            pulsed_at: now,
            alive: false,
            since: now,
        });
        if seen.version != state.max_version() {
            seen.version = state.max_version();
            self.bad_values += seen.read(state);
        }
        let heartbeat = state.heartbeat().into();
        if seen.heartbeat != heartbeat {
            seen.heartbeat = heartbeat;
            seen.heard_at = now;
        }
        // chitchat's detector alone would take a busy moment for death if heartbeats came in quick succession.
        let heard = live || (seen.alive && now.saturating_duration_since(seen.heard_at) < self.min_silence);
        let pulse = seen.heard.pulse();
        if is_me || pulse.is_none() || seen.pulse != pulse {
            (seen.pulse, seen.pulsed_at) = (pulse, now);
        }
        let heard = heard && now.saturating_duration_since(seen.pulsed_at) < self.max_pause;
        let (facts, greets, cluster) = (seen.heard.facts(), seen.heard.greets(), seen.heard.cluster());
        let node_id = NodeId::new(&id.node_id).ok();
        let alive = heard && facts.as_ref().is_some_and(|facts| facts.readiness != Readiness::Leaving);
        if alive != seen.alive {
            (seen.alive, seen.since) = (alive, now);
        }
        let since = seen.since;
        let (node_id, facts) = (node_id?, facts?);
        let directory = (node_id.clone(), facts.storage_id);
        self.durability.hear(directory, Incarnation(id.generation_id), facts.opened, facts.durable);
        Some(ViewMember {
            node_id,
            incarnation: Incarnation(id.generation_id),
            storage_id: facts.storage_id,
            grpc_address: facts.grpc_address,
            gossip_address: id.gossip_advertise_addr,
            cluster,
            readiness: facts.readiness,
            zone: facts.zone,
            format: facts.format,
            load: facts.load,
            decommission: facts.decommission,
            owned: facts.owned,
            halted: facts.halted,
            alive,
            greets,
            rolled_back: None,
            since,
        })
    }
}

impl ObservedIncarnation {
    /// Reads what the node announces. Returns how many values were malformed for the first time.
    fn read(&mut self, state: &NodeState) -> u64 {
        let mut still_bad = BTreeSet::new();
        let mut new = 0;
        for (key, value) in state.key_values_including_deleted().filter(|(_, value)| !value.is_deleted()) {
            if self.heard.read(key, &value.value) != ParseOutcome::Bad {
                continue;
            }
            still_bad.insert(key.to_owned());
            if self.bad.insert(key.to_owned(), value.version) != Some(value.version) {
                new += 1;
                tracing::debug!(node = %state.chitchat_id().node_id, key, "gossip brought a value that doesn't parse");
            }
        }
        self.bad.retain(|key, _| still_bad.contains(key));
        new
    }
}
