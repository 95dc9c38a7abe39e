//! One run: it brings slots in sync with one source, round by round.
//!
//! | phase | waits for | then |
//! | --- | --- | --- |
//! | `Digests` | this node's digests | `Comparing` |
//! | `Comparing` | both sides' answers, until enough was found or all was compared | `Proving` |
//! | `Proving` | the source's roots of what seems to be ahead here | `Acting` |
//! | `Acting` | forks and restores | `Fetching` |
//! | `Fetching` | one fetch after the other | `Comparing`, or `Writing` if all was compared |
//! | `Writing` | all writes | the next round, unless every slot is done |
//! | `Over` | nothing | |

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::{
    ContextId,
    compare::{
        self, CompareError, CompareRequest, CompareResponse, DrillDown, Finding, MAX_COMPARED, RootsRequest,
        Verdict,
    },
    digest::Digest,
    ownership::Claim,
    slot::Slot,
};

use super::{
    ArrivedRange, Effect, Event, Failure, ForkResult, LoadResult, MAX_FETCH, Missing, Mode, RangeUse,
    RestoreResult, SlotOutcome, WantedRange, WriteResult,
    fetch_plan::FetchPlan,
    fetch_progress::{FetchProgress, Fit},
    findings::{self, Action},
    open_slots::OpenSlots,
};

/// Most rounds. A run that reaches it fetches more slowly than the source's histories grow.
const MAX_ROUNDS: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Digests,
    Comparing,
    Proving,
    Acting,
    Fetching,
    Writing,
    Over,
}

/// One run of catching up with one source. Begin with [`CatchUp::start`], do what it says, and tell it what happened with
/// [`CatchUp::step`], until [`CatchUp::is_over`]. To give up, drop it. Events that come late change nothing.
#[derive(Debug)]
pub struct CatchUp {
    mode: Mode,
    slots: OpenSlots,
    phase: Phase,
    rounds: u32,
    /// Entries that arrived in this round.
    fetched: u64,
    drill: Option<DrillDown>,
    /// The comparison's next effects, which wait while the run deals with what the comparison found.
    held: VecDeque<compare::Effect>,
    is_compared: bool,
    found: Vec<Finding>,
    /// Findings of [`CatchUp::found`], by index, about which the run asks the source again.
    unproven: VecDeque<usize>,
    asked: Vec<usize>,
    proven: BTreeSet<usize>,
    /// Forks under way, with the range that the run fetches after each.
    forking: HashMap<ContextId, Option<WantedRange>>,
    restoring: BTreeSet<ContextId>,
    plan: FetchPlan,
    fetch: FetchProgress,
}

impl CatchUp {
    /// Begins to bring slots in sync, each in a claim.
    pub fn start(claims: BTreeMap<Slot, Claim>, mode: Mode) -> (Self, Vec<Effect>) {
        let mut run = Self {
            mode,
            slots: OpenSlots::new(claims),
            phase: Phase::Digests,
            rounds: 0,
            fetched: 0,
            drill: None,
            held: VecDeque::new(),
            is_compared: false,
            found: Vec::new(),
            unproven: VecDeque::new(),
            asked: Vec::new(),
            proven: BTreeSet::new(),
            forking: HashMap::new(),
            restoring: BTreeSet::new(),
            plan: FetchPlan::default(),
            fetch: FetchProgress::default(),
        };
        let mut effects = Vec::new();
        run.begin_round(&mut effects);
        (run, effects)
    }

    /// Returns whether the run is done with every slot.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Returns the claim in which the run brings a slot in sync; `None` if the run is done with the slot.
    pub fn claim(&self, slot: Slot) -> Option<&Claim> {
        self.slots.claim(slot)
    }

