//! Membership over real UDP on the loopback network. Every test has its own addresses; nothing waits for a
//! time, only for a condition, with a deadline.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use chitchat::{ChitchatConfig, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use ledger_cluster::{
    membership::gossip::{GossipControl, SealedTransport, parts},
    membership::seal::{Keyring, Sealer},
    membership::{
        Detector, Facts, Incarnation, Membership, MembershipConfig, NodeId, NodeLoad, Readiness, StartError,
        StorageId, View, ViewMember,
    },
};
use ledger_core::{
    Epoch,
    slot::{SLOTS, Slot},
};
use tokio::time::{interval, timeout};

const INTERVAL: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(30);
const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];

/// An address of the loopback network that no other test uses, with a port that was free just now.
fn address() -> SocketAddr {
    static LAST: AtomicU16 = AtomicU16::new(1);
    let [high, low] = LAST.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let network = (std::process::id() % 200) as u8 + 1;
    UdpSocket::bind(SocketAddr::from(([127, network, high, low], 0))).unwrap().local_addr().unwrap()
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn config(name: &str, listen: SocketAddr, seeds: &[SocketAddr]) -> MembershipConfig {
    MembershipConfig {
        seeds: seeds.iter().map(ToString::to_string).collect(),
        keyring: Keyring::of(&[OLD]),
        gossip_interval: INTERVAL,
        // Slow enough for a busy machine, quick enough for a test.
        detector: Detector { min_silence: Duration::from_secs(1), ..Detector::for_interval(INTERVAL) },
        ..MembershipConfig::new("prod", id(name), Incarnation(1), listen)
    }
}

fn facts(name: &str) -> Facts {
    Facts {
        grpc_address: format!("{name}:9090"),
        storage_id: StorageId(blake3::hash(name.as_bytes()).as_bytes()[..16].try_into().unwrap()),
        readiness: Readiness::Ready,
        zone: "eu-1a".into(),
        format: 1,
        load: NodeLoad { entries_per_second: 10, contexts: 20 },
        opened: None,
        durable: None,
        decommission: None,
        owned: Vec::new(),
        halted: Vec::new(),
    }
}

async fn start(name: &str, listen: SocketAddr, seeds: &[SocketAddr]) -> Membership {
    Membership::start(config(name, listen, seeds), facts(name)).await.unwrap()
}

/// Waits until a node's view is as wanted.
async fn until(node: &Membership, what: &str, wanted: impl Fn(&View) -> bool) -> Arc<View> {
    let mut view = node.view();
    let seen = timeout(DEADLINE, view.wait_for(|view| wanted(view))).await.map(|seen| seen.unwrap().clone());
    seen.unwrap_or_else(|_| panic!("{what}: {:#?}, {:?}", node.view().borrow(), node.counts()))
}

/// Waits until a figure that announces nothing is as wanted.
async fn until_counted(what: &str, wanted: impl Fn() -> bool) {
    let mut tick = interval(INTERVAL / 5);
    let poll = async {
        while !wanted() {
            tick.tick().await;
        }
    };
    timeout(DEADLINE, poll).await.unwrap_or_else(|_| panic!("{what}"));
}

fn alive(view: &View) -> Vec<&str> {
    view.alive().map(|member| member.node_id.as_str()).collect()
}

async fn all_see(nodes: &[&Membership], names: &[&str]) {
    for node in nodes {
        until(node, "all are alive", |view| alive(view) == names).await;
    }
}

async fn three() -> (Membership, Membership, Membership) {
    let seed = address();
    let a = start("a", seed, &[]).await;
    let b = start("b", address(), &[seed]).await;
    let c = start("c", address(), &[seed]).await;
    all_see(&[&a, &b, &c], &["a", "b", "c"]).await;
    (a, b, c)
}

#[tokio::test]
async fn three_nodes_find_each_other_through_one_seed() {
    let (a, b, c) = three().await;
    for node in [&a, &b, &c] {
        let view = node.view().borrow().clone();
        for name in ["a", "b", "c"] {
            let Facts { grpc_address, storage_id, readiness, zone, format, load, owned, .. } = facts(name);
            let member = view.get(&id(name)).unwrap();
            let (incarnation, since) = (Incarnation(1), member.since);
            let expected = ViewMember {
                decommission: None,
                node_id: id(name),
                incarnation,
                storage_id,
                grpc_address,
                readiness,
                zone,
                format,
                load,
                owned,
                halted: Vec::new(),
                alive: true,
                greets: true,
                gossip_address: member.gossip_address,
                cluster: None,
                rolled_back: None,
                since,
            };
            assert_eq!(*member, expected);
        }
        let counts = node.counts();
        assert!(counts.received > 0 && counts.sent > 0);
        assert_eq!((counts.dropped_unsealed, counts.dropped_foreign, counts.dropped_malformed), (0, 0, 0));
        assert_eq!(node.bad_values(), 0);
    }
    assert_eq!(a.view().borrow().me().unwrap().node_id, id("a"));
}

#[tokio::test]
async fn a_node_started_before_its_seed_is_found() {
    let seed = address();
    let early = start("early", address(), &[seed]).await;
    until_counted("it called for its seed", || early.counts().sent >= 3).await;
    assert_eq!(alive(&early.view().borrow()), ["early"]);
    let late = start("late", seed, &[]).await;
    all_see(&[&early, &late], &["early", "late"]).await;
}

#[tokio::test]
async fn a_seed_may_be_a_dns_name_whose_node_comes_later() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut config = config("early", "127.0.0.1:0".parse().unwrap(), &[]);
    config.seeds = vec![format!("localhost:{port}"), "no-such-node.invalid:1".into()];
    let early = Membership::start(config, facts("early")).await.unwrap();
    until_counted("it called for its seed", || early.counts().sent >= 1).await;
    let late = start("late", ([127, 0, 0, 1], port).into(), &[]).await;
    all_see(&[&early, &late], &["early", "late"]).await;
}

