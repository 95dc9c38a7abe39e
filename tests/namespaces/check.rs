//! What must hold when everything is healed.

use std::collections::{BTreeMap, HashMap, HashSet};

use ledger_client::{Client, ContextId, EntryId, Epoch, Hash, Options, Sequence};
use ledger_proto::ledger::v1::Checkpoint;
use ledger_tests::{History, PATIENCE, Rpc, check::core_entry, until_async};
use tokio::time::Instant;

use crate::{cluster::Cluster, load::Told, record::Fact, watch::Shown};

#[cfg(test)]
mod tests;

/// The history that all nodes agree on, of each context.
pub(crate) type Agreed = BTreeMap<ContextId, Vec<Fact>>;

/// What is wrong, each in words.
#[derive(Debug, Default)]
pub(crate) struct Violations {
    found: Vec<String>,
    /// Entries by what two of them must never share.
    by_epoch: HashMap<(ContextId, Sequence, Epoch), (EntryId, Hash, String)>,
}

impl Violations {
    fn add(&mut self, text: String) {
        self.found.push(text);
    }

    pub(crate) fn extend(&mut self, found: &[String]) {
        self.found.extend_from_slice(found);
    }

    /// Panics with what was found, if anything was.
    pub(crate) fn assert_none(&self) {
        let shown = self.found.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n  ");
        assert!(self.found.is_empty(), "{} violations:\n  {shown}", self.found.len());
    }

    /// Takes note of an entry that was seen somewhere.
    fn seen(&mut self, context: &ContextId, fact: &Fact, place: &str) {
        let key = (context.clone(), fact.sequence, fact.epoch);
        let entry = (fact.id.clone(), fact.content_hash, place.to_owned());
        let first = self.by_epoch.entry(key).or_insert_with(|| entry.clone());
        if (&first.0, &first.1) != (&entry.0, &entry.1) {
            let text = format!("{context}: two entries in one epoch: {fact:?} at {place} and {first:?}");
            self.found.push(text);
        }
    }

    /// Everything acknowledged is in the agreed history at its place, and in the order in which each writer was told.
    pub(crate) fn check_told(&mut self, agreed: &Agreed, told: &Told) {
        self.extend(&told.violations);
        for (context, writers) in &told.acknowledged {
            let history = &agreed[context];
            for list in writers {
                let mut last: Option<&Fact> = None;
                for acknowledged in list {
                    let fact = &acknowledged.fact;
                    let place = at(history, fact.sequence);
                    if place != Some(fact) {
                        self.add(format!("{context}: {fact:?} was acknowledged, and there is {place:?}"));
                    }
                    if last.is_some_and(|last| fact.sequence <= last.sequence) {
                        self.add(format!("{context}: {fact:?} was acknowledged after {last:?}"));
                    }
                    last = Some(fact);
                    self.seen(context, fact, "a writer");
                }
            }
        }
    }

    /// Everything shown is in the agreed history, and each watcher saw all of it, once and in order.
    pub(crate) fn check_shown(&mut self, agreed: &Agreed, shown: &Shown) {
        self.extend(&shown.violations);
        for (name, context, facts) in &shown.watched {
            let history = &agreed[context];
            if let Some(wrong) = (0..facts.len().max(history.len())).find(|&n| facts.get(n) != history.get(n))
            {
                let (seen, there) = (facts.get(wrong), history.get(wrong));
                self.add(format!("{name} saw {seen:?} as number {}, where there is {there:?}", wrong + 1));
            }
            for fact in facts {
                self.seen(context, fact, name);
            }
        }
        for ((context, sequence), fact) in &shown.read {
            let there = at(&agreed[context], *sequence);
            if there != Some(fact) {
                self.add(format!("{context}: a reader was shown {fact:?}, and there is {there:?}"));
            }
            self.seen(context, fact, "a reader");
        }
    }

