use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    node::{Member, NodeId, ReplicaSet, StorageId},
    ownership::{Placement, SlotRecord, slot_manager::SyncOfferOutcome},
    replication::WriteQuorum,
};

type Commits = SlotCommits<u32, &'static str, &'static str>;
type Effects = Vec<Effect<u32, &'static str, &'static str>>;

const COPIES_NEEDED: usize = 2;

fn slot(number: u16) -> Slot {
    Slot::new(number).unwrap()
}

fn peer(number: u8) -> Peer {
    Peer::new(number).unwrap()
}

fn claim(epoch: u64) -> Claim {
    Claim { epoch: Epoch(epoch), claimant: NodeId::new("n0").unwrap(), storage: None }
}

/// The record of a node that accepted a claim of its own, for three members.
fn accepted(claim: &Claim) -> SlotRecord {
    let member = |number: u8| Member {
        node: NodeId::new(format!("n{number}")).unwrap(),
        storage: StorageId([number; 16]),
    };
    let members = ReplicaSet::new((0..3).map(member)).unwrap();
    let placement = Placement { epoch: claim.epoch, members, is_confirmed: true, previous: None };
    SlotRecord {
        promised: Some(claim.clone()),
        accepted: claim.epoch,
        placement: Some(placement),
        is_formed: true,
    }
}

/// Makes a step and returns its effects. What must always hold holds after it.
fn step<T>(commits: &mut Commits, step: impl FnOnce(&mut Commits, &mut Effects) -> T) -> Effects {
    let mut effects = Vec::new();
    step(commits, &mut effects);
    assert_eq!(commits.check(), Ok(()));
    effects
}

/// Has a node own a slot in a claim, with a peer in sync.
fn own(commits: &mut Commits, slot: Slot, claim: &Claim, peer: Peer) -> Effects {
    step(commits, |commits, effects| {
        commits.add_stream_peer(slot, claim, peer);
        commits.begin_serving(slot, claim, COPIES_NEEDED, &accepted(claim), effects);
        commits.record_offer_answer(slot, claim, peer, SyncOfferOutcome::Accepted);
        commits.add_in_sync(slot, claim, peer, effects);
    })
}

fn commit(commits: &mut Commits, slot: Slot, write: Option<u32>, answers: &'static str) -> Effects {
    step(commits, |commits, effects| {
        let part = CommitPart { slot, write, answers, waiters: Vec::new() };
        commits.record_own_commit(vec![part], effects)
    })
}

fn durable(commits: &mut Commits, of: &[u8], number: u64) -> Effects {
    step(commits, |commits, effects| {
        commits.advance_durable_here(number, effects);
        for of in of {
            assert_eq!(commits.advance_durable_at(peer(*of), number, effects), Ok(()));
        }
    })
}

fn index(slot: Slot, epoch: u64, number: u64) -> CommitIndex {
    CommitIndex { slot, epoch: Epoch(epoch), number }
}

fn sent(of: u8, index: CommitIndex) -> Effect<u32, &'static str, &'static str> {
    let mut peers = PeerSet::default();
    peers.insert(peer(of));
    Effect::SendCommitIndex { peers, index }
}

#[test]
fn a_commit_is_acknowledged_once_its_quorum_is_durable_and_the_replicas_learn_of_it() {
    let mut commits = Commits::default();
    let shown = own(&mut commits, slot(1), &claim(5), peer(1));
    assert_eq!(shown[0], Effect::ShowSlot(slot(1)));
    assert_eq!(commit(&mut commits, slot(1), Some(10), "first"), []);
    assert_eq!(durable(&mut commits, &[], 1), [], "one copy of two");
    let committed = Effect::Acknowledge { write: Some(10), answers: "first", copies: 2 };
    assert_eq!(durable(&mut commits, &[1], 1), [committed, sent(1, index(slot(1), 5, 1))]);
}

#[test]
fn a_slot_takes_no_appends_in_a_claim_after_a_higher_one_was_promised() {
    let mut commits = Commits::default();
    own(&mut commits, slot(1), &claim(5), peer(1));
    commits.fence(slot(1), &claim(5));
    assert!(commits.serving_epoch(slot(1)).is_ok(), "its own claim is no higher one");
    commits.fence(slot(1), &claim(6));
    assert_eq!(commits.serving_epoch(slot(1)), Err(NotServing::NotOwner));
    own(&mut commits, slot(1), &claim(5), peer(1));
    assert_eq!(commits.serving_epoch(slot(1)), Err(NotServing::NotOwner), "never again in this claim");
    own(&mut commits, slot(1), &claim(7), peer(1));
    assert_eq!(commits.serving_epoch(slot(1)).map(|(epoch, _)| epoch), Ok(Epoch(7)));
}

