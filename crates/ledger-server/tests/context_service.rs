//! `converge.context.v1`: every line of the contract's tables.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{collections::BTreeMap, time::Duration};

use ledger_proto::context::v1::{AppendRequest, GetRequest, LoadRequest, SnapshotRequest, WatchRequest};
use ledger_server::settings::units::ByteSize;
use support::{DEADLINE, TestNode, append, append_all, field, get, next_entry, watch};
use tonic::Code;

#[tokio::test]
async fn an_append_returns_the_entry_as_stored() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    let metadata = BTreeMap::from([("source".to_owned(), "test".to_owned())]);
    let request = AppendRequest { metadata: metadata.clone(), ..append("c", "facts", "one") };
    let response = client.append(request).await.unwrap().into_inner();
    let entry = response.entry.unwrap();
    assert_eq!((entry.sequence, entry.lamport_clock, entry.key.as_str()), (1, 1, "facts"));
    assert_eq!(
        (entry.payload.as_ref(), entry.context_id.as_str(), &entry.metadata),
        (&b"one"[..], "c", &metadata)
    );
    assert_eq!(entry.id.len(), 32);
    assert!(entry.id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{}", entry.id);
    assert_eq!(entry.content_hash.len(), 32);
    let position = response.position.unwrap();
    assert_eq!((position.size, position.root.len(), position.lineage.len()), (1, 32, 16));

    let read = client.get(get("c")).await.unwrap().into_inner();
    assert_eq!(read.entries, [entry]);
    assert_eq!((read.latest_sequence, read.truncated, read.next_after_sequence), (1, false, 0));
    node.stop().await;
}

#[tokio::test]
async fn a_context_never_written_reads_as_empty() {
    let node = TestNode::start().await;
    let read = node.contexts().await.get(get("nowhere")).await.unwrap().into_inner();
    assert_eq!((read.entries.len(), read.latest_sequence, read.truncated), (0, 0, false));
    node.stop().await;
}

#[tokio::test]
async fn a_get_filters_by_key_sequence_and_limit() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    for n in 1..=10 {
        let key = if n % 3 == 0 { "rare" } else { "facts" };
        client.append(append("c", key, n.to_string())).await.unwrap();
    }
    let sequences = |response: ledger_proto::context::v1::GetResponse| -> Vec<u64> {
        assert_eq!((response.latest_sequence, response.truncated), (10, false));
        response.entries.iter().map(|entry| entry.sequence).collect()
    };
    let rare = client.get(GetRequest { key: "rare".into(), ..get("c") }).await.unwrap().into_inner();
    assert_eq!(sequences(rare), [3, 6, 9]);
    let later = client.get(GetRequest { after_sequence: 8, ..get("c") }).await.unwrap().into_inner();
    assert_eq!(sequences(later), [9, 10]);
    let limited =
        client.get(GetRequest { limit: 2, after_sequence: 1, ..get("c") }).await.unwrap().into_inner();
    assert_eq!(sequences(limited), [2, 3]);
    let beyond = client.get(GetRequest { after_sequence: 99, ..get("c") }).await.unwrap().into_inner();
    assert_eq!(sequences(beyond), [] as [u64; 0]);
    node.stop().await;
}

#[tokio::test]
async fn a_get_over_the_message_limit_is_cut_at_a_whole_entry_and_says_so() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    for _ in 0..7 {
        client.append(append("c", "facts", vec![7; 1 << 20])).await.unwrap();
    }
    // A client with the usual limit of 4 MiB.
    let mut usual =
        ledger_proto::context::v1::context_service_client::ContextServiceClient::new(node.channel().await);
    let (mut after, mut read, mut answers) = (0, Vec::new(), 0);
    loop {
        let response =
            usual.get(GetRequest { after_sequence: after, ..get("c") }).await.unwrap().into_inner();
        answers += 1;
        assert_eq!(response.latest_sequence, 7);
        read.extend(response.entries.iter().map(|entry| entry.sequence));
        if !response.truncated {
            break;
        }
        after = response.next_after_sequence;
    }
    assert_eq!(read, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(answers, 3);
    node.stop().await;
}

