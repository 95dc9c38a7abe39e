//! Real nodes in network namespaces of their own: killed, cut off, restarted, wiped, out of disk, on a network that
//! loses packets. After each run every acknowledgement, and everything that anybody was shown, is compared with what
//! each node holds.
//!
//! Needs root, `ip` and `tc`. `just namespaces --rounds 20` runs twenty rounds of each scenario; without
//! `LEDGERTEST_NAMESPACES_ROUNDS` there is one round of a few of them, and none where something is missing.

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
mod report;
mod run;
mod watch;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use ledger_tests::{setting, skip, until_async};
use rand::RngExt as _;

use crate::{
    net::Way,
    report::{Report, Summary},
    run::{Errors, Run, Setting, What, is_asked_for},
};

/// Runs the rounds of the scenario that the test is named after. One scenario at a time: each has the machine for
/// itself.
fn rounds<F: Future<Output = Option<Report>>>(is_brief: bool, once: impl Fn(What) -> F) {
    static ONE: Mutex<()> = Mutex::new(());
    let scenario = thread::current().name().expect("a test's thread has its name").to_owned();
    if !is_brief && !is_asked_for() {
        skip(&format!("{scenario}: it runs with `just namespaces`"));
        return;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let first = setting("LEDGERTEST_NAMESPACES_SEED", 1);
    let (mut sum, mut failed) = (Summary::default(), Vec::new());
    // The test runner has begun a line.
    println!();
    for seed in first..first + setting("LEDGERTEST_NAMESPACES_ROUNDS", 1) {
        let what = What { scenario: scenario.clone(), seed };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        match catch_unwind(AssertUnwindSafe(|| runtime.block_on(once(what)))) {
            Ok(Some(report)) => sum.add(&report),
            Ok(None) => return,
            Err(_) => {
                println!("{scenario}, seed {seed}: FAILED; repeat it with");
                println!("  just namespaces --rounds 1 --seed {seed} {scenario}");
                failed.push(seed);
            }
        }
    }
    println!("{scenario}: {sum}; {} failed", failed.len());
    assert!(failed.is_empty(), "{scenario}: rounds with the seeds {failed:?} failed");
}

#[test]
fn the_owner_is_killed() {
    rounds(true, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        run.cluster.kill(owner);
        run.goes_on("after the owner was killed").await;
        run.cluster.start(owner).await;
        Some(run.finish(Errors::None).await)
    });
}

#[test]
fn a_replica_is_killed() {
    rounds(false, async |what| {
        let setting = Setting { one_owner: true, ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        let replica = (owner + run.random.random_range(1..3)) % 3;
        run.cluster.kill(replica);
        run.goes_on("after a replica was killed").await;
        run.cluster.start(replica).await;
        Some(run.finish(Errors::None).await)
    });
}

#[test]
fn the_owner_is_cut_off() {
    rounds(true, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        run.cluster.net.cut(run.cluster.nodes[owner].number, Way::Both);
        run.goes_on("while the owner is cut off").await;
        run.a_while(0..4000).await;
        run.cluster.net.heal();
        Some(run.finish(Errors::None).await)
    });
}

#[test]
fn the_owner_is_cut_off_one_way() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        let way = if run.random.random() { Way::In } else { Way::Out };
        run.note(format!("nothing {} it", if way == Way::In { "reaches" } else { "leaves" }));
        run.cluster.net.cut(run.cluster.nodes[owner].number, way);
        run.goes_on("while the owner is cut off one way").await;
        run.a_while(0..2000).await;
        run.cluster.net.heal();
        Some(run.finish(Errors::None).await)
    });
}

#[test]
fn the_owner_and_a_replica_cannot_talk() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        let replica = (owner + run.random.random_range(1..3)) % 3;
        let [owner, replica] = [owner, replica].map(|index| run.cluster.nodes[index].number);
        if let Err(why) = run.cluster.net.cut_link(owner, replica) {
            skip(&format!("the kernel cannot cut a link: {why}"));
            return None;
        }
        run.goes_on("while two nodes cannot talk").await;
        run.a_while(0..4000).await;
        run.goes_on("while two nodes still cannot talk").await;
        run.cluster.net.heal();
        Some(run.finish(Errors::None).await)
    });
}

#[test]
fn a_third_of_the_packets_is_lost() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
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
        Some(run.finish(Errors::Some).await)
    });
}

#[test]
fn all_nodes_are_restarted_one_by_one() {
    rounds(true, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
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
        Some(run.finish(Errors::None).await)
    });
}

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
            run.cluster.stop(index).await;
            let took = run.cluster.settled("after a node left").await;
            run.note(format!("{} gone in {:.1} s", run.cluster.nodes[index].name, took.as_secs_f64()));
        }
        Some(run.finish(Errors::None).await)
    });
}

#[test]
fn a_node_loses_its_disk() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        let index = run.random.random_range(0..3);
        run.cluster.kill(index);
        run.cluster.wipe(index);
        run.goes_on("while a node is away").await;
        run.cluster.start(index).await;
        let took = run.cluster.settled("after a node came back empty").await;
        run.note(format!("relearnt in {:.1} s", took.as_secs_f64()));
        Some(run.finish(Errors::None).await)
    });
}

#[test]
fn a_disk_is_full() {
    rounds(false, async |what| {
        let setting = Setting { small: Some((1, 96 << 20)), ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        run.cluster.fill(1);
        until_async("the node finds its disk full", async || run.cluster.is_full(1).await.then_some(()))
            .await;
        run.a_while(1000..4000).await;
        run.goes_on("while a disk is full").await;
        run.cluster.free(1);
        Some(run.finish(Errors::None).await)
    });
}
