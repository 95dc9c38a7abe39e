//! A replica that refuses a part of a commit.

use super::*;
use crate::ownership::{RefusedPart, WhyRefused};

/// The owner hears that a member refused a part that it sent in its claim.
fn refuse(cluster: &mut Cluster, owner: usize, from: usize, why: WhyRefused) {
    let Role::Owner(state) = &cluster.hosts[owner].brain.state(slot()).role else { panic!("no owner") };
    let refused = RefusedPart { slot: slot(), claim: state.claim.clone(), why };
    let from = member(from);
    cluster.step(owner, Event::PartRefused { from, refused });
}

fn is_in_sync(cluster: &Cluster, owner: usize, other: usize) -> bool {
    let Role::Owner(state) = &cluster.hosts[owner].brain.state(slot()).role else { return false };
    state.in_sync.contains(&member(other))
}

#[test]
fn a_member_that_refuses_a_part_is_offered_the_slot_again_in_the_same_claim() {
    let (mut cluster, [first, second, third]) = three(1000);
    let epoch = cluster.epoch();
    cluster.done.clear();
    refuse(&mut cluster, first, second, WhyRefused::Invalid("it does not fit".to_owned()));
    assert!(!is_in_sync(&cluster, first, second) && is_in_sync(&cluster, first, third));
    assert_eq!(cluster.done, [], "a member that refuses each part is not asked without a pause");
    cluster.pass(100);
    let offered: Vec<&Member> = cluster
        .done
        .iter()
        .filter_map(|(_, effect)| match effect {
            Effect::OfferSync { to, .. } => Some(to),
            _ => None,
        })
        .collect();
    assert_eq!(offered, [&member(second)]);
    assert!(is_in_sync(&cluster, first, second));
    assert_eq!((cluster.owners(), cluster.epoch()), (vec![first], epoch), "nothing else changed");
}

#[test]
fn what_a_member_refused_of_an_earlier_claim_says_nothing_of_this_one() {
    let (mut cluster, [first, second, _]) = three(1000);
    let claim = Claim::new(Epoch::new(0, 1), &member(first));
    let why = WhyRefused::Invalid("it does not fit".to_owned());
    let refused = RefusedPart { slot: slot(), claim, why };
    cluster.step(first, Event::PartRefused { from: member(second), refused });
    assert!(is_in_sync(&cluster, first, second));
}

#[test]
fn an_owner_steps_down_when_a_part_is_refused_for_a_higher_claim() {
    let (mut cluster, [first, second, _]) = three(1000);
    let higher = Claim::lowest_above(cluster.epoch(), &member(second)).unwrap();
    cluster.done.clear();
    refuse(&mut cluster, first, second, WhyRefused::Promised(higher));
    assert!(cluster.done.contains(&(name(first), Effect::StepDown { slot: slot() })));
    assert_eq!(cluster.owners(), [0; 0]);
    cluster.pass(5000);
    assert_eq!(cluster.owners().len(), 1, "one of them takes it");
}
