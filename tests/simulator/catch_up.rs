//! Carries out what `ledger_core::catch_up` decides, with the simulation's network and disk: what
//! `ledger_cluster::catch_up` is in a real node.

use ledger_core::{
    catch_up::{
        ArrivedRange, CatchUp, ClaimSources, Effect, Event as RunEvent, Failure, ForkOrder, ForkResult,
        LoadResult, Mode, NextRun, RangeUse, SlotOutcome, WriteResult,
    },
    compare,
    digest::ContextSummary,
    jitter::Jitter,
    replication::replica::ForkDecision,
};

use super::{prelude::*, questions::Asker};

/// A run of catching up.
#[derive(Debug)]
pub struct Run {
    source: Member,
    /// The sources of a claim; `None`: to follow the owner, which is the source.
    sources: Option<ClaimSources>,
    machine: CatchUp,
    outcomes: BTreeMap<Slot, SlotOutcome>,
    /// A load whose ranges arrive.
    staging: Option<Range>,
    fetched: u64,
}

impl Node {
    /// Makes this replica follow a claim's owner.
    pub(super) fn follow_owner(&mut self, slot: Slot, claim: &Claim, owner: Member) {
        self.schedules.entry(owner).or_default().add(self.now, BTreeMap::from([(slot, claim.clone())]));
        self.run_schedules();
    }

    /// Begins the next group of each owner's slots, if it is time.
    pub(super) fn run_schedules(&mut self) {
        let now = self.now;
        let next: Vec<_> =
            self.schedules.iter_mut().map(|(owner, schedule)| (owner.clone(), schedule.next(now))).collect();
        let mut wakes_at = None::<Millis>;
        for (owner, next) in next {
            match next {
                NextRun::Run(slots) => self.begin_run(owner, None, slots, Mode::FollowOwner),
                NextRun::At(at) => wakes_at = Some(wakes_at.map_or(at, |known| known.min(at))),
                NextRun::Nothing => {}
            }
        }
        if let Some(at) = wakes_at.filter(|at| self.schedules_at.is_none_or(|known| *at < known)) {
            self.schedules_at = Some(at);
            let after = at.saturating_sub(now).max(1);
            self.out.push(NodeOutput::Timer { after, timer: Timer::Schedules(at) });
        }
    }

    /// Makes this claimant fetch the longest of the best histories.
    pub(super) fn catch_up_for_claim(&mut self, slot: Slot, claim: Claim, from: Vec<Member>) {
        let mut sources = ClaimSources::new(&self.member, from, BTreeMap::from([(slot, claim)]));
        for (slot, claim) in sources.take_complete() {
            self.events.push_back(Event::CaughtUp { slot, claim, is_complete: true });
        }
        self.next_source(sources);
    }

    fn next_source(&mut self, mut sources: ClaimSources) {
        if let Some(run) = sources.next_run() {
            self.begin_run(run.source, Some(sources), run.slots, run.mode);
        }
    }

    fn begin_run(
        &mut self,
        source: Member,
        sources: Option<ClaimSources>,
        slots: BTreeMap<Slot, Claim>,
        mode: Mode,
    ) {
        let ((machine, effects), number) = (CatchUp::start(slots, mode), self.number());
        let outcomes = BTreeMap::new();
        self.runs.insert(number, Run { source, sources, machine, outcomes, staging: None, fetched: 0 });
        self.perform_all(number, effects);
    }

