use std::collections::BTreeMap;

use super::*;
use crate::{
    Epoch, Hash,
    digest::{NodeDigest, TreeHead},
    node::{ClusterId, Member, ReplicaSet, StorageId},
    ownership::{
        RefusedPart, ReplicaRefusal, WhyRefused,
        slot_manager::{Event, LeaseRenewal, MemberRequest, MemberResponse, SyncOfferOutcome},
    },
};

type Lane = Replica<&'static str, &'static str>;

const FIRST: Slot = Slot::FIRST;

fn slot(number: u16) -> Slot {
    Slot::new(number).unwrap()
}

fn claim(epoch: u32, claimant: &str) -> Claim {
    Claim { epoch: Epoch::new(epoch, 0), claimant: NodeId::new(claimant).unwrap(), storage: None }
}

fn member(name: &str) -> Member {
    Member { node: NodeId::new(name).unwrap(), storage: StorageId([name.len() as u8; 16]) }
}

fn set(names: &[&str]) -> ReplicaSet {
    ReplicaSet::new(names.iter().map(|name| member(name)).collect::<Vec<_>>()).unwrap()
}

fn root(of: u8) -> Hash {
    Hash([of; 32])
}

fn head(size: u64) -> TreeHead {
    TreeHead { size: Size(size), root: root(u8::try_from(size).unwrap()) }
}

/// Entries of the history whose roots `head` gives.
fn part(claim: &Claim, after: u64, count: u64, source: PartSource) -> PartHeader<'_> {
    let (after, root) = (head(after), head(after + count).root);
    PartHeader { slot: slot(1), claim, after, count, root, source, content: PartContent::Entries }
}

fn condition() -> SlotCondition {
    SlotCondition { has_damage: false, digest: Some(Digest::default()) }
}

fn accept(claim: &Claim, offer: impl Into<Option<Offer>>) -> RecordChange {
    let offer = offer.into();
    let members = set(&["a", "b"]);
    RecordChange::Accept { claim: claim.clone(), members, is_confirmed: true, previous: None, offer }
}

fn offer(number: u64) -> Offer {
    Offer { digest: Digest::default(), number }
}

fn promised(claim: &Claim) -> SlotRecord {
    SlotRecord::default().promise(claim).unwrap().0
}

/// Makes one change, and writes it.
fn change(
    lane: &mut Lane,
    of: Slot,
    record: &mut SlotRecord,
    change: RecordChange,
    condition: SlotCondition,
) -> RecordChangeOutcome {
    let mut batch = RecordBatch::new(FIRST, None);
    let outcome = batch.change(lane, of, record, change, condition);
    let (mut records, accepted) = batch.into_parts();
    if let Some(next) = records.remove(&of) {
        *record = next;
    }
    lane.on_written(accepted);
    outcome
}

/// A replica that accepted the offer of a claim.
fn in_sync(claim: &Claim) -> (Lane, SlotRecord) {
    let (mut lane, mut record) = (Lane::default(), SlotRecord::default());
    let outcome = change(&mut lane, slot(1), &mut record, accept(claim, offer(1)), condition());
    assert_eq!(outcome, RecordChangeOutcome::Done);
    assert!(lane.is_in_sync(slot(1), claim));
    (lane, record)
}

fn admitted(lane: &Lane, part: &PartHeader<'_>, record: &SlotRecord) -> Admitted {
    match lane.admit(part, record, true) {
        Admission::Admitted(admitted) => admitted,
        other @ Admission::Settled(_) => panic!("{other:?}"),
    }
}

#[test]
fn a_part_below_the_promise_is_refused_and_its_slot_is_named() {
    let (lane, own) = (Lane::default(), claim(5, "a"));
    let by = claim(6, "b");
    let part = part(&own, 0, 1, PartSource::Commit(1));
    let refused = RefusedPart { slot: slot(1), claim: own.clone(), why: WhyRefused::Promised(by.clone()) };
    let outcome = ReplicateOutcome::Refused(refused.clone());
    assert_eq!(lane.admit(&part, &promised(&by), false), Admission::Settled(outcome.clone()));
    let other = RefusedPart { why: WhyRefused::Invalid("later".to_owned()), ..refused.clone() };
    let outcomes = [ReplicateOutcome::Durable(Size(1)), outcome, ReplicateOutcome::Refused(other)];
    assert_eq!(refused_slots(outcomes), [refused], "once each");
    assert_eq!(refused_slots([ReplicateOutcome::Gap, ReplicateOutcome::Diverged]), []);
}

