//! Interest in contexts: who observes which, and what waits for each of them. Nothing of it is stored.
//!
//! Each observer has a mailbox of bounded size. Broadcasts that find no room are dropped, and the observer is
//! told how many; who came and went is never dropped, but may be replaced by the list of all who are there. So an
//! observer that takes nothing costs a bounded amount of memory and delays nobody.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Weak},
};

use ledger_core::ContextId;
use ledger_proto::ledger::v1::{InterestEvent, Observer, Observers, interest_event::Event};
use ledger_store::budget::{Permit, Share};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::grpc::call;
use crate::grpc::status::Refusal;
use crate::limits::{
    OBSERVER_EVENT_BYTES, OBSERVER_EVENTS, OBSERVERS_BYTES, OBSERVERS_PER_CONTEXT, OBSERVERS_PER_NODE,
};

/// What an event takes beside its text and payload, bytes.
const EVENT: usize = 128;

/// Why an observer was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The node serves too many.
    #[error(
        "this node serves {OBSERVERS_PER_NODE} observers and takes no more: join at another node, or later"
    )]
    Node,
    /// The context has too many.
    #[error("this context has {OBSERVERS_PER_CONTEXT} observers and takes no more: join when some have left")]
    Observers,
    /// The observers of the context say too much of themselves.
    #[error(
        "names and metadata of this context's observers would have more than {OBSERVERS_BYTES} bytes: join with less \
         metadata"
    )]
    Bytes,
}

/// How a stream of events ends.
#[derive(Debug, Clone)]
pub enum StreamEnd {
    /// The observer was asked to leave.
    Left,
    /// Another one joined by its name.
    Replaced,
    /// The owner refused it.
    Refused(Box<Refusal>),
    /// The other end is gone, or what it said cannot be kept: join again.
    Broken,
}

/// All observers on this node.
#[derive(Debug)]
pub struct Interest {
    contexts: Mutex<HashMap<ContextId, Arc<ObserverGroup>>>,
    streams: Arc<Semaphore>,
    /// Memory for what waits in all mailboxes. What several wait for counts for each.
    events: Arc<Share>,
}

/// The observers of a context.
#[derive(Debug, Default)]
struct ObserverGroup(Mutex<ObserverState>);

#[derive(Debug, Default)]
struct ObserverState {
    registrations: BTreeMap<String, Registration>,
    /// Of names and metadata.
    bytes: usize,
    /// Numbers seats: an observer may be another one of the same name.
    last: u64,
}

#[derive(Debug)]
struct Registration {
    number: u64,
    observer: Observer,
    mailbox: Arc<Mailbox>,
}

/// An observer of a context, until this is dropped.
#[derive(Debug)]
pub struct Presence {
    interest: Weak<Interest>,
    context: ContextId,
    group: Arc<ObserverGroup>,
    name: String,
    number: u64,
    mailbox: Arc<Mailbox>,
    is_silent: bool,
}

/// What waits for an observer.
#[derive(Debug)]
struct Mailbox {
    state: Mutex<MailboxQueue>,
    changed: Notify,
    /// Memory for what waits in all mailboxes of the node.
    all: Arc<Share>,
}

#[derive(Debug, Default)]
struct MailboxQueue {
    items: VecDeque<Item>,
    bytes: usize,
    /// There was no room for a change: those after it are not kept either, because all are to be told anew.
    needs_resync: bool,
    end: Option<StreamEnd>,
}

#[derive(Debug)]
enum Item {
    Event(Arc<InterestEvent>, Permit),
    Missed(u64),
    /// All observers, as they are when this is taken.
    Resync,
}

/// What was taken out of a mailbox.
#[derive(Debug)]
enum MailboxItem {
    Event(InterestEvent),
    Resync,
    End(StreamEnd),
}

/// An event.
pub const fn event(event: Event) -> InterestEvent {
    InterestEvent { event: Some(event) }
}

