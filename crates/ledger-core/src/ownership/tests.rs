//! Many random runs of one slot: claims, appends, lost, late and doubled messages, crashes. After every step nothing
//! that was acknowledged may be gone from whoever owns the slot.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::{
    Epoch,
    node::{Member, NodeId, ReplicaSet, StorageId},
};

/// What is broken on purpose, to see that the test would notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// Replicas promise whatever they are asked.
    PromiseCheck,
    /// Replicas take appends of epochs they promised away.
    StaleAppends,
    /// A replica counts before it accepted the epoch.
    CountsAnybody,
    /// The claimant keeps its own history instead of the best.
    NoCatchUp,
    /// First members may be replaced by other first members.
    FirstMembers,
}

/// An entry: the epoch it was written in, and a number of its own.
type Entry = (Epoch, u64);

#[derive(Debug, Clone)]
enum Message {
    Ask(Claim),
    Promised(Claim, Promise, Vec<Entry>),
    Refused(Claim, Claim),
    Accept(Claim, ReplicaSet, bool, Vec<Entry>),
    Accepted(Claim, usize),
    OtherMembers(Claim, Placement),
    Confirm(Claim),
    Confirmed(Claim),
    Append(Claim, Vec<Entry>),
    Holds(Claim, usize),
}

struct Owner {
    takeover: Takeover,
    histories: BTreeMap<Member, Vec<Entry>>,
    copies: Option<MatchIndexes>,
}

struct Replica {
    // On disk.
    record: SlotRecord,
    log: Vec<Entry>,
    forks: Vec<Vec<Entry>>,
    // In memory.
    owner: Option<Owner>,
}

struct Simulation {
    random: u64,
    broken: Broken,
    members: Vec<Member>,
    replicas: Vec<Replica>,
    network: VecDeque<(usize, usize, Message)>,
    acknowledged: Vec<Entry>,
    /// How much was acknowledged in each epoch and before.
    by_epoch: BTreeMap<Epoch, usize>,
    next: u64,
    owned: BTreeSet<Epoch>,
    firsts: Vec<ReplicaSet>,
}

const COPIES: usize = 2;