#[test]
fn a_slot_is_not_served_in_a_claim_that_the_record_has_overtaken() {
    let mut commits = Commits::default();
    let overtaken = SlotRecord { promised: Some(claim(6)), ..accepted(&claim(5)) };
    let effects = step(&mut commits, |commits, effects| {
        commits.begin_serving(slot(1), &claim(5), COPIES_NEEDED, &overtaken, effects);
    });
    assert_eq!(effects, []);
    assert_eq!(commits.serving_epoch(slot(1)), Err(NotServing::NotOwner));
}

#[test]
fn appends_stop_and_are_reported_once_none_waits() {
    let mut commits = Commits::default();
    own(&mut commits, slot(1), &claim(5), peer(1));
    commit(&mut commits, slot(1), Some(10), "first");
    let stop = |commits: &mut Commits| {
        step(commits, |commits, effects| commits.stop_appends(slot(1), &claim(5), effects))
    };
    assert_eq!(stop(&mut commits), []);
    assert_eq!(commits.serving_epoch(slot(1)), Err(NotServing::Stopping));
    let stopped = Effect::AppendsStopped { slot: slot(1), claim: claim(5) };
    assert_eq!(durable(&mut commits, &[1], 1).last(), Some(&stopped));
    assert_eq!(stop(&mut commits), [stopped], "nothing waits any more");
}

#[test]
fn who_steps_down_fails_those_who_wait_and_withholds_what_they_wrote() {
    let mut commits = Commits::default();
    own(&mut commits, slot(1), &claim(5), peer(1));
    step(&mut commits, |commits, effects| {
        let waiters = vec![(WriteQuorum::All, "all")];
        let part = CommitPart { slot: slot(1), write: Some(10), answers: "first", waiters };
        commits.record_own_commit(vec![part], effects)
    });
    let effects = step(&mut commits, |commits, effects| commits.step_down(slot(1), effects));
    assert_eq!(effects, [Effect::FailWaiter("all"), Effect::Fail("first")]);
    assert_eq!(durable(&mut commits, &[1], 1), [], "it acknowledges nothing any more");
    // The next owner has it, and commits it.
    step(&mut commits, |commits, effects| commits.record_accepted(slot(1), Epoch(6), 3, effects));
    let index = index(slot(1), 6, 3);
    let effects = step(&mut commits, |commits, effects| commits.advance_commit_index(&[index], effects));
    assert_eq!(effects, [Effect::Publish(10)], "the slot was visible all the time");
}

#[test]
fn what_was_written_to_a_slot_that_was_lost_meanwhile_is_not_acknowledged() {
    let mut commits = Commits::default();
    assert_eq!(
        commit(&mut commits, slot(1), Some(10), "late"),
        [Effect::Fail("late"), Effect::Unpin(10)],
        "no reader sees the slot"
    );
}

#[test]
fn a_repeated_append_is_answered_after_the_commits_before_it() {
    let mut commits = Commits::default();
    own(&mut commits, slot(1), &claim(5), peer(1));
    commit(&mut commits, slot(1), Some(10), "first");
    assert_eq!(commit(&mut commits, slot(1), None, "again"), []);
    assert_eq!(commits.newest_commit(), 1, "what writes nothing has no number");
    let answers = durable(&mut commits, &[1], 1).into_iter().filter_map(|effect| match effect {
        Effect::Acknowledge { answers, .. } => Some(answers),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), ["first", "again"]);
}

#[test]
fn a_replica_shows_a_slot_once_what_it_accepted_is_committed() {
    let mut commits = Commits::default();
    let accept = |commits: &mut Commits, number| {
        step(commits, |commits, effects| commits.record_accepted(slot(1), Epoch(5), number, effects))
    };
    let replicate = |commits: &mut Commits, number, write| {
        step(commits, |commits, effects| {
            commits.record_replicated(slot(1), Epoch(5), number, write, effects);
        })
    };
    let advance = |commits: &mut Commits, epoch, number| {
        let index = index(slot(1), epoch, number);
        step(commits, |commits, effects| commits.advance_commit_index(&[index], effects))
    };
    assert_eq!(replicate(&mut commits, 2, 20), [Effect::Unpin(20)], "a hidden slot withholds nothing");
    assert_eq!(accept(&mut commits, 3), [Effect::WithholdSlot(slot(1))]);
    assert_eq!(replicate(&mut commits, 4, 40), []);
    assert_eq!(advance(&mut commits, 5, 2), []);
    assert_eq!(advance(&mut commits, 4, 4), [], "another owner's numbers say nothing");
    assert_eq!(advance(&mut commits, 5, 3), [Effect::ShowSlot(slot(1))]);
    assert_eq!(advance(&mut commits, 5, 4), [Effect::Publish(40)]);
}

