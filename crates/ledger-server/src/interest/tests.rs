use futures::FutureExt as _;
use ledger_proto::ledger::v1::BroadcastMessage;

use super::*;
use crate::limits::{OBSERVER_EVENT_BYTES, OBSERVER_EVENTS};

fn context() -> ContextId {
    ContextId::new("c").unwrap()
}

/// With 64 MiB for broadcasts.
fn interest() -> Arc<Interest> {
    Arc::new(Interest::within(Share::new("events", 128 << 20)))
}

fn observer(name: &str) -> Observer {
    Observer { name: name.to_owned(), metadata: BTreeMap::new() }
}

fn join(interest: &Arc<Interest>, name: &str) -> Presence {
    interest.join(&context(), observer(name)).unwrap()
}

fn message(payload: impl Into<bytes::Bytes>) -> InterestEvent {
    let payload = payload.into();
    event(Event::Broadcast(BroadcastMessage { from: "x".to_owned(), payload, metadata: BTreeMap::new() }))
}

/// What is there, as text.
fn told(presence: &Presence) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(next) = presence.next().now_or_never() {
        let text = match next {
            Ok(event) => text(event),
            Err(end) => {
                told.push(format!("{end:?}"));
                break;
            }
        };
        told.push(text);
    }
    told
}

fn text(event: InterestEvent) -> String {
    match event.event.unwrap() {
        Event::Members(members) => {
            let names: Vec<_> = members.observers.iter().map(|observer| observer.name.as_str()).collect();
            format!("{} of {}", members.observer, names.join(" "))
        }
        Event::Joined(observer) => format!("+{}", observer.name),
        Event::Left(name) => format!("-{name}"),
        Event::Broadcast(message) => format!("{} bytes", message.payload.len()),
        Event::Missed(count) => format!("missed {count}"),
    }
}

#[test]
fn observers_hear_who_is_there_who_comes_and_who_goes() {
    let interest = interest();
    let a = join(&interest, "a");
    assert_eq!(told(&a), ["a of a"]);
    let b = join(&interest, "b");
    assert_eq!(told(&b), ["b of a b"]);
    assert_eq!(told(&a), ["+b"]);
    assert_eq!(interest.broadcast(&context(), message("hello")), 2);
    assert_eq!(interest.broadcast(&ContextId::new("other").unwrap(), message("hello")), 0);
    drop(b);
    assert_eq!(told(&a), ["5 bytes", "-b"]);
    drop(a);
    assert!(interest.contexts.lock().is_empty(), "nothing is kept of what nobody observes");
}

#[test]
fn who_leaves_is_told_nothing_more() {
    let interest = interest();
    let (a, b) = (join(&interest, "a"), join(&interest, "b"));
    assert!(interest.leave(&context(), "b"));
    assert!(!interest.leave(&context(), "b"));
    assert_eq!(told(&b), ["Left"]);
    drop(b);
    assert_eq!(told(&a), ["a of a"]);
    assert_eq!(interest.broadcast(&context(), message("")), 1);
}

#[test]
fn an_observer_of_the_same_name_takes_the_place_of_the_older_one() {
    let interest = interest();
    let (a, older) = (join(&interest, "a"), join(&interest, "b"));
    assert_eq!(told(&a), ["a of a b"]);
    let newer = join(&interest, "b");
    assert_eq!(told(&older), ["Replaced"]);
    drop(older);
    assert_eq!(told(&newer), ["b of a b"]);
    assert_eq!(told(&a), ["+b"]);
    newer.leave_silently();
    assert_eq!(told(&a), [""; 0]);
    assert_eq!(interest.broadcast(&context(), message("")), 1);
}