#[tokio::test]
async fn a_silent_node_dies_and_its_next_incarnation_replaces_it() {
    let (a, b, c) = three().await;
    let address = c.gossip_address();
    drop(c);
    for node in [&a, &b] {
        let view = until(node, "c is dead", |view| !view.get(&id("c")).unwrap().alive).await;
        assert_eq!(alive(&view), ["a", "b"]);
    }
    // At another address, as pods come back.
    let config = MembershipConfig {
        incarnation: Incarnation(2),
        ..config("c", self::address(), &[a.gossip_address()])
    };
    assert_ne!(config.gossip_listen, address);
    let c = tokio::spawn(Membership::start(config, facts("c"))).await.unwrap().unwrap();
    for node in [&a, &b, &c] {
        let again =
            |view: &View| view.get(&id("c")).is_some_and(|c| c.alive && c.incarnation == Incarnation(2));
        let view = until(node, "c is back", again).await;
        assert_eq!(view.members.len(), 3);
    }
}

#[tokio::test]
async fn a_next_incarnation_replaces_one_that_still_counts_as_alive() {
    let (a, b, c) = three().await;
    let config =
        MembershipConfig { incarnation: Incarnation(2), ..config("c", address(), &[a.gossip_address()]) };
    let second = Membership::start(config, facts("c")).await.unwrap();
    for node in [&a, &b, &second] {
        let replaced =
            |view: &View| view.get(&id("c")).is_some_and(|c| c.alive && c.incarnation == Incarnation(2));
        until(node, "the second c is alive", replaced).await;
    }
    until(&c, "the first c knows that it is replaced", |view| view.me().is_none()).await;
}

#[tokio::test]
async fn a_node_that_leaves_is_gone_at_once() {
    let (a, b, c) = three().await;
    tokio::spawn(c.shutdown()).await.unwrap();
    for node in [&a, &b] {
        let gone = |view: &View| {
            let c = view.get(&id("c")).unwrap();
            !c.alive && c.readiness == Readiness::Leaving
        };
        until(node, "c is leaving", gone).await;
    }
}