#[tokio::test]
async fn many_small_entries_are_cut_by_what_they_take_in_the_message() {
    let node = TestNode::start_with(|config| config.max_response = ByteSize(64 << 10)).await;
    let mut client = node.contexts().await;
    for _ in 0..20 {
        let batch: Vec<_> = (0..100).map(|_| client.clone()).collect();
        let appends =
            batch.into_iter().map(|mut client| async move { client.append(append("c", "k", "x")).await });
        futures::future::try_join_all(appends).await.unwrap();
    }
    let (mut after, mut read) = (0, 0);
    loop {
        let response =
            client.get(GetRequest { after_sequence: after, ..get("c") }).await.unwrap().into_inner();
        assert!(prost::Message::encoded_len(&response) <= 64 << 10);
        read += response.entries.len();
        if !response.truncated {
            break;
        }
        after = response.next_after_sequence;
    }
    assert_eq!(read, 2000);
    node.stop().await;
}

#[tokio::test]
async fn an_entry_larger_than_an_answer_is_answered_alone() {
    let node = TestNode::start_with(|config| config.max_response = ByteSize(64 << 10)).await;
    let mut client = node.contexts().await;
    for _ in 0..2 {
        client.append(append("c", "facts", vec![7; 1 << 20])).await.unwrap();
    }
    let response = client.get(get("c")).await.unwrap().into_inner();
    assert_eq!((response.entries.len(), response.truncated, response.next_after_sequence), (1, true, 1));
    node.stop().await;
}

#[tokio::test]
async fn lamport_time_passes_what_was_received() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    let mut times = Vec::new();
    for received_lamport in [0, 10, 3, 12 + (1 << 32)] {
        let request = AppendRequest { received_lamport, ..append("c", "facts", "x") };
        times.push(client.append(request).await.unwrap().into_inner().entry.unwrap().lamport_clock);
    }
    assert_eq!(times, [1, 11, 12, 13 + (1 << 32)]);
    node.stop().await;
}

#[tokio::test]
async fn a_received_time_that_would_use_up_the_clock_is_refused_and_appends_go_on() {
    let node = TestNode::start_with(|config| config.max_lamport_ahead = 1000).await;
    let mut client = node.contexts().await;
    for received_lamport in [u64::MAX, u64::MAX - 1, 1 << 63, 1001] {
        let request = AppendRequest { received_lamport, ..append("c", "facts", "x") };
        let status = client.append(request).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "received_lamport"));
        let message = status.message();
        assert!(
            message.contains(&format!("{received_lamport} ")) && message.contains("Lamport time 0:"),
            "{message}"
        );
    }
    let request = AppendRequest { received_lamport: 1000, ..append("c", "facts", "x") };
    client.append(request).await.unwrap();
    let next = client.append(append("c", "facts", "y")).await.unwrap().into_inner().entry.unwrap();
    assert_eq!((next.sequence, next.lamport_clock), (2, 1002));
    node.stop().await;
}

#[tokio::test]
async fn repeating_an_entry_id_returns_the_first_result() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    let request = AppendRequest { entry_id: "retry-7".into(), ..append("c", "facts", "x") };
    let first = client.append(request.clone()).await.unwrap().into_inner();
    client.append(append("c", "facts", "between")).await.unwrap();
    let again = client.append(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.entry, first.entry);
    let other = AppendRequest { payload: "y".into(), ..request };
    let status = client.append(other).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(client.get(get("c")).await.unwrap().into_inner().latest_sequence, 2);
    node.stop().await;
}

