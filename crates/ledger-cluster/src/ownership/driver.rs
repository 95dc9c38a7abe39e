//! The driver: the one task that decides. It feeds [`SlotManager`] with what happens and does what that says; whatever
//! takes long runs beside it, and comes back as an event.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use ledger_core::{
    Epoch,
    catch_up::{ClaimRun, ClaimSources},
    node::Member,
    ownership::{
        Claim, SlotManager,
        slot_manager::{Effect, Event, MemberRequest, MemberResponse, ObservedNode},
    },
    replication::{
        MAX_PEERS,
        replica::{ChangedFor, RecordChange},
    },
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::{
    SlotAsk, SlotAsks, SlotNothing, replica_service_client::ReplicaServiceClient, slot_answer::Answer as To,
    slot_ask::Ask as Asks,
};
use ledger_store::{
    limited,
    replicate::replica::{Outgoing, OwnerCommand},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    catch_up,
    cluster::members_of,
    membership::{Membership, View, ViewMember, facts::Readiness},
    ownership::recovery,
    ownership::routes::Routes,
    ownership::stale_volume,
    peers::{PeerHandle, wire},
    replicate::leases::Leases,
    replicate::owner_stream,
    shared::{DriverMessage, Shared},
};

/// How often time is told.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// How often routes are published when nothing happens.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is said how far the directory is durable: as often as gossip travels anyway.
const DURABLE_INDEX_INTERVAL: Duration = Duration::from_millis(900);
/// How long a question may take, at first and at most: it doubles while a node does not answer in time.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(1_200);
const MAX_RESPONSE_TIMEOUT: Duration = Duration::from_millis(9_600);
/// Events after which something is done about them.
const MAX_EVENTS: usize = 8192;
/// Questions that wait for one node, in crowds.
const QUEUE_LENGTH: usize = 256;
/// Most bytes of an answer.
const MAX_ANSWER: usize = 8 << 20;

/// To a task that does something about slots, many at a time.
type Queue<T> = mpsc::Sender<Vec<T>>;

/// The driver's own things.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) membership: Arc<Membership>,
    pub(crate) slots: SlotManager,
    /// The cluster has an identity.
    pub(crate) is_identified: bool,
    pub(crate) events: mpsc::Receiver<DriverMessage>,
    pub(crate) from_lanes: mpsc::UnboundedReceiver<Vec<Event>>,
    pub(crate) leases: Leases,
    /// The peers that gossip shows alive, and the streams to them.
    pub(crate) alive: BTreeSet<Member>,
    pub(crate) streams: HashMap<Member, (CancellationToken, AbortOnDropHandle<()>)>,
    pub(crate) owned: Vec<(Slot, Epoch)>,
    /// When routes were last published.
    pub(crate) published: Instant,
    /// When it was last said how far the directory is durable.
    pub(crate) durable_index_sent: Instant,
    /// To those who ask each node, and to the one who changes this node's records.
    pub(crate) requesters: HashMap<Member, Queue<(Slot, Claim, MemberRequest)>>,
    pub(crate) changer: Option<Queue<(Slot, RecordChange)>>,
}

/// Starts a task with a queue, which ends with the node.
fn queue<T: Send + 'static, F: Future<Output = ()> + Send + 'static>(
    shared: &Arc<Shared>,
    serve: impl FnOnce(Arc<Shared>, mpsc::Receiver<Vec<T>>) -> F,
) -> mpsc::Sender<Vec<T>> {
    let (sender, queue) = mpsc::channel(QUEUE_LENGTH);
    let (cancel, served) = (shared.cancel.clone(), serve(Arc::clone(shared), queue));
    tokio::spawn(async move { cancel.run_until_cancelled(served).await });
    sender
}

/// What waits in a queue, with the first of it.
fn drain_queue<T>(mut first: Vec<T>, queue: &mut mpsc::Receiver<Vec<T>>) -> Vec<T> {
    while let Ok(more) = queue.try_recv() {
        first.extend(more);
    }
    first
}

async fn change_all(shared: Arc<Shared>, mut queue: mpsc::Receiver<Vec<(Slot, RecordChange)>>) {
    while let Some(first) = queue.recv().await {
        change(&shared, drain_queue(first, &mut queue)).await;
    }
}