    /// Does what a run says, and tells it what came of it.
    fn perform_all(&mut self, number: u64, effects: Vec<Effect>) {
        let Some(source) = self.runs.get(&number).map(|run| run.source.clone()) else { return };
        let mut todo = VecDeque::from(effects);
        while let Some(effect) = todo.pop_front() {
            self.trace(|_| format!("catching up {number}: {effect:?}"));
            let event = match effect {
                Effect::ReadDigests(slots) => {
                    RunEvent::Digests(slots.into_iter().map(|slot| (slot, self.digest(slot))).collect())
                }
                Effect::AskLocal(request) => RunEvent::Local(compare::respond(self, &request).unwrap()),
                Effect::AskRemote(request) => {
                    self.ask(Asker::Run(number), source.clone(), PeerRequest::Compare(request));
                    continue;
                }
                Effect::Fork(order) => RunEvent::Forked(order.context.clone(), self.fork_off(&order)),
                Effect::Restore { context, claim, theirs } => {
                    self.heal_in_claim(number, context, source.clone(), claim, theirs);
                    continue;
                }
                Effect::Scrub(_) => continue,
                Effect::Fetch(wanted) => {
                    self.fetch(Asker::Run(number), source.clone(), wanted);
                    continue;
                }
                Effect::FinishWrites => {
                    self.after_sync(AfterSync::Fetched(number));
                    continue;
                }
                Effect::Done(slot, outcome) => {
                    self.slot_done(number, slot, outcome);
                    continue;
                }
            };
            let Some(run) = self.runs.get_mut(&number) else { return };
            todo.extend(run.machine.step(event));
        }
        if self.runs.get(&number).is_some_and(|run| run.machine.is_over()) {
            self.run_over(number);
        }
    }

