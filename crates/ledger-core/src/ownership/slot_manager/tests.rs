//! Brains of a few nodes, whose shells do everything at once: what is asked is answered, what is written is durable.

use std::collections::VecDeque;

use super::*;
use crate::{
    node::StorageId,
    ownership::{HigherClaimPromised, ReplicaRefusal},
};

mod damage;
mod operators;
mod refusals;

const SLOT: u16 = 600;

struct Host {
    member: Member,
    brain: SlotManager,
    records: BTreeMap<Slot, SlotRecord>,
    is_alive: bool,
    is_draining: bool,
    is_writable: bool,
    leaving: Option<DecommissionMode>,
    /// Offers are answered so, instead of being accepted.
    offers: Option<SyncOfferOutcome>,
    /// What it cannot read. Its replica promises nothing of it.
    damage: DamagedSlots,
    /// When it answered a renewal last.
    renewed: Millis,
}

struct Cluster {
    now: Millis,
    settings: OwnershipSettings,
    hosts: Vec<Host>,
    /// What every brain wanted done, since it was last looked at.
    done: Vec<(NodeId, Effect)>,
}

fn name(index: usize) -> NodeId {
    NodeId::new(format!("n{index}")).unwrap()
}

fn member(index: usize) -> Member {
    Member { node: name(index), storage: StorageId([index as u8; 16]) }
}

fn slot() -> Slot {
    Slot::new(SLOT).unwrap()
}

/// The nodes by the order in which the slot prefers them.
fn order(nodes: usize) -> Vec<usize> {
    let names = rendezvous::preference_order(slot(), (0..nodes).map(name));
    names.iter().map(|node| (0..nodes).find(|index| name(*index) == *node).unwrap()).collect()
}

/// Three nodes after so long, by the order in which the slot prefers them.
fn three(millis: Millis) -> (Cluster, [usize; 3]) {
    let mut cluster = Cluster::new(3);
    cluster.pass(millis);
    (cluster, order(3).try_into().unwrap())
}

impl Cluster {
    fn new(nodes: usize) -> Self {
        Self::with(nodes, OwnershipSettings::default())
    }

    fn with(nodes: usize, mut settings: OwnershipSettings) -> Self {
        settings.first_nodes = (0..nodes).map(name).collect();
        settings.settle_time = 0;
        let mut cluster = Self { now: 1_000_000, settings, hosts: Vec::new(), done: Vec::new() };
        (0..nodes).for_each(|_| cluster.add());
        cluster
    }

    fn add(&mut self) {
        let index = self.hosts.len();
        let member = member(index);
        let brain = SlotManager::of([slot()], member.clone(), self.settings.clone(), [], self.now);
        self.hosts.push(Host {
            member,
            brain,
            records: BTreeMap::new(),
            is_alive: true,
            is_draining: false,
            is_writable: true,
            leaving: None,
            offers: None,
            damage: DamagedSlots::default(),
            renewed: self.now,
        });
    }

    /// Time passes, with gossip and ticks ten times a second.
    fn pass(&mut self, millis: Millis) {
        let until = self.now + millis;
        while self.now < until {
            self.now += 100;
            self.gossip();
            for index in 0..self.hosts.len() {
                if self.hosts[index].is_alive {
                    self.step(index, Event::Tick);
                }
            }
        }
    }

    fn gossip(&mut self) {
        let seen: Vec<ObservedNode> = self
            .hosts
            .iter()
            .map(|host| ObservedNode {
                member: host.member.clone(),
                zone: String::new(),
                is_alive: host.is_alive,
                is_draining: host.is_draining,
                is_writable: host.is_writable,
                decommission: host.leaving,
                owned: if host.is_alive { host.brain.owned().into_iter().collect() } else { BTreeMap::new() },
            })
            .collect();
        for index in 0..self.hosts.len() {
            if !self.hosts[index].is_alive {
                continue;
            }
            self.step(index, Event::NodesObserved(seen.clone()));
            for other in &seen {
                let is_up = self.hosts[index].brain.connected.contains(&other.member);
                match (is_up, other.is_alive) {
                    (false, true) => self.step(index, Event::PeerConnected(other.member.clone())),
                    (true, false) => self.step(index, Event::PeerDisconnected(other.member.clone())),
                    _ => {}
                }
            }
        }
    }

    /// Something happens at a node, and all that follows from it.
    fn step(&mut self, index: usize, event: Event) {
        let mut events = VecDeque::from([(index, event)]);
        while let Some((index, event)) = events.pop_front() {
            for effect in self.hosts[index].brain.step(self.now, event) {
                let is_lease = matches!(
                    effect,
                    Effect::RenewLeases { .. }
                        | Effect::SendRequest { request: MemberRequest::QuerySlot { .. }, .. }
                );
                if !is_lease {
                    self.done.push((name(index), effect.clone()));
                }
                self.perform(index, effect, &mut events);
            }
        }
    }