async fn send_requests(
    shared: Arc<Shared>,
    to: Member,
    mut queue: mpsc::Receiver<Vec<(Slot, Claim, MemberRequest)>>,
) {
    let mut response_timeout = RESPONSE_TIMEOUT;
    while let Some(first) = queue.recv().await {
        // One question for each slot: those for the same one go one after the other.
        let mut todo = drain_queue(first, &mut queue);
        while !todo.is_empty() {
            let mut slots = BTreeSet::new();
            let (now, later) = todo.into_iter().partition(|(slot, ..)| slots.insert(*slot));
            todo = later;
            let is_in_time = ask(&shared, &to, now, response_timeout).await;
            let longer = (response_timeout * 2).min(MAX_RESPONSE_TIMEOUT);
            response_timeout = if is_in_time { RESPONSE_TIMEOUT } else { longer };
        }
    }
}

impl Driver {
    /// Runs until the node stops.
    pub(crate) async fn run(mut self) {
        let mut view = self.membership.view();
        let mut tick = interval(TICK_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let cancel = self.shared.cancel.clone();
        let mut writable = self.shared.ledger.watch_writable();
        self.on_nodes_observed(&mut view).await;
        // What was seen may have ended it.
        while !cancel.is_cancelled() {
            let events = tokio::select! {
                () = cancel.cancelled() => return,
                changed = view.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.on_nodes_observed(&mut view).await;
                    continue;
                }
                Ok(()) = writable.changed() => {
                    let is_writable = *writable.borrow_and_update();
                    self.on_writable_changed(is_writable).await;
                    continue;
                }
                Some(told) = self.events.recv() => told,
                Some(events) = self.from_lanes.recv() => DriverMessage::Events(events),
                _ = tick.tick() => {
                    // A stream may have ended after its peer was seen to be back.
                    self.keep_streams();
                    DriverMessage::Events(vec![Event::Tick])
                }
            };
            self.on_message(events).await;
        }
    }

    /// Takes what is told, and what was told meanwhile: many small changes become few larger ones.
    async fn on_message(&mut self, told: DriverMessage) {
        let mut events = Vec::new();
        let mut next = Some(told);
        while let Some(told) = next {
            match told {
                DriverMessage::Events(more) => events.extend(more),
                DriverMessage::Handover(slots, declined) => {
                    self.step(std::mem::take(&mut events)).await;
                    let handed = slots.into_iter().map(|(slot, claim)| Event::HandoverReceived(slot, claim));
                    // Whoever asked may have gone.
                    let _ = declined.send(self.step(handed.collect()).await);
                }
                DriverMessage::SlotQuery(slots, answer) => {
                    self.step(std::mem::take(&mut events)).await;
                    let now = self.shared.now();
                    let known = slots.into_iter().map(|slot| (slot, self.slots.slot_knowledge(now, slot)));
                    // Whoever asked may have gone.
                    let _ = answer.send(known.collect());
                }
                DriverMessage::PeerDisconnected(member, done) => {
                    self.step(std::mem::take(&mut events)).await;
                    self.on_peer_disconnected(member, done).await;
                }
            }
            next = if events.len() < MAX_EVENTS { self.events.try_recv().ok() } else { None };
        }
        self.step(events).await;
    }

    async fn on_peer_disconnected(&mut self, member: Member, done: oneshot::Sender<()>) {
        // In this order: what was counted before is counted no more.
        self.step(vec![Event::PeerDisconnected(member.clone())]).await;
        if let Some(peer) = self.shared.peers.get(&member) {
            // It fails when the ledger is closed: the node stops.
            let _ = self.shared.ledger.peer_disconnected(peer.number).await;
        }
        let _ = done.send(());
    }

    /// Feeds events, and does what is to be done about all of them. Gives the slots that were handed over and are not
    /// taken.
    async fn step(&mut self, events: Vec<Event>) -> BTreeSet<Slot> {
        let now = self.shared.now();
        let is_renewal = |event: &Event| {
            matches!(event, Event::Tick | Event::LeaseRenewed { .. } | Event::LeaseRenewalAnswered { .. })
        };
        let is_quiet = events.iter().all(is_renewal);
        let mut effects = Vec::new();
        for event in events {
            effects.extend(self.slots.step(now, event));
        }
        // Only time passed: what nobody decided did not change, but for reasons, which are not urgent.
        let is_renewal = |effect: &Effect| matches!(effect, Effect::RenewLeases { .. });
        let is_quiet =
            is_quiet && effects.iter().all(is_renewal) && self.published.elapsed() < PUBLISH_INTERVAL;
        let declined = self.perform(effects).await;
        // Before anybody is sent here.
        self.leases.publish(&self.shared, &self.slots, now);
        if !is_quiet {
            self.publish();
        }
        declined
    }

