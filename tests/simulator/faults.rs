//! Injects faults, and undoes them.

use super::{
    client::Client,
    gossip::Published,
    message::Message,
    prelude::*,
    run::{Stage, name_of},
};

/// Injects a fault at a node, or at all, for so many microseconds. Returns false if it is impossible now.
type Inject = fn(&mut World, Index, u64) -> bool;

/// Faults and actions of operators: the name, a bound of how often a run's plan lists it, and what it does.
pub static FAULTS: [(&str, u64, Inject); 21] = [
    ("crashes", 4, |world, node, a_while| {
        world.crash(node);
        world.start_after(a_while, node)
    }),
    ("crashes of all nodes at once", 2, |world, _, _| {
        for node in world.running() {
            world.crash(node);
            let after = world.random.between(1_000, 2_000_000);
            world.start_after(after, node);
        }
        true
    }),
    ("wiped disks", 4, |world, node, a_while| {
        world.can_lose(node) && {
            world.lose_disk(node);
            world.start_after(a_while, node)
        }
    }),
    ("partitions", 4, |world, _, a_while| world.partition(false, a_while)),
    ("one-way partitions", 3, |world, _, a_while| world.partition(true, a_while)),
    ("cut links", 3, |world, node, a_while| {
        let other = world.random.index(world.hosts.len());
        world.network.cut[node][other] = node != other;
        world.end_after(a_while, |world| world.network.heal())
    }),
    ("slow disks", 3, |world, node, a_while| {
        world.hosts[node].slow_until = world.now + a_while;
        true
    }),
    ("full disks", 3, |world, node, a_while| {
        world.fill(node, true);
        world.end_after(a_while, move |world| world.fill(node, false))
    }),
    ("disks whose writes fail", 3, |world, node, a_while| {
        world.hosts[node].disk_mut().fails = true;
        world.end_after(a_while, move |world| world.hosts[node].disk_mut().fails = false)
    }),
    ("clients that do not read", 3, |world, _, a_while| {
        let client = world.random.index(world.clients.len());
        let is_reader = world.clients[client].acknowledged().is_none();
        if is_reader {
            world.reads_from.insert(client, world.now + 4 * a_while);
        }
        is_reader
    }),
    ("callers that give up", 3, |world, _, _| {
        let writer = world.random.index(world.plan.writers);
        world.act(writer, Client::give_up);
        true
    }),
    ("paused nodes", 3, |world, node, a_while| {
        // Do not extend a pause: what the node was sent meanwhile must keep its order.
        let is_awake = world.hosts[node].paused_until <= world.now;
        if is_awake {
            world.hosts[node].paused_until = world.now + a_while;
        }
        is_awake
    }),
    ("clocks that leap", 3, |world, node, _| {
        world.hosts[node].clock.0 += world.random.between(10, 60_000);
        true
    }),
    ("clocks that stand still", 3, |world, node, a_while| {
        world.set_clock_running(node, false);
        world.end_after(a_while, move |world| world.set_clock_running(node, true))
    }),
    ("broken streams", 3, |world, _, _| {
        let streams: Vec<u64> = world.network.streams.keys().copied().collect();
        let stream = world.random.pick(&streams);
        stream.is_some_and(|stream| world.break_stream(stream, 1_000_000))
    }),
    ("drains", 3, |world, node, a_while| {
        world.with(node, |node| node.drain(true));
        world.end_after(a_while, move |world| world.end_drain(node))
    }),
    ("nodes added", 3, |world, _, _| {
        let is_possible = world.present().len() + 3 < world.plan.max_nodes && world.may_add();
        if is_possible {
            let added = world.add_host();
            world.start(added);
        }
        is_possible
    }),
    ("nodes removed for good", 3, |world, node, a_while| {
        world.has_spare_nodes() && world.may_add() && {
            world.with(node, |node| node.drain(true));
            world.end_after(a_while + 2_000_000, move |world| world.remove(node))
        }
    }),
    ("damaged contexts", 3, |world, node, _| world.damage(node)),
    ("meetings with another cluster", 3, |world, node, _| world.meet(node)),
    ("nodes that leave for good", 3, |world, node, _| world.decommission(node)),
];

/// Number of the first node of another cluster.
const ELSEWHERE: Index = 1000;

impl World {
    /// Injects a fault, at any time or in the middle of a takeover.
    pub(super) fn inject(&mut self) {
        if self.stage != Stage::Faults {
            return;
        }
        let Some(fault) = self.random.pick(&self.plan.faults) else { return };
        let Some(node) = self.random.pick(&self.running()) else { return };
        let a_while = self.random.between(1_000, 4_000_000);
        let (name, _, inject) = FAULTS[fault];
        self.note(|| format!("{name}: n{node}, or all, for {a_while} µs"));
        if inject(self, node, a_while) {
            self.counts.add_fault(fault);
        }
    }

    pub(super) fn inject_again_and_again(&mut self) {
        self.inject();
        if self.stage == Stage::Faults {
            let again = self.random.between(1, self.plan.fault_every * 1000);
            self.after(again, Self::inject_again_and_again);
        }
    }

