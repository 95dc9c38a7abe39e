//! Catching up: how a node obtains what another node holds. A claimant does it with every node that has the best
//! history, one after the other. A replica does it with the slot's owner, until it accepts a sync offer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use ledger_core::{
    ContextId, Hash, Size,
    compare::{self, DrillDown, Finding, ListedContext, MAX_PAGE, Page, Roots, RootsRequest, Side, Verdict},
    digest::{Bucket, ContextSummary, SlotDigest},
    node::Member,
    ownership::{
        Claim,
        slot_manager::{Event, SyncOfferOutcome},
    },
    slot::Slot,
};

use super::{
    counts::Counted,
    history::Context,
    message::{CatchUpRequest, CatchUpResponse, Index, Message, Part, ReplicaMessage},
    node::{Node, index_of},
    node_output::{NodeOutput, Note, Timer},
    replicate::ReplicateOutcome,
};

/// How long a request may take, in milliseconds.
const ANSWER_WITHIN: u64 = 800;
/// How long a replica waits for a sync offer, and before it retries, in milliseconds.
const RETRY: u64 = 1000;
/// A claimant gives up after this many requests without a response.
const FAILURES: u32 = 4;

/// A slot that is being brought in sync.
#[derive(Debug)]
pub struct Task {
    claim: Claim,
    /// The nodes to catch up with, and the index of the next one.
    sources: Vec<Member>,
    at: usize,
    purpose: Purpose,
    drill: Option<DrillDown>,
    findings: VecDeque<Finding>,
    /// The action for the finding whose request is pending.
    doing: Option<Doing>,
    /// Whether something changed since the comparison began.
    is_dirty: bool,
    asked: Option<u64>,
    failures: u32,
    /// Distinguishes its timers from those of earlier tasks.
    generation: u64,
    fetched: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To follow the owner at this node.
    Follow(Index),
    /// To own the slot. A claimant that is no source itself has nothing to add to the first source's history.
    Claim { is_source: bool },
}

#[derive(Debug, Clone, Copy)]
enum Doing {
    /// Fetch a context up to a size.
    Fetch(Context, u64),
    /// Fetch the whole history, to replace what cannot be read here.
    Restore(Context),
    /// Ask whether the owner has this node's entries, after those were read.
    Recheck { context: Context, ours: (u64, Hash), from: u64 },
}

impl Task {
    fn new(claim: Claim, sources: Vec<Member>, purpose: Purpose) -> Self {
        Self {
            claim,
            sources,
            at: 0,
            purpose,
            drill: None,
            findings: VecDeque::new(),
            doing: None,
            is_dirty: false,
            asked: None,
            failures: 0,
            generation: 0,
            fetched: 0,
        }
    }

    /// Returns whether it follows the owner at this node.
    pub fn follows(&self, owner: Index) -> bool {
        self.purpose == Purpose::Follow(owner)
    }

    pub fn is_claim(&self) -> bool {
        matches!(self.purpose, Purpose::Claim { .. })
    }

    /// Returns whether it keeps what goes beyond the source's history, so that the longest of the best wins.
    fn keeps_longer(&self) -> bool {
        match self.purpose {
            Purpose::Follow(_) => false,
            Purpose::Claim { is_source } => is_source || self.at > 0,
        }
    }
}

impl Node {
    /// Makes this replica follow a claim's owner.
    pub(super) fn follow_task(&mut self, slot: Slot, claim: &Claim, owner: Index) {
        let is_running = self.tasks.get(&slot).is_some_and(|task| task.claim >= *claim);
        let Some((_, member)) = self.incoming.get(&owner).cloned() else { return };
        if !is_running {
            // The same as for a claim: an abandoned source would wait forever.
            self.give_up(slot);
            let task = Task::new(claim.clone(), vec![member], Purpose::Follow(owner));
            self.tasks.insert(slot, task);
            self.begin(slot);
        }
    }

    /// Makes this claimant fetch the longest of the best histories.
    pub(super) fn claim_task(&mut self, slot: Slot, claim: Claim, from: Vec<Member>) {
        if self.tasks.get(&slot).is_some_and(|task| task.claim > claim) {
            // It follows a higher claim by now.
            return self.events.push_back(Event::CaughtUp { slot, claim, is_complete: false });
        }
        // The source that it followed would wait forever.
        self.give_up(slot);
        let is_source = from.contains(&self.member);
        let sources = from.into_iter().filter(|member| *member != self.member).collect();
        self.tasks.insert(slot, Task::new(claim, sources, Purpose::Claim { is_source }));
        self.begin(slot);
    }

