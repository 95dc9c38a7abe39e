//! The open database: writes, syncs and reads, with a failed write remembered.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use parking_lot::{Mutex, MutexGuard};
use rocksdb::{
    Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBRawIterator, DBRawIteratorWithThreadMode, ReadOptions,
    WriteBatch, WriteOptions,
};

use crate::{
    Durability, Options, StoreError,
    directory::data_dir::OpenMode,
    engine::durable_index::DurableIndex,
    engine::errors::{io_error, open_error},
    engine::families,
    engine::rows::{self, Rows, Snapshot},
    engine::space,
    engine::tuning::{Recovery, database, family},
    read::visibility::SlotVisibility,
    write::committed_heads::CommittedHeads,
};

/// An open database.
pub(crate) struct Db {
    inner: DB,
    write: WriteOptions,
    /// Whether a write through `write` is synced before it returns.
    is_synced: bool,
    cache: Cache,
    generation: u64,
    visibility: Arc<SlotVisibility>,
    durable_index: Arc<DurableIndex>,
    committed_heads: CommittedHeads,
    fork_numbers: Mutex<()>,
    /// The first failed write or sync. RocksDB refuses all later ones, so this database does too.
    failed: OnceLock<StoreError>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db").field("path", &self.inner.path()).finish_non_exhaustive()
    }
}

impl Db {
    /// Opens or creates the database with all families.
    pub(crate) fn open(
        path: &Path,
        options: &Options,
        visibility: Arc<SlotVisibility>,
        durable_index: Arc<DurableIndex>,
        how: How,
    ) -> Result<Self, StoreError> {
        let How { opening, recovery, generation, compacts, is_tight } = how;
        let cache = Cache::new_lru_cache(options.block_cache);
        let families = families::ALL.map(|name| {
            let mut family = family(name, &cache, options);
            family.set_disable_auto_compactions(!compacts);
            if is_tight {
                // RocksDB must keep the whole log in memory: a full disk may have no space for a table of it.
                let most = usize::try_from(space::logged(path).saturating_mul(2)).unwrap_or(usize::MAX);
                family.set_write_buffer_size(most.max(options.write_buffer / 2));
            }
            ColumnFamilyDescriptor::new(name, family)
        });
        let mut database = database(options, opening, recovery);
        if is_tight {
            let stays = database.get_options_from_string("avoid_flush_during_recovery=true");
            database = stays.map_err(|error| open_error(path, &error))?;
        }
        let inner =
            DB::open_cf_descriptors(&database, path, families).map_err(|error| open_error(path, &error))?;
        let is_synced = options.durability == Durability::Always;
        let mut write = WriteOptions::default();
        write.set_sync(is_synced);
        let db = Self {
            inner,
            write,
            is_synced,
            cache,
            generation,
            visibility,
            durable_index,
            committed_heads: CommittedHeads::new(),
            fork_numbers: Mutex::new(()),
            failed: OnceLock::new(),
        };
        if generation == 0 {
            db.durable_index.opened(db.inner.latest_sequence_number());
        }
        Ok(db)
    }

    /// Returns how far a database with an unreadable log end can be replayed, without changing anything. Returns
    /// `None` if it cannot be opened read-only either.
    pub(crate) fn readable_up_to(path: &Path, options: &Options) -> Option<u64> {
        let cache = Cache::new_lru_cache(options.block_cache);
        let families =
            families::ALL.map(|name| ColumnFamilyDescriptor::new(name, family(name, &cache, options)));
        let mut database = database(options, OpenMode::Existing, Recovery::ToLastWhole);
        database.create_missing_column_families(false);
        let db = DB::open_cf_descriptors_read_only(&database, path, families, false).ok()?;
        Some(db.latest_sequence_number())
    }

    /// Returns how often this process reopened the database. What was read in an earlier generation may be outdated.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the handle of a family.
    pub(crate) fn family(&self, name: &'static str) -> Result<&ColumnFamily, StoreError> {
        self.inner.cf_handle(name).ok_or_else(|| StoreError::Io(format!("the family {name} is missing")))
    }

    /// Returns which slots readers may see.
    pub(crate) fn visibility(&self) -> &SlotVisibility {
        &self.visibility
    }