impl Simulation {
    fn new(seed: u64, broken: Broken) -> Self {
        let mut simulation = Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            broken,
            members: Vec::new(),
            replicas: Vec::new(),
            network: VecDeque::new(),
            acknowledged: Vec::new(),
            by_epoch: BTreeMap::new(),
            next: 0,
            owned: BTreeSet::new(),
            firsts: Vec::new(),
        };
        let nodes = 3 + simulation.below(3);
        simulation.members = (0..nodes)
            .map(|n| Member {
                node: NodeId::new(format!("n{n}")).unwrap(),
                storage: StorageId([n as u8; 16]),
            })
            .collect();
        simulation.replicas = (0..nodes)
            .map(|_| Replica {
                record: SlotRecord::default(),
                log: Vec::new(),
                forks: Vec::new(),
                owner: None,
            })
            .collect();
        // Nodes may see different nodes when the slot is first claimed.
        simulation.firsts = (0..nodes)
            .map(|me| {
                let mut set: Vec<_> = simulation.members[..3].to_vec();
                if nodes > 3 && simulation.below(2) == 0 {
                    let mut all: Vec<_> = (0..nodes).filter(|other| *other != me).collect();
                    let second = all.remove(simulation.below(all.len()));
                    let third = all.remove(simulation.below(all.len()));
                    set = [me, second, third].map(|n| simulation.members[n].clone()).to_vec();
                }
                ReplicaSet::new(set).unwrap()
            })
            .collect();
        simulation
    }

    /// xorshift64*.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn index(&self, member: &Member) -> usize {
        self.members.iter().position(|other| other == member).unwrap()
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            let node = self.below(self.members.len());
            match self.below(40) {
                0 => self.claim(node),
                1 if self.below(3) == 0 => self.replicas[node].owner = None,
                2..=5 => self.append(node),
                6..=7 => self.resend(node),
                _ => self.deliver(),
            }
        }
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = self.below(self.network.len());
        let Some((from, to, message)) = self.network.remove(at) else { return };
        match self.below(12) {
            // Lost.
            0 => return,
            // Doubled.
            1 => self.network.push_back((from, to, message.clone())),
            _ => {}
        }
        self.receive(from, to, message);
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.network.push_back((from, to, message));
        if self.network.len() > 200 {
            self.network.pop_front();
        }
    }

    fn claim(&mut self, node: usize) {
        let wanted = self.firsts[node].clone();
        let record = &self.replicas[node].record;
        let me = self.members[node].clone();
        if !wanted.contains(&me) {
            return;
        }
        let Some(claim) = Claim::lowest_above(record.highest_epoch(), &me) else { return };
        let (takeover, effects) =
            Takeover::begin(me, claim, COPIES, record.placement.clone(), wanted, (&BTreeSet::new(), None));
        self.replicas[node].owner = Some(Owner { takeover, histories: BTreeMap::new(), copies: None });
        self.perform(node, effects);
    }

    fn perform(&mut self, node: usize, effects: Vec<Effect>) {
        for effect in effects {
            let Some(owner) = &self.replicas[node].owner else { return };
            let claim = owner.takeover.claim().clone();
            match effect {
                Effect::RequestPromise { member: of } => {
                    self.send(node, self.index(&of), Message::Ask(claim));
                }
                Effect::CatchUp { from } => {
                    let best = from
                        .iter()
                        .filter_map(|member| owner.histories.get(member))
                        .max_by_key(|log| log.len());
                    let best = best.cloned().unwrap_or_default();
                    if self.broken != Broken::NoCatchUp {
                        self.replicas[node].replace(best);
                    }
                    self.event(node, &claim, Event::CaughtUp);
                }
                Effect::Accept { member: by, members, is_confirmed, .. } => {
                    let log = self.replicas[node].log.clone();
                    self.send(node, self.index(&by), Message::Accept(claim, members, is_confirmed, log));
                }
                Effect::Confirm { member: by } => self.send(node, self.index(&by), Message::Confirm(claim)),
                Effect::BecomeOwner => self.own(node, &claim),
                Effect::Abandon(_) => self.replicas[node].owner = None,
            }
        }
    }

    fn own(&mut self, node: usize, claim: &Claim) {
        assert!(self.owned.insert(claim.epoch), "two owners in epoch {}", claim.epoch);
        let log = &self.replicas[node].log;
        // An owner that somebody took over from meanwhile does not know what that one acknowledged.
        let before = self.by_epoch.range(..claim.epoch).map(|(_, count)| *count).max().unwrap_or_default();
        assert!(
            log.starts_with(&self.acknowledged[..before]),
            "owner {node} lacks something that was acknowledged"
        );
        let Some(owner) = &mut self.replicas[node].owner else { return };
        owner.copies = Some(MatchIndexes::new(owner.takeover.members().clone(), COPIES));
    }

    fn event(&mut self, node: usize, claim: &Claim, event: Event) {
        let Some(owner) = &mut self.replicas[node].owner else { return };
        if owner.takeover.claim() == claim {
            let effects = owner.takeover.step(event);
            self.perform(node, effects);
        }
    }

    fn append(&mut self, node: usize) {
        let Some(owner) = &self.replicas[node].owner else { return };
        if owner.takeover.phase() != Phase::Owning {
            return;
        }
        let claim = owner.takeover.claim().clone();
        if self.replicas[node].record.check_append(&claim).is_err() && self.broken != Broken::StaleAppends {
            self.replicas[node].owner = None;
            return;
        }
        self.next += 1;
        let entry = (claim.epoch, self.next);
        self.replicas[node].log.push(entry);
        self.resend(node);
        let (me, held) = (self.members[node].clone(), self.replicas[node].log.len());
        self.holds(node, &claim, &me, held);
    }

    fn resend(&mut self, node: usize) {
        let Some(owner) = &self.replicas[node].owner else { return };
        if owner.takeover.phase() != Phase::Owning {
            return;
        }
        let (claim, set) = (owner.takeover.claim().clone(), owner.takeover.members().clone());
        let log = self.replicas[node].log.clone();
        for member in set.members() {
            let to = self.index(member);
            if to != node {
                // Members that were away are brought in step first.
                let accept = Message::Accept(claim.clone(), set.clone(), true, log.clone());
                self.send(node, to, accept);
                self.send(node, to, Message::Append(claim.clone(), log.clone()));
            }
        }
    }

    fn holds(&mut self, node: usize, claim: &Claim, member: &Member, held: usize) {
        let Some(owner) = &mut self.replicas[node].owner else { return };
        if owner.takeover.claim() != claim {
            return;
        }
        let counts = self.broken == Broken::CountsAnybody || owner.takeover.accepted().contains(member);
        let Some(copies) = owner.copies.as_mut().filter(|_| counts) else { return };
        copies.advance(member, held as u64);
        let stable = copies.commit_index() as usize;
        let stable = &self.replicas[node].log[..stable.min(self.replicas[node].log.len())];
        if stable.len() > self.acknowledged.len() {
            assert!(stable.starts_with(&self.acknowledged), "two histories were acknowledged");
            self.acknowledged = stable.to_vec();
            self.by_epoch.insert(claim.epoch, stable.len());
        } else {
            assert!(self.acknowledged.starts_with(stable), "two histories were acknowledged");
        }
    }

    fn receive(&mut self, from: usize, to: usize, message: Message) {
        let (sender, broken) = (self.members[from].clone(), self.broken);
        let replica = &mut self.replicas[to];
        match message {
            Message::Ask(claim) => {
                let mut record = replica.record.clone();
                if broken == Broken::PromiseCheck {
                    record.promised = None;
                }
                match record.promise(&claim) {
                    Ok((record, promise)) => {
                        replica.record = record;
                        let log = replica.log.clone();
                        // Whoever promises a slot away no longer owns it.
                        let own = replica.owner.as_ref().map(|owner| owner.takeover.claim().clone());
                        if let Some(own) = own.filter(|own| *own != claim && broken == Broken::Nothing) {
                            self.event(to, &own, Event::HigherClaim { promised: claim.clone() });
                        }
                        self.send(to, from, Message::Promised(claim, promise, log));
                    }
                    Err(HigherClaimPromised { promised }) => {
                        self.send(to, from, Message::Refused(claim, promised));
                    }
                }
            }
            Message::Promised(claim, promise, log) => {
                if let Some(owner) = replica.owner.as_mut().filter(|owner| *owner.takeover.claim() == claim) {
                    owner.histories.insert(sender.clone(), log);
                }
                self.event(to, &claim, Event::Promised { from: sender, promise });
            }
            Message::Refused(claim, promised) => self.event(to, &claim, Event::HigherClaim { promised }),
            Message::OtherMembers(claim, placement) => self.event(to, &claim, Event::OtherMembers(placement)),
            Message::Accept(claim, set, is_confirmed, log) => {
                let mut record = replica.record.clone();
                if broken == Broken::FirstMembers {
                    record.placement = None;
                }
                match record.accept(&claim, &set, is_confirmed, None) {
                    Ok(record) => {
                        // What comes late must not undo what was taken since.
                        if replica.record.accepted != claim.epoch {
                            replica.replace(log);
                        }
                        replica.record = record;
                        let held = replica.log.len();
                        self.send(to, from, Message::Accepted(claim, held));
                    }
                    Err(ReplicaRefusal::OtherMembers(placement)) => {
                        self.send(to, from, Message::OtherMembers(claim, placement));
                    }
                    Err(ReplicaRefusal::HigherClaimPromised(HigherClaimPromised { promised })) => {
                        self.send(to, from, Message::Refused(claim, promised));
                    }
                    Err(ReplicaRefusal::NotAccepted { .. } | ReplicaRefusal::AlreadyFormed) => {}
                }
            }
            Message::Accepted(claim, held) => {
                self.event(to, &claim, Event::Accepted { from: sender.clone() });
                self.holds(to, &claim, &sender, held);
            }
            Message::Confirm(claim) => {
                if let Ok(record) = replica.record.confirm(&claim) {
                    replica.record = record;
                    self.send(to, from, Message::Confirmed(claim));
                }
            }
            Message::Confirmed(claim) => self.event(to, &claim, Event::Confirmed { from: sender }),
            Message::Append(claim, log) => {
                let takes = match broken {
                    Broken::StaleAppends => replica.record.accepted == claim.epoch,
                    Broken::CountsAnybody => {
                        replica.record.promised.as_ref().is_none_or(|known| *known <= claim)
                    }
                    _ => replica.record.check_append(&claim).is_ok(),
                };
                if !takes {
                    if let Some(promised) = replica.record.promised.clone() {
                        self.send(to, from, Message::Refused(claim, promised));
                    }
                    return;
                }
                if log.starts_with(&replica.log) {
                    replica.log = log;
                } else if broken == Broken::Nothing {
                    assert!(
                        replica.log.starts_with(&log),
                        "a replica that accepted an epoch differs from its owner"
                    );
                }
                let held = replica.log.len();
                self.send(to, from, Message::Holds(claim, held));
            }
            Message::Holds(claim, held) => self.holds(to, &claim, &sender, held),
        }
    }
}

