//! What must always hold.
//!
//! | invariant | when it is checked |
//! | --- | --- |
//! | one entry for each context, sequence and epoch | when an owner writes one |
//! | one owner for each epoch of a slot, and nobody else acknowledges in it | when a node becomes owner, and at each acknowledgement |
//! | a new owner holds all that was acknowledged or visible in earlier epochs (m > R / 2) | when a node becomes owner |
//! | what is acknowledged or visible has its quorum on disks, and continues what was acknowledged or visible before (m > R / 2) | at each acknowledgement, and whenever a reader could see more |
//! | a reader at any node sees all that was acknowledged or visible anywhere longer ago than `max_staleness` (m > R / 2, while the slot has an owner) | at each response |
//! | a watcher sees each entry once, in order | by the watcher |
//! | after healing: replicas are equal, readers see everything, and what was acknowledged is there, or in a fork if its quorum was too small | at the end |

use super::{disk::Fork, prelude::*, run::Checked};

/// The observations of a run.
#[derive(Debug, Default)]
pub struct Invariants {
    is_strict: bool,
    created: BTreeMap<(Context, u64, Epoch), u64>,
    /// The epoch in which each entry was written last. A loaded entry itself has an older epoch.
    written: BTreeMap<(Context, u64), Epoch>,
    owners: BTreeMap<(Slot, Epoch), Index>,
    acknowledgers: BTreeMap<(Slot, Epoch), Index>,
    /// Everything that was visible or acknowledged, by context.
    stable: Vec<History>,
    /// When each of these grew, in milliseconds, and to which size.
    grown: Vec<Vec<(u64, u64)>>,
    /// What was acknowledged or visible before disks were lost with it: responses may still be on their way.
    forgotten: BTreeMap<Context, History>,
    sequences: BTreeMap<(Context, u64), u64>,
    /// Acknowledged entries that the loss of a disk may undo, by context and id, with the member that acknowledged.
    at_risk: Vec<(Context, u64, Member)>,
}

/// Notes who did something that only one may do; an error names the two who did.
fn only_one<K: Ord, V: Copy + PartialEq>(known: &mut BTreeMap<K, V>, key: K, who: V) -> Result<(), (V, V)> {
    let other = *known.entry(key).or_insert(who);
    if other == who { Ok(()) } else { Err((other, who)) }
}

impl Invariants {
    pub fn new(is_strict: bool, contexts: usize) -> Self {
        let (stable, grown) = (vec![History::default(); contexts], vec![Vec::new(); contexts]);
        Self { is_strict, stable, grown, ..Self::default() }
    }

    /// Checks that an owner wrote an entry in an epoch. The entry itself may have an older epoch.
    pub fn created(&mut self, context: Context, entry: &Entry, by: Epoch) -> Checked {
        let Entry { sequence, epoch, id, .. } = *entry;
        let written = self.written.entry((context, id)).or_default();
        *written = by.max(*written);
        only_one(&mut self.created, (context, sequence, epoch), id).map_err(|(other, id)| {
            format!("context {context} has two entries {sequence} of epoch {epoch}: {other:x} and {id:x}")
        })
    }

    /// Checks that a node may own a slot in an epoch.
    pub fn owns(&mut self, slot: Slot, claim: &Claim, node: Index) -> Checked {
        only_one(&mut self.owners, (slot, claim.epoch), node).map_err(|(one, other)| {
            format!("nodes {one} and {other} own slot {} in epoch {}", slot.number(), claim.epoch)
        })
    }

    /// Checks that a new owner holds what was acknowledged or visible of a context before.
    pub fn holds(
        &self,
        slot: Slot,
        claim: &Claim,
        node: Index,
        context: Context,
        history: &History,
    ) -> Checked {
        let stable = &self.stable[context];
        let written = |entry: &Entry| self.written.get(&(context, entry.id)).copied().unwrap_or_default();
        let before = stable.0.partition_point(|entry| written(entry) < claim.epoch) as u64;
        if self.is_strict && history.root_at(before) != stable.root_at(before) {
            return Err(format!(
                "node {node} owns slot {} in epoch {} and lacks what was acknowledged or shown of context {context} before: {}",
                slot.number(),
                claim.epoch,
                differences(history, stable),
            ));
        }
        Ok(())
    }

    /// Checks what clients learn of a context, up to a size: what was known before, on that many disks. `copies` counts
    /// those that hold it.
    pub fn seen(
        &mut self,
        now: u64,
        (context, size): (Context, u64),
        history: &History,
        needed: usize,
        copies: impl FnOnce() -> usize,
    ) -> Checked {
        if !self.is_strict {
            return Ok(());
        }
        let stable = &mut self.stable[context];
        if size > history.size() {
            return Err(format!("up to {size}, which is not there"));
        }
        let both = size.min(stable.size());
        if history.root_at(both) != stable.root_at(both) {
            let differences = differences(history, stable);
            return Err(format!("is not what was acknowledged or shown before: {differences}"));
        }
        if size > stable.size() {
            let copies = copies();
            if copies < needed {
                return Err(format!("up to {size}, which is on {copies} disks and must be on {needed}"));
            }
            stable.0.extend_from_slice(&history.0[stable.size() as usize..size as usize]);
            self.grown[context].push((now, size));
        }
        Ok(())
    }