    /// The disk takes writes, or no longer.
    async fn on_writable_changed(&mut self, is_writable: bool) {
        if is_writable {
            limited!(info, "the disk takes writes again: catching up");
        } else {
            limited!(warn, "the disk takes no writes: owning nothing until it does");
        }
        self.membership.set_writable(is_writable);
        self.step(vec![Event::Writable(is_writable)]).await;
    }

    /// Gossip shows other nodes.
    async fn on_nodes_observed(&mut self, view: &mut watch::Receiver<Arc<View>>) {
        let view = Arc::clone(&view.borrow_and_update());
        if let Some(found) = view.me().and_then(|me| me.rolled_back) {
            self.membership.set_owned(Vec::new());
            self.membership.set_halted(Vec::new());
            stale_volume::reidentify(&self.shared, found).await;
            return;
        }
        self.number_peers(&view).await;
        let mut seen = Vec::with_capacity(view.members.len());
        for node in &view.members {
            let member = wire::member_of(node);
            if member.node == self.shared.me.node && member != self.shared.me {
                continue;
            }
            seen.push(ObservedNode {
                member,
                zone: node.zone.clone(),
                is_alive: node.is_usable(),
                is_draining: matches!(node.readiness, Readiness::Draining | Readiness::Leaving),
                is_writable: node.readiness != Readiness::ReadOnly,
                decommission: node.decommission,
                owned: node.owned.iter().copied().collect(),
            });
        }
        // Before anybody on a stream speaks of these epochs.
        if let Some(highest) = seen.iter().flat_map(|seen| seen.owned.values()).max() {
            self.shared.note_epoch(*highest);
        }
        self.keep_streams();
        self.step(vec![Event::NodesObserved(seen)]).await;
    }

    /// Gives each other member a number, the living ones first, and takes the numbers back of those that are gone for good.
    async fn number_peers(&mut self, view: &View) {
        let others = view.members.iter().filter(|node| node.node_id != self.shared.me.node);
        let others: BTreeMap<Member, &ViewMember> =
            others.map(|node| (wire::member_of(node), node)).collect();
        let is_usable = |(member, node): (&Member, &&ViewMember)| node.is_usable().then(|| member.clone());
        self.alive = others.iter().filter_map(is_usable).collect();
        for peer in self.shared.peers.longest_away() {
            if !others.contains_key(&peer.member) && !self.streams.contains_key(&peer.member) {
                self.release(&peer).await;
            }
        }
        for member in &self.alive.clone() {
            if self.shared.peers.of(member).is_none() && !self.make_room().await {
                limited!(error, %member, most = MAX_PEERS, "more nodes are alive than this node can number: no stream leads to this member, which gets no copies from here until others leave; a cluster has at most one node more than that");
            }
            if let Some(peer) = self.shared.peers.of(member) {
                peer.set_seen(self.shared.now());
            }
        }
        for (member, node) in &others {
            if let Some(peer) = self.shared.peers.of(member) {
                peer.set_address(&node.grpc_address);
                peer.set_greets(node.greets);
            }
        }
        let is_known = |member: &Member| self.shared.peers.get(member).is_some();
        self.requesters.retain(|member, _| is_known(member));
        self.shared.forget_streams(|node| view.get(node).is_some());
    }

    /// Gives the number back of the peer that is away for the longest time; false if all are alive.
    async fn make_room(&self) -> bool {
        let is_away = |peer: &&Arc<PeerHandle>| {
            !self.alive.contains(&peer.member) && !self.streams.contains_key(&peer.member)
        };
        let peers = self.shared.peers.longest_away();
        let Some(peer) = peers.iter().find(is_away) else { return false };
        self.release(peer).await;
        true
    }

    /// Gives the number of a peer without a stream back.
    async fn release(&self, peer: &PeerHandle) {
        tracing::debug!(member = %peer.member, number = peer.number.number(), "giving the number of a peer back");
        // Lanes forgot it when its stream ended. What the driver said of it since is in their queues before this.
        let _ = self.shared.ledger.peer_disconnected(peer.number).await;
        self.shared.peers.release(&peer.member);
    }

