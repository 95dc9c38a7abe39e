//! The database as all threads share it: open, or being reopened after a failure.
//!
//! RocksDB refuses all writes after a failed one until it is opened again ([`keep_open`](crate::engine::keep_open)
//! decides when). Callers hold the database for one operation only, so it can be taken away, closed and replaced while
//! the process runs.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    Options, StoreError, blocking,
    directory::data_dir::OpenMode,
    engine::db::{Db, How},
    engine::durable_index::DurableIndex,
    engine::first_open::{is_short_of_space, open_checked},
    engine::space::{self, Reserve},
    engine::tuning::Recovery,
    integrity::forks,
    limited,
    read::visibility::SlotVisibility,
    write::staging,
};

/// How long an operation waits while the database is being reopened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long closing waits for the operations that still use the database.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The database, which can be replaced while threads use it.
#[derive(Debug)]
pub(crate) struct ReopenableDb {
    path: PathBuf,
    options: Options,
    visibility: Arc<SlotVisibility>,
    durable_index: Arc<DurableIndex>,
    current: Mutex<Option<Arc<Db>>>,
    reopened: Condvar,
    /// How often this process tried to reopen the database.
    generation: AtomicU64,
    /// Whether RocksDB compacts table files.
    compacts: AtomicBool,
    has_failed_for_good: AtomicBool,
    is_closed: AtomicBool,
    was_short_of_space: bool,
    reserve: Reserve,
}

impl ReopenableDb {
    /// Opens or creates the database, and compares how far it goes with how far it is known to have been durable.
    pub(crate) fn open(
        path: PathBuf,
        options: Options,
        visibility: Arc<SlotVisibility>,
        marks: DurableIndex,
        opening: OpenMode,
    ) -> Result<Self, StoreError> {
        let durable_index = Arc::new(marks);
        let directory = path.parent().unwrap_or(&path);
        if let Err(error) = space::end_probe(directory) {
            tracing::warn!(%error, "what an interrupted probe of the disk left cannot be removed");
        }
        let reserve = Reserve::of(directory);
        let was_short_of_space = opening == OpenMode::Existing && is_short_of_space(&path, &reserve);
        let db = open_checked(&path, &options, &visibility, &durable_index, opening, was_short_of_space)?;
        if was_short_of_space {
            reserve.keep_rest();
        } else {
            reserve.keep();
        }
        let current = Mutex::new(Some(Arc::new(db)));
        let (reopened, generation, compacts) = (Condvar::new(), AtomicU64::new(0), AtomicBool::new(true));
        let has_failed_for_good = AtomicBool::new(false);
        Ok(Self {
            path,
            options,
            visibility,
            durable_index,
            current,
            reopened,
            generation,
            compacts,
            has_failed_for_good,
            is_closed: AtomicBool::new(false),
            was_short_of_space,
            reserve,
        })
    }

    /// Returns the database's directory.
    pub(crate) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Returns how far the directory is durable.
    pub(crate) fn durable_index(&self) -> &DurableIndex {
        &self.durable_index
    }

    /// Returns the open database; waits while it is being reopened. Hold it for one operation only.
    pub(crate) fn get(&self) -> Result<Arc<Db>, StoreError> {
        blocking::check();
        let deadline = Instant::now() + OPEN_TIMEOUT;
        let mut current = self.current.lock();
        loop {
            if let Some(db) = &*current {
                return Ok(Arc::clone(db));
            }
            if self.is_closed.load(Ordering::Relaxed) {
                return Err(StoreError::Closed);
            }
            if self.reopened.wait_until(&mut current, deadline).timed_out() {
                return Err(StoreError::Io("the database is being opened anew after a failure".into()));
            }
        }
    }

    /// Returns the database if it is open now, for callers that must not wait.
    pub(crate) fn if_open(&self) -> Option<Arc<Db>> {
        self.current.lock().clone()
    }

