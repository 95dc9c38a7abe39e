//! Time: takes the next scheduled event, and executes it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    rc::Rc,
};

use ledger_core::{
    Epoch,
    node::{Member, NodeId, ReplicaSet, StorageId},
    ownership::{DeclaredLosses, slot_manager::DecommissionMode},
    slot::Slot,
};

use super::{
    broken::DisabledRule,
    client::{Client, Watcher, Writer},
    counts::{Counted, Counts},
    disk::{Disk, Store},
    fault_injection::Undo,
    faults::RunPlan,
    history::Contexts,
    invariants::Invariants,
    loader::Loader,
    message::{Index, Message, OwnerMessage, ReplicaMessage, Request, Response},
    network::Network,
    node::Node,
    node_output::{Config, Timer},
    random::Random,
};

/// The result of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub counts: Counts,
    pub violation: Option<String>,
    /// A hash of everything that happened.
    pub fingerprint: u64,
}

/// A scheduled event.
#[derive(Debug)]
pub(super) enum ScheduledEvent {
    Tick { node: Index, life: u64 },
    Message { from: Index, to: Index, number: u64, message: Message },
    Down { stream: u64, body: OwnerMessage },
    Up { stream: u64, body: ReplicaMessage },
    Lost { stream: u64 },
    Synced { node: Index, life: u64, up_to: u64 },
    Timer { node: Index, life: u64, timer: Timer },
    Client(usize),
    Request { to: Index, client: usize, request: u64, body: Request },
    Response { client: usize, request: u64, response: Response },
    Fault,
    Ambush,
    Undo(Undo),
    Heal,
    IsHealed,
}

struct Scheduled {
    at: u64,
    order: u64,
    what: ScheduledEvent,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A machine on which a node runs, or will.
pub(super) struct Host {
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
    /// How many times in a row nobody named it since.
    pub unnamed: u32,
    pub paused_until: u64,
    pub slow_until: u64,
}

/// The stage of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Faults happen.
    Faults,
    /// No more faults happen.
    Healing,
    /// All members were equal once.
    Settled,
    Over,
}

pub(super) struct World {
    pub plan: RunPlan,
    pub config: Rc<Config>,
    pub random: Random,
    /// Simulated time, in microseconds.
    pub now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    pub hosts: Vec<Host>,
    pub network: Network,
    pub clients: Vec<Client>,
    pub invariants: Invariants,
    pub counts: Counts,
    /// The newest owner of each slot, with the members.
    pub owned: BTreeMap<Slot, (ledger_core::ownership::Claim, ReplicaSet)>,
    pub next_request: u64,
    next_storage: u64,
    /// The members that operators declared lost.
    pub declared: DeclaredLosses,
    /// Contexts that may have lost acknowledged entries with the disks that held them.
    pub changed: BTreeSet<usize>,
    pub last_loss: u64,
    /// When a clock last stood still.
    pub clock_stood_still: Option<u64>,
    pub stage: Stage,
    /// The owners of all slots when all members were last equal.
    pub settled: Vec<(Index, Slot, Epoch)>,
    pub settled_times: u32,
    pub healing_since: u64,
    pub acknowledged_before: Vec<u64>,
    pub violation: Option<String>,
    fingerprint: u64,
    trace: bool,
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

impl World {
    fn new(seed: u64, broken: DisabledRule, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = RunPlan::new(seed, &mut random);
        let contexts = Rc::new(Contexts::new(plan.contexts, plan.slots));
        let mut settings = plan.settings.clone();
        let name = |index: usize| NodeId::new(format!("n{index}")).unwrap();
        if plan.is_listed {
            settings.first_nodes = (0..plan.nodes).map(name).collect();
        }
        let config = Rc::new(Config {
            contexts,
            settings,
            dead_after: plan.dead_after,
            broken,
            seeds: (0..plan.nodes).collect(),
            is_traced: trace,
        });
        let mut network = Network::new();
        (network.loss, network.duplicates, network.late) = (plan.loss, plan.duplicates, plan.late);
        network.cuts = plan.cuts;
        let mut world = Self {
            invariants: Invariants::new(plan.is_strict(), plan.contexts),
            config,
            random,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            hosts: Vec::new(),
            network,
            clients: Vec::new(),
            counts: Counts::default(),
            owned: BTreeMap::new(),
            next_request: 0,
            next_storage: 0,
            declared: DeclaredLosses::default(),
            changed: BTreeSet::new(),
            last_loss: 0,
            clock_stood_still: None,
            stage: Stage::Faults,
            settled: Vec::new(),
            settled_times: 0,
            healing_since: 0,
            acknowledged_before: Vec::new(),
            violation: None,
            fingerprint: 0,
            trace,
            plan,
        };
        for _ in 0..world.plan.nodes {
            let host = world.add_host();
            world.start(host);
        }
        world.add_clients();
        world.after(world.plan.settings.settle_time * 1000, ScheduledEvent::Fault);
        world.after(world.plan.duration * 1000, ScheduledEvent::Heal);
        let plan = format!("{:?}", world.plan);
        world.note(|| plan);
        world
    }

    fn add_clients(&mut self) {
        let keeps_all = !self.plan.is_strict();
        for number in 0..self.plan.writers {
            let context = number % self.plan.loaded.unwrap_or(self.plan.contexts);
            let writer = Writer::new(number, context, self.plan.other_copies, keeps_all, &mut self.random);
            self.clients.push(Client::Writer(writer));
        }
        for _ in 0..self.plan.watchers {
            let context = self.random.index(self.plan.contexts);
            self.clients.push(Client::Watcher(Watcher::new(context)));
        }
        if let Some(context) = self.plan.loaded {
            self.clients.push(Client::Loader(Loader::new(context)));
        }
        self.clients.push(Client::Reader);
        for client in 0..self.clients.len() {
            self.after(client as u64 * 1000, ScheduledEvent::Client(client));
        }
    }

