//! Injects faults, and undoes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use ledger_core::{
    Epoch,
    node::{ClusterId, Member, NodeId, ReplicaSet, StorageId},
    ownership::slot_manager::{DecommissionMode, OwnershipSettings},
    rendezvous,
    slot::Slot,
};

use super::{
    counts::Counted,
    disk::{Damage, Disk, Store},
    faults::Fault,
    gossip::Published,
    message::{Index, Message},
    node::index_of,
    operators::LOOKS_EVERY,
    run::{Host, ScheduledEvent, Stage, World},
};

/// Number of the first node of another cluster.
const ELSEWHERE: Index = 1000;

/// What ends a fault.
#[derive(Debug, Clone, Copy)]
pub enum Undo {
    Start(Index),
    HealNetwork,
    ClockRuns(Index),
    NoDrain(Index),
    Space(Index),
    /// Switches a drained node off for good.
    Gone(Index),
    /// Removes a decommissioned node, once nobody names it any more.
    Left(Index),
    /// An operator declares lost members lost.
    Recover,
}

impl World {
    /// Injects a fault in the middle of a takeover.
    pub(super) fn ambush(&mut self) {
        if self.stage == Stage::Faults
            && let Some(fault) = self.random.pick(&self.plan.faults.clone())
            && self.inflict(fault)
        {
            self.counts.fault(fault);
        }
    }

    pub(super) fn fault(&mut self) {
        if self.stage != Stage::Faults {
            return;
        }
        self.ambush();
        let again = self.random.between(1, self.plan.fault_every * 1000);
        self.after(again, ScheduledEvent::Fault);
    }

    fn running(&self) -> Vec<Index> {
        (0..self.hosts.len()).filter(|index| self.hosts[*index].node.is_some()).collect()
    }

    /// Injects a fault. Returns false if it is impossible now.
    fn inflict(&mut self, fault: Fault) -> bool {
        let running = self.running();
        let Some(node) = self.random.pick(&running) else { return false };
        let a_while = self.random.between(1_000, 4_000_000);
        self.note(|| format!("{fault:?} of n{node}, or of all, for {a_while} µs"));
        match fault {
            Fault::Crash => {
                self.crash(node);
                self.after(a_while, ScheduledEvent::Undo(Undo::Start(node)));
            }
            Fault::CrashAll => {
                for node in running {
                    self.crash(node);
                    let after = self.random.between(1_000, 2_000_000);
                    self.after(after, ScheduledEvent::Undo(Undo::Start(node)));
                }
            }
            Fault::Wipe => {
                if !self.can_lose(node) {
                    return false;
                }
                self.crash(node);
                self.wipe(node);
                self.after(a_while, ScheduledEvent::Undo(Undo::Start(node)));
            }
            Fault::Partition | Fault::OneWayPartition => {
                let one_way = fault == Fault::OneWayPartition;
                self.network.partition(self.hosts.len(), one_way, &mut self.random);
                self.after(a_while, ScheduledEvent::Undo(Undo::HealNetwork));
            }
            Fault::CutLink => {
                let other = self.random.index(self.hosts.len());
                self.network.cut[node][other] = node != other;
                self.after(a_while, ScheduledEvent::Undo(Undo::HealNetwork));
            }
            Fault::FullDisk => {
                self.fill(node, true);
                self.after(a_while, ScheduledEvent::Undo(Undo::Space(node)));
            }
            Fault::SlowDisk => self.hosts[node].slow_until = self.now + a_while,
            Fault::Pause => {
                // Do not extend a pause: what the node was sent meanwhile must keep its order.
                let host = &mut self.hosts[node];
                if host.paused_until > self.now {
                    return false;
                }
                host.paused_until = self.now + a_while;
            }
            Fault::ClockLeap => self.hosts[node].clock.0 += self.random.between(10, 60_000),
            Fault::ClockStop => {
                self.hosts[node].clock = (self.clock(node), self.now);
                self.hosts[node].clock_runs = false;
                self.clock_stood_still = Some(self.now);
                self.after(a_while, ScheduledEvent::Undo(Undo::ClockRuns(node)));
            }
            Fault::Damage => return self.damage(node),
            Fault::BreakStream => {
                let streams: Vec<u64> = self.network.streams.keys().copied().collect();
                let Some(stream) = self.random.pick(&streams) else { return false };
                self.break_stream(stream, 1_000_000);
            }
            Fault::Drain => {
                self.with(node, |node| node.drain(true));
                self.after(a_while, ScheduledEvent::Undo(Undo::NoDrain(node)));
            }
            Fault::AddNode => {
                let there = self.hosts.iter().filter(|host| !host.is_gone).count();
                if self.hosts.len() >= self.plan.max_nodes || there + 3 >= self.plan.max_nodes {
                    return false;
                }
                let added = self.add_host();
                self.start(added);
            }
            Fault::RemoveNode => {
                let there = self.hosts.iter().filter(|host| !host.is_gone).count();
                if there <= self.plan.settings.replication_factor.max(3)
                    || self.hosts.len() >= self.plan.max_nodes
                {
                    return false;
                }
                self.with(node, |node| node.drain(true));
                self.after(a_while + 2_000_000, ScheduledEvent::Undo(Undo::Gone(node)));
            }
            Fault::OtherCluster => return self.meet(node),
            Fault::Decommission => {
                let stays = |host: &&Host| !host.is_gone && host.leaving.is_none();
                let stay = self.hosts.iter().filter(stays).count();
                let OwnershipSettings { replication_factor, write_quorum, .. } = self.plan.settings;
                let leaving = match stay.checked_sub(1) {
                    _ if replication_factor == 1 || self.hosts[node].leaving.is_some() => return false,
                    Some(stay) if stay >= replication_factor => DecommissionMode::Replaced,
                    // Not right after a disk was lost either: with so few members all of them are needed.
                    Some(stay) if stay >= write_quorum.max(2) && self.can_lose(node) => {
                        DecommissionMode::AllowFewer
                    }
                    _ => return false,
                };
                (self.hosts[node].leaving, self.hosts[node].unnamed) = (Some(leaving), 0);
                self.with(node, |node| node.leave(Some(leaving)));
                self.after(LOOKS_EVERY, ScheduledEvent::Undo(Undo::Left(node)));
            }
            Fault::LoseMost => return false,
        }
        true
    }

