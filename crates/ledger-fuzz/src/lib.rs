//! Fuzzing of everything that reads untrusted bytes, on the stable toolchain.
//!
//! A [`Target`] is a name, inputs to start from and a function that must not panic, whatever it is given. The
//! runner ([`fuzz`]) mutates inputs, keeps those that lead to an [`Outcome`] not seen before, and stops at the
//! first finding: a panic (each target asserts its laws), a run of over ten seconds, or more memory than the
//! readers' limits allow. One seed gives one sequence of inputs, unless time decides how long it is.
//!
//! There is no coverage instrumentation: the outcomes (which error, how many items) stand in for it. That
//! keeps it to a small binary without a C++ runtime or a nightly compiler. The targets would do as
//! libFuzzer targets as they are.

mod mutate;
mod runner;
pub mod targets;

pub use runner::{Budget, Finding, Report, fuzz, replay};

/// Something that reads untrusted bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Valid inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads an input, and panics if a law is broken.
    pub run: fn(&[u8]) -> Outcome,
}

/// What came of an input, without the figures in it: alike inputs have one outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome(u64);

impl Outcome {
    /// The outcome that this text tells, an error message for example. Words with a digit in them don't count:
    /// they are sizes, places and hashes.
    pub fn of(text: &str) -> Self {
        // FNV-1a.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let words = text.split_whitespace().filter(|word| !word.bytes().any(|byte| byte.is_ascii_digit()));
        Self(words.flat_map(|word| word.bytes().chain([b' '])).fold(0xcbf2_9ce4_8422_2325, hash))
    }
}
