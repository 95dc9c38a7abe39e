//! Processes that stand still for a while and go on as if nothing had been: a machine that hangs, or is moved.

use std::time::Duration;

use rand::RngExt as _;
use rustix::process::Signal;
use tokio::time::sleep;

use super::rounds;
use crate::run::{Errors, Forks, Run, Setting};

/// From so many milliseconds on somebody else has taken a stopped owner's slots over, and appends go on meanwhile.
const LONG: u64 = 9000;

/// Stops a node for 0.5 to 15 s.
async fn stop(run: &mut Run, index: usize, goes_on: bool) {
    let milliseconds = run.random.random_range(500..=15_000);
    run.note(format!("{} stood still for {:.1} s", run.cluster.nodes[index].name, milliseconds as f64 / 1e3));
    run.cluster.nodes[index].signal(Signal::STOP);
    let pause = sleep(Duration::from_millis(milliseconds));
    if goes_on || milliseconds >= LONG {
        tokio::join!(pause, run.goes_on("while a node stands still"));
    } else {
        pause.await;
    }
    run.cluster.nodes[index].signal(Signal::CONT);
}

/// SIGSTOP of an owner for 0.5 to 15 s.
#[test]
fn the_owner_is_stopped() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting::default()).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        stop(&mut run, owner, false).await;
        Some(run.finish(Errors::None).await)
    });
}

/// SIGSTOP of a replica for 0.5 to 15 s.
#[test]
fn a_replica_is_stopped() {
    rounds(false, async |what| {
        let setting = Setting { one_owner: true, forks: Forks::None, ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        let replica = (owner + run.random.random_range(1..3)) % 3;
        stop(&mut run, replica, true).await;
        Some(run.finish(Errors::None).await)
    });
}
