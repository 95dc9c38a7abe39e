//! Carries out what `ledger_core::catch_up` decides, with the simulation's network and disk: what `ledger_cluster::catch_up` is in
//! a real node.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use ledger_core::{
    Hash, Size,
    catch_up::{
        ArrivedRange, CatchUp, ClaimSources, Effect, Event, Failure, ForkOrder, ForkResult, LoadResult, Mode,
        NextRun, RangeUse, RestoreResult, SlotOutcome, WantedRange, WriteResult,
    },
    compare,
    digest::TreeHead,
    loads::LoadSpan,
    node::Member,
    ownership::{Claim, slot_manager},
    replication::replica::{ForkDecision, ReplicateOutcome},
    slot::Slot,
};

use super::{
    broken::DisabledRule,
    counts::Counted,
    history::{Context, Entry},
    message::{CatchUpRequest, CatchUpResponse, FetchItem, Message, Part, Range},
    node::{Node, index_of},
    node_output::{NodeOutput, Note, Timer},
};

/// How long until a message that was not answered is sent again, in milliseconds, and how often it is.
const SEND_AGAIN: u64 = 400;
const SENDINGS: u32 = 4;

/// A run of catching up.
#[derive(Debug)]
pub struct Run {
    source: Member,
    purpose: Purpose,
    machine: CatchUp,
    outcomes: BTreeMap<Slot, SlotOutcome>,
    /// The fetch whose next part is asked for.
    fetch: Option<Fetch>,
    staging: Option<Staging>,
    fetched: u64,
}

#[derive(Debug)]
enum Purpose {
    /// To follow the owner, which is the source.
    Follow,
    /// To own the slots.
    Claim(ClaimSources),
}

#[derive(Debug, Clone)]
struct Fetch {
    number: u64,
    wanted: Rc<[WantedRange]>,
    part: u64,
}

/// A load whose ranges arrive.
#[derive(Debug)]
struct Staging {
    context: Context,
    after: u64,
    after_root: Hash,
    entries: Vec<Entry>,
}

/// A question that was sent and not answered.
#[derive(Debug)]
pub struct Question {
    to: Member,
    request: CatchUpRequest,
    sendings: u32,
    asker: Asker,
}

#[derive(Debug, Clone, Copy)]
pub enum Asker {
    /// A run, for itself.
    Run(u64),
    /// A run, to restore a context.
    Restore(u64, Context),
    /// A schedule that asks its owner for sync offers.
    Schedule,
}

impl Node {
    /// Makes this replica follow a claim's owner.
    pub(super) fn follow_owner(&mut self, slot: Slot, claim: &Claim, owner: &Member) {
        let now = self.now;
        let schedule = self.schedules.entry(owner.clone()).or_default();
        schedule.add(now, BTreeMap::from([(slot, claim.clone())]));
        self.next_group(owner);
    }

    /// Begins the next group of an owner's slots, if it is time.
    pub(super) fn next_group(&mut self, owner: &Member) {
        let now = self.now;
        let Some(schedule) = self.schedules.get_mut(owner) else { return };
        match schedule.next(now) {
            NextRun::Run(slots) => self.begin_run(owner.clone(), Purpose::Follow, slots, Mode::FollowOwner),
            NextRun::At(at) => {
                let after = at.saturating_sub(now).max(1);
                self.out.push(NodeOutput::Timer { after, timer: Timer::Schedule(index_of(&owner.node)) });
            }
            NextRun::Nothing => {}
        }
    }

    pub(super) fn schedule_timer(&mut self, owner: usize) {
        let owners: Vec<Member> =
            self.schedules.keys().filter(|member| index_of(&member.node) == owner).cloned().collect();
        for owner in owners {
            self.next_group(&owner);
        }
    }

    /// Makes this claimant fetch the longest of the best histories.
    pub(super) fn catch_up_for_claim(&mut self, slot: Slot, claim: Claim, from: Vec<Member>) {
        let mut sources = ClaimSources::new(&self.member, from, BTreeMap::from([(slot, claim)]));
        for (slot, claim) in sources.take_complete() {
            self.events.push_back(slot_manager::Event::CaughtUp { slot, claim, is_complete: true });
        }
        self.next_source(sources);
    }

    fn next_source(&mut self, mut sources: ClaimSources) {
        if let Some(run) = sources.next_run() {
            self.begin_run(run.source, Purpose::Claim(sources), run.slots, run.mode);
        }
    }

