//! Nodes that are restarted, come and leave.

use std::time::Duration;

use ledger_tests::until_async;

use super::rounds;
use crate::run::{Errors, Run, Setting};

/// SIGTERM and start of each node, one after the other.
#[test]
fn all_nodes_are_restarted_one_by_one() {
    rounds(true, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        for index in 0..3 {
            let took = run.cluster.nodes[index].stop().await;
            run.cluster.start(index).await;
            let settling = run.cluster.settled("after a restart").await;
            run.note(format!(
                "{}: stopped in {:.1} s, in step in {:.1} s",
                run.cluster.nodes[index].name,
                took.as_secs_f64(),
                settling.as_secs_f64()
            ));
        }
        Some(run.finish(Errors::None).await)
    });
}

/// 3 nodes become 5, then the first two leave.
#[test]
fn the_cluster_grows_and_shrinks() {
    rounds(false, async |what| {
        let setting =
            Setting { nodes: 5, flags: &["--placement-grace", "1s"], leaving: &[0, 1], ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        for index in 3..5 {
            run.cluster.start(index).await;
        }
        until_async("the new nodes own slots", async || {
            let shares = run.cluster.shares().await;
            let owns = |name: &str| shares.get(name).is_some_and(|count| *count > 100);
            (owns("node-4") && owns("node-5")).then_some(())
        })
        .await;
        let grown = run.cluster.settled("with five nodes").await;
        run.note(format!("five in step in {:.1} s", grown.as_secs_f64()));
        for index in 0..2 {
            run.cluster.nodes[index].stop().await;
            let took = run.cluster.settled("after a node left").await;
            run.note(format!("{} gone in {:.1} s", run.cluster.nodes[index].name, took.as_secs_f64()));
        }
        Some(run.finish(Errors::None).await)
    });
}

/// SIGTERM and start of each of 15 nodes, one after the other.
#[test]
fn fifteen_nodes_are_restarted_one_by_one() {
    rounds(false, async |what| {
        let setting = Setting { nodes: 15, start: 15, ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        let (mut stopping, mut settling) = (Duration::ZERO, Duration::ZERO);
        for index in 0..15 {
            stopping = stopping.max(run.cluster.nodes[index].stop().await);
            run.cluster.start(index).await;
            settling = settling.max(run.cluster.settled("after a restart").await);
        }
        run.note(format!(
            "stopped in {:.1} s at most, in step in {:.1} s",
            stopping.as_secs_f64(),
            settling.as_secs_f64()
        ));
        Some(run.finish(Errors::None).await)
    });
}