#[test]
fn a_slot_is_hidden_before_its_writes_are_unpinned() {
    let mut commits = Commits::default();
    step(&mut commits, |commits, effects| {
        commits.record_accepted(slot(1), Epoch(5), 3, effects);
        commits.record_replicated(slot(1), Epoch(5), 4, 40, effects);
    });
    let hide =
        |commits: &mut Commits| step(commits, |commits, effects| commits.hide_diverged(slot(1), effects));
    assert_eq!(hide(&mut commits), [Effect::HideSlot(slot(1)), Effect::Unpin(40)]);
    assert_eq!(hide(&mut commits), []);
    let index = index(slot(1), 5, 9);
    let effects = step(&mut commits, |commits, effects| commits.advance_commit_index(&[index], effects));
    assert_eq!(effects, [], "it has to be accepted again");
}

#[test]
fn a_peer_is_not_counted_for_what_it_accepted_on_a_stream_that_broke() {
    let mut commits = Commits::default();
    step(&mut commits, |commits, effects| {
        commits.add_stream_peer(slot(1), &claim(5), peer(1));
        commits.begin_serving(slot(1), &claim(5), COPIES_NEEDED, &accepted(&claim(5)), effects);
        commits.record_offer_answer(slot(1), &claim(5), peer(1), SyncOfferOutcome::Accepted);
        // What follows from its answer was on its way when the stream broke.
        commits.peer_disconnected(peer(1));
        commits.add_in_sync(slot(1), &claim(5), peer(1), effects);
        // On the next stream it was offered the slot, and has not accepted it yet.
        commits.add_stream_peer(slot(1), &claim(5), peer(1));
    });
    commit(&mut commits, slot(1), Some(10), "first");
    assert_eq!(durable(&mut commits, &[1], 1), [], "it may lack what came before");
    let effects = accept(&mut commits, slot(1));
    assert_eq!(effects[0], Effect::Acknowledge { write: Some(10), answers: "first", copies: 2 });
}

/// The first peer accepts the newest offer of a slot.
fn accept(commits: &mut Commits, slot: Slot) -> Effects {
    step(commits, |commits, effects| {
        let answer = commits.record_offer_answer(slot, &claim(5), peer(1), SyncOfferOutcome::Accepted);
        assert_eq!(answer, SyncOfferOutcome::Accepted);
        commits.add_in_sync(slot, &claim(5), peer(1), effects);
    })
}

#[test]
fn a_peer_that_refuses_a_part_counts_for_its_other_slots_and_for_this_one_once_it_accepts_again() {
    let mut commits = Commits::default();
    own(&mut commits, slot(1), &claim(5), peer(1));
    own(&mut commits, slot(2), &claim(5), peer(1));
    let answers = |effects: Effects| -> Vec<&'static str> {
        let answers = effects.into_iter().filter_map(|effect| match effect {
            Effect::Acknowledge { answers, .. } => Some(answers),
            _ => None,
        });
        answers.collect()
    };
    commit(&mut commits, slot(1), Some(10), "refused");
    commit(&mut commits, slot(2), Some(20), "taken");
    commits.remove_peer(slot(1), &claim(4), peer(1));
    assert!(commits.is_in_sync(slot(1), peer(1)), "an earlier claim's part says nothing of this one");
    commits.remove_peer(slot(1), &claim(5), peer(1));
    assert_eq!(answers(durable(&mut commits, &[1], 2)), ["taken"]);
    // An acceptance from before, of which the slot manager hears late, does not count. Nor does an answer that comes late.
    let late = step(&mut commits, |commits, effects| {
        commits.add_in_sync(slot(1), &claim(5), peer(1), effects);
        let answer = commits.record_offer_answer(slot(1), &claim(5), peer(1), SyncOfferOutcome::Accepted);
        assert_eq!(answer, SyncOfferOutcome::Unavailable, "another offer has to be made");
        commits.add_stream_peer(slot(1), &claim(5), peer(1));
        commits.add_in_sync(slot(1), &claim(5), peer(1), effects);
    });
    assert_eq!(late, []);
    assert_eq!(answers(accept(&mut commits, slot(1))), ["refused"]);
}

