//! Writing beside the lanes: what nobody waits for holds up no commit.
//!
//! A sync writes what everybody wrote before it. So a large history goes to the disk a little at a time, each piece
//! synced by whoever writes it, with a pause after it as long as it took while others commit: they have half of the
//! disk at least.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use rocksdb::WriteBatch;

use crate::{StoreError, engine::db::Db, shared::Shared};

/// So many bytes are written at once.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_millis(250);

/// Writes large histories beside the lanes.
#[derive(Debug, Default)]
pub(crate) struct BulkWriter {
    /// Commits of others that there were when the piece before was written.
    commits: u64,
}

impl BulkWriter {
    /// Writes a batch if it is large enough; whether it did.
    pub(crate) fn write_large(
        &mut self,
        db: &Db,
        shared: &Shared,
        batch: &mut WriteBatch,
    ) -> Result<(), StoreError> {
        if batch.size_in_bytes() < CHUNK_BYTES { Ok(()) } else { self.write(db, shared, batch) }
    }

    /// Writes a batch, durably, and empties it. Refused if that left appends too little space on the disk.
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
