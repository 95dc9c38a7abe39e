//! A node that cannot read something of a slot.

use super::*;

#[test]
fn a_damaged_owner_goes_on_until_it_cannot_be_restored_then_hands_over() {
    let (mut cluster, [first, second, _]) = three(1000);
    let epoch = cluster.epoch();
    cluster.damage(first, true, false);
    cluster.pass(60_000);
    assert_eq!((cluster.owners(), cluster.epoch()), (vec![first], epoch), "it serves what it can read");
    cluster.damage(first, true, true);
    cluster.pass(2000);
    assert_eq!(cluster.owners(), [second]);
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [second], "it does not go back while the first is damaged");
    cluster.damage(first, false, false);
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [first], "it goes back once the first is restored");
}

#[test]
fn an_impaired_owner_keeps_a_slot_that_nobody_could_take_without_it() {
    let (mut cluster, [first, second, third]) = three(1000);
    // R − m + 1 promises are needed, and one member is away.
    cluster.hosts[third].is_alive = false;
    cluster.pass(1000);
    cluster.damage(first, true, true);
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [first]);
    cluster.hosts[third].is_alive = true;
    cluster.pass(5000);
    assert_eq!(cluster.owners(), [second]);

    let settings = OwnershipSettings { write_quorum: 1, ..OwnershipSettings::default() };
    let mut cluster = Cluster::with(3, settings);
    cluster.pass(1000);
    cluster.damage(first, true, true);
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [first], "it may have the only copy");
}

impl Cluster {
    /// The streams of an owner begin anew, and for so long its offers are answered in this way.
    fn offers_come_to_nothing(
        &mut self,
        owner: usize,
        others: [usize; 2],
        outcome: &SyncOfferOutcome,
        millis: Millis,
    ) {
        for other in others {
            self.hosts[other].offers = Some(outcome.clone());
            let lost = self.hosts[other].member.clone();
            self.step(owner, Event::PeerDisconnected(lost.clone()));
            self.step(owner, Event::PeerConnected(lost));
        }
        self.pass(millis);
        for other in others {
            self.hosts[other].offers = None;
        }
    }
}

#[test]
fn an_impaired_owner_without_a_quorum_steps_down_so_that_the_others_take_the_slot() {
    let (mut cluster, [first, second, third]) = three(1000);
    cluster.damage(first, true, true);
    // They hold other histories than the owner, and cannot compare what it cannot read.
    cluster.offers_come_to_nothing(first, [second, third], &SyncOfferOutcome::Unavailable, 200);
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [second]);
}

#[test]
fn an_impaired_owner_does_not_wait_for_members_that_catch_up_with_it() {
    let (mut cluster, [first, second, third]) = three(1000);
    cluster.damage(first, true, true);
    let long = cluster.settings.quorum_loss_grace + 1000;
    cluster.offers_come_to_nothing(first, [second, third], &SyncOfferOutcome::Diverged, long);
    cluster.pass(5000);
    assert_eq!(cluster.owners(), [second]);
}

#[test]
fn a_damaged_member_does_not_claim_and_declines_what_it_is_handed() {
    let (mut cluster, [first, second, third]) = three(1000);
    cluster.damage(second, true, false);
    let _ = cluster.claimants();
    cluster.hosts[first].is_alive = false;
    cluster.pass(60_000);
    // Of three only one could promise.
    assert_eq!(cluster.owners(), [0usize; 0]);
    assert!(!cluster.claimants().contains(&name(second)), "its own replica would refuse");
    cluster.damage(second, false, false);
    cluster.pass(10_000);
    assert_eq!(cluster.owners().len(), 1);
    cluster.hosts[first].is_alive = true;
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [first]);

    cluster.damage(second, true, false);
    cluster.drain(first, true);
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [third], "the second declines");
}
