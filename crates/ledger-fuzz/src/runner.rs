//! Running a target.

use std::{
    any::Any,
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use rand::{SeedableRng as _, rngs::Xoshiro256PlusPlus};

use crate::{Outcome, Target, mutate::mutant};

/// A run that takes longer is a finding.
const MAX_TIME: Duration = Duration::from_secs(10);
/// A process that takes more is a finding, KiB; the targets' limits stay far below.
const MAX_MEMORY: u64 = 1 << 20;
/// Memory is looked at after so many runs.
const MEMORY_EVERY: u64 = 1024;
/// Inputs kept besides the seeds.
const MAX_CORPUS: usize = 4096;

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub enum Budget {
    /// So many runs.
    Runs(u64),
    /// So long.
    Time(Duration),
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// The target's name.
    pub target: &'static str,
    /// The seed of the sequence of inputs.
    pub seed: u64,
    /// How many inputs were run.
    pub runs: u64,
    /// How long that took.
    pub elapsed: Duration,
    /// How long the slowest took.
    pub slowest: Duration,
    /// How many inputs had an outcome of their own.
    pub outcomes: usize,
    /// Most memory the process ever had, KiB; 0 where the system does not tell.
    pub peak_memory: u64,
    /// Why it stopped early.
    pub finding: Option<Finding>,
}

/// An input that broke something.
#[derive(Debug)]
pub struct Finding {
    /// The input.
    pub input: Vec<u8>,
    /// What broke.
    pub what: String,
}

/// Runs a target with one input after another until the budget is spent or something breaks.
pub fn fuzz(target: &Target, budget: Budget, seed: u64) -> Report {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut corpus = (target.seeds)();
    let mut seeds = corpus.clone().into_iter();
    let mut outcomes = HashSet::new();
    let started = Instant::now();
    let mut report = Report {
        target: target.name,
        seed,
        runs: 0,
        elapsed: Duration::ZERO,
        slowest: Duration::ZERO,
        outcomes: 0,
        peak_memory: 0,
        finding: None,
    };
    let spent = |runs, elapsed| match budget {
        Budget::Runs(max) => runs >= max,
        Budget::Time(max) => elapsed >= max,
    };
    while report.finding.is_none() && !spent(report.runs, report.elapsed) {
        // The seeds first, as they are.
        let input = seeds.next().unwrap_or_else(|| mutant(&mut rng, &corpus));
        let before = started.elapsed();
        let result = replay(target, &input);
        report.elapsed = started.elapsed();
        let took = report.elapsed.saturating_sub(before);
        report.slowest = report.slowest.max(took);
        report.runs += 1;
        if report.runs.is_multiple_of(MEMORY_EVERY) {
            report.peak_memory = peak_memory();
        }
        report.finding = match result {
            Err(what) => Some(Finding { input, what }),
            Ok(_) if took > MAX_TIME => Some(Finding { input, what: format!("it took {took:?}") }),
            Ok(_) if report.peak_memory > MAX_MEMORY => Some(Finding {
                input,
                what: format!(
                    "the process has had {} KiB; this is the last of {MEMORY_EVERY} inputs, one of which took it",
                    report.peak_memory
                ),
            }),
            Ok(outcome) => {
                if outcomes.insert(outcome) && corpus.len() < MAX_CORPUS {
                    corpus.push(input);
                }
                None
            }
        };
    }
    report.outcomes = outcomes.len();
    report.peak_memory = peak_memory();
    report
}

/// Runs a target with one input.
///
/// # Errors
///
/// What it panicked with.
pub fn replay(target: &Target, input: &[u8]) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}

/// The process's peak memory as Linux tells it, KiB; 0 elsewhere.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
