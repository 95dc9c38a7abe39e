//! A node: the slot manager, and around it what the shell of a real node does. It knows neither the network nor the
//! other nodes, and leaves all its outputs in `out`.

use ledger_core::{
    catch_up::{Event as RunEvent, SyncSchedule},
    digest::SlotDigest,
    healing::HealSchedule,
    ownership::{
        Promise, SlotManager,
        slot_manager::{DamagedSlots, Effect},
    },
    rendezvous,
    replication::{
        Peer,
        replica::{RecordChange, Replica},
    },
};

use super::{
    catch_up::Run,
    gossip::{Gossip, Published},
    lane::{Commits, Pins},
    loads::Loading,
    prelude::*,
    questions::Question,
    source::Served,
    streams::{Incoming, Outgoing},
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
    pub(super) out: Vec<NodeOutput>,
    pub(super) events: VecDeque<Event>,
    pub(super) after_sync: VecDeque<(u64, AfterSync)>,
    next_number: u64,
    pub(super) outgoing: BTreeMap<Index, Outgoing>,
    pub(super) incoming: BTreeMap<Index, Incoming>,
    // The lane.
    pub(super) commits: Commits,
    /// The claim in which this node last served each slot.
    pub(super) served: BTreeMap<Slot, Claim>,
    pub(super) queue: Vec<(ClientRequest, Append)>,
    /// What clients have not read yet, in entries.
    pub(super) unread: BTreeMap<usize, u64>,
    pub(super) pins: Pins,
    pub(super) replica: Replica<Context, Part>,
    pub(super) digests: BTreeMap<Slot, SlotDigest>,
    /// Loads that members are staging.
    pub(super) loads: BTreeMap<Context, Loading>,
    /// Loads that are staged here for an owner.
    pub(super) arrived: BTreeMap<Context, Range>,
    // Damage.
    /// Contexts that were found damaged.
    pub(super) quarantine: BTreeSet<Context>,
    pub(super) heal_schedule: HealSchedule,
    /// The damage that the slot manager knows of.
    pub(super) damage: DamagedSlots,
    // Catching up.
    pub(super) runs: BTreeMap<u64, Run>,
    pub(super) schedules: BTreeMap<Member, SyncSchedule>,
    /// When the schedules are looked at next.
    pub(super) schedules_at: Option<Millis>,
    /// What other nodes were asked and have not answered.
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

pub fn peer_of(index: Index) -> Peer {
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
        let (slots, records) = (config.contexts.slots.clone(), disk.now.records.clone());
        let mut slot_manager = SlotManager::of(slots, member.clone(), config.settings.clone(), records, now);
        if disk.now.cluster.is_some() {
            slot_manager.set_identified();
        }
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
            out: Vec::new(),
            events: VecDeque::new(),
            after_sync: VecDeque::new(),
            next_number: incarnation << 32,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            commits: Commits::default(),
            served: BTreeMap::new(),
            queue: Vec::new(),
            unread: BTreeMap::new(),
            pins: Pins::default(),
            replica: Replica::default(),
            digests: BTreeMap::new(),
            loads: BTreeMap::new(),
            arrived: BTreeMap::new(),
            quarantine: BTreeSet::new(),
            heal_schedule: HealSchedule::default(),
            damage: DamagedSlots::default(),
            runs: BTreeMap::new(),
            schedules: BTreeMap::new(),
            schedules_at: None,
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

    pub(super) fn slot(&self, context: Context) -> Slot {
        self.config.contexts.slot(context)
    }

    pub(super) fn id(&self, context: Context) -> ContextId {
        self.config.contexts.id(context).clone()
    }

    pub(super) fn history(&self, context: Context) -> &History {
        &self.disk.now.histories[context]
    }

    pub(super) fn is_broken(&self, rule: DisabledRule) -> bool {
        self.config.broken == rule
    }

    pub(super) fn note(&mut self, note: Note) {
        self.out.push(NodeOutput::Note(note));
    }

    pub(super) fn count(&mut self, what: Counted, times: u64) {
        if times > 0 {
            self.note(Note::Counted(what, times));
        }
    }

    /// Prints a line if the run is traced.
    pub(super) fn trace(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.config.is_traced {
            let what = what(self);
            self.note(Note::Trace(what));
        }
    }

    pub(super) fn send(&mut self, to: Index, message: Message) {
        self.out.push(NodeOutput::Message { to, message });
    }

    pub(super) fn respond(&mut self, (client, request): ClientRequest, response: Response) {
        self.out.push(NodeOutput::Respond { client, request, response });
    }

    /// Processes the queued events. Returns the outputs.
    pub fn run(&mut self) -> Vec<NodeOutput> {
        while let Some(event) = self.events.pop_front() {
            let event = self.seen(event);
            for effect in self.slot_manager.step(self.now, event.clone()) {
                if !matches!(effect, Effect::RenewLeases { .. }) {
                    self.trace(|_| format!("{event:?} => {effect:?}"));
                }
                self.perform(effect);
            }
        }
        if self.is_broken(DisabledRule::Nothing)
            && let Err(violation) = self.commits.check()
        {
            self.note(Note::Violated(violation));
        }
        std::mem::take(&mut self.out)
    }

    /// In the variant that reads the members off gossip, changes what the slot manager gets to see.
    fn seen(&self, mut event: Event) -> Event {
        if self.is_broken(DisabledRule::MembersOffGossip)
            && let Event::RecordChanged(slot, Some(SlotRecord { placement: Some(known), .. }))
            | Event::Response {
                slot,
                answer: MemberResponse::Promised(Promise { placement: Some(known), .. }),
                ..
            } = &mut event
        {
            let alive = self.gossip.alive(self.now, self.config.dead_after);
            let order = rendezvous::preference_order(*slot, alive.iter().map(|(_, of)| of.node.clone()));
            let first = order.into_iter().take(self.config.settings.replication_factor);
            let members = first.filter_map(|node| alive.iter().find(|(_, member)| member.node == node));
            if let Ok(members) = ReplicaSet::new(members.map(|(_, member)| member.clone())) {
                (known.members, known.is_confirmed) = (members, true);
            }
        }
        event
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
        let others: BTreeSet<Index> = self.gossip.known().chain(self.config.seeds.iter().copied()).collect();
        let others: Vec<Index> = others.into_iter().filter(|other| *other != self.index).collect();
        for _ in 0..2 {
            if let Some(to) = self.random.pick(&others) {
                let (cluster, said_by) = (self.disk.now.cluster, self.member.storage);
                self.send(to, Message::Gossip { cluster, said_by, all: self.gossip.all() });
            }
        }
        if let Some(seen) = self.gossip.changed(self.now, self.config.dead_after) {
            self.events.push_back(Event::NodesObserved(seen));
        }
        self.events.push_back(Event::Tick);
        self.scrub();
        self.heal();
        self.expire();
        self.spread_all();
        self.connect();
        if self.random.chance(200) {
            self.send_digest_checkpoints();
        }
        self.check_kept_for_nodes();
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
            return ours == theirs || self.is_broken(DisabledRule::ClustersMerge);
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
        self.want_sync();
        if self.is_broken(DisabledRule::NoSync) || self.disk.synced == self.disk.written {
            return self.done(what);
        }
        self.after_sync.push_back((self.disk.written, what));
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
        while let Some((_, what)) = self.after_sync.pop_front_if(|(write, _)| *write <= up_to) {
            self.done(what);
        }
        self.want_sync();
    }

    pub(super) fn done(&mut self, what: AfterSync) {
        match what {
            AfterSync::Own(number) => {
                self.step(|commits, effects| commits.advance_durable_here(number, effects));
            }
            // The record may be newer by now, but the slot manager must not see more than is durable.
            AfterSync::Recorded(slot) => {
                let is_synced = !self.is_broken(DisabledRule::NoSync);
                let store = if is_synced { &self.disk.durable } else { &self.disk.now };
                let record = store.records.get(&slot).cloned().unwrap_or_default();
                self.events.push_back(Event::RecordChanged(slot, Some(record)));
            }
            AfterSync::Fetched(run) => self.tell(run, RunEvent::WritesFinished),
            AfterSync::Output(output) => self.out.push(output),
            AfterSync::Told(event) => self.events.push_back(event),
        }
    }

    pub fn timer(&mut self, timer: Timer) {
        match timer {
            Timer::Commit => self.commit(),
            Timer::Question(number) => self.send_question(number),
            Timer::Schedules(at) => {
                if self.schedules_at == Some(at) {
                    self.schedules_at = None;
                    self.run_schedules();
                }
            }
        }
    }
}
