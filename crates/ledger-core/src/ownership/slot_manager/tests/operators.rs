//! What operators decide: nodes that leave for good, and members that are declared lost.

use super::*;
use crate::ownership::{Recovery, RecoveryApproval};

/// Five nodes that have formed the slot, by the order in which it prefers them; the first three keep it.
fn five() -> (Cluster, [usize; 5]) {
    let mut cluster = Cluster::new(5);
    cluster.pass(5_000);
    let order: [usize; 5] = order(5).try_into().unwrap();
    assert_eq!(cluster.members(), sorted([0, 1, 2].map(|at| order[at])));
    (cluster, order)
}

fn sorted<const N: usize>(mut nodes: [usize; N]) -> Vec<NodeId> {
    nodes.sort_unstable();
    nodes.map(name).to_vec()
}

impl Cluster {
    fn leave(&mut self, index: usize, leaving: Option<DecommissionMode>) {
        self.hosts[index].leaving = leaving;
        self.drain(index, leaving.is_some());
    }

    fn declare_lost(&mut self, lost: &[usize]) {
        let declared = self.decide(lost);
        self.tell(&declared);
    }

    /// What an operator decides after a look at what there is.
    fn decide(&self, lost: &[usize]) -> DeclaredLosses {
        let lost: BTreeSet<Member> = lost.iter().map(|index| member(*index)).collect();
        // As `ledgerctl` does: with the newest members that anybody knows who is alive.
        let alive = || self.hosts.iter().filter(|host| host.is_alive);
        let records = || alive().filter_map(|host| Some((host, host.records.get(&slot())?)));
        let newest =
            records().filter_map(|(_, record)| record.placement.as_ref()).max_by_key(|known| known.rank());
        let newest = newest.unwrap().clone();
        let best = records().max_by_key(|(_, record)| record.accepted).unwrap().0.member.clone();
        let heir = newest.named().all(|member| lost.contains(member)).then_some(best);
        let mut declared = DeclaredLosses { lost, slots: BTreeMap::new() };
        if newest.needs_approval(&declared.lost, self.settings.write_quorum) {
            declared.slots.insert(slot(), RecoveryApproval::of(&newest, heir));
        }
        declared
    }

    fn tell(&mut self, declared: &DeclaredLosses) {
        for index in 0..self.hosts.len() {
            if self.hosts[index].is_alive {
                self.step(index, Event::LossesDeclared(declared.clone()));
            }
        }
    }

    fn kill(&mut self, nodes: &[usize]) {
        for index in nodes {
            self.hosts[*index].is_alive = false;
        }
    }

    /// What slots went on without, since last looked.
    fn recovered(&mut self) -> Vec<Recovery> {
        let recovered = |(_, effect)| match effect {
            Effect::RecordRecovery { recovery, .. } => Some(recovery),
            _ => None,
        };
        std::mem::take(&mut self.done).into_iter().filter_map(recovered).collect()
    }
}

#[test]
fn copies_of_a_node_that_leaves_are_moved_while_it_lives() {
    let (mut cluster, [first, second, third, fourth, _]) = five();
    cluster.leave(first, Some(DecommissionMode::Replaced));
    cluster.pass(1_000);
    assert_eq!(cluster.members(), sorted([second, third, fourth]), "the owner handed over, and was replaced");
    assert_eq!(cluster.owners(), [second]);
    cluster.pass(60_000);
    assert_eq!(cluster.members(), sorted([second, third, fourth]), "it stays so");
    cluster.leave(first, None);
    cluster.pass(10_000);
    assert_eq!(cluster.members(), sorted([first, second, third]), "its place is its own again");
}

#[test]
fn a_cluster_is_scaled_down_one_node_after_the_other() {
    let (mut cluster, order) = five();
    // Those that keep the slot, one as soon as the one before has left.
    for (left, leaves) in (1..=2).zip(order) {
        cluster.leave(leaves, Some(DecommissionMode::Replaced));
        cluster.pass(1_500);
        assert!(!cluster.members().contains(&name(leaves)));
        cluster.kill(&[leaves]);
        cluster.pass(1_000);
        assert_eq!(cluster.owners().len(), 1, "{left} have left");
    }
    assert_eq!(cluster.members(), sorted([order[2], order[3], order[4]]));
}