    /// A node of another cluster with the same name and key sends a node its view: who is there, and that they own
    /// all slots in the highest epochs. A node that belongs to no cluster yet would join that one, which is allowed.
    fn meet(&mut self, node: Index) -> bool {
        let names = |at: usize| NodeId::new(format!("n{}", ELSEWHERE + at)).unwrap();
        let member = |at: usize| Member { node: names(at), storage: StorageId([0xee; 16]) };
        let epoch = Epoch::new(1 << 19, 0xeee);
        let owned: BTreeMap<Slot, Epoch> =
            self.config.contexts.slots.iter().map(|slot| (*slot, epoch)).collect();
        let said = |at: usize| {
            Rc::new(Published {
                index: ELSEWHERE + at,
                member: member(at),
                version: (1, self.now),
                is_draining: false,
                is_writable: true,
                leaving: None,
                owned: owned.clone(),
            })
        };
        let all: Vec<Rc<Published>> = (0..3).map(said).collect();
        let cluster = ReplicaSet::new((0..3).map(member)).ok().map(|first| ClusterId::of(&first));
        let belongs = self.hosts[node].node.as_ref().is_some_and(|node| {
            node.disk.now.cluster.is_some()
                || node.disk.now.records.values().any(|record| record.placement.is_some())
        });
        if !belongs {
            return false;
        }
        let message = Message::Gossip { cluster, said_by: StorageId([0xee; 16]), all };
        self.with(node, |node| node.message(ELSEWHERE, message));
        let merged = self.hosts[node].node.as_ref().is_some_and(|node| node.hears_from(ELSEWHERE));
        if merged {
            self.violate(format!("node {node} takes in what another cluster says"));
        }
        true
    }

