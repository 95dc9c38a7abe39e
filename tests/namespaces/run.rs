//! One run of one scenario: a cluster, its clients, and the count of what they saw.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ledger_client::ContextId;
use ledger_tests::skip;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use crate::{
    check::Violations,
    cluster::Cluster,
    faults::{clock::WrongClock, power::FileSystem, sync::FaultySync},
    load::Load,
    node::Node,
    report::Report,
    watch::Watchers,
};

/// Contexts that are written.
const CONTEXTS: usize = 6;
/// Appends to each context before a fault, and at least after it.
const SOME: u64 = 100;

/// A run, as the scenario has it in hand.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) what: What,
    setting: Setting,
    pub(crate) random: SmallRng,
    pub(crate) cluster: Cluster,
    pub(crate) contexts: Vec<ContextId>,
    pub(crate) load: Load,
    watchers: Watchers,
    begun: Instant,
    /// What the scenario measured, for people.
    pub(crate) notes: Vec<String>,
}

/// Which run it is: what repeats it.
#[derive(Debug, Clone)]
pub(crate) struct What {
    pub(crate) scenario: String,
    pub(crate) seed: u64,
}

/// What a scenario needs before it begins.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// Nodes there may be.
    pub(crate) nodes: u8,
    /// How many of them start.
    pub(crate) start: usize,
    /// Further flags for each node.
    pub(crate) flags: &'static [&'static str],
    /// Whether all contexts have the same owner.
    pub(crate) one_owner: bool,
    /// Nodes, by index, that go for good.
    pub(crate) leaving: &'static [usize],
    /// What each node stands on.
    pub(crate) ground: Ground,
    pub(crate) forks: Forks,
    /// Whether files are damaged, so that a node may have to heal what it is asked to read.
    pub(crate) is_damaged: bool,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            nodes: 3,
            start: 3,
            flags: &[],
            one_owner: false,
            leaving: &[],
            ground: Ground::Machine,
            forks: Forks::Some,
            is_damaged: false,
        }
    }
}

/// What nodes stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    /// The machine as it is.
    Machine,
    /// The machine, but for one node, by index, with a disk of so many bytes.
    Small(usize, usize),
    /// File systems that can lose their power.
    Volumes(FileSystem),
    /// Wall clocks that can be wrong.
    Clocks,
    /// Disks whose syncs can be slow, and fail; each takes so much longer from the start.
    Syncs(Duration),
}

impl Ground {
    fn prepare(self, nodes: &mut [Node]) -> Result<(), String> {
        for (index, node) in nodes.iter_mut().enumerate() {
            match self {
                Self::Machine => {}
                Self::Small(small, bytes) => {
                    if small == index {
                        node.make_small(bytes)?;
                    }
                }
                Self::Volumes(kind) => node.mount(kind)?,
                Self::Clocks => node.clock = Some(WrongClock::new(node.dir())?),
                Self::Syncs(longer) => {
                    let sync = FaultySync::new(node.dir())?;
                    sync.set(longer, 0);
                    node.sync = Some(sync);
                }
            }
        }
        Ok(())
    }
}

/// What errors may reach a user of the SDK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errors {
    /// None at all.
    None,
    /// Those that say to try again: nothing that takes longer than the SDK's patience is ruled out.
    Some,
}

/// Whether nodes may have left histories for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forks {
    /// No slot lost its owner by surprise.
    None,
    /// Of what was not acknowledged.
    Some,
}

/// Whether somebody asked for these scenarios, rather than for all tests.
pub(crate) fn is_asked_for() -> bool {
    std::env::var_os("LEDGERTEST_NAMESPACES_ROUNDS").is_some()
}

