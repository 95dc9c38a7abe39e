//! Processes that are killed, and disks that are lost or full.

use ledger_tests::until_async;
use rand::RngExt as _;

use super::rounds;
use crate::run::{Errors, Ground, Run, Setting};

/// kill -9 of an owner; it comes back.
#[test]
fn the_owner_is_killed() {
    rounds(true, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        run.cluster.nodes[owner].kill();
        run.goes_on("after the owner was killed").await;
        run.cluster.start(owner).await;
        Some(run.finish(Errors::None).await)
    });
}

/// kill -9 of a replica; it comes back.
#[test]
fn a_replica_is_killed() {
    rounds(false, async |what| {
        let setting = Setting { one_owner: true, ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        let replica = (owner + run.random.random_range(1..3)) % 3;
        run.cluster.nodes[replica].kill();
        run.goes_on("after a replica was killed").await;
        run.cluster.start(replica).await;
        Some(run.finish(Errors::None).await)
    });
}

/// kill -9, and the node comes back with an empty directory.
#[test]
fn a_node_loses_its_disk() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        let index = run.random.random_range(0..3);
        run.cluster.nodes[index].kill();
        run.cluster.nodes[index].wipe();
        run.goes_on("while a node is away").await;
        run.cluster.start(index).await;
        let took = run.cluster.settled("after a node came back empty").await;
        run.note(format!("relearnt in {:.1} s", took.as_secs_f64()));
        Some(run.finish(Errors::None).await)
    });
}

/// The disk of a node is full, and has room again.
#[test]
fn a_disk_is_full() {
    rounds(false, async |what| {
        let setting = Setting { ground: Ground::Small(1, 96 << 20), ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        run.cluster.nodes[1].fill();
        until_async("the node finds its disk full", async || run.cluster.is_full(1).await.then_some(()))
            .await;
        run.a_while(1000..4000).await;
        run.goes_on("while a disk is full").await;
        run.cluster.nodes[1].free();
        Some(run.finish(Errors::None).await)
    });
}