#[test]
fn a_slow_observer_misses_broadcasts_and_slows_nobody() {
    let interest = interest();
    let (slow, quick) = (join(&interest, "slow"), join(&interest, "quick"));
    assert_eq!((told(&slow).len(), told(&quick).len()), (1, 1));
    for _ in 0..OBSERVER_EVENTS {
        assert_eq!(interest.broadcast(&context(), message("1")), 2);
        assert_eq!(told(&quick), ["1 bytes"]);
    }
    for _ in 0..3 {
        assert_eq!(interest.broadcast(&context(), message("2")), 1);
    }
    assert_eq!(slow.next().now_or_never().map(|event| text(event.unwrap())).unwrap(), "1 bytes");
    let mut seen = told(&slow);
    assert_eq!(seen.pop().unwrap(), "missed 3");
    assert_eq!(seen.len(), OBSERVER_EVENTS - 1);
    assert_eq!(interest.broadcast(&context(), message("3")), 2);
    assert_eq!(told(&slow), ["1 bytes"]);
}

#[test]
fn large_broadcasts_are_bounded_by_their_bytes() {
    let interest = interest();
    let a = join(&interest, "a");
    told(&a);
    let large = message(vec![0; 64 << 10]);
    let reached: u64 = (0..64).map(|_| interest.broadcast(&context(), large.clone())).sum();
    assert_eq!(reached as usize, OBSERVER_EVENT_BYTES / cost_bytes(&large));
    assert_eq!(interest.events.used(), reached as usize * cost_bytes(&large));
    drop(a);
    assert_eq!(interest.events.used(), 0);
}

#[test]
fn all_that_waits_on_a_node_is_bounded() {
    let interest = interest();
    let half = interest.events.charge(interest.events.capacity() / 2);
    let a = join(&interest, "a");
    assert_eq!(interest.broadcast(&context(), message("")), 0);
    let _b = join(&interest, "b");
    assert_eq!(told(&a), ["a of a b", "missed 1"], "who is there is told all the same");
    let _c = join(&interest, "c");
    assert_eq!(told(&a), ["+c"], "of half of it changes are told");
    // And of the rest nothing but that all are to be told anew.
    let rest = interest.events.charge(interest.events.capacity() / 2);
    let used = interest.events.used();
    let _d = join(&interest, "d");
    let e = join(&interest, "e");
    assert_eq!(interest.events.used(), used);
    assert_eq!(told(&a), ["a of a b c d e"]);
    drop((half, rest));
    drop(e);
    assert_eq!(told(&a), ["-e"]);
}

#[test]
fn an_observer_that_was_too_slow_for_changes_is_told_all_members_anew() {
    let interest = interest();
    let a = join(&interest, "a");
    told(&a);
    for _ in 0..2 * OBSERVER_EVENTS {
        drop(join(&interest, "b"));
    }
    let _c = join(&interest, "c");
    let mut seen = told(&a);
    assert_eq!(seen.pop().unwrap(), "a of a c");
    assert_eq!(seen.len(), 2 * OBSERVER_EVENTS);
    let _d = join(&interest, "d");
    assert_eq!(told(&a), ["+d"]);
}

#[test]
fn observers_and_what_they_say_of_themselves_are_bounded() {
    let interest = interest();
    let metadata = BTreeMap::from([("k".to_owned(), "v".repeat(60 << 10))]);
    let large = |n: usize| Observer { name: n.to_string(), metadata: metadata.clone() };
    let mut there = Vec::new();
    let full = (0..).find_map(|n| match interest.join(&context(), large(n)) {
        Ok(presence) => {
            there.push(presence);
            None
        }
        Err(full) => Some(full),
    });
    assert_eq!(full, Some(Full::Bytes));
    drop(there);
    let there: Vec<_> = (0..OBSERVERS_PER_CONTEXT).map(|n| join(&interest, &n.to_string())).collect();
    assert_eq!(interest.join(&context(), observer("more")).unwrap_err(), Full::Observers);
    assert_eq!(told(&join(&interest, "7")).len(), 1, "it takes the place of another");
    drop(there);
    assert!(interest.contexts.lock().is_empty());

    let permits: Vec<_> = (0..OBSERVERS_PER_NODE).map(|_| interest.stream().unwrap()).collect();
    assert_eq!(interest.stream().unwrap_err(), Full::Node);
    drop(permits);
    assert_eq!(interest.streams(), 0);
}