impl Run {
    /// Starts nodes and clients, and waits until all are at work. `None`, with a message, where something is missing.
    pub(crate) async fn start(what: What, setting: Setting) -> Option<Self> {
        let begun = Instant::now();
        let mut random = SmallRng::seed_from_u64(what.seed);
        let missing = |why: &str| skip(&format!("{}: {why}", what.scenario));
        let cluster = Cluster::new(setting.nodes, setting.flags).inspect_err(|why| {
            assert!(!is_asked_for(), "{}: {why}", what.scenario);
            missing(why);
        });
        let mut cluster = cluster.ok()?;
        setting.ground.prepare(&mut cluster.nodes).inspect_err(|why| missing(why)).ok()?;
        for index in 0..setting.start {
            cluster.spawn(index);
        }
        for index in 0..setting.start {
            cluster.serves(index).await;
        }
        cluster.settled("at the start").await;
        let contexts = choose(&cluster, setting.one_owner, &mut random).await;
        let load = Load::start(&cluster.addresses(), &contexts);
        let addresses = cluster.addresses();
        let lasting =
            addresses.iter().take(3).enumerate().filter(|(index, _)| !setting.leaving.contains(index));
        let lasting: Vec<_> = lasting.map(|(_, address)| address.clone()).collect();
        let watchers = Watchers::start(&addresses, &lasting, &contexts, &mut random);
        let notes = vec![format!("ready in {:.1} s", begun.elapsed().as_secs_f64())];
        let run = Self { what, setting, random, cluster, contexts, load, watchers, begun, notes };
        run.goes_on("at the start").await;
        Some(run)
    }

    /// Waits until appends to each context were acknowledged from now on.
    pub(crate) async fn goes_on(&self, when: &str) {
        self.load.goes_on(when, SOME).await;
    }

    /// Lets the load go on for a time that the seed gives.
    pub(crate) async fn a_while(&mut self, milliseconds: std::ops::Range<u64>) {
        // Not to wait for something: so that faults fall where nobody planned them.
        tokio::time::sleep(Duration::from_millis(self.random.random_range(milliseconds))).await;
    }

    pub(crate) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// When all is healed: ends the load, waits until all copies are in sync, and checks everything.
    pub(crate) async fn finish(mut self, errors: Errors) -> Report {
        self.goes_on("when all is healed").await;
        let told = self.load.stop().await;
        let settling = self.cluster.settled("at the end").await;
        let mut violations = Violations::default();
        let agreed = violations.agreed(&self.cluster, &self.contexts, self.setting.is_damaged).await;
        let sizes: BTreeMap<_, _> =
            agreed.iter().map(|(context, facts)| (context.clone(), facts.len() as u64)).collect();
        let shown = self.watchers.finish(&sizes).await;
        violations.check_told(&agreed, &told);
        violations.check_shown(&agreed, &shown);
        let (forks, forked) = violations.check_forks(&self.cluster, &told).await;
        let failed: Vec<_> = told.errors.iter().chain(&shown.errors).cloned().collect();
        if errors == Errors::None {
            violations.extend(&failed);
        }
        if self.setting.forks == Forks::None && forks > 0 {
            violations.extend(&[format!("{forks} forks of {forked} entries, where no slot lost its owner")]);
        }
        self.notes.push(format!("in step {:.1} s after the load", settling.as_secs_f64()));
        let (pause, at) = told.longest_pause();
        let report = Report {
            took: self.begun.elapsed(),
            acknowledged: told.count(),
            stored: agreed.values().map(Vec::len).sum(),
            watched: shown.watched(),
            read: shown.reads,
            pause,
            forks,
            forked,
            errors: failed.len(),
        };
        self.notes.push(format!("the pause began {at:.1} s after the load"));
        println!("{}, seed {}: {report}; {}", self.what.scenario, self.what.seed, self.notes.join("; "));
        failed.iter().take(3).for_each(|error| println!("  error: {error}"));
        violations.assert_none();
        report
    }
}

/// Contexts with as many owners as there are nodes, or with one.
async fn choose(cluster: &Cluster, one_owner: bool, random: &mut SmallRng) -> Vec<ContextId> {
    let first = random.random_range(0..1_000_000);
    let mut chosen: Vec<ContextId> = Vec::new();
    let mut owners: BTreeMap<usize, usize> = BTreeMap::new();
    for number in first.. {
        let context = ContextId::new(format!("context-{number}")).unwrap();
        let owner = cluster.owner(&context).await;
        let share = if one_owner { CONTEXTS } else { CONTEXTS / 3 };
        let is_other = one_owner && owners.keys().any(|known| *known != owner);
        if is_other || owners.get(&owner).is_some_and(|count| *count >= share) {
            continue;
        }
        *owners.entry(owner).or_default() += 1;
        chosen.push(context);
        if chosen.len() == CONTEXTS {
            break;
        }
    }
    chosen
}