    fn perform(&mut self, index: usize, effect: Effect, events: &mut VecDeque<(usize, Event)>) {
        let from = match &effect {
            Effect::SendRequest { to, .. } | Effect::OfferSync { to, .. } => to.clone(),
            _ => self.hosts[index].member.clone(),
        };
        let Some(at) = self.hosts.iter().position(|host| host.member == from && host.is_alive) else {
            if let Effect::SendRequest { slot, claim, .. } = effect {
                events.push_back((
                    index,
                    Event::Response { from, slot, claim, answer: MemberResponse::Unavailable },
                ));
            }
            return;
        };
        let host = &mut self.hosts[at];
        match effect {
            Effect::SendRequest { slot, claim, request: MemberRequest::TakeOver, .. } => {
                events.push_back((at, Event::HandoverReceived(slot, claim)));
            }
            Effect::SendRequest { slot, claim, request: MemberRequest::QuerySlot { sent_at }, .. } => {
                let known = host.brain.slot_knowledge(self.now, slot);
                events.push_back((
                    index,
                    Event::Response {
                        from,
                        slot,
                        claim,
                        answer: MemberResponse::SlotKnown { asked: sent_at, known },
                    },
                ));
            }
            Effect::SendRequest { slot, claim, request: MemberRequest::Promise, .. }
                if host.damage.damaged.contains(&slot) =>
            {
                events.push_back((
                    index,
                    Event::Response { from, slot, claim, answer: MemberResponse::Unavailable },
                ));
            }
            Effect::SendRequest { slot, claim, request, .. } => {
                let record = host.records.get(&slot).cloned().unwrap_or_default();
                let answer = match request {
                    MemberRequest::Promise => record
                        .promise(&claim)
                        .map(|(next, promise)| (next, MemberResponse::Promised(promise))),
                    _ => record.confirm(&claim).map(|next| (next, MemberResponse::Done)).map_err(|wrong| {
                        match wrong {
                            ReplicaRefusal::HigherClaimPromised(refused) => refused,
                            _ => HigherClaimPromised { promised: claim.clone() },
                        }
                    }),
                };
                let answer = match answer {
                    Ok((next, answer)) => {
                        host.records.insert(slot, next.clone());
                        events.push_back((at, Event::RecordChanged(slot, Some(next))));
                        answer
                    }
                    Err(refused) => MemberResponse::Refused(refused.promised),
                };
                events.push_back((index, Event::Response { from, slot, claim, answer }));
            }
            Effect::OfferSync { slot, claim, members, is_confirmed, previous, .. } => {
                let record = host.records.get(&slot).cloned().unwrap_or_default();
                let outcome = match record.accept(&claim, &members, is_confirmed, previous.as_ref()) {
                    _ if host.offers.is_some() => host.offers.clone().unwrap(),
                    Ok(next) => {
                        host.records.insert(slot, next.clone());
                        events.push_back((at, Event::RecordChanged(slot, Some(next))));
                        SyncOfferOutcome::Accepted
                    }
                    Err(ReplicaRefusal::HigherClaimPromised(refused)) => {
                        SyncOfferOutcome::Refused(refused.promised)
                    }
                    Err(ReplicaRefusal::OtherMembers(placement)) => SyncOfferOutcome::OtherMembers(placement),
                    Err(ReplicaRefusal::NotAccepted { .. } | ReplicaRefusal::AlreadyFormed) => {
                        SyncOfferOutcome::Unavailable
                    }
                };
                events.push_back((index, Event::SyncOfferAnswered { from, slot, claim, outcome }));
            }
            Effect::RecordFormed { slot } => {
                let record = host.records.entry(slot).or_default();
                *record = record.record_formed();
                events.push_back((at, Event::RecordChanged(slot, Some(record.clone()))));
            }
            Effect::CatchUp { slot, claim, .. } => {
                events.push_back((index, Event::CaughtUp { slot, claim, is_complete: true }));
            }
            Effect::StopAppends { slot, claim } => {
                events.push_back((index, Event::AppendsStopped(slot, claim)));
            }
            Effect::DeclineHandover { slot, claim } => {
                let owner = self.hosts.iter().position(|host| host.member.node == claim.claimant).unwrap();
                events.push_back((
                    owner,
                    Event::Response { from, slot, claim, answer: MemberResponse::Unavailable },
                ));
            }
            Effect::RenewLeases { to, slots } => {
                let Some(at) = self.hosts.iter().position(|host| host.member == to && host.is_alive) else {
                    return;
                };
                let records = &self.hosts[at].records;
                let takes =
                    |renewal: &LeaseRenewal| records[&renewal.slot].check_append(&renewal.claim).is_ok();
                let (taken, refused): (Vec<_>, Vec<_>) = slots.iter().partition(|renewal| takes(renewal));
                let slots = taken.iter().filter_map(|renewal| Some((renewal.slot, renewal.age?))).collect();
                let refused =
                    refused.iter().map(|of| (of.slot, records[&of.slot].promised.clone())).collect();
                let owner = self.hosts[index].member.clone();
                let after = self.hosts[at].renewed;
                self.hosts[at].renewed = self.now;
                events.push_back((at, Event::LeaseRenewed { from: owner, after, slots }));
                events.push_back((index, Event::LeaseRenewalAnswered { from: to, refused }));
            }
            Effect::RecordRecovery { .. }
            | Effect::BeginServing { .. }
            | Effect::AddInSync { .. }
            | Effect::RemoveReplica { .. }
            | Effect::StepDown { .. } => {}
        }
    }