    /// Checks what a reader sees of a context: all that was committed by a moment.
    pub fn read(&self, node: Index, context: Context, size: u64, since: u64) -> Checked {
        let grown = &self.grown[context];
        let known = grown.partition_point(|(at, _)| *at <= since);
        let least = known.checked_sub(1).map_or(0, |last| grown[last].1);
        if size < least {
            return Err(format!(
                "a reader at node {node} sees {size} entries of context {context}: {least} were committed {since} ms into the run"
            ));
        }
        Ok(())
    }

    /// Checks that a node may acknowledge in an epoch of a slot.
    pub fn acknowledges(&mut self, slot: Slot, epoch: Option<Epoch>, node: Index) -> Checked {
        let number = slot.number();
        let Some(epoch) = epoch else {
            return Err(format!("node {node} acknowledges in slot {number}, which it does not own"));
        };
        only_one(&mut self.acknowledgers, (slot, epoch), node).map_err(|(one, other)| {
            format!("nodes {one} and {other} acknowledge in slot {number} in epoch {epoch}")
        })
    }

    /// Checks an acknowledgement that a client receives.
    pub fn acknowledged(
        &mut self,
        context: Context,
        sequence: u64,
        id: u64,
        is_stable: bool,
        on: &Member,
    ) -> Checked {
        if !is_stable || !self.is_strict {
            self.at_risk.push((context, id, on.clone()));
            return Ok(());
        }
        only_one(&mut self.sequences, (context, id), sequence).map_err(|(one, other)| {
            format!("entry {id:x} of context {context} was acknowledged as {one} and as {other}")
        })
    }

    /// Forgets what only lost disks held of a context, except what the remaining members had made visible up to a
    /// size.
    pub fn forget(&mut self, context: Context, shown: u64) {
        self.forgotten.insert(context, self.stable[context].clone());
        self.stable[context].0.truncate(shown as usize);
        for (_, size) in &mut self.grown[context] {
            *size = shown.min(*size);
        }
        self.sequences.retain(|(of, _), sequence| *of != context || *sequence <= shown);
        self.at_risk.retain(|(of, ..)| *of != context);
    }

    /// Returns whether a context was like this up to a size, as far as clients may know.
    pub fn was_stable(&self, context: Context, size: u64, root: Hash) -> bool {
        let known = std::iter::once(&self.stable[context]).chain(self.forgotten.get(&context));
        known.into_iter().any(|history| history.root_at(size) == Some(root))
    }

    /// Checks after healing that these are the histories of the owners, on all disks.
    pub fn at_the_end(&self, canonical: &[History], disks: &[(Member, &Store)]) -> Checked {
        let ids = |history: &History| history.0.iter().map(|entry| entry.id).collect::<BTreeSet<u64>>();
        let mut there: Vec<BTreeSet<u64>> = canonical.iter().map(ids).collect();
        for (context, (history, stable)) in canonical.iter().zip(&self.stable).enumerate() {
            if self.is_strict && !history.starts_with(stable) {
                let differences = differences(history, stable);
                return Err(format!("context {context} lacks what was acknowledged or shown: {differences}"));
            }
            if there[context].len() != history.0.len() {
                return Err(format!("context {context} has an entry twice"));
            }
            if history.0.iter().zip(1..).any(|(entry, sequence)| entry.sequence != sequence) {
                return Err(format!("the sequences of context {context} have gaps"));
            }
        }
        for (Member { node, .. }, store) in disks {
            let kept = store.histories.iter().map(|history| &history.0).enumerate();
            let left = store.forks.iter().map(|fork| (fork.context, &fork.entries));
            for (context, entries) in kept.chain(left) {
                let is_made = |entry: &&Entry| {
                    self.created.get(&(context, entry.sequence, entry.epoch)) == Some(&entry.id)
                };
                if let Some(entry) = entries.iter().find(|entry| !is_made(entry)) {
                    return Err(format!(
                        "{node} has an entry of context {context} that nobody made: {entry:?}"
                    ));
                }
                // The members' histories are equal by now; a former member may hold something else.
                there[context].extend(entries.iter().map(|entry| entry.id));
            }
            let fits = |fork: &&Fork| fork.heads[0].size.0 == fork.common + fork.entries.len() as u64;
            if let Some(fork) = store.forks.iter().find(|fork| !fits(fork)) {
                return Err(format!("the evidence of a fork of context {} does not fit it", fork.context));
            }
        }
        let is_lost = |(context, id, on): &&(Context, u64, Member)| {
            !there[*context].contains(id) && disks.iter().any(|(member, _)| member == on)
        };
        self.at_risk.iter().find(is_lost).map_or(Ok(()), |(context, id, on)| {
            let node = &on.node;
            Err(format!(
                "entry {id:x} of context {context} was acknowledged by {node} and is in no history and no fork"
            ))
        })
    }
}

/// Describes where two histories differ.
fn differences(here: &History, there: &History) -> String {
    let common = here.0.iter().zip(&there.0).take_while(|(here, there)| here == there).count();
    let [here, there] = [here, there].map(|history| {
        let next = history.0.get(common);
        next.map_or("nothing".to_owned(), |entry| format!("entry {:x} of epoch {}", entry.id, entry.epoch))
    });
    format!("after {common} entries here comes {here}, there {there}")
}
