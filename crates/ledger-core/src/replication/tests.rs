use super::*;
use crate::{Epoch, slot::Slot};

fn slot(number: u16) -> Slot {
    Slot::new(number).unwrap()
}

fn peer(number: u8) -> Peer {
    Peer::new(number).unwrap()
}

type Commits = PendingCommits<u32, &'static str>;

fn items(stable: Vec<Committed<u32>>) -> Vec<u32> {
    stable.into_iter().map(|stable| stable.item).collect()
}

#[test]
fn a_commit_is_stable_with_the_copies_it_needs_and_no_fewer() {
    let mut waiting = Commits::default();
    waiting.begin_ownership(slot(1), 2, 3);
    waiting.push(1, slot(1), 10);
    waiting.push(2, slot(1), 20);
    assert_eq!(items(waiting.advance_durable_here(2)), [], "one copy of two");
    assert_eq!(items(waiting.advance_durable_at(peer(3), 1)), [], "it does not count yet");
    assert_eq!(items(waiting.add_in_sync(slot(1), peer(3))), [10]);
    assert_eq!(items(waiting.advance_durable_at(peer(3), 2)), [20]);
    assert!(waiting.is_empty());
}

#[test]
fn two_peers_make_up_for_a_slow_disk() {
    let mut waiting = Commits::default();
    waiting.begin_ownership(slot(1), 2, 3);
    assert!(waiting.add_in_sync(slot(1), peer(0)).is_empty());
    assert!(waiting.add_in_sync(slot(1), peer(1)).is_empty());
    waiting.push(1, slot(1), 10);
    assert!(waiting.advance_durable_at(peer(0), 1).is_empty());
    assert_eq!(items(waiting.advance_durable_at(peer(1), 1)), [10]);
}

#[test]
fn a_slot_that_waits_holds_up_no_other_and_keeps_its_order() {
    let mut waiting = Commits::default();
    waiting.begin_ownership(slot(1), 2, 3);
    waiting.begin_ownership(slot(2), 1, 3);
    waiting.push(1, slot(1), 10);
    waiting.push(1, slot(2), 11);
    waiting.push(2, slot(1), 20);
    waiting.push(2, slot(2), 21);
    assert_eq!(items(waiting.advance_durable_here(2)), [11, 21]);
    assert!(waiting.has_pending(slot(1)) && !waiting.has_pending(slot(2)));
    waiting.peer_disconnected(peer(0));
    assert_eq!(items(waiting.add_in_sync(slot(1), peer(0))), []);
    assert_eq!(items(waiting.advance_durable_at(peer(0), 5)), [10, 20]);
}

#[test]
fn a_lost_peer_counts_no_more_and_what_ends_is_given_back() {
    let mut waiting = Commits::default();
    waiting.begin_ownership(slot(1), 2, 3);
    assert!(waiting.add_in_sync(slot(1), peer(0)).is_empty());
    waiting.peer_disconnected(peer(0));
    waiting.push(1, slot(1), 10);
    waiting.advance_durable_here(1);
    assert!(waiting.advance_durable_at(peer(0), 1).is_empty());
    assert_eq!(waiting.end_ownership(slot(1)).0, [10]);
    waiting.push(2, slot(1), 20);
    assert!(waiting.advance_durable_here(2).is_empty(), "nobody leads the slot");
}

#[test]
fn a_replica_shows_what_the_owner_of_the_epoch_says() {
    let mut unstable = UncommittedWrites::default();
    unstable.push(slot(1), Epoch(7), 1, 'a');
    unstable.push(slot(1), Epoch(7), 2, 'b');
    assert_eq!(unstable.take_committed(slot(1), Epoch(6), 2), []);
    assert_eq!(unstable.take_committed(slot(1), Epoch(7), 1), ['a']);
    assert_eq!(unstable.take_slot(slot(1)), ['b']);
}