impl Replica {
    /// Takes a history in place of its own, and keeps what was different as a fork.
    fn replace(&mut self, log: Vec<Entry>) {
        let common = self.log.iter().zip(&log).take_while(|(ours, theirs)| ours == theirs).count();
        if common < self.log.len() {
            self.forks.push(self.log.split_off(common));
        }
        self.log = log;
    }
}

fn run(seed: u64, broken: Broken) -> (usize, usize) {
    let mut simulation = Simulation::new(seed, broken);
    simulation.run(4000);
    (simulation.owned.len(), simulation.acknowledged.len())
}

#[test]
fn what_was_acknowledged_is_in_the_history_of_every_later_owner() {
    let (mut takeovers, mut acknowledged) = (0, 0);
    for seed in 0..3000 {
        let run = std::panic::catch_unwind(|| run(seed, Broken::Nothing));
        let (owned, acked) = run.unwrap_or_else(|_| panic!("seed {seed} violates an invariant"));
        takeovers += owned;
        acknowledged += acked;
    }
    // The runs must be worth something.
    assert!(takeovers > 3000 && acknowledged > 30_000, "{takeovers} takeovers, {acknowledged} acknowledged");
}

#[test]
fn a_run_is_decided_by_its_seed() {
    for seed in 0..5 {
        assert_eq!(run(seed, Broken::Nothing), run(seed, Broken::Nothing));
    }
}

