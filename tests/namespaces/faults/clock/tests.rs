//! Clocks are as wrong as they are set, in a process that the library is loaded into.

use std::{
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use ledger_tests::skip;
use rand::SeedableRng as _;
use tempfile::TempDir;

use super::*;

#[test]
fn a_process_has_the_clock_that_is_set() {
    let dir = TempDir::new().unwrap();
    let clock = match WrongClock::new(dir.path()) {
        Ok(clock) => clock,
        Err(why) => return skip(&why),
    };
    for wrong in [0, 1000, -34_000_000, 34_000_000] {
        clock.set(wrong);
        let shown = Command::new("env").args(clock.environment()).args(["date", "+%s"]).output().unwrap();
        let shown: i64 = String::from_utf8(shown.stdout).unwrap().trim().parse().unwrap();
        let right = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
        assert!((right - 60..=right).contains(&(shown - wrong)), "{wrong} set, {shown} shown at {right}");
    }
}

#[test]
fn clocks_are_wrong_by_a_second_to_four_hundred_days() {
    let mut random = SmallRng::seed_from_u64(1);
    let drawn: Vec<_> = (0..2000).map(|_| wrong_by(&mut random)).collect();
    let most = FARTHEST.as_secs().cast_signed();
    assert!(drawn.iter().all(|seconds| (1..=most).contains(&seconds.abs())));
    for is_drawn in [|seconds| seconds > 1_000_000, |seconds| seconds < -1_000_000, |seconds| seconds == 1] {
        assert!(drawn.iter().copied().any(is_drawn), "{drawn:?}");
    }
}
