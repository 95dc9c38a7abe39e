use super::*;
use crate::jitter::Jitter;

const LONGEST: Jitter = Jitter(u16::MAX);

fn slots(numbers: std::ops::Range<u16>) -> BTreeMap<Slot, Claim> {
    numbers.filter_map(Slot::new).map(|slot| (slot, claim(8))).collect()
}

fn all(slots: &BTreeMap<Slot, Claim>, outcome: &SlotOutcome) -> BTreeMap<Slot, SlotOutcome> {
    slots.keys().map(|slot| (*slot, outcome.clone())).collect()
}

fn run(schedule: &mut SyncSchedule, now: u64) -> BTreeMap<Slot, Claim> {
    match schedule.next(now) {
        NextRun::Run(slots) => slots,
        other => panic!("{other:?}"),
    }
}

#[test]
fn slots_are_grouped_and_each_group_is_asked_for_by_itself() {
    let mut schedule = SyncSchedule::default();
    schedule.add(0, slots(0..40));
    assert_eq!(schedule.next(0), NextRun::At(20), "more may come");
    let first = run(&mut schedule, 20);
    assert_eq!(first, slots(0..32));
    assert_eq!(schedule.next(20), NextRun::Nothing, "one group at a time");
    let asked = schedule.on_run_ended(30, &all(&first, &SlotOutcome::InSync), &[].into(), LONGEST);
    assert_eq!(asked, first);
    schedule.on_offers_requested(40, true, LONGEST);
    assert_eq!(run(&mut schedule, 40), slots(32..40));
}

#[test]
fn a_slot_that_is_unreadable_or_failed_is_delayed_and_the_others_are_not() {
    let mut schedule = SyncSchedule::default();
    schedule.add(0, slots(0..4));
    let group = run(&mut schedule, 20);
    let slot = |number| Slot::new(number).unwrap();
    let mut outcomes = all(&group, &SlotOutcome::NearlyInSync);
    outcomes.insert(slot(0), SlotOutcome::Unreadable);
    outcomes.insert(slot(1), SlotOutcome::Refused(claim(9)));
    let asked = schedule.on_run_ended(100, &outcomes, &[slot(2)].into(), LONGEST);
    assert_eq!(asked, slots(3..4), "damaged slots are in sync with nobody");
    schedule.on_offers_requested(100, true, LONGEST);
    assert_eq!(schedule.next(100), NextRun::At(600));
    assert_eq!(schedule.len(), 2, "what has another owner is done");
    let again = run(&mut schedule, 600);
    assert_eq!(again.keys().copied().collect::<Vec<_>>(), [slot(0), slot(2)]);
}

#[test]
fn pauses_grow_while_it_fails_and_a_lost_source_holds_up_all_its_slots() {
    let mut schedule = SyncSchedule::default();
    schedule.add(0, slots(0..40));
    let failed = SlotOutcome::Failed(Failure::Source("no answer".to_owned()));
    let (mut now, mut before) = (20, 0);
    for _ in 0..8 {
        let group = run(&mut schedule, now);
        assert!(schedule.on_run_ended(now, &all(&group, &failed), &[].into(), LONGEST).is_empty());
        let NextRun::At(at) = schedule.next(now) else { panic!("it does not wait") };
        assert!(at - now >= before && at - now <= 10_000);
        (before, now) = (at - now, at);
    }
    assert_eq!(before, 10_000);
    assert_eq!(schedule.len(), 40);
    schedule.on_owner_lost();
    assert!(schedule.is_empty());
}

#[test]
fn replicas_that_failed_together_do_not_try_again_together() {
    let failed = SlotOutcome::Failed(Failure::Source("no answer".to_owned()));
    let due = |jitter| {
        let mut schedule = SyncSchedule::default();
        schedule.add(0, slots(0..1));
        let group = run(&mut schedule, 20);
        schedule.on_run_ended(20, &all(&group, &failed), &[].into(), jitter);
        schedule.next(20)
    };
    assert_eq!(due(Jitter(0)), NextRun::At(270));
    assert_eq!(due(Jitter(u16::MAX / 2)), NextRun::At(394));
    assert_eq!(due(LONGEST), NextRun::At(520));
    let mut schedule = SyncSchedule::default();
    schedule.add(0, slots(0..1));
    let group = run(&mut schedule, 20);
    schedule.on_run_ended(20, &all(&group, &SlotOutcome::InSync), &[].into(), LONGEST);
    schedule.on_offers_requested(20, false, Jitter(0));
    assert_eq!(schedule.next(20), NextRun::At(270), "an owner that cannot be asked is asked later, too");
}

#[test]
fn a_group_that_keeps_failing_does_not_starve_the_others() {
    let mut schedule = SyncSchedule::default();
    schedule.add(0, slots(0..64));
    let failed = SlotOutcome::Failed(Failure::Source("no answer".to_owned()));
    let first = run(&mut schedule, 20);
    schedule.on_run_ended(20, &all(&first, &failed), &[].into(), LONGEST);
    assert_eq!(run(&mut schedule, 10_000), slots(32..64));
}

#[test]
fn a_newer_claim_takes_the_place_of_an_older_one() {
    let mut schedule = SyncSchedule::default();
    schedule.add(0, slots(0..1));
    let group = run(&mut schedule, 20);
    let newer = BTreeMap::from([(Slot::new(0).unwrap(), claim(9))]);
    schedule.add(20, newer.clone());
    schedule.on_run_ended(30, &all(&group, &SlotOutcome::Unreadable), &[].into(), LONGEST);
    assert_eq!(run(&mut schedule, 1_000), newer);
}

#[test]
fn a_claim_is_complete_when_a_comparison_with_every_source_found_nothing() {
    let both = slots(0..2);
    let slot = |number| Slot::new(number).unwrap();
    let mut sources = ClaimSources::new(&member("me"), vec![member("a"), member("b")], both.clone());
    assert!(sources.take_complete().is_empty());
    let first = sources.next_run().unwrap();
    assert_eq!((first.source, first.mode, first.slots), (member("a"), Mode::AdoptRemote, both));
    assert_eq!(sources.on_done(slot(0), &SlotOutcome::InSync), None, "another source is left");
    assert_eq!(sources.on_done(slot(1), &SlotOutcome::Unreadable), Some((claim(8), false)));
    let second = sources.next_run().unwrap();
    assert_eq!((second.source, second.mode, second.slots), (member("b"), Mode::KeepLongest, slots(0..1)));
    assert_eq!(sources.on_done(slot(0), &SlotOutcome::InSync), Some((claim(8), true)));
    assert_eq!(sources.next_run(), None);
}

#[test]
fn a_claimant_that_alone_has_the_best_history_is_complete_at_once() {
    let mut sources = ClaimSources::new(&member("me"), vec![member("me")], slots(0..2));
    assert_eq!(sources.take_complete(), slots(0..2));
    assert_eq!(sources.next_run(), None);
    let mut sources = ClaimSources::new(&member("me"), vec![member("me"), member("a")], slots(0..2));
    assert_eq!(sources.next_run().unwrap().mode, Mode::KeepLongest);
}