    /// Damages what a running node's disk holds of a context, as if that part of the disk were replaced. It happens to one
    /// node after the other as long as a wiped disk could happen, too.
    fn damage(&mut self, index: Index) -> bool {
        let kind = self.random.below(4);
        let contexts: Vec<usize> = {
            let Some(node) = &self.hosts[index].node else { return false };
            let disk = &node.disk;
            // With a smaller quorum, one disk may have the only copy.
            if !self.plan.is_strict() || self.plan.other_copies > 0 {
                return false;
            }
            if kind == 0 && disk.written != disk.synced {
                return false;
            }
            let may_be = |context: &usize| {
                let is_free = kind != 0 || !node.waits(*context);
                disk.now.histories[*context].size() > 0 && is_free && !disk.now.damaged.contains_key(context)
            };
            (0..self.plan.contexts).filter(may_be).collect()
        };
        let Some(context) = self.random.pick(&contexts) else { return false };
        if !self.can_lose(index) {
            return false;
        }
        let slot = self.config.contexts.slot(context);
        let host = &mut self.hosts[index];
        let Some(node) = &mut host.node else { return false };
        host.graveyard.push((host.member.clone(), node.disk.durable.clone()));
        let damage = match kind {
            0 => Some(Damage::Head),
            1 => Some(Damage::Entries(node.disk.now.histories[context].size())),
            2 => Some(Damage::Tiles),
            _ => None,
        };
        match damage {
            Some(damage) => node.damage(context, damage),
            None => node.disk.damage_record(slot),
        }
        self.last_loss = self.now;
        self.note(|| format!("context {context}, or its slot's record, is damaged at n{index}: {damage:?}"));
        true
    }

