//! Streamed appends: one receipt for each, in order per context, whatever happens to the owners.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ledger_client::{Client, ClientError, ContextId, Options, Receipts};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use crate::{
    double::{Cluster, Manner},
    support::{Ledger, append, context, hasty, in_time, numbers, payloads, until},
};

/// Sends numbers to contexts in turn until told to stop, and checks the receipts as they come.
pub(crate) struct Load {
    contexts: Vec<ContextId>,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sending: tokio::task::JoinHandle<u64>,
    receiving: tokio::task::JoinHandle<u64>,
}

impl Load {
    pub(crate) async fn start(client: &Client, contexts: Vec<ContextId>, window: usize) -> Self {
        let (mut appender, receipts) = client.appender(window).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let sending = tokio::spawn({
            let (contexts, stop) = (contexts.clone(), Arc::clone(&stop));
            async move {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    let context = &contexts[sent as usize % contexts.len()];
                    let tag = appender.send(append(context, sent / contexts.len() as u64)).await.unwrap();
                    assert_eq!(tag, sent);
                    sent += 1;
                }
                appender.finish();
                sent
            }
        });
        let receiving = tokio::spawn(receive(receipts, contexts.len() as u64, Arc::clone(&received)));
        Self { contexts, stop, received, sending, receiving }
    }

    pub(crate) async fn reach(&self, count: u64) {
        let target = self.received.load(Ordering::Relaxed) + count;
        until("receipts come", async || (self.received.load(Ordering::Relaxed) >= target).then_some(()))
            .await;
    }

    /// Stops, and checks that every append has its receipt and is stored once, in order.
    pub(crate) async fn finish(self, client: &Client) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let sent = in_time("the last is sent", self.sending).await.unwrap();
        let received = in_time("the last receipt comes", self.receiving).await.unwrap();
        assert_eq!(sent, received);
        let count = self.contexts.len() as u64;
        for (index, context) in self.contexts.iter().enumerate() {
            let expected = (sent + count - 1 - index as u64) / count;
            assert_eq!(payloads(client, context).await, numbers(expected as usize), "{context}");
        }
        sent
    }
}

async fn receive(mut receipts: Receipts, contexts: u64, received: Arc<AtomicU64>) -> u64 {
    let mut last = HashMap::new();
    let mut count = 0;
    while let Some(receipt) = receipts.next().await.unwrap() {
        let stored = receipt.result.unwrap();
        // Round robin: a context's next receipt is of its next append, and its entry the next.
        let context = receipt.tag % contexts;
        let expected = last.insert(context, receipt.tag).map_or(context, |last| last + contexts);
        assert_eq!(receipt.tag, expected, "receipts of a context come in the order of its appends");
        assert_eq!(stored.sequence.0, receipt.tag / contexts + 1);
        assert!(!stored.repeated, "that it was sent twice is the client's own affair");
        count += 1;
        received.store(count, Ordering::Relaxed);
    }
    count
}