    fn drain(&mut self, index: usize, is_draining: bool) {
        self.hosts[index].is_draining = is_draining;
        self.step(index, Event::Drain(is_draining));
    }

    /// Something of the slot cannot be read at a node, or can be read again.
    fn damage(&mut self, index: usize, is_damaged: bool, is_impaired: bool) {
        let of = |is: bool| is.then(slot).into_iter().collect();
        let damage = DamagedSlots { damaged: of(is_damaged), impaired: of(is_impaired) };
        self.hosts[index].damage = damage.clone();
        self.step(index, Event::DamageChanged(damage));
    }

    fn writable(&mut self, index: usize, is_writable: bool) {
        self.hosts[index].is_writable = is_writable;
        self.step(index, Event::Writable(is_writable));
    }

    /// The nodes that own the slot.
    fn owners(&self) -> Vec<usize> {
        let owns = |index: &usize| {
            let host = &self.hosts[*index];
            host.is_alive && matches!(host.brain.owner(slot()), Owner::Me(_))
        };
        (0..self.hosts.len()).filter(owns).collect()
    }

    fn epoch(&self) -> Epoch {
        match self.hosts[self.owners()[0]].brain.owner(slot()) {
            Owner::Me(epoch) => epoch,
            other => panic!("{other:?}"),
        }
    }

    /// The members, as the owner recorded them.
    fn members(&self) -> Vec<NodeId> {
        let record = self.hosts[self.owners()[0]].brain.record(slot());
        record
            .placement
            .as_ref()
            .unwrap()
            .members
            .members()
            .iter()
            .map(|member| member.node.clone())
            .collect()
    }

    /// Who asked for promises, since last asked.
    fn claimants(&mut self) -> Vec<NodeId> {
        let asks = |(node, effect): (NodeId, Effect)| {
            matches!(effect, Effect::SendRequest { request: MemberRequest::Promise, .. }).then_some(node)
        };
        let mut claimants: Vec<NodeId> =
            std::mem::take(&mut self.done).into_iter().filter_map(asks).collect();
        claimants.dedup();
        claimants
    }
}

#[test]
fn the_first_in_order_claims_a_slot_and_the_others_wait() {
    let mut cluster = Cluster::new(3);
    cluster.pass(200);
    assert_eq!(cluster.owners(), [order(3)[0]]);
    assert_eq!(cluster.claimants(), [name(order(3)[0])]);
    cluster.pass(20_000);
    assert_eq!(cluster.claimants(), [], "nobody claims a slot that has its owner");
}

#[test]
fn the_next_in_order_claims_a_slot_if_the_first_does_not() {
    let (mut cluster, [first, second, _]) = three(200);
    let before = cluster.epoch();
    cluster.hosts[first].is_alive = false;
    cluster.pass(200);
    assert_eq!(cluster.owners(), [second], "of those alive it is the first");
    assert!(cluster.epoch() > before);
}

#[test]
fn a_node_that_promised_lets_the_candidate_go_on_but_not_for_ever() {
    let mut cluster = Cluster::new(3);
    let [first, second, _] = order(3).try_into().unwrap();
    cluster.gossip();
    cluster.step(second, Event::Tick);
    let begun = cluster.now;
    // The first candidate is slow, and begins anew every 700 ms.
    let claims = |cluster: &Cluster| cluster.done.iter().any(|(node, _)| *node == name(second));
    for counter in 1..200 {
        let claim = Claim {
            epoch: Epoch::new(counter, 1),
            claimant: name(first),
            storage: Some(StorageId([first as u8; 16])),
        };
        let record = SlotRecord { promised: Some(claim), ..SlotRecord::default() };
        cluster.step(second, Event::RecordChanged(slot(), Some(record)));
        cluster.now += 700;
        cluster.step(second, Event::Tick);
        if claims(&cluster) {
            break;
        }
    }
    let after = cluster.now - begun;
    assert!((7 * 700..9_000).contains(&after), "it claims the slot after {after} ms");
    // It does not wait for one that is dead.
    let mut cluster = Cluster::new(3);
    cluster.gossip();
    cluster.step(second, Event::Tick);
    let claim =
        Claim { epoch: Epoch::new(1, 1), claimant: name(first), storage: Some(StorageId([first as u8; 16])) };
    let placement = Placement {
        epoch: Epoch::default(),
        members: ReplicaSet::new((0..3).map(member)).unwrap(),
        is_confirmed: true,
        previous: None,
    };
    let record = SlotRecord { promised: Some(claim), placement: Some(placement), ..SlotRecord::default() };
    cluster.step(second, Event::RecordChanged(slot(), Some(record)));
    cluster.hosts[first].is_alive = false;
    cluster.gossip();
    cluster.now += 100;
    cluster.step(second, Event::Tick);
    assert!(claims(&cluster));
}

