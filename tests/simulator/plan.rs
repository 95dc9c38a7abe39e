//! What a seed determines: the cluster, its clients, and the faults.

use super::{faults::FAULTS, network::MAX_NODES, prelude::*, run::name_of};

/// What a seed determines. Chances are per thousand, times in milliseconds.
#[derive(Debug, Clone, Default)]
pub struct RunPlan {
    pub settings: OwnershipSettings,
    pub nodes: usize,
    /// Most nodes, with those that are added.
    pub max_nodes: usize,
    /// Whether the nodes that form the cluster are configured with each other. If the cluster has more nodes than
    /// copies they must be, or nodes that see only each other form one too.
    is_listed: bool,
    pub slots: usize,
    pub contexts: usize,
    /// A context that only loads write to.
    pub loaded: Option<usize>,
    pub writers: usize,
    pub watchers: usize,
    /// How many appends ask for a quorum other than the configured one.
    pub other_copies: u64,
    /// Faults that may happen, by number; one that is named more often happens more often.
    pub faults: Vec<usize>,
    /// Whether most disks of a slot are lost in the end, and an operator makes the others continue.
    pub loses_most: bool,
    /// Longest time between faults.
    pub fault_every: u64,
    /// How many moments of takeovers bring a fault.
    pub ambushes: u64,
    /// How long faults continue.
    pub duration: u64,
    pub link: Link,
    /// Duration of a sync, in microseconds.
    pub sync: (u64, u64),
    pub dead_after: u64,
}

/// What happens to messages, per thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link {
    pub lost: u64,
    pub doubled: u64,
    /// Very late ones.
    pub late: u64,
    /// Messages after which the response to a fetch is cut short.
    pub cut_short: u64,
}

/// One seed of this many is of a large cluster.
const LARGE_EVERY: u64 = 40;

impl RunPlan {
    pub fn new(seed: u64, random: &mut Random) -> Self {
        let mut plan = Self::small(random);
        if seed % LARGE_EVERY == LARGE_EVERY - 1 {
            plan = plan.enlarged(random);
        }
        if plan.is_listed {
            plan.settings.first_nodes = (0..plan.nodes).map(name_of).collect();
        }
        plan
    }

    /// Returns the same for 20 to 30 nodes, of which each keeps some of the slots.
    fn enlarged(self, random: &mut Random) -> Self {
        let nodes = random.between(20, 30) as usize;
        let slots = random.between(8, 16) as usize;
        let loaded = self.loaded.map(|_| slots);
        let contexts = slots + usize::from(loaded.is_some());
        let duration = random.between(10_000, 25_000);
        let sizes = Self { nodes, max_nodes: MAX_NODES, slots, contexts, loaded, duration, ..self };
        Self { is_listed: true, writers: slots, watchers: 4, ..sizes }
    }

    fn small(random: &mut Random) -> Self {
        let (replication_factor, write_quorum) = match random.below(20) {
            0 => (1, 1),
            1 | 2 => (3, 1),
            3 | 4 => (5, 3),
            5 => (3, 3),
            _ => (3, 2),
        };
        let nodes = (replication_factor.max(3) + random.index(3)).min(6);
        let claim_turn = random.between(200, 800);
        let settings = OwnershipSettings {
            replication_factor,
            write_quorum,
            first_nodes: Vec::new(),
            settle_time: random.between(300, 1500),
            claim_turn,
            response_timeout: random.between(300, 1200),
            catch_up_timeout: random.between(2000, 8000),
            stable_after: random.between(500, 3000),
            quorum_loss_grace: random.between(1000, 5000),
            placement_grace: random.between(2500, 8000),
            max_transfers: random.between(1, 8) as usize,
            max_staleness: Some(random.between(1500, 5000)),
        };
        // Each seed has some kinds of faults only: constant faults of every kind would hide those that need quiet.
        let mut faults = Vec::new();
        for (fault, (_, weights, _)) in FAULTS.iter().enumerate() {
            faults.extend((0..random.below(*weights)).map(|_| fault));
        }
        let adds_nodes = faults.iter().any(|fault| FAULTS[*fault].0 == "nodes added");
        let is_lossy = random.chance(600);
        let slots = random.between(1, 3) as usize;
        let appended = slots + random.index(3);
        let loaded = random.chance(500).then_some(appended);
        Self {
            nodes,
            max_nodes: 9,
            is_listed: random.chance(500) || nodes > replication_factor || adds_nodes,
            slots,
            contexts: appended + usize::from(loaded.is_some()),
            loaded,
            writers: random.between(2, 4) as usize,
            watchers: 2,
            other_copies: if random.chance(500) { random.between(50, 400) } else { 0 },
            faults,
            loses_most: replication_factor > 1 && random.chance(200),
            fault_every: random.between(300, 2500),
            ambushes: if random.chance(500) { random.between(1, 60) } else { 0 },
            duration: random.between(10_000, 90_000),
            link: Link {
                lost: if is_lossy { random.between(1, 200) } else { 0 },
                doubled: if is_lossy { random.between(0, 200) } else { 0 },
                late: if is_lossy { random.between(0, 80) } else { 0 },
                cut_short: if random.chance(600) { random.between(1, 150) } else { 0 },
            },
            sync: (200, random.between(500, 8000)),
            dead_after: random.between(700, 2000),
            settings,
        }
    }

    /// Returns whether acknowledged entries must survive in the canonical history.
    pub fn is_strict(&self) -> bool {
        self.settings.write_quorum * 2 > self.settings.replication_factor
    }

    /// Returns how many nodes must remain.
    pub fn least_nodes(&self) -> usize {
        self.settings.replication_factor.max(3)
    }
}