#[tokio::test]
async fn strangers_never_appear_and_are_counted() {
    let seed = address();
    let a = start("a", seed, &[]).await;
    let with = |name, cluster: &str, keys: &[[u8; 32]]| {
        let keyring = Keyring::of(keys);
        let config =
            MembershipConfig { cluster_id: cluster.into(), keyring, ..config(name, address(), &[seed]) };
        Membership::start(config, facts(name))
    };
    let another_key = with("another-key", "prod", &[NEW]).await.unwrap();
    until_counted("another key is foreign", || a.counts().dropped_foreign >= 3).await;
    drop(another_key);
    let another_cluster = with("another-cluster", "staging", &[OLD]).await.unwrap();
    let before = a.counts().dropped_foreign;
    until_counted("another cluster is foreign", || a.counts().dropped_foreign >= before + 3).await;
    let no_key = with("no-key", "prod", &[]).await.unwrap();
    until_counted("no key is unsealed", || a.counts().dropped_unsealed >= 3).await;
    // A friend comes last: once it is seen, the strangers had their chance.
    let friend = start("friend", address(), &[seed]).await;
    all_see(&[&a, &friend], &["a", "friend"]).await;
    assert_eq!(a.view().borrow().members.len(), 2);
    assert_eq!(alive(&another_cluster.view().borrow()), ["another-cluster"]);
    assert_eq!(alive(&no_key.view().borrow()), ["no-key"]);
}

#[tokio::test]
async fn without_keys_clusters_are_told_apart_by_their_id() {
    let seed = address();
    let with = |name, cluster: &str, listen| {
        let keyring = Keyring::none();
        let config =
            MembershipConfig { cluster_id: cluster.into(), keyring, ..config(name, listen, &[seed]) };
        Membership::start(config, facts(name))
    };
    let a = with("a", "laptop", seed).await.unwrap();
    let _other = with("other", "another", address()).await.unwrap();
    until_counted("another cluster is foreign", || a.counts().dropped_foreign >= 3).await;
    let b = with("b", "laptop", address()).await.unwrap();
    all_see(&[&a, &b], &["a", "b"]).await;
}

#[tokio::test]
async fn keys_rotate_without_losing_a_member() {
    let (a, b, c) = three().await;
    let nodes = [&a, &b, &c];
    let lost = nodes.map(|node| {
        let mut view = node.view();
        tokio::spawn(async move { view.wait_for(|view| view.alive().count() < 3).await.is_ok() })
    });
    // Node by node, so that neighbours are a step apart in between; after each node has said something new, all
    // have heard it.
    for (step, keys) in [&[OLD, NEW][..], &[NEW, OLD], &[NEW]].into_iter().enumerate() {
        for (number, node) in nodes.into_iter().enumerate() {
            node.set_keyring(Keyring::of(keys));
            let load = NodeLoad { entries_per_second: step as u64, contexts: number as u64 };
            node.set_load(load);
            let name = ["a", "b", "c"][number];
            for reader in nodes {
                until(reader, "news arrive", |view| view.get(&id(name)).unwrap().load == load).await;
            }
        }
    }
    for node in nodes {
        assert_eq!(node.counts().dropped_foreign, 0);
    }
    for lost in lost {
        assert!(!lost.is_finished());
        lost.abort();
    }
    // The old key is out.
    let old = start("old", address(), &[a.gossip_address()]).await;
    until_counted("the old key is foreign", || a.counts().dropped_foreign >= 3).await;
    assert_eq!(alive(&old.view().borrow()), ["old"]);
}