fn pairs(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn observer_bytes(observer: &Observer) -> usize {
    observer.name.len() + pairs(&observer.metadata)
}

fn cost_bytes(event: &InterestEvent) -> usize {
    EVENT
        + match &event.event {
            Some(Event::Members(members)) => members.observers.iter().map(observer_bytes).sum(),
            Some(Event::Joined(observer)) => observer_bytes(observer),
            Some(Event::Left(name)) => name.len(),
            Some(Event::Broadcast(message)) => {
                message.from.len() + message.payload.len() + pairs(&message.metadata)
            }
            Some(Event::Missed(_)) | None => 0,
        }
}

impl Interest {
    /// Nobody's yet; what waits for observers may take so much. Broadcasts get half of it: the rest is for who comes and goes.
    pub fn within(events: Arc<Share>) -> Self {
        let streams = Arc::new(Semaphore::new(OBSERVERS_PER_NODE));
        Self { contexts: Mutex::default(), streams, events }
    }

    /// Room for one more stream on this node, until it is dropped.
    pub fn stream(&self) -> Result<OwnedSemaphorePermit, Full> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| Full::Node)
    }

    /// A mailbox whose bytes count on this node.
    fn mailbox(&self) -> Arc<Mailbox> {
        Arc::new(Mailbox { state: Mutex::default(), changed: Notify::new(), all: Arc::clone(&self.events) })
    }

    /// Makes somebody an observer of a context. The first event names all of them; the others are told. Takes the
    /// place of an observer of the same name.
    pub fn join(self: &Arc<Self>, context: &ContextId, observer: Observer) -> Result<Presence, Full> {
        let mut contexts = self.contexts.lock();
        let group = Arc::clone(contexts.entry(context.clone()).or_default());
        let mut state = group.0.lock();
        let replaced =
            state.registrations.get(&observer.name).map_or(0, |seat| observer_bytes(&seat.observer));
        let bytes = state.bytes - replaced + observer_bytes(&observer);
        let full = if replaced == 0 && state.registrations.len() >= OBSERVERS_PER_CONTEXT {
            Some(Full::Observers)
        } else {
            (bytes > OBSERVERS_BYTES).then_some(Full::Bytes)
        };
        if let Some(full) = full {
            if state.registrations.is_empty() {
                contexts.remove(context);
            }
            return Err(full);
        }
        drop(contexts);
        let mailbox = self.mailbox();
        let name = observer.name.clone();
        if let Some(older) = state.registrations.remove(&name) {
            older.mailbox.end(StreamEnd::Replaced);
        }
        state.notify(event(Event::Joined(observer.clone())));
        state.bytes = bytes;
        state.last += 1;
        let number = state.last;
        mailbox.schedule_resync();
        state
            .registrations
            .insert(name.clone(), Registration { number, observer, mailbox: Arc::clone(&mailbox) });
        drop(state);
        let interest = Arc::downgrade(self);
        Ok(Presence { interest, context: context.clone(), group, name, number, mailbox, is_silent: false })
    }

    /// Ends an observer's stream; whether there was such an observer.
    pub fn leave(&self, context: &ContextId, name: &str) -> bool {
        let Some(group) = self.group(context) else { return false };
        let mut state = group.0.lock();
        let seat = state.remove(name, None);
        if let Some(seat) = &seat {
            seat.mailbox.end(StreamEnd::Left);
            state.notify(event(Event::Left(name.to_owned())));
        }
        drop(state);
        self.forget(context);
        seat.is_some()
    }

    /// Tells all observers of a context something; how many will be sent it.
    pub fn broadcast(&self, context: &ContextId, message: InterestEvent) -> u64 {
        let Some(group) = self.group(context) else { return 0 };
        let weight = cost_bytes(&message);
        let message = Arc::new(message);
        let state = group.0.lock();
        let reached = state.registrations.values().filter(|seat| seat.mailbox.put(&message, weight));
        reached.count() as u64
    }

    /// Streams of observers on this node.
    pub fn streams(&self) -> usize {
        OBSERVERS_PER_NODE - self.streams.available_permits()
    }

    fn group(&self, context: &ContextId) -> Option<Arc<ObserverGroup>> {
        self.contexts.lock().get(context).cloned()
    }

    /// Drops a context that nobody observes.
    fn forget(&self, context: &ContextId) {
        let mut contexts = self.contexts.lock();
        if contexts.get(context).is_some_and(|group| group.0.lock().registrations.is_empty()) {
            contexts.remove(context);
        }
    }
}

impl ObserverState {
    /// Takes an observer out: the one with this number, or whichever has the name.
    fn remove(&mut self, name: &str, number: Option<u64>) -> Option<Registration> {
        let is_meant = |seat: &Registration| number.is_none_or(|number| seat.number == number);
        self.registrations.get(name).filter(|seat| is_meant(seat))?;
        let seat = self.registrations.remove(name)?;
        self.bytes -= observer_bytes(&seat.observer);
        Some(seat)
    }

    /// What the list of all takes.
    fn list_bytes(&self) -> usize {
        self.bytes + EVENT * self.registrations.len()
    }

    fn notify(&self, change: InterestEvent) {
        let weight = cost_bytes(&change);
        let change = Arc::new(change);
        for seat in self.registrations.values() {
            seat.mailbox.put_change(&change, weight);
        }
    }
}