#[test]
fn a_slot_is_not_formed_before_all_its_first_nodes_are_there() {
    let mut cluster = Cluster::new(3);
    cluster.hosts[0].is_alive = false;
    cluster.pass(20_000);
    assert_eq!(cluster.claimants(), []);
    let why = cluster.hosts[1].brain.owner(slot());
    assert!(matches!(why, Owner::Nobody(Some(TakeoverFailure::NoQuorum { responded: 2, .. }))), "{why:?}");
    cluster.hosts[0].is_alive = true;
    cluster.pass(5_000);
    assert_eq!(cluster.owners().len(), 1);
}

#[test]
fn a_slot_that_had_an_owner_is_not_formed_anew() {
    let mut cluster = Cluster::new(3);
    let (me, other) = (cluster.hosts[0].member.clone(), name(9));
    let mut seen: Vec<ObservedNode> = (0..3)
        .map(|index| ObservedNode {
            member: cluster.hosts[index].member.clone(),
            zone: String::new(),
            is_alive: true,
            is_draining: false,
            is_writable: true,
            decommission: None,
            owned: BTreeMap::new(),
        })
        .collect();
    let mut stranger = seen[1].clone();
    stranger.member = Member { node: other, ..me.clone() };
    stranger.owned.insert(slot(), Epoch::new(5, 5));
    seen.push(stranger);
    let brain = &mut cluster.hosts[0].brain;
    let effects = brain.step(2_000_000, Event::NodesObserved(seen.clone()));
    assert_eq!(effects, [Effect::RecordFormed { slot: slot() }]);
    assert_eq!(brain.step(2_000_050, Event::NodesObserved(seen.clone())), [], "it is noted once");
    seen.pop();
    brain.step(2_000_100, Event::NodesObserved(seen.clone()));
    for tick in 0..1000 {
        assert_eq!(brain.step(2_000_200 + tick * 100, Event::Tick), []);
    }
    // Nor after a restart, with what is on disk.
    let record = SlotRecord::default().record_formed();
    let mut brain =
        SlotManager::of([slot()], me, OwnershipSettings::default(), [(slot(), record.clone())], 0);
    brain.step(2_000_000, Event::NodesObserved(seen.clone()));
    for tick in 0..1000 {
        assert_eq!(brain.step(2_000_200 + tick * 100, Event::Tick), []);
    }
    // And it is no first member for others.
    let claim = Claim::new(Epoch::new(9, 9), &member(1));
    let set = ReplicaSet::new(seen.into_iter().map(|seen| seen.member)).unwrap();
    assert_eq!(record.accept(&claim, &set, false, None), Err(ReplicaRefusal::AlreadyFormed));
    assert!(record.accept(&claim, &set, true, None).is_ok(), "its owner may give it a copy");
}

/// Three nodes, the first of which drains and has handed the slot to the second; gives both.
fn handed_over() -> (Cluster, usize, usize) {
    let (mut cluster, [first, second, _]) = three(5_000);
    cluster.drain(first, true);
    cluster.pass(300);
    assert_eq!(cluster.owners(), [second]);
    (cluster, first, second)
}

#[test]
fn a_draining_node_hands_over_and_gets_its_slots_back() {
    let (mut cluster, first, second) = handed_over();
    cluster.pass(10_000);
    assert_eq!(cluster.owners(), [second], "it stays there");
    cluster.drain(first, false);
    cluster.pass(1_000);
    assert_eq!(cluster.owners(), [first]);
}

#[test]
fn whoever_takes_a_slot_keeps_it_for_a_while() {
    let (mut cluster, first, second) = handed_over();
    // To the new owner this looks like one that has not heard yet that the other drains.
    cluster.drain(first, false);
    cluster.pass(cluster.settings.stable_after - 500);
    assert_eq!(cluster.owners(), [second]);
    // Its own drain waits for nothing.
    cluster.drain(second, true);
    cluster.pass(300);
    assert_ne!(cluster.owners(), [second]);
}

#[test]
fn a_slot_handed_to_a_node_that_drains_is_declined_at_once() {
    let (mut cluster, [first, second, _]) = three(5_000);
    // Gossip does not show yet that the second drains.
    cluster.step(second, Event::Drain(true));
    cluster.drain(first, true);
    cluster.pass(100);
    assert!(cluster.done.iter().any(|(_, effect)| matches!(effect, Effect::DeclineHandover { .. })));
    // The first takes appends again, and tries another when it has heard.
    assert_eq!(cluster.owners(), [first]);
    cluster.hosts[second].is_draining = true;
    cluster.pass(cluster.settings.response_timeout * 2 + 300);
    assert_eq!(cluster.owners(), [order(3)[2]]);
}