#[tokio::test]
async fn bad_names_are_refused_and_named() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    let (long, long_key) = ("x".repeat(1025), "x".repeat(257));
    for context in ["", "a\nb", "\u{85}", &long] {
        let mut statuses = vec![
            client.append(append(context, "facts", "x")).await.unwrap_err(),
            client.get(get(context)).await.unwrap_err(),
            client.watch(watch(context, 0)).await.unwrap_err(),
        ];
        let snapshot = SnapshotRequest { context_id: context.into() };
        statuses.push(client.snapshot(snapshot).await.unwrap_err());
        let load = LoadRequest { context_id: context.into(), ..Default::default() };
        statuses.push(client.load(load).await.unwrap_err());
        for status in statuses {
            assert_eq!(
                (status.code(), field(&status).as_str()),
                (Code::InvalidArgument, "context_id"),
                "{status:?}"
            );
            assert!(status.message().contains("context_id"));
        }
    }
    for key in ["", "a\u{0}", &long_key] {
        let status = client.append(append("c", key, "x")).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "key"), "{status:?}");
    }
    let status = client.get(GetRequest { key: long_key.clone(), ..get("c") }).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "key"));
    let status = client.watch(WatchRequest { key: long_key, ..watch("c", 0) }).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "key"));
    // The longest names are good.
    client.append(append(&"x".repeat(1024), &"k".repeat(256), "x")).await.unwrap();
    node.stop().await;
}

#[tokio::test]
async fn other_bad_fields_are_refused_and_named() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    let good = append("c", "facts", "x");
    let many = (0..1025).map(|n| (n.to_string(), String::new())).collect();
    let large = BTreeMap::from([("a".to_owned(), "x".repeat(65 << 10))]);
    for (name, request) in [
        ("entry_id", AppendRequest { entry_id: "a\tb".into(), ..good.clone() }),
        ("durability", AppendRequest { durability: 4, ..good.clone() }),
        ("metadata", AppendRequest { metadata: many, ..good.clone() }),
        ("metadata", AppendRequest { metadata: large, ..good.clone() }),
    ] {
        let status = client.append(request).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, name), "{status:?}");
    }
    let status = client.get(GetRequest { consistency: 2, ..get("c") }).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "consistency"));
    for durability in 0..=3 {
        client.append(AppendRequest { durability, ..good.clone() }).await.unwrap();
    }
    assert_eq!(client.get(get("c")).await.unwrap().into_inner().latest_sequence, 4);
    node.stop().await;
}

