//! Writes large histories beside the lanes, without slowing down their commits.
//!
//! A sync flushes what every thread wrote before it, so one large write would delay every commit behind it. This
//! writer therefore splits a history into pieces and syncs each piece itself. While other threads commit, it pauses
//! after each piece for as long as the piece took: commits keep at least half of the disk's time.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use rocksdb::WriteBatch;

use crate::{StoreError, engine::db::Db, shared::Shared};

/// Size of one piece, in bytes.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// Longest pause between two pieces.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// Writes large histories beside the lanes, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct BulkWriter {
    /// The lanes' commit count after the previous piece: if it has not changed, no pause is needed.
    commits: u64,
}

impl BulkWriter {
    /// Writes the batch if it holds at least [`CHUNK_BYTES`]; otherwise leaves it to grow.
    pub(crate) fn write_large(
        &mut self,
        db: &Db,
        shared: &Shared,
        batch: &mut WriteBatch,
    ) -> Result<(), StoreError> {
        if batch.size_in_bytes() < CHUNK_BYTES { Ok(()) } else { self.write(db, shared, batch) }
    }

    /// Writes the batch durably and empties it. Refuses if the write would leave appends too little disk space.
    pub(crate) fn write(
        &mut self,
        db: &Db,
        shared: &Shared,
        batch: &mut WriteBatch,
    ) -> Result<(), StoreError> {
        shared.database.check_space_for_load(batch.size_in_bytes() as u64)?;
        let begun = Instant::now();
        db.write_unsynced(std::mem::take(batch))?;
        db.sync()?;
        let (_, commits, _) = shared.counts();
        if std::mem::replace(&mut self.commits, commits) != commits {
            sleep(begun.elapsed().min(MAX_PAUSE));
        }
        Ok(())
    }
}