#[test]
fn each_broken_rule_is_noticed() {
    let noticed = |broken| (0..6000).find(|seed| std::panic::catch_unwind(|| run(*seed, broken)).is_err());
    let found: Vec<_> = [
        Broken::PromiseCheck,
        Broken::StaleAppends,
        Broken::CountsAnybody,
        Broken::NoCatchUp,
        Broken::FirstMembers,
    ]
    .into_iter()
    .map(|broken| (broken, noticed(broken)))
    .collect();
    for (broken, seed) in found {
        assert!(seed.is_some(), "no seed notices {broken:?}");
    }
}

#[test]
fn a_node_that_lost_its_disk_does_not_claim_an_epoch_again() {
    let node = NodeId::new("n").unwrap();
    let claim = |storage: u8| {
        Claim::lowest_above(
            Epoch::new(7, 1),
            &Member { node: node.clone(), storage: StorageId([storage; 16]) },
        )
    };
    let (before, after) = (claim(1).unwrap(), claim(2).unwrap());
    assert_ne!(before.epoch, after.epoch);
    assert_eq!((before.epoch.counter(), after.epoch.counter()), (8, 8));
    assert_eq!(claim(1).unwrap(), before, "what was claimed and forgotten may be claimed again");
}

#[test]
fn two_data_directories_of_one_name_are_two_claimants_even_where_they_pick_the_same_epoch() {
    let member = |name: &str, storage: u8| Member {
        node: NodeId::new(name).unwrap(),
        storage: StorageId([storage; 16]),
    };
    // The tags in their epochs are the same: of 2^20 there are, some two are.
    let epoch = Epoch::new(7, 5);
    let (old, new) = (member("n", 1), member("n", 2));
    let (first, second) = (Claim::new(epoch, &old), Claim::new(epoch, &new));
    let set = ReplicaSet::new([member("a", 9), new.clone()]).unwrap();
    let (promised, _) = SlotRecord::default().promise(&first).unwrap();
    for (record, claim, rival) in [
        (promised.clone(), &first, &second),
        (promised.accept(&first, &set, true, None).unwrap(), &first, &second),
        (SlotRecord::default().accept(&second, &set, true, None).unwrap(), &second, &first),
    ] {
        let refusal = HigherClaimPromised { promised: claim.clone() };
        assert_eq!(record.promise(rival), Err(refusal.clone()));
        assert_eq!(record.accept(rival, &set, true, None), Err(refusal.clone().into()));
        assert_eq!(record.check_replicate(rival), Err(refusal.clone()));
        assert_eq!(record.check_append(rival), Err(refusal.into()));
        assert!(record.promise(claim).is_ok(), "the same promise again");
    }
    // A takeover of the second ends when it hears that a member promised the epoch to the first.
    let (mut takeover, _) =
        Takeover::begin(new.clone(), second.clone(), 2, None, set.clone(), (&BTreeSet::new(), None));
    let heard = Event::HigherClaim { promised: first.clone() };
    assert_eq!(takeover.step(heard), [Effect::Abandon(TakeoverFailure::HigherClaim(first.clone()))]);

    // A record or message that leaves the directory out may mean either, as older builds wrote them.
    let bare = Claim { storage: None, ..first.clone() };
    let (promised, _) = SlotRecord::default().promise(&bare).unwrap();
    let accepted = promised.accept(&bare, &set, true, None).unwrap();
    assert_eq!((accepted.check_append(&first), accepted.check_append(&bare)), (Ok(()), Ok(())));
    let (known, _) = accepted.promise(&first).unwrap();
    assert!(known.check_append(&second).is_err(), "from then on it is known");
    assert_eq!(bare.clone().completed_by(&old), first);
    assert_eq!(bare.clone().completed_by(&member("other", 1)), bare);
    assert_eq!(second.clone().completed_by(&old), second);
    assert!(first.is_of(&old) && !first.is_of(&new) && bare.is_of(&new) && !bare.is_of(&member("m", 1)));
}

