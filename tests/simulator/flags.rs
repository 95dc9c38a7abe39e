//! The flags of `just simulate`.

use std::time::Duration;

use super::prelude::*;

const USAGE: &str = "usage: just simulate [--minutes N] [--seed S] [--runs N] [--trace] [--broken NAME]
  --minutes N    so long (10, if --runs says nothing)
  --seed S       from this seed on (1)
  --runs N       so many seeds (1 with --trace)
  --trace        print everything that happens
  --broken NAME  leave out a rule:";

/// What to simulate, and for how long.
#[derive(Debug)]
pub struct Flags {
    pub seed: u64,
    pub runs: u64,
    pub limit: Option<Duration>,
    pub is_traced: bool,
    pub broken: DisabledRule,
}

impl Flags {
    /// Parses flags.
    ///
    /// # Errors
    /// A text that says what is wrong with them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = DisabledRule::ALL.iter().map(|rule| rule.name()).collect();
        let (mut seed, mut runs, mut minutes) = (1, None, None);
        let (mut is_traced, mut broken) = (false, DisabledRule::Nothing);
        let mut words = text.split_whitespace();
        while let Some(flag) = words.next() {
            let value = if flag == "--trace" { "" } else { words.next().unwrap_or_default() };
            match (flag, value.parse::<u64>(), names.iter().position(|name| *name == value)) {
                ("--trace", ..) => is_traced = true,
                ("--seed", Ok(number), _) => seed = number,
                ("--runs", Ok(number), _) => runs = Some(number),
                ("--minutes", Ok(number), _) => minutes = Some(number),
                ("--broken", _, Some(rule)) => broken = DisabledRule::ALL[rule],
                _ => {
                    let names = names.join(", ");
                    return Err(format!("simulate: `{flag} {value}` says nothing\n{USAGE} {names}"));
                }
            }
        }
        let runs = runs.or(is_traced.then_some(1));
        let minutes = minutes.or(if runs.is_none() { Some(10) } else { None });
        let limit = minutes.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
        Ok(Self { seed, runs: runs.unwrap_or(u64::MAX), limit, is_traced, broken })
    }
}

#[test]
fn flags_are_read_and_wrong_ones_are_named() {
    let flags = Flags::parse("--seed 7 --minutes 60").unwrap();
    assert_eq!((flags.seed, flags.runs, flags.limit), (7, u64::MAX, Some(Duration::from_hours(1))));
    let flags = Flags::parse("--trace --broken no-sync").unwrap();
    assert_eq!((flags.runs, flags.limit, flags.broken), (1, None, DisabledRule::NoSync));
    for wrong in ["--runs", "--seed x", "--broken y", "z"] {
        let told = Flags::parse(wrong).unwrap_err();
        assert!(told.contains(wrong) && told.contains("usage"), "{told}");
    }
}
