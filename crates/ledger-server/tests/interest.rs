//! Observers of a context, on a node by itself and in a cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use ledger_proto::ledger::v1::{
    BroadcastRequest, DrainRequest, InterestEvent, JoinRequest, LeaveRequest, LocateRequest,
    cluster_service_client::ClusterServiceClient, interest_event::Event,
};
use support::{DEADLINE, TestNode, assert_retry, field, free_ports, until};
use tonic::{Code, Status, Streaming, transport::Channel};

type Client = ClusterServiceClient<Channel>;

/// An observer's stream, and what it knows by it.
struct Observer {
    events: Streaming<InterestEvent>,
    known: BTreeSet<String>,
    /// How often it was told all members.
    told: usize,
}

impl Observer {
    async fn join(client: &mut Client, name: &str) -> Self {
        let metadata = BTreeMap::from([("colour".to_owned(), "blue".to_owned())]);
        let request = JoinRequest { context_id: "demo".into(), observer: name.into(), metadata };
        let events = client.join(request).await.unwrap().into_inner();
        Self { events, known: BTreeSet::new(), told: 0 }
    }

    async fn ended(&mut self) -> Result<Option<Event>, Status> {
        let next = tokio::time::timeout(DEADLINE, self.events.message()).await.expect("an event in time");
        let next = next?.map(|event| event.event.unwrap());
        match &next {
            Some(Event::Members(members)) => {
                self.told += 1;
                self.known = members.observers.iter().map(|observer| observer.name.clone()).collect();
            }
            Some(Event::Joined(observer)) => {
                self.known.insert(observer.name.clone());
            }
            Some(Event::Left(name)) => {
                self.known.remove(name);
            }
            _ => {}
        }
        Ok(next)
    }

    async fn next(&mut self) -> Event {
        self.ended().await.unwrap().expect("the stream goes on")
    }

    /// The own name and those of all members.
    async fn members(&mut self) -> (String, Vec<String>) {
        match self.next().await {
            Event::Members(members) => {
                assert!(members.observers.iter().all(|observer| observer.metadata["colour"] == "blue"));
                (members.observer, members.observers.into_iter().map(|observer| observer.name).collect())
            }
            other => panic!("{other:?}"),
        }
    }

    async fn joined(&mut self) -> String {
        match self.next().await {
            Event::Joined(observer) => observer.name,
            other => panic!("{other:?}"),
        }
    }

    /// Listens until it is so, by how often all members were told and who they are.
    async fn until(&mut self, what: &str, holds: impl Fn(usize, &BTreeSet<String>) -> bool) {
        let listening = async {
            while !holds(self.told, &self.known) {
                self.next().await;
            }
        };
        let heard = tokio::time::timeout(DEADLINE, listening).await;
        assert!(heard.is_ok(), "{what}: told {} times of {:?}", self.told, self.known);
    }

    /// Waits for a broadcast.
    async fn heard(&mut self, text: &str) {
        loop {
            match self.next().await {
                Event::Broadcast(message) if message.payload == text => return,
                _ => {}
            }
        }
    }
}

