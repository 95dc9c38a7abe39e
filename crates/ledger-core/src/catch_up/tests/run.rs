use super::*;

/// Finds a run's slot of a context.
fn slot(number: u32) -> Slot {
    Slot::of(&context(number))
}

fn digest(seed: u64) -> Digest {
    let mut digest = Digest::default();
    digest.add(&context(0), head(seed));
    digest
}

/// A run of contexts in different slots, one in each, as far as its first answer.
struct Driven {
    run: CatchUp,
    effects: Vec<Effect>,
}

impl Driven {
    /// Begins with contexts 1 to 3.
    fn new(mode: Mode) -> Self {
        let claims = (1..=3).map(|number| (slot(number), claim(8))).collect();
        let (run, effects) = CatchUp::start(claims, mode);
        Self { run, effects }
    }

    fn step(&mut self, event: Event) -> &[Effect] {
        self.effects = self.run.step(event);
        &self.effects
    }

    fn digests(&mut self) -> &[Effect] {
        let Some(Effect::ReadDigests(slots)) = self.effects.last() else { panic!("{:?}", self.effects) };
        let digests = slots.iter().map(|slot| (*slot, digest(1))).collect();
        self.step(Event::Digests(digests))
    }

    /// Plays a comparison in which these contexts are listed by the two sides.
    fn compare(&mut self, ours: &[ListedContext], theirs: &[ListedContext]) -> &[Effect] {
        let all: BTreeMap<Slot, Bucket> = ours
            .iter()
            .chain(theirs)
            .map(|listed| (Slot::of(listed.context()), Bucket::of(listed.context())))
            .collect();
        self.digests();
        let [Effect::AskRemote(CompareRequest::Node { slots, .. })] = self.effects.as_slice() else {
            panic!("{:?}", self.effects)
        };
        let differ = |slot: &Slot| digest(if all.contains_key(slot) { 2 } else { 1 });
        let slots: BTreeMap<_, _> = slots.iter().map(|slot| (*slot, differ(slot))).collect();
        self.step(Event::Remote(CompareResponse::Slots(slots.clone())));
        if all.is_empty() {
            return &self.effects;
        }
        let buckets = |seed| {
            let of = |(slot, bucket): (&Slot, &Bucket)| (*slot, BTreeMap::from([(*bucket, digest(seed))]));
            CompareResponse::Buckets(all.iter().map(of).collect())
        };
        self.step(Event::Local(buckets(1)));
        self.step(Event::Remote(buckets(2)));
        let page = |listed: &[ListedContext]| {
            let mut contexts = listed.to_vec();
            contexts.sort_by_key(|listed| (Slot::of(listed.context()), listed.context().clone()));
            CompareResponse::Contexts(Page { contexts, more: false })
        };
        self.step(Event::Local(page(ours)));
        self.step(Event::Remote(page(theirs)))
    }

    fn fetched(&mut self, number: u32, after: u64, end: u64) -> RangeUse {
        let name = context(number);
        let range = ArrivedRange {
            context: &name,
            after: Size(after),
            end: head(end),
            together_to: None,
            whole: None,
        };
        let (used, effects) = self.run.on_range(&range);
        self.effects = effects;
        used
    }
}

fn listed(number: u32, size: u64) -> ListedContext {
    ListedContext::Present(summary(&context(number), size))
}

fn unreadable(number: u32) -> ListedContext {
    ListedContext::Unreadable(context(number))
}

fn done(number: u32, outcome: SlotOutcome) -> Effect {
    Effect::Done(slot(number), outcome)
}

#[test]
fn the_contexts_of_these_tests_are_in_slots_of_their_own() {
    assert!(slot(1) != slot(2) && slot(2) != slot(3) && slot(1) != slot(3));
}

#[test]
fn a_comparison_that_found_nothing_ends_it() {
    let mut driven = Driven::new(Mode::KeepLongest);
    driven.digests();
    assert_eq!(driven.step(Event::Remote(CompareResponse::InSync)), [Effect::FinishWrites]);
    driven.step(Event::WritesFinished);
    assert_eq!(driven.effects.len(), 3);
    assert!(driven.effects.iter().all(|effect| matches!(effect, Effect::Done(_, SlotOutcome::InSync))));
    assert!(driven.run.is_over());
}