impl Presence {
    /// The next event, or how it ended.
    pub async fn next(&self) -> Result<InterestEvent, StreamEnd> {
        match self.mailbox.take().await {
            MailboxItem::Event(event) => Ok(event),
            MailboxItem::End(end) => Err(end),
            MailboxItem::Resync => {
                // The list, what its maps take beside it, and the message that is made of it.
                let bytes = self.group.0.lock().list_bytes();
                let room = call::reserve(call::current(), 3 * bytes).await;
                let room = room.map_err(|refusal| StreamEnd::Refused(Box::new(refusal)))?;
                let state = self.group.0.lock();
                // Changes from here on are told again; those since the marker was taken are in the list.
                self.mailbox.begin_resync();
                room.hand_over(2 * state.list_bytes());
                let observers = state.registrations.values().map(|seat| seat.observer.clone()).collect();
                Ok(event(Event::Members(Observers { observer: self.name.clone(), observers })))
            }
        }
    }

    /// Goes without the others being told: they meet again elsewhere.
    pub fn leave_silently(mut self) {
        self.is_silent = true;
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut state = self.group.0.lock();
        let is_removed = state.remove(&self.name, Some(self.number)).is_some();
        if is_removed && !self.is_silent {
            state.notify(event(Event::Left(self.name.clone())));
        }
        let is_empty = state.registrations.is_empty();
        drop(state);
        if is_empty && let Some(interest) = self.interest.upgrade() {
            interest.forget(&self.context);
        }
    }
}

impl Mailbox {
    /// Ends the stream, after what waits; a first end stands.
    fn end(&self, end: StreamEnd) {
        self.state.lock().end.get_or_insert(end);
        self.changed.notify_one();
    }

    /// Puts a broadcast in; whether there was room.
    fn put(&self, event: &Arc<InterestEvent>, weight: usize) -> bool {
        let has_room = self.all.used().saturating_add(weight) <= self.all.capacity() / 2
            && self.push(
                Arc::clone(event),
                self.all.try_acquire(weight),
                OBSERVER_EVENTS,
                OBSERVER_EVENT_BYTES,
            );
        if !has_room {
            self.miss(1);
        }
        has_room
    }

    /// Puts in who came or went.
    fn put_change(&self, event: &Arc<InterestEvent>, weight: usize) {
        if !self.state.lock().needs_resync
            && !self.push(
                Arc::clone(event),
                self.all.try_acquire(weight),
                2 * OBSERVER_EVENTS,
                2 * OBSERVER_EVENT_BYTES,
            )
        {
            self.schedule_resync();
        }
    }

    /// Puts in what memory is held for.
    fn push(&self, event: Arc<InterestEvent>, held: Option<Permit>, events: usize, bytes: usize) -> bool {
        let Some(held) = held else { return false };
        let mut state = self.state.lock();
        if state.end.is_some() || state.items.len() >= events || state.bytes + held.amount() > bytes {
            return false;
        }
        state.bytes += held.amount();
        state.items.push_back(Item::Event(event, held));
        drop(state);
        self.changed.notify_one();
        true
    }

    /// So many broadcasts found no room.
    fn miss(&self, count: u64) {
        let mut state = self.state.lock();
        if let Some(Item::Missed(missed)) = state.items.back_mut() {
            *missed = missed.saturating_add(count);
        } else {
            state.items.push_back(Item::Missed(count));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// All observers are to be told, once what waits was taken.
    fn schedule_resync(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.needs_resync, true) {
            state.items.push_back(Item::Resync);
        }
        drop(state);
        self.changed.notify_one();
    }

    fn begin_resync(&self) {
        self.state.lock().needs_resync = false;
    }

    async fn take(&self) -> MailboxItem {
        loop {
            let changed = self.changed.notified();
            if let Some(taken) = self.try_take() {
                return taken;
            }
            changed.await;
        }
    }

    fn try_take(&self) -> Option<MailboxItem> {
        let mut state = self.state.lock();
        // Whoever left or was replaced is told nothing more.
        if let Some(end @ (StreamEnd::Left | StreamEnd::Replaced)) = &state.end {
            return Some(MailboxItem::End(end.clone()));
        }
        Some(match state.items.pop_front() {
            Some(Item::Event(event, held)) => {
                state.bytes -= held.amount();
                MailboxItem::Event(Arc::unwrap_or_clone(event))
            }
            Some(Item::Missed(count)) => MailboxItem::Event(event(Event::Missed(count))),
            Some(Item::Resync) => MailboxItem::Resync,
            None => MailboxItem::End(state.end.clone()?),
        })
    }
}

#[cfg(test)]
mod tests;