    /// Closes the database for good. When this returns, RocksDB's files are closed and its threads have ended. The
    /// process must not exit before that: it would free memory that those threads still use. Nothing reopens the
    /// database afterwards.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        let taken = {
            let mut current = self.current.lock();
            self.is_closed.store(true, Ordering::Relaxed);
            current.take()
        };
        self.reopened.notify_all();
        let Some(db) = taken else {
            return Err(StoreError::Io("the database was being opened anew after a failure".into()));
        };
        let closed = db.close();
        let watch = Arc::downgrade(&db);
        drop(db);
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        while watch.strong_count() > 0 {
            if Instant::now() > deadline {
                tracing::warn!("something still reads from the database, which closes once that is done");
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        closed
    }

    /// Takes the database away, waits until no operation uses it, and opens it again.
    pub(crate) fn reopen(&self) -> Result<(), StoreError> {
        let taken = self.current.lock().take();
        // An earlier attempt may have taken it away already.
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(db) = taken {
            let watch = Arc::downgrade(&db);
            drop(db);
            wait_until_unused(&watch);
        }
        if self.options.clustered {
            // Closing lost the pinned heads: hide every slot until its lane has read its rows again.
            self.visibility.hide_all();
        }
        let (readable, marks) = (Arc::clone(&self.visibility), Arc::clone(&self.durable_index));
        let how = How {
            opening: OpenMode::Existing,
            recovery: Recovery::Whole,
            generation,
            compacts: self.compacts(),
            is_tight: false,
        };
        let opened = Db::open(&self.path, &self.options, readable, marks, how);
        if let Ok(db) = opened {
            forks::clean_up(&db);
            if let Err(error) = staging::clean_up(&db) {
                // This failure leads to another reopening, which tries again.
                limited!(warn, %error, "what loads had staged before the failure stays for now");
            }
            *self.current.lock() = Some(Arc::new(db));
            self.reopened.notify_all();
            self.reserve.keep();
            return Ok(());
        }
        opened.map(|_| ())
    }

    /// Returns whether RocksDB compacts table files. After a damaged file it must not: compaction would read the file
    /// again, and RocksDB would refuse writes again.
    pub(crate) fn compacts(&self) -> bool {
        self.compacts.load(Ordering::Relaxed)
    }

    /// Returns whether the database failed permanently, because essential files are damaged: no more writes and no
    /// more reopening.
    pub(crate) fn has_failed_for_good(&self) -> bool {
        self.has_failed_for_good.load(Ordering::Relaxed)
    }

    pub(crate) fn fail_for_good(&self) {
        self.has_failed_for_good.store(true, Ordering::Relaxed);
        tracing::error!(
            "files are damaged that cannot be done without: this node writes and serves nothing any more; replace its data \
             directory"
        );
    }

    /// Returns why the database refuses writes, if it does.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.current.lock().as_ref().and_then(|db| db.failure())
    }

    pub(crate) fn stop_compacting(&self) {
        if self.compacts.swap(false, Ordering::Relaxed) {
            tracing::error!(
                "a table file is damaged: nothing is compacted any more, so this node goes on, and takes ever more space; \
                 replace its data directory"
            );
        }
    }

    /// Returns how many free bytes are needed before a full disk is tried again: the size of the memtables plus
    /// [`space::HEADROOM`].
    pub(crate) fn needed(&self) -> u64 {
        let in_memory =
            self.current.lock().as_ref().map_or(0, |db| db.property("rocksdb.cur-size-all-mem-tables"));
        in_memory + space::HEADROOM
    }

    /// Refuses to write `bytes` of a load if that left appends too little space. A load's partial files are only
    /// removed by reopening the database, and reopening waits for that very space.
    pub(crate) fn check_space_for_load(&self, bytes: u64) -> Result<(), StoreError> {
        let needed = space::needed_to_load(self.needed()) + bytes;
        match space::free(&self.path) {
            Ok(free) if free < needed => Err(StoreError::DiskFull { needed: Some(needed) }),
            _ => Ok(()),
        }
    }

    /// Returns the free bytes of the volume.
    pub(crate) fn free(&self) -> u64 {
        space::free(&self.path).unwrap_or_default()
    }

    /// Returns whether the database was opened with too little disk space: then nothing is written until there is
    /// more.
    pub(crate) fn was_short_of_space(&self) -> bool {
        self.was_short_of_space
    }
}

