//! Takes appends to the owners of their contexts, and takes them elsewhere when an owner is lost or moves.
//!
//! Invariants: an append is in [`Pending`] from when it is taken until its receipt is told. It is either under
//! way on one stream or held by its group, never both. A group's appends are under way on one stream at a time,
//! in the order of their tags, and nothing of it is sent elsewhere before all that is there was answered, or the
//! stream has ended. So entries of one context are stored in the order they were sent: whatever a former
//! owner still stores of them it had before, and the entry ids keep that from being stored again.
//!
//! A node that has refused an append for now refuses all later ones of its context on that stream, even if it could
//! take them again: they were sent before it was known that one is missing. So what was refused is sent again
//! on another stream.
//!
//! A group is a slot, because after one refusal a node refuses whole slots. With one address nobody is asked who owns
//! what: every group flows to that address, and one that it cannot serve holds up no other.
//!
//! | a group is | and takes appends | until |
//! | --- | --- | --- |
//! | new | and is searching | |
//! | searching | and holds them | the owner is found → flowing; nobody knows → pausing |
//! | flowing | and sends them | one is refused for now → holding; the stream ends → pausing; it ends because of one that is too large, which is refused → searching |
//! | draining | and holds them | the last that is under way is answered → searching; one is refused for now → holding; the stream ends → as if flowing |
//! | holding | and holds them, and all that are answered now, so that they are sent again in order | the last is answered → pausing |
//! | pausing | and holds them | the pause is over → searching; it took too long → closed |
//! | closed | and refuses them | the appender ends |

use std::{mem, sync::Arc};

use futures::{
    FutureExt as _, StreamExt as _, TryFutureExt as _,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered, SelectAll},
};
use ledger_core::slot::{SLOTS, Slot};
use ledger_proto::ledger::v1::AppendResults;
use prost::Message as _;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};
use tonic::{Code, Response, Status};

use super::{
    MAX_ITEMS, Receipt, RouterMessage, SentAppend,
    outgoing::{self, Sender},
    pending::{Pending, PendingAppend, StreamId},
};
use crate::{
    Client, ClientError,
    address::Address,
    nodes::LeftAlone,
    pulse::UnderWay,
    refusal::Failure,
    retry::{Attempts, Failed, pause},
    route::Target,
};

/// Streams to one node from which on the oldest is drained for another: each time a node refuses something there is
/// another, and a former one ends when nothing flows on it.
const STREAMS: usize = 4;

/// What came of a stream: answers, an error, or its end.
type StreamEvent = (StreamId, Option<Result<AppendResults, Status>>);

/// The task behind an appender.
pub(super) struct Router {
    client: Client,
    queue: mpsc::Receiver<SentAppend>,
    /// More may be sent.
    is_open: bool,
    told: mpsc::UnboundedSender<RouterMessage>,
    room: Arc<Semaphore>,
    pending: Pending,
    groups: Vec<Group>,
    streams: Vec<OwnerStream>,
    last_stream: StreamId,
    heard: SelectAll<BoxStream<'static, StreamEvent>>,
    /// Groups that are draining or holding.
    holding: Vec<u16>,
    /// Groups that are pausing, and until when.
    pausing: Vec<(Instant, u16)>,
    /// Groups whose owner is to be searched for.
    to_search: Vec<u16>,
    searches: FuturesUnordered<BoxFuture<'static, Found>>,
}

/// Where groups are.
type Found = Vec<(u16, Result<Target, Failed>)>;

#[derive(Debug, Default)]
struct Group {
    at: GroupState,
    /// Appends under way.
    in_flight: u32,
    /// Appends that wait, in any order.
    waiting: Vec<u32>,
    /// Failures in a row, and since when.
    tried: u32,
    since: Option<Instant>,
    left_alone: LeftAlone,
}

#[derive(Debug, Default)]
enum GroupState {
    #[default]
    New,
    Searching,
    Sending(StreamId),
    Draining(StreamId),
    Holding {
        on: StreamId,
        why: Failed,
    },
    Pausing,
    Closed(Status),
}

/// A stream of appends to one owner.
struct OwnerStream {
    id: StreamId,
    address: Address,
    sender: Sender,
    in_flight: usize,
    /// It has refused an append for now: nothing is sent on it that is not there already.
    has_refused: bool,
    has_answered: bool,
    /// When it last answered, or began to have something to answer.
    last_answered: Instant,
    _under_way: Option<UnderWay>,
    /// Ends the answers when it is dropped.
    _gone: oneshot::Sender<()>,
}

