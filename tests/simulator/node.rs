//! A node: the slot manager, and around it what the shell of a real node does. It knows neither the network nor the
//! other nodes, and leaves all its outputs in `out`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};

use ledger_core::{
    catch_up::SyncSchedule,
    digest::SlotDigest,
    healing::HealSchedule,
    node::{ClusterId, Member, NodeId, ReplicaSet, StorageId},
    ownership::{
        Claim, DeclaredLosses, Placement, SlotManager, SlotRecord,
        slot_manager::{DamagedSlots, DecommissionMode, Event, MemberResponse, Millis},
    },
    replication::{
        Peer,
        replica::{RecordChange, Replica, ReplicaStream},
    },
    slot::Slot,
};

use super::{
    broken::DisabledRule,
    catch_up::{Question, Run},
    disk::{Disk, Write},
    gossip::{Gossip, Published},
    heal::Healing,
    history::Context,
    lane::{Commits, Queued},
    loads::Loading,
    message::{Index, Message, Part, Range},
    node_output::{AfterSync, Config, NodeOutput, Note, Outgoing, Timer},
    pins::Pins,
    random::Random,
    source::Served,
};

#[derive(Debug)]
pub struct Node {
    pub index: Index,
    pub member: Member,
    pub config: Rc<Config>,
    /// The node's clock.
    pub now: Millis,
    pub disk: Disk,
    pub slot_manager: SlotManager,
    pub(super) random: Random,
    pub(super) gossip: Gossip,
    version: (u64, u64),
    pub is_draining: bool,
    pub leaving: Option<DecommissionMode>,
    pub(super) is_writable: bool,
    /// Whether a write failed, and the database was not opened anew since.
    pub(super) has_failed: bool,
    /// What clients have not read yet, in entries.
    pub(super) unread: BTreeMap<usize, u64>,
    pub(super) out: Vec<NodeOutput>,
    pub(super) events: VecDeque<Event>,
    pub(super) after_sync: VecDeque<(u64, AfterSync)>,
    next_number: u64,
    // Streams.
    pub(super) outgoing: BTreeMap<Index, Outgoing>,
    pub(super) incoming: BTreeMap<Index, (u64, Member)>,
    /// What came on the stream of each node.
    pub(super) received: BTreeMap<Index, ReplicaStream>,
    // The lane.
    pub(super) commits: Commits,
    /// The claim in which this node last served each slot.
    pub(super) served: BTreeMap<Slot, Claim>,
    pub(super) queue: Vec<Queued>,
    pub(super) pins: Pins,
    pub(super) replica: Replica<Context, Part>,
    pub(super) ids: Vec<BTreeMap<u64, u64>>,
    pub(super) digests: BTreeMap<Slot, SlotDigest>,
    /// Loads that members are staging.
    pub(super) loads: BTreeMap<Context, Loading>,
    /// Loads that are staged here for an owner.
    pub(super) arrived: BTreeMap<Context, Range>,
    // Damage.
    /// Contexts that were found damaged.
    pub(super) quarantine: BTreeSet<Context>,
    /// The sizes of contexts whose heads were lost while this node ran: it knows what readers were shown.
    pub(super) lost_sizes: BTreeMap<Context, u64>,
    pub(super) heal_schedule: HealSchedule,
    /// Attempts to restore a context, each by the number of the question that it waits for.
    pub(super) healing: BTreeMap<u64, Healing>,
    /// The damage that the slot manager knows of.
    pub(super) damage: DamagedSlots,
    // Catching up.
    pub(super) runs: BTreeMap<u64, Run>,
    pub(super) schedules: BTreeMap<Member, SyncSchedule>,
    pub(super) questions: BTreeMap<u64, Question>,
    /// Responses to fetches of others.
    pub(super) fetches: BTreeMap<u64, Served>,
    /// Slots that were handed over to this node, until it owns them.
    pub(super) handed_over: Vec<Slot>,
}

/// Returns the number of the node with this name.
pub fn index_of(node: &NodeId) -> Index {
    node.as_str()[1..].parse().unwrap()
}

pub(super) fn peer_of(index: Index) -> Peer {
    Peer::new(index as u8).unwrap()
}

