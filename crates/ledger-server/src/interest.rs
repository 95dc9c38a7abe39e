//! Interest in contexts: who observes which, and what waits for each of them. Nothing of it is stored.
//!
//! Each observer has a mailbox of bounded size. Broadcasts that find no room are dropped, and the observer is
//! told how many; who came and went is never dropped, but may be replaced by the list of all who are there. So an
//! observer that takes nothing costs a bounded amount of memory and delays nobody.

mod events;
mod mailbox;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
};

use ledger_core::ContextId;
use ledger_proto::ledger::v1::{InterestEvent, Observer, Observers, interest_event::Event};
use ledger_store::budget::Share;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Code;

pub use events::event;
pub use mailbox::StreamEnd;

use crate::grpc::call;
use crate::grpc::status::Refusal;
use crate::interest::events::{EVENT, cost_bytes, observer_bytes};
use crate::interest::mailbox::{Mailbox, MailboxItem};
use crate::limits::{OBSERVERS_BYTES, OBSERVERS_PER_CONTEXT, OBSERVERS_PER_NODE};

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

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        Self::new(Code::ResourceExhausted, full.to_string())
    }
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

impl Interest {
    /// Nobody's yet; what waits for observers may take so much. Broadcasts get half of it: the rest is for who comes and goes.
    pub fn within(events: Arc<Share>) -> Self {
        let streams = Arc::new(Semaphore::new(OBSERVERS_PER_NODE));
        Self { contexts: Mutex::default(), streams, events }
    }

    /// Room for one more stream on this node, until it is dropped.
    ///
    /// # Errors
    /// [`Full::Node`].
    pub fn stream(&self) -> Result<OwnedSemaphorePermit, Full> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| Full::Node)
    }

    /// A mailbox whose bytes count on this node.
    fn mailbox(&self) -> Arc<Mailbox> {
        Arc::new(Mailbox::new(Arc::clone(&self.events)))
    }

    /// Makes somebody an observer of a context. The first event names all of them; the others are told. Takes the
    /// place of an observer of the same name.
    ///
    /// # Errors
    /// [`Full`]: the context has too many observers, or they say too much of themselves.
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
        let cost = cost_bytes(&message);
        let message = Arc::new(message);
        let state = group.0.lock();
        let reached = state.registrations.values().filter(|seat| seat.mailbox.put(&message, cost));
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
        let cost = cost_bytes(&change);
        let change = Arc::new(change);
        for seat in self.registrations.values() {
            seat.mailbox.put_change(&change, cost);
        }
    }
}

impl Presence {
    /// The next event.
    ///
    /// # Errors
    /// [`StreamEnd`]: how the stream ended.
    pub async fn next(&self) -> Result<InterestEvent, StreamEnd> {
        match self.mailbox.take().await {
            MailboxItem::Event(event) => Ok(event),
            MailboxItem::End(end) => Err(end),
            MailboxItem::Resync => {
                // The list, what its maps take beside it, and the message that is made of it.
                let bytes = self.group.0.lock().list_bytes();
                let reserved = call::reserve(call::current(), 3 * bytes).await;
                let reserved = reserved.map_err(|refusal| StreamEnd::Refused(Box::new(refusal)))?;
                let state = self.group.0.lock();
                // Changes from here on are told again; those since the marker was taken are in the list.
                self.mailbox.begin_resync();
                reserved.hand_over(2 * state.list_bytes());
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

#[cfg(test)]
mod tests;
