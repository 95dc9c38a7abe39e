//! The machine, alone.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::{
    ContextId, Epoch, Hash, Size,
    digest::{Digest, TreeHead},
    node::{Member, NodeId, StorageId},
    ownership::Claim,
    slot::Slot,
};

fn context(name: &str) -> ContextId {
    ContextId::new(name).unwrap()
}

fn head(size: u64) -> TreeHead {
    TreeHead { size: Size(size), root: Hash([u8::try_from(size).unwrap(); 32]) }
}

fn member(name: &str) -> Member {
    Member { node: NodeId::new(name).unwrap(), storage: StorageId([1; 16]) }
}

fn claim(counter: u32) -> Claim {
    Claim::new(Epoch::new(counter, 1), &member("b"))
}

#[test]
fn a_node_asks_itself_then_the_owner_then_the_other_members() {
    let members = ["a", "b", "c"].map(member);
    let owner = NodeId::new("c").unwrap();
    let sources = heal_sources(&members[0], &members, Some(&owner));
    let others = [&members[2], &members[1]].map(|member| HealSource::Member(member.clone()));
    assert_eq!(sources[0], HealSource::Local);
    assert_eq!(sources[1..], others);
    assert_eq!(heal_sources(&members[0], &[], None), [HealSource::Local]);
}

#[test]
fn a_context_whose_head_is_readable_is_fetched_up_to_it_and_installed() {
    let sources = heal_sources(&member("a"), &[member("a"), member("b")], None);
    let (mut attempt, first) = HealAttempt::begin(context("c"), sources);
    assert_eq!(first, HealEffect::ReadHead);
    let fetch = |source, goal, is_more| HealEffect::Fetch { source, goal, proof: HealProof::Head, is_more };
    let read = HealEvent::Head(LocalHead::Committed(head(5)));
    assert_eq!(attempt.step(read.clone()), fetch(HealSource::Local, head(5), false));
    // Its own entries cannot be read: another node is asked, from the beginning.
    assert_eq!(attempt.step(HealEvent::Failed), HealEffect::ReadHead);
    let other = HealSource::Member(member("b"));
    assert_eq!(attempt.step(read), fetch(other.clone(), head(5), false));
    assert_eq!(attempt.step(HealEvent::Staged), HealEffect::Install);
    // The context grew: only the rest is fetched.
    assert_eq!(attempt.step(HealEvent::Behind(head(7))), fetch(other.clone(), head(7), true));
    assert_eq!(attempt.step(HealEvent::Staged), HealEffect::Install);
    let restored = HealEffect::Finished(HealOutcome::Restored { source: other, entries: 7 });
    assert_eq!(attempt.step(HealEvent::Installed), restored);
    assert_eq!(attempt.step(HealEvent::Failed), restored, "it is over");
}

#[test]
fn a_context_that_grows_for_ever_is_given_up_for_now() {
    let (mut attempt, _) = HealAttempt::begin(context("c"), [HealSource::Member(member("b"))]);
    let mut effect = attempt.step(HealEvent::Head(LocalHead::Committed(head(1))));
    for size in 2..200 {
        if matches!(effect, HealEffect::Finished(_)) {
            return assert_eq!(effect, HealEffect::Finished(HealOutcome::NotRestored));
        }
        assert_eq!(attempt.step(HealEvent::Staged), HealEffect::Install);
        effect = attempt.step(HealEvent::Behind(head(size)));
    }
    panic!("it never ends");
}

#[test]
fn a_context_whose_head_is_lost_needs_another_nodes_bucket() {
    let sources = heal_sources(&member("a"), &[member("b"), member("c")], None);
    let (mut attempt, _) = HealAttempt::begin(context("c"), sources);
    let unreadable = HealEvent::Head(LocalHead::Unreadable);
    // Its own entries prove nothing without the head.
    assert_eq!(attempt.step(unreadable.clone()), HealEffect::ReadHead);
    assert_eq!(attempt.step(unreadable.clone()), HealEffect::AskBucket(member("b")));
    // The first cannot read the context either.
    let others = BTreeMap::from([(context("other"), head(1))]);
    assert_eq!(attempt.step(HealEvent::Bucket(others)), HealEffect::ReadHead);
    assert_eq!(attempt.step(unreadable), HealEffect::AskBucket(member("c")));
    let bucket = BTreeMap::from([(context("c"), head(3)), (context("other"), head(1))]);
    let (source, proof) = (HealSource::Member(member("c")), HealProof::Digest(bucket.clone()));
    let fetch = HealEffect::Fetch { source, goal: head(3), proof, is_more: false };
    assert_eq!(attempt.step(HealEvent::Bucket(bucket)), fetch);
    assert_eq!(attempt.step(HealEvent::Staged), HealEffect::Install);
    let refused = attempt.step(HealEvent::Failed);
    assert_eq!(refused, HealEffect::Finished(HealOutcome::NotRestored));
}