impl Node {
    pub fn start(
        index: Index,
        member: Member,
        config: Rc<Config>,
        incarnation: u64,
        disk: Disk,
        now: Millis,
        random: Random,
    ) -> Self {
        let slots = config.contexts.slots.clone();
        let records = disk.now.records.clone();
        let mut slot_manager = SlotManager::of(slots, member.clone(), config.settings.clone(), records, now);
        if disk.now.cluster.is_some() {
            slot_manager.set_identified();
        }
        let contexts = config.contexts.len();
        let mut node = Self {
            index,
            member,
            config,
            now,
            disk,
            slot_manager,
            random,
            gossip: Gossip::default(),
            version: (incarnation, 0),
            is_draining: false,
            leaving: None,
            is_writable: true,
            has_failed: false,
            unread: BTreeMap::new(),
            out: Vec::new(),
            events: VecDeque::new(),
            after_sync: VecDeque::new(),
            next_number: incarnation << 32,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            received: BTreeMap::new(),
            commits: Commits::default(),
            served: BTreeMap::new(),
            queue: Vec::new(),
            pins: Pins::default(),
            replica: Replica::default(),
            ids: vec![BTreeMap::new(); contexts],
            digests: BTreeMap::new(),
            loads: BTreeMap::new(),
            arrived: BTreeMap::new(),
            quarantine: BTreeSet::new(),
            lost_sizes: BTreeMap::new(),
            heal_schedule: HealSchedule::default(),
            healing: BTreeMap::new(),
            damage: DamagedSlots::default(),
            runs: BTreeMap::new(),
            schedules: BTreeMap::new(),
            questions: BTreeMap::new(),
            fetches: BTreeMap::new(),
            handed_over: Vec::new(),
        };
        node.scan();
        node
    }