#[test]
fn slots_go_back_to_a_node_only_when_it_is_there_for_a_while() {
    let (mut cluster, [first, second, _]) = three(200);
    cluster.hosts[first].is_alive = false;
    cluster.pass(1_000);
    assert_eq!(cluster.owners(), [second]);
    cluster.hosts[first].is_alive = true;
    cluster.pass(cluster.settings.stable_after - 200);
    assert_eq!(cluster.owners(), [second]);
    cluster.pass(1_000);
    assert_eq!(cluster.owners(), [first]);
}

#[test]
fn a_handover_that_comes_to_nothing_goes_on_in_a_new_epoch_and_waits() {
    let (mut cluster, [first, second, third]) = three(5_000);
    let before = cluster.epoch();
    // The successor is gone, and nobody knows yet.
    cluster.hosts[second].is_alive = false;
    cluster.hosts[third].is_alive = true;
    cluster.done.clear();
    cluster.drain(first, true);
    cluster.step(first, Event::Tick);
    let of_owner = |effect: &Effect| match effect {
        Effect::StopAppends { .. } => Some("stop"),
        Effect::SendRequest { request: MemberRequest::TakeOver, .. } => Some("hand over"),
        Effect::StepDown { .. } => Some("step down"),
        Effect::BeginServing { .. } => Some("own"),
        _ => None,
    };
    let done: Vec<_> = cluster.done.iter().filter_map(|(_, effect)| of_owner(effect)).collect();
    assert_eq!(done, ["stop", "hand over", "step down", "own"]);
    assert_eq!(cluster.owners(), [first]);
    let after = cluster.epoch();
    assert!(after > before, "who met the stop in one epoch is refused in it");
    cluster.done.clear();
    (0..20).for_each(|_| cluster.step(first, Event::Tick));
    assert_eq!(cluster.done, [], "not tried again at once");
    cluster.pass(cluster.settings.response_timeout * 2 + 200);
    assert_eq!(cluster.owners(), [third], "then by whoever is alive");
}

#[test]
fn a_node_that_refused_the_owner_before_takes_a_handover_all_the_same() {
    let (mut cluster, [first, second, _]) = three(5_000);
    // A claim of its own that came to nothing, of which the owner never heard.
    let claim = Claim::lowest_above(cluster.epoch(), &member(second)).unwrap();
    let (record, _) = cluster.hosts[second].records[&slot()].promise(&claim).unwrap();
    cluster.hosts[second].records.insert(slot(), record.clone());
    cluster.step(second, Event::RecordChanged(slot(), Some(record)));
    cluster.drain(first, true);
    cluster.pass(300);
    assert_eq!(cluster.owners(), [second]);
}

#[test]
fn a_member_that_is_gone_is_replaced_by_one_that_has_learnt() {
    let mut cluster = Cluster::new(3);
    cluster.settings.placement_grace = 5_000;
    cluster.hosts.clear();
    (0..3).for_each(|_| cluster.add());
    cluster.pass(5_000);
    let [_, _, last] = order(3)[..] else { panic!() };
    cluster.add();
    cluster.hosts[last].is_alive = false;
    cluster.hosts[3].offers = Some(SyncOfferOutcome::Diverged);
    cluster.pass(cluster.settings.placement_grace - 1_000);
    assert!(cluster.members().contains(&name(last)), "a restart moves nothing");
    cluster.pass(5_000);
    assert!(cluster.members().contains(&name(last)), "the new one has not learnt yet");
    let before = cluster.epoch();
    // It caught up, and asks for another offer.
    cluster.hosts[3].offers = None;
    let owner = cluster.owners()[0];
    let learner = cluster.hosts[3].member.clone();
    cluster.step(owner, Event::SyncRequested(learner, slot()));
    cluster.pass(1_000);
    assert!(!cluster.members().contains(&name(last)));
    assert!(cluster.members().contains(&name(3)));
    assert!(cluster.epoch() > before);
    assert_eq!(cluster.owners(), [owner]);
}

