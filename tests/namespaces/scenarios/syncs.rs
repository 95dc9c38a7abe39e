//! Disks whose syncs are slow, or fail.

use std::time::Duration;

use rand::RngExt as _;

use super::rounds;
use crate::run::{Errors, Ground, Run, Setting};

impl Run {
    fn set_sync(&self, index: usize, longer: Duration, percent: u32) {
        self.cluster.nodes[index].sync.as_ref().expect("the setting has syncs").set(longer, percent);
    }

    /// 5 ms to 2 s, of each magnitude as often as of any other.
    fn slow(&mut self) -> Duration {
        Duration::from_secs_f64(0.005 * 400_f64.powf(self.random.random_range(0.0..=1.0)))
    }
}

/// Each sync of a node takes 5 ms to 2 s longer, or those of all nodes, each by as much as another, for 4 to 8 s.
#[test]
fn syncs_are_slow() {
    rounds(false, async |what| {
        let setting = Setting { ground: Ground::Syncs(Duration::ZERO), ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        let one = run.random.random_bool(0.5).then(|| run.random.random_range(0..3));
        for index in (0..3).filter(|index| one.is_none_or(|one| one == *index)) {
            let longer = run.slow();
            run.set_sync(index, longer, 0);
            let name = run.cluster.nodes[index].name.clone();
            run.note(format!("{name} {:.3} s slower", longer.as_secs_f64()));
        }
        let before = run.load.count();
        run.a_while(4000..8000).await;
        let acknowledged = run.load.count() - before;
        run.note(format!("{acknowledged} acknowledged meanwhile"));
        (0..3).for_each(|index| run.set_sync(index, Duration::ZERO, 0));
        Some(run.finish(Errors::None).await)
    });
}

/// Each sync of all nodes takes 20 ms, 100 ms or 500 ms longer while the cluster forms, and for 3 to 6 s after it.
#[test]
fn syncs_are_slow_from_the_start() {
    rounds(false, async |what| {
        let longer = Duration::from_millis([20, 100, 500][(what.seed % 3) as usize]);
        let setting = Setting { ground: Ground::Syncs(longer), ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        run.note(format!("all {:.3} s slower", longer.as_secs_f64()));
        run.a_while(3000..6000).await;
        (0..3).for_each(|index| run.set_sync(index, Duration::ZERO, 0));
        Some(run.finish(Errors::None).await)
    });
}

/// 1, 20 or 100 % of the syncs of a node fail with EIO, for 3 to 6 s.
async fn fail(run: &mut Run, index: usize) {
    let percent = [1, 20, 100][run.random.random_range(0..3)];
    run.note(format!("{percent} % of the syncs of {} fail", run.cluster.nodes[index].name));
    run.set_sync(index, Duration::ZERO, percent);
    run.a_while(3000..6000).await;
    run.goes_on("while syncs fail").await;
    run.set_sync(index, Duration::ZERO, 0);
}

/// Syncs of an owner fail with EIO: 1, 20 or 100 % of them, for 3 to 6 s.
#[test]
fn syncs_of_the_owner_fail() {
    rounds(false, async |what| {
        let setting = Setting { ground: Ground::Syncs(Duration::ZERO), ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        fail(&mut run, owner).await;
        Some(run.finish(Errors::None).await)
    });
}

/// Syncs of a replica fail with EIO: 1, 20 or 100 % of them, for 3 to 6 s.
#[test]
fn syncs_of_a_replica_fail() {
    rounds(false, async |what| {
        let setting =
            Setting { ground: Ground::Syncs(Duration::ZERO), one_owner: true, ..Setting::default() };
        let mut run = Run::start(what, setting).await?;
        run.a_while(0..500).await;
        let owner = run.cluster.owner(&run.contexts[0]).await;
        let replica = (owner + run.random.random_range(1..3)) % 3;
        fail(&mut run, replica).await;
        Some(run.finish(Errors::None).await)
    });
}