#[test]
fn after_a_fetch_a_claimant_compares_again_and_a_follower_asks_for_an_offer() {
    for (mode, is_over) in [(Mode::KeepLongest, false), (Mode::FollowOwner, true)] {
        let mut driven = Driven::new(mode);
        let wanted = WantedRange { context: context(1), after: Size(0), to: Size(5) };
        assert_eq!(driven.compare(&[], &[listed(1, 5)]), [Effect::Fetch(vec![wanted])]);
        assert!(matches!(driven.fetched(1, 0, 5), RangeUse::Write { is_load: false, .. }));
        assert_eq!(driven.step(Event::FetchEnded), [Effect::FinishWrites]);
        driven.step(Event::WritesFinished);
        assert!(driven.effects.contains(&done(2, SlotOutcome::InSync)));
        assert_eq!(driven.run.is_over(), is_over);
        if is_over {
            assert!(driven.effects.contains(&done(1, SlotOutcome::NearlyInSync)));
        } else {
            assert!(driven.effects.contains(&Effect::ReadDigests([slot(1)].into())), "only what is not done");
        }
    }
}

#[test]
fn a_response_that_ends_early_fails_the_slots_that_lack_something_and_no_other() {
    let mut driven = Driven::new(Mode::FollowOwner);
    driven.compare(&[], &[listed(1, 5), listed(2, 5)]);
    driven.fetched(1, 0, 5);
    driven.fetched(2, 0, 4);
    let ended = SlotOutcome::Failed(Failure::EndedEarly(context(2)));
    assert_eq!(driven.step(Event::FetchEnded), [done(2, ended), Effect::FinishWrites]);
    driven.step(Event::WritesFinished);
    assert!(driven.effects.contains(&done(1, SlotOutcome::NearlyInSync)));
    assert!(driven.run.is_over());
}

#[test]
fn what_a_source_cannot_read_concerns_its_slot_alone() {
    let mut driven = Driven::new(Mode::FollowOwner);
    driven.compare(&[listed(1, 3)], &[unreadable(1), listed(2, 5)]);
    driven.fetched(2, 0, 5);
    driven.step(Event::FetchEnded);
    driven.step(Event::WritesFinished);
    assert!(driven.effects.contains(&done(1, SlotOutcome::Unreadable)));
    assert!(driven.effects.contains(&done(2, SlotOutcome::NearlyInSync)));

    let mut driven = Driven::new(Mode::KeepLongest);
    driven.compare(&[], &[listed(1, 5)]);
    driven.step(Event::Missing(context(1), Missing::Unreadable));
    driven.step(Event::FetchEnded);
    driven.step(Event::WritesFinished);
    assert!(driven.effects.contains(&done(1, SlotOutcome::Unreadable)));
}

#[test]
fn nothing_is_forked_off_before_the_source_proved_where_its_history_ends() {
    let (ours, theirs) = (9, 4);
    let fork = |driven: &mut Driven| {
        driven.compare(&[listed(1, ours)], &[listed(1, theirs)]);
        // The shorter history is a prefix of the longer one.
        let roots = || CompareResponse::Roots(vec![Roots::At(vec![root(theirs)])]);
        driven.step(Event::Local(roots()));
        driven.step(Event::Remote(roots()));
        let [Effect::AskRemote(CompareRequest::Roots(asked))] = driven.effects.as_slice() else {
            panic!("{:?}", driven.effects)
        };
        assert_eq!(asked[0].sizes, [Size(theirs), Size(ours)]);
    };
    let not_proven = [
        Roots::Unreadable,
        Roots::Absent,
        Roots::At(vec![]),
        Roots::At(vec![root(77)]),
        Roots::At(vec![root(theirs), root(ours)]),
    ];
    for roots in not_proven {
        let mut driven = Driven::new(Mode::FollowOwner);
        fork(&mut driven);
        let effects = driven.step(Event::Remote(CompareResponse::Roots(vec![roots])));
        assert_eq!(effects, [Effect::FinishWrites]);
        driven.step(Event::WritesFinished);
        assert!(driven.effects.contains(&Effect::ReadDigests([slot(1)].into())), "it is compared again");
    }
    let mut driven = Driven::new(Mode::FollowOwner);
    fork(&mut driven);
    let proven = CompareResponse::Roots(vec![Roots::At(vec![root(theirs)])]);
    let [Effect::Fork(order)] = driven.step(Event::Remote(proven)) else { panic!("{:?}", driven.effects) };
    assert_eq!((order.common, order.expected), (Size(theirs), head(ours)));
    assert_eq!(order.theirs, Some(summary(&context(1), theirs)));
}