#[test]
fn a_slot_is_owned_only_when_more_than_half_know_its_first_members() {
    let member = |n: u8| Member { node: NodeId::new(format!("n{n}")).unwrap(), storage: StorageId([n; 16]) };
    let members = [member(0), member(1), member(2)];
    let set = ReplicaSet::new(members.clone()).unwrap();
    let claim = Claim::lowest_above(Epoch::default(), &members[0]).unwrap();
    let (mut takeover, _) =
        Takeover::begin(members[0].clone(), claim, 1, None, set, (&BTreeSet::new(), None));
    // One copy is enough for an append, and only the claimant is seen to be alive.
    takeover.step(Event::MembersAlive(BTreeSet::from([members[0].clone()])));
    for from in &members {
        let promise = Promise { accepted: Epoch::default(), placement: None };
        takeover.step(Event::Promised { from: from.clone(), promise });
    }
    takeover.step(Event::CaughtUp);
    let accepted = |from: &Member| Event::Accepted { from: from.clone() };
    let asked: Vec<Effect> = members.iter().flat_map(|from| takeover.step(accepted(from))).collect();
    assert_eq!(asked.len(), 3, "all are asked to note it, once all have accepted: {asked:?}");
    assert_eq!(takeover.step(Event::Confirmed { from: members[0].clone() }), []);
    assert_eq!(takeover.step(Event::Confirmed { from: members[2].clone() }), [Effect::BecomeOwner]);
}