#[test]
fn a_replica_in_sync_acknowledges_no_commit_that_it_cannot_write() {
    let own = claim(5, "a");
    let part = part(&own, 3, 2, PartSource::Commit(2));
    for result in [
        PartResult::Gap,
        PartResult::Diverged,
        PartResult::Unreadable("damaged".into()),
        PartResult::Invalid("no record".into()),
    ] {
        let (mut lane, record) = in_sync(&own);
        change(&mut lane, slot(2), &mut SlotRecord::default(), accept(&own, offer(1)), condition());
        let admitted = admitted(&lane, &part, &record);
        let outcome = lane.settle(&part, &"c", admitted, result.clone());
        let named = refused_slots([outcome.clone()]);
        assert_eq!((named.len(), named[0].slot), (1, slot(1)), "{result:?} gives {outcome:?}");
        assert!(!lane.is_in_sync(slot(1), &own), "what follows has a gap before it");
        assert!(lane.is_in_sync(slot(2), &own), "the other slots go on");
    }
    let (mut lane, record) = in_sync(&own);
    let admitted = admitted(&lane, &part, &record);
    assert!(admitted.is_strict() && !admitted.hides());
    let reached = lane.settle(&part, &"c", admitted, PartResult::Reaches(Size(5)));
    assert_eq!(reached, ReplicateOutcome::Durable(Size(5)));
    assert_eq!(
        admitted.place(&part, LocalHistory::Readable(head(1))),
        PartDecision::Nothing(PartResult::Gap)
    );
}

#[test]
fn a_replica_behind_fetches_what_it_lacks() {
    let own = claim(5, "a");
    let (mut lane, record) = (Lane::default(), promised(&own));
    let part = part(&own, 3, 2, PartSource::Commit(2));
    let admitted = admitted(&lane, &part, &record);
    assert!(!admitted.is_strict());
    assert!(admitted.hides(), "nothing says when what it writes now is committed");
    let unreadable = lane.settle(&part, &"c", admitted, PartResult::Unreadable("damaged".into()));
    assert_eq!(unreadable, ReplicateOutcome::Gap);
    assert_eq!(lane.settle(&part, &"c", admitted, PartResult::Diverged), ReplicateOutcome::Diverged);
    assert!(matches!(
        lane.settle(&part, &"c", admitted, PartResult::Invalid("no record".into())),
        ReplicateOutcome::Refused(_)
    ));
    assert!(matches!(lane.admit(&part, &record, false), Admission::Admitted(of) if !of.hides()));
}

#[test]
fn a_part_without_a_readable_record_takes_its_slot_out_of_sync_unless_it_was_fetched() {
    let own = claim(5, "a");
    let (mut lane, _) = in_sync(&own);
    lane.refuse(&part(&own, 3, 2, PartSource::Fetched), "unreadable".to_owned());
    lane.refuse(&part(&claim(4, "a"), 3, 2, PartSource::Commit(2)), "unreadable".to_owned());
    assert!(lane.is_in_sync(slot(1), &own), "its owner sent neither in the claim that it counts");
    lane.refuse(&part(&own, 3, 2, PartSource::Commit(2)), "unreadable".to_owned());
    assert!(!lane.is_in_sync(slot(1), &own));
}

#[test]
fn a_part_is_placed_by_where_the_history_here_ends() {
    let own = claim(5, "a");
    let lane = Lane::default();
    let part = part(&own, 3, 2, PartSource::Commit(2));
    let admitted = admitted(&lane, &part, &SlotRecord::default());
    let place = |local| admitted.place(&part, LocalHistory::Readable(local));
    let other = |size| TreeHead { root: root(99), ..head(size) };
    assert_eq!(place(head(3)), PartDecision::Append { skip: 0 });
    assert_eq!(place(other(3)), PartDecision::Nothing(PartResult::Diverged));
    assert_eq!(place(head(4)), PartDecision::Append { skip: 1 });
    assert_eq!(place(other(4)), PartDecision::Append { skip: 1 }, "the entry's hash tells");
    assert_eq!(place(head(5)), PartDecision::Nothing(PartResult::Reaches(Size(5))));
    assert_eq!(place(other(5)), PartDecision::Nothing(PartResult::Diverged));
    assert_eq!(place(other(6)), PartDecision::Nothing(PartResult::Reaches(Size(6))));
    assert_eq!(place(head(2)), PartDecision::Buffer);
    let unreadable = admitted.place(&part, LocalHistory::Unreadable);
    assert!(matches!(unreadable, PartDecision::Nothing(PartResult::Unreadable(_))), "it is not absent");
}

