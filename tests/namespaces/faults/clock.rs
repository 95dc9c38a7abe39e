//! Wall clocks that are wrong: a library that is loaded into a node, and a file that says by how much.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{RngExt as _, rngs::SmallRng};

use super::{compile, preload};

#[cfg(test)]
mod tests;

/// How far clocks are wrong at most.
const FARTHEST: Duration = Duration::from_hours(400 * 24);

/// The wall clock of one node; its monotonic clock is the machine's.
#[derive(Debug)]
pub(crate) struct WrongClock {
    library: PathBuf,
    /// What the library has mapped.
    file: PathBuf,
}

impl WrongClock {
    /// Compiles the library into a node's directory; the clock is right until it is set.
    ///
    /// # Errors
    /// In words, if there is no C compiler.
    pub(crate) fn new(dir: &Path) -> Result<Self, String> {
        let library = dir.join("wrong_clock.so");
        let library = compile(include_str!("wrong_clock.c"), &["-shared", "-fPIC", "-pthread"], library)?;
        let clock = Self { library, file: dir.join("wrong_clock") };
        clock.set(0);
        Ok(clock)
    }

    /// The environment of the node.
    pub(crate) fn environment(&self) -> Vec<String> {
        vec![preload(&self.library), format!("WRONG_CLOCK_FILE={}", self.file.display())]
    }

    /// From now on the clock is so many seconds ahead, or behind.
    pub(crate) fn set(&self, seconds: i64) {
        let file = File::options().create(true).truncate(false).write(true).open(&self.file);
        file.unwrap().write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}

/// Seconds that a clock is wrong: 1 s to 400 days, of each magnitude as often as of any other, ahead or behind.
pub(crate) fn wrong_by(random: &mut SmallRng) -> i64 {
    let magnitude = random.random_range(0.0..=FARTHEST.as_secs_f64().log10());
    let seconds = 10_f64.powf(magnitude).round();
    #[expect(clippy::cast_possible_truncation, reason = "400 days are 35 million seconds")]
    let seconds = seconds as i64;
    if random.random() { seconds } else { -seconds }
}