#[test]
fn a_peer_in_sync_with_one_claim_has_to_accept_the_next() {
    let mut commits = Commits::default();
    own(&mut commits, slot(1), &claim(5), peer(1));
    commits.add_stream_peer(slot(1), &claim(6), peer(2));
    assert!(!commits.is_in_sync(slot(1), peer(1)));
    assert_eq!(
        step(&mut commits, |commits, effects| {
            commits.add_in_sync(slot(1), &claim(6), peer(1), effects);
        }),
        []
    );
    assert!(!commits.is_in_sync(slot(1), peer(1)));
}

#[test]
fn a_peer_that_is_no_member_any_more_is_neither_sent_anything_nor_counted() {
    let mut commits = Commits::default();
    own(&mut commits, slot(1), &claim(5), peer(1));
    commits.remove_peer(slot(1), &claim(5), peer(1));
    assert_eq!(commits.serving_epoch(slot(1)), Ok((Epoch(5), PeerSet::default())));
    commit(&mut commits, slot(1), Some(10), "first");
    assert_eq!(durable(&mut commits, &[1], 1), [], "what it has is of other slots");
}

#[test]
fn a_peer_cannot_have_what_was_never_sent() {
    let mut commits = Commits::default();
    own(&mut commits, slot(1), &claim(5), peer(1));
    commit(&mut commits, slot(1), Some(10), "first");
    assert_eq!(commits.advance_durable_at(peer(1), 2, &mut Vec::new()), Err(1));
}

#[test]
fn after_a_failed_write_nothing_is_owned_and_nothing_published() {
    let mut commits = Commits::default();
    own(&mut commits, slot(2), &claim(5), peer(1));
    own(&mut commits, slot(1), &claim(5), peer(1));
    commit(&mut commits, slot(1), Some(10), "first");
    let mut owned = Vec::new();
    let effects = step(&mut commits, |commits, effects| owned = commits.on_write_failed(effects));
    assert_eq!((owned, effects), (vec![slot(1), slot(2)], vec![Effect::Fail("first")]));
    assert_eq!(commits.serving_epoch(slot(1)), Err(NotServing::NotOwner));
    assert_eq!(durable(&mut commits, &[1], 1), []);
    let effects = step(&mut commits, SlotCommits::on_reopened);
    assert_eq!(effects, [Effect::HideSlot(slot(1)), Effect::HideSlot(slot(2))]);
    assert_eq!(commits.visibility(slot(1)), Visibility::Hidden);
}

/// Something that happens to one of two slots.
#[derive(Debug, Clone, Copy)]
enum Happens {
    Offer(u16, u8),
    Answer(u16, u8),
    Refuse(u16, u8),
    Serve(u16),
    InSync(u16, u8),
    Stop(u16),
    Fence(u16),
    StepDown(u16),
    Append(u16, bool),
    DurableHere,
    DurableAt(u8),
    Disconnect(u8),
    Accept(u16),
    Replicate(u16),
    Diverge(u16),
    CommitIndex(u16),
    WriteFailed,
    Reopen,
}

fn happens() -> impl Strategy<Value = Happens> {
    use Happens as H;
    let (slot, peer) = (0..2_u16, 0..2_u8);
    prop_oneof![
        1 => (slot.clone(), peer.clone()).prop_map(|(slot, peer)| H::Offer(slot, peer)),
        2 => (slot.clone(), peer.clone()).prop_map(|(slot, peer)| H::Answer(slot, peer)),
        1 => (slot.clone(), peer.clone()).prop_map(|(slot, peer)| H::Refuse(slot, peer)),
        1 => slot.clone().prop_map(H::Serve),
        1 => (slot.clone(), peer.clone()).prop_map(|(slot, peer)| H::InSync(slot, peer)),
        1 => slot.clone().prop_map(H::Stop),
        1 => slot.clone().prop_map(H::Fence),
        1 => slot.clone().prop_map(H::StepDown),
        4 => (slot.clone(), any::<bool>()).prop_map(|(slot, writes)| H::Append(slot, writes)),
        2 => Just(H::DurableHere),
        2 => peer.clone().prop_map(H::DurableAt),
        1 => peer.prop_map(H::Disconnect),
        1 => slot.clone().prop_map(H::Accept),
        2 => slot.clone().prop_map(H::Replicate),
        1 => slot.clone().prop_map(H::Diverge),
        2 => slot.prop_map(H::CommitIndex),
        1 => Just(H::WriteFailed),
        1 => Just(H::Reopen),
    ]
}