#[test]
fn only_entries_of_a_stream_shortly_after_a_gap_are_buffered() {
    let own = claim(5, "a");
    let lane = Lane::default();
    let gap = PartDecision::Nothing(PartResult::Gap);
    let place = |part: &PartHeader<'_>, local| {
        admitted(&lane, part, &SlotRecord::default()).place(part, LocalHistory::Readable(local))
    };
    for source in [PartSource::Fetched, PartSource::Buffered(2)] {
        assert_eq!(place(&part(&own, 3, 2, source), head(2)), gap);
    }
    let staged = PartHeader { content: PartContent::Staged, ..part(&own, 3, 2, PartSource::Commit(2)) };
    assert_eq!(place(&staged, head(2)), gap);
    assert_eq!(place(&staged, head(4)), gap, "a load is installed whole");
    assert_eq!(place(&staged, head(3)), PartDecision::Install);
    let after = TreeHead { size: Size(MAX_OUT_OF_ORDER_GAP), root: root(1) };
    let far = PartHeader { after, ..part(&own, 3, 2, PartSource::Commit(2)) };
    assert_eq!(place(&far, head(0)), PartDecision::Buffer);
    let after = TreeHead { size: Size(MAX_OUT_OF_ORDER_GAP + 1), ..after };
    assert_eq!(place(&PartHeader { after, ..far }, head(0)), gap);
}

#[test]
fn buffered_parts_follow_and_one_that_does_not_fit_drops_the_rest() {
    let own = claim(5, "a");
    let mut lane = Lane::default();
    assert_eq!(lane.buffer(slot(1), "c", Size(3), 10, 2, "fourth"), ReplicateOutcome::Gap);
    lane.buffer(slot(1), "c", Size(4), 10, 3, "fifth");
    assert!(lane.is_buffering(slot(1)) && !lane.is_buffering(slot(2)));
    assert_eq!(lane.next_buffered(slot(1), &"c", Size(3)), Some(("fourth", 2)));
    let part = part(&own, 3, 1, PartSource::Buffered(2));
    let admitted = admitted(&lane, &part, &SlotRecord::default());
    lane.settle(&part, &"c", admitted, PartResult::Diverged);
    assert!(!lane.is_buffering(slot(1)));
}

#[test]
fn a_part_that_the_shell_has_no_memory_for_drops_those_before_it() {
    let mut lane = Lane::default();
    lane.buffer(slot(1), "c", Size(3), 10, 2, "fourth");
    lane.buffer(slot(1), "d", Size(3), 10, 2, "another");
    assert_eq!(lane.refuse_buffering(slot(1), &"c"), ReplicateOutcome::Gap);
    assert_eq!(lane.next_buffered(slot(1), &"c", Size(3)), None);
    assert_eq!(lane.next_buffered(slot(1), &"d", Size(3)), Some(("another", 2)));
}

#[test]
fn what_was_fetched_before_the_slot_got_in_sync_is_here() {
    let own = claim(5, "a");
    let (lane, record) = in_sync(&own);
    for source in [PartSource::Fetched, PartSource::Buffered(1)] {
        let admission = lane.admit(&part(&own, 3, 2, source), &record, true);
        assert_eq!(admission, Admission::Settled(ReplicateOutcome::Durable(Size(5))));
    }
}

#[test]
fn an_offer_is_accepted_only_with_the_same_digest_and_no_damage() {
    let (own, next) = (claim(5, "a"), claim(6, "a"));
    let other = Offer { digest: digest(1), number: 4 };
    let damaged = SlotCondition { has_damage: true, ..condition() };
    let unknown = SlotCondition { digest: None, ..condition() };
    for (offered, condition) in [(other, condition()), (offer(4), damaged), (offer(4), unknown)] {
        let (mut lane, mut record) = in_sync(&own);
        let outcome = change(&mut lane, slot(1), &mut record, accept(&next, offered), condition);
        assert_eq!(outcome, RecordChangeOutcome::Diverged { was_in_sync: false });
        assert_eq!(record.promised, Some(next.clone()), "its history is about to change");
        assert_eq!(record.accepted, own.epoch);
        assert!(!lane.is_in_sync(slot(1), &own) && !lane.is_in_sync(slot(1), &next));
    }
    let (mut lane, mut record) = in_sync(&own);
    let outcome = change(&mut lane, slot(1), &mut record, accept(&own, offer(4)), damaged);
    assert_eq!(outcome, RecordChangeOutcome::Diverged { was_in_sync: true }, "its owner may count it");
    assert_eq!(outcome.refused_part(slot(1), &own).unwrap().claim, own, "so it is told");
    assert_eq!(RecordChangeOutcome::Diverged { was_in_sync: false }.refused_part(slot(1), &own), None);
}