#[test]
fn a_node_that_dies_while_it_leaves_is_replaced_at_once() {
    let (mut cluster, [_, second, _, fourth, _]) = five();
    cluster.hosts[fourth].offers = Some(SyncOfferOutcome::Diverged);
    cluster.leave(second, Some(DecommissionMode::Replaced));
    cluster.pass(1_000);
    assert!(cluster.members().contains(&name(second)), "the new one has not learnt yet");
    cluster.kill(&[second]);
    cluster.hosts[fourth].offers = None;
    let owner = cluster.owners()[0];
    cluster.step(owner, Event::SyncRequested(member(fourth), slot()));
    cluster.pass(1_000);
    assert!(!cluster.members().contains(&name(second)), "nobody waits for the placement grace");
    assert!(cluster.members().contains(&name(fourth)));
}

#[test]
fn a_node_that_leaves_does_not_wait_for_one_that_is_away() {
    let (mut cluster, [first, second, third, fourth, fifth]) = five();
    // The next in order is away for a moment, and keeps its claim to a place.
    cluster.kill(&[fourth]);
    cluster.leave(third, Some(DecommissionMode::Replaced));
    cluster.pass(1_000);
    assert_eq!(cluster.members(), sorted([first, second, fifth]));
    cluster.hosts[fourth].is_alive = true;
    cluster.pass(5_000);
    assert_eq!(cluster.members(), sorted([first, second, fourth]));
}

#[test]
fn a_slot_gets_fewer_members_only_if_that_is_allowed_and_never_fewer_than_an_append_needs() {
    let (mut cluster, [first, second, third]) = three(5_000);
    cluster.leave(third, Some(DecommissionMode::Replaced));
    cluster.pass(60_000);
    assert_eq!(cluster.members().len(), 3, "there is nobody to take its place");
    cluster.leave(third, Some(DecommissionMode::AllowFewer));
    cluster.pass(1_000);
    assert_eq!(cluster.members(), sorted([first, second]));
    cluster.leave(second, Some(DecommissionMode::AllowFewer));
    cluster.pass(60_000);
    assert_eq!(cluster.members(), sorted([first, second]), "an append needs both");
    cluster.leave(third, None);
    cluster.pass(5_000);
    assert_eq!(cluster.members(), sorted([first, third]), "the third takes the place of the second");
}

#[test]
fn slots_go_on_when_nodes_are_gone_for_good_one_placement_grace_after_the_other() {
    let (mut cluster, order) = five();
    for leaves in [order[0], order[1]] {
        cluster.kill(&[leaves]);
        cluster.pass(cluster.settings.placement_grace + 10_000);
        assert_eq!(cluster.owners().len(), 1);
        assert!(!cluster.members().contains(&name(leaves)));
    }
    assert_eq!(cluster.members(), sorted([order[2], order[3], order[4]]));
}

#[test]
fn what_is_left_goes_on_only_once_the_lost_are_declared_lost() {
    for survivor in 0..3 {
        let (mut cluster, order) = three(5_000);
        let lost: Vec<usize> = (0..3).filter(|at| *at != survivor).map(|at| order[at]).collect();
        let before = cluster.epoch();
        cluster.kill(&lost);
        cluster.pass(60_000);
        assert_eq!(cluster.owners(), [], "the owner of before takes no appends either");
        cluster.done.clear();
        cluster.declare_lost(&lost);
        cluster.pass(20_000);
        assert_eq!(cluster.owners(), [order[survivor]]);
        assert_eq!(cluster.members(), [name(order[survivor])]);
        assert!(
            cluster.epoch().counter() >= before.counter() + crate::ownership::recovery::RECOVERY_EPOCH_GAP
        );
        let claims = cluster.done.iter().filter(|(_, effect)| {
            matches!(effect, Effect::RecordRecovery { .. } | Effect::BeginServing { .. })
        });
        let claims: Vec<bool> =
            claims.map(|(_, effect)| matches!(effect, Effect::BeginServing { .. })).collect();
        assert_eq!(claims, [false, true], "the evidence comes first");
        let [recovery] = cluster.recovered().try_into().unwrap();
        assert_eq!(recovery.missing, sorted_members(&lost));
        assert_eq!(recovery.responded, [(member(order[survivor]), before)]);
        // Two that are new take the places.
        cluster.add();
        cluster.add();
        cluster.pass(5_000);
        assert_eq!(cluster.members().len(), 3);
        assert_eq!(cluster.recovered(), [], "nothing is missing any more");
    }
}

