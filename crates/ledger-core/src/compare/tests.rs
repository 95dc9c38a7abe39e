//! Nodes in memory that answer questions, and the loop that a shell would run.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use super::*;
use crate::{
    ContextId, Epoch, Hash, Size,
    digest::{Bucket, ContextSummary, Digest, SlotDigest, TreeHead},
    slot::Slot,
};

mod drill_down;
mod search;

/// A history without entries: its roots are made up, but as roots do they show where two histories part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct History {
    size: u64,
    /// Up to here the roots are those of every history of that context; after it, those of this branch.
    common: u64,
    branch: u8,
}

impl History {
    /// A history that no other parts from.
    const fn plain(size: u64) -> Self {
        Self { size, common: u64::MAX, branch: 0 }
    }

    fn root_at(&self, size: u64) -> Option<Hash> {
        let branch = if size > self.common { self.branch } else { 0 };
        let mut input = [branch; 9];
        input[1..].copy_from_slice(&size.to_be_bytes());
        (size <= self.size).then(|| Hash(*blake3::hash(&input).as_bytes()))
    }

    fn extent(&self) -> TreeHead {
        TreeHead { size: Size(self.size), root: self.root_at(self.size).unwrap() }
    }

    fn roots(&self, sizes: &[Size]) -> Vec<Hash> {
        sizes.iter().map_while(|size| self.root_at(size.0)).collect()
    }
}

/// A node that keeps all slots but those taken away from it.
#[derive(Debug, Clone, Default)]
struct Node {
    slots: BTreeMap<Slot, BTreeMap<ContextId, History>>,
    digests: BTreeMap<Slot, SlotDigest>,
    not_kept: BTreeSet<Slot>,
    /// What it has and cannot read.
    unreadable: BTreeSet<ContextId>,
}

fn context(number: u32) -> ContextId {
    ContextId::new(format!("tenant-{}/context-{number}", number % 7)).unwrap()
}

impl Node {
    fn of(contexts: impl IntoIterator<Item = (ContextId, History)>) -> Self {
        let mut node = Self::default();
        for (context, history) in contexts {
            node.set(&context, Some(history));
        }
        node
    }

    fn set(&mut self, context: &ContextId, new: Option<History>) {
        let slot = Slot::of(context);
        let contexts = self.slots.entry(slot).or_default();
        let old = match new {
            Some(history) => contexts.insert(context.clone(), history),
            None => contexts.remove(context),
        };
        let extent = |history: History| history.extent();
        self.digests.entry(slot).or_default().replace(context, old.map(extent), new.map(extent));
    }

    fn get(&self, context: &ContextId) -> Option<&History> {
        self.slots.get(&Slot::of(context))?.get(context)
    }

    fn digest(&self, slot: Slot) -> Option<Digest> {
        let digest = self.digests.get(&slot).map_or_else(Digest::default, SlotDigest::whole);
        (!self.not_kept.contains(&slot)).then_some(digest)
    }

    fn all_digests(&self) -> BTreeMap<Slot, Digest> {
        let slots = (0..crate::slot::SLOTS).filter_map(Slot::new);
        slots.filter_map(|slot| Some((slot, self.digest(slot)?))).collect()
    }

    fn answer(&self, ask: &CompareRequest) -> CompareResponse {
        ask.check().unwrap();
        match ask {
            CompareRequest::Node { slots, digest } => {
                CompareResponse::to_node(slots, *digest, |slot| self.digest(slot))
            }
            CompareRequest::Buckets { slots } => {
                let kept = slots.iter().filter(|slot| !self.not_kept.contains(slot));
                let buckets = |slot| {
                    self.digests.get(slot).map(|digest| digest.buckets().collect()).unwrap_or_default()
                };
                CompareResponse::Buckets(kept.map(|slot| (*slot, buckets(slot))).collect())
            }
            CompareRequest::Contexts { buckets, after } => {
                CompareResponse::Contexts(self.page(buckets, after.as_ref()))
            }
            CompareRequest::Roots(asked) => {
                let roots = |RootsRequest { context, sizes }: &RootsRequest| {
                    if self.unreadable.contains(context) {
                        return Roots::Unreadable;
                    }
                    self.get(context).map_or(Roots::Absent, |history| Roots::At(history.roots(sizes)))
                };
                CompareResponse::Roots(asked.iter().map(roots).collect())
            }
        }
    }