    /// Takes an event, and returns what to do.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match (event, self.phase) {
            (_, Phase::Over) => {}
            (Event::SourceLost(reason), _) => self.slots.end_all(&Failure::Source(reason), &mut effects),
            (Event::DiskRefuses(reason), _) => self.slots.end_all(&Failure::Store(reason), &mut effects),
            (Event::HigherClaim(slot, by), _) => {
                self.slots.end(slot, SlotOutcome::Refused(by), &mut effects);
            }
            (Event::Written(slot, result), _) => self.on_written(slot, result, &mut effects),
            (Event::Digests(digests), Phase::Digests) => self.on_digests(digests, &mut effects),
            (Event::Remote(answer), Phase::Proving) => self.on_evidence(answer, &mut effects),
            (Event::Remote(answer), Phase::Comparing) => {
                self.on_compared(compare::Event::Remote(answer), &mut effects);
            }
            (Event::Local(answer), Phase::Comparing) => {
                self.on_compared(compare::Event::Local(answer), &mut effects);
            }
            (Event::Forked(context, result), _) => self.on_forked(&context, result, &mut effects),
            (Event::Restored(context, result), _) => self.on_restored(&context, &result, &mut effects),
            (Event::Missing(context, missing), Phase::Fetching) => {
                self.on_missing(&context, missing, &mut effects);
            }
            (Event::Loaded(context, result), _) => self.on_loaded(&context, result, &mut effects),
            (Event::FetchEnded, Phase::Fetching) => self.on_fetch_ended(&mut effects),
            (Event::WritesFinished, Phase::Writing) => self.end_round(&mut effects),
            _ => {}
        }
        if self.slots.is_empty() {
            self.phase = Phase::Over;
        }
        effects
    }

    /// Takes a range that the source sent. Returns what the shell does with it, and what else the shell does.
    pub fn on_range(&mut self, range: &ArrivedRange<'_>) -> (RangeUse, Vec<Effect>) {
        let slot = Slot::of(range.context);
        let Some(claim) = self.slots.claim(slot).cloned() else { return (RangeUse::Skip, Vec::new()) };
        if self.phase != Phase::Fetching {
            return (RangeUse::Skip, Vec::new());
        }
        self.fetched += range.end.size.0.saturating_sub(range.after.0);
        match self.fetch.take(range) {
            Ok(Fit::Write { is_load }) => (RangeUse::Write { slot, claim, is_load }, Vec::new()),
            Ok(Fit::Stage { to, is_first, is_last }) => {
                (RangeUse::Stage { slot, claim, to, is_first, is_last }, Vec::new())
            }
            Ok(Fit::GivenUp) => (RangeUse::Skip, Vec::new()),
            Err(failure) => {
                let mut effects = Vec::new();
                self.fail(slot, failure, &mut effects);
                (RangeUse::Skip, effects)
            }
        }
    }

    fn fail(&mut self, slot: Slot, failure: Failure, effects: &mut Vec<Effect>) {
        self.slots.end(slot, SlotOutcome::Failed(failure), effects);
        if self.slots.is_empty() {
            self.phase = Phase::Over;
        }
    }

    fn begin_round(&mut self, effects: &mut Vec<Effect>) {
        self.rounds += 1;
        if self.rounds > MAX_ROUNDS {
            self.slots.end_all(&Failure::TooFast, effects);
        }
        if self.slots.is_empty() {
            self.phase = Phase::Over;
            return;
        }
        (self.phase, self.fetched, self.is_compared) = (Phase::Digests, 0, false);
        debug_assert!(self.held.is_empty() && self.found.is_empty() && self.forking.is_empty());
        effects.push(Effect::ReadDigests(self.slots.slots()));
    }

    fn end_round(&mut self, effects: &mut Vec<Effect>) {
        self.slots.end_round(self.mode, self.fetched, effects);
        self.begin_round(effects);
    }

    fn on_digests(&mut self, mut digests: BTreeMap<Slot, Digest>, effects: &mut Vec<Effect>) {
        digests.retain(|slot, _| self.slots.claim(*slot).is_some());
        for slot in self.slots.slots() {
            if !digests.contains_key(&slot) {
                self.slots.set_unreadable(slot);
            }
        }
        let (drill, first) = DrillDown::start(digests);
        self.drill = Some(drill);
        self.phase = Phase::Comparing;
        self.held = first.into();
        self.compare(effects);
    }

    fn on_compared(&mut self, event: compare::Event, effects: &mut Vec<Effect>) {
        let Some(drill) = &mut self.drill else { return };
        match drill.step(event) {
            Ok(next) => self.held.extend(next),
            Err(CompareError::TooManyRounds) => {
                // This round repairs what the comparison found so far; the next round compares the rest.
                self.slots.set_all_changed();
                self.held.push_back(compare::Effect::Done);
            }
            Err(error) => return self.slots.end_all(&Failure::Source(error.to_string()), effects),
        }
        self.compare(effects);
    }

    /// Goes on with the comparison until it found enough, or is over.
    fn compare(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Comparing;
        while self.found.len() < MAX_FETCH
            && !self.is_compared
            && let Some(next) = self.held.pop_front()
        {
            match next {
                compare::Effect::AskRemote(request) => effects.push(Effect::AskRemote(request)),
                compare::Effect::AskLocal(request) => effects.push(Effect::AskLocal(request)),
                // A side that does not keep the slot knows nothing of it: its copy proves nothing.
                compare::Effect::NotReplicated(slots) => {
                    for slot in slots {
                        self.slots.set_unreadable(slot);
                    }
                }
                compare::Effect::Found(finding) => {
                    if self.slots.claim_of(&finding.context).is_some() {
                        self.found.push(finding);
                    }
                }
                compare::Effect::Done => self.is_compared = true,
            }
        }
        if self.is_compared || self.found.len() >= MAX_FETCH {
            self.proven.clear();
            let needs = |(index, finding)| findings::evidence_request(self.mode, finding).map(|_| index);
            self.unproven = self.found.iter().enumerate().filter_map(needs).collect();
            self.prove(effects);
        }
    }

    /// Asks the source again about what seems to be ahead here.
    fn prove(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Proving;
        let next = self.unproven.len().min(MAX_COMPARED);
        self.asked = self.unproven.drain(..next).collect();
        let request = |index: &usize| findings::evidence_request(self.mode, self.found.get(*index)?);
        let requests: Vec<RootsRequest> = self.asked.iter().filter_map(request).collect();
        if requests.is_empty() {
            self.act(effects);
        } else {
            effects.push(Effect::AskRemote(CompareRequest::Roots(requests)));
        }
    }

    fn on_evidence(&mut self, answer: CompareResponse, effects: &mut Vec<Effect>) {
        let asked = std::mem::take(&mut self.asked);
        match answer {
            CompareResponse::Roots(roots) if roots.len() == asked.len() => {
                for (index, roots) in asked.into_iter().zip(&roots) {
                    if self.found.get(index).is_some_and(|finding| findings::is_evidence(finding, roots)) {
                        self.proven.insert(index);
                    }
                }
                self.prove(effects);
            }
            _ => {
                let failure = Failure::Source("it answers another question than it was asked".to_owned());
                self.slots.end_all(&failure, effects);
            }
        }
    }

    /// Acts on the findings: forks off, restores, and plans what to fetch.
    fn act(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Acting;
        for (index, finding) in std::mem::take(&mut self.found).into_iter().enumerate() {
            let (slot, context) = (Slot::of(&finding.context), finding.context.clone());
            let Some(claim) = self.slots.claim(slot).cloned() else { continue };
            debug_assert!(finding.verdict != Verdict::InSync, "a context that is in sync was found");
            match findings::decide(self.mode, &claim, finding, self.proven.contains(&index)) {
                Action::Keep => {}
                Action::CompareAgain => self.slots.set_changed(slot),
                Action::Fetch(wanted) => self.want(wanted),
                Action::Fork(order, then) => {
                    self.slots.set_changed(slot);
                    self.forking.insert(context, then);
                    effects.push(Effect::Fork(order));
                }
                Action::Restore(theirs) => {
                    self.restoring.insert(context.clone());
                    effects.push(Effect::Restore { context, claim, theirs });
                }
                Action::Unreadable => self.slots.set_unreadable(slot),
                Action::Scrub => {
                    self.slots.set_unreadable(slot);
                    effects.push(Effect::Scrub(context));
                }
            }
        }
        self.acted(effects);
    }

    fn want(&mut self, wanted: WantedRange) {
        self.slots.set_fetched(Slot::of(&wanted.context));
        self.plan.push(wanted);
    }

    /// Begins to fetch, once nothing is being forked off or restored any more.
    fn acted(&mut self, effects: &mut Vec<Effect>) {
        if self.phase == Phase::Acting && self.forking.is_empty() && self.restoring.is_empty() {
            self.fetch_next(effects);
        }
    }

    fn on_forked(&mut self, context: &ContextId, result: ForkResult, effects: &mut Vec<Effect>) {
        let Some(then) = self.forking.remove(context) else { return };
        let slot = Slot::of(context);
        match result {
            ForkResult::Forked => {
                if let Some(wanted) = then {
                    self.want(wanted);
                }
            }
            ForkResult::Moved => self.slots.set_changed(slot),
            ForkResult::Refused(by) => self.slots.end(slot, SlotOutcome::Refused(by), effects),
            ForkResult::Unreadable => self.slots.set_unreadable(slot),
            ForkResult::Failed(failure) => self.slots.end(slot, SlotOutcome::Failed(failure), effects),
        }
        self.acted(effects);
    }

    fn on_restored(&mut self, context: &ContextId, result: &RestoreResult, effects: &mut Vec<Effect>) {
        if !self.restoring.remove(context) {
            return;
        }
        match result {
            RestoreResult::Restored => self.slots.set_changed(Slot::of(context)),
            RestoreResult::NotYet => self.slots.set_unreadable(Slot::of(context)),
        }
        self.acted(effects);
    }

    /// Fetches what is missing; when all came, goes on comparing, or ends the round.
    fn fetch_next(&mut self, effects: &mut Vec<Effect>) {
        let wanted = self.plan.next(|context| self.slots.claim_of(context).is_some());
        if !wanted.is_empty() {
            self.phase = Phase::Fetching;
            self.fetch = FetchProgress::begin(&wanted);
            effects.push(Effect::Fetch(wanted));
        } else if self.is_compared {
            // A round compares each context once: only the next comparison needs the fetched entries on disk.
            self.phase = Phase::Writing;
            effects.push(Effect::FinishWrites);
        } else {
            self.compare(effects);
        }
    }

    fn on_missing(&mut self, context: &ContextId, missing: Missing, effects: &mut Vec<Effect>) {
        // Only a context that this node asked for can be missing.
        if !self.fetch.forget(context) {
            return;
        }
        let slot = Slot::of(context);
        match missing {
            Missing::Shorter => self.slots.set_changed(slot),
            Missing::Unreadable => self.slots.set_unreadable(slot),
            Missing::Failed => {
                let failure = Failure::Source(format!("it cannot read context {context} now"));
                self.slots.end(slot, SlotOutcome::Failed(failure), effects);
            }
        }
    }

    fn on_loaded(&mut self, context: &ContextId, result: LoadResult, effects: &mut Vec<Effect>) {
        let slot = Slot::of(context);
        match result {
            LoadResult::Taken => {}
            LoadResult::Moved => {
                self.fetch.give_up_load(context);
                self.slots.set_changed(slot);
            }
            LoadResult::Refused(by) => self.slots.end(slot, SlotOutcome::Refused(by), effects),
            LoadResult::Failed(failure) => self.slots.end(slot, SlotOutcome::Failed(failure), effects),
        }
    }

    fn on_written(&mut self, slot: Slot, result: WriteResult, effects: &mut Vec<Effect>) {
        match result {
            WriteResult::Moved => self.slots.set_changed(slot),
            WriteResult::Refused(by) => self.slots.end(slot, SlotOutcome::Refused(by), effects),
            WriteResult::Failed(failure) => self.slots.end(slot, SlotOutcome::Failed(failure), effects),
        }
    }

    fn on_fetch_ended(&mut self, effects: &mut Vec<Effect>) {
        for context in self.fetch.end() {
            let slot = Slot::of(&context);
            self.slots.end(slot, SlotOutcome::Failed(Failure::EndedEarly(context)), effects);
        }
        self.fetch_next(effects);
    }
}
