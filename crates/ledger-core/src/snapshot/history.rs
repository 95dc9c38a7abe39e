//! The rules a snapshot's entries follow, the same when writing as when reading.

use crate::{Entry, Epoch, Hash, Sequence, clock::LamportClock, hash::Hasher, tree::Frontier, with_suite};

use super::{Header, SnapshotError, SnapshotSection};

/// The history so far: what is needed to judge the next entry.
#[derive(Debug, Default)]
pub(super) struct History {
    frontier: Frontier,
    lamport: LamportClock,
    epoch: Epoch,
}

impl History {
    /// Returns the number of entries so far.
    pub(super) const fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Returns the sequence of the next entry.
    pub(super) const fn next(&self) -> Sequence {
        Sequence(self.size().saturating_add(1))
    }

    /// Takes an entry that continues the history and is intact.
    pub(super) fn take(&mut self, header: &Header, entry: &Entry) -> Result<(), SnapshotError> {
        let damaged = |reason: &str| Err(SnapshotSection::Entry(self.next()).corrupt(reason));
        if self.size() >= header.count.0 {
            return damaged(&format!("the header says there are {} entries", header.count));
        }
        if entry.sequence != self.next() {
            return damaged(&format!("it has sequence {}", entry.sequence));
        }
        if entry.context_id != header.context_id {
            return damaged(&format!("it belongs to context {}", entry.context_id));
        }
        if entry.lamport <= self.lamport {
            return damaged(&format!(
                "its Lamport time {} is not later than {} of the entry before it",
                entry.lamport.0, self.lamport.0
            ));
        }
        if entry.epoch < self.epoch {
            return damaged(&format!(
                "its epoch {} is lower than {} of the entry before it",
                entry.epoch, self.epoch
            ));
        }
        if !entry.is_intact(header.suite) {
            return damaged("its content does not match its content hash");
        }
        with_suite!(header.suite, H => self.frontier.push::<H>(H::leaf(&entry.content_hash), |_, _| ()));
        self.lamport = entry.lamport;
        self.epoch = entry.epoch;
        Ok(())
    }

    /// Checks that the history is all of what the header announced; gives the root.
    pub(super) fn complete(&self, header: &Header) -> Result<Hash, SnapshotError> {
        if self.size() != header.count.0 {
            return Err(SnapshotSection::Trailer.corrupt(format!(
                "it comes after {} entries, but the header says there are {}",
                self.size(),
                header.count
            )));
        }
        if self.lamport != header.lamport || self.epoch != header.epoch {
            return Err(SnapshotSection::Header.corrupt(format!(
                "it says Lamport time {} and epoch {}, but the newest entry has {} and {}",
                header.lamport.0, header.epoch, self.lamport.0, self.epoch
            )));
        }
        let computed = with_suite!(header.suite, H => self.frontier.root::<H>());
        if computed != header.root {
            return Err(SnapshotError::RootMismatch {
                claimed_by: SnapshotSection::Header,
                claimed: header.root,
                computed,
            });
        }
        Ok(computed)
    }
}