impl Router {
    /// A router, when a node has answered.
    pub(super) async fn start(
        client: Client,
        queue: mpsc::Receiver<SentAppend>,
        told: mpsc::UnboundedSender<RouterMessage>,
        room: Arc<Semaphore>,
    ) -> Result<Self, ClientError> {
        let mut router = Self {
            client,
            queue,
            is_open: true,
            told,
            room,
            pending: Pending::default(),
            groups: Vec::new(),
            streams: Vec::new(),
            last_stream: 0,
            heard: SelectAll::new(),
            holding: Vec::new(),
            pausing: Vec::new(),
            to_search: Vec::new(),
            searches: FuturesUnordered::new(),
        };
        router.groups.resize_with(SLOTS.into(), Group::default);
        let mut attempts = Attempts::new(router.client.options());
        while let Err(failed) = attempts.within(router.begin(&attempts.left_alone)).await? {
            attempts.after(failed).await?;
        }
        Ok(router)
    }

    /// Makes sure that there is a node, and with one address opens the stream to it.
    async fn begin(&mut self, left_alone: &LeftAlone) -> Result<(), Failed> {
        let Some(Target { address, channel }) = self.only() else {
            let address = self.client.nodes().any(left_alone);
            let slots: Vec<_> = Slot::new(0).into_iter().collect();
            return self.client.locate(&address, &slots).await.map(drop);
        };
        let (sender, outgoing) = outgoing::channel();
        let request = self.client.written(outgoing);
        let answers = self.client.ledger_service_on(channel).append(request).await;
        let answers = answers.map_err(|status| Failed::new(address.clone(), status))?.into_inner();
        self.add(address, sender, answers.boxed());
        Ok(())
    }

    /// Where everything goes, if there is one address.
    fn only(&self) -> Option<Target> {
        let (address, channel) = self.client.nodes().only()?;
        Some(Target { address: address.clone(), channel: channel.clone() })
    }

    pub(super) async fn run(mut self) {
        let mut sent = Vec::with_capacity(MAX_ITEMS);
        while self.is_open || !self.pending.is_empty() {
            let due = self.due();
            tokio::select! {
                biased;
                Some((id, heard)) = self.heard.next(), if !self.heard.is_empty() => self.hear(id, heard),
                count = self.queue.recv_many(&mut sent, MAX_ITEMS), if self.is_open => {
                    self.is_open = count > 0;
                    sent.drain(..).for_each(|sent| self.take(sent));
                }
                Some(found) = self.searches.next(), if !self.searches.is_empty() => self.found(found),
                () = at(due), if due.is_some() => self.wake(),
                () = self.told.closed() => return,
            }
            self.search();
            self.streams.iter_mut().for_each(|stream| stream.sender.flush());
        }
        let _ = self.told.send(RouterMessage::Finished);
    }

    /// Takes an append from the caller.
    fn take(&mut self, SentAppend { tag, mut append }: SentAppend) {
        let made = append.entry_id.is_none();
        let id = append.identify();
        let group = Slot::of(&append.context).number();
        let kept = PendingAppend { tag, append, made, group, stream: 0 };
        let state = &mut self.groups[usize::from(group)];
        match &state.at {
            GroupState::Sending(stream) => {
                let stream = *stream;
                let place = self.pending.insert(kept);
                self.put(place, stream);
            }
            GroupState::Closed(status) => {
                let result = Err(ClientError::from(status.clone()).of_entry(&id));
                let _ = self.told.send(RouterMessage::Failed(vec![Receipt { tag, result }]));
            }
            at => {
                if matches!(at, GroupState::New) {
                    state.at = GroupState::Searching;
                    self.to_search.push(group);
                }
                state.waiting.push(self.pending.insert(kept));
            }
        }
    }