    /// Collects the forks of all nodes; how many there are, and how many entries they have.
    pub(crate) async fn check_forks(&mut self, cluster: &Cluster, told: &Told) -> (usize, usize) {
        let (mut count, mut entries) = (0, 0);
        for index in cluster.running() {
            let name = &cluster.nodes[index].name;
            let client = Client::connect(&cluster.addresses()[index], &Options::default()).unwrap();
            let mut cursor = None;
            loop {
                let (forks, next) = client.forks(None, cursor, 0).await.unwrap();
                for fork in forks {
                    count += 1;
                    let place = format!("fork {} of {name}", fork.number);
                    let mut pages = client.fork_entries(&fork).await.unwrap();
                    let mut found = Vec::new();
                    while let Some(page) = pages.next().await.unwrap() {
                        found.extend(page.iter().map(Fact::from));
                    }
                    if found.len() as u64 != fork.entries() {
                        self.add(format!("{place} has {} entries, and not {}", found.len(), fork.entries()));
                    }
                    self.check_fork(&fork.context, &found, &place, told);
                    entries += found.len();
                }
                cursor = next;
                if cursor.is_none() {
                    break;
                }
            }
        }
        (count, entries)
    }

    /// Nothing that was acknowledged is in a history that was left.
    pub(crate) fn check_fork(&mut self, context: &ContextId, fork: &[Fact], place: &str, told: &Told) {
        let acknowledged: HashSet<_> = told
            .acknowledged
            .get(context)
            .into_iter()
            .flatten()
            .flatten()
            .map(|acknowledged| acknowledged.fact.place())
            .collect();
        for fact in fork {
            if acknowledged.contains(&fact.place()) {
                self.add(format!("{context}: {fact:?} was acknowledged, and is in {place}"));
            }
            self.seen(context, fact, place);
        }
    }

    /// Reads every context from every node, and verifies it: sequences, hashes and roots. All must be the same. A node that
    /// has damaged files may need a while.
    pub(crate) async fn agreed(
        &mut self,
        cluster: &Cluster,
        contexts: &[ContextId],
        is_damaged: bool,
    ) -> Agreed {
        let mut agreed = Agreed::new();
        for context in contexts {
            let members = cluster.members(context).await;
            let nodes: Vec<_> = cluster
                .running()
                .into_iter()
                .map(|index| {
                    let rpc = Rpc::over(cluster.nodes[index].channel());
                    // One that keeps no copy asks another node, as a user would have it.
                    let rpc = if members.contains(&index) { rpc.from_itself() } else { rpc };
                    (cluster.nodes[index].name.as_str(), rpc)
                })
                .collect();
            same_checkpoint(context, &nodes).await;
            let mut histories = Vec::new();
            for (name, rpc) in &nodes {
                let read = async || History::read_all(rpc, context.as_str()).await;
                let (_, entries) = if is_damaged {
                    until_async(&format!("{context} is readable on {name}"), async || read().await.ok()).await
                } else {
                    read().await.unwrap()
                };
                histories.push((*name, entries.iter().map(|entry| Fact::from(&core_entry(entry))).collect()));
            }
            agreed.insert(context.clone(), self.check_same(context, histories));
        }
        agreed
    }

    /// All nodes have the same history, without a gap, and with each entry once. Gives the first one's.
    pub(crate) fn check_same(&mut self, context: &ContextId, histories: Vec<(&str, Vec<Fact>)>) -> Vec<Fact> {
        for (name, facts) in &histories {
            if *facts != histories[0].1 {
                self.add(format!("{context} on {name} differs from {}", histories[0].0));
            }
            let mut ids = HashSet::new();
            for (fact, sequence) in facts.iter().zip(1..) {
                if fact.sequence != Sequence(sequence) {
                    self.add(format!("{context} on {name} has {fact:?} as number {sequence}"));
                }
                if !ids.insert(&fact.id) {
                    self.add(format!("{context} on {name} has {fact:?}, whose id is there before"));
                }
                self.seen(context, fact, name);
            }
        }
        histories.into_iter().next().map(|(_, facts)| facts).unwrap_or_default()
    }
}

/// Waits until all nodes give the same checkpoint: a replica shows what is stable a moment after its owner.
async fn same_checkpoint(context: &ContextId, nodes: &[(&str, Rpc)]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut told: Vec<(&str, Result<Checkpoint, String>)> = Vec::new();
        for (name, rpc) in nodes {
            let checkpoint = rpc.checkpoint(context.as_str()).await.map_err(|status| status.to_string());
            told.push((name, checkpoint));
        }
        if told.iter().all(|(_, checkpoint)| checkpoint.is_ok() && *checkpoint == told[0].1) {
            return;
        }
        assert!(Instant::now() < deadline, "{context}: nodes differ after {PATIENCE:?}: {told:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn at(history: &[Fact], sequence: Sequence) -> Option<&Fact> {
    history.get(usize::try_from(sequence.leaf_index()?).ok()?)
}