#[test]
fn a_slot_that_its_owner_takes_from_itself_stays_published() {
    let mut cluster = Cluster::new(3);
    cluster.pass(5_000);
    let owner = cluster.owners()[0];
    let before = cluster.hosts[owner].brain.owned();
    let claim = match &cluster.hosts[owner].brain.state(slot()).role {
        Role::Owner(leading) => leading.claim.clone(),
        other => panic!("{other:?}"),
    };
    cluster.hosts[owner].brain.step(cluster.now, Event::Drain(true));
    let stopped = cluster.hosts[owner].brain.step(cluster.now, Event::Tick);
    assert!(matches!(stopped[..], [Effect::StopAppends { .. }]), "{stopped:?}");
    let later = cluster.now + cluster.settings.response_timeout;
    let again = cluster.hosts[owner].brain.step(later, Event::Tick);
    assert_eq!(again[0], Effect::StepDown { slot: slot() });
    let brain = &mut cluster.hosts[owner].brain;
    assert!(matches!(brain.owner(slot()), Owner::Nobody(_)));
    assert_eq!(brain.owned(), before, "or the next in order would claim it");
    let higher = Claim::lowest_above(claim.epoch, &member(9)).unwrap();
    let higher = Claim::lowest_above(higher.epoch, &member(9)).unwrap();
    let refused = SlotRecord { promised: Some(higher), ..brain.record(slot()).clone() };
    brain.step(later, Event::RecordChanged(slot(), Some(refused)));
    assert_eq!(brain.owned(), [], "not once it gave up");
}

#[test]
fn a_node_whose_disk_takes_no_writes_owns_nothing() {
    let (mut cluster, [first, second, third]) = three(5_000);
    cluster.done.clear();
    cluster.writable(first, false);
    assert_eq!(cluster.done, [(name(first), Effect::StepDown { slot: slot() })]);
    cluster.pass(500);
    assert_eq!(cluster.owners(), [second]);
    // It is not even asked to take what nobody else could.
    cluster.hosts[third].is_alive = false;
    cluster.drain(second, true);
    cluster.pass(10_000);
    assert_eq!(cluster.owners(), [second], "whoever drains keeps what nobody else can take");
    let claim = Claim::lowest_above(cluster.epoch(), &member(second)).unwrap();
    let brain = &mut cluster.hosts[first].brain;
    let declined = Effect::DeclineHandover { slot: slot(), claim: claim.clone() };
    assert_eq!(brain.step(cluster.now, Event::HandoverReceived(slot(), claim)), [declined]);
    cluster.drain(second, false);
    cluster.hosts[third].is_alive = true;
    cluster.writable(first, true);
    cluster.pass(cluster.settings.stable_after - 200);
    assert_eq!(cluster.owners(), [second], "a disk that fills again and again takes no slots along");
    cluster.pass(1_000);
    assert_eq!(cluster.owners(), [first]);
}

#[test]
fn an_owner_without_enough_members_in_step_takes_no_appends_until_there_are() {
    let (mut cluster, [first, second, third]) = three(5_000);
    cluster.hosts[third].is_alive = false;
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), [first], "two copies are enough");
    let epoch = cluster.epoch();
    let halted = |cluster: &Cluster| cluster.hosts[first].brain.halted();
    assert_eq!(halted(&cluster), []);
    cluster.hosts[second].is_alive = false;
    cluster.pass(cluster.settings.quorum_loss_grace - 500);
    assert_eq!(cluster.owners(), [first], "one may be back in a moment");
    assert_eq!(halted(&cluster), [slot()], "appends wait meanwhile");
    cluster.hosts[second].is_alive = true;
    cluster.pass(1_000);
    assert_eq!((cluster.owners(), cluster.epoch()), (vec![first], epoch), "it goes on");
    assert_eq!(halted(&cluster), []);

    cluster.hosts[second].is_alive = false;
    cluster.pass(1_000);
    cluster.hosts[second].is_alive = true;
    cluster.hosts[second].offers = Some(SyncOfferOutcome::Diverged);
    cluster.pass(cluster.settings.quorum_loss_grace + 60_000);
    assert_eq!(cluster.owners(), [first], "one that catches up will count");

    cluster.hosts[second].offers = Some(SyncOfferOutcome::Unavailable);
    cluster.hosts[second].is_alive = false;
    cluster.done.clear();
    cluster.pass(100);
    cluster.hosts[second].is_alive = true;
    cluster.pass(cluster.settings.quorum_loss_grace + 60_000);
    cluster.done.retain(|(_, effect)| !matches!(effect, Effect::OfferSync { .. }));
    assert_eq!(cluster.done, [(name(first), Effect::StepDown { slot: slot() })], "those who wait are told");
    let brain = &cluster.hosts[first].brain;
    let why = brain.owner(slot());
    assert!(
        matches!(why, Owner::Nobody(Some(TakeoverFailure::NoQuorum { responded: 1, members: 3, needed: 2 }))),
        "{why:?}"
    );
    assert_eq!(brain.owned(), [(slot(), epoch)], "nobody is to claim it who lacks what was appended last");
    assert_eq!(brain.halted(), [slot()]);
    cluster.hosts[second].offers = None;
    cluster.pass(1_000);
    assert_eq!(cluster.owners(), [first]);
    assert!(cluster.epoch() > epoch, "what followed a refusal is refused");
}