    pub(super) fn tell(&mut self, number: u64, event: RunEvent) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        let effects = run.machine.step(event);
        self.perform_all(number, effects);
    }

    fn slot_done(&mut self, number: u64, slot: Slot, outcome: SlotOutcome) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        let done = run.sources.as_mut().and_then(|sources| sources.on_done(slot, &outcome));
        if let Some((claim, is_complete)) = done {
            self.events.push_back(Event::CaughtUp { slot, claim, is_complete });
        }
        run.outcomes.insert(slot, outcome);
    }

    /// Ends a run all of whose slots are done.
    fn run_over(&mut self, number: u64) {
        let Some(Run { source: owner, sources, outcomes, fetched, .. }) = self.runs.remove(&number) else {
            return;
        };
        self.count(Counted::Fetched, fetched);
        if let Some(sources) = sources {
            return self.next_source(sources);
        }
        let damaged = outcomes.keys().copied().filter(|slot| self.has_damage(*slot)).collect();
        let is_failed = outcomes.values().any(|outcome| matches!(outcome, SlotOutcome::Failed(_)));
        let is_lost = is_failed && !(self.is_served(&owner) && self.can_write());
        let Some(schedule) = self.schedules.get_mut(&owner) else { return };
        let jitter = Jitter(self.random.number() as u16);
        let slots = schedule.on_run_ended(self.now, &outcomes, &damaged, jitter);
        if is_lost {
            schedule.on_owner_lost();
        }
        if slots.is_empty() {
            return self.run_schedules();
        }
        let request = PeerRequest::SyncOffers(self.member.clone(), slots.into_keys().collect());
        self.ask(Asker::Schedule, owner, request);
    }

    /// Returns whether the stream of a node is there.
    fn is_served(&self, owner: &Member) -> bool {
        self.incoming.values().any(|known| known.from == *owner)
    }

    pub(super) fn offers_requested(&mut self, owner: &Member, is_asked: bool) {
        let is_served = self.is_served(owner);
        let Some(schedule) = self.schedules.get_mut(owner) else { return };
        let jitter = Jitter(self.random.number() as u16);
        schedule.on_offers_requested(self.now, is_asked, jitter);
        if !is_asked && !is_served {
            schedule.on_owner_lost();
        }
        self.run_schedules();
    }

    /// Forks off what comes after a common size, if it still is what was compared.
    fn fork_off(&mut self, order: &ForkOrder) -> ForkResult {
        let Some(context) = self.config.contexts.find(&order.context) else { return ForkResult::Moved };
        let slot = self.slot(context);
        let is_unchanged = self.history(context).head() == order.expected;
        if !self.can_write() {
            return ForkResult::Failed(Failure::Store("the disk is full".to_owned()));
        }
        if self.fails(context, Read::After(order.common.0)) {
            // What cannot be read is not left for another history.
            return ForkResult::Unreadable;
        }
        match self.replica.leave_history(slot, &context, &order.claim, &self.record(slot), is_unchanged) {
            ForkDecision::Leave => {}
            ForkDecision::Refused(by) => return ForkResult::Refused(by),
            ForkDecision::Changed => return ForkResult::Moved,
        }
        let theirs = order.theirs.as_ref().map_or(History::default().head(), ContextSummary::tree_head);
        self.fork_tail(context, order.common.0, theirs);
        ForkResult::Forked
    }

    /// Handles the end of a response to a fetch, be it early.
    pub(super) fn fetch_ended(&mut self, number: u64) {
        if let Some(run) = self.runs.get_mut(&number) {
            run.staging = None;
        }
        if !self.is_broken(DisabledRule::EarlyEndIsEnd) {
            return self.tell(number, RunEvent::FetchEnded);
        }
        let open = |slot: &Slot| self.runs.get(&number).is_some_and(|run| run.machine.claim(*slot).is_some());
        for slot in self.config.contexts.slots.iter().copied().filter(open).collect::<Vec<_>>() {
            self.slot_done(number, slot, SlotOutcome::InSync);
        }
        self.run_over(number);
    }

    /// Takes the next part of a response, and asks for the one after it.
    pub(super) fn items_arrived(&mut self, number: u64, next: PeerRequest, items: &[FetchItem]) {
        for item in items {
            match item {
                FetchItem::Range { range, together_to, whole } => {
                    self.range_arrived(number, range, *together_to, *whole);
                }
                FetchItem::Missing(context, missing) => {
                    self.tell(number, RunEvent::Missing(context.clone(), *missing));
                }
                FetchItem::End => return self.tell(number, RunEvent::FetchEnded),
            }
        }
        if let Some(source) = self.runs.get(&number).map(|run| run.source.clone()) {
            self.ask(Asker::Run(number), source, next);
        }
    }

    fn range_arrived(
        &mut self,
        number: u64,
        range: &Range,
        together_to: Option<Size>,
        whole: Option<TreeHead>,
    ) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        let (context, after, end) = (self.config.contexts.id(range.context), range.after.size, range.end);
        let (used, effects) = run.machine.on_range(&ArrivedRange { context, after, end, together_to, whole });
        match used {
            RangeUse::Skip => {}
            RangeUse::Write { slot, claim, is_load } => {
                let range = range.clone();
                self.write_fetched(number, Part { slot, claim, range, is_load, is_staged: false });
            }
            RangeUse::Stage { slot, claim, is_first, is_last, .. } => {
                self.stage_fetched(number, slot, claim, range, (is_first, is_last));
            }
        }
        self.perform_all(number, effects);
    }

    fn write_fetched(&mut self, number: u64, part: Part) {
        let (slot, count) = (part.slot, part.range.entries.len() as u64);
        if part.is_load {
            self.count(Counted::LoadFetched, 1);
        }
        match (WriteResult::of(self.apply_part(part, 0)), self.runs.get_mut(&number)) {
            (None, Some(run)) => run.fetched += count,
            (Some(result), _) => self.tell(number, RunEvent::Written(slot, result)),
            (None, None) => {}
        }
    }

    /// Stages a range of a load, and puts the load in place with the last one.
    fn stage_fetched(
        &mut self,
        number: u64,
        slot: Slot,
        claim: Claim,
        range: &Range,
        (is_first, is_last): (bool, bool),
    ) {
        let (context, here) = (range.context, self.history(range.context).head().size);
        let Some(run) = self.runs.get_mut(&number) else { return };
        match &mut run.staging {
            _ if is_first && here != range.after.size => {
                run.staging = None;
                let id = self.id(context);
                return self.tell(number, RunEvent::Loaded(id, LoadResult::Moved));
            }
            staging if is_first => *staging = Some(range.clone()),
            Some(load) => {
                (load.entries, load.end) =
                    ([&load.entries[..], &range.entries[..]].concat().into(), range.end);
            }
            None => {}
        }
        if let Some(range) = run.staging.take_if(|_| is_last) {
            self.write_fetched(number, Part { slot, claim, range, is_load: true, is_staged: false });
        }
    }
}
