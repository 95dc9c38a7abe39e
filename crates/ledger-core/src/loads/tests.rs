use super::{LoadSpan, LoadSpanState, StagingCoordinator, StagingDecision, StagingProgress, StagingSettings};
use crate::{
    Epoch, Size,
    replication::{Peer, PeerSet},
};

const SETTINGS: StagingSettings =
    StagingSettings { retry_pause: 10, max_failures: 2, stuck_after: 100, timeout: 1000 };

fn peer(number: u8) -> Peer {
    Peer::new(number).unwrap()
}

fn peers(numbers: &[u8]) -> PeerSet {
    let mut set = PeerSet::default();
    for number in numbers {
        set.insert(peer(*number));
    }
    set
}

fn install(staged_at: &[u8], stale_peers: &[u8]) -> StagingDecision {
    StagingDecision::Install { staged_at: peers(staged_at), stale_peers: peers(stale_peers) }
}

#[test]
fn a_load_is_installed_once_all_in_sync_members_have_staged_it() {
    let mut staging = StagingCoordinator::new(SETTINGS, Epoch(3), 0);
    let mut step = |now, reports: &[(u8, StagingProgress)]| {
        for (of, progress) in reports {
            staging.on_progress(now, peer(*of), *progress);
        }
        staging.step(now, Some(Epoch(3)), 2, peers(&[1, 2]))
    };
    assert_eq!(step(0, &[]), StagingDecision::Request(peers(&[1, 2])));
    assert_eq!(step(1, &[]), StagingDecision::Request(peers(&[])), "each is asked once");
    assert_eq!(step(2, &[(1, StagingProgress::Staged)]), StagingDecision::Request(peers(&[])));
    assert_eq!(step(3, &[(2, StagingProgress::Staged)]), install(&[1, 2], &[]));
}

#[test]
fn a_member_that_fails_or_is_stuck_is_left_behind_if_there_are_enough_others() {
    let mut staging = StagingCoordinator::new(SETTINGS, Epoch(3), 0);
    let in_sync = peers(&[1, 2]);
    staging.step(0, Some(Epoch(3)), 2, in_sync);
    staging.on_progress(1, peer(1), StagingProgress::Staged);
    staging.on_progress(1, peer(2), StagingProgress::Failed);
    assert_eq!(staging.step(2, Some(Epoch(3)), 2, in_sync), StagingDecision::Request(peers(&[])), "a pause");
    assert_eq!(staging.step(11, Some(Epoch(3)), 2, in_sync), StagingDecision::Request(peers(&[2])));
    staging.on_progress(12, peer(2), StagingProgress::Failed);
    assert_eq!(staging.step(13, Some(Epoch(3)), 2, in_sync), install(&[1], &[2]), "it failed twice");
    assert_eq!(
        staging.step(30, Some(Epoch(3)), 3, in_sync),
        StagingDecision::Request(peers(&[2])),
        "without it there is no quorum"
    );
    assert_eq!(staging.step(30 + 101, Some(Epoch(3)), 2, in_sync), install(&[1], &[2]), "it is stuck");
}

#[test]
fn what_a_member_lost_again_does_not_count() {
    let mut staging = StagingCoordinator::new(SETTINGS, Epoch(3), 0);
    staging.step(0, Some(Epoch(3)), 2, peers(&[1]));
    staging.on_progress(1, peer(1), StagingProgress::Staged);
    staging.on_progress(2, peer(1), StagingProgress::Failed);
    staging.on_progress(2, peer(9), StagingProgress::Staged);
    assert_eq!(staging.step(3, Some(Epoch(3)), 2, peers(&[1])), StagingDecision::Request(peers(&[])));
}

#[test]
fn a_load_ends_with_its_epoch_and_when_nobody_gets_on() {
    let mut staging = StagingCoordinator::new(SETTINGS, Epoch(3), 0);
    for serving in [None, Some(Epoch(4))] {
        assert_eq!(staging.step(1, serving, 1, peers(&[])), StagingDecision::NotOwner);
    }
    staging.step(2, Some(Epoch(3)), 3, peers(&[1]));
    staging.on_progress(900, peer(1), StagingProgress::Advanced);
    assert!(matches!(staging.step(1900, Some(Epoch(3)), 3, peers(&[1])), StagingDecision::Request(_)));
    assert_eq!(staging.step(1901, Some(Epoch(3)), 3, peers(&[1])), StagingDecision::TimedOut);
}

#[test]
fn who_came_in_sync_since_the_decision_must_stage_the_load_too() {
    assert!(StagingCoordinator::may_install(peers(&[1, 2]), peers(&[1]), peers(&[2])));
    assert!(!StagingCoordinator::may_install(peers(&[1, 2, 3]), peers(&[1]), peers(&[2])));
}

#[test]
fn a_range_contains_a_load_as_a_whole_or_not_at_all() {
    let span = Some(LoadSpan { after: Size(10), to: Size(20) });
    let range = |after, to| LoadSpan::range(span, Size(after), Size(to));
    assert_eq!(range(0, 5), (Size(5), None));
    assert_eq!(range(0, 15), (Size(10), None), "it ends before the load");
    assert_eq!(range(10, 15), (Size(20), Some(Size(20))), "it goes on to the load's end");
    assert_eq!(range(12, 30), (Size(30), Some(Size(20))));
    assert_eq!(range(20, 30), (Size(30), None));
    assert_eq!(LoadSpan::range(None, Size(10), Size(15)), (Size(15), None));
}

#[test]
fn only_what_readers_may_see_is_known_to_be_committed() {
    let span = LoadSpan { after: Size(10), to: Size(20) };
    assert_eq!(span.state(Size(20), None), LoadSpanState::Uncommitted);
    assert_eq!(span.state(Size(25), Some(Size(19))), LoadSpanState::Uncommitted);
    assert_eq!(span.state(Size(25), Some(Size(20))), LoadSpanState::Committed);
    assert_eq!(span.state(Size(19), Some(Size(25))), LoadSpanState::ForkedOff);
    assert_eq!(
        span.with(LoadSpan { after: Size(5), to: Size(10) }),
        LoadSpan { after: Size(5), to: Size(20) }
    );
}
