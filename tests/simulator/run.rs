//! Time: takes the next scheduled event, and executes it.

use super::{
    client::Client, counts::Counts, invariants::Invariants, network::Network, plan::RunPlan, prelude::*,
};

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub counts: Counts,
    pub violation: Option<String>,
    /// A hash of everything that happened.
    pub fingerprint: u64,
}

/// Whether something holds that must.
pub type Checked = Result<(), String>;

/// A machine on which a node runs, or will.
pub struct Host {
    pub member: Member,
    pub life: u64,
    pub node: Option<Node>,
    /// The disk, while no node runs on it.
    pub disk: Option<Disk>,
    /// Whether it is gone for good.
    pub is_gone: bool,
    /// The content of disks that it lost.
    pub graveyard: Vec<(Member, Store)>,
    /// The clock's value, and since when; the clock stops while no node runs.
    pub clock: (u64, u64),
    pub clock_runs: bool,
    /// Whether its node is being decommissioned, as recorded on its disk.
    pub leaving: Option<DecommissionMode>,
    pub paused_until: u64,
    pub slow_until: u64,
}

impl Host {
    pub fn disk(&self) -> &Disk {
        self.node.as_ref().map(|node| &node.disk).or(self.disk.as_ref()).unwrap()
    }

    pub fn disk_mut(&mut self) -> &mut Disk {
        self.node.as_mut().map(|node| &mut node.disk).or(self.disk.as_mut()).unwrap()
    }
}

/// The stage of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Faults,
    /// No more faults happen.
    Healing,
    /// All members were equal once.
    Settled,
    Over,
}

/// What happens at a scheduled time, and the node that it concerns: a paused node lets it wait.
type Scheduled = (Option<Index>, Box<dyn FnOnce(&mut World)>);

#[derive(Default)]
pub struct World {
    pub plan: RunPlan,
    pub config: Rc<Config>,
    pub random: Random,
    /// Simulated time, in microseconds.
    pub now: u64,
    /// What is scheduled: when, and in which order it was.
    queue: BTreeMap<(u64, u64), Scheduled>,
    order: u64,
    pub hosts: Vec<Host>,
    pub network: Network,
    pub clients: Vec<Client>,
    /// When clients that do not read do so again.
    pub reads_from: BTreeMap<usize, u64>,
    pub invariants: Invariants,
    pub counts: Counts,
    /// The newest owner of each slot, with the members.
    pub owned: BTreeMap<Slot, (Claim, ReplicaSet)>,
    pub next_request: u64,
    next_storage: u64,
    /// The members that operators declared lost.
    pub declared: DeclaredLosses,
    /// Contexts that may have lost acknowledged entries with the disks that held them.
    pub changed: BTreeSet<Context>,
    pub last_loss: u64,
    /// When a clock last stood still.
    pub clock_stood_still: Option<u64>,
    pub stage: Stage,
    /// The owners of all slots when all members were last equal.
    pub settled: Vec<(Index, Slot, Epoch)>,
    pub settled_times: u32,
    pub healing_since: u64,
    pub acknowledged_before: Vec<Option<u64>>,
    violation: Option<String>,
    fingerprint: u64,
}

/// Most steps of a run: a longer one would never end.
const MOST_STEPS: u64 = 20_000_000;

/// Runs a seed.
pub fn run(seed: u64, broken: DisabledRule, trace: bool) -> Run {
    let whole = || {
        let mut world = World::new(seed, broken, trace);
        world.go();
        Run { counts: world.counts, violation: world.violation, fingerprint: world.fingerprint }
    };
    // Report a panic of the tested code like any violation, with its seed.
    std::panic::catch_unwind(whole).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let violation = Some(format!("it panics: {}", text.unwrap_or_default()));
        Run { counts: Counts::default(), violation, fingerprint: 0 }
    })
}

/// Returns the name of a node.
pub fn name_of(index: Index) -> NodeId {
    NodeId::new(format!("n{index}")).unwrap()
}

impl World {
    fn new(seed: u64, broken: DisabledRule, is_traced: bool) -> Self {
        let mut random = Random(seed);
        let plan = RunPlan::new(seed, &mut random);
        let config = Config {
            contexts: Rc::new(Contexts::new(plan.contexts, plan.slots)),
            settings: plan.settings.clone(),
            dead_after: plan.dead_after,
            broken,
            seeds: (0..plan.nodes).collect(),
            is_traced,
        };
        let invariants = Invariants::new(plan.is_strict(), plan.contexts);
        let network = Network::new(plan.link);
        let mut world =
            Self { config: Rc::new(config), random, network, invariants, plan, ..Self::default() };
        for _ in 0..world.plan.nodes {
            let host = world.add_host();
            world.start(host);
        }
        world.add_clients();
        world.after(world.plan.settings.settle_time * 1000, Self::inject_again_and_again);
        world.after(world.plan.duration * 1000, Self::heal);
        world.note(|| format!("{:?}", world.plan));
        world
    }

    pub fn new_storage(&mut self) -> StorageId {
        self.next_storage += 1;
        StorageId((u128::from(self.next_storage) << 64).to_be_bytes())
    }