    /// Returns a number that this node never uses for anything else, in any of its lives.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        ((self.index as u64) << 48) | self.next_number
    }

    /// Processes the queued events. Returns the outputs.
    pub fn run(&mut self) -> Vec<NodeOutput> {
        while let Some(event) = self.events.pop_front() {
            let event = self.seen(event);
            if !matches!(
                event,
                Event::Tick
                    | Event::NodesObserved(_)
                    | Event::LeaseRenewed { .. }
                    | Event::LeaseRenewalAnswered { .. }
            ) {
                self.trace(|_| format!("{event:?}"));
            }
            for effect in self.slot_manager.step(self.now, event) {
                self.trace(|_| format!("    => {effect:?}"));
                self.perform(effect);
            }
        }
        if self.config.broken == DisabledRule::Nothing
            && let Err(violation) = self.commits.check()
        {
            self.out.push(NodeOutput::Note(Note::Violated(violation)));
        }
        std::mem::take(&mut self.out)
    }

    /// In the variant that reads the members off gossip, returns what the slot manager gets to see.
    fn seen(&self, event: Event) -> Event {
        if self.config.broken != DisabledRule::MembersOffGossip {
            return event;
        }
        match event {
            Event::RecordChanged(slot, Some(mut record)) => {
                record.placement = record.placement.map(|known| self.off_gossip(slot, known));
                Event::RecordChanged(slot, Some(record))
            }
            Event::Response { from, slot, claim, answer: MemberResponse::Promised(mut promise) } => {
                promise.placement = promise.placement.map(|known| self.off_gossip(slot, known));
                Event::Response { from, slot, claim, answer: MemberResponse::Promised(promise) }
            }
            event => event,
        }
    }

    fn off_gossip(&self, slot: Slot, known: Placement) -> Placement {
        use ledger_core::{node::ReplicaSet, rendezvous};
        let alive = self.gossip.alive(self.now, self.config.dead_after);
        let order = rendezvous::preference_order(slot, alive.iter().map(|(_, member)| member.node.clone()));
        let first = order.into_iter().take(self.config.settings.replication_factor);
        let members = first.filter_map(|node| alive.iter().find(|(_, member)| member.node == node));
        match ReplicaSet::new(members.map(|(_, member)| member.clone())) {
            Ok(set) => Placement { members: set, is_confirmed: true, ..known },
            Err(_) => known,
        }
    }

    /// Prints a line if the run is traced.
    pub(super) fn trace(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.config.is_traced {
            let what = what(self);
            self.out.push(NodeOutput::Note(Note::Trace(what)));
        }
    }

    /// Acts; called a few times per second.
    pub fn tick(&mut self) {
        self.version.1 += 1;
        if self.has_failed && !self.disk.fails {
            self.reopen();
        }
        if !self.is_writable && !self.disk.is_full && !self.has_failed {
            self.is_writable = true;
            self.events.push_back(Event::Writable(true));
        }
        let said = Rc::new(Published {
            index: self.index,
            member: self.member.clone(),
            version: self.version,
            is_draining: self.is_draining,
            is_writable: self.is_writable,
            leaving: self.leaving,
            owned: self.slot_manager.owned().into_iter().collect(),
        });
        self.gossip.hear(self.now, &[said]);
        let mut others: Vec<Index> = self.gossip.known().chain(self.config.seeds.iter().copied()).collect();
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != self.index);
        for _ in 0..2 {
            if let Some(to) = self.random.pick(&others) {
                let (cluster, said_by) = (self.disk.now.cluster, self.member.storage);
                let message = Message::Gossip { cluster, said_by, all: self.gossip.all() };
                self.out.push(NodeOutput::Message { to, message });
            }
        }
        if let Some(seen) = self.gossip.changed(self.now, self.config.dead_after) {
            self.events.push_back(Event::NodesObserved(seen));
        }
        self.events.push_back(Event::Tick);
        self.scrub();
        self.heal();
        self.spread_all();
        self.connect();
    }

    pub fn drain(&mut self, is_draining: bool) {
        self.is_draining = is_draining;
        self.events.push_back(Event::Drain(is_draining));
    }

    /// Decommissions the node, or cancels that. After a restart the node knows it again: see `Host`.
    pub fn leave(&mut self, leaving: Option<DecommissionMode>) {
        self.leaving = leaving;
        self.drain(leaving.is_some());
    }

    /// Sets all members that an operator ever declared lost.
    pub fn declare_lost(&mut self, declared: DeclaredLosses) {
        self.events.push_back(Event::LossesDeclared(declared));
    }

    /// Returns whether the disk accepts writes. The node notices a full disk at the first refused write.
    pub(super) fn can_write(&mut self) -> bool {
        let can_write = !self.disk.is_full && !self.has_failed;
        if !can_write && self.is_writable {
            self.is_writable = false;
            self.events.push_back(Event::Writable(false));
            // The owners go on with this node as soon as it takes their streams again.
            for from in self.incoming.keys().copied().collect::<Vec<_>>() {
                self.break_stream(from);
            }
        }
        can_write
    }

    /// Records that the node belongs to a cluster.
    pub(super) fn belongs(&mut self, id: ClusterId) {
        self.disk.write(Write::Cluster(id));
        self.slot_manager.set_identified();
    }

    /// Returns whether it has heard of nodes with this number or a higher one.
    pub fn hears_from(&self, first: Index) -> bool {
        self.gossip.known().any(|index| index >= first)
    }

    /// Returns whether to accept a message of a cluster, as in `ledger_cluster::membership::identity`.
    pub(super) fn is_ours(&mut self, theirs: Option<ClusterId>, said_by: StorageId) -> bool {
        let Some(theirs) = theirs else { return true };
        if let Some(ours) = self.disk.now.cluster {
            return ours == theirs || self.config.broken == DisabledRule::ClustersMerge;
        }
        let records = self.disk.now.records.values();
        let sets = records.filter_map(|record| record.placement.as_ref()).map(|placement| &placement.members);
        let known = sets.flat_map(ReplicaSet::members).map(|member| member.storage).collect();
        let forming = self.slot_manager.first_slot().and_then(|slot| self.record(slot).forming());
        let is_believed = theirs.is_credible(&said_by, &known, forming);
        if let Some(first) = self.slot_manager.first_slot()
            && is_believed
            && self.can_write()
        {
            self.change(first, RecordChange::JoinCluster(theirs, said_by));
        }
        // The sender repeats the message.
        false
    }

    pub(super) fn record(&self, slot: Slot) -> SlotRecord {
        self.disk.now.records.get(&slot).cloned().unwrap_or_default()
    }

    /// Does something once everything written so far is durable.
    pub(super) fn after_sync(&mut self, what: AfterSync) {
        if self.config.broken == DisabledRule::NoSync {
            self.want_sync();
            return self.done(what);
        }
        if self.disk.synced == self.disk.written {
            return self.done(what);
        }
        self.after_sync.push_back((self.disk.written, what));
        self.want_sync();
    }

    pub(super) fn want_sync(&mut self) {
        if !self.disk.is_syncing && self.disk.synced < self.disk.written {
            self.disk.is_syncing = true;
            self.out.push(NodeOutput::Sync);
        }
    }

    pub fn synced(&mut self, up_to: u64) {
        if self.disk.fails || self.has_failed {
            return self.on_write_failed();
        }
        self.disk.synced(up_to);
        while self.after_sync.front().is_some_and(|(write, _)| *write <= up_to) {
            if let Some((_, what)) = self.after_sync.pop_front() {
                self.done(what);
            }
        }
        self.want_sync();
    }

    fn done(&mut self, what: AfterSync) {
        match what {
            AfterSync::Own(number) => {
                self.step(|commits, effects| commits.advance_durable_here(number, effects));
            }
            AfterSync::Up { to, stream, body } => {
                if self.incoming.get(&to).is_some_and(|(known, _)| *known == stream) {
                    self.out.push(NodeOutput::Up { stream, body });
                }
            }
            // The record may be newer by now, but the slot manager must not see more than is durable.
            AfterSync::Recorded(slot) => {
                let store = if self.config.broken == DisabledRule::NoSync {
                    &self.disk.now
                } else {
                    &self.disk.durable
                };
                let record = store.records.get(&slot).cloned().unwrap_or_default();
                self.events.push_back(Event::RecordChanged(slot, Some(record)));
            }
            AfterSync::Answer { to, slot, claim, answer } => self.answer(&to, slot, claim, answer),
            AfterSync::Told(event) => self.events.push_back(event),
        }
    }

    pub fn timer(&mut self, timer: Timer) {
        match timer {
            Timer::Commit => self.commit(),
            Timer::Question(number) => self.send_question(number),
            Timer::Schedule(owner) => self.schedule_timer(owner),
        }
    }
}