#[tokio::test]
async fn an_entry_over_the_limit_is_refused_with_the_size_of_its_payload_and_the_limit() {
    let node = TestNode::start_with(|config| config.max_entry = ByteSize(1200)).await;
    let mut client = node.contexts().await;
    client.append(append("c", "facts", vec![0; 1000])).await.unwrap();
    for size in [1200, 1 << 20, 8 << 20] {
        let status = client.append(append("c", "facts", vec![0; size])).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let message = status.message();
        assert!(message.contains("1200"), "{message}");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_watch_delivers_history_and_live_entries_without_a_gap() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    append_all(&mut client, "c", &["1", "2", "3"]).await;
    let mut all = client.watch(watch("c", 0)).await.unwrap().into_inner();
    let mut later = client.watch(watch("c", 2)).await.unwrap().into_inner();
    let mut rare =
        client.watch(WatchRequest { key: "rare".into(), ..watch("c", 0) }).await.unwrap().into_inner();
    for sequence in 1..=3 {
        assert_eq!(next_entry(&mut all).await.sequence, sequence);
    }
    assert_eq!(next_entry(&mut later).await.sequence, 3);
    append_all(&mut client, "c", &["4"]).await;
    client.append(append("c", "rare", "5")).await.unwrap();
    assert_eq!(next_entry(&mut rare).await.sequence, 5);
    for watcher in [&mut all, &mut later] {
        assert_eq!(next_entry(watcher).await.sequence, 4);
        assert_eq!(next_entry(watcher).await.payload.as_ref(), b"5");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_that_join_at_any_time_see_every_entry_once_in_order() {
    const ENTRIES: u64 = 3000;
    let node = TestNode::start().await;
    let client = node.contexts().await;
    let (appended, so_far) = tokio::sync::watch::channel(0);
    let writer = {
        let mut client = client.clone();
        tokio::spawn(async move {
            for n in 0..ENTRIES {
                client.append(append("c", "facts", n.to_string())).await.unwrap();
                appended.send_replace(n + 1);
            }
        })
    };
    let mut watchers = Vec::new();
    for n in 0..20 {
        let (mut client, mut so_far) = (client.clone(), so_far.clone());
        watchers.push(tokio::spawn(async move {
            so_far.wait_for(|appended| *appended >= n * 100).await.unwrap();
            let from = n * 10;
            let mut events = client.watch(watch("c", from)).await.unwrap().into_inner();
            for sequence in from + 1..=ENTRIES {
                let entry = events.message().await.unwrap().unwrap().entry.unwrap();
                assert_eq!((entry.sequence, entry.payload), (sequence, (sequence - 1).to_string().into()));
            }
        }));
    }
    writer.await.unwrap();
    for watcher in watchers {
        tokio::time::timeout(DEADLINE, watcher).await.unwrap().unwrap();
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_watcher_delays_nobody_and_loses_nothing() {
    const ENTRIES: u64 = 1500;
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    let mut slow = node.contexts().await.watch(watch("c", 0)).await.unwrap().into_inner();
    let mut quick = node.contexts().await.watch(watch("c", 0)).await.unwrap().into_inner();
    // 24 MiB: more than flow control and the memory of recent entries hold.
    for n in 1..=ENTRIES {
        let mut payload = vec![0; 16 << 10];
        payload[..8].copy_from_slice(&n.to_be_bytes());
        client.append(append("c", "facts", payload)).await.unwrap();
        assert_eq!(next_entry(&mut quick).await.sequence, n);
    }
    for n in 1..=ENTRIES {
        let entry = next_entry(&mut slow).await;
        assert_eq!(entry.sequence, n);
        assert_eq!(entry.payload[..8], n.to_be_bytes());
    }
    node.stop().await;
}

#[tokio::test]
async fn bookmarks_come_only_when_asked_for() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    append_all(&mut client, "c", &["1", "2"]).await;
    let request = WatchRequest { bookmarks: true, key: "rare".into(), ..watch("c", 0) };
    let mut marked = client.watch(request).await.unwrap().into_inner();
    let event = tokio::time::timeout(DEADLINE, marked.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((event.entry, event.bookmark.unwrap().size), (None, 2));
    let mut plain = client.watch(watch("c", 2)).await.unwrap().into_inner();
    let none = tokio::time::timeout(Duration::from_millis(1500), plain.message()).await;
    assert!(none.is_err(), "{none:?}");
    node.stop().await;
}

#[tokio::test]
async fn a_snapshot_loads_into_another_node_as_it_was() {
    let (from, to) = (TestNode::start().await, TestNode::start().await);
    let (mut from_client, mut to_client) = (from.contexts().await, to.contexts().await);
    append_all(&mut from_client, "c", &["1", "2", "3"]).await;
    from_client.append(AppendRequest { received_lamport: 40, ..append("c", "facts", "4") }).await.unwrap();
    let snapshot =
        from_client.snapshot(SnapshotRequest { context_id: "c".into() }).await.unwrap().into_inner();
    let metadata = snapshot.metadata.unwrap();
    assert_eq!((snapshot.sequence, metadata.entry_count, metadata.version), (4, 4, 1));
    assert_eq!(
        (metadata.lamport_clock, metadata.hash_suite.as_str(), metadata.merkle_root.len()),
        (41, "blake3", 32)
    );
    assert!(metadata.created_at_ns > 0);

    let load = LoadRequest { context_id: "c".into(), snapshot: snapshot.snapshot, fail_if_exists: true };
    let loaded = to_client.load(load.clone()).await.unwrap().into_inner();
    assert_eq!((loaded.entries_restored, loaded.latest_sequence), (4, 4));
    let (was, is) = (from_client.get(get("c")).await.unwrap(), to_client.get(get("c")).await.unwrap());
    assert_eq!(was.into_inner(), is.into_inner());
    // The clock is restored too.
    let next = to_client.append(append("c", "facts", "5")).await.unwrap().into_inner().entry.unwrap();
    assert_eq!((next.sequence, next.lamport_clock), (5, 42));

    let status = to_client.load(load.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    // A prefix of what is there adds nothing.
    let again =
        to_client.load(LoadRequest { fail_if_exists: false, ..load.clone() }).await.unwrap().into_inner();
    assert_eq!((again.entries_restored, again.latest_sequence), (0, 5));
    // What goes on from what is there adds the rest.
    let longer = to_client.snapshot(SnapshotRequest { context_id: "c".into() }).await.unwrap().into_inner();
    let longer = LoadRequest { context_id: "c".into(), snapshot: longer.snapshot, fail_if_exists: false };
    let rest = from_client.load(longer).await.unwrap().into_inner();
    assert_eq!((rest.entries_restored, rest.latest_sequence), (1, 5));
    // Another history is refused.
    append_all(&mut to_client, "other", &["x"]).await;
    let other =
        to_client.load(LoadRequest { context_id: "other".into(), fail_if_exists: false, ..load }).await;
    let status = other.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("sequence 1"), "{}", status.message());
    from.stop().await;
    to.stop().await;
}

#[tokio::test]
async fn a_bad_snapshot_is_refused_and_nothing_is_written() {
    let node = TestNode::start().await;
    let mut client = node.contexts().await;
    append_all(&mut client, "c", &["1", "2", "3"]).await;
    let good =
        client.snapshot(SnapshotRequest { context_id: "c".into() }).await.unwrap().into_inner().snapshot;
    let cut = good.slice(..good.len() - 5);
    let mut newer = good.to_vec();
    newer[8..10].copy_from_slice(&[0xff, 0xff]);
    let mut flipped = good.to_vec();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    let legacy = [131, 116, 0, 0];
    for (snapshot, codes) in [
        (bytes::Bytes::new(), [Code::InvalidArgument; 2]),
        ("not a snapshot".into(), [Code::InvalidArgument; 2]),
        (cut, [Code::InvalidArgument; 2]),
        (newer.into(), [Code::InvalidArgument; 2]),
        (flipped.into(), [Code::DataLoss; 2]),
        (legacy.to_vec().into(), [Code::InvalidArgument; 2]),
    ] {
        let load = LoadRequest { context_id: "d".into(), snapshot, fail_if_exists: false };
        let status = client.load(load).await.unwrap_err();
        assert!(codes.contains(&status.code()), "{status:?}");
        assert_eq!(client.get(get("d")).await.unwrap().into_inner().latest_sequence, 0);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_snapshot_too_large_for_a_message_points_to_the_stream() {
    let node = TestNode::start_with(|config| config.max_snapshot_message = ByteSize(10_000)).await;
    let mut client = node.contexts().await;
    // Random enough not to be compressed away.
    let payload: Vec<u8> = (0..20_000u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ (n >> 3) as u8)
        .collect();
    for n in 0..40_u8 {
        let payload: Vec<u8> =
            payload.iter().map(|byte| byte.wrapping_mul(n | 1).rotate_left(n.into())).collect();
        client.append(append("c", "facts", payload)).await.unwrap();
    }
    let status = client.snapshot(SnapshotRequest { context_id: "c".into() }).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("LedgerService/Snapshot") && status.message().contains("10000"));
    let load =
        LoadRequest { context_id: "d".into(), snapshot: vec![0; 10_001].into(), fail_if_exists: false };
    let status = client.load(load).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("10001") && status.message().contains("LedgerService/Load"));
    node.stop().await;
}