#[tokio::test]
async fn a_node_that_is_heard_and_hears_nobody_is_dead_to_the_others() {
    let (a, b, c) = three().await;
    // Everybody can read what A says, and A nothing of what the others say.
    for node in [&a, &b, &c] {
        node.set_keyring(Keyring::of(&[OLD, NEW]));
    }
    for node in [&b, &c] {
        node.set_keyring(Keyring::of(&[NEW, OLD]));
    }
    a.set_keyring(Keyring::of(&[OLD]));
    all_see(&[&b, &c], &["b", "c"]).await;
    let received = b.counts().received;
    until_counted("its heartbeats go on", || b.counts().received > received + 20).await;
    assert_eq!(alive(&b.view().borrow()), ["b", "c"]);
    a.set_keyring(Keyring::of(&[OLD, NEW]));
    all_see(&[&a, &b, &c], &["a", "b", "c"]).await;
}

#[tokio::test]
async fn owned_slots_arrive_and_change() {
    let (a, b, c) = three().await;
    let slots = |range: std::ops::Range<u16>, epoch| -> Vec<_> {
        range.map(|n| (Slot::new(n).unwrap(), epoch)).collect()
    };
    let all = slots(0..SLOTS, Epoch::new(1, 7));
    a.set_owned(all.clone());
    for node in [&b, &c] {
        let view = until(node, "a owns all", |view| view.get(&id("a")).unwrap().owned == all).await;
        assert!(view.get(&id("b")).unwrap().owned.is_empty());
    }
    // b takes over the first slots with a higher epoch; a still claims them for a while.
    let taken = slots(0..100, Epoch::new(2, 8));
    b.set_owned(taken.clone());
    let view = until(&c, "b owns some", |view| view.get(&id("b")).unwrap().owned == taken).await;
    let claim = |slot| view.claim(Slot::new(slot).unwrap()).map(|(m, epoch)| (m.node_id.as_str(), epoch));
    assert_eq!(claim(99), Some(("b", Epoch::new(2, 8))));
    assert_eq!(claim(100), Some(("a", Epoch::new(1, 7))));
    a.set_owned(Vec::new());
    let view = until(&c, "a owns none", |view| view.get(&id("a")).unwrap().owned.is_empty()).await;
    assert!(view.claim(Slot::new(100).unwrap()).is_none());
}

#[test]
fn a_node_that_owns_every_slot_has_no_more_keys_than_sixteen_and_a_dozen() {
    let owned = (0..SLOTS).map(|n| (Slot::new(n).unwrap(), Epoch::new(u32::from(n), 7))).collect();
    let values = Facts { owned, ..facts("a") }.to_values();
    assert!(values.len() <= 16 + 12, "{}", values.len());
    assert_eq!(values.iter().filter(|(key, _)| key.starts_with("slots.")).count(), 16);
}

#[tokio::test]
async fn readiness_is_told() {
    let (a, b, _c) = three().await;
    a.set_readiness(Readiness::Draining);
    let view =
        until(&b, "a drains", |view| view.get(&id("a")).unwrap().readiness == Readiness::Draining).await;
    assert!(view.get(&id("a")).unwrap().alive);
}