/// Waits until no operation uses the database. Operations are short: pages, single reads, one write.
fn wait_until_unused(db: &Weak<Db>) {
    while db.strong_count() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::{ContextId, Key, Sequence, entry::Draft, slot::Slot};

    use super::*;
    use crate::{error::damaged, testing};

    #[test]
    fn a_database_opened_anew_is_another_one_and_shows_nothing_even_if_the_first_try_failed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, away) = (dir.path().join("db"), dir.path().join("away"));
        let options = Options { clustered: true, ..testing::options() };
        let readable = Arc::new(SlotVisibility::new(true));
        let (marks, opening) = (DurableIndex::default(), OpenMode::Create);
        let database =
            ReopenableDb::open(path.clone(), options, Arc::clone(&readable), marks, opening).unwrap();
        let slot = Slot::new(7).unwrap();
        readable.publish(slot);
        let first = database.get().unwrap().generation();

        std::fs::rename(&path, &away).unwrap();
        std::fs::write(&path, b"not a directory").unwrap();
        assert!(database.reopen().is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&away, &path).unwrap();
        database.reopen().unwrap();

        // A higher generation is how lanes notice that their cached state belongs to the previous database.
        assert!(database.get().unwrap().generation() > first);
        assert!(!readable.is_visible(slot), "what was held back before would be seen");
    }

    #[test]
    fn what_was_staged_before_a_failure_is_gone_once_the_database_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = crate::Ledger::open_with(dir.path(), testing::options()).unwrap();
        let database = &ledger.store().database;
        let place = crate::engine::families::RowLocation { slot: Slot::new(7).unwrap(), number: 1 << 40 };
        let staged = || {
            let (mut rows, (first, beyond)) = (0, place.range());
            let count = |_: &[u8], _: &[u8]| {
                rows += 1;
                true
            };
            database
                .get()
                .unwrap()
                .scan(crate::engine::families::ENTRIES, &first, &beyond, true, count)
                .unwrap();
            rows
        };
        let db = database.get().unwrap();
        staging::begin(&db, place).unwrap();
        let mut batch = rocksdb::WriteBatch::default();
        batch.put_cf(
            db.family(crate::engine::families::ENTRIES).unwrap(),
            place.entry(Sequence(1)),
            b"staged",
        );
        db.write(batch).unwrap();
        // The loader cannot remove what it staged: a failed database refuses the delete.
        db.fail(StoreError::DiskFull { needed: None });
        assert!(staging::abandon(&db, place).is_err());
        drop(db);
        assert_eq!(staged(), 1);
        database.reopen().unwrap();
        assert_eq!(staged(), 0);
    }

    #[test]
    fn while_the_database_is_opened_anew_its_ledger_says_what_is_known_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = crate::Ledger::open_with(dir.path(), testing::options()).unwrap();
        let (database, context) = (&ledger.store().database, ContextId::new("c").unwrap());
        let draft = Draft { key: Key::new("k").unwrap(), payload: "x".into(), metadata: [].into() };
        ledger.append(&context, draft).unwrap();
        let whole = ledger.stats();
        assert!(
            whole.compacts && whole.appended == 1 && whole.disk_bytes.is_some() && whole.contexts.is_some()
        );
        ledger.store().shared.quarantine.record(&damaged(&context, Sequence(1), "by this test"));

        let taken = database.current.lock().take();
        let known = ledger.stats();
        assert!(known.compacts, "nothing of it is damaged");
        assert_eq!((known.appended, known.commits, known.quarantined), (1, 1, 1));
        assert_eq!((known.contexts, known.disk_bytes, known.memory_bytes), (None, None, None));
        *database.current.lock() = taken;
        assert_eq!(ledger.stats().contexts, whole.contexts);
    }
}
