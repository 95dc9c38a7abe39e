//! Reading goes on at another node, without a gap or a repetition, and notices another history.

use std::time::Duration;

use ledger_client::{
    Append, Client, ClientError, ContextId, Key, KnownCheckpoints, Options, Position, ReadFrom, Selection,
    Sequence, Size, Trust,
};
use tempfile::TempDir;

use crate::{
    double::Cluster,
    support::{Ledger, append, context, copy, hasty, in_time, numbers, payload, until},
};

/// Appends numbers to a context.
async fn fill(client: &Client, context: &ContextId, numbers: std::ops::Range<usize>) -> Position {
    let mut position = None;
    for number in numbers {
        position = Some(client.append(append(context, number)).await.unwrap().position);
    }
    position.unwrap()
}

fn direct(ledger: &Ledger) -> Client {
    Client::connect(&ledger.url(), &hasty(Duration::from_secs(20))).unwrap()
}

/// A ledger, and an older copy of it that lacks the newest entries of a context.
async fn ledger_and_older_copy(context: &ContextId, older: usize, newer: usize) -> (Ledger, TempDir) {
    let ledger = Ledger::start();
    fill(&direct(&ledger), context, 0..older).await;
    let dir = ledger.stop();
    let older_copy = copy(dir.path());
    let ledger = Ledger::start_at(dir, "127.0.0.1:0".parse().unwrap());
    if newer > older {
        fill(&direct(&ledger), context, older..newer).await;
    }
    (ledger, older_copy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_at_another_node() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(3, ledger.address()).await;
    let (client, writer, context) = (cluster.client(), direct(&ledger), context("watched"));
    let mut watch = client.watch(&context, Selection::default());
    let mut next = 0;
    for round in 0..6 {
        fill(&writer, &context, round * 50..(round + 1) * 50).await;
        // Some of each batch is still to be handed out when the node dies, and some comes after that.
        for until in [next + 40, (round + 1) * 50] {
            while next < until {
                let entry = in_time("an entry", watch.next()).await.unwrap().unwrap();
                assert_eq!((entry.sequence.0, payload(&entry)), (next as u64 + 1, next.to_string()));
                next += 1;
                let behind = watch.position().is_none_or(|position| position.size.0 <= next as u64);
                assert!(behind, "a position never covers what was not handed out");
            }
            cluster.kill(round % 3);
            cluster.revive(round % 3).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sees_everything_once_while_nodes_come_and_go() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(3, ledger.address()).await;
    let (client, context) = (cluster.client(), context("watched-all-along"));
    let count = 3000;
    let watching = tokio::spawn({
        let (client, context) = (client.clone(), context.clone());
        async move {
            let mut all = client.watch(&context, Selection::default());
            let key = Some(Key::new("traces").unwrap());
            let mut some = client.watch(&context, Selection { key, ..Selection::default() });
            for number in 0..count {
                let entry = all.next().await.unwrap().unwrap();
                assert_eq!((entry.sequence.0, payload(&entry)), (number + 1, number.to_string()));
                if number % 10 == 0 {
                    let entry = some.next().await.unwrap().unwrap();
                    assert_eq!((entry.sequence.0, payload(&entry)), (number + 1, number.to_string()));
                }
            }
        }
    });
    let writer = direct(&ledger);
    for number in 0..count {
        let key = if number % 10 == 0 { "traces" } else { "facts" };
        writer.append(Append::new(&context, key, number.to_string()).unwrap()).await.unwrap();
        if number % 300 == 150 {
            let index = (number / 300) as usize % 3;
            cluster.kill(index);
            cluster.revive(index).await;
        }
    }
    in_time("the watchers see all", watching).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_go_on_at_another_node() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(2, ledger.address()).await;
    let (client, context) = (cluster.client(), context("paged"));
    let (mut appender, mut receipts) = direct(&ledger).appender(4096).await.unwrap();
    let count = 20_000;
    let (long, sent) = (context.clone(), count);
    tokio::spawn(async move {
        for number in 0..sent {
            appender.send(Append::new(&long, "facts", format!("{number:0512}")).unwrap()).await.unwrap();
        }
    });
    while let Some(receipt) = receipts.next().await.unwrap() {
        receipt.result.unwrap();
    }
    for limit in [0, 15_000] {
        let mut pages = client.get(&context, Selection { limit, ..Selection::default() });
        let (mut seen, mut killed) = (0, false);
        while let Some(page) = in_time("a page", pages.next()).await.unwrap() {
            for entry in page {
                seen += 1;
                assert_eq!((entry.sequence.0, payload(&entry)), (seen, format!("{:0512}", seen - 1)));
            }
            if !std::mem::replace(&mut killed, true) {
                let index = usize::from(limit > 0);
                cluster.kill(index);
                cluster.revive(index).await;
            }
        }
        assert_eq!(seen, if limit == 0 { count } else { limit.into() });
        assert_eq!(pages.latest().0, count);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_history_is_an_error_and_nothing_of_it_is_handed_out() {
    let context = context("forked");
    let (ledger, older) = ledger_and_older_copy(&context, 10, 20).await;
    // The copy goes its own way.
    let other = Ledger::start_at(older, "127.0.0.1:0".parse().unwrap());
    for _ in 10..30 {
        direct(&other).append(append(&context, "another")).await.unwrap();
    }
    let mut cluster = Cluster::start(2, ledger.address()).await;
    cluster.set_backend(1, other.address());
    let client = cluster.client();

    let mut watch = client.watch(&context, Selection::default());
    for number in 0..20 {
        let entry = in_time("an entry", watch.next()).await.unwrap().unwrap();
        assert_eq!(payload(&entry), number.to_string());
    }
    let position = *watch.position().unwrap();
    assert_eq!(position.size, Size(20));
    let mut by_sequence = client.watch(&context, Selection { after: Sequence(15), ..Selection::default() });
    in_time("an entry", by_sequence.next()).await.unwrap().unwrap();
    let mut pages = client.get(&context, Selection { after: Sequence(12), limit: 3, ..Selection::default() });
    assert_eq!(pages.next().await.unwrap().unwrap().len(), 3);

    cluster.give_all(0, Some(1));
    cluster.kill(0);
    let error = in_time("the watch ends", watch.next()).await.unwrap_err();
    assert!(matches!(error, ClientError::HistoryChanged { .. }), "{error}");
    let ended = async {
        loop {
            match by_sequence.next().await {
                Ok(entry) => assert_ne!(payload(&entry.unwrap()), "another"),
                Err(error) => return error,
            }
        }
    };
    let error = in_time("the watch ends", ended).await;
    assert!(matches!(error, ClientError::HistoryChanged { .. }), "{error}");
    let mut resumed = client.watch(&context, Selection::default()).resume_after(position);
    let error = in_time("the watch ends", resumed.next()).await.unwrap_err();
    assert!(matches!(error, ClientError::HistoryChanged { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_behind_is_not_taken_for_another_history() {
    let context = context("behind");
    let (ledger, older) = ledger_and_older_copy(&context, 10, 30).await;
    let behind = Ledger::start_at(older, "127.0.0.1:0".parse().unwrap());
    let mut cluster = Cluster::start(3, ledger.address()).await;
    cluster.set_backend(1, behind.address());
    cluster.give(&context, Some(2));
    let client = cluster.client();
    let mut watch = client.watch(&context, Selection::default());
    for _ in 0..30 {
        in_time("an entry", watch.next()).await.unwrap().unwrap();
    }
    cluster.kill(0);
    // Node 1 is next, and has only ten; the owner has all.
    fill(&direct(&ledger), &context, 30..31).await;
    let entry = in_time("the watch goes on", watch.next()).await.unwrap().unwrap();
    assert_eq!(payload(&entry), "30");

    let fresh = Client::connect(&[cluster.url(1), cluster.url(2)].join(","), &Options::default()).unwrap();
    let checkpoint = fresh.checkpoint(&context, Some(Size(25))).await.unwrap();
    assert_eq!(checkpoint.position.size, Size(25));
    let trust = Trust::on_first_use(KnownCheckpoints::in_memory());
    let newest = fresh.get_verified(&context, Selection::default().after(Sequence(30)).from_owner(), &trust);
    let newest = newest.collect().await.unwrap();
    assert_eq!(newest.len(), 1);
    fresh.prove_inclusion(newest[0].entry(), newest[0].checkpoint()).await.unwrap();
    let all = fresh.get_verified(&context, Selection::default(), &trust);
    assert_eq!(all.collect().await.unwrap().len(), 31, "what is known to be there the owner shows");
    let error = fresh.checkpoint(&context, Some(Size(1000))).await.unwrap_err();
    assert!(matches!(error, ClientError::Invalid(_)), "{error}");
    let from_owner = Selection { read_from: ReadFrom::Owner, ..Selection::default() };
    assert_eq!(fresh.get(&context, from_owner).collect().await.unwrap().len(), 31);
    assert_eq!(fresh.get(&context, Selection::default()).collect().await.unwrap().len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_listings_and_snapshots_come_from_any_node() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(3, ledger.address()).await;
    let (client, context) = (cluster.client(), context("any-node"));
    fill(&client, &context, 0..20).await;
    for index in [0, 1] {
        cluster.kill(index);
        let trust = Trust::on_first_use(KnownCheckpoints::in_memory());
        let all = client.trusted_checkpoint(&context, &trust).await.unwrap();
        let entries = client.get(&context, Selection::default()).collect().await.unwrap();
        let inclusion = client.prove_inclusion(&entries[6], &all).await.unwrap();
        assert_eq!(inclusion.proof().size, 20);
        let five = client.trusted_checkpoint_at(&context, Size(5), &trust).await.unwrap();
        client.prove_consistency(&five, &all).await.unwrap();
        assert_eq!(client.contexts("any", "", 10).await.unwrap().contexts.len(), 1);
        let mut snapshot = Vec::new();
        let taken = client.snapshot(&context, &mut snapshot, |_| {}).await.unwrap();
        assert_eq!((taken.count, taken.root), (Size(20), all.head().root));
        let name = ContextId::new(format!("loaded-{index}")).unwrap();
        let loaded = client.load(&name, true, &mut snapshot.as_slice(), |_| {}).await.unwrap();
        assert_eq!((loaded.restored, loaded.latest), (20, Size(20)));
        assert_eq!(crate::support::payloads(&client, &name).await, numbers(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_without_any_node_says_so_and_can_be_asked_again() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(1, ledger.address()).await;
    let context = context("patient");
    fill(&direct(&ledger), &context, 0..3).await;
    let client = Client::connect(&cluster.urls(), &hasty(Duration::from_millis(300))).unwrap();
    let mut watch = client.watch(&context, Selection::default());
    for _ in 0..3 {
        in_time("an entry", watch.next()).await.unwrap();
    }
    cluster.kill(0);
    let error = in_time("the watch gives up", watch.next()).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_)), "{error}");
    cluster.revive(0).await;
    fill(&direct(&ledger), &context, 3..4).await;
    let next = until("the watch goes on", async || watch.next().await.ok()).await;
    assert_eq!(payload(&next.unwrap()), "3");
}