    pub(super) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Start(node) => {
                if !self.hosts[node].is_gone {
                    self.start(node);
                }
            }
            Undo::HealNetwork => self.network.heal(),
            Undo::ClockRuns(node) => {
                let host = &mut self.hosts[node];
                if !host.clock_runs {
                    (host.clock.1, host.clock_runs) = (self.now, true);
                    self.clock_stood_still = Some(self.now);
                }
            }
            Undo::Space(node) => self.fill(node, false),
            Undo::NoDrain(node) => {
                let is_leaving = self.hosts[node].leaving.is_some();
                self.with(node, |node| node.drain(is_leaving));
            }
            Undo::Left(node) => self.leaves(node),
            Undo::Recover => self.recover(),
            Undo::Gone(node) => {
                let there = self.hosts.iter().filter(|host| !host.is_gone).count();
                let is_enough = there > self.plan.settings.replication_factor.max(3);
                if self.stage == Stage::Faults
                    && is_enough
                    && !self.hosts[node].is_gone
                    && self.can_lose(node)
                {
                    self.crash(node);
                    self.wipe(node);
                    self.hosts[node].is_gone = true;
                    self.note(|| format!("n{node} is gone for good"));
                } else {
                    self.undo(Undo::NoDrain(node));
                }
            }
        }
    }

    /// Makes a disk refuse writes, or accept them again.
    pub(super) fn fill(&mut self, index: Index, is_full: bool) {
        let host = &mut self.hosts[index];
        if let Some(disk) = host.node.as_mut().map(|node| &mut node.disk).or(host.disk.as_mut()) {
            disk.is_full = is_full;
        }
    }

    pub(super) fn crash(&mut self, index: Index) {
        let Some(node) = self.hosts[index].node.take() else { return };
        let mut disk = node.disk;
        self.counts.add(Counted::WritesLost, disk.crash(&mut self.random));
        disk.is_syncing = false;
        self.hosts[index].disk = Some(disk);
        self.note(|| format!("n{index} crashes"));
        let streams: Vec<u64> = self
            .network
            .streams
            .iter()
            .filter(|(_, stream)| stream.to == index || stream.from == index)
            .map(|(number, _)| *number)
            .collect();
        for stream in streams {
            if self.network.streams[&stream].from == index {
                self.network.streams.remove(&stream);
            } else {
                self.break_stream(stream, 1_000_000);
            }
        }
    }

    pub(super) fn wipe(&mut self, index: Index) {
        let storage = self.new_storage();
        let contexts = self.plan.contexts;
        let host = &mut self.hosts[index];
        let Some(disk) = host.disk.replace(Disk::new(contexts)) else { return };
        host.graveyard.push((host.member.clone(), disk.durable));
        host.member = Member { storage, ..host.member.clone() };
        host.leaving = None;
        self.last_loss = self.now;
        self.note(|| format!("the disk of n{index} is wiped"));
    }

    /// Returns whether a disk may be lost: no counting set of members, not even one about to count, has lost as many
    /// as it can bear, and losses are far enough apart.
    fn can_lose(&self, index: Index) -> bool {
        if self.owned.len() < self.plan.slots || self.now < self.last_loss + 3_000_000 {
            return false;
        }
        // Leaving members without a replacement are as good as gone.
        let stays = |host: &&Host| {
            !host.is_gone && !is_damaged(host) && host.leaving != Some(DecommissionMode::AllowFewer)
        };
        let here: BTreeSet<&Member> = self.hosts.iter().filter(stays).map(|host| &host.member).collect();
        let lost = &self.hosts[index].member;
        self.sets_that_count().iter().all(|set| {
            let gone =
                set.members().iter().filter(|member| !here.contains(member) && *member != lost).count();
            gone < set.len() - set.members_that_must_know(self.plan.settings.write_quorum, set.len())
        }) && self.remembers(|without| without == index)
            && (self.plan.is_strict() || self.others_know(index))
    }

    /// Returns a node's durable content, whether the node runs or not.
    fn durable(&self, index: Index) -> Option<&Store> {
        let host = &self.hosts[index];
        let disk = host.node.as_ref().map(|node| &node.disk).or(host.disk.as_ref());
        disk.filter(|_| !host.is_gone).map(|disk| &disk.durable)
    }

    /// Returns whether another member of each slot knows the slot's members for certain: no other node would claim
    /// it. With availability first, one node may own a slot alone, with all that is known of it.
    fn others_know(&self, index: Index) -> bool {
        self.owned.iter().all(|(slot, (_, set))| {
            let knows = |other: Index| {
                let placement =
                    self.durable(other).and_then(|store| store.records.get(slot)?.placement.as_ref());
                placement.is_some_and(|known| {
                    known.is_confirmed && known.previous.is_none() && known.members == *set
                })
            };
            let is_member = |other: Index| set.contains(&self.hosts[other].member);
            (0..self.hosts.len()).any(|other| other != index && is_member(other) && knows(other))
        })
    }

    /// Returns whether some node that formed each slot would still remember that the slot was formed. If all of them
    /// lost their disks and were cut off since, they could form it again.
    pub(super) fn remembers(&self, without: impl Fn(Index) -> bool) -> bool {
        let first = || self.hosts.iter().take(self.plan.nodes).map(|host| host.member.node.clone());
        self.config.contexts.slots.iter().all(|slot| {
            let formed = rendezvous::preference_order(*slot, first());
            formed.iter().take(self.plan.settings.replication_factor).any(|node| {
                let index = index_of(node);
                let record = self.durable(index).and_then(|store| store.records.get(slot));
                let knows = record.is_some_and(|record| record.is_formed || record.placement.is_some());
                !without(index) && knows
            })
        })
    }

    /// Returns the members of each slot as its newest owner counts them, and as any node with newer knowledge does.
    fn sets_that_count(&self) -> Vec<ReplicaSet> {
        self.config.contexts.slots.iter().flat_map(|slot| self.sets_of(*slot)).collect()
    }

    /// Does what [`World::sets_that_count`] does, for one slot.
    pub(super) fn sets_of(&self, slot: Slot) -> Vec<ReplicaSet> {
        let owned = self.owned.get(&slot);
        let mut sets: Vec<ReplicaSet> = owned.map(|(_, set)| set.clone()).into_iter().collect();
        for host in &self.hosts {
            let Some(disk) = host.node.as_ref().map(|node| &node.disk).or(host.disk.as_ref()) else {
                continue;
            };
            for store in [&disk.durable, &disk.now] {
                if let Some(placement) = store.records.get(&slot).and_then(|record| record.placement.as_ref())
                    && owned.is_some_and(|(claim, _)| placement.epoch > claim.epoch)
                {
                    sets.push(placement.members.clone());
                    // Until the move is confirmed, the previous members are needed too.
                    sets.extend(placement.previous.clone());
                }
            }
        }
        sets
    }
}

/// Returns whether a disk holds something unreadable: it counts as lost until that is restored.
pub(super) fn is_damaged(host: &Host) -> bool {
    let disk = host.node.as_ref().map(|node| &node.disk).or(host.disk.as_ref());
    disk.is_some_and(|disk| {
        [&disk.now, &disk.durable]
            .into_iter()
            .any(|store| !store.damaged.is_empty() || !store.damaged_records.is_empty())
    })
}
