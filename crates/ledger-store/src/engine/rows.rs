//! Reads rows: of the database as it is, or as it was at one moment.

use rocksdb::{DB, DBAccess, DBRawIteratorWithThreadMode, ReadOptions, SnapshotWithThreadMode};

/// Bytes that a sequential read fetches ahead.
const READAHEAD: usize = 2 << 20;

/// A source of rows.
pub(crate) trait Rows {
    /// Reads one value and passes it to `read` without copying it.
    fn get<T>(
        &self,
        family: &'static str,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, rocksdb::Error>;

    /// Calls `visit(key, value)` for the rows from `first` to before `beyond` until it returns false.
    fn scan(
        &self,
        family: &'static str,
        first: &[u8],
        beyond: &[u8],
        fill_cache: bool,
        visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), rocksdb::Error>;

    /// Returns a cursor over the rows of a family before `beyond`. Creating one costs more than moving it.
    fn cursor(&self, family: &'static str, beyond: &[u8]) -> Option<DBRawIteratorWithThreadMode<'_, DB>>;

    /// Runs `read` on a snapshot, so that it sees all rows as of one moment.
    fn at_once<T>(&self, read: impl FnOnce(&Snapshot<'_>) -> T) -> T;
}

/// The database as it was at one moment. RocksDB keeps every row that a live snapshot can see: hold it for one
/// response, not longer.
pub(crate) struct Snapshot<'a> {
    db: &'a DB,
    moment: SnapshotWithThreadMode<'a, DB>,
}

impl<'a> Snapshot<'a> {
    /// Takes a snapshot of the database.
    pub(crate) fn of(db: &'a DB) -> Self {
        Self { db, moment: db.snapshot() }
    }

    /// Does what [`Rows::scan`] does, for reading a lot once: with readahead, and without filling the block cache.
    pub(crate) fn read_through(
        &self,
        family: &'static str,
        first: &[u8],
        beyond: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), rocksdb::Error> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_readahead_size(READAHEAD);
        self.scan_with(options, family, first, beyond, visit)
    }

    fn scan_with(
        &self,
        mut options: ReadOptions,
        family: &'static str,
        first: &[u8],
        beyond: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), rocksdb::Error> {
        let Some(handle) = self.db.cf_handle(family) else { return Ok(()) };
        options.set_iterate_upper_bound(beyond);
        walk(self.moment.raw_iterator_cf_opt(handle, options), first, visit)
    }
}

/// Calls `visit(key, value)` for the rows from `first` on until it returns false.
pub(crate) fn walk<D: DBAccess>(
    mut rows: DBRawIteratorWithThreadMode<'_, D>,
    first: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), rocksdb::Error> {
    rows.seek(first);
    while let Some((key, value)) = rows.item() {
        if !visit(key, value) {
            return Ok(());
        }
        rows.next();
    }
    rows.status()
}

impl Rows for Snapshot<'_> {
    fn get<T>(
        &self,
        family: &'static str,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, rocksdb::Error> {
        match self.db.cf_handle(family) {
            Some(handle) => Ok(self.moment.get_pinned_cf(handle, key)?.map(|value| read(&value))),
            None => Ok(None),
        }
    }

    fn scan(
        &self,
        family: &'static str,
        first: &[u8],
        beyond: &[u8],
        fill_cache: bool,
        visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), rocksdb::Error> {
        let mut options = ReadOptions::default();
        options.fill_cache(fill_cache);
        self.scan_with(options, family, first, beyond, visit)
    }

    fn cursor(&self, family: &'static str, beyond: &[u8]) -> Option<DBRawIteratorWithThreadMode<'_, DB>> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(beyond);
        self.db.cf_handle(family).map(|handle| self.moment.raw_iterator_cf_opt(handle, options))
    }

    fn at_once<T>(&self, read: impl FnOnce(&Snapshot<'_>) -> T) -> T {
        read(self)
    }
}
