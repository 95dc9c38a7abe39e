//! Owners that stop answering without their connections breaking, as a process that is stopped, or a machine that hangs.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use ledger_proto::context::v1::AppendRequest;
use ledger_tests::{Cluster, Rpc, until_async};
use rustix::process::Signal;
use tonic::{Code, Status};

/// More than enough that a node of three owns some of them.
const CONTEXTS: usize = 24;

async fn append(rpc: &Rpc, context: &str, entry_id: &str) -> Result<(), Status> {
    let request = AppendRequest {
        context_id: context.to_owned(),
        key: "facts".to_owned(),
        payload: entry_id.as_bytes().to_vec().into(),
        entry_id: entry_id.to_owned(),
        ..AppendRequest::default()
    };
    rpc.context.clone().append(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_on_to_an_owner_that_is_paused_goes_to_the_next_one() {
    let cluster = Cluster::start(3, &[]);
    let contexts: Vec<String> = (0..CONTEXTS).map(|number| format!("context-{number}")).collect();
    let rpc = cluster.node(1).rpc().await;
    for context in &contexts {
        until_async("an append is taken", async || append(&rpc, context, "before").await.ok()).await;
    }
    cluster.node(0).signal(Signal::STOP);
    let acknowledged = contexts.iter().map(|context| async {
        let acknowledged = async || match append(&rpc, context, "meanwhile").await {
            Ok(()) => Some(()),
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                let is_told = ["does not answer", "owns this context"]
                    .iter()
                    .any(|said| status.message().contains(said));
                assert!(is_told, "the reader of a refusal learns why: {status}");
                None
            }
        };
        until_async("an append is acknowledged by the next owner", acknowledged).await;
    });
    futures::future::join_all(acknowledged).await;
    cluster.node(0).signal(Signal::CONT);
    for node in cluster.running() {
        let rpc = node.rpc().await;
        for context in &contexts {
            let shows = async || {
                let entries = rpc.entries(context, 0).await.ok()?;
                let ids: Vec<String> = entries.into_iter().map(|entry| entry.id).collect();
                (ids == ["before", "meanwhile"]).then_some(())
            };
            until_async("each entry is there once, at every node", shows).await;
        }
    }
}
