//! What waits for one observer.

use std::{collections::VecDeque, sync::Arc};

use ledger_proto::ledger::v1::{InterestEvent, interest_event::Event};
use ledger_store::budget::{Permit, Share};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    grpc::status::Refusal,
    interest::events::event,
    limits::{OBSERVER_EVENT_BYTES, OBSERVER_EVENTS},
};

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

/// What waits for an observer.
#[derive(Debug)]
pub(super) struct Mailbox {
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
pub(super) enum MailboxItem {
    Event(InterestEvent),
    Resync,
    End(StreamEnd),
}

impl Mailbox {
    /// An empty one, whose bytes count on a node's share for events.
    pub(super) fn new(all: Arc<Share>) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), all }
    }

    /// Ends the stream, after what waits; a first end stands.
    pub(super) fn end(&self, end: StreamEnd) {
        self.state.lock().end.get_or_insert(end);
        self.changed.notify_one();
    }

    /// Puts a broadcast in; whether there was room.
    pub(super) fn put(&self, event: &Arc<InterestEvent>, cost: usize) -> bool {
        let has_room = self.all.used().saturating_add(cost) <= self.all.capacity() / 2
            && self.push(
                Arc::clone(event),
                self.all.try_acquire(cost),
                OBSERVER_EVENTS,
                OBSERVER_EVENT_BYTES,
            );
        if !has_room {
            self.miss(1);
        }
        has_room
    }

    /// Puts in who came or went.
    pub(super) fn put_change(&self, event: &Arc<InterestEvent>, cost: usize) {
        if !self.state.lock().needs_resync
            && !self.push(
                Arc::clone(event),
                self.all.try_acquire(cost),
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
    pub(super) fn schedule_resync(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.needs_resync, true) {
            state.items.push_back(Item::Resync);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The list of all is about to be told: changes from now on are put in again.
    pub(super) fn begin_resync(&self) {
        self.state.lock().needs_resync = false;
    }

    /// What is there, once there is something.
    pub(super) async fn take(&self) -> MailboxItem {
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
