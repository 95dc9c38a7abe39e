//! Whole clusters, simulated: what one seed decides, 1000 times over. See `simulator`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

mod simulator;

use std::time::{Duration, Instant};

use simulator::{Broken, Counts, Run, run};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`: it must be a number"))
    })
}

fn failed(seed: u64, broken: Broken, run: &Run) -> Option<String> {
    let violation = run.violation.as_ref()?;
    let broken =
        if broken == Broken::Nothing { String::new() } else { format!(" --broken {}", broken.name()) };
    Some(format!(
        "seed {seed}: {violation}\nreplay it with: just simulate --seed {seed} --runs 1 --trace{broken}"
    ))
}

#[test]
fn no_seed_of_a_thousand_violates_an_invariant() {
    let mut counts = Counts::default();
    for seed in 0..1000 {
        let run = run(seed, Broken::Nothing, false);
        if let Some(failed) = failed(seed, Broken::Nothing, &run) {
            panic!("{failed}");
        }
        counts.add_all(&run.counts);
    }
    println!("{counts}");
    assert_eq!(counts.missing(), [""; 0], "these never happened");
}

#[test]
fn a_run_is_decided_by_its_seed() {
    for seed in 0..5 {
        assert_eq!(run(seed, Broken::Nothing, false), run(seed, Broken::Nothing, false));
    }
}

#[test]
fn each_rule_that_is_left_out_is_noticed() {
    let noticed = |broken| (0..1000).find(|seed| run(*seed, broken, false).violation.is_some());
    for broken in Broken::ALL {
        let seed = noticed(broken);
        assert!(seed.is_some(), "no seed of a thousand notices {}", broken.name());
        println!("{}: seed {}", broken.name(), seed.unwrap_or_default());
    }
}

/// `just simulate`.
#[test]
#[ignore = "takes as long as it is told: `just simulate --minutes N --seed S`"]
fn for_a_long_time() {
    let seed = setting("LEDGER_SIMULATE_SEED", 1);
    let runs = setting("LEDGER_SIMULATE_RUNS", u64::MAX);
    let minutes = Duration::from_secs(60 * setting("LEDGER_SIMULATE_MINUTES", 10));
    let is_traced = setting("LEDGER_SIMULATE_TRACE", 0) > 0;
    let broken = std::env::var("LEDGER_SIMULATE_BROKEN").unwrap_or_default();
    let broken = Broken::from_name(&broken).unwrap_or_default();
    let (begin, mut counts, mut failures) = (Instant::now(), Counts::default(), Vec::new());
    for seed in (seed..).take(runs as usize) {
        if begin.elapsed() > minutes {
            break;
        }
        let run = run(seed, broken, is_traced);
        counts.add_all(&run.counts);
        if let Some(failed) = failed(seed, broken, &run) {
            println!("{failed}");
            failures.push(seed);
        }
    }
    println!("{counts}\nin {:?}", begin.elapsed());
    assert!(failures.is_empty(), "{} seeds failed: {failures:?}", failures.len());
}