#[test]
fn what_is_not_damaged_or_not_committed_is_left_alone() {
    for head in [LocalHead::NotDamaged, LocalHead::NothingCommitted] {
        let (mut attempt, _) = HealAttempt::begin(context("c"), [HealSource::Local]);
        assert_eq!(attempt.step(HealEvent::Head(head)), HealEffect::Finished(HealOutcome::NothingToDo));
    }
    let (_, effect) = HealAttempt::begin(context("c"), []);
    assert_eq!(effect, HealEffect::Finished(HealOutcome::NotRestored));
    let (_, effect) = HealAttempt::in_claim(context("c"), member("b"), claim(1), true, head(0));
    assert_eq!(effect, HealEffect::Finished(HealOutcome::NothingToDo));
}

#[test]
fn an_event_out_of_turn_is_a_failure_and_never_installs() {
    let (mut attempt, _) = HealAttempt::in_claim(context("c"), member("b"), claim(1), true, head(3));
    assert_eq!(attempt.step(HealEvent::Installed), HealEffect::Finished(HealOutcome::NotRestored));
}

#[test]
fn a_digest_proves_one_tree_head_only() {
    let (lost, other, unread) = (context("lost"), context("other"), context("unread"));
    let mut kept = Digest::default();
    kept.add(&lost, head(3));
    kept.add(&other, head(1));
    let others = || [(other.clone(), Some(head(1))), (lost.clone(), None)];
    let nothing = BTreeMap::new();
    assert!(proves_by_digest(kept, &lost, head(3), others(), &nothing));
    assert!(!proves_by_digest(kept, &lost, head(2), others(), &nothing), "shorter");
    assert!(!proves_by_digest(Digest::default(), &lost, head(3), others(), &nothing), "a digest of nothing");

    kept.add(&unread, head(2));
    let more = || others().into_iter().chain([(unread.clone(), None)]);
    assert!(!proves_by_digest(kept, &lost, head(3), more(), &nothing), "one is unknown");
    let remote = |size| BTreeMap::from([(unread.clone(), head(size))]);
    assert!(proves_by_digest(kept, &lost, head(3), more(), &remote(2)));
    assert!(!proves_by_digest(kept, &lost, head(3), more(), &remote(1)));
    // A context without entries is no context.
    let empty = [(context("empty"), Some(head(0)))];
    assert!(proves_by_digest(kept, &lost, head(3), more().chain(empty), &remote(2)));
}

#[test]
fn a_range_is_staged_only_if_it_continues_and_leads_to_the_goal() {
    let goal = head(5);
    assert_eq!(check_staged(goal, head(0), head(0), head(3), None), Ok(()));
    assert_eq!(check_staged(goal, head(3), head(3), head(5), Some(Size(5))), Ok(()));
    let refused = Err(HealRefusal::OtherHistory);
    let forged = TreeHead { root: Hash([9; 32]), ..head(5) };
    assert_eq!(check_staged(goal, head(3), head(2), head(5), None), refused, "a gap or an overlap");
    assert_eq!(check_staged(goal, head(3), head(3), forged, None), refused, "another root");
    assert_eq!(check_staged(goal, head(3), head(3), head(6), None), refused, "beyond the goal");
    assert_eq!(check_staged(goal, head(3), head(3), head(4), Some(Size(6))), refused, "a load beyond it");
    assert_eq!(check_staged(goal, head(3), head(3), head(3), None), refused, "nothing");
}