    pub fn add_host(&mut self) -> Index {
        let index = self.hosts.len();
        let member = Member { node: name_of(index), storage: self.new_storage() };
        let clock = (self.random.between(1_000, 1_000_000), self.now);
        self.hosts.push(Host {
            member,
            life: 0,
            node: None,
            disk: Some(Disk::new(self.plan.contexts)),
            is_gone: false,
            graveyard: Vec::new(),
            clock,
            clock_runs: true,
            leaving: None,
            paused_until: 0,
            slow_until: 0,
        });
        index
    }

    /// Starts a node, unless it runs or is gone.
    pub fn start(&mut self, index: Index) {
        if self.hosts[index].is_gone {
            return;
        }
        let random = Random(self.random.number());
        let (clock, storage) = (self.clock(index), self.new_storage());
        let host = &mut self.hosts[index];
        let Some(mut disk) = host.disk.take() else { return };
        if disk.reidentify() {
            host.member.storage = storage;
            self.counts.add(Counted::Reidentified, 1);
        }
        host.life += 1;
        let (life, member, leaving) = (host.life, host.member.clone(), host.leaving);
        host.node = Some(Node::start(index, member, Rc::clone(&self.config), life, disk, clock, random));
        let declared = self.declared.clone();
        self.with(index, |node| {
            if leaving.is_some() {
                node.leave(leaving);
            }
            node.declare_lost(declared);
        });
        self.note(|| format!("n{index} starts"));
        self.tick(index, 1000);
    }

    fn tick(&mut self, index: Index, after: u64) {
        let life = self.hosts[index].life;
        self.at(self.now + after, Some(index), move |world| {
            if world.is_alive(index, life) {
                world.with(index, Node::tick);
                world.check_kept(index);
                let again = 100_000 + world.random.below(100_000);
                world.tick(index, again);
            }
        });
    }

    /// Cuts a node's power.
    pub fn crash(&mut self, index: Index) {
        let Some(Node { mut disk, .. }) = self.hosts[index].node.take() else { return };
        self.counts.add(Counted::WritesLost, disk.crash(&mut self.random));
        self.hosts[index].disk = Some(disk);
        self.note(|| format!("n{index} crashes"));
        self.network.streams.retain(|_, stream| stream.from != index);
        let streams = self.network.streams.iter().filter(|(_, stream)| stream.to == index);
        for stream in streams.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.break_stream(stream, 1_000_000);
        }
    }

    /// Returns the nodes that are not gone for good.
    pub fn present(&self) -> Vec<Index> {
        (0..self.hosts.len()).filter(|index| !self.hosts[*index].is_gone).collect()
    }

    /// Returns a node's clock, in milliseconds.
    pub fn clock(&self, index: Index) -> u64 {
        let host = &self.hosts[index];
        let (shown, since) = host.clock;
        if host.clock_runs { shown + (self.now - since) / 1000 } else { shown }
    }

    pub fn after(&mut self, micros: u64, what: impl FnOnce(&mut Self) + 'static) {
        self.at(self.now + micros, None, what);
    }

    pub fn at(&mut self, at: u64, node: Option<Index>, what: impl FnOnce(&mut Self) + 'static) {
        self.order += 1;
        self.queue.insert((at, self.order), (node, Box::new(what)));
    }

    /// Lets a node act after so many microseconds, unless it crashes before.
    pub fn node_after(&mut self, micros: u64, index: Index, what: impl FnOnce(&mut Node) + 'static) {
        let life = self.hosts[index].life;
        self.at(self.now + micros, Some(index), move |world| {
            if world.is_alive(index, life) {
                world.with(index, what);
            }
        });
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.config.is_traced {
            eprintln!("{:>11.3} {}", self.now as f64 / 1000.0, what());
        }
    }

    fn go(&mut self) {
        let mut steps = 0;
        while let Some(((at, _), (node, what))) = self.queue.pop_first() {
            self.now = self.now.max(at);
            steps += 1;
            self.fingerprint = self.fingerprint.rotate_left(5) ^ at;
            match node.map(|index| self.hosts[index].paused_until).filter(|until| *until > self.now) {
                Some(until) => {
                    self.order += 1;
                    self.queue.insert((until, self.order), (node, what));
                }
                None => what(self),
            }
            if steps > MOST_STEPS {
                self.violate(format!("it does not end within {MOST_STEPS} steps"));
            }
            if self.stage == Stage::Over || self.violation.is_some() {
                break;
            }
        }
        self.counts.add(Counted::Runs, 1);
        self.counts.add(Counted::Steps, steps);
        self.counts.add(Counted::Milliseconds, self.now / 1000);
    }

    pub fn is_alive(&self, node: Index, life: u64) -> bool {
        self.hosts[node].node.is_some() && self.hosts[node].life == life
    }

    /// Runs an action at a node, if the node is up, and then carries out its outputs.
    pub fn with(&mut self, index: Index, what: impl FnOnce(&mut Node)) {
        let clock = self.clock(index);
        let Some(node) = self.hosts[index].node.as_mut() else { return };
        node.now = clock;
        what(node);
        for out in node.run() {
            self.want(index, out);
        }
    }

    pub fn violate(&mut self, what: String) {
        self.note(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    pub fn check(&mut self, checked: Checked) {
        if let Err(violation) = checked {
            self.violate(violation);
        }
    }
}