#[test]
fn an_owner_steps_down_when_it_hears_of_a_higher_claim() {
    let higher = |cluster: &Cluster, by: usize| Claim::lowest_above(cluster.epoch(), &member(by)).unwrap();
    let refuse: [fn(Claim, Member, Claim) -> Event; 3] = [
        |_, _, higher| {
            Event::RecordChanged(slot(), Some(SlotRecord { promised: Some(higher), ..SlotRecord::default() }))
        },
        |claim, from, higher| Event::SyncOfferAnswered {
            from,
            slot: slot(),
            claim,
            outcome: SyncOfferOutcome::Refused(higher),
        },
        |claim, from, higher| Event::Response {
            from,
            slot: slot(),
            claim,
            answer: MemberResponse::Refused(higher),
        },
    ];
    for refuse in refuse {
        let (mut cluster, [first, second, _]) = three(200);
        let claim = Claim::new(cluster.epoch(), &member(first));
        let (higher, from) = (higher(&cluster, second), cluster.hosts[second].member.clone());
        let effects = cluster.hosts[first].brain.step(cluster.now, refuse(claim, from, higher));
        assert_eq!(effects, [Effect::StepDown { slot: slot() }]);
    }
}

#[test]
fn a_candidate_whose_members_answer_slowly_waits_longer_each_time() {
    let (mut cluster, [first, second, third]) = three(200);
    cluster.hosts[first].is_alive = false;
    // Nothing answers: how long does it wait, attempt for attempt?
    cluster.hosts[third].is_alive = true;
    cluster.gossip();
    let (mut waits, mut began, mut now) = (Vec::new(), None, cluster.now);
    while waits.len() < 6 {
        now += 10;
        for effect in cluster.hosts[second].brain.step(now, Event::Tick) {
            match effect {
                Effect::SendRequest { request: MemberRequest::Promise, .. } => began = began.or(Some(now)),
                Effect::StepDown { .. } => waits.push(now - began.take().unwrap()),
                _ => {}
            }
        }
    }
    let base = cluster.settings.response_timeout;
    assert_eq!(waits, [base, 2 * base, 4 * base, 4 * base, 4 * base, 4 * base]);
}

#[test]
fn an_attempt_that_fails_is_repeated_ever_more_rarely() {
    let (mut cluster, [first, second, third]) = three(200);
    cluster.hosts[first].is_alive = false;
    cluster.hosts[third].is_alive = false;
    cluster.done.clear();
    cluster.pass(60_000);
    let asked =
        cluster.done.iter().filter(|(_, effect)| matches!(effect, Effect::SendRequest { .. })).count() / 3;
    assert!((5..40).contains(&asked), "{asked} attempts in a minute");
    let why = cluster.hosts[second].brain.owner(slot());
    assert!(
        matches!(why, Owner::Nobody(Some(TakeoverFailure::NoQuorum { responded: 1, members: 3, needed: 2 }))),
        "{why:?}"
    );
    cluster.hosts[third].is_alive = true;
    cluster.pass(20_000);
    assert_eq!(cluster.owners(), [second]);
}

#[test]
fn other_slots_are_formed_once_the_cluster_has_an_identity() {
    let cluster = Cluster::new(3);
    let others = [Slot::FIRST, Slot::new(7).unwrap()];
    let seen = |host: &Host| ObservedNode {
        member: host.member.clone(),
        zone: String::new(),
        is_alive: true,
        is_draining: false,
        is_writable: true,
        decommission: None,
        owned: BTreeMap::new(),
    };
    let seen: Vec<ObservedNode> = cluster.hosts.iter().map(seen).collect();
    let asked = |is_identified: bool| {
        let mut asked = BTreeSet::new();
        for host in &cluster.hosts {
            let mut brain = SlotManager::of(others, host.member.clone(), OwnershipSettings::default(), [], 0);
            if is_identified {
                brain.set_identified();
            }
            brain.step(0, Event::NodesObserved(seen.clone()));
            for now in [60_000, 120_000] {
                asked.extend(brain.step(now, Event::Tick).into_iter().filter_map(|effect| match effect {
                    Effect::SendRequest { slot, .. } => Some(slot),
                    _ => None,
                }));
            }
        }
        Vec::from_iter(asked)
    };
    assert_eq!(asked(false), [Slot::FIRST]);
    assert_eq!(asked(true), others);
}

/// How long a tick takes: `cargo test --release -p ledger-core -- --ignored --nocapture a_tick`.
#[test]
#[ignore = "measures"]
fn a_tick_over_all_slots_when_nothing_is_to_be_done() {
    let mut cluster = Cluster::new(3);
    // All slots are one node's: the others are full.
    for index in 0..3 {
        let (member, settings) = (cluster.hosts[index].member.clone(), cluster.settings.clone());
        cluster.hosts[index].brain = SlotManager::new(member, settings, [], cluster.now);
        cluster.hosts[index].brain.set_identified();
        cluster.writable(index, index == 0);
    }
    cluster.pass(5_000);
    let brain = &mut cluster.hosts[0].brain;
    assert_eq!(brain.owned().len(), usize::from(SLOTS));
    for (what, pause) in [("that looks for moves", 1_000), ("between", 0)] {
        let begin = std::time::Instant::now();
        for _ in 0..1000 {
            cluster.now += pause;
            assert_eq!(brain.step(cluster.now, Event::Tick), []);
        }
        println!("a tick {what}: {:?}", begin.elapsed() / 1000);
    }
}

