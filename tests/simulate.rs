//! Whole clusters, simulated: what one seed decides, 1000 times over. See `simulator`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

mod simulator;

use std::{
    process,
    time::{Duration, Instant},
};

use simulator::{Counts, DisabledRule, Flags, Run, run};

/// Something that was promised is broken, not only late.
fn is_unsafe(run: &Run) -> bool {
    run.violation.as_ref().is_some_and(|violation| !violation.contains("after the last fault"))
}

/// What a run violated, and the command that shows it again.
fn failed(seed: u64, broken: DisabledRule, run: &Run) -> Option<String> {
    let violation = run.violation.as_ref()?;
    let flag =
        if broken == DisabledRule::Nothing { String::new() } else { format!(" --broken {}", broken.name()) };
    Some(format!("seed {seed}: {violation}\n  replay it with: just simulate --seed {seed} --trace{flag}"))
}

#[test]
fn no_seed_of_a_thousand_violates_an_invariant() {
    let mut counts = Counts::default();
    for seed in 0..1000 {
        let run = run(seed, DisabledRule::Nothing, false);
        if let Some(failed) = failed(seed, DisabledRule::Nothing, &run) {
            panic!("{failed}");
        }
        counts.add_all(&run.counts);
    }
    println!("{counts}");
    assert_eq!(counts.missing(), [""; 0], "what never happens is not tried");
}

#[test]
fn a_run_is_decided_by_its_seed() {
    for seed in 0..5 {
        assert_eq!(run(seed, DisabledRule::Nothing, false), run(seed, DisabledRule::Nothing, false));
    }
}

#[test]
fn each_rule_that_is_left_out_is_noticed() {
    for &broken in DisabledRule::ALL.iter().filter(|rule| **rule != DisabledRule::Nothing) {
        let runs = (0..1000).map(|seed| (seed, run(seed, broken, false)));
        let noticed =
            runs.filter(|(_, run)| is_unsafe(run)).find_map(|(seed, run)| failed(seed, broken, &run));
        match noticed {
            Some(failed) => println!("{}: {failed}", broken.name()),
            None => panic!("no seed of a thousand notices what is left out: {}", broken.name()),
        }
    }
}

/// `just simulate`, which hands its flags over in the environment.
#[test]
#[ignore = "takes as long as it is told: `just simulate --minutes N --seed S`"]
fn for_a_long_time() {
    let text = std::env::var("LEDGERTEST_SIMULATE").unwrap_or_default();
    let Flags { seed, runs, limit, is_traced, broken } = Flags::parse(&text).unwrap_or_else(|wrong| {
        eprintln!("{wrong}");
        process::exit(2)
    });
    let (begin, mut counts, mut failures) = (Instant::now(), Counts::default(), Vec::new());
    let (mut told, mut fingerprint) = (begin, 0);
    for seed in (seed..).take(usize::try_from(runs).unwrap_or(usize::MAX)) {
        if limit.is_some_and(|limit| begin.elapsed() > limit) {
            break;
        }
        let run = run(seed, broken, is_traced);
        counts.add_all(&run.counts);
        fingerprint ^= run.fingerprint;
        if let Some(failed) = failed(seed, broken, &run) {
            println!("{failed}");
            failures.push(seed);
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!(
                "{:>6} s: at seed {seed}; {}; {} failed",
                begin.elapsed().as_secs(),
                counts.brief(),
                failures.len()
            );
        }
    }
    println!("{counts}in {:.1?}; {} seeds failed {failures:?}", begin.elapsed(), failures.len());
    println!("fingerprint of all runs: {fingerprint:016x}");
    if !failures.is_empty() {
        process::exit(1);
    }
}
