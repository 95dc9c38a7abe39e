//! What one stream handed to the store and has not yet answered.

use std::{collections::VecDeque, time::Instant};

use ledger_store::budget::Permit;
use parking_lot::{Mutex, MutexGuard};

use crate::grpc::call::ReservedAnswer;

/// Chunks that the store has, oldest first.
///
/// The tag the store sees is the number of the chunk (upper 48 bits) and the index in it (lower 16).
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<Chunks>);

/// See [`InFlight`].
#[derive(Debug, Default)]
pub(super) struct Chunks {
    /// The number of the first.
    first: u64,
    chunks: VecDeque<Chunk>,
}

/// Entries that were handed to the store in one call.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The client's tags.
    pub(super) tags: Vec<u64>,
    /// How many are not yet answered.
    pub(super) left: usize,
    pub(super) started: Instant,
    /// Their part of what the stream may have in flight.
    pub(super) _items: Permit,
    /// For their results.
    pub(super) reserved: ReservedAnswer,
}

impl InFlight {
    pub(super) fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.0.lock()
    }

    /// Takes a chunk; gives the tag of its first entry, the others count on.
    pub(super) fn push(&self, chunk: Chunk) -> u64 {
        let mut chunks = self.lock();
        let number = chunks.first + chunks.chunks.len() as u64;
        chunks.chunks.push_back(chunk);
        number << 16
    }
}

impl Chunks {
    /// The client's tag of an entry that is answered now. Calls `finished` if it is the last of its chunk.
    pub(super) fn answer(&mut self, tag: u64, finished: impl FnOnce(&mut Chunk)) -> Option<u64> {
        let number = usize::try_from((tag >> 16).checked_sub(self.first)?).ok()?;
        let chunk = self.chunks.get_mut(number)?;
        let client = *chunk.tags.get((tag & 0xffff) as usize)?;
        chunk.left = chunk.left.saturating_sub(1);
        if chunk.left == 0 {
            finished(chunk);
            while self.chunks.front().is_some_and(|chunk| chunk.left == 0) {
                self.chunks.pop_front();
                self.first += 1;
            }
        }
        Some(client)
    }
}