fn say(text: &str) -> BroadcastRequest {
    let (payload, metadata) = (text.to_owned().into(), BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    BroadcastRequest { context_id: "demo".into(), from: "test".into(), payload, metadata }
}

fn leave(name: &str) -> LeaveRequest {
    LeaveRequest { context_id: "demo".into(), observer: name.into() }
}

async fn broadcast(client: &mut Client, text: &str) -> u64 {
    client.broadcast(say(text)).await.unwrap().into_inner().reached
}

/// What is said at any node reaches both observers, once they have met again.
async fn both_hear(clients: [&mut Client; 2], observers: [&mut Observer; 2]) {
    let mut said = Vec::new();
    for (number, client) in clients.into_iter().enumerate() {
        let text = number.to_string();
        until("both meet", async || (broadcast(client, &text).await == 2).then_some(())).await;
        said.push(text);
    }
    for observer in observers {
        for text in &said {
            observer.heard(text).await;
        }
    }
}

#[tokio::test]
async fn observers_meet_hear_each_other_and_leave() {
    let node = TestNode::start().await;
    let mut client = node.cluster().await;
    let mut a = Observer::join(&mut client, "a").await;
    assert_eq!(a.members().await, ("a".to_owned(), vec!["a".to_owned()]));
    let mut unnamed = Observer::join(&mut client, "").await;
    let (given, members) = unnamed.members().await;
    assert!(!given.is_empty() && members == ["a".to_owned(), given.clone()], "{members:?}");
    assert_eq!(a.joined().await, given);

    assert_eq!(broadcast(&mut client, "hello").await, 2);
    for observer in [&mut a, &mut unnamed] {
        let Event::Broadcast(message) = observer.next().await else { panic!() };
        assert_eq!((message.from.as_str(), &message.payload[..]), ("test", &b"hello"[..]));
        assert_eq!(message.metadata["k"], "v");
    }
    let (_, metrics) = node.http("/metrics").await;
    assert!(metrics.contains("ledger_observers 2"), "{metrics}");

    assert!(client.leave(leave(&given)).await.unwrap().into_inner().was_there);
    assert_eq!(unnamed.ended().await.unwrap(), None);
    assert_eq!(a.next().await, Event::Left(given.clone()));
    assert!(!client.leave(leave(&given)).await.unwrap().into_inner().was_there);

    let mut b = Observer::join(&mut client, "b").await;
    b.members().await;
    assert_eq!(a.joined().await, "b");
    drop(b);
    assert_eq!(a.next().await, Event::Left("b".to_owned()));

    let mut newer = Observer::join(&mut client, "a").await;
    assert_eq!(a.ended().await.unwrap_err().code(), Code::Aborted);
    newer.members().await;
    assert_eq!(broadcast(&mut client, "again").await, 1);
    newer.heard("again").await;
    node.stop().await;
    assert_retry(&newer.ended().await.unwrap_err());
}

#[tokio::test]
async fn what_is_wrong_with_a_request_about_observers_names_its_field() {
    let node = TestNode::start().await;
    let mut client = node.cluster().await;
    let many: BTreeMap<_, _> = (0..1025).map(|n| (n.to_string(), String::new())).collect();
    let good = JoinRequest { context_id: "demo".into(), ..Default::default() };
    for (request, name) in [
        (JoinRequest::default(), "context_id"),
        (JoinRequest { observer: "a\nb".into(), ..good.clone() }, "observer"),
        (JoinRequest { observer: "a".repeat(257), ..good.clone() }, "observer"),
        (JoinRequest { metadata: many.clone(), ..good }, "metadata"),
    ] {
        let status = client.join(request).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, name), "{status:?}");
    }
    for (request, name) in [
        (BroadcastRequest { context_id: "\n".into(), ..say("") }, "context_id"),
        (BroadcastRequest { from: "\t".into(), ..say("") }, "from"),
        (say(&"a".repeat((64 << 10) + 1)), "payload"),
        (BroadcastRequest { metadata: many, ..say("") }, "metadata"),
    ] {
        let status = client.broadcast(request).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, name), "{status:?}");
    }
    for (request, name) in
        [(LeaveRequest { context_id: String::new(), ..leave("a") }, "context_id"), (leave(""), "observer")]
    {
        let status = client.leave(request).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, name), "{status:?}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_slow_observer_misses_broadcasts_and_is_told_how_many() {
    let node = TestNode::start().await;
    let mut client = node.cluster().await;
    let mut slow = Observer::join(&mut client, "slow").await;
    slow.members().await;
    let text = "x".repeat(60 << 10);
    let mut reached = 0;
    // More than its queue and the connection hold.
    for _ in 0..400 {
        reached += broadcast(&mut client, &text).await;
    }
    assert!(reached < 400);
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < 400 {
        match slow.next().await {
            Event::Broadcast(_) => seen += 1,
            Event::Missed(count) => missed += count,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((seen, seen + missed), (reached, 400));
    node.stop().await;
}

/// The owner of the context, as a node sees it, once it is another one than before.
async fn owner(client: &mut Client, before: &str) -> String {
    until("the context has an owner", async || {
        let request = LocateRequest { context_ids: vec!["demo".into()], slots: Vec::new() };
        let found = client.locate(request).await.unwrap().into_inner().locations.swap_remove(0).owner;
        (!found.is_empty() && found != before).then_some(found)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn observers_at_any_node_meet_and_stay_together_when_the_owner_changes() {
    let ports = free_ports();
    let (a, b) = tokio::join!(TestNode::join("a", ports, 0), TestNode::join("b", ports, 1));
    let mut at_a = a.cluster().await;
    let mut at_b = b.cluster().await;
    // The first may wait for an owner.
    let mut x = Observer::join(&mut at_a, "x").await;
    let mut y = Observer::join(&mut at_b, "y").await;
    for observer in [&mut x, &mut y] {
        observer.until("both are there", |_, known| known.len() == 2).await;
    }
    both_hear([&mut at_a, &mut at_b], [&mut x, &mut y]).await;

    let first = owner(&mut at_a, "").await;
    let (owning, other) = if first == "a" { (&mut at_a, &mut at_b) } else { (&mut at_b, &mut at_a) };
    let told = [&x, &y].map(|observer| observer.told);
    let mut progress = owning.drain(DrainRequest { resume: false }).await.unwrap().into_inner();
    while progress.message().await.unwrap().is_some() {}
    owner(other, &first).await;
    for (observer, told) in [&mut x, &mut y].into_iter().zip(told) {
        observer.until("they are told anew", |now, known| now > told && known.len() == 2).await;
    }
    both_hear([&mut at_a, &mut at_b], [&mut x, &mut y]).await;
    for (client, name) in [(&mut at_a, "y"), (&mut at_b, "x")] {
        assert!(client.leave(leave(name)).await.unwrap().into_inner().was_there);
    }
    while y.ended().await.unwrap().is_some() {}
    while x.ended().await.unwrap().is_some() {}
    drop((at_a, at_b));
    a.stop().await;
    b.stop().await;
}