fn sorted_members(nodes: &[usize]) -> Vec<Member> {
    let mut members: Vec<Member> = nodes.iter().map(|index| member(*index)).collect();
    members.sort();
    members
}

#[test]
fn whoever_is_alive_is_heard_before_a_slot_goes_on_without_the_lost() {
    let (mut cluster, [first, second, third, fourth, fifth]) = five();
    // The first two are lost before the third, which knows the members of then only, hears of the newer ones.
    let old = cluster.hosts[third].records[&slot()].clone();
    cluster.kill(&[third]);
    cluster.pass(cluster.settings.placement_grace + 5_000);
    assert_eq!(cluster.members(), sorted([first, second, fourth]));
    cluster.kill(&[first, second]);
    cluster.hosts[third].is_alive = true;
    assert_eq!(cluster.hosts[third].records[&slot()], old);
    cluster.pass(1_000);
    cluster.done.clear();
    cluster.declare_lost(&[first, second]);
    cluster.pass(30_000);
    let claimants: Vec<NodeId> = cluster
        .done
        .iter()
        .filter(|(_, effect)| matches!(effect, Effect::RecordRecovery { .. }))
        .map(|(node, _)| node.clone())
        .collect();
    assert_eq!(claimants, [name(fourth)], "the third learns that it is a member no more");
    let [recovery] = cluster.recovered().try_into().unwrap();
    let heard: Vec<Member> = recovery.responded.iter().map(|(member, _)| member.clone()).collect();
    assert_eq!(heard, sorted_members(&[third, fourth, fifth]));
}

#[test]
fn nodes_that_lost_their_disks_do_not_form_a_slot_anew_that_another_one_remembers() {
    let mut cluster = Cluster::new(3);
    cluster.settings.first_nodes.clear();
    cluster.hosts.clear();
    (0..3).for_each(|_| cluster.add());
    cluster.pass(5_000);
    assert_eq!(cluster.owners().len(), 1);
    // The fourth node takes the place of the survivor in the order, and never heard of an owner.
    let survivor = *order(4).iter().find(|index| **index != 3).unwrap();
    for lost in (0..3).filter(|index| *index != survivor) {
        let member = Member { storage: StorageId([40 + lost as u8; 16]), ..member(lost) };
        let brain = SlotManager::of([slot()], member.clone(), cluster.settings.clone(), [], cluster.now);
        let host = &mut cluster.hosts[lost];
        (host.member, host.brain, host.records) = (member, brain, BTreeMap::new());
    }
    cluster.hosts[survivor].is_alive = false;
    cluster.add();
    cluster.pass(100);
    cluster.hosts[survivor].is_alive = true;
    let epoch = cluster.hosts[survivor].records[&slot()].accepted;
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [], "what the survivor holds is not hidden behind nothing");
    assert_eq!(cluster.hosts[survivor].records[&slot()].accepted, epoch);
    let lost = (0..3).filter(|index| *index != survivor).collect::<Vec<_>>();
    cluster.declare_lost(&lost);
    cluster.pass(60_000);
    assert_eq!(cluster.owners().len(), 1);
    assert!(cluster.members().contains(&name(survivor)));
}