#[test]
fn what_writes_nothing_waits_for_what_its_slot_waits_for_and_for_no_other() {
    let mut waiting = Commits::default();
    waiting.begin_ownership(slot(1), 2, 3);
    waiting.begin_ownership(slot(2), 1, 3);
    waiting.add_in_sync(slot(1), peer(0));
    waiting.push(1, slot(1), 10);
    waiting.push(2, slot(2), 20);
    assert_eq!(waiting.push_barrier(slot(1), 11), None);
    assert_eq!(items(waiting.advance_durable_here(2)), [20]);
    // The peer is never sent number 2.
    assert_eq!(items(waiting.advance_durable_at(peer(0), 1)), [10, 11]);
    assert!(waiting.push_barrier(slot(1), 12).is_some_and(|stable| stable.item == 12), "nothing of it waits");
    assert_eq!(waiting.push_barrier(slot(3), 30), None, "nobody leads it");
    assert_eq!(items(waiting.begin_ownership(slot(3), 1, 3)), [30], "it had nothing to wait for");
}

#[test]
fn an_answer_is_given_with_the_copies_that_were_asked_for() {
    let mut waiting = Commits::default();
    waiting.begin_ownership(slot(1), 2, 3);
    for other in [0, 1] {
        assert!(waiting.add_in_sync(slot(1), peer(other)).is_empty());
    }
    waiting.push(4, slot(1), 40);
    for (needed, answer) in
        [(WriteQuorum::All, "all"), (WriteQuorum::One, "one"), (WriteQuorum::Majority, "most")]
    {
        waiting.push_waiter(slot(1), needed, answer);
    }
    assert!(waiting.take_ready_waiters().is_empty());
    assert!(waiting.advance_durable_at(peer(0), 4).is_empty(), "a copy elsewhere, none here");
    assert!(waiting.take_ready_waiters().is_empty(), "one copy is this node's own");
    assert_eq!(items(waiting.advance_durable_here(4)), [40]);
    assert_eq!(waiting.take_ready_waiters(), [(2, "one"), (2, "most")]);
    assert!(waiting.advance_durable_at(peer(1), 4).is_empty());
    assert_eq!(waiting.take_ready_waiters(), [(3, "all")]);
    waiting.push_waiter(slot(1), WriteQuorum::All, "repeated");
    assert_eq!(waiting.take_ready_waiters(), [(3, "repeated")], "it is there already");
}

#[test]
fn what_cannot_be_answered_any_more_is_given_back() {
    let mut waiting = Commits::default();
    waiting.begin_ownership(slot(1), 2, 3);
    waiting.begin_ownership(slot(2), 2, 3);
    waiting.push(1, slot(1), 10);
    waiting.push(1, slot(2), 11);
    waiting.push_waiter(slot(1), WriteQuorum::All, "first");
    waiting.push_waiter(slot(2), WriteQuorum::One, "second");
    assert_eq!(waiting.end_ownership(slot(1)), (vec![10], vec!["first"]));
    assert!(waiting.advance_durable_here(1).is_empty());
    assert_eq!(waiting.take_ready_waiters(), [(1, "second")]);
}

#[test]
fn a_step_takes_as_long_as_what_it_releases_and_not_as_what_waits() {
    const WAITING: u64 = 100_000;
    let mut waiting = Commits::default();
    waiting.begin_ownership(slot(1), 2, 3);
    waiting.begin_ownership(slot(2), 1, 3);
    for number in 1..=WAITING {
        waiting.push(number, slot(1), 0);
        waiting.push_waiter(slot(1), WriteQuorum::All, "never");
    }
    waiting.advance_durable_here(WAITING);
    // Each of these steps would look at everything that waits.
    let begun = std::time::Instant::now();
    for number in WAITING + 1..=2 * WAITING {
        waiting.push(number, slot(2), 1);
        assert_eq!(waiting.push_barrier(slot(2), 2), None);
        waiting.push_waiter(slot(2), WriteQuorum::One, "at once");
        assert_eq!(items(waiting.advance_durable_here(number)), [1, 2]);
        assert_eq!(waiting.take_ready_waiters(), [(1, "at once")]);
        waiting.push_barrier(slot(1), 0);
        assert_eq!(waiting.end_ownership(slot(3)), (vec![], vec![]));
    }
    let taken = begun.elapsed();
    assert!(taken.as_secs() < 10, "{WAITING} steps took {taken:?}");
    assert_eq!(waiting.check(2 * WAITING), Ok(()));
}
