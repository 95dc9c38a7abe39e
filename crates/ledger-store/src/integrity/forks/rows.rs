//! The keys of a fork's rows.

use ledger_core::Sequence;

use crate::engine::families::RowLocation;

/// In `meta`, followed by the prefix of the fork's keys: the fork is in progress.
pub(super) const LEAVING: &[u8] = b"leaving/";
/// Suffix that sorts after every key of a fork: it is higher than any sequence.
pub(super) const BEYOND: [u8; 9] = [0xff; 9];

/// Location of a fork's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ForkRows {
    pub(super) place: RowLocation,
    pub(super) number: u64,
}

impl ForkRows {
    /// Returns the key of an entry; sequence 0 is the key of the evidence.
    pub(super) fn row(self, sequence: Sequence) -> [u8; 26] {
        self.place.fork(self.number, sequence)
    }

    /// Returns the prefix of all its keys.
    pub(super) fn first(self) -> [u8; 18] {
        let mut first = [0; 18];
        first.copy_from_slice(&self.row(Sequence(0))[..18]);
        first
    }

    /// Returns its first key, without the sequence, and a key beyond all its keys.
    pub(super) fn range(self) -> ([u8; 18], [u8; 27]) {
        let mut beyond = [0xff; 27];
        beyond[..18].copy_from_slice(&self.first());
        (self.first(), beyond)
    }

    /// Returns the key in `meta` that records that it is in progress.
    pub(super) fn leaving(self) -> Vec<u8> {
        [LEAVING, &self.first()].concat()
    }
}