/// Four members; a move from 0, 1, 2 to 0, 2, 3 was cut short, and 1 is the only one that knows of it: 0 lost its disk.
struct CutShort {
    members: Vec<Member>,
    old: ReplicaSet,
    new: ReplicaSet,
    moved: Epoch,
    takeover: Takeover,
}

fn cut_short() -> CutShort {
    let member = |n: u8| Member { node: NodeId::new(format!("n{n}")).unwrap(), storage: StorageId([n; 16]) };
    let members: Vec<Member> = (0..4).map(member).collect();
    let set = |of: [usize; 3]| ReplicaSet::new(of.map(|at| members[at].clone())).unwrap();
    let (old, new, moved) = (set([0, 1, 2]), set([0, 2, 3]), Epoch::new(5, 0));
    let recorded =
        Placement { epoch: moved, members: new.clone(), is_confirmed: true, previous: Some(old.clone()) };
    let claim = Claim::lowest_above(moved, &members[1]).unwrap();
    let (mut takeover, asked) = Takeover::begin(
        members[1].clone(),
        claim,
        2,
        Some(recorded.clone()),
        new.clone(),
        (&BTreeSet::new(), None),
    );
    assert_eq!(asked.len(), 4, "all members of both are asked: {asked:?}");
    let promise = Promise { accepted: moved, placement: Some(recorded) };
    assert_eq!(takeover.step(Event::Promised { from: members[1].clone(), promise }), []);
    CutShort { members, old, new, moved, takeover }
}

#[test]
fn a_member_that_was_to_leave_moves_back_if_only_it_knows() {
    let CutShort { members, old, new, takeover: mut taking, .. } = cut_short();
    let before = Epoch::new(4, 0);
    let promise = |settled: bool| {
        let placement = Placement { epoch: before, members: old.clone(), is_confirmed: true, previous: None };
        Promise { accepted: before, placement: settled.then_some(placement) }
    };
    // It counts in both: of the new ones the lost disk and a single promise are not enough.
    assert_eq!(taking.step(Event::Promised { from: members[2].clone(), promise: promise(true) }), []);
    let caught_up = taking.step(Event::Promised { from: members[3].clone(), promise: promise(false) });
    assert_eq!(caught_up, [Effect::CatchUp { from: vec![members[1].clone()] }]);
    let accept = taking.step(Event::CaughtUp);
    assert_eq!(accept.len(), 4);
    for effect in accept {
        let Effect::Accept { members: set, is_confirmed, previous, .. } = effect else {
            panic!("{effect:?}")
        };
        assert_eq!((set, is_confirmed, previous), (old.clone(), true, Some(new.clone())));
    }
    let accepted = |at: usize| Event::Accepted { from: members[at].clone() };
    assert_eq!(taking.step(accepted(1)), []);
    assert_eq!(taking.step(accepted(2)), [], "of the new ones only one has accepted");
    assert_eq!(taking.step(accepted(3)).len(), 3, "enough of both: the old ones note it");
    assert_eq!(taking.step(Event::Confirmed { from: members[1].clone() }), []);
    assert_eq!(taking.step(Event::Confirmed { from: members[2].clone() }), [Effect::BecomeOwner]);
    assert_eq!(taking.members(), &old);
}

#[test]
fn a_member_that_has_left_does_not_move_back() {
    let CutShort { members, new, moved, takeover: mut taking, .. } = cut_short();
    // The move was settled after all.
    let settled = Placement { epoch: moved, members: new, is_confirmed: true, previous: None };
    let promise = Promise { accepted: moved, placement: Some(settled.clone()) };
    let end = taking.step(Event::Promised { from: members[3].clone(), promise });
    assert_eq!(end, [Effect::Abandon(TakeoverFailure::NotAMember(settled))]);
}
