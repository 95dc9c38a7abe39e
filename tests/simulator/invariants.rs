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

use std::collections::{BTreeMap, BTreeSet};

use ledger_core::{Epoch, Hash, node::Member, ownership::Claim, slot::Slot};

use super::{
    disk::Store,
    history::{Context, Contexts, Entry, History},
    message::Index,
};

/// An acknowledgement that the loss of a disk may undo.
#[derive(Debug)]
struct AtRiskAcknowledgement {
    context: Context,
    id: u64,
    on: Member,
}

/// The observations of a run.
#[derive(Debug, Default)]
pub struct Invariants {
    pub is_strict: bool,
    created: BTreeMap<(Context, u64, Epoch), u64>,
    /// The epoch in which each entry was written last. A loaded entry itself has an older epoch.
    written: BTreeMap<(Context, u64), Epoch>,
    owners: BTreeMap<(Slot, Epoch), Index>,
    acknowledgers: BTreeMap<(Slot, Epoch), Index>,
    /// Everything that was visible or acknowledged, by context.
    pub stable: Vec<History>,
    /// When each of these grew, in milliseconds, and to which size.
    grown: Vec<Vec<(u64, u64)>>,
    /// What was acknowledged or visible before disks were lost with it: responses may still be on their way.
    forgotten: BTreeMap<Context, History>,
    sequences: BTreeMap<(Context, u64), u64>,
    kept: Vec<AtRiskAcknowledgement>,
}

/// What clients learn: a context up to a size, as a node has it.
#[derive(Debug)]
pub struct Observation<'a> {
    pub what: &'static str,
    pub node: Index,
    pub context: Context,
    pub size: u64,
    pub history: &'a History,
}