    pub fn new_storage(&mut self) -> StorageId {
        self.next_storage += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next_storage.to_be_bytes());
        StorageId(id)
    }

    pub fn add_host(&mut self) -> Index {
        let node = NodeId::new(format!("n{}", self.hosts.len())).unwrap();
        let member = Member { node, storage: self.new_storage() };
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
            unnamed: 0,
            paused_until: 0,
            slow_until: 0,
        });
        self.hosts.len() - 1
    }

    pub fn start(&mut self, index: Index) {
        let random = Random::new(self.random.number());
        let clock = self.clock(index);
        let storage = self.new_storage();
        let host = &mut self.hosts[index];
        let Some(mut disk) = host.disk.take() else { return };
        if disk.reidentify() {
            host.member = Member { storage, ..host.member.clone() };
            self.counts.add(Counted::Reidentified, 1);
        }
        host.life += 1;
        let (life, member) = (host.life, host.member.clone());
        let leaving = host.leaving;
        host.node = Some(Node::start(index, member, Rc::clone(&self.config), life, disk, clock, random));
        let declared = self.declared.clone();
        self.with(index, |node| {
            if leaving.is_some() {
                node.leave(leaving);
            }
            node.declare_lost(declared);
        });
        self.note(|| format!("n{index} starts"));
        self.after(1000, ScheduledEvent::Tick { node: index, life });
    }

    /// Returns a node's clock, in milliseconds.
    pub fn clock(&self, index: Index) -> u64 {
        let host = &self.hosts[index];
        let (shown, since) = host.clock;
        if host.clock_runs { shown + (self.now - since) / 1000 } else { shown }
    }

    pub fn after(&mut self, micros: u64, what: ScheduledEvent) {
        self.at(self.now + micros, what);
    }

    pub(super) fn at(&mut self, at: u64, what: ScheduledEvent) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at, order: self.order, what }));
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>11.3} {}", self.now as f64 / 1000.0, what());
        }
    }

    fn go(&mut self) {
        while let Some(Reverse(Scheduled { at, what, .. })) = self.queue.pop() {
            self.now = self.now.max(at);
            self.counts.add(Counted::Steps, 1);
            self.fingerprint = self.fingerprint.rotate_left(5) ^ at;
            self.happen(what);
            if self.counts.get(Counted::Steps) > MOST_STEPS {
                self.violate(format!("it does not end within {MOST_STEPS} steps"));
            }
            if self.stage == Stage::Over || self.violation.is_some() {
                break;
            }
        }
        self.counts.add(Counted::Runs, 1);
        self.counts.add(Counted::Milliseconds, self.now / 1000);
    }

    /// Returns the node that an event concerns; `None` if it concerns no single node.
    fn target(&self, what: &ScheduledEvent) -> Option<Index> {
        match what {
            ScheduledEvent::Tick { node, .. }
            | ScheduledEvent::Synced { node, .. }
            | ScheduledEvent::Timer { node, .. } => Some(*node),
            ScheduledEvent::Message { to, .. } | ScheduledEvent::Request { to, .. } => Some(*to),
            ScheduledEvent::Down { stream, .. } => self.network.streams.get(stream).map(|stream| stream.to),
            ScheduledEvent::Up { stream, .. } | ScheduledEvent::Lost { stream } => {
                self.network.streams.get(stream).map(|stream| stream.from)
            }
            _ => None,
        }
    }

    fn happen(&mut self, what: ScheduledEvent) {
        let target = self.target(&what);
        if let Some(index) = target {
            let until = self.hosts[index].paused_until;
            if until > self.now {
                return self.at(until, what);
            }
        }
        match what {
            ScheduledEvent::Tick { node, life } => {
                if self.is_alive(node, life) {
                    self.with(node, Node::tick);
                    let again = 100_000 + self.random.below(100_000);
                    self.after(again, ScheduledEvent::Tick { node, life });
                }
            }
            ScheduledEvent::Message { from, to, number, message } => self.deliver(from, to, number, message),
            ScheduledEvent::Down { stream, body } => self.deliver_down(stream, body),
            ScheduledEvent::Up { stream, body } => self.deliver_up(stream, body),
            ScheduledEvent::Lost { stream } => {
                if let Some(gone) = self.network.streams.remove(&stream)
                    && self.is_alive(gone.from, gone.from_life)
                {
                    self.note(|| format!("n{} loses its stream to n{}", gone.from, gone.to));
                    self.with(gone.from, |node| node.stream_lost(stream));
                }
            }
            ScheduledEvent::Synced { node, life, up_to } => {
                if self.is_alive(node, life) {
                    self.with(node, |node| node.synced(up_to));
                }
            }
            ScheduledEvent::Timer { node, life, timer } => {
                if self.is_alive(node, life) {
                    self.with(node, |node| node.timer(timer));
                }
            }
            ScheduledEvent::Client(client) => self.wake(client),
            ScheduledEvent::Request { to, client, request, body } => {
                self.with(to, |node| node.request(client, request, body));
            }
            ScheduledEvent::Response { client, request, response } => self.respond(client, request, response),
            ScheduledEvent::Fault => self.fault(),
            ScheduledEvent::Ambush => self.ambush(),
            ScheduledEvent::Undo(undo) => self.undo(undo),
            ScheduledEvent::Heal => self.heal(),
            ScheduledEvent::IsHealed => self.is_healed(),
        }
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
}