    /// Compares with the next source, or finishes.
    fn begin(&mut self, slot: Slot) {
        let is_current = |task: &Task, node: &Self| node.record(slot).promised.as_ref() == Some(&task.claim);
        let generation = self.number();
        let ours = BTreeMap::from([(slot, self.digest(slot))]);
        let Some(task) = self.tasks.get(&slot) else { return };
        if !is_current(task, self) {
            return self.give_up(slot);
        }
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        task.generation = generation;
        if task.at == task.sources.len() {
            return self.complete(slot);
        }
        let (drill, effects) = DrillDown::start(ours);
        task.drill = Some(drill);
        task.findings.clear();
        (task.is_dirty, task.doing) = (false, None);
        self.drilled(slot, effects);
    }

    fn complete(&mut self, slot: Slot) {
        if let Some(task) = self.tasks.remove(&slot) {
            self.out.push(NodeOutput::Note(Note::CaughtUp { entries: task.fetched }));
            self.events.push_back(Event::CaughtUp { slot, claim: task.claim, is_complete: true });
        }
    }

    /// Abandons the task, because it is pointless or impossible.
    pub(super) fn give_up(&mut self, slot: Slot) {
        let Some(Task { claim, purpose, .. }) = self.tasks.remove(&slot) else { return };
        match (purpose, self.record(slot).promised) {
            (Purpose::Claim { .. }, _) => {
                self.events.push_back(Event::CaughtUp { slot, claim, is_complete: false });
            }
            // The owner may not know of the higher claim yet, and sends nothing that this node would refuse.
            (Purpose::Follow(owner), Some(promised)) if promised > claim => {
                if let Some((stream, _)) = self.incoming.get(&owner) {
                    let body = ReplicaMessage::SyncOfferAnswered {
                        slot,
                        claim,
                        outcome: SyncOfferOutcome::Refused(promised),
                    };
                    self.out.push(NodeOutput::Up { stream: *stream, body });
                }
            }
            (Purpose::Follow(_), _) => {}
        }
    }