    /// Keeps a stream to each living peer, and to no other.
    fn keep_streams(&mut self) {
        self.streams.retain(|member, (stop, task)| {
            if !self.alive.contains(member) {
                // It ends by itself, and says that the stream is lost.
                stop.cancel();
            }
            !task.is_finished()
        });
        for member in &self.alive {
            if self.streams.contains_key(member) {
                continue;
            }
            let Some(peer) = self.shared.peers.get(member) else { continue };
            let stop = self.shared.cancel.child_token();
            let task = tokio::spawn(owner_stream::keep(Arc::clone(&self.shared), peer, stop.clone()));
            self.streams.insert(member.clone(), (stop, AbortOnDropHandle::new(task)));
        }
    }

    /// Does what is to be done. Gives the slots that were handed over and are not taken.
    async fn perform(&mut self, effects: Vec<Effect>) -> BTreeSet<Slot> {
        let mut declined = BTreeSet::new();
        let me = self.shared.me.clone();
        let mut leads = Vec::new();
        let mut asks: BTreeMap<Member, Vec<(Slot, Claim, MemberRequest)>> = BTreeMap::new();
        let mut changes = Vec::new();
        let mut catch_ups: BTreeMap<Vec<Member>, BTreeMap<Slot, Claim>> = BTreeMap::new();
        let mut recovered = Vec::new();
        for effect in effects {
            match effect {
                Effect::SendRequest { to, slot, claim, request } if to == me => {
                    changes.extend(RecordChange::requested(request, claim).map(|change| (slot, change)));
                }
                Effect::SendRequest { to, slot, claim, request } => {
                    asks.entry(to).or_default().push((slot, claim, request));
                }
                Effect::OfferSync { to, slot, claim, members, is_confirmed, previous } if to == me => {
                    let accept = RecordChange::Accept { claim, members, is_confirmed, previous, offer: None };
                    changes.push((slot, accept));
                }
                Effect::OfferSync { to, slot, claim, members, is_confirmed, previous } => {
                    if let Some(peer) = self.shared.peers.get(&to) {
                        let peer = peer.number;
                        leads.push((
                            slot,
                            OwnerCommand::OfferSync { peer, claim, members, is_confirmed, previous },
                        ));
                    }
                }
                Effect::CatchUp { slot, claim, from } => {
                    catch_ups.entry(from).or_default().insert(slot, claim);
                }
                Effect::DeclineHandover { slot, .. } => _ = declined.insert(slot),
                Effect::RecordFormed { slot } => changes.push((slot, RecordChange::RecordFormed)),
                Effect::RecordRecovery { slot, claim, recovery } => recovered.push((slot, claim, recovery)),
                Effect::BeginServing { slot, claim, write_quorum } => {
                    self.shared.counters.takeovers.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(slot = slot.number(), epoch = claim.epoch.0, "owning a slot");
                    leads.push((slot, OwnerCommand::BeginServing { claim, write_quorum }));
                }
                Effect::AddInSync { slot, claim, member } => {
                    // This node's own copy counts by itself.
                    if let Some(peer) = self.shared.peers.get(&member) {
                        leads.push((slot, OwnerCommand::AddInSync { claim, peer: peer.number }));
                    }
                }
                Effect::RemoveReplica { slot, claim, member } => {
                    if let Some(peer) = self.shared.peers.get(&member) {
                        leads.push((slot, OwnerCommand::RemoveReplica { claim, peer: peer.number }));
                    }
                }
                Effect::RenewLeases { to, slots } => {
                    if let Some(peer) = self.shared.peers.get(&to) {
                        self.shared.peers.send(peer.number, Outgoing::LeaseRenewal(slots));
                    }
                }
                Effect::StopAppends { slot, claim } => {
                    leads.push((slot, OwnerCommand::StopAppends { claim }));
                }
                Effect::StepDown { slot } => {
                    tracing::debug!(slot = slot.number(), "stepping down");
                    leads.push((slot, OwnerCommand::StepDown));
                }
            }
        }
        if !recovered.is_empty() {
            let slots: BTreeSet<Slot> = recovered.iter().map(|(slot, ..)| *slot).collect();
            if let Err(error) = recovery::record(&self.shared, recovered).await {
                limited!(error, %error, slots = slots.len(), "what slots go on with could not be recorded: not owning them");
                leads.retain(|(slot, _)| !slots.contains(slot));
                let _ = self.shared.from_lanes.send(slots.into_iter().map(Event::OwnershipLost).collect());
            }
        }
        if !leads.is_empty() && self.shared.ledger.apply_owner_commands(leads).await.is_err() {
            // The ledger is closed: the node stops.
            return declined;
        }
        if !changes.is_empty() {
            let shared = &self.shared;
            let changer = self.changer.get_or_insert_with(|| queue(shared, change_all));
            // A queue that is full is of a disk that hangs: what is asked is asked again.
            let _ = changer.try_send(changes);
        }
        for (to, asks) in asks {
            let shared = &self.shared;
            let asker = self
                .requesters
                .entry(to.clone())
                .or_insert_with(|| queue(shared, |shared, asks| send_requests(shared, to, asks)));
            let _ = asker.try_send(asks);
        }
        for (from, slots) in catch_ups {
            tokio::spawn(catch_up_for_claims(Arc::clone(&self.shared), from, slots));
        }
        declined
    }

