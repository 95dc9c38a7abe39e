//! What a seed decides: the cluster, its clients, and what goes wrong.

use ledger_core::ownership::slot_manager::OwnershipSettings;

use super::random::Random;

/// Something that goes wrong, or is done to the cluster.
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
    /// What a disk holds of a context cannot be read any more.
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

/// What a seed decides.
#[derive(Debug, Clone)]
pub struct RunPlan {
    pub settings: OwnershipSettings,
    pub nodes: usize,
    /// Whether the nodes that form the cluster are told of each other. In a cluster of more nodes than there are copies
    /// they must be, or those who see only each other form it too.
    pub is_listed: bool,
    pub slots: usize,
    pub contexts: usize,
    /// A context that nothing is appended to, and histories are loaded into.
    pub loaded: Option<usize>,
    pub writers: usize,
    pub watchers: usize,
    /// Of a thousand appends, those that ask for other than the configured number of copies.
    pub other_copies: u64,
    /// Faults that may happen, each as often as it is named.
    pub faults: Vec<Fault>,
    /// Whether most disks of a slot are lost in the end, and an operator has the others go on.
    pub loses_most: bool,
    /// Milliseconds between faults, at most.
    pub fault_every: u64,
    /// Of a thousand moments of takeovers, those that bring a fault.
    pub ambushes: u64,
    /// How long faults go on, milliseconds.
    pub duration: u64,
    pub loss: u64,
    pub duplicates: u64,
    pub late: u64,
    /// Microseconds of a sync.
    pub sync: (u64, u64),
    pub dead_after: u64,
}

impl RunPlan {
    pub fn new(random: &mut Random) -> Self {
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
        // Each seed has faults of some kinds only: those that are always there hide those that need quiet.
        let mut faults = Vec::new();
        for fault in Fault::ALL {
            let weight = match fault {
                Fault::CrashAll => random.below(2),
                // It comes once, after the others: see `RunPlan::loses_most`.
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
            sync: (200, random.between(500, 8000)),
            dead_after: random.between(700, 2000),
            settings,
        }
    }

    /// Acknowledged entries survive in the canonical history.
    pub fn is_strict(&self) -> bool {
        self.settings.write_quorum * 2 > self.settings.replication_factor
    }
}