    fn drilled(&mut self, slot: Slot, effects: Vec<compare::Effect>) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                compare::Effect::AskRemote(ask) => self.ask(slot, CatchUpRequest::Compare(ask)),
                compare::Effect::AskLocal(ask) => {
                    let answer = self.compared(&ask);
                    let Some(drill) = self.tasks.get_mut(&slot).and_then(|task| task.drill.as_mut()) else {
                        return;
                    };
                    match drill.step(compare::Event::Local(answer)) {
                        Ok(more) => effects.extend(more),
                        Err(_) => return self.again(slot),
                    }
                }
                compare::Effect::NotReplicated(_) => {}
                compare::Effect::Found(finding) => {
                    if let Some(task) = self.tasks.get_mut(&slot) {
                        task.findings.push_back(finding);
                    }
                }
                compare::Effect::Done => return self.go_on(slot),
            }
        }
    }

    /// Sends a request to the source.
    fn ask(&mut self, slot: Slot, question: CatchUpRequest) {
        let number = self.number();
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        task.asked = Some(number);
        let to = task.sources[task.at].clone();
        let index = index_of(&to.node);
        self.out.push(NodeOutput::Message { to: index, message: Message::Question { number, to, question } });
        self.out.push(NodeOutput::Timer { after: ANSWER_WITHIN, timer: Timer::Question(number) });
    }

    /// Acts on the next finding.
    fn go_on(&mut self, slot: Slot) {
        if !self.can_write() {
            return self.again(slot);
        }
        let promised = self.record(slot).promised;
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        if promised.as_ref() != Some(&task.claim) {
            return self.give_up(slot);
        }
        let Some(finding) = task.findings.pop_front() else { return self.passed(slot) };
        let keeps_longer = task.keeps_longer();
        let is_follower = !task.is_claim();
        let Some(context) = self.config.contexts.find(&finding.context) else { return self.go_on(slot) };
        let history = &self.disk.now.histories[context];
        let ours = (history.size(), history.root());
        let theirs =
            finding.remote.summary().map_or((0, Hash([0; 32])), |theirs| (theirs.size.0, theirs.root));
        if let Verdict::Unreadable(side) = finding.verdict {
            return self.unreadable(slot, context, side, theirs.0);
        }
        if history.extent() != finding.local.summary().map(ContextSummary::tree_head) {
            // The context changed since the comparison: compare again.
            task.is_dirty = true;
            return self.go_on(slot);
        }
        match finding.verdict {
            Verdict::Behind { from } => self.fetch(slot, context, from.0, theirs.0),
            Verdict::Ahead { .. } if keeps_longer => self.go_on(slot),
            Verdict::Ahead { from } if is_follower => {
                task.doing = Some(Doing::Recheck { context, ours, from: from.0 });
                self.ask(slot, CatchUpRequest::RootAt { context, size: ours.0 });
            }
            Verdict::Ahead { from } => {
                task.is_dirty = true;
                self.fork(context, from.0, theirs);
                self.go_on(slot);
            }
            Verdict::Diverged { .. } if keeps_longer && theirs.0 <= ours.0 => self.go_on(slot),
            Verdict::Diverged { common } => {
                task.is_dirty = true;
                self.fork(context, common.0, theirs);
                self.fetch(slot, context, common.0, theirs.0);
            }
            Verdict::InSync | Verdict::Changed | Verdict::Damaged { .. } | Verdict::Unreadable(_) => {
                task.is_dirty = true;
                self.go_on(slot);
            }
        }
    }

    /// Handles an unreadable context. It may be the longest, so a claimant gives up, and a replica takes the owner's.
    fn unreadable(&mut self, slot: Slot, context: Context, side: Side, to: u64) {
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        if task.is_claim() {
            return self.give_up(slot);
        }
        task.is_dirty = true;
        if side == Side::Remote {
            return self.go_on(slot);
        }
        task.doing = Some(Doing::Restore(context));
        self.ask(slot, CatchUpRequest::Fetch { context, after: 0, to, is_whole: true });
    }

    fn fetch(&mut self, slot: Slot, context: Context, after: u64, to: u64) {
        if let Some(task) = self.tasks.get_mut(&slot) {
            (task.doing, task.is_dirty) = (Some(Doing::Fetch(context, to)), true);
        }
        self.ask(slot, CatchUpRequest::Fetch { context, after, to, is_whole: false });
    }

    /// Continues after all findings are processed.
    fn passed(&mut self, slot: Slot) {
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        match task.purpose {
            // Only a comparison without findings proves that nothing is missing.
            Purpose::Claim { .. } if task.is_dirty => self.begin(slot),
            Purpose::Claim { .. } => {
                task.at += 1;
                self.begin(slot);
            }
            Purpose::Follow(owner) => {
                let to = task.sources[0].clone();
                let generation = task.generation;
                let message = Message::SyncRequest { from: self.member.clone(), to, slot };
                self.out.push(NodeOutput::Message { to: owner, message });
                self.out.push(NodeOutput::Timer { after: RETRY, timer: Timer::Task(slot, generation) });
            }
        }
    }

    /// Compares again: a replica after a while, a claimant at once, but not forever.
    fn again(&mut self, slot: Slot) {
        let Some(task) = self.tasks.get_mut(&slot) else { return };
        task.failures += 1;
        (task.drill, task.doing, task.asked) = (None, None, None);
        let (is_claim, failures, generation) = (task.is_claim(), task.failures, task.generation);
        if !is_claim {
            self.out.push(NodeOutput::Timer { after: RETRY, timer: Timer::Task(slot, generation) });
        } else if failures < FAILURES {
            self.begin(slot);
        } else {
            self.give_up(slot);
        }
    }

    pub(super) fn retry(&mut self, slot: Slot, generation: u64) {
        if self.tasks.get(&slot).is_some_and(|task| task.generation == generation) {
            self.begin(slot);
        }
    }

    pub(super) fn unanswered(&mut self, number: u64) {
        if self.heal_answered(number, None) {
            return;
        }
        let slot = self.tasks.iter().find(|(_, task)| task.asked == Some(number)).map(|(slot, _)| *slot);
        if let Some(slot) = slot {
            self.again(slot);
        }
    }

    pub(super) fn replied(&mut self, number: u64, reply: CatchUpResponse) {
        if self.heal_answered(number, Some(&reply)) {
            return;
        }
        let Some((slot, task)) = self.tasks.iter_mut().find(|(_, task)| task.asked == Some(number)) else {
            return;
        };
        let (slot, claim) = (*slot, task.claim.clone());
        task.asked = None;
        let doing = task.doing.take();
        if self.record(slot).promised.as_ref() != Some(&claim) {
            return self.give_up(slot);
        }
        if !self.can_write() {
            return self.again(slot);
        }
        match (reply, doing) {
            (CatchUpResponse::Compare(answer), None) => {
                let Some(drill) = self.tasks.get_mut(&slot).and_then(|task| task.drill.as_mut()) else {
                    return;
                };
                match drill.step(compare::Event::Remote(answer)) {
                    Ok(effects) => self.drilled(slot, effects),
                    Err(_) => self.again(slot),
                }
            }
            (CatchUpResponse::Fetched(range, loaded), Some(Doing::Fetch(context, to))) => {
                let count = range.entries.len() as u64;
                let (end, is_load) = (range.after + count, loaded.is_some());
                if is_load {
                    self.out.push(NodeOutput::Note(Note::Load(Counted::LoadFetched)));
                }
                let part = Part { slot, claim, range, is_load, staged_to: None };
                let reaches = self.apply_part(part, 0) == ReplicateOutcome::Durable;
                if let Some(task) = self.tasks.get_mut(&slot).filter(|_| reaches) {
                    task.fetched += count;
                }
                if reaches && end < to && count > 0 {
                    return self.fetch(slot, context, end, to);
                }
                self.go_on(slot);
            }
            (CatchUpResponse::Fetched(range, loaded), Some(Doing::Restore(context))) => {
                self.heal_in_claim(context, &claim, &range, loaded);
                self.go_on(slot);
            }
            (CatchUpResponse::Unreadable, Some(_)) => {
                if self.tasks.get(&slot).is_some_and(Task::is_claim) {
                    return self.give_up(slot);
                }
                self.go_on(slot);
            }
            (CatchUpResponse::RootAt { size, root }, Some(Doing::Recheck { context, ours, from })) => {
                let history = &self.disk.now.histories[context];
                let is_unchanged = (history.size(), history.root()) == ours;
                if let Some(task) = self.tasks.get_mut(&slot) {
                    task.is_dirty = true;
                }
                if is_unchanged && root != Some(ours.1) {
                    self.fork(context, from.min(size), (size, root.unwrap_or(Hash([0; 32]))));
                }
                self.go_on(slot);
            }
            _ => self.again(slot),
        }
    }

    /// Responds to another node's request.
    pub(super) fn reply(&mut self, question: CatchUpRequest) -> CatchUpResponse {
        match question {
            CatchUpRequest::Fetch { context, .. } if self.is_damaged(context) => CatchUpResponse::Unreadable,
            CatchUpRequest::RootAt { context, .. } if self.lacks_roots(context) => {
                CatchUpResponse::Unreadable
            }
            CatchUpRequest::Compare(ask) => CatchUpResponse::Compare(self.compared(&ask)),
            CatchUpRequest::Fetch { context, after, to, is_whole } => {
                self.fetched(context, after, to, is_whole)
            }
            CatchUpRequest::RootAt { context, size } => {
                let history = &self.disk.now.histories[context];
                CatchUpResponse::RootAt { size: history.size(), root: history.root_at(size) }
            }
        }
    }

    fn compared(&mut self, ask: &compare::CompareRequest) -> compare::CompareResponse {
        use compare::{CompareRequest, CompareResponse};
        match ask {
            CompareRequest::Node { slots, digest } => {
                CompareResponse::to_node(slots, *digest, |slot| Some(self.digest(slot)))
            }
            CompareRequest::Buckets { slots } => {
                let buckets = |slot: &Slot| -> BTreeMap<_, _> {
                    self.digests
                        .get(slot)
                        .map(|digest: &SlotDigest| digest.buckets().collect())
                        .unwrap_or_default()
                };
                CompareResponse::Buckets(slots.iter().map(|slot| (*slot, buckets(slot))).collect())
            }
            CompareRequest::Contexts { buckets, after } => {
                CompareResponse::Contexts(self.page(buckets, after.as_ref()))
            }
            CompareRequest::Roots(asked) => {
                CompareResponse::Roots(asked.iter().map(|prefixes| self.roots(prefixes)).collect())
            }
        }
    }

    fn page(&mut self, buckets: &BTreeMap<Slot, BTreeSet<Bucket>>, after: Option<&ContextId>) -> Page {
        let config = Rc::clone(&self.config);
        let contexts = &config.contexts;
        let mut listed: BTreeMap<(Slot, &ContextId), Context> = BTreeMap::new();
        for (slot, buckets) in buckets {
            for context in contexts.of(*slot) {
                let id = contexts.id(context);
                let is_there = self.disk.now.histories[context].size() > 0 || self.is_unreadable(context);
                if buckets.contains(&Bucket::of(id)) && is_there {
                    listed.insert((*slot, id), context);
                }
            }
        }
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded((Slot::of(after), after)));
        let mut rest = listed.range((from, Bound::Unbounded)).map(|((_, id), context)| {
            if self.lacks_head(*context) || self.quarantine.contains(context) {
                return ListedContext::Unreadable((*id).clone());
            }
            let history = &self.disk.now.histories[*context];
            let (size, root, epoch) = (Size(history.size()), history.root(), history.epoch());
            ListedContext::Present(ContextSummary { context: (*id).clone(), size, root, epoch })
        });
        let contexts: Vec<_> = rest.by_ref().take(MAX_PAGE).collect();
        Page { contexts, more: rest.next().is_some() }
    }

    fn roots(&mut self, RootsRequest { context, sizes }: &RootsRequest) -> Roots {
        let Some(context) = self.config.contexts.find(context) else { return Roots::Absent };
        if self.lacks_roots(context) {
            return Roots::Unreadable;
        }
        let history = &self.disk.now.histories[context];
        Roots::At(sizes.iter().map_while(|size| history.root_at(size.0)).collect())
    }
}