    fn running(&self) -> Vec<Index> {
        (0..self.hosts.len()).filter(|index| self.hosts[*index].node.is_some()).collect()
    }

    fn may_add(&self) -> bool {
        self.hosts.len() < self.plan.max_nodes
    }

    fn has_spare_nodes(&self) -> bool {
        self.present().len() > self.plan.least_nodes()
    }

    fn start_after(&mut self, micros: u64, node: Index) -> bool {
        self.end_after(micros, move |world| world.start(node))
    }

    /// Ends a fault after so many microseconds. Returns true: the fault happened.
    fn end_after(&mut self, micros: u64, end: impl FnOnce(&mut Self) + 'static) -> bool {
        self.after(micros, end);
        true
    }

    fn partition(&mut self, is_one_way: bool, a_while: u64) -> bool {
        self.network.partition(self.hosts.len(), is_one_way, &mut self.random);
        self.end_after(a_while, |world| world.network.heal())
    }

    /// Makes a disk refuse writes, or accept them again.
    pub(super) fn fill(&mut self, index: Index, is_full: bool) {
        self.hosts[index].disk_mut().is_full = is_full;
    }

    pub(super) fn set_clock_running(&mut self, index: Index, is_running: bool) {
        let (clock, host) = (self.clock(index), &mut self.hosts[index]);
        if host.clock_runs && is_running {
            return;
        }
        self.clock_stood_still = Some(self.now);
        (host.clock, host.clock_runs) = ((clock, self.now), is_running);
    }

    fn end_drain(&mut self, index: Index) {
        let is_leaving = self.hosts[index].leaving.is_some();
        self.with(index, |node| node.drain(is_leaving));
    }

    /// Switches a drained node off for good.
    fn remove(&mut self, index: Index) {
        let is_gone = self.hosts[index].is_gone;
        if self.stage == Stage::Faults && self.has_spare_nodes() && !is_gone && self.can_lose(index) {
            self.lose_disk(index);
            self.hosts[index].is_gone = true;
            self.note(|| format!("n{index} is gone for good"));
        } else {
            self.end_drain(index);
        }
    }

    /// A node of another cluster with the same name and key sends a node its view: who is there, and that they own
    /// all slots in the highest epochs. A node that belongs to no cluster yet would join that one, which is allowed.
    fn meet(&mut self, index: Index) -> bool {
        let Some(node) = &self.hosts[index].node else { return false };
        let store = &node.disk.now;
        if store.cluster.is_none() && store.records.values().all(|record| record.placement.is_none()) {
            return false;
        }
        let said_by = StorageId([0xee; 16]);
        let member = |at: usize| Member { node: name_of(ELSEWHERE + at), storage: said_by };
        let epoch = Epoch::new(1 << 19, 0xeee);
        let said = |at: usize| Published {
            index: ELSEWHERE + at,
            member: member(at),
            version: (1, self.now),
            is_draining: false,
            is_writable: true,
            leaving: None,
            owned: self.config.contexts.slots.iter().map(|slot| (*slot, epoch)).collect(),
        };
        let all = (0..3).map(|at| Rc::new(said(at))).collect();
        let cluster = ReplicaSet::new((0..3).map(member)).ok().map(|first| ClusterId::of(&first));
        self.with(index, |node| node.message(ELSEWHERE, Message::Gossip { cluster, said_by, all }));
        if self.hosts[index].node.as_ref().is_some_and(|node| node.hears_from(ELSEWHERE)) {
            self.violate(format!("node {index} takes in what another cluster says"));
        }
        true
    }

    /// Damages what a running node's disk holds of a context, as if that part of the disk were replaced. It happens to
    /// one node after the other as long as a wiped disk could happen, too.
    fn damage(&mut self, index: Index) -> bool {
        let kind = self.random.below(4);
        let Some(node) = &self.hosts[index].node else { return false };
        let disk = &node.disk;
        // With a smaller quorum, one disk may have the only copy.
        let may_be_alone = !self.plan.is_strict() || self.plan.other_copies > 0;
        if may_be_alone || (kind == 0 && disk.written != disk.synced) {
            return false;
        }
        let may_be = |context: &Context| {
            let is_free = kind != 0 || !node.waits(*context);
            disk.now.histories[*context].size() > 0 && is_free && !disk.now.damaged.contains_key(context)
        };
        let contexts: Vec<Context> = (0..self.plan.contexts).filter(may_be).collect();
        let Some(context) = self.random.pick(&contexts) else { return false };
        if !self.can_lose(index) {
            return false;
        }
        let slot = self.config.contexts.slot(context);
        self.hosts[index].bury();
        let Some(node) = &mut self.hosts[index].node else { return false };
        match kind {
            0 => node.damage(context, Damage::Head),
            1 => node.damage(context, Damage::Entries(node.disk.now.histories[context].size())),
            2 => node.damage(context, Damage::Tiles),
            _ => node.disk.damage_record(slot),
        }
        self.last_loss = self.now;
        self.note(|| format!("context {context}, or its slot's record, is damaged at n{index}: {kind}"));
        true
    }
}
