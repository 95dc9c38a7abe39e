//! Numbers in JSON that a browser would round.

use serde::Serialize;

/// A number that may pass 2^53, where JavaScript rounds: a string of digits, as `ledgerctl --json` writes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digits(pub(super) u64);

impl Serialize for Digits {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&self.0)
    }
}
