//! Watchers, and a reader: what anybody was shown must stay.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ledger_client::{Client, ClientError, ContextId, Options, ReadFrom, Selection, Sequence};
use ledger_tests::until_async;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};
use tokio::task::{AbortHandle, JoinSet};

use crate::record::Fact;

/// Between two reads.
const PACE: Duration = Duration::from_millis(20);

/// What watchers and readers were shown.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// By watcher, in the order in which it came.
    pub(crate) watched: Vec<(String, ContextId, Vec<Fact>)>,
    /// By the reader, each entry once.
    pub(crate) read: BTreeMap<(ContextId, Sequence), Fact>,
    /// Entries that the reader was shown, repetitions included.
    pub(crate) reads: u64,
    /// Errors that reached the user of the SDK.
    pub(crate) errors: Vec<String>,
    /// What must never be.
    pub(crate) violations: Vec<String>,
}

impl Shown {
    pub(crate) fn watched(&self) -> usize {
        self.watched.iter().map(|(_, _, facts)| facts.len()).sum()
    }
}

/// Watchers and a reader at work. They end when dropped.
#[derive(Debug)]
pub(crate) struct Watchers {
    shown: Arc<Mutex<Shown>>,
    tasks: JoinSet<()>,
    reader: AbortHandle,
}

impl Watchers {
    /// Starts, for each context, a watcher that has all addresses in an order of its own, one that has only one address
    /// out of `lasting` (nodes that come back if they go), and a reader that asks one node after the other.
    pub(crate) fn start(
        addresses: &[String],
        lasting: &[String],
        contexts: &[ContextId],
        random: &mut SmallRng,
    ) -> Self {
        let shown = Arc::<Mutex<Shown>>::default();
        let mut tasks = JoinSet::new();
        for context in contexts {
            let mut all = addresses.to_vec();
            all.shuffle(random);
            let one = lasting[random.random_range(0..lasting.len())].clone();
            for addresses in [all, vec![one]] {
                tasks.spawn(watch(Arc::clone(&shown), addresses, context.clone()));
            }
        }
        let reader = read(
            Arc::clone(&shown),
            addresses.to_vec(),
            contexts.to_vec(),
            SmallRng::seed_from_u64(random.random()),
        );
        let reader = tasks.spawn(reader);
        Self { shown, tasks, reader }
    }

    /// Waits until each watcher saw as many entries as its context has in the end.
    pub(crate) async fn finish(mut self, sizes: &BTreeMap<ContextId, u64>) -> Shown {
        self.reader.abort();
        let lacking = || {
            let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
            let broken = !shown.violations.is_empty();
            let lacking = shown.watched.iter().filter(|(_, context, facts)| {
                facts.last().map_or(0, |fact| fact.sequence.0) < sizes[context]
            });
            if broken { 0 } else { lacking.count() }
        };
        until_async("every watcher saw everything", async || (lacking() == 0).then_some(())).await;
        self.tasks.shutdown().await;
        std::mem::take(&mut self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The host of an address.
fn host(address: &str) -> &str {
    address.rsplit('/').next().unwrap_or(address).split(':').next().unwrap_or(address)
}

async fn watch(shown: Arc<Mutex<Shown>>, addresses: Vec<String>, context: ContextId) {
    let from = addresses.iter().map(|address| host(address)).collect::<Vec<_>>().join(", ");
    let name = format!("the watcher of {context} at {from}");
    let with = |change: &mut dyn FnMut(&mut Shown)| {
        change(&mut shown.lock().unwrap_or_else(PoisonError::into_inner));
    };
    let mut index = 0;
    with(&mut |shown| {
        index = shown.watched.len();
        shown.watched.push((name.clone(), context.clone(), Vec::new()));
    });
    let client = Client::connect_any(&addresses, &Options::default()).unwrap();
    let mut watch = client.watch(&context, Selection::default());
    loop {
        match watch.next().await {
            Ok(Some(entry)) => with(&mut |shown| shown.watched[index].2.push(Fact::from(&entry))),
            Ok(None) => return with(&mut |shown| shown.violations.push(format!("{name} ended"))),
            Err(error @ (ClientError::Unavailable(_) | ClientError::TimedOut(_))) => {
                let mut after = Sequence(0);
                with(&mut |shown| {
                    shown.errors.push(format!("{name}: {error}"));
                    after = shown.watched[index].2.last().map_or(after, |fact| fact.sequence);
                });
                watch = client.watch(&context, Selection { after, ..Selection::default() });
            }
            Err(error) => {
                return with(&mut |shown| shown.violations.push(format!("{name} failed: {error}")));
            }
        }
    }
}

async fn read(
    shown: Arc<Mutex<Shown>>,
    addresses: Vec<String>,
    contexts: Vec<ContextId>,
    mut random: SmallRng,
) {
    // A node that is away is none of this reader's concern: it tries once.
    let options = Options { tries: 1, timeout: Duration::from_secs(1), ..Options::default() };
    let clients: Vec<_> =
        addresses.iter().map(|address| Client::connect(address, &options).unwrap()).collect();
    let mut newest: BTreeMap<ContextId, u64> = BTreeMap::new();
    loop {
        tokio::time::sleep(PACE).await;
        let at = random.random_range(0..clients.len());
        let context = contexts[random.random_range(0..contexts.len())].clone();
        let known = newest.entry(context.clone()).or_default();
        let after = known.saturating_sub(random.random_range(0..20));
        let read_from = if random.random_ratio(1, 4) { ReadFrom::Owner } else { ReadFrom::AnyReplica };
        let selection = Selection { after: Sequence(after), limit: 50, read_from, ..Selection::default() };
        let Ok(entries) = clients[at].get(&context, selection).collect().await else { continue };
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in &entries {
            *known = (*known).max(entry.sequence.0);
            shown.reads += 1;
            let fact = Fact::from(entry);
            let first = shown.read.entry((context.clone(), entry.sequence)).or_insert_with(|| fact.clone());
            if *first != fact {
                let text = format!("{context}: {} showed {fact:?} after {first:?}", host(&addresses[at]));
                shown.violations.push(text);
            }
        }
    }
}
