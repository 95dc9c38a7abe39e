//! What must hold, whatever happens.
//!
//! | always | of the whole run |
//! | --- | --- |
//! | one entry for each context, sequence and epoch | checked when an owner makes one |
//! | one owner for each epoch of a slot, and nobody else acknowledges in it | checked when somebody owns, and at each acknowledgement |
//! | a new owner holds all that was acknowledged or shown in epochs before (m > R / 2) | checked when somebody owns |
//! | what is acknowledged or shown has its copies on disks, and continues what was acknowledged or shown (m > R / 2) | checked at each acknowledgement, and whenever a reader could see more |
//! | a reader at any node sees all that was acknowledged or shown anywhere longer ago than `max_staleness` (m > R / 2, while the slot has an owner) | checked at each answer |
//! | a watcher sees each entry once, in order | checked by the watcher |
//! | after healing: replicas are equal, readers see everything, what was acknowledged is there, or in a fork if it had too few copies | checked at the end |

use std::collections::{BTreeMap, BTreeSet};

use ledger_core::{Epoch, Hash, node::Member, ownership::Claim, slot::Slot};

use super::{
    disk::Store,
    history::{Context, Contexts, Entry, History},
    message::Index,
};

/// An acknowledgement that a disk may take along.
#[derive(Debug)]
struct AtRiskAcknowledgement {
    context: Context,
    id: u64,
    on: Member,
}

/// What was seen to happen.
#[derive(Debug, Default)]
pub struct Invariants {
    pub is_strict: bool,
    created: BTreeMap<(Context, u64, Epoch), u64>,
    /// In which epoch an entry was written last: what was loaded is of an older one, of its own.
    written: BTreeMap<(Context, u64), Epoch>,
    owners: BTreeMap<(Slot, Epoch), Index>,
    acknowledgers: BTreeMap<(Slot, Epoch), Index>,
    /// Of each context, all that was shown or acknowledged.
    pub stable: Vec<History>,
    /// When each of these grew to which size: milliseconds.
    grown: Vec<Vec<(u64, u64)>>,
    /// What was acknowledged or shown before disks were lost with it: answers may be under way.
    forgotten: BTreeMap<Context, History>,
    sequences: BTreeMap<(Context, u64), u64>,
    kept: Vec<AtRiskAcknowledgement>,
}

/// What clients learn: a context up to a size, as it is at a node.
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

    /// An owner in one epoch wrote an entry, which may be of an older one.
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
            // What it turns out not to be able to read is shown to nobody, and restored from another.
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

    /// Clients learn of something that must be on so many disks. `copies` tells how many disks hold it.
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

    /// A reader is shown a context up to a size, which must be what was committed by a moment.
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

    /// A node acknowledges in an epoch of a slot.
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

    /// A client is told where an entry is.
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

    /// The disks that held a context are lost but for some, whose readers were shown it up to a size.
    pub fn forget(&mut self, context: Context, shown: u64) {
        self.forgotten.insert(context, self.stable[context].clone());
        self.stable[context].0.truncate(shown as usize);
        for (_, size) in &mut self.grown[context] {
            *size = shown.min(*size);
        }
        self.sequences.retain(|(of, _), sequence| *of != context || *sequence <= shown);
        self.kept.retain(|kept| kept.context != context);
    }

    /// Whether a context was so, up to a size, as far as clients may know.
    pub fn was_stable(&self, context: Context, size: u64, root: Hash) -> bool {
        let known = std::iter::once(&self.stable[context]).chain(self.forgotten.get(&context));
        known.into_iter().any(|history| history.root_at(size) == Some(root))
    }

    /// After healing: these are the histories of the owners, and all disks there are.
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
                // The members' histories are equal by now; a node that is no longer one may hold something else.
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

/// Where two histories part, in words.
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