    /// Until the cluster has an identity: notes of which members this node would take one.
    fn publish_known_members(&mut self) {
        if self.is_identified {
            return;
        }
        let records = (0..SLOTS).filter_map(Slot::new).map(|slot| (slot, self.slots.record(slot).clone()));
        let records: Vec<_> = records.collect();
        let forming = self.slots.record(Slot::FIRST).forming();
        self.shared.is_forming.store(forming.is_some(), Ordering::Relaxed);
        let mut known = members_of(&records);
        if !known.is_empty() {
            // Of a cluster that has no identity yet: whoever is heard belongs to it, for those of another are not.
            known.extend(self.shared.view.borrow().members.iter().map(|member| member.storage_id));
        }
        self.membership.identity().set_known_nodes(known, forming);
        if self.shared.ledger.cluster_id().borrow().is_some() {
            self.is_identified = true;
            self.slots.set_identified();
        }
    }

    /// Publishes what this node owns, and where slots are.
    fn publish(&mut self) {
        self.published = Instant::now();
        if self.durable_index_sent.elapsed() >= DURABLE_INDEX_INTERVAL {
            self.durable_index_sent = self.published;
            self.membership.set_durable(self.shared.ledger.durable_index());
        }
        self.shared.note_epoch(self.slots.highest());
        self.publish_known_members();
        let owned = self.slots.owned();
        if owned != self.owned {
            self.membership.set_owned(owned.clone());
            self.owned = owned;
        }
        // It says nothing where nothing changed.
        self.membership.set_halted(self.slots.halted());
        let mut addresses = self.shared.peers.addresses();
        addresses.insert(self.shared.me.node.clone(), self.shared.config.facts.grpc_address.clone());
        let before = Arc::clone(&self.shared.routes.borrow());
        let routes = Routes::of(&self.slots, addresses, &before, self.published);
        self.shared.routes.send_if_modified(|known| {
            let is_new = **known != routes;
            if is_new {
                *known = Arc::new(routes);
            }
            is_new
        });
    }
}

/// Changes this node's own records.
async fn change(shared: &Arc<Shared>, changes: Vec<(Slot, RecordChange)>) {
    // A slot may be changed more than once: what comes back is in the same order for each.
    let mut asked: HashMap<Slot, VecDeque<ChangedFor>> = HashMap::new();
    for (slot, change) in &changes {
        asked.entry(*slot).or_default().push_back(change.changed_for());
    }
    let Ok(changed) = shared.ledger.change_slots(changes).await else { return };
    let mut events = Vec::with_capacity(2 * changed.len());
    for (slot, changed) in changed {
        let Some(asked) = asked.get_mut(&slot).and_then(VecDeque::pop_front) else { continue };
        events.push(Event::RecordChanged(slot, changed.record));
        events.extend(asked.event(shared.me.clone(), slot, changed.outcome.ok()));
    }
    shared.send_events(events).await;
}

