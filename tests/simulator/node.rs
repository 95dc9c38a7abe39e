//! A node: the brain of the slots, and around it what the shell of a real node does. It knows neither the network
//! nor the other nodes: everything it wants is left in `out`.

use std::{
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use ledger_core::{
    Epoch,
    digest::SlotDigest,
    node::{Member, NodeId},
    ownership::{
        Claim, NotTaken, Placement, Slots,
        slots::{Answer, Ask, Effect, Event, Millis, Outcome as Offered, Owner, Settings},
    },
    replication::{Peer, Unstable, Waiting},
    slot::Slot,
};

use super::{
    broken::Broken,
    catch_up::Task,
    disk::{Disk, Write},
    gossip::{Gossip, Published},
    history::{Context, Contexts},
    lane::{Asked, Item, Led, Queued},
    message::{Down, Index, Message, Offer, Outcome, Part, Request, Response, Up},
    random::Random,
};

/// What a node wants done.
#[derive(Debug)]
pub enum Out {
    Message {
        to: Index,
        message: Message,
    },
    Down {
        stream: u64,
        body: Down,
    },
    Up {
        stream: u64,
        body: Up,
    },
    /// Breaks off a stream that was opened by another node.
    Break {
        stream: u64,
    },
    Respond {
        client: usize,
        request: u64,
        response: Response,
    },
    Timer {
        after: Millis,
        timer: Timer,
    },
    /// Sync the disk.
    Sync,
    Note(Note),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    Commit,
    Question(u64),
    Task(Slot, u64),
}

/// What the simulation wants to know.
#[derive(Debug)]
pub enum Note {
    /// An owner wrote an entry.
    Created {
        context: Context,
        sequence: u64,
        epoch: Epoch,
        id: u64,
    },
    Owned {
        slot: Slot,
        claim: Claim,
        was_handed_over: bool,
    },
    /// A client is told that an entry is stored.
    Acknowledged {
        context: Context,
        sequence: u64,
        id: u64,
        /// Of the owner that says so.
        in_epoch: Option<Epoch>,
        is_stable: bool,
        needed: usize,
    },
    /// Readers see a context up to a size.
    Shown {
        context: Context,
        size: u64,
    },
    Forked,
    CaughtUp {
        entries: u64,
    },
    /// A moment of a takeover: a good one for something to go wrong.
    Moment,
    Trace(String),
}

/// A stream to another node.
#[derive(Debug)]
pub struct Outgoing {
    pub stream: u64,
    pub member: Member,
    pub is_up: bool,
    pub since: Millis,
}

/// What is done when a write is durable.
#[derive(Debug)]
pub enum AfterSync {
    Own(u64),
    Up { to: Index, stream: u64, body: Up },
    Recorded(Slot),
    Answer { to: Member, slot: Slot, claim: Claim, answer: Answer },
    Offered { slot: Slot, claim: Claim },
}

/// Whether readers see a slot. See `ledger_store::readable`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Readable {
    #[default]
    Dark,
    Holding,
    Shown,
}

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct Config {
    pub contexts: Rc<Contexts>,
    pub settings: Settings,
    /// How long until a node that is not heard of is dead.
    pub dead_after: Millis,
    pub broken: Broken,
    /// The nodes it is told of at the start.
    pub seeds: Vec<Index>,
    pub is_traced: bool,
}

#[derive(Debug)]
pub struct Node {
    pub index: Index,
    pub member: Member,
    pub config: Rc<Config>,
    /// Its clock.
    pub now: Millis,
    pub disk: Disk,
    pub brain: Slots,
    pub(super) random: Random,
    pub(super) gossip: Gossip,
    version: (u64, u64),
    pub is_draining: bool,
    is_writable: bool,
    pub(super) out: Vec<Out>,
    pub(super) events: VecDeque<Event>,
    pub(super) after_sync: VecDeque<(u64, AfterSync)>,
    next_number: u64,
    // Streams.
    pub(super) outgoing: BTreeMap<Index, Outgoing>,
    pub(super) incoming: BTreeMap<Index, (u64, Member)>,
    // The lane.
    pub(super) number: u64,
    pub(super) waiting: Waiting<Item, Asked>,
    pub(super) led: BTreeMap<Slot, Led>,
    pub(super) queue: Vec<Queued>,
    pub(super) unstable: Unstable<(Context, u64)>,
    pub(super) accepted_at: BTreeMap<Slot, (Epoch, u64)>,
    pub(super) readable: BTreeMap<Slot, Readable>,
    pub(super) visible: Vec<u64>,
    pub(super) in_step: BTreeMap<Slot, Claim>,
    pub(super) parked: BTreeMap<Context, VecDeque<(Part, u64)>>,
    pub(super) ids: Vec<BTreeMap<u64, u64>>,
    pub(super) digests: BTreeMap<Slot, SlotDigest>,
    // Catching up.
    pub(super) tasks: BTreeMap<Slot, Task>,
    /// Slots that were handed over to this node, until it owns them.
    handed_over: Vec<Slot>,
}