fn many(count: usize) -> Vec<ContextId> {
    (0..count).map(|n| context(&format!("stream-{n}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_while_slots_move_and_nodes_die() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(3, ledger.address()).await;
    let client = cluster.client();
    let load = Load::start(&client, many(48), 512).await;
    let mut random = SmallRng::seed_from_u64(7);
    for round in 0..60 {
        load.reach(300).await;
        for _ in 0..8 {
            let context = &load.contexts[random.random_range(0..48)];
            // Sometimes nobody owns it for a while.
            let to = random.random_range(0..4);
            cluster.give(context, (to < 3).then_some(to));
        }
        if round % 12 == 6 {
            cluster.kill(1);
            // Everything is somewhere again.
            for context in &load.contexts {
                if cluster.owner(context).is_none_or(|owner| owner == 1) {
                    cluster.give(context, Some(random.random_range(0..2) * 2));
                }
            }
            cluster.give_all(1, Some(0));
            load.reach(2000).await;
            cluster.revive(1).await;
        }
        for context in &load.contexts {
            if cluster.owner(context).is_none() {
                cluster.give(context, Some(random.random_range(0..3)));
            }
        }
    }
    let sent = load.finish(&client).await;
    let refused: u64 = cluster.table().counts.iter().map(|node| node.refused).sum();
    assert!(sent > 10_000 && refused > 100, "{sent} sent, {refused} refused on the way");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_outlasts_the_loss_of_an_owner_with_default_settings() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(3, ledger.address()).await;
    let client = cluster.client();
    let load = Load::start(&client, many(16), 256).await;
    load.reach(1000).await;
    cluster.give_all(0, None);
    cluster.kill(0);
    let until = tokio::time::Instant::now() + Duration::from_millis(1500);
    tokio::time::sleep_until(until).await;
    for slot in 0..16 {
        let context = context(&format!("stream-{slot}"));
        if cluster.owner(&context).is_none() {
            cluster.give(&context, Some(1));
        }
    }
    load.reach(5000).await;
    load.finish(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_go_straight_to_their_owners() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(3, ledger.address()).await;
    let client = cluster.client();
    let load = Load::start(&client, many(30), 512).await;
    load.reach(3000).await;
    let sent = load.finish(&client).await;
    let counts = cluster.table().counts.clone();
    assert!(counts.iter().all(|node| node.refused == 0 && node.taken > 0), "{counts:?}");
    assert_eq!(counts.iter().map(|node| node.taken).sum::<u64>(), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ledger_refuses_has_its_receipt_in_its_place() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(2, ledger.address()).await;
    let context = context("some-are-bad");
    let one = Client::connect(&ledger.url(), &hasty(Duration::from_secs(20))).unwrap();
    for client in [one, cluster.client()] {
        let (mut appender, mut receipts) = client.appender(64).await.unwrap();
        for number in 0..30 {
            let mut append = append(&context, number);
            if number % 3 == 0 {
                append.metadata = (0..100_000).map(|n| (n.to_string(), String::new())).collect();
            }
            appender.send(append).await.unwrap();
        }
        appender.finish();
        let (mut good, mut tags) = (0, Vec::new());
        let mut errors = std::collections::BTreeSet::new();
        while let Some(receipt) = in_time("a receipt", receipts.next()).await.unwrap() {
            match receipt.result {
                Ok(_) => good += 1,
                Err(error) => {
                    errors.insert(error.to_string());
                    assert!(matches!(error, ClientError::Invalid(_)), "{error}");
                }
            }
            tags.push(receipt.tag);
        }
        assert_eq!(good, 20, "{errors:?}");
        tags.sort_unstable();
        assert_eq!(tags, (0..30).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_no_node_takes_a_context_for_too_long_its_appends_fail_and_others_go_on() {
    no_node_takes_a_context(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_address_too_what_nobody_takes_holds_up_no_other_context() {
    no_node_takes_a_context(1).await;
}

async fn no_node_takes_a_context(nodes: usize) {
    let ledger = Ledger::start();
    let cluster = Cluster::start(nodes, ledger.address()).await;
    let (stuck, well) = (context("stuck"), context("well"));
    cluster.give(&stuck, None);
    cluster.table().manner = Manner { names_owner: false, ..Manner::default() };
    let client = Client::connect(&cluster.urls(), &hasty(Duration::from_millis(600))).unwrap();
    let (mut appender, mut receipts) = client.appender(64).await.unwrap();
    for number in 0..10 {
        appender.send(append(&stuck, number)).await.unwrap();
        appender.send(append(&well, number)).await.unwrap();
    }
    let (mut failed, mut stored) = (Vec::new(), 0);
    while failed.len() < 10 || stored < 10 {
        let receipt = in_time("a receipt", receipts.next()).await.unwrap().unwrap();
        match receipt.result {
            Ok(_) => stored += 1,
            Err(error) => {
                assert!(matches!(error, ClientError::Unavailable(_)), "{error}");
                assert!(error.to_string().contains("entry_id"), "{error}");
                failed.push(receipt.tag);
            }
        }
    }
    assert_eq!(failed, (0..20).step_by(2).collect::<Vec<_>>());
    // Now there is an owner: but nothing may be stored behind what is missing.
    cluster.give(&stuck, Some(0));
    appender.send(append(&stuck, 10)).await.unwrap();
    appender.send(append(&well, 10)).await.unwrap();
    appender.finish();
    let mut rest = HashMap::new();
    while let Some(receipt) = in_time("a receipt", receipts.next()).await.unwrap() {
        rest.insert(receipt.tag, receipt.result.is_ok());
    }
    assert_eq!(rest, HashMap::from([(20, false), (21, true)]));
    assert_eq!(payloads(&client, &stuck).await, numbers(0));
    assert_eq!(payloads(&client, &well).await, numbers(11));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_address_a_context_waits_for_its_owner_while_others_have_their_receipts() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(1, ledger.address()).await;
    let (slow, well) = (context("slow"), context("well"));
    cluster.give(&slow, None);
    let (mut appender, mut receipts) = cluster.client().appender(64).await.unwrap();
    for number in 0..10 {
        appender.send(append(&slow, number)).await.unwrap();
        appender.send(append(&well, number)).await.unwrap();
    }
    for number in 0..10 {
        let receipt = in_time("a receipt", receipts.next()).await.unwrap().unwrap();
        receipt.result.unwrap();
        assert_eq!(receipt.tag, 2 * number + 1);
    }
    cluster.give(&slow, Some(0));
    for number in 0..10 {
        let receipt = in_time("a receipt", receipts.next()).await.unwrap().unwrap();
        assert!(!receipt.result.unwrap().repeated);
        assert_eq!(receipt.tag, 2 * number);
    }
    let client = cluster.client();
    assert_eq!(payloads(&client, &slow).await, numbers(10));
    assert_eq!(payloads(&client, &well).await, numbers(10));
    assert_eq!(cluster.table().counts[0].taken, 20, "nothing was sent again that was stored");
}

/// A payload with which an entry is about as large as nodes take.
const LARGEST: usize = (4 << 20) - (72 << 10);

#[tokio::test(flavor = "multi_thread")]
async fn an_append_too_large_for_any_message_is_refused_alone() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(2, ledger.address()).await;
    // What is sent again because of another append was not tried: one try is enough.
    let once = Options { tries: 1, ..hasty(Duration::from_secs(20)) };
    let clients = [&ledger.url(), &cluster.urls()].map(|urls| Client::connect(urls, &once).unwrap());
    for (index, client) in clients.into_iter().enumerate() {
        let contexts: Vec<_> = (0..5).map(|number| context(&format!("large-{index}-{number}"))).collect();
        let (mut appender, mut receipts) = client.appender(512).await.unwrap();
        let mut good = vec![Vec::new(); contexts.len()];
        let mut bad = Vec::new();
        for number in 0..400 {
            let which = number % contexts.len();
            let mut append = append(&contexts[which], number);
            match number {
                // More than the ledger decodes.
                51 | 52 | 151 | 350 => append.payload = vec![0; (20 << 20) - number].into(),
                // As large as is allowed.
                50 | 53 | 200 => append.payload = vec![b'x'; LARGEST].into(),
                _ => {}
            }
            let is_good = append.payload.len() <= LARGEST;
            let payload = append.payload.clone();
            let tag = appender.send(append).await.unwrap();
            if is_good { good[which].push(payload) } else { bad.push(tag) }
        }
        let mut refused = Vec::new();
        for _ in 0..400 {
            let receipt = in_time("a receipt", receipts.next()).await.unwrap().unwrap();
            match receipt.result {
                Ok(stored) => assert!(!stored.repeated),
                Err(error) => {
                    assert!(matches!(error, ClientError::Exhausted(_)), "{error}");
                    refused.push(receipt.tag);
                }
            }
        }
        refused.sort_unstable();
        assert_eq!(refused, bad);
        // The contexts of what was refused go on.
        for (context, good) in contexts.iter().zip(&mut good) {
            let append = append(context, "last");
            good.push(append.payload.clone());
            appender.send(append).await.unwrap();
            in_time("a receipt", receipts.next()).await.unwrap().unwrap().result.unwrap();
        }
        for (context, good) in contexts.iter().zip(good) {
            let stored = payloads(&client, context).await;
            assert!(stored.iter().map(String::as_bytes).eq(good.iter().map(|payload| &payload[..])));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_drops_the_receipts_ends_the_sending() {
    let ledger = Ledger::start();
    let client = Client::connect(&ledger.url(), &hasty(Duration::from_secs(20))).unwrap();
    let (mut appender, receipts) = client.appender(4).await.unwrap();
    drop(receipts);
    let ended = async { while appender.send(append(&context("dropped"), 0)).await.is_ok() {} };
    in_time("sending fails", ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_under_way_than_the_window_allows() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(2, ledger.address()).await;
    let context = context("narrow");
    cluster.give(&context, None);
    let client = cluster.client();
    let (mut appender, mut receipts) = client.appender(3).await.unwrap();
    for number in 0..3 {
        appender.send(append(&context, number)).await.unwrap();
    }
    let fourth = append(&context, 3);
    let mut sending = Box::pin(appender.send(fourth));
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut sending).await.is_err());
    cluster.give(&context, Some(1));
    assert_eq!(in_time("a receipt", receipts.next()).await.unwrap().unwrap().tag, 0);
    assert_eq!(in_time("there is room", sending).await.unwrap(), 3);
    appender.finish();
    let mut tags = Vec::new();
    while let Some(receipt) = in_time("a receipt", receipts.next()).await.unwrap() {
        receipt.result.unwrap();
        tags.push(receipt.tag);
    }
    assert_eq!(tags, [1, 2, 3]);
}