#[test]
fn a_context_that_the_owner_does_not_have_is_forked_off_only_if_it_could_read_that() {
    for (roots, is_forked) in [(Roots::Absent, true), (Roots::Unreadable, false), (Roots::At(vec![]), false)]
    {
        let mut driven = Driven::new(Mode::AdoptRemote);
        driven.compare(&[listed(1, 9)], &[]);
        let effects = driven.step(Event::Remote(CompareResponse::Roots(vec![roots])));
        assert_eq!(matches!(effects, [Effect::Fork(ForkOrder { theirs: None, .. })]), is_forked);
    }
}

#[test]
fn a_refused_slot_ends_and_its_ranges_are_skipped() {
    let mut driven = Driven::new(Mode::KeepLongest);
    driven.compare(&[], &[listed(1, 5), listed(2, 5)]);
    let higher = claim(9);
    let refused = [done(1, SlotOutcome::Refused(higher.clone()))];
    assert_eq!(driven.step(Event::Written(slot(1), WriteResult::Refused(higher))), refused);
    assert_eq!(driven.fetched(1, 0, 5), RangeUse::Skip);
    assert!(matches!(driven.fetched(2, 0, 5), RangeUse::Write { .. }));
    assert!(!driven.run.is_over());
}

#[test]
fn the_loss_of_the_source_fails_every_slot_once() {
    let mut driven = Driven::new(Mode::KeepLongest);
    driven.compare(&[], &[listed(1, 5)]);
    assert_eq!(driven.step(Event::SourceLost("it is gone".to_owned())).len(), 3);
    assert!(driven.run.is_over());
    assert_eq!(driven.step(Event::FetchEnded), []);
    assert_eq!(driven.fetched(1, 0, 5), RangeUse::Skip);
}

#[test]
fn a_source_that_never_stands_still_is_given_up() {
    let mut driven = Driven::new(Mode::KeepLongest);
    for _ in 0..64 {
        assert!(!driven.run.is_over());
        driven.compare(&[], &[listed(1, 5)]);
        driven.step(Event::Missing(context(1), Missing::Shorter));
        driven.step(Event::FetchEnded);
        driven.step(Event::WritesFinished);
    }
    assert!(driven.effects.contains(&done(1, SlotOutcome::Failed(Failure::TooFast))));
    assert!(driven.run.is_over());
}

#[test]
fn the_owners_history_replaces_what_cannot_be_read_here_but_no_other_source_s() {
    for (mode, is_restored) in
        [(Mode::FollowOwner, true), (Mode::KeepLongest, false), (Mode::AdoptRemote, false)]
    {
        let mut driven = Driven::new(mode);
        driven.compare(&[unreadable(1)], &[listed(1, 5)]);
        let restores =
            |effect: &Effect| matches!(effect, Effect::Restore { theirs, .. } if *theirs == head(5));
        assert_eq!(driven.effects.iter().any(restores), is_restored);
    }
    let mut driven = Driven::new(Mode::FollowOwner);
    driven.compare(&[unreadable(1)], &[listed(1, 5)]);
    driven.step(Event::Restored(context(1), RestoreResult::NotYet));
    driven.step(Event::WritesFinished);
    assert!(driven.effects.contains(&done(1, SlotOutcome::Unreadable)));
}

#[test]
fn the_longer_of_two_that_diverged_is_kept() {
    let finding = |ours, theirs| Finding {
        context: context(1),
        local: ContextStatus::Present(summary(&context(1), ours)),
        remote: ContextStatus::Present(summary(&context(1), theirs)),
        verdict: Verdict::Diverged { common: Size(2) },
    };
    let decide = |mode, ours, theirs| findings::decide(mode, &claim(8), finding(ours, theirs), false);
    let is_forked = |action| matches!(action, findings::Action::Fork(_, Some(_)));
    assert!(!is_forked(decide(Mode::KeepLongest, 5, 5)));
    assert!(is_forked(decide(Mode::KeepLongest, 5, 6)));
    assert!(is_forked(decide(Mode::AdoptRemote, 9, 6)));
    let unknown = Finding { verdict: Verdict::Unreadable(Side::Remote), ..finding(9, 6) };
    assert_eq!(findings::decide(Mode::AdoptRemote, &claim(8), unknown, true), findings::Action::Unreadable);
}