/// Whether readers may be shown the slot at a node.
fn is_shown(cluster: &Cluster, index: usize) -> bool {
    cluster.hosts[index].brain.visible_until(cluster.now, slot()) > cluster.now
}

/// Nodes at which readers may be shown the slot.
fn shown_at(cluster: &Cluster) -> Vec<usize> {
    (0..cluster.hosts.len())
        .filter(|index| cluster.hosts[*index].is_alive && is_shown(cluster, *index))
        .collect()
}

#[test]
fn members_show_a_slot_for_as_long_as_they_hear_its_owner() {
    let (mut cluster, _) = three(5_000);
    for _ in 0..100 {
        cluster.pass(500);
        assert_eq!(shown_at(&cluster), [0, 1, 2]);
    }
}

#[test]
fn a_former_member_shows_nothing_and_counts_nothing() {
    let mut cluster = Cluster::new(3);
    cluster.pass(5_000);
    let before: Vec<NodeId> = cluster.members();
    while cluster.members() == before {
        cluster.add();
        cluster.pass(20_000);
    }
    let members = cluster.members();
    for index in 0..cluster.hosts.len() {
        let is_member = members.contains(&name(index));
        assert_eq!(
            (is_shown(&cluster, index), cluster.hosts[index].brain.is_member(slot())),
            (is_member, is_member)
        );
    }
}

#[test]
fn a_former_member_that_was_not_told_finds_out_from_the_owner() {
    let mut cluster = Cluster::new(3);
    cluster.pass(5_000);
    let before = cluster.members();
    let leaves = order(8).into_iter().rev().find(|index| *index < 3).unwrap();
    // It hears of nothing while the slot moves: neither of the move nor that its lease is not renewed.
    cluster.hosts[leaves].is_alive = false;
    while cluster.members() == before {
        cluster.add();
        cluster.pass(20_000);
        assert!(cluster.hosts.len() < 9, "the slot has to move");
    }
    assert!(!cluster.members().contains(&name(leaves)), "it is the one that is replaced: it is away");
    assert!(cluster.hosts[leaves].brain.is_member(slot()), "it does not know");
    cluster.hosts[leaves].is_alive = true;
    let clock = cluster.now;
    cluster.pass(3_000);
    assert!(!cluster.hosts[leaves].brain.is_member(slot()), "it asked within {} ms", cluster.now - clock);
    assert!(!is_shown(&cluster, leaves));
}

#[test]
fn a_replica_and_an_owner_that_are_cut_off_show_nothing_after_a_while() {
    let (mut cluster, [first, second, third]) = three(5_000);
    let bound = cluster.settings.max_staleness.unwrap();
    for alone in [first, second] {
        for index in [first, second, third] {
            cluster.hosts[index].is_alive = index == alone;
        }
        cluster.pass(bound / 2);
        assert_eq!(shown_at(&cluster), [alone], "what it has is not too old yet");
        cluster.pass(bound);
        assert_eq!(shown_at(&cluster), [], "an owner in particular cannot know that it still is one");
        for index in [first, second, third] {
            cluster.hosts[index].is_alive = true;
        }
        cluster.pass(30_000);
        assert_eq!(shown_at(&cluster), [0, 1, 2]);
    }
}

#[test]
fn members_without_an_owner_go_on_while_a_majority_knows_of_none() {
    let (mut cluster, [first, second, third]) = three(5_000);
    for index in [first, second, third] {
        cluster.writable(index, false);
    }
    cluster.pass(60_000);
    assert_eq!(cluster.owners(), []);
    assert_eq!(shown_at(&cluster), [0, 1, 2], "full disks can be read");
    cluster.hosts[first].is_alive = false;
    cluster.pass(60_000);
    assert_eq!(shown_at(&cluster).len(), 2);
    cluster.hosts[second].is_alive = false;
    cluster.pass(60_000);
    assert_eq!(shown_at(&cluster), [], "one of three may have missed anything");
}

#[test]
fn without_a_bound_a_member_shows_what_it_has_however_old_it_is() {
    let mut cluster = Cluster::new(0);
    cluster.settings = OwnershipSettings {
        first_nodes: (0..3).map(name).collect(),
        settle_time: 0,
        max_staleness: None,
        ..OwnershipSettings::default()
    };
    (0..3).for_each(|_| cluster.add());
    cluster.pass(5_000);
    let [first, second, third] = order(3).try_into().unwrap();
    cluster.hosts[first].is_alive = false;
    cluster.hosts[second].is_alive = false;
    cluster.pass(600_000);
    assert!(is_shown(&cluster, third));
}
