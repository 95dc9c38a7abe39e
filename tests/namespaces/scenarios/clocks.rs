//! Wall clocks that are wrong: nothing that is promised may depend on them.

use std::time::Instant;

use ledger_tests::until_async;
use rand::RngExt as _;

use super::rounds;
use crate::{
    faults::clock::wrong_by,
    run::{Errors, Forks, Ground, Run, Setting},
};

/// The exit code of a node that heard of a later start of itself.
const REPLACED: i32 = 6;

impl Run {
    /// Sets a node's wall clock wrong.
    fn set_clock(&mut self, index: usize) -> i64 {
        let seconds = wrong_by(&mut self.random);
        let node = &self.cluster.nodes[index];
        node.clock.as_ref().expect("the setting has clocks").set(seconds);
        seconds
    }
}

const SETTING: fn() -> Setting =
    || Setting { ground: Ground::Clocks, forks: Forks::None, ..Setting::default() };

/// The clocks of all nodes are 1 s to 400 days wrong, and an owner is killed, and comes back at another time.
#[test]
fn clocks_are_apart() {
    rounds(true, async |what| {
        let mut run = Run::start(what, Setting { forks: Forks::Some, ..SETTING() }).await?;
        let wrong = [0, 1, 2].map(|index| run.set_clock(index));
        run.note(format!("wrong by {wrong:?} s"));
        run.goes_on("with clocks that are apart").await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        run.cluster.nodes[owner].kill();
        run.goes_on("after the owner was killed").await;
        let then = run.set_clock(owner);
        run.note(format!("{} is back, wrong by {then} s", run.cluster.nodes[owner].name));
        run.cluster.start(owner).await;
        Some(run.finish(Errors::None).await)
    });
}

/// The clocks of all nodes jump, by 1 s to 400 days, ahead and back, for 6 to 9 s.
#[test]
fn clocks_jump() {
    rounds(false, async |what| {
        let mut run = Run::start(what, SETTING()).await?;
        let jumps = run.random.random_range(12..=18);
        for _ in 0..jumps {
            let index = run.random.random_range(0..3);
            run.set_clock(index);
            run.a_while(250..750).await;
        }
        run.note(format!("{jumps} jumps"));
        run.goes_on("after clocks jumped").await;
        Some(run.finish(Errors::None).await)
    });
}

/// A node loses its disk, and comes back with its clock days behind what it was: nothing tells it that it was there before.
#[test]
fn a_node_comes_back_empty_and_earlier() {
    rounds(false, async |what| {
        let mut run = Run::start(what, Setting { forks: Forks::Some, ..SETTING() }).await?;
        let index = run.random.random_range(0..3);
        run.cluster.nodes[index].kill();
        run.cluster.nodes[index].wipe();
        run.goes_on("while a node is away").await;
        let behind = -wrong_by(&mut run.random).abs();
        run.cluster.nodes[index].clock.as_ref().expect("the setting has clocks").set(behind);
        run.cluster.start(index).await;
        let begun = Instant::now();
        until_async("a node that came back empty, and earlier, takes part", async || {
            // The others remember a later start. It hears that, ends, and is started again by its supervisor.
            if let Some(status) = run.cluster.nodes[index].ended() {
                assert_eq!(status.code(), Some(REPLACED), "{}", run.cluster.nodes[index].log_tail());
                run.cluster.start(index).await;
            }
            run.cluster.is_settled().await.ok()
        })
        .await;
        let took = begun.elapsed();
        run.note(format!("{} s behind, relearnt in {:.1} s", -behind, took.as_secs_f64()));
        Some(run.finish(Errors::None).await)
    });
}