/// Puts questions to another node. Returns whether it answered, or failed, in time.
async fn ask(
    shared: &Arc<Shared>,
    to: &Member,
    asks: Vec<(Slot, Claim, MemberRequest)>,
    response_timeout: Duration,
) -> bool {
    let answers = timeout(response_timeout, try_ask(shared, to, &asks)).await;
    let is_in_time = answers.is_ok();
    let answers = answers.unwrap_or_else(|_| Err("no answer in time".to_owned()));
    let answers = answers.unwrap_or_else(|reason| {
        tracing::debug!(%to, asks = asks.len(), reason, "questions were not answered");
        HashMap::new()
    });
    let events = asks.into_iter().map(|(slot, claim, ask)| {
        let answer = match (answers.get(&slot).cloned(), ask) {
            (Some(MemberResponse::SlotKnown { known, .. }), MemberRequest::QuerySlot { sent_at }) => {
                MemberResponse::SlotKnown { asked: sent_at, known }
            }
            (None | Some(MemberResponse::SlotKnown { .. }), _) => MemberResponse::Unavailable,
            (Some(answer), _) => answer,
        };
        Event::Response { from: to.clone(), slot, claim, answer }
    });
    shared.send_events(events.collect()).await;
    is_in_time
}

async fn try_ask(
    shared: &Arc<Shared>,
    to: &Member,
    asks: &[(Slot, Claim, MemberRequest)],
) -> Result<HashMap<Slot, MemberResponse>, String> {
    if shared.rolled_back(to).is_some() {
        return Err("its data directory is older than it was".to_owned());
    }
    let peer = shared.peers.get(to).ok_or("it is not known")?;
    let channel = shared.peers.channel(&peer)?;
    let mut client = ReplicaServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let questions = asks.iter().map(|(slot, claim, ask)| SlotAsk {
        slot: u32::from(slot.number()),
        claim: Some(wire::to_claim(claim)),
        ask: Some(match ask {
            MemberRequest::Promise => Asks::Promise(SlotNothing {}),
            MemberRequest::ConfirmMembers => Asks::Confirm(SlotNothing {}),
            MemberRequest::TakeOver => Asks::TakeOver(SlotNothing {}),
            MemberRequest::QuerySlot { .. } => Asks::Inquire(SlotNothing {}),
        }),
    });
    let asks = SlotAsks {
        from: Some(wire::to_member(&shared.me)),
        to: Some(wire::to_member(to)),
        asks: questions.collect(),
    };
    let answers = client.slots(asks).await.map_err(|status| status.to_string())?.into_inner();
    let mut found = HashMap::new();
    let (bounds, unread) = (shared.bounds(), |error| shared.reject(&to.node, &error).message().to_owned());
    for answer in answers.answers {
        let slot = wire::slot(answer.slot).map_err(unread)?;
        let answer = match answer.answer {
            Some(To::Promised(promise)) => {
                wire::promise(&promise, bounds).map(MemberResponse::Promised).map_err(unread)?
            }
            Some(To::Done(_)) => MemberResponse::Done,
            Some(To::Refused(claim)) => {
                wire::claim(Some(&claim), bounds).map(MemberResponse::Refused).map_err(unread)?
            }
            Some(To::Known(known)) => {
                let known = wire::slot_knowledge(&known, bounds).map_err(unread)?;
                MemberResponse::SlotKnown { asked: 0, known }
            }
            Some(To::NotNow(_)) | None => MemberResponse::Unavailable,
        };
        found.insert(slot, answer);
    }
    Ok(found)
}

/// Fetches the best history of slots that this node claims. Each slot goes on as soon as it is complete, or fails by itself.
async fn catch_up_for_claims(shared: Arc<Shared>, from: Vec<Member>, slots: BTreeMap<Slot, Claim>) {
    // To a queue without bound, but there is one event for each slot.
    let tell = |slot, claim, is_complete| {
        let _ = shared.from_lanes.send(vec![Event::CaughtUp { slot, claim, is_complete }]);
    };
    let mut sources = ClaimSources::new(&shared.me, from, slots);
    for (slot, claim) in sources.take_complete() {
        tell(slot, claim, true);
    }
    while let Some(ClaimRun { source, mode, slots }) = sources.next_run() {
        catch_up::run(&shared, &source, slots, mode, |slot, outcome| {
            if let Some((claim, is_complete)) = sources.on_done(slot, &outcome) {
                tell(slot, claim, is_complete);
            }
        })
        .await;
    }
}
