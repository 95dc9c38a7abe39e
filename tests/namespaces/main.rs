//! Real nodes in network namespaces of their own: killed, cut off, restarted, wiped, out of disk, on a network that
//! loses packets. After each run every acknowledgement, and everything that anybody was shown, is compared with what
//! each node holds.
//!
//! Needs root, `ip` and `tc`; says so where they are missing. `just namespaces 20 1` runs twenty rounds of each scenario
//! from seed 1 on.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

mod check;
mod cluster;
mod load;
mod net;
mod record;
mod run;
mod watch;

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use ledger_tests::{setting, skip, until_async};
use rand::RngExt as _;

use crate::run::{Errors, Run, Setting, What};

/// Runs the rounds of a scenario, one scenario at a time: each has the machine for itself.
fn rounds<F: Future<Output = ()>>(scenario: &'static str, is_brief: bool, once: impl Fn(What) -> F) {
    static ONE: Mutex<()> = Mutex::new(());
    if !is_brief && std::env::var_os("LEDGER_NAMESPACES_BRIEF").is_some() {
        skip(&format!("{scenario}: it runs with `just namespaces`"));
        return;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let first = setting("LEDGER_NAMESPACES_SEED", 1);
    for seed in first..first + setting("LEDGER_NAMESPACES_ROUNDS", 1) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(once(What { scenario, seed }));
    }
}

#[test]
fn the_owner_is_killed() {
    rounds("owner killed", true, async |what| {
        let Some(mut run) = Run::start(what, Setting::default()).await else { return };
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        run.cluster.kill(owner);
        run.goes_on("after the owner was killed").await;
        run.cluster.start(owner).await;
        run.finish(Errors::None).await;
    });
}

#[test]
fn a_replica_is_killed() {
    rounds("replica killed", false, async |what| {
        let setting = Setting { one_owner: true, ..Setting::default() };
        let Some(mut run) = Run::start(what, setting).await else { return };
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        let replica = (owner + run.random.random_range(1..3)) % 3;
        run.cluster.kill(replica);
        run.goes_on("after a replica was killed").await;
        run.cluster.start(replica).await;
        run.finish(Errors::None).await;
    });
}

#[test]
fn the_owner_is_cut_off() {
    rounds("partition", true, async |what| {
        let Some(mut run) = Run::start(what, Setting::default()).await else { return };
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        run.cluster.net.cut(run.cluster.nodes[owner].number);
        run.goes_on("while the owner is cut off").await;
        run.a_while(0..4000).await;
        run.cluster.net.heal();
        run.finish(Errors::None).await;
    });
}

#[test]
fn a_third_of_the_packets_is_lost() {
    rounds("loss", false, async |what| {
        let Some(mut run) = Run::start(what, Setting::default()).await else { return };
        run.cluster.net.lose(30);
        let (before, begin) = (run.load.count(), Instant::now());
        run.a_while(6000..9000).await;
        let (acknowledged, took) = (run.load.count() - before, begin.elapsed().as_secs_f64());
        let lost = run.cluster.net.lost();
        assert!((25..=35).contains(&lost), "{lost} % of the packets were lost instead of 30 %");
        run.cluster.net.heal();
        run.note(format!(
            "{acknowledged} acknowledged in {took:.1} s with {lost} % loss by {}",
            run.cluster.net.means()
        ));
        run.finish(Errors::Some).await;
    });
}

#[test]
fn all_nodes_are_restarted_one_by_one() {
    rounds("rolling restart", true, async |what| {
        let Some(mut run) = Run::start(what, Setting::default()).await else { return };
        for index in 0..3 {
            let took = run.cluster.stop(index).await;
            run.cluster.start(index).await;
            let settling = run.cluster.settled("after a restart").await;
            run.note(format!(
                "{}: stopped in {:.1} s, in step in {:.1} s",
                run.cluster.nodes[index].name,
                took.as_secs_f64(),
                settling.as_secs_f64()
            ));
        }
        run.finish(Errors::None).await;
    });
}

#[test]
fn the_cluster_grows_and_shrinks() {
    rounds("3 to 5 to 3", false, async |what| {
        let setting =
            Setting { nodes: 5, flags: &["--placement-grace", "1s"], leaving: &[0, 1], ..Setting::default() };
        let Some(mut run) = Run::start(what, setting).await else { return };
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
            run.cluster.stop(index).await;
            let took = run.cluster.settled("after a node left").await;
            run.note(format!("{} gone in {:.1} s", run.cluster.nodes[index].name, took.as_secs_f64()));
        }
        run.finish(Errors::None).await;
    });
}

#[test]
fn a_node_loses_its_disk() {
    rounds("wiped node", false, async |what| {
        let Some(mut run) = Run::start(what, Setting::default()).await else { return };
        let index = run.random.random_range(0..3);
        run.cluster.kill(index);
        run.cluster.wipe(index);
        run.goes_on("while a node is away").await;
        run.cluster.start(index).await;
        let took = run.cluster.settled("after a node came back empty").await;
        run.note(format!("relearnt in {:.1} s", took.as_secs_f64()));
        run.finish(Errors::None).await;
    });
}

#[test]
fn a_disk_is_full() {
    rounds("full disk", false, async |what| {
        let setting = Setting { small: Some((1, 96 << 20)), ..Setting::default() };
        let Some(mut run) = Run::start(what, setting).await else { return };
        run.cluster.fill(1);
        until_async("the node finds its disk full", async || run.cluster.is_full(1).await.then_some(()))
            .await;
        run.a_while(1000..4000).await;
        run.goes_on("while a disk is full").await;
        run.cluster.free(1);
        run.finish(Errors::None).await;
    });
}
