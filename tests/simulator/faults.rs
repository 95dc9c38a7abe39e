//! What a seed determines: the cluster, its clients, and the faults.

use ledger_core::ownership::slot_manager::OwnershipSettings;

use super::{network::MAX_NODES, random::Random};

/// A fault, or an operator's action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Crash,
    CrashAll,
    Wipe,
    Partition,
    OneWayPartition,
    CutLink,
    SlowDisk,
    FullDisk,
    Pause,
    ClockLeap,
    ClockStop,
    BreakStream,
    Drain,
    AddNode,
    RemoveNode,
    /// What a disk holds of a context becomes unreadable.
    Damage,
    OtherCluster,
    Decommission,
    LoseMost,
}

impl Fault {
    pub const ALL: [Self; 19] = [
        Self::Crash,
        Self::CrashAll,
        Self::Wipe,
        Self::Partition,
        Self::OneWayPartition,
        Self::CutLink,
        Self::SlowDisk,
        Self::FullDisk,
        Self::Pause,
        Self::ClockLeap,
        Self::ClockStop,
        Self::BreakStream,
        Self::Drain,
        Self::AddNode,
        Self::RemoveNode,
        Self::Damage,
        Self::OtherCluster,
        Self::Decommission,
        Self::LoseMost,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crashes",
            Self::CrashAll => "crashes of all nodes at once",
            Self::Wipe => "wiped disks",
            Self::Partition => "partitions",
            Self::OneWayPartition => "one-way partitions",
            Self::CutLink => "cut links",
            Self::SlowDisk => "slow disks",
            Self::FullDisk => "full disks",
            Self::Pause => "paused nodes",
            Self::ClockLeap => "clocks that leap",
            Self::ClockStop => "clocks that stand still",
            Self::BreakStream => "broken streams",
            Self::Drain => "drains",
            Self::AddNode => "nodes added",
            Self::RemoveNode => "nodes removed for good",
            Self::Damage => "damaged contexts",
            Self::OtherCluster => "meetings with another cluster",
            Self::Decommission => "nodes that leave for good",
            Self::LoseMost => "losses of most of a slot's disks",
        }
    }
}

/// What a seed determines.
#[derive(Debug, Clone)]
pub struct RunPlan {
    pub settings: OwnershipSettings,
    pub nodes: usize,
    /// Most nodes, with those that are added.
    pub max_nodes: usize,
    /// Whether the nodes that form the cluster are configured with each other. If the cluster has more nodes than
    /// copies they must be, or nodes that see only each other form one too.
    pub is_listed: bool,
    pub slots: usize,
    pub contexts: usize,
    /// A context that only loads write to.
    pub loaded: Option<usize>,
    pub writers: usize,
    pub watchers: usize,
    /// Of a thousand appends, how many ask for a quorum other than the configured one.
    pub other_copies: u64,
    /// Faults that may happen; one that is named more often happens more often.
    pub faults: Vec<Fault>,
    /// Whether most disks of a slot are lost in the end, and an operator makes the others continue.
    pub loses_most: bool,
    /// Longest time between faults, in milliseconds.
    pub fault_every: u64,
    /// Of a thousand moments of takeovers, how many bring a fault.
    pub ambushes: u64,
    /// How long faults continue, in milliseconds.
    pub duration: u64,
    pub loss: u64,
    pub duplicates: u64,
    pub late: u64,
    /// Of a thousand messages of responses to fetches, after how many the response is cut short.
    pub cuts: u64,
    /// Duration of a sync, in microseconds.
    pub sync: (u64, u64),
    pub dead_after: u64,
}

/// One seed of this many is of a large cluster.
const LARGE_EVERY: u64 = 40;

impl RunPlan {
    pub fn new(seed: u64, random: &mut Random) -> Self {
        let plan = Self::small(random);
        if seed % LARGE_EVERY == LARGE_EVERY - 1 { plan.enlarged(random) } else { plan }
    }

    /// Returns the same for 20 to 30 nodes, of which each keeps some of the slots.
    fn enlarged(self, random: &mut Random) -> Self {
        let nodes = random.between(20, 30) as usize;
        let slots = random.between(8, 16) as usize;
        let loaded = self.loaded.map(|_| slots);
        Self {
            nodes,
            max_nodes: MAX_NODES,
            is_listed: true,
            slots,
            contexts: slots + usize::from(loaded.is_some()),
            loaded,
            writers: slots,
            watchers: 4,
            duration: random.between(10_000, 25_000),
            ..self
        }
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
        for fault in Fault::ALL {
            let weight = match fault {
                Fault::CrashAll => random.below(2),
                // This fault comes once, after the others: see `RunPlan::loses_most`.
                Fault::LoseMost => 0,
                Fault::Crash | Fault::Partition | Fault::Wipe => random.below(4),
                _ => random.below(3),
            };
            faults.extend((0..weight).map(|_| fault));
        }
        let is_lossy = random.chance(600);
        let slots = random.between(1, 3) as usize;
        let appended = slots + random.index(3);
        let loaded = random.chance(500).then_some(appended);
        Self {
            nodes,
            max_nodes: 9,
            is_listed: random.chance(500) || nodes > replication_factor || faults.contains(&Fault::AddNode),
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
            loss: if is_lossy { random.between(1, 200) } else { 0 },
            duplicates: if is_lossy { random.between(0, 200) } else { 0 },
            late: if is_lossy { random.between(0, 80) } else { 0 },
            cuts: if random.chance(600) { random.between(1, 150) } else { 0 },
            sync: (200, random.between(500, 8000)),
            dead_after: random.between(700, 2000),
            settings,
        }
    }

    /// Returns whether acknowledged entries must survive in the canonical history.
    pub fn is_strict(&self) -> bool {
        self.settings.write_quorum * 2 > self.settings.replication_factor
    }
}