fn digest(of: u8) -> Digest {
    let mut digest = Digest::default();
    digest.add(&crate::ContextId::new("c").unwrap(), head(u64::from(of)));
    digest
}

#[test]
fn an_acceptance_counts_once_it_is_on_disk() {
    let own = claim(5, "a");
    let mut lane = Lane::default();
    lane.buffer(slot(1), "c", Size(3), 10, 2, "fourth");
    let mut batch = RecordBatch::new(FIRST, None);
    let record = SlotRecord::default();
    let outcome = batch.change(&mut lane, slot(1), &record, accept(&own, offer(7)), condition());
    assert_eq!(outcome, RecordChangeOutcome::Done);
    assert!(!lane.is_in_sync(slot(1), &own));
    let (records, accepted) = batch.into_parts();
    assert_eq!(records[&slot(1)].accepted, own.epoch);
    let expected = vec![Accepted { slot: slot(1), claim: own.clone(), number: 7 }];
    assert_eq!(lane.on_written(accepted), expected);
    assert!(lane.is_in_sync(slot(1), &own));
    assert!(!lane.is_buffering(slot(1)), "what it brings is here");
}

#[test]
fn a_node_that_accepts_its_own_claim_is_in_sync_with_nobody() {
    let own = claim(5, "a");
    let (mut lane, mut record) = (Lane::default(), SlotRecord::default());
    let outcome = change(&mut lane, slot(1), &mut record, accept(&own, None), condition());
    assert_eq!((outcome, record.accepted), (RecordChangeOutcome::Done, own.epoch));
    assert!(!lane.is_in_sync(slot(1), &own));
}

#[test]
fn a_damaged_replica_promises_nothing_and_still_refuses_what_is_lower() {
    let (own, lower) = (claim(5, "a"), claim(4, "b"));
    let damaged = SlotCondition { has_damage: true, ..condition() };
    let (mut lane, mut record) = (Lane::default(), promised(&own));
    let before = record.clone();
    let outcome = change(&mut lane, slot(1), &mut record, RecordChange::Promise(claim(6, "b")), damaged);
    assert_eq!(outcome, RecordChangeOutcome::Unavailable(WhyUnavailable::Damaged));
    let outcome = change(&mut lane, slot(1), &mut record, RecordChange::Promise(lower), damaged);
    assert_eq!(outcome, RecordChangeOutcome::Refused(own));
    assert_eq!(record, before);
}

#[test]
fn changes_of_one_slot_in_a_batch_follow_each_other() {
    let (low, high) = (claim(5, "a"), claim(6, "b"));
    let (mut lane, record) = (Lane::default(), SlotRecord::default());
    let mut batch = RecordBatch::new(FIRST, None);
    let promise = |claim: &Claim| RecordChange::Promise(claim.clone());
    batch.change(&mut lane, slot(1), &record, promise(&high), condition());
    let record = batch.record(slot(1)).unwrap().clone();
    let outcome = batch.change(&mut lane, slot(1), &record, promise(&low), condition());
    assert_eq!(outcome, RecordChangeOutcome::Refused(high.clone()));
    assert_eq!(batch.records()[&slot(1)].promised, Some(high));
}

#[test]
fn a_node_belongs_to_one_cluster() {
    let (mut lane, record) = (Lane::default(), SlotRecord::default());
    let (ours, theirs) = (ClusterId([1; 16]), ClusterId([2; 16]));
    let join = |id| RecordChange::JoinCluster(id, StorageId([9; 16]));
    let mut batch = RecordBatch::new(FIRST, None);
    assert_eq!(batch.change(&mut lane, FIRST, &record, join(ours), condition()), RecordChangeOutcome::Done);
    assert_eq!(batch.joined(), Some(ours));
    let other = RecordChangeOutcome::Unavailable(WhyUnavailable::OtherCluster(ours));
    assert_eq!(batch.change(&mut lane, FIRST, &record, join(theirs), condition()), other);
    let first = RecordChange::Accept {
        claim: claim(5, "a"),
        members: set(&["a", "b"]),
        is_confirmed: false,
        previous: None,
        offer: None,
    };
    assert_eq!(batch.change(&mut lane, FIRST, &record, first.clone(), condition()), other);
    let mut batch = RecordBatch::new(FIRST, Some(ours));
    assert_eq!(batch.change(&mut lane, FIRST, &record, join(ours), condition()), RecordChangeOutcome::Done);
    assert_eq!(batch.joined(), None, "it is written already");
    // Once the first members confirm each other, the cluster has an identity.
    let mut batch = RecordBatch::new(FIRST, None);
    batch.change(&mut lane, FIRST, &record, first, condition());
    assert_eq!(batch.joined(), None);
    let record = batch.record(FIRST).unwrap().clone();
    batch.change(&mut lane, FIRST, &record, RecordChange::Confirm(claim(5, "a")), condition());
    assert_eq!(batch.joined(), Some(ClusterId::of(&set(&["a", "b"]))));
}

