//! The flags of `just simulate`.

use std::time::Duration;

use super::broken::DisabledRule;

const USAGE: &str = "usage: just simulate [--minutes N] [--seed S] [--runs N] [--trace] [--broken NAME]
  --minutes N    so long (10, if --runs says nothing)
  --seed S       from this seed on (1)
  --runs N       so many seeds (1 with --trace)
  --trace        print everything that happens
  --broken NAME  leave out a rule:";

/// What to simulate, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        let names: Vec<&str> = DisabledRule::ALL.into_iter().map(DisabledRule::name).collect();
        let wrong = |what: String| format!("simulate: {what}\n{USAGE} {}", names.join(", "));
        let (mut seed, mut runs, mut minutes) = (1, None, None);
        let (mut is_traced, mut broken) = (false, DisabledRule::Nothing);
        let mut words = text.split_whitespace();
        while let Some(flag) = words.next() {
            let mut value = || words.next().ok_or_else(|| wrong(format!("{flag} needs a value")));
            let number = |text: &str| {
                text.parse::<u64>()
                    .map_err(|_| wrong(format!("{flag} is `{text}`: it must be a whole number")))
            };
            match flag {
                "--seed" => seed = number(value()?)?,
                "--runs" => runs = Some(number(value()?)?),
                "--minutes" => minutes = Some(number(value()?)?),
                "--trace" => is_traced = true,
                "--broken" => {
                    let name = value()?;
                    broken = DisabledRule::from_name(name)
                        .ok_or_else(|| wrong(format!("there is no `{name}` to leave out")))?;
                }
                other => return Err(wrong(format!("what is `{other}`?"))),
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
    for (text, part) in
        [("--runs", "needs a value"), ("--seed x", "`x`"), ("--broken y", "`y`"), ("z", "`z`")]
    {
        let wrong = Flags::parse(text).unwrap_err();
        assert!(wrong.contains(part) && wrong.contains("usage"), "{wrong}");
    }
}