#[tokio::test]
async fn what_a_peer_says_badly_is_left_out_and_counted_once() {
    let seed = address();
    let a = start("a", seed, &[]).await;
    // A member by its key, but not one that speaks as we do.
    let socket = tokio::net::UdpSocket::bind(address()).await.unwrap();
    let listen_addr = socket.local_addr().unwrap();
    let control = GossipControl::new(&Sealer::new("prod", Keyring::of(&[OLD])));
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new("odd", 7, listen_addr),
        cluster_id: "prod".into(),
        gossip_interval: INTERVAL,
        listen_addr,
        seed_nodes: vec![seed.to_string()],
        failure_detector_config: FailureDetectorConfig::default(),
        marked_for_deletion_grace_period: DEADLINE,
        catchup_callback: None,
        extra_liveness_predicate: None,
    };
    let long = "x".repeat(20_000);
    let mut values: Vec<_> = facts("odd").to_values();
    for (key, value) in
        [("ready", "sleeping"), ("slots.3", "%"), ("slots.4", &long), ("load", "much"), (&long, &long)]
    {
        values.retain(|(known, _)| known != key);
        values.push((key.into(), value.into()));
    }
    let transport = SealedTransport::new(socket, control);
    let odd = spawn_chitchat(config, values, &transport).await.unwrap();
    all_see(&[&a], &["a", "odd"]).await;
    let member = a.view().borrow().get(&id("odd")).unwrap().clone();
    assert_eq!(
        (member.readiness, member.load, member.zone.as_str()),
        (Readiness::Joining, NodeLoad::default(), "eu-1a")
    );
    assert_eq!(a.bad_values(), 4);
    // Another of its values changes: the bad ones are not counted again, and a good one is taken.
    odd.with_chitchat(|chitchat| chitchat.self_node_state().set("load", "3,4")).await;
    let heard = NodeLoad { entries_per_second: 3, contexts: 4 };
    until(&a, "its load is heard", |view| view.get(&id("odd")).unwrap().load == heard).await;
    assert_eq!(a.bad_values(), 4);
    odd.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_dead_node_is_forgotten_after_its_grace() {
    let seed = address();
    let grace = Duration::from_secs(2);
    let config = MembershipConfig { dead_node_grace: grace, ..config("a", seed, &[]) };
    let a = Membership::start(config, facts("a")).await.unwrap();
    let b = start("b", address(), &[seed]).await;
    all_see(&[&a, &b], &["a", "b"]).await;
    drop(b);
    until(&a, "b is dead", |view| view.get(&id("b")).is_some_and(|b| !b.alive)).await;
    until(&a, "b is forgotten", |view| view.members.len() == 1).await;
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_the_start() {
    let error = |config: MembershipConfig| async { Membership::start(config, facts("a")).await.unwrap_err() };
    let good = || config("a", address(), &[]);
    let unspecified = MembershipConfig { gossip_listen: "0.0.0.0:0".parse().unwrap(), ..good() };
    assert!(matches!(error(unspecified).await, StartError::Advertise { .. }));
    let seeds = vec!["nowhere".into()];
    assert!(matches!(error(MembershipConfig { seeds, ..good() }).await, StartError::Seeds(_)));
    let cluster_id = String::new();
    assert!(matches!(error(MembershipConfig { cluster_id, ..good() }).await, StartError::Text(_)));
    let gossip_interval = Duration::ZERO;
    assert!(matches!(
        error(MembershipConfig { gossip_interval, ..good() }).await,
        StartError::Setting { .. }
    ));
    let detector = Detector { window: 0, ..good().detector };
    assert!(matches!(error(MembershipConfig { detector, ..good() }).await, StartError::Detector));
    let taken = good();
    let _holder = UdpSocket::bind(taken.gossip_listen).unwrap();
    assert!(matches!(error(taken).await, StartError::Bind { .. }));
    let unnamed = Facts { grpc_address: String::new(), ..facts("a") };
    assert!(matches!(Membership::start(good(), unnamed).await.unwrap_err(), StartError::Text(_)));
}

#[tokio::test]
async fn dropping_a_membership_frees_its_address() {
    let address = address();
    let a = start("a", address, &[]).await;
    let ended = a.ended();
    drop(a);
    timeout(DEADLINE, ended).await.unwrap();
    until_counted("the address is free", || UdpSocket::bind(address).is_ok()).await;
}

/// Sends bytes as a gossip message of a node that has the cluster's key.
fn send_message(to: SocketAddr, number: u32, message: &[u8]) {
    let socket = UdpSocket::bind(address()).unwrap();
    let sealer = Sealer::new("prod", Keyring::of(&[OLD]));
    for part in parts::split(number, message).unwrap() {
        socket.send_to(&sealer.seal(&part).unwrap(), to).unwrap();
    }
}

/// The beginning of a chitchat message: magic number, version and kind.
fn message(kind: u8) -> Vec<u8> {
    [&45_139_u16.to_le_bytes()[..], &[0, kind]].concat()
}

/// An incarnation of a node in a message.
fn incarnation(name: &str, generation: u64, at: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    chitchat::Serializable::serialize(&ChitchatId::new(name, generation, at), &mut bytes);
    bytes
}

/// A message that changes a value and the version of a node.
fn change(of: &[u8], value_at: u64, version: u64) -> Vec<u8> {
    let numbers = [0_u64.to_le_bytes(), 0_u64.to_le_bytes()].concat();
    let value = [&[1, 1, 0, b'k', 1, 0, b'v'][..], &value_at.to_le_bytes(), &[0]].concat();
    let delta = [&[0], of, &numbers, &value, &[2], &version.to_le_bytes()].concat();
    [&message(2)[..], &[2], &(delta.len() as u16).to_le_bytes(), &delta, &[0]].concat()
}

#[tokio::test]
async fn a_message_that_contradicts_itself_ends_nobodys_gossip() {
    let seed = address();
    let a = start("a", seed, &[]).await;
    let b = start("b", address(), &[seed]).await;
    all_see(&[&a, &b], &["a", "b"]).await;
    // chitchat asserts that a version never falls, and adds 1 to the version of its own values.
    let (own, other) = (incarnation("a", 1, seed), incarnation("b", 1, b.gossip_address()));
    for (number, bad) in [
        change(&other, 1 << 20, 1 << 19),
        change(&own, 1 << 20, 1 << 19),
        change(&own, u64::MAX, u64::MAX),
        change(&other, 1, u64::MAX),
    ]
    .iter()
    .enumerate()
    {
        send_message(seed, number as u32, bad);
    }
    until_counted("they were dropped", || a.counts().dropped_malformed == 4).await;
    // Values still travel both ways.
    a.set_readiness(Readiness::Draining);
    b.set_readiness(Readiness::Draining);
    let drains = |name: &str| {
        let name = id(name);
        move |view: &View| view.get(&name).is_some_and(|it| it.readiness == Readiness::Draining)
    };
    until(&a, "b drains", drains("b")).await;
    until(&b, "a drains", drains("a")).await;
}

#[tokio::test]
async fn thousands_of_starts_of_a_node_leave_gossip_as_it_was() {
    let seed = address();
    let a = start("a", seed, &[]).await;
    let b_address = address();
    let b = start("b", b_address, &[seed]).await;
    all_see(&[&a, &b], &["a", "b"]).await;
    // A node that ends as soon as it has started, again and again: all its starts are heard within the grace.
    let restless = address();
    for (number, first) in (1..=5_000_u64).step_by(500).enumerate() {
        let mut syn = message(0);
        syn.extend(500_u16.to_le_bytes());
        for generation in first..first + 500 {
            syn.extend(incarnation("restless", generation, restless));
            syn.extend([1_u64, 0, 0].iter().flat_map(|number| number.to_le_bytes()));
        }
        syn.extend([4, 0]);
        syn.extend(b"prod");
        let before = a.counts().received;
        send_message(seed, number as u32, &syn);
        until_counted("all of it arrived", || a.counts().received >= before + 15).await;
    }
    // Neither of the two lost the other, and each hears of what the other says.
    a.set_readiness(Readiness::Draining);
    until(&b, "a drains", |view| view.get(&id("a")).is_some_and(|a| a.readiness == Readiness::Draining))
        .await;
    assert_eq!((alive(&a.view().borrow()), alive(&b.view().borrow())), (vec!["a", "b"], vec!["a", "b"]));
    // A start of b is seen, and so is a new node that knows the other two from a only.
    drop(b);
    let again = MembershipConfig { incarnation: Incarnation(2), ..config("b", b_address, &[seed]) };
    until_counted("its address is free", || UdpSocket::bind(b_address).is_ok()).await;
    let b = Membership::start(again, facts("b")).await.unwrap();
    let c = start("c", address(), &[seed]).await;
    let has_all = |view: &View| {
        let b = view.get(&id("b")).map(|b| (b.incarnation, b.alive));
        b == Some((Incarnation(2), true)) && alive(view) == ["a", "b", "c"]
    };
    for node in [&a, &b, &c] {
        until(node, "all are there", has_all).await;
        assert_eq!(node.counts().send_failed, 0, "every message fits");
        assert!(node.incarnations() < 500, "{}", node.incarnations());
    }
}
