//! What happens to nodes, each scenario a test that runs as many rounds as are asked for.

mod clocks;
mod crashes;
mod damage;
mod partitions;
mod pauses;
mod power;
mod restarts;
mod syncs;
#[cfg(test)]
mod tests;
mod versions;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
    thread,
};

use ledger_tests::{setting, skip};

use crate::{
    report::{Report, Summary},
    run::{What, is_asked_for},
};

/// Runs the rounds of the scenario that the test is named after. One scenario at a time: each has the machine for
/// itself.
fn rounds<F: Future<Output = Option<Report>>>(is_brief: bool, once: impl Fn(What) -> F) {
    static ONE: Mutex<()> = Mutex::new(());
    // scenarios::crashes::the_owner_is_killed
    let test = thread::current().name().expect("a test's thread has its name").to_owned();
    let scenario = test.rsplit("::").next().unwrap_or_default().to_owned();
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
    println!("{}", sum.row(&scenario));
    assert!(failed.is_empty(), "{scenario}: rounds with the seeds {failed:?} failed");
}