/// The node of a name.
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
        let brain = Slots::of(slots, member.clone(), config.settings.clone(), records, now);
        let contexts = config.contexts.len();
        let mut node = Self {
            index,
            member,
            config,
            now,
            disk,
            brain,
            random,
            gossip: Gossip::default(),
            version: (incarnation, 0),
            is_draining: false,
            is_writable: true,
            out: Vec::new(),
            events: VecDeque::new(),
            after_sync: VecDeque::new(),
            next_number: incarnation << 32,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            number: 0,
            waiting: Waiting::default(),
            led: BTreeMap::new(),
            queue: Vec::new(),
            unstable: Unstable::default(),
            accepted_at: BTreeMap::new(),
            readable: BTreeMap::new(),
            visible: vec![0; contexts],
            in_step: BTreeMap::new(),
            parked: BTreeMap::new(),
            ids: vec![BTreeMap::new(); contexts],
            digests: BTreeMap::new(),
            tasks: BTreeMap::new(),
            handed_over: Vec::new(),
        };
        node.scan();
        node
    }

    /// A number that no other thing of this node has, in any of its lives.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        ((self.index as u64) << 48) | self.next_number
    }

    /// Does what the events since ask for; gives what is to be done outside.
    pub fn run(&mut self) -> Vec<Out> {
        while let Some(event) = self.events.pop_front() {
            let event = self.seen(event);
            if !matches!(event, Event::Tick | Event::Nodes(_)) {
                self.trace(|_| format!("{event:?}"));
            }
            for effect in self.brain.step(self.now, event) {
                self.trace(|_| format!("    => {effect:?}"));
                self.perform(effect);
            }
        }
        std::mem::take(&mut self.out)
    }

    /// In the variant that reads the members off gossip, that is what the brain gets to see.
    fn seen(&self, event: Event) -> Event {
        if self.config.broken != Broken::MembersOffGossip {
            return event;
        }
        match event {
            Event::Recorded(slot, mut record) => {
                record.placement = record.placement.map(|known| self.off_gossip(slot, known));
                Event::Recorded(slot, record)
            }
            Event::Answered { from, slot, claim, answer: Answer::Promised(mut promise) } => {
                promise.placement = promise.placement.map(|known| self.off_gossip(slot, known));
                Event::Answered { from, slot, claim, answer: Answer::Promised(promise) }
            }
            event => event,
        }
    }

    fn off_gossip(&self, slot: Slot, known: Placement) -> Placement {
        use ledger_core::{node::ReplicaSet, rendezvous};
        let alive = self.gossip.alive(self.now, self.config.dead_after);
        let order = rendezvous::order(slot, alive.iter().map(|(_, member)| member.node.clone()));
        let first = order.into_iter().take(self.config.settings.copies);
        let members = first.filter_map(|node| alive.iter().find(|(_, member)| member.node == node));
        match ReplicaSet::new(members.map(|(_, member)| member.clone())) {
            Ok(set) => Placement { set, is_confirmed: true, ..known },
            Err(_) => known,
        }
    }

    /// For whoever reads a trace.
    pub(super) fn trace(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.config.is_traced {
            let what = what(self);
            self.out.push(Out::Note(Note::Trace(what)));
        }
    }

    /// Comes a few times a second.
    pub fn tick(&mut self) {
        self.version.1 += 1;
        if !self.is_writable && !self.disk.is_full {
            self.is_writable = true;
            self.events.push_back(Event::Writable(true));
        }
        let said = Rc::new(Published {
            index: self.index,
            member: self.member.clone(),
            version: self.version,
            is_draining: self.is_draining,
            is_writable: self.is_writable,
            owned: self.brain.owned().into_iter().collect(),
        });
        self.gossip.hear(self.now, &[said]);
        let mut others: Vec<Index> = self.gossip.known().chain(self.config.seeds.iter().copied()).collect();
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != self.index);
        for _ in 0..2 {
            if let Some(to) = self.random.pick(&others) {
                let message = Message::Gossip(self.gossip.all());
                self.out.push(Out::Message { to, message });
            }
        }
        if let Some(seen) = self.gossip.changed(self.now, self.config.dead_after) {
            self.events.push_back(Event::Nodes(seen));
        }
        self.events.push_back(Event::Tick);
        self.connect();
    }

    pub fn drain(&mut self, is_draining: bool) {
        self.is_draining = is_draining;
        self.events.push_back(Event::Drain(is_draining));
    }

    /// Opens streams to the living.
    fn connect(&mut self) {
        for (to, member) in self.gossip.alive(self.now, self.config.dead_after) {
            if to == self.index {
                continue;
            }
            if let Some(known) = self.outgoing.get(&to) {
                let is_late = self.now >= known.since + 1000;
                if known.member == member && (known.is_up || !is_late) {
                    continue;
                }
            }
            self.close(to);
            let stream = self.number();
            let hello = Message::Hello { stream, from: self.member.clone(), to: member.clone() };
            self.outgoing.insert(to, Outgoing { stream, member, is_up: false, since: self.now });
            self.out.push(Out::Message { to, message: hello });
        }
    }

    /// The stream to a node is gone.
    fn close(&mut self, to: Index) {
        if let Some(gone) = self.outgoing.remove(&to)
            && gone.is_up
        {
            self.lose(peer_of(to));
            self.events.push_back(Event::Lost(gone.member));
        }
    }

    pub fn stream_lost(&mut self, stream: u64) {
        let of = self.outgoing.iter().find(|(_, outgoing)| outgoing.stream == stream).map(|(to, _)| *to);
        if let Some(to) = of {
            self.close(to);
        }
    }

    /// A stream that another node opened breaks here.
    pub(super) fn break_stream(&mut self, from: Index) {
        if let Some((stream, _)) = self.incoming.remove(&from) {
            self.out.push(Out::Break { stream });
        }
    }

    pub fn message(&mut self, from: Index, message: Message) {
        match message {
            Message::Gossip(all) => self.gossip.hear(self.now, &all),
            Message::Hello { stream, from: member, to } => {
                if to == self.member && self.incoming.get(&from).is_none_or(|(known, _)| *known < stream) {
                    // Nothing led by that node is in step until it says so on this stream.
                    self.in_step.retain(|_, claim| claim.claimant != member.node);
                    self.incoming.insert(from, (stream, member));
                    self.tasks.retain(|_, task| !task.follows(from));
                    self.out.push(Out::Message { to: from, message: Message::Welcome { stream } });
                }
            }
            Message::Welcome { stream } => {
                if let Some(outgoing) = self.outgoing.get_mut(&from).filter(|known| known.stream == stream)
                    && !outgoing.is_up
                {
                    outgoing.is_up = true;
                    self.events.push_back(Event::Connected(outgoing.member.clone()));
                }
            }
            Message::Ask { from, to, slot, claim, ask } => {
                if to == self.member {
                    self.asked(from, slot, claim, ask);
                }
            }
            Message::Answer { from, slot, claim, answer } => {
                self.events.push_back(Event::Answered { from, slot, claim, answer });
            }
            Message::Joins { from, to, slot } => {
                if to == self.member {
                    self.events.push_back(Event::Joins(from, slot));
                }
            }
            Message::Question { number, to, question } => {
                if to == self.member {
                    let reply = self.reply(question);
                    self.out.push(Out::Message { to: from, message: Message::Reply { number, reply } });
                }
            }
            Message::Reply { number, reply } => self.replied(number, reply),
        }
    }

    /// From the replica at the other end of a stream.
    pub fn up(&mut self, from: Index, stream: u64, body: Up) {
        let Some(member) = self.outgoing.get(&from).filter(|known| known.stream == stream && known.is_up)
        else {
            return;
        };
        match body {
            Up::Durable(number) => self.holds(from, number),
            Up::Offered { slot, claim, outcome } => {
                let outcome = match outcome {
                    Outcome::Accepted => Offered::Accepted,
                    Outcome::Refused(claim) => Offered::Refused(claim),
                    Outcome::OtherMembers(placement) => Offered::OtherMembers(placement),
                    Outcome::Differs => Offered::Differs,
                    Outcome::NotNow => Offered::NotNow,
                };
                let from = member.member.clone();
                self.events.push_back(Event::Offered { from, slot, claim, outcome });
            }
        }
    }

    /// Whether the disk takes writes. The first that it refuses is how the node learns of it.
    pub(super) fn can_write(&mut self) -> bool {
        if self.disk.is_full && self.is_writable {
            self.is_writable = false;
            self.events.push_back(Event::Writable(false));
        }
        !self.disk.is_full
    }

    /// A question to this node's replica, from itself or another.
    fn asked(&mut self, from: Member, slot: Slot, claim: Claim, ask: Ask) {
        if ask != Ask::TakeOver && !self.can_write() {
            return self.answer(&from, slot, claim, Answer::NotNow);
        }
        let mut record = self.record(slot);
        let answer = match ask {
            Ask::Promise => {
                if self.config.broken == Broken::NoPromiseCheck {
                    record.promised = None;
                }
                record.promise(&claim).map(|(next, promise)| (next, Answer::Promised(promise)))
            }
            Ask::Confirm => match record.confirm(&claim) {
                Ok(next) => Ok((next, Answer::Done)),
                Err(NotTaken::Refused(refused)) => Err(refused),
                Err(_) => return self.answer(&from, slot, claim, Answer::NotNow),
            },
            Ask::TakeOver => {
                self.handed_over.push(slot);
                self.events.push_back(Event::HandedOver(slot, claim.clone()));
                return self.answer(&from, slot, claim, Answer::Done);
            }
        };
        match answer {
            Err(refused) => self.answer(&from, slot, claim, Answer::Refused(refused.promised)),
            Ok((next, answer)) => {
                self.write_record(slot, next);
                self.after_sync(AfterSync::Recorded(slot));
                self.after_sync(AfterSync::Answer { to: from, slot, claim, answer });
            }
        }
    }

    pub(super) fn answer(&mut self, to: &Member, slot: Slot, claim: Claim, answer: Answer) {
        let from = self.member.clone();
        if *to == self.member {
            self.events.push_back(Event::Answered { from, slot, claim, answer });
        } else {
            let message = Message::Answer { from, slot, claim, answer };
            self.out.push(Out::Message { to: index_of(&to.node), message });
        }
    }

    fn perform(&mut self, effect: Effect) {
        if !matches!(effect, Effect::Count { .. }) {
            self.out.push(Out::Note(Note::Moment));
        }
        match effect {
            Effect::Ask { to, slot, claim, ask } => {
                let from = self.member.clone();
                if to == self.member {
                    self.asked(from, slot, claim, ask);
                } else {
                    let index = index_of(&to.node);
                    let message = Message::Ask { from, to, slot, claim, ask };
                    self.out.push(Out::Message { to: index, message });
                }
            }
            Effect::Offer { to, slot, claim, set, is_confirmed, before } => {
                if to == self.member && !self.can_write() {
                    self.events.push_back(Event::Offered { from: to, slot, claim, outcome: Offered::NotNow });
                } else if to == self.member {
                    match self.record(slot).accept(&claim, &set, is_confirmed, before.as_ref()) {
                        Ok(next) => {
                            self.write_record(slot, next);
                            self.after_sync(AfterSync::Recorded(slot));
                            self.after_sync(AfterSync::Offered { slot, claim });
                        }
                        Err(refused) => {
                            let outcome = match refused {
                                NotTaken::Refused(refused) => Offered::Refused(refused.promised),
                                NotTaken::OtherMembers(placement) => Offered::OtherMembers(placement),
                                NotTaken::NotAccepted { .. } | NotTaken::Formed => Offered::NotNow,
                            };
                            self.events.push_back(Event::Offered { from: to, slot, claim, outcome });
                        }
                    }
                } else {
                    let offer = Offer {
                        number: self.number,
                        slot,
                        claim,
                        set,
                        is_confirmed,
                        before,
                        digest: self.digest(slot),
                    };
                    self.send_to(&to, offer);
                }
            }
            Effect::CatchUp { slot, claim, from } => self.claim_task(slot, claim, from),
            Effect::Own { slot, claim, needed } => {
                let was_handed_over = self.handed_over.contains(&slot);
                self.handed_over.retain(|of| *of != slot);
                self.own(slot, &claim, needed, was_handed_over);
            }
            Effect::Count { slot, claim, member } => self.count(slot, &claim, &member),
            Effect::Stop { slot, claim } => self.stop(slot, &claim),
            Effect::Formed { slot } => {
                if self.can_write() {
                    let next = self.record(slot).formed();
                    self.write_record(slot, next);
                    self.after_sync(AfterSync::Recorded(slot));
                }
            }
            Effect::StepDown { slot } => {
                self.tasks.retain(|of, task| *of != slot || !task.is_claim());
                self.step_down(slot);
            }
        }
    }

    /// Writes a record. From here on it holds for what this node does; others hear of it once it is durable.
    pub(super) fn write_record(&mut self, slot: Slot, record: ledger_core::ownership::SlotRecord) {
        if self.record(slot) == record {
            return;
        }
        self.disk.write(Write::Record(slot, record));
    }

    pub(super) fn record(&self, slot: Slot) -> ledger_core::ownership::SlotRecord {
        self.disk.now.records.get(&slot).cloned().unwrap_or_default()
    }

    /// Does something once all that was written is durable.
    pub(super) fn after_sync(&mut self, what: AfterSync) {
        if self.config.broken == Broken::NoSync {
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
            self.out.push(Out::Sync);
        }
    }

    pub fn synced(&mut self, up_to: u64) {
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
            AfterSync::Own(number) => self.own_synced(number),
            AfterSync::Up { to, stream, body } => {
                if self.incoming.get(&to).is_some_and(|(known, _)| *known == stream) {
                    self.out.push(Out::Up { stream, body });
                }
            }
            // What it is by now is no less true: but the brain must see no more than is durable.
            AfterSync::Recorded(slot) => {
                let store =
                    if self.config.broken == Broken::NoSync { &self.disk.now } else { &self.disk.durable };
                let record = store.records.get(&slot).cloned().unwrap_or_default();
                self.events.push_back(Event::Recorded(slot, record));
            }
            AfterSync::Answer { to, slot, claim, answer } => self.answer(&to, slot, claim, answer),
            AfterSync::Offered { slot, claim } => {
                let (from, outcome) = (self.member.clone(), Offered::Accepted);
                self.events.push_back(Event::Offered { from, slot, claim, outcome });
            }
        }
    }

    pub fn timer(&mut self, timer: Timer) {
        match timer {
            Timer::Commit => self.commit(),
            Timer::Question(number) => self.unanswered(number),
            Timer::Task(slot, generation) => self.retry(slot, generation),
        }
    }

    pub fn request(&mut self, client: usize, request: u64, body: Request) {
        let response = match body {
            Request::Append(append) => {
                if self.queue.is_empty() {
                    let after = self.random.below(3);
                    self.out.push(Out::Timer { after, timer: Timer::Commit });
                }
                return self.queue.push(Queued { client, request, append });
            }
            Request::Attach { context, kept } => {
                if self.serves(self.config.contexts.slot(context)) {
                    let missing = kept.into_iter().filter(|id| !self.ids[context].contains_key(id));
                    Response::Attached { missing: missing.collect() }
                } else {
                    self.not_owner(context)
                }
            }
            Request::Read { context } => match self.shown(context) {
                Some(size) => {
                    let root = self.disk.now.histories[context].root_at(size).unwrap();
                    Response::Read { context, size, root }
                }
                None => Response::NotReadable,
            },
            Request::Watch { context, after, root } => self.watched(context, after, root),
        };
        self.out.push(Out::Respond { client, request, response });
    }

    fn watched(&self, context: Context, after: u64, root: ledger_core::Hash) -> Response {
        let history = &self.disk.now.histories[context];
        match self.shown(context) {
            None => Response::NotReadable,
            // It is behind; or, where what was shown can be taken back, the watcher saw what is gone.
            Some(size) if size < after => {
                let Settings { copies, min_copies, .. } = self.config.settings;
                let is_gone = min_copies * 2 <= copies && self.serves(self.config.contexts.slot(context));
                if is_gone { Response::Changed } else { Response::NotReadable }
            }
            Some(_) if history.root_at(after) != Some(root) => Response::Changed,
            Some(size) => {
                let to = size.min(after + 64) as usize;
                Response::Watched { entries: history.0[after as usize..to].into() }
            }
        }
    }

    pub(super) fn not_owner(&self, context: Context) -> Response {
        let hint = match self.brain.owner(self.config.contexts.slot(context)) {
            Owner::Other(node, _) => Some(index_of(&node)),
            Owner::Me(_) => Some(self.index),
            Owner::Nobody(_) => None,
        };
        Response::NotOwner { hint }
    }
}