    fn page(&self, buckets: &BTreeMap<Slot, BTreeSet<Bucket>>, after: Option<&ContextId>) -> Page {
        let mut rest = buckets.iter().flat_map(|(slot, buckets)| {
            let from = match after {
                Some(after) if Slot::of(after) > *slot => None,
                Some(after) if Slot::of(after) == *slot => Some(Bound::Excluded(after.clone())),
                _ => Some(Bound::Unbounded),
            };
            let contexts = from.zip(self.slots.get(slot));
            let contexts = contexts.map(|(from, contexts)| contexts.range((from, Bound::Unbounded)));
            contexts.into_iter().flatten().filter(|(context, _)| buckets.contains(&Bucket::of(context)))
        });
        let listed = |(context, history): (&ContextId, &History)| {
            if self.unreadable.contains(context) {
                ListedContext::Unreadable(context.clone())
            } else {
                ListedContext::Present(summary(context, history))
            }
        };
        let contexts = rest.by_ref().take(MAX_PAGE).map(listed).collect();
        Page { contexts, more: rest.next().is_some() }
    }
}

fn summary(context: &ContextId, history: &History) -> ContextSummary {
    let TreeHead { size, root } = history.extent();
    ContextSummary { context: context.clone(), size, root, epoch: Epoch::default() }
}

/// What a drill-down did.
#[derive(Debug, Default)]
struct Ran {
    found: BTreeMap<ContextId, Verdict>,
    not_kept: BTreeSet<Slot>,
    round_trips: u32,
    /// Of questions and answers, as a plain binary encoding would carry them.
    bytes: usize,
}

/// Runs a drill-down of `ours` with `theirs` to its end; `between(ours, theirs)` happens before each answer.
fn run(
    ours: &mut Node,
    theirs: &mut Node,
    mut between: impl FnMut(&mut Node, &mut Node),
) -> Result<Ran, CompareError> {
    let mut ran = Ran::default();
    let (mut drill, mut effects) = DrillDown::start(ours.all_digests());
    loop {
        let mut events = Vec::new();
        for effect in std::mem::take(&mut effects) {
            between(ours, theirs);
            match effect {
                Effect::AskRemote(ask) => {
                    let answer = theirs.answer(&ask);
                    ran.round_trips += 1;
                    ran.bytes += ask_bytes(&ask) + answer_bytes(&answer);
                    events.push(Event::Remote(answer));
                }
                Effect::AskLocal(ask) => events.push(Event::Local(ours.answer(&ask))),
                Effect::NotReplicated(slots) => ran.not_kept = slots,
                Effect::Found(Finding { context, verdict, .. }) => {
                    assert_eq!(ran.found.insert(context, verdict), None, "found twice");
                }
                Effect::Done => {
                    assert!(events.is_empty());
                    assert_eq!(ran.round_trips, drill.rounds());
                    return Ok(ran);
                }
            }
        }
        assert!(!events.is_empty(), "the machine waits for nothing");
        for event in events {
            effects.extend(drill.step(event)?);
        }
    }
}

fn run_quietly(ours: &Node, theirs: &Node) -> Ran {
    run(&mut ours.clone(), &mut theirs.clone(), |_, _| {}).unwrap()
}

fn ask_bytes(ask: &CompareRequest) -> usize {
    // Sets of slots and buckets as bits.
    match ask {
        CompareRequest::Node { .. } => 1 + 128 + 32,
        CompareRequest::Buckets { .. } => 1 + 128,
        CompareRequest::Contexts { buckets, .. } => 1 + buckets.len() * (2 + 32) + 1024,
        CompareRequest::Roots(asked) => {
            asked.iter().map(|RootsRequest { context, sizes }| context.as_str().len() + sizes.len() * 8).sum()
        }
    }
}

fn answer_bytes(answer: &CompareResponse) -> usize {
    match answer {
        CompareResponse::InSync => 1,
        CompareResponse::Slots(slots) => slots.len() * 42,
        CompareResponse::Buckets(slots) => slots.values().map(|buckets| 2 + buckets.len() * 41).sum(),
        CompareResponse::Contexts(Page { contexts, .. }) => {
            contexts.iter().map(|listed| listed.context().as_str().len() + 2 + 8 + 32 + 8).sum()
        }
        CompareResponse::Roots(roots) => {
            roots.iter().map(|roots| if let Roots::At(roots) = roots { roots.len() * 32 } else { 1 }).sum()
        }
    }
}