#[test]
fn in_sync_ends_with_the_stream_or_when_this_node_serves() {
    let own = claim(5, "a");
    let ended = |end: &dyn Fn(&mut Lane)| {
        let (mut lane, _) = in_sync(&own);
        end(&mut lane);
        !lane.is_in_sync(slot(1), &own)
    };
    assert!(ended(&|lane| lane.on_stream_started(&own.claimant)));
    assert!(!ended(&|lane| lane.on_stream_started(&NodeId::new("b").unwrap())));
    assert!(ended(&|lane| lane.on_serving(slot(1), &claim(6, "b"))));
    assert!(!ended(&|lane| lane.on_serving(slot(1), &claim(4, "b"))), "it comes late");
    assert!(!ended(&|lane| lane.on_serving(slot(2), &claim(6, "b"))));
    assert!(ended(&Lane::on_reopened));
    assert!(ended(&|lane| lane.on_history_replaced(slot(1), &"c")));
}

#[test]
fn a_history_is_left_only_when_no_owner_counts_on_it() {
    let (old, next) = (claim(5, "a"), claim(6, "b"));
    let leave = |lane: &mut Lane, claim: &Claim, record: &SlotRecord, is_unchanged| {
        lane.leave_history(slot(1), &"c", claim, record, is_unchanged)
    };
    let (mut lane, record) = in_sync(&old);
    assert_eq!(leave(&mut lane, &old, &record, true), ForkDecision::Changed, "it is in sync");
    assert_eq!(leave(&mut lane, &next, &record, true), ForkDecision::Changed, "the other still counts it");
    assert!(lane.is_in_sync(slot(1), &old));
    let record = record.promise(&next).unwrap().0;
    assert_eq!(leave(&mut lane, &old, &record, true), ForkDecision::Refused(next.clone()));
    assert_eq!(leave(&mut lane, &next, &record, false), ForkDecision::Changed);
    assert!(lane.is_in_sync(slot(1), &old));
    lane.buffer(slot(1), "c", Size(3), 10, 2, "fourth");
    assert_eq!(leave(&mut lane, &next, &record, true), ForkDecision::Leave);
    assert!(!lane.is_in_sync(slot(1), &old) && !lane.is_buffering(slot(1)));
}

#[test]
fn a_lease_is_renewed_for_what_is_in_sync_alone() {
    let (own, next) = (claim(5, "a"), claim(6, "b"));
    let (lane, record) = in_sync(&own);
    let moved = record.promise(&next).unwrap().0;
    assert_eq!(lane.sync_state(slot(1), &own, Some(&record)), SyncState::InSync);
    assert_eq!(lane.sync_state(slot(1), &own, Some(&moved)), SyncState::Refused(next.clone()));
    assert_eq!(lane.sync_state(slot(1), &next, Some(&moved)), SyncState::Behind);
    assert_eq!(lane.sync_state(slot(1), &own, None), SyncState::Unknown);
    assert_eq!(Lane::default().sync_state(slot(1), &own, Some(&record)), SyncState::Behind);
    let renewal = |of, age| LeaseRenewal { slot: slot(of), claim: claim(5, "a"), age };
    let renewals = [
        renewal(1, Some(7)),
        renewal(2, None),
        renewal(3, Some(8)),
        renewal(4, Some(9)),
        renewal(5, Some(1)),
    ];
    let states = BTreeMap::from([
        (slot(1), SyncState::InSync),
        (slot(2), SyncState::InSync),
        (slot(3), SyncState::Refused(next.clone())),
        (slot(4), SyncState::Unknown),
        (slot(5), SyncState::Behind),
    ]);
    let answer = RenewalAnswer::of(&renewals, &states);
    assert_eq!(answer.in_sync, [(slot(1), 7)], "an owner without a lease gives none");
    assert_eq!(answer.refused, BTreeMap::from([(slot(3), Some(next)), (slot(4), None)]));
}