#[test]
fn the_lane_installs_only_what_is_proven() {
    let present = |size| HeadAtInstall::Present { head: head(size), is_replaced: false };
    let replaced = HeadAtInstall::Present { head: head(3), is_replaced: true };
    let refuse = InstallDecision::Refuse;
    let by_head = |local| InstallCase::ByHead.decide(local, head(3));
    assert_eq!(by_head(present(3)), InstallDecision::Install);
    assert_eq!(by_head(present(4)), InstallDecision::Extend(head(4)));
    assert_eq!(by_head(present(2)), InstallDecision::Obsolete, "it was forked off meanwhile");
    assert_eq!(by_head(replaced), InstallDecision::Obsolete);
    assert_eq!(by_head(HeadAtInstall::Absent), InstallDecision::Obsolete);
    assert_eq!(by_head(HeadAtInstall::Unreadable), refuse(HealRefusal::HeadLost));
    let other =
        HeadAtInstall::Present { head: TreeHead { root: Hash([9; 32]), ..head(3) }, is_replaced: false };
    assert_eq!(by_head(other), refuse(HealRefusal::OtherHistory));

    let by_digest = |local, is_proven| InstallCase::ByDigest { is_proven }.decide(local, head(3));
    assert_eq!(by_digest(HeadAtInstall::Unreadable, true), InstallDecision::Install);
    assert_eq!(by_digest(HeadAtInstall::Absent, true), InstallDecision::Install);
    assert_eq!(by_digest(HeadAtInstall::Unreadable, false), refuse(HealRefusal::Unproven));
    assert_eq!(by_digest(present(3), true), InstallDecision::Obsolete, "an append wrote the head anew");

    let case = |higher, is_in_sync, is_complete, is_tail_lost| InstallCase::InClaim {
        higher,
        is_in_sync,
        is_complete,
        is_tail_lost,
    };
    for local in [HeadAtInstall::Unreadable, HeadAtInstall::Absent, present(3), present(2), replaced] {
        assert_eq!(case(None, false, false, false).decide(local, head(3)), InstallDecision::Install);
        assert_eq!(case(None, true, true, true).decide(local, head(3)), refuse(HealRefusal::InSync));
        let refused = case(Some(claim(9)), false, true, true).decide(local, head(3));
        assert_eq!(refused, refuse(HealRefusal::HigherClaim(claim(9))));
    }
    let goes_further =
        |is_complete, is_tail_lost| case(None, false, is_complete, is_tail_lost).decide(present(4), head(3));
    let only_copy = refuse(HealRefusal::GoesFurther(Size(4)));
    assert_eq!(goes_further(false, false), only_copy);
    assert_eq!(goes_further(false, true), only_copy);
    assert_eq!(goes_further(true, false), InstallDecision::ForkTail(Size(3)), "it was never acknowledged");
    assert_eq!(goes_further(true, true), InstallDecision::Install, "and cannot be read");
}

#[test]
fn contexts_that_cannot_be_healed_do_not_keep_others_from_their_turn() {
    let all: BTreeSet<_> = (0..3 * MAX_DUE).map(|number| context(&format!("c-{number}"))).collect();
    let (mut schedule, mut tried, mut now) = (HealSchedule::default(), BTreeSet::new(), 0);
    // No context is ever restored, and a turn takes longer than the pause after it.
    for _ in 0..3 {
        let turn = schedule.due(now, &all);
        assert_eq!(turn.len(), MAX_DUE);
        now += 60_000;
        for context in turn {
            assert_eq!(schedule.tried(now, &context, false, u32::MAX), None);
            tried.insert(context);
        }
    }
    assert_eq!(tried.len(), all.len(), "each had its turn");
    assert_eq!(schedule.due(now, &all).len(), MAX_DUE, "those that wait the longest");
    let mut one = HealSchedule::default();
    let only = BTreeSet::from([context("c")]);
    assert_eq!(one.due(0, &only).len(), 1);
    one.tried(0, &context("c"), false, 0);
    assert_eq!(one.due(249, &only).len(), 0, "none is tried before its time");
    assert_eq!(one.due(250, &only).len(), 1);
    assert_eq!(one.due(300, &BTreeSet::new()).len(), 0, "it is damaged no more");
}

#[test]
fn pauses_double_up_to_the_longest_and_begin_anew_with_a_context_that_stayed_well() {
    let (mut schedule, of) = (HealSchedule::default(), context("c"));
    let only = BTreeSet::from([of.clone()]);
    let mut now = 0;
    for pause in [500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000] {
        assert_eq!(schedule.due(now, &only), std::slice::from_ref(&of));
        schedule.tried(now, &of, false, u32::MAX);
        assert_eq!(schedule.due(now + pause - 1, &only).len(), 0);
        now += pause;
    }
    assert_eq!(schedule.tried(now, &of, true, 0), Some(1));
    now += 1_000_000;
    assert_eq!(schedule.due(now, &BTreeSet::new()).len(), 0);
    assert_eq!(schedule.due(now, &only), std::slice::from_ref(&of), "as if it had never been damaged");
    assert_eq!(schedule.tried(now, &of, true, 0), Some(1));
}

#[test]
fn a_context_that_relapses_is_counted_and_one_that_lingers_impairs_its_slot() {
    let (mut schedule, of) = (HealSchedule::default(), context("c"));
    let only = BTreeSet::from([of.clone()]);
    let mut now = 0;
    for times in 1..=MAX_RELAPSES {
        assert_eq!(schedule.due(now, &only), std::slice::from_ref(&of));
        assert_eq!(schedule.tried(now, &of, true, 0), Some(times));
        now += 30_000;
        assert_eq!(schedule.impaired(now), BTreeSet::new());
    }
    schedule.due(now, &only);
    assert_eq!(schedule.impaired(now + IMPAIRED_AFTER), BTreeSet::from([Slot::of(&of)]));
    assert_eq!(schedule.impaired(now + IMPAIRED_AFTER - 1), BTreeSet::new());
    schedule.due(now + IMPAIRED_AFTER, &BTreeSet::new());
    assert_eq!(schedule.impaired(now + IMPAIRED_AFTER), BTreeSet::new(), "it was restored");
}