    /// Locks the fork numbers: hold the guard while a fork takes its number.
    pub(crate) fn fork_numbers(&self) -> MutexGuard<'_, ()> {
        self.fork_numbers.lock()
    }

    /// Returns the heads that readers see instead of the rows, where a row is ahead of the commit index.
    pub(crate) fn committed_heads(&self) -> &CommittedHeads {
        &self.committed_heads
    }

    /// Writes a batch atomically, with the configured durability.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.usable()?;
        // The batch takes the sequence numbers after this one, and the sync also covers everything before it.
        let written = self.inner.latest_sequence_number() + batch.len() as u64;
        self.noted(self.inner.write_opt(batch, &self.write))?;
        if self.is_synced {
            self.durable_index.synced(written);
        }
        Ok(())
    }

    /// Writes a batch that a later sync or durable write makes durable.
    pub(crate) fn write_unsynced(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.usable()?;
        self.noted(self.inner.write(batch))
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.usable()?;
        // Concurrent writes may or may not be covered by this sync, so count only what is written now.
        let written = self.inner.latest_sequence_number();
        self.noted(self.inner.flush_wal(true))?;
        self.durable_index.synced(written);
        Ok(())
    }

    /// Returns why the database refuses writes, if it does.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.failed.get().cloned()
    }

    /// Makes the database refuse writes, as after a failed write.
    #[cfg(test)]
    pub(crate) fn fail(&self, error: StoreError) {
        let _ = self.failed.set(error);
    }

    fn usable(&self) -> Result<(), StoreError> {
        self.failure().map_or(Ok(()), Err)
    }

    fn noted(&self, result: Result<(), rocksdb::Error>) -> Result<(), StoreError> {
        result.map_err(|error| self.failed.get_or_init(|| io_error(&error)).clone())
    }

    /// Returns a snapshot, for reading several rows as of one moment.
    pub(crate) fn snapshot(&self) -> Snapshot<'_> {
        Snapshot::of(&self.inner)
    }

    /// Reads one value and passes it to `read` without copying it.
    pub(crate) fn get<T>(
        &self,
        family: &'static str,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, rocksdb::Error> {
        match self.inner.cf_handle(family) {
            Some(handle) => Ok(self.inner.get_pinned_cf(handle, key)?.map(|value| read(&value))),
            None => Ok(None),
        }
    }

    /// Calls `visit(key, value)` for the rows from `first` to before `beyond` until it returns false.
    pub(crate) fn scan(
        &self,
        family: &'static str,
        first: &[u8],
        beyond: &[u8],
        fill_cache: bool,
        visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), rocksdb::Error> {
        let Some(handle) = self.inner.cf_handle(family) else { return Ok(()) };
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(beyond);
        options.fill_cache(fill_cache);
        rows::walk(self.inner.raw_iterator_cf_opt(handle, options), first, visit)
    }

    /// Returns a cursor over the rows of a family before `beyond`, for seeking to many places.
    pub(crate) fn cursor(&self, family: &'static str, beyond: &[u8]) -> Option<DBRawIterator<'_>> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(beyond);
        self.inner.cf_handle(family).map(|handle| self.inner.raw_iterator_cf_opt(handle, options))
    }

    /// Estimates how many bytes the rows between two keys take in table files.
    pub(crate) fn size_of(
        &self,
        family: &'static str,
        first: &[u8],
        beyond: &[u8],
    ) -> Result<u64, StoreError> {
        let range = rocksdb::Range::new(first, beyond);
        Ok(self.inner.get_approximate_sizes_cf(self.family(family)?, &[range]).into_iter().sum())
    }

    /// Sums a property of RocksDB over all families.
    pub(crate) fn property(&self, name: &str) -> u64 {
        families::ALL
            .iter()
            .filter_map(|family| self.inner.cf_handle(family))
            .filter_map(|handle| self.inner.property_int_value_cf(handle, name).ok().flatten())
            .sum()
    }

    /// Returns a property of one family.
    pub(crate) fn family_property(&self, family: &'static str, name: &str) -> u64 {
        self.inner
            .cf_handle(family)
            .and_then(|handle| self.inner.property_int_value_cf(handle, name).ok().flatten())
            .unwrap_or_default()
    }

    /// Returns how many bytes the block cache holds.
    pub(crate) fn cache_usage(&self) -> u64 {
        self.cache.get_usage() as u64
    }

    /// Flushes all memtables to table files and stops background work.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        self.sync()?;
        for name in families::ALL {
            self.inner.flush_cf(self.family(name)?).map_err(|error| io_error(&error))?;
        }
        self.inner.cancel_all_background_work(true);
        self.durable_index.close();
        Ok(())
    }
}

impl Rows for Db {
    fn get<T>(
        &self,
        family: &'static str,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, rocksdb::Error> {
        self.get(family, key, read)
    }

    fn scan(
        &self,
        family: &'static str,
        first: &[u8],
        beyond: &[u8],
        fill_cache: bool,
        visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), rocksdb::Error> {
        self.scan(family, first, beyond, fill_cache, visit)
    }

    fn cursor(&self, family: &'static str, beyond: &[u8]) -> Option<DBRawIteratorWithThreadMode<'_, DB>> {
        self.cursor(family, beyond)
    }

    fn at_once<T>(&self, read: impl FnOnce(&Snapshot<'_>) -> T) -> T {
        read(&self.snapshot())
    }
}

/// How a database is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// Whether the database exists already.
    pub(crate) opening: OpenMode,
    /// How much of the write-ahead log must be readable.
    pub(crate) recovery: Recovery,
    /// How often this process opened the database before.
    pub(crate) generation: u64,
    /// Whether table files are compacted.
    pub(crate) compacts: bool,
    /// Disk space is short: RocksDB must not write the replayed log to table files.
    pub(crate) is_tight: bool,
}