#[test]
fn digests_are_compared_only_when_all_slots_are_in_sync() {
    let (own, next) = (claim(5, "a"), claim(6, "b"));
    let (lane, record) = in_sync(&own);
    let of = |lane: &Lane, owner: &Claim, record| {
        lane.status(slot(1), &owner.claimant, Some(record), Some(digest(1)))
    };
    assert_eq!(of(&lane, &own, &record), ReplicaStatus::InSync(digest(1)));
    assert_eq!(of(&lane, &next, &record), ReplicaStatus::Promised(own.clone()));
    assert_eq!(of(&Lane::default(), &own, &record), ReplicaStatus::NotInSync);
    let theirs = NodeDigest::of(&BTreeMap::from([(slot(1), digest(1))]));
    let both = |status| BTreeMap::from([(slot(1), ReplicaStatus::InSync(digest(1))), (slot(2), status)]);
    let one = BTreeMap::from([(slot(1), ReplicaStatus::InSync(digest(1)))]);
    assert_eq!(CheckpointAnswer::of(one, theirs).is_same, Some(true));
    assert_eq!(CheckpointAnswer::of(both(ReplicaStatus::InSync(digest(2))), theirs).is_same, Some(false));
    assert_eq!(CheckpointAnswer::of(both(ReplicaStatus::NotInSync), theirs).is_same, None);
    let moved = CheckpointAnswer::of(both(ReplicaStatus::Promised(next.clone())), theirs);
    assert_eq!(moved, CheckpointAnswer { promised: vec![(slot(2), next)], is_same: None });
}

#[test]
fn a_stream_breaks_when_numbers_fall_or_another_node_s_claim_comes() {
    let (own, other) = (claim(5, "a"), claim(6, "b"));
    let mut stream = ReplicaStream::begin(member("a"), 100);
    assert_eq!(stream.on_sent(0, 4, [&own]), Ok(()));
    assert_eq!(stream.on_sent(0, 4, []), Ok(()), "an offer comes after a commit");
    assert_eq!(stream.on_sent(1, 2, [&own]), Ok(()), "each lane counts for itself");
    assert!(matches!(stream.on_sent(0, 3, [&own]), Err(StreamError::Number(_))));
    let foreign = Err(StreamError::ForeignClaim(other.claimant.clone()));
    assert_eq!(stream.on_sent(0, 5, [&own, &other]), foreign);
    // Each renewal was sent after the answer to the one before.
    assert_eq!([stream.on_renewal_answered(150), stream.on_renewal_answered(180)], [100, 150]);
}

#[test]
fn a_slot_manager_learns_what_became_of_its_own_requests() {
    let own = claim(5, "a");
    let tell = |change: RecordChange, outcome| change.changed_for().event(member("a"), slot(1), outcome);
    let promise = RecordChange::requested(MemberRequest::Promise, own.clone()).unwrap();
    assert_eq!(RecordChange::requested(MemberRequest::TakeOver, own.clone()), None);
    let higher = claim(6, "b");
    for (outcome, expected) in [
        (Some(RecordChangeOutcome::Refused(higher.clone())), MemberResponse::Refused(higher)),
        (Some(RecordChangeOutcome::Unavailable(WhyUnavailable::Damaged)), MemberResponse::Unavailable),
        (None, MemberResponse::Unavailable),
    ] {
        let event = tell(promise.clone(), outcome);
        assert!(matches!(event, Some(Event::Response { answer, .. }) if answer == expected));
    }
    for (outcome, expected) in [
        (Some(RecordChangeOutcome::Done), SyncOfferOutcome::Accepted),
        (Some(ReplicaRefusal::AlreadyFormed.into()), SyncOfferOutcome::Unavailable),
        (Some(RecordChangeOutcome::Diverged { was_in_sync: false }), SyncOfferOutcome::Unavailable),
        (None, SyncOfferOutcome::Unavailable),
    ] {
        let event = tell(accept(&own, None), outcome);
        assert!(matches!(event, Some(Event::SyncOfferAnswered { outcome, .. }) if outcome == expected));
    }
    assert!(tell(RecordChange::RecordFormed, Some(RecordChangeOutcome::Done)).is_none());
}
