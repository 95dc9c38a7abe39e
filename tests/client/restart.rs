//! A real node is killed, or stopped, and started again on the same directory and address, while appends, streams
//! and watches go on with default settings.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use ledger_client::{Client, ContextId, Options, Selection};

use crate::{
    appender::Load,
    support::{Ledger, append, context, in_time, numbers, payload, payloads, until},
};

/// Unary appends one after the other, and a watch of them.
struct Writer {
    context: ContextId,
    stop: Arc<AtomicBool>,
    appended: Arc<AtomicU64>,
    appending: tokio::task::JoinHandle<()>,
    watching: tokio::task::JoinHandle<()>,
}

impl Writer {
    fn start(client: &Client, name: &str) -> Self {
        let context = context(name);
        let (stop, appended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let appending = tokio::spawn({
            let (client, context) = (client.clone(), context.clone());
            let (stop, appended) = (Arc::clone(&stop), Arc::clone(&appended));
            async move {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let stored = client.append(append(&context, number)).await.unwrap();
                    assert_eq!(stored.entry.sequence.0, number + 1);
                    appended.store(number + 1, Ordering::Relaxed);
                }
            }
        });
        let watching = tokio::spawn({
            let (client, context) = (client.clone(), context.clone());
            let (stop, appended) = (Arc::clone(&stop), Arc::clone(&appended));
            async move {
                let mut watch = client.watch(&context, Selection::default());
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) && appended.load(Ordering::Relaxed) <= number {
                        return;
                    }
                    let entry = watch.next().await.unwrap().unwrap();
                    assert_eq!((entry.sequence.0, payload(&entry)), (number + 1, number.to_string()));
                }
            }
        });
        Self { context, stop, appended, appending, watching }
    }

    async fn reach(&self, count: u64) {
        let target = self.appended.load(Ordering::Relaxed) + count;
        until("appends go on", async || (self.appended.load(Ordering::Relaxed) >= target).then_some(()))
            .await;
    }

    async fn finish(self, client: &Client) {
        self.stop.store(true, Ordering::Relaxed);
        in_time("the last append", self.appending).await.unwrap();
        // The watch may wait for one more.
        client.append(append(&self.context, self.appended.load(Ordering::Relaxed))).await.unwrap();
        in_time("the watch has seen all", self.watching).await.unwrap();
        let count = self.appended.load(Ordering::Relaxed) as usize + 1;
        assert_eq!(payloads(client, &self.context).await, numbers(count));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_killed_and_started_again_is_a_pause_and_not_an_error() {
    let mut ledger = Ledger::start();
    let address = ledger.address();
    let client = Client::connect(&ledger.url(), &Options::default()).unwrap();
    let contexts = (0..8).map(|n| context(&format!("restart-{n}"))).collect();
    let load = Load::start(&client, contexts, 512).await;
    let writer = Writer::start(&client, "restart-unary");
    for round in 0..8 {
        writer.reach(20).await;
        load.reach(2000).await;
        let dir = if round % 2 == 0 { ledger.kill() } else { ledger.stop() };
        ledger = Ledger::start_at(dir, address);
    }
    writer.reach(20).await;
    load.reach(2000).await;
    writer.finish(&client).await;
    load.finish(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_by_name_among_several_is_a_pause_too() {
    let mut ledger = Ledger::start();
    let address = ledger.address();
    // A name, and a place where nobody is: of a cluster of which only one node is up.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let list = [format!("http://{nobody}"), format!("http://localhost:{}", address.port())];
    let client = Client::connect_any(list, &Options::default()).unwrap();
    let load = Load::start(&client, vec![context("named-0"), context("named-1")], 64).await;
    let writer = Writer::start(&client, "named-unary");
    for _ in 0..3 {
        writer.reach(20).await;
        load.reach(500).await;
        let dir = ledger.kill();
        ledger = Ledger::start_at(dir, address);
    }
    writer.reach(20).await;
    load.reach(500).await;
    writer.finish(&client).await;
    load.finish(&client).await;
}
