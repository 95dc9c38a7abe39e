//! Events, and what they take while they wait.

use std::collections::BTreeMap;

use ledger_proto::ledger::v1::{InterestEvent, Observer, interest_event::Event};

/// What an event takes beside its text and payload, bytes.
pub(super) const EVENT: usize = 128;

/// The message of an event.
pub const fn event(event: Event) -> InterestEvent {
    InterestEvent { event: Some(event) }
}

fn pairs(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len()).sum()
}

/// What an observer says of itself, bytes.
pub(super) fn observer_bytes(observer: &Observer) -> usize {
    observer.name.len() + pairs(&observer.metadata)
}

/// What an event takes while it waits, bytes.
pub(super) fn cost_bytes(event: &InterestEvent) -> usize {
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