    fn begin_run(&mut self, source: Member, purpose: Purpose, slots: BTreeMap<Slot, Claim>, mode: Mode) {
        let (machine, effects) = CatchUp::start(slots, mode);
        let outcomes = BTreeMap::new();
        let run = Run { source, purpose, machine, outcomes, fetch: None, staging: None, fetched: 0 };
        let number = self.number();
        self.runs.insert(number, run);
        self.perform_all(number, effects);
    }

    /// Does what a run says, and tells it what came of it.
    fn perform_all(&mut self, number: u64, effects: Vec<Effect>) {
        let mut todo = VecDeque::from(effects);
        while let Some(effect) = todo.pop_front() {
            self.trace(|_| format!("catching up {number}: {effect:?}"));
            let event = match effect {
                Effect::ReadDigests(slots) => {
                    Event::Digests(slots.into_iter().map(|slot| (slot, self.digest(slot))).collect())
                }
                Effect::AskLocal(request) => match compare::respond(self, &request) {
                    Ok(answer) => Event::Local(answer),
                    Err(error) => panic!("a node asks itself {error}"),
                },
                Effect::AskRemote(request) => {
                    self.ask(number, CatchUpRequest::Compare(request));
                    continue;
                }
                Effect::Fork(order) => {
                    let context = order.context.clone();
                    Event::Forked(context, self.fork_off(&order))
                }
                Effect::Restore { context, theirs, .. } => {
                    let Some(of) = self.config.contexts.find(&context) else { continue };
                    let question = CatchUpRequest::Whole { context: of, after: 0, to: theirs.size.0 };
                    let Some(to) = self.runs.get(&number).map(|run| run.source.clone()) else { return };
                    self.ask_for(Asker::Restore(number, of), to, question);
                    continue;
                }
                Effect::Scrub(_) => continue,
                Effect::Fetch(wanted) => {
                    let fetch = Fetch { number: self.number(), wanted: wanted.into(), part: 0 };
                    self.fetch_part(number, fetch);
                    continue;
                }
                Effect::FinishWrites => Event::WritesFinished,
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

    fn tell(&mut self, number: u64, event: Event) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        let effects = run.machine.step(event);
        self.perform_all(number, effects);
    }

    fn slot_done(&mut self, number: u64, slot: Slot, outcome: SlotOutcome) {
        let Some(run) = self.runs.get_mut(&number) else { return };
        if let Purpose::Claim(sources) = &mut run.purpose
            && let Some((claim, is_complete)) = sources.on_done(slot, &outcome)
        {
            self.events.push_back(slot_manager::Event::CaughtUp { slot, claim, is_complete });
        }
        run.outcomes.insert(slot, outcome);
    }

    /// Ends a run all of whose slots are done.
    fn run_over(&mut self, number: u64) {
        let Some(run) = self.runs.remove(&number) else { return };
        self.out.push(NodeOutput::Note(Note::Counted(Counted::Fetched, run.fetched)));
        match run.purpose {
            Purpose::Claim(sources) => self.next_source(sources),
            Purpose::Follow => {
                let damaged = run.outcomes.keys().copied().filter(|slot| self.has_damage(*slot)).collect();
                let (owner, now) = (run.source, self.now);
                let is_served = self.is_served(&owner) && self.can_write();
                let Some(schedule) = self.schedules.get_mut(&owner) else { return };
                let is_failed =
                    run.outcomes.values().any(|outcome| matches!(outcome, SlotOutcome::Failed(_)));
                let slots = schedule.on_run_ended(now, &run.outcomes, &damaged);
                if is_failed && !is_served {
                    schedule.on_owner_lost();
                }
                if slots.is_empty() {
                    return self.next_group(&owner);
                }
                let slots = slots.into_keys().collect();
                let question = CatchUpRequest::SyncOffers { from: self.member.clone(), slots };
                self.ask_for(Asker::Schedule, owner, question);
            }
        }
    }

    /// Returns whether the stream of a node is there.
    fn is_served(&self, owner: &Member) -> bool {
        self.incoming.values().any(|(_, member)| member == owner)
    }

    /// Sends a question to the source of a run.
    fn ask(&mut self, number: u64, question: CatchUpRequest) {
        let Some(to) = self.runs.get(&number).map(|run| run.source.clone()) else { return };
        self.ask_for(Asker::Run(number), to, question);
    }

    pub(super) fn ask_for(&mut self, asker: Asker, to: Member, question: CatchUpRequest) {
        let number = self.number();
        self.questions.insert(number, Question { to, request: question, sendings: 0, asker });
        self.send_question(number);
    }

    /// Sends a question, again if it was not answered.
    pub(super) fn send_question(&mut self, number: u64) {
        if self.heal_answered(number, None) {
            return;
        }
        let Some(asked) = self.questions.get_mut(&number) else { return };
        asked.sendings += 1;
        if asked.sendings > SENDINGS {
            return self.unanswered(number);
        }
        let (to, question) = (asked.to.clone(), asked.request.clone());
        let index = index_of(&to.node);
        self.out.push(NodeOutput::Message { to: index, message: Message::Question { number, to, question } });
        self.out.push(NodeOutput::Timer { after: SEND_AGAIN, timer: Timer::Question(number) });
    }

    fn unanswered(&mut self, number: u64) {
        let Some(Question { asker, to, .. }) = self.questions.remove(&number) else { return };
        match asker {
            Asker::Run(run) => self.tell(run, Event::SourceLost("no answer in time".to_owned())),
            Asker::Restore(run, context) => self.restored(run, context, RestoreResult::NotYet),
            Asker::Schedule => self.offers_requested(&to, false),
        }
    }

    pub(super) fn replied(&mut self, number: u64, reply: CatchUpResponse) {
        if self.heal_answered(number, Some(&reply)) {
            return;
        }
        let Some(Question { asker, to, .. }) = self.questions.remove(&number) else { return };
        match (asker, reply) {
            (Asker::Run(run), CatchUpResponse::Compare(answer)) => self.tell(run, Event::Remote(answer)),
            (Asker::Run(run), CatchUpResponse::Ranges(items)) => self.arrived(run, &items),
            (Asker::Run(run), CatchUpResponse::Cut { is_clean }) => self.cut_short(run, is_clean),
            (Asker::Restore(run, context), CatchUpResponse::Whole(range, loaded)) => {
                let is_restored = self.restore_in_claim(run, context, &range, loaded);
                let result = if is_restored { RestoreResult::Restored } else { RestoreResult::NotYet };
                self.restored(run, context, result);
            }
            (Asker::Restore(run, context), _) => self.restored(run, context, RestoreResult::NotYet),
            (Asker::Schedule, _) => self.offers_requested(&to, true),
            (Asker::Run(run), _) => self.tell(run, Event::SourceLost("it answers something else".to_owned())),
        }
    }

    fn offers_requested(&mut self, owner: &Member, is_asked: bool) {
        let (now, is_served) = (self.now, self.is_served(owner));
        let Some(schedule) = self.schedules.get_mut(owner) else { return };
        schedule.on_offers_requested(now, is_asked);
        if !is_asked && !is_served {
            schedule.on_owner_lost();
        }
        self.next_group(owner);
    }

    fn restored(&mut self, run: u64, context: Context, result: RestoreResult) {
        let id = self.config.contexts.id(context).clone();
        self.tell(run, Event::Restored(id, result));
    }

    /// Replaces a context that cannot be read by the owner's history, while the claim holds.
    fn restore_in_claim(
        &mut self,
        run: u64,
        context: Context,
        range: &Range,
        loaded: Option<LoadSpan>,
    ) -> bool {
        let slot = self.config.contexts.slot(context);
        let Some(claim) = self.runs.get(&run).and_then(|run| run.machine.claim(slot)).cloned() else {
            return false;
        };
        self.heal_in_claim(context, &claim, range, loaded)
    }

    /// Forks off what comes after a common size, if it still is what was compared.
    fn fork_off(&mut self, order: &ForkOrder) -> ForkResult {
        let Some(context) = self.config.contexts.find(&order.context) else { return ForkResult::Moved };
        let slot = self.config.contexts.slot(context);
        let is_unchanged = self.disk.now.histories[context].extent() == Some(order.expected);
        let record = self.record(slot);
        if !self.can_write() {
            return ForkResult::Failed(Failure::Store("the disk is full".to_owned()));
        }
        let theirs = order.theirs.as_ref().map_or((0, Hash([0; 32])), |theirs| (theirs.size.0, theirs.root));
        if self.is_damaged_after(context, order.common.0) {
            // What cannot be read is not left for another history.
            return ForkResult::Unreadable;
        }
        match self.replica.leave_history(slot, &context, &order.claim, &record, is_unchanged) {
            ForkDecision::Leave => {}
            ForkDecision::Refused(by) => return ForkResult::Refused(by),
            ForkDecision::Changed => return ForkResult::Moved,
        }
        self.fork_tail(context, order.common.0, theirs);
        ForkResult::Forked
    }

    fn fetch_part(&mut self, run: u64, fetch: Fetch) {
        let Some(known) = self.runs.get_mut(&run) else { return };
        known.fetch = Some(fetch.clone());
        let Fetch { number, wanted, part } = fetch;
        self.ask(run, CatchUpRequest::Fetch { number, wanted, part });
    }

    /// Handles the end of a response that was cut short: with an error, or as if it had ended.
    fn cut_short(&mut self, run: u64, is_clean: bool) {
        let Some(known) = self.runs.get_mut(&run) else { return };
        (known.fetch, known.staging) = (None, None);
        self.out.push(NodeOutput::Note(Note::Counted(Counted::FetchCut, 1)));
        if !is_clean {
            return self.tell(run, Event::SourceLost("the response broke off".to_owned()));
        }
        if self.config.broken == DisabledRule::EarlyEndIsEnd {
            let slots: Vec<Slot> = self.config.contexts.slots.clone();
            let open =
                |slot: &Slot| self.runs.get(&run).is_some_and(|run| run.machine.claim(*slot).is_some());
            for slot in slots.into_iter().filter(open).collect::<Vec<_>>() {
                self.slot_done(run, slot, SlotOutcome::InSync);
            }
            return self.run_over(run);
        }
        self.tell(run, Event::FetchEnded);
    }

    /// Takes the next part of a response.
    fn arrived(&mut self, number: u64, items: &[FetchItem]) {
        let Some(fetch) = self.runs.get_mut(&number).and_then(|run| run.fetch.take()) else { return };
        for item in items {
            match item {
                FetchItem::Range { range, together_to, whole } => {
                    self.range_arrived(number, range, *together_to, *whole);
                }
                FetchItem::Missing(context, missing) => {
                    self.tell(number, Event::Missing(context.clone(), *missing));
                }
                FetchItem::End => return self.tell(number, Event::FetchEnded),
            }
            if !self.runs.contains_key(&number) {
                return;
            }
        }
        let Fetch { number: of, wanted, part } = fetch;
        self.fetch_part(number, Fetch { number: of, wanted, part: part + 1 });
    }

    fn range_arrived(
        &mut self,
        number: u64,
        range: &Range,
        together_to: Option<Size>,
        whole: Option<(u64, Hash)>,
    ) {
        let config = Rc::clone(&self.config);
        let Some(run) = self.runs.get_mut(&number) else { return };
        let end = Size(range.after + range.entries.len() as u64);
        let arrived = ArrivedRange {
            context: config.contexts.id(range.context),
            after: Size(range.after),
            end: TreeHead { size: end, root: range.root },
            together_to,
            whole: whole.map(|(size, root)| TreeHead { size: Size(size), root }),
        };
        let (used, effects) = run.machine.on_range(&arrived);
        match used {
            RangeUse::Skip => {}
            RangeUse::Write { slot, claim, is_load } => {
                let part = Part { slot, claim, range: range.clone(), is_load, staged_to: None };
                self.write_fetched(number, part);
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
            self.out.push(NodeOutput::Note(Note::Counted(Counted::LoadFetched, 1)));
        }
        let event = match self.apply_part(part, 0) {
            ReplicateOutcome::Durable(_) => {
                if let Some(run) = self.runs.get_mut(&number) {
                    run.fetched += count;
                }
                return;
            }
            ReplicateOutcome::Gap | ReplicateOutcome::Diverged => Event::Written(slot, WriteResult::Moved),
            ReplicateOutcome::Refused { by, .. } => Event::Written(slot, WriteResult::Refused(by)),
            ReplicateOutcome::Invalid(reason) => Event::DiskRefuses(reason),
        };
        self.tell(number, event);
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
        let context = range.context;
        let here = self.disk.now.histories[context].size();
        let Some(run) = self.runs.get_mut(&number) else { return };
        if is_first {
            let (after, after_root) = (range.after, range.after_root);
            run.staging = (here == after).then_some(Staging {
                context,
                after,
                after_root,
                entries: range.entries.to_vec(),
            });
        } else if let Some(staging) = &mut run.staging {
            staging.entries.extend_from_slice(&range.entries);
        }
        let Some(staging) = run.staging.take_if(|_| is_last) else {
            if is_first && run.staging.is_none() {
                let id = self.config.contexts.id(context).clone();
                self.tell(number, Event::Loaded(id, LoadResult::Moved));
            }
            return;
        };
        let Staging { context, after, after_root, entries } = staging;
        let whole = Range { context, after, after_root, entries: entries.into(), root: range.root };
        self.write_fetched(number, Part { slot, claim, range: whole, is_load: true, staged_to: None });
    }
}