#[test]
fn a_slot_of_which_no_member_is_left_goes_on_with_the_best_that_anybody_holds() {
    let (mut cluster, [first, second, third, fourth, fifth]) = five();
    // The third was a member before, and the fourth is one now.
    cluster.leave(third, Some(DecommissionMode::Replaced));
    cluster.pass(1_500);
    cluster.leave(third, None);
    cluster.kill(&[third]);
    assert_eq!(cluster.members(), sorted([first, second, fourth]));
    cluster.pass(100);
    cluster.kill(&[first, second, fourth]);
    cluster.hosts[third].is_alive = true;
    cluster.pass(20_000);
    cluster.done.clear();
    cluster.declare_lost(&[first, second, fourth]);
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [third]);
    assert_eq!(cluster.members(), sorted([third, fifth]), "and whoever is there keeps it too");
    assert_eq!(cluster.recovered().len(), 1);
}

#[test]
fn a_slot_that_has_enough_members_left_goes_on_as_ever_when_others_are_declared_lost() {
    let (mut cluster, [first, second, third]) = three(5_000);
    cluster.kill(&[third]);
    cluster.pass(1_000);
    cluster.done.clear();
    let before = cluster.epoch();
    cluster.declare_lost(&[third]);
    cluster.pass(20_000);
    assert_eq!((cluster.owners(), cluster.epoch()), (vec![first], before));
    cluster.add();
    cluster.pass(5_000);
    assert_eq!(cluster.members(), sorted([first, second, 3]), "its place is free at once");
    assert_eq!(cluster.recovered(), []);
}

#[test]
fn lost_members_that_are_back_claim_nothing_while_they_hear_of_an_owner() {
    let (mut cluster, [first, second, third]) = three(5_000);
    cluster.kill(&[second, third]);
    cluster.pass(1_000);
    cluster.declare_lost(&[second, third]);
    cluster.pass(20_000);
    assert_eq!(cluster.owners(), [first]);
    let epoch = cluster.epoch();
    cluster.done.clear();
    cluster.hosts[second].is_alive = true;
    cluster.hosts[third].is_alive = true;
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [first]);
    assert!(cluster.claimants().iter().all(|claimant| *claimant == name(first)));
    assert!(cluster.epoch() >= epoch);
}

#[test]
fn what_is_left_goes_on_whatever_it_tried_between_the_look_and_the_decision() {
    let mut cluster = Cluster::with(3, OwnershipSettings { write_quorum: 3, ..OwnershipSettings::default() });
    cluster.pass(5_000);
    let [first, second, third]: [usize; 3] = order(3).try_into().unwrap();
    cluster.kill(&[first, second]);
    let epoch = |cluster: &Cluster| {
        cluster.hosts[third].records[&slot()].placement.as_ref().map(|placement| placement.epoch)
    };
    cluster.pass(20_000);
    let (declared, before) = (cluster.decide(&[first, second]), epoch(&cluster));
    // Its own promise is enough to try, and each try records the members anew.
    cluster.pass(60_000);
    assert!(epoch(&cluster) > before);
    cluster.tell(&declared);
    cluster.pass(20_000);
    assert_eq!((cluster.owners(), cluster.members()), (vec![third], vec![name(third)]));
    assert_eq!(cluster.recovered().len(), 1);
}

#[test]
fn an_approval_is_about_the_members_that_were_seen_and_no_older_ones_and_no_others() {
    let set = |members: &[usize]| ReplicaSet::new(members.iter().copied().map(member)).unwrap();
    let placed = |epoch: u32, members: &[usize]| Placement {
        epoch: Epoch::new(epoch, 1),
        members: set(members),
        is_confirmed: true,
        previous: None,
    };
    let approval = RecoveryApproval::of(&placed(7, &[0, 1, 2]), None);
    for (placement, expected) in [
        (placed(7, &[0, 1, 2]), true),
        (placed(9, &[0, 1, 2]), true),
        (placed(6, &[0, 1, 2]), false),
        (placed(9, &[0, 1, 3]), false),
        (Placement { previous: Some(set(&[0, 3, 4])), ..placed(9, &[0, 1, 2]) }, false),
    ] {
        assert_eq!(approval.covers(&placement), expected, "{placement:?}");
    }
}