proptest! {
    /// Whatever happens: what always holds does, every write comes out at most once, every append gets exactly one answer, and a
    /// slot's commits are acknowledged in their order.
    #[test]
    fn every_append_is_answered_once_and_in_order(steps in prop::collection::vec(happens(), 1..80)) {
        let mut commits = SlotCommits::<u32, (u16, u32), ()>::default();
        let (mut epoch, mut next, mut number) = (1, 0, 0);
        let (mut written, mut answered) = (BTreeMap::<u32, u32>::new(), BTreeMap::<u32, u32>::new());
        let mut newest = [0; 2];
        let mut asked = 0;
        for happened in steps.into_iter().chain([Happens::Reopen]) {
            let mut effects = Vec::new();
            match happened {
                Happens::Offer(of, to) => _ = commits.add_stream_peer(slot(of), &claim(epoch), peer(to)),
                Happens::Answer(of, from) => {
                    let accepted = SyncOfferOutcome::Accepted;
                    commits.record_offer_answer(slot(of), &claim(epoch), peer(from), accepted);
                }
                Happens::Refuse(of, from) => commits.remove_peer(slot(of), &claim(epoch), peer(from)),
                Happens::Serve(of) => {
                    let claim = claim(epoch);
                    commits.begin_serving(slot(of), &claim, COPIES_NEEDED, &accepted(&claim), &mut effects);
                }
                Happens::InSync(of, to) => {
                    commits.add_in_sync(slot(of), &claim(epoch), peer(to), &mut effects);
                }
                Happens::Stop(of) => commits.stop_appends(slot(of), &claim(epoch), &mut effects),
                Happens::Fence(of) => {
                    epoch += 1;
                    commits.fence(slot(of), &claim(epoch));
                }
                Happens::StepDown(of) => commits.step_down(slot(of), &mut effects),
                Happens::Append(of, writes) => {
                    next += 1;
                    asked += 1;
                    let write = writes.then_some(next);
                    let part = CommitPart { slot: slot(of), write, answers: (of, next), waiters: Vec::new() };
                    commits.record_own_commit(vec![part], &mut effects);
                }
                Happens::DurableHere => {
                    commits.advance_durable_here(commits.newest_commit(), &mut effects);
                }
                Happens::DurableAt(at) => {
                    let newest = commits.newest_commit();
                    prop_assert_eq!(commits.advance_durable_at(peer(at), newest, &mut effects), Ok(()));
                }
                Happens::Disconnect(from) => commits.peer_disconnected(peer(from)),
                Happens::Accept(of) => {
                    epoch += 1;
                    commits.record_accepted(slot(of), Epoch(epoch), number, &mut effects);
                }
                Happens::Replicate(of) => {
                    next += 1;
                    number += 1;
                    commits.record_replicated(slot(of), Epoch(epoch), number, next, &mut effects);
                }
                Happens::Diverge(of) => commits.hide_diverged(slot(of), &mut effects),
                Happens::CommitIndex(of) => {
                    commits.advance_commit_index(&[index(slot(of), epoch, number)], &mut effects);
                }
                Happens::WriteFailed => _ = commits.on_write_failed(&mut effects),
                Happens::Reopen => _ = commits.on_reopened(&mut effects),
            }
            prop_assert_eq!(commits.check(), Ok(()));
            for effect in effects {
                match effect {
                    Effect::Publish(write) | Effect::Unpin(write) => *written.entry(write).or_default() += 1,
                    Effect::Acknowledge { write, answers: (of, answer), copies } => {
                        prop_assert!(copies >= COPIES_NEEDED || write.is_none());
                        prop_assert!(answer > newest[usize::from(of)], "out of order");
                        newest[usize::from(of)] = answer;
                        *answered.entry(answer).or_default() += 1;
                        if let Some(write) = write {
                            *written.entry(write).or_default() += 1;
                        }
                    }
                    Effect::Fail((_, answer)) => *answered.entry(answer).or_default() += 1,
                    _ => {}
                }
            }
        }
        prop_assert!(written.values().all(|times| *times == 1), "{:?}", written);
        prop_assert!(answered.values().all(|times| *times == 1), "{:?}", answered);
        prop_assert_eq!(answered.len(), asked, "all are answered in the end");
    }
}