    /// Sends an append on a stream.
    fn put(&mut self, place: u32, on: StreamId) {
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == on) else { return };
        let Some(kept) = self.pending.get_mut(place.into()) else { return };
        kept.stream = on;
        self.groups[usize::from(kept.group)].in_flight += 1;
        if stream.in_flight == 0 {
            stream.last_answered = Instant::now();
        }
        stream.in_flight += 1;
        if let Some(item) = self.pending.item(place) {
            stream.sender.put(item);
        }
    }

    fn hear(&mut self, id: StreamId, heard: Option<Result<AppendResults, Status>>) {
        let Some(index) = self.streams.iter().position(|stream| stream.id == id) else { return };
        let address = self.streams[index].address.clone();
        let failed = match heard {
            Some(Ok(results)) => match self.answered(index, results) {
                Ok(()) => return,
                Err(status) => Failed { failure: Failure::Broken, ..Failed::new(address, status) },
            },
            Some(Err(status)) => Failed::new(address, status),
            None => Failed::new(address, Status::unavailable("the node ended the stream of appends")),
        };
        self.ended(index, &failed);
    }

    /// Tells the receipts of what was answered for good, and holds what was not.
    fn answered(&mut self, index: usize, answer: AppendResults) -> Result<(), Status> {
        let AppendResults { mut results, mut positions, copies } = answer;
        let Self { streams, groups, pending, holding, client, .. } = self;
        let stream = &mut streams[index];
        let (mut strange, mut held) = (false, false);
        if !mem::replace(&mut stream.has_answered, true) {
            client.nodes().answered(&stream.address);
        }
        stream.last_answered = Instant::now();
        results.retain_mut(|result| {
            let Some(kept) = pending.get_mut(result.tag).filter(|kept| kept.stream == stream.id) else {
                strange = true;
                return false;
            };
            let place = result.tag as u32;
            kept.stream = 0;
            stream.in_flight -= 1;
            let group = &mut groups[usize::from(kept.group)];
            group.in_flight -= 1;
            if let Some(error) = &result.error
                && matches!(group.at, GroupState::Sending(_) | GroupState::Draining(_))
                && let failure @ Failure::Busy { .. } = Failure::of_item(error.code, error.retry_after_ms)
            {
                let status = Status::unavailable(error.message.clone());
                let why = Failed { at: stream.address.clone(), status, failure };
                group.at = GroupState::Holding { on: stream.id, why };
                stream.has_refused = true;
                if let Some(slot) = Slot::new(kept.group) {
                    client.owners().forget(slot, &stream.address);
                }
                if !holding.contains(&kept.group) {
                    holding.push(kept.group);
                }
            }
            if matches!(group.at, GroupState::Holding { .. }) {
                group.waiting.push(place);
                held = true;
                return false;
            }
            (group.tried, group.since) = (0, None);
            if let Some(kept) = pending.remove(place) {
                result.tag = kept.tag;
                result.repeated_id &= !kept.made;
            }
            true
        });
        if held {
            // They may be of what was held.
            positions.clear();
        }
        if !results.is_empty() {
            let _ = self.told.send(RouterMessage::Results(AppendResults { results, positions, copies }));
        }
        if !self.holding.is_empty() {
            self.release();
        }
        if strange { Err(Status::internal("the node answered an append that was not sent")) } else { Ok(()) }
    }

    /// Lets the groups go on of which everything is answered.
    fn release(&mut self) {
        let is_answered = |group: &u16| self.groups[usize::from(*group)].in_flight == 0;
        let (answered, left) = mem::take(&mut self.holding).into_iter().partition::<Vec<_>, _>(is_answered);
        self.holding = left;
        let pausing = self.pausing.len();
        for group in answered {
            let state = &mut self.groups[usize::from(group)];
            match mem::take(&mut state.at) {
                GroupState::Holding { why, .. } => self.fail(group, &why),
                GroupState::Draining(_) if !state.waiting.is_empty() => {
                    state.at = GroupState::Searching;
                    self.to_search.push(group);
                }
                _ => {}
            }
        }
        self.pause_together(pausing);
    }

    /// Groups that began to pause at once go on at once: so they try one stream, and not one each.
    fn pause_together(&mut self, first: usize) {
        if let Some((first, others)) = self.pausing.get_mut(first..).and_then(<[_]>::split_first_mut) {
            for (until, _) in others {
                *until = first.0;
            }
        }
    }

    /// Lets what flows on a stream go to another when all that is under way on it is answered.
    fn drain(&mut self, stream: StreamId) {
        for (number, group) in (0..).zip(&mut self.groups) {
            if matches!(group.at, GroupState::Sending(id) if id == stream) {
                group.at = GroupState::Draining(stream);
                self.holding.push(number);
            }
        }
    }

    /// A stream ended or is given up: what was under way on it will be sent again.
    fn ended(&mut self, index: usize, failed: &Failed) {
        let stream = self.streams.remove(index);
        let under_way = self.pending.on(stream.id);
        let too_large = self.too_large(&under_way, failed);
        for place in under_way {
            let Some(kept) = self.pending.get_mut(place.into()) else { continue };
            kept.stream = 0;
            let group = &mut self.groups[usize::from(kept.group)];
            group.in_flight -= 1;
            if Some(place) != too_large {
                group.waiting.push(place);
            }
        }
        if let Some(kept) = too_large.and_then(|place| self.pending.remove(place)) {
            let result = Err(ClientError::from(failed.status.clone()));
            let _ = self.told.send(RouterMessage::Failed(vec![Receipt { tag: kept.tag, result }]));
            // Nothing is wrong with the node nor with the others: they go on at once.
            self.drain(stream.id);
            return self.release();
        }
        match failed.failure {
            Failure::Broken => self.client.nodes().broke(&stream.address),
            Failure::Moved { .. } | Failure::Busy { .. } | Failure::Final => {}
        }
        self.client.owners().forget_node(&stream.address);
        let pausing = self.pausing.len();
        for number in 0..self.groups.len() as u16 {
            if self.groups[usize::from(number)].at.stream() == Some(stream.id) {
                self.holding.retain(|holding| *holding != number);
                self.fail(number, failed);
            }
        }
        self.pause_together(pausing);
    }

    /// The append because of which a node ended a stream with a message too large for it: the largest. One larger
    /// than [`outgoing::MAX_BYTES`] has a message of its own, so if any is too large, the largest is. Where others
    /// are too, the next stream ends because of them: with one less each time.
    fn too_large(&self, under_way: &[u32], failed: &Failed) -> Option<u32> {
        if failed.failure != Failure::Final
            || !matches!(failed.status.code(), Code::OutOfRange | Code::ResourceExhausted)
        {
            return None;
        }
        let sizes =
            under_way.iter().filter_map(|place| Some((self.pending.item(*place)?.encoded_len(), *place)));
        sizes.filter(|(size, _)| *size > outgoing::MAX_BYTES).max().map(|(_, place)| place)
    }

    /// A group's appends could not be stored for now: pauses, or gives up.
    fn fail(&mut self, number: u16, failed: &Failed) {
        let options = self.client.options();
        let group = &mut self.groups[usize::from(number)];
        if group.waiting.is_empty() {
            group.at = GroupState::New;
            return;
        }
        let now = Instant::now();
        group.tried = group.tried.saturating_add(1);
        let is_late = now >= *group.since.get_or_insert(now) + options.timeout;
        if failed.failure == Failure::Final || is_late || group.tried == options.tries {
            return self.close(number, &failed.status);
        }
        group.left_alone.add(&failed.at, failed.failure.wait(), now);
        group.at = GroupState::Pausing;
        self.pausing.push((now + pause(group.tried), number));
    }

    /// Gives up on a group.
    fn close(&mut self, number: u16, status: &Status) {
        let group = &mut self.groups[usize::from(number)];
        group.at = GroupState::Closed(status.clone());
        let mut held = mem::take(&mut group.waiting);
        self.pending.sort(&mut held);
        let kept = held.into_iter().filter_map(|place| self.pending.remove(place));
        let receipts = kept.map(|mut kept| {
            let result = Err(ClientError::from(status.clone()).of_entry(&kept.append.identify()));
            Receipt { tag: kept.tag, result }
        });
        let _ = self.told.send(RouterMessage::Failed(receipts.collect()));
    }

    /// When something is to be done though nothing is heard.
    fn due(&self) -> Option<Instant> {
        let timeout = self.client.options().timeout;
        let waiting = self.streams.iter().filter(|stream| stream.in_flight > 0);
        let stalled = waiting.map(|stream| stream.last_answered + timeout).min();
        let pausing = self.pausing.iter().map(|(until, _)| *until).min();
        stalled.into_iter().chain(pausing).min()
    }

    fn wake(&mut self) {
        let now = Instant::now();
        // Those that are due together are searched for together.
        let (due, left) = mem::take(&mut self.pausing).into_iter().partition(|(until, _)| *until <= now);
        self.pausing = left;
        for (_, group) in due {
            self.groups[usize::from(group)].at = GroupState::Searching;
            self.to_search.push(group);
        }
        let timeout = self.client.options().timeout;
        let is_stalled = |stream: &OwnerStream| stream.in_flight > 0 && stream.last_answered + timeout <= now;
        while let Some(index) = self.streams.iter().position(is_stalled) {
            let text = format!("the node answered no append within {timeout:?}");
            let failed = Failed::new(self.streams[index].address.clone(), Status::unavailable(text));
            self.ended(index, &Failed { failure: Failure::Broken, ..failed });
        }
    }

    /// Starts to search for the owners of the groups that need one.
    fn search(&mut self) {
        if self.to_search.is_empty() {
            return;
        }
        let groups = mem::take(&mut self.to_search);
        if let Some(target) = self.only() {
            return self.found(groups.into_iter().map(|group| (group, Ok(target.clone()))).collect());
        }
        let wanted: Vec<_> = groups
            .iter()
            .filter_map(|group| {
                Some((Slot::new(*group)?, self.groups[usize::from(*group)].left_alone.clone()))
            })
            .collect();
        let client = self.client.clone();
        let search = async move { groups.into_iter().zip(client.owners_of(&wanted).await).collect() };
        self.searches.push(search.boxed());
    }

    /// Sends what groups hold to the owners that were found.
    fn found(&mut self, found: Vec<(u16, Result<Target, Failed>)>) {
        for (number, target) in found {
            let target = match target {
                Ok(target) => target,
                Err(failed) => {
                    self.fail(number, &failed);
                    continue;
                }
            };
            let group = &mut self.groups[usize::from(number)];
            if let Some(until) = group.left_alone.until(&target.address).filter(|at| *at > Instant::now()) {
                group.at = GroupState::Pausing;
                self.pausing.push((until, number));
                continue;
            }
            let mut held = mem::take(&mut group.waiting);
            self.pending.sort(&mut held);
            let stream = self.stream_to(target);
            self.groups[usize::from(number)].at = GroupState::Sending(stream);
            for place in held {
                self.put(place, stream);
            }
        }
        self.release();
        self.retire();
    }

    /// The stream to a node: the one there is, or a new one.
    fn stream_to(&mut self, Target { address, channel }: Target) -> StreamId {
        let streams = self.streams.iter().rev().filter(|stream| stream.address == address);
        if let Some(stream) = streams.clone().find(|stream| !stream.has_refused) {
            return stream.id;
        }
        if streams.clone().count() >= STREAMS
            && let Some(oldest) = self.streams.iter().find(|stream| stream.address == address)
        {
            self.drain(oldest.id);
        }
        let (sender, outgoing) = outgoing::channel();
        let (mut service, request) = (self.client.ledger_service_on(channel), self.client.written(outgoing));
        let answers = async move { service.append(request).await.map(Response::into_inner) };
        self.add(address, sender, answers.try_flatten_stream().boxed())
    }

    fn add(
        &mut self,
        address: Address,
        sender: Sender,
        answers: BoxStream<'static, Result<AppendResults, Status>>,
    ) -> StreamId {
        self.last_stream += 1;
        let id = self.last_stream;
        let (gone, is_gone) = oneshot::channel();
        let heard = answers.map(Some).chain(stream::iter([None])).map(move |heard| (id, heard));
        self.heard.push(heard.take_until(is_gone).boxed());
        let last_answered = Instant::now();
        let under_way = self.client.nodes().under_way(&address);
        self.streams.push(OwnerStream {
            id,
            _under_way: under_way,
            address,
            sender,
            in_flight: 0,
            has_refused: false,
            has_answered: false,
            last_answered,
            _gone: gone,
        });
        id
    }

    /// Ends the streams that are used no more.
    fn retire(&mut self) {
        let groups = &self.groups;
        let is_used = |id| groups.iter().any(|group| group.at.stream() == Some(id));
        self.streams.retain(|stream| stream.in_flight > 0 || is_used(stream.id));
    }
}

impl Drop for Router {
    /// Whoever waits for room is told that there will be none.
    fn drop(&mut self) {
        self.room.close();
    }
}

impl GroupState {
    const fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Sending(id) | Self::Draining(id) | Self::Holding { on: id, .. } => Some(*id),
            Self::New | Self::Searching | Self::Pausing | Self::Closed(_) => None,
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