pub type Checked = Result<(), String>;

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
        match self.created.insert((context, sequence, epoch), id) {
            Some(other) if other != id => Err(format!(
                "context {context} has two entries {sequence} of epoch {epoch}: {other:x} and {id:x}"
            )),
            _ => Ok(()),
        }
    }

    pub fn owned(
        &mut self,
        slot: Slot,
        claim: &Claim,
        node: Index,
        store: &Store,
        contexts: &Contexts,
        is_unreadable: impl Fn(Context) -> bool,
    ) -> Checked {
        if let Some(other) = self.owners.insert((slot, claim.epoch), node)
            && other != node
        {
            return Err(format!(
                "nodes {other} and {node} own slot {} in epoch {}",
                slot.number(),
                claim.epoch
            ));
        }
        if !self.is_strict {
            return Ok(());
        }
        for context in contexts.of(slot) {
            // What turns out to be unreadable is shown to nobody, and restored from another node.
            if is_unreadable(context) {
                continue;
            }
            let stable = &self.stable[context];
            let written = |entry: &Entry| self.written.get(&(context, entry.id)).copied().unwrap_or_default();
            let before = stable.0.partition_point(|entry| written(entry) < claim.epoch) as u64;
            let history = &store.histories[context];
            if history.root_at(before) != stable.root_at(before) {
                return Err(format!(
                    "node {node} owns slot {} in epoch {} and lacks what was acknowledged or shown of context {context} before: {}",
                    slot.number(),
                    claim.epoch,
                    differences(history, stable),
                ));
            }
        }
        Ok(())
    }

    /// Checks what clients learn that must be on that many disks. `copies` counts the disks that hold it.
    pub fn seen(
        &mut self,
        now: u64,
        seen: &Observation<'_>,
        needed: usize,
        copies: impl FnOnce() -> usize,
    ) -> Checked {
        if !self.is_strict {
            return Ok(());
        }
        let &Observation { what, node, context, size, history } = seen;
        let stable = &mut self.stable[context];
        let both = size.min(stable.size());
        if history.root_at(both) != stable.root_at(both) {
            return Err(format!(
                "node {node}: {what} of context {context} is not what was acknowledged or shown before: {}",
                differences(history, stable)
            ));
        }
        if size > stable.size() {
            let copies = copies();
            if copies < needed {
                return Err(format!(
                    "node {node}: {what} of context {context} up to {size}, which is on {copies} disks and must be on {needed}"
                ));
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
        match self.acknowledgers.insert((slot, epoch), node) {
            Some(other) if other != node => {
                Err(format!("nodes {other} and {node} acknowledge in slot {number} in epoch {epoch}"))
            }
            _ => Ok(()),
        }
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
            self.kept.push(AtRiskAcknowledgement { context, id, on: on.clone() });
            return Ok(());
        }
        match self.sequences.insert((context, id), sequence) {
            Some(other) if other != sequence => Err(format!(
                "entry {id:x} of context {context} was acknowledged as {other} and as {sequence}"
            )),
            _ => Ok(()),
        }
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
        self.kept.retain(|kept| kept.context != context);
    }

    /// Returns whether a context was like this up to a size, as far as clients may know.
    pub fn was_stable(&self, context: Context, size: u64, root: Hash) -> bool {
        let known = std::iter::once(&self.stable[context]).chain(self.forgotten.get(&context));
        known.into_iter().any(|history| history.root_at(size) == Some(root))
    }

    /// Checks after healing that these are the histories of the owners, on all disks.
    pub fn at_the_end(&self, canonical: &[History], disks: &[(Member, &Store)]) -> Checked {
        let mut there: Vec<BTreeSet<u64>> =
            canonical.iter().map(|history| history.0.iter().map(|entry| entry.id).collect()).collect();
        for (context, (history, stable)) in canonical.iter().zip(&self.stable).enumerate() {
            if self.is_strict && !history.starts_with(stable) {
                return Err(format!(
                    "context {context} lacks what was acknowledged or shown: {}",
                    differences(history, stable)
                ));
            }
            let ids: BTreeSet<u64> = history.0.iter().map(|entry| entry.id).collect();
            if ids.len() != history.0.len() {
                return Err(format!("context {context} has an entry twice"));
            }
            if history.0.iter().zip(1..).any(|(entry, sequence)| entry.sequence != sequence) {
                return Err(format!("the sequences of context {context} have gaps"));
            }
        }
        for (member, store) in disks {
            let kept = store.histories.iter().enumerate().map(|(context, history)| (context, &history.0));
            let left = store.forks.iter().map(|fork| (fork.context, &fork.entries));
            for (context, entry) in
                kept.chain(left).flat_map(|(of, entries)| entries.iter().map(move |entry| (of, entry)))
            {
                if self.created.get(&(context, entry.sequence, entry.epoch)) != Some(&entry.id) {
                    return Err(format!(
                        "{} has an entry of context {context} that nobody made: {entry:?}",
                        member.node
                    ));
                }
                // The members' histories are equal by now; a former member may hold something else.
                there[context].insert(entry.id);
            }
            for fork in &store.forks {
                if fork.heads[0].0 != fork.common + fork.entries.len() as u64 {
                    return Err(format!(
                        "the evidence of a fork of context {} does not fit it",
                        fork.context
                    ));
                }
            }
        }
        for AtRiskAcknowledgement { context, id, on } in &self.kept {
            let is_lost = !there[*context].contains(id);
            if is_lost && disks.iter().any(|(member, _)| member == on) {
                return Err(format!(
                    "entry {id:x} of context {context} was acknowledged by {} and is in no history and no fork",
                    on.node
                ));
            }
        }
        Ok(())
    }
}

/// Describes where two histories differ.
pub fn differences(here: &History, there: &History) -> String {
    let common = here.0.iter().zip(&there.0).take_while(|(here, there)| here == there).count();
    let next = |history: &History| {
        history
            .0
            .get(common)
            .map_or("nothing".to_owned(), |entry| format!("entry {:x} of epoch {}", entry.id, entry.epoch))
    };
    format!("after {common} entries here comes {}, there {}", next(here), next(there))
}
