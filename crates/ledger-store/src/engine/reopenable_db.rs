//! The database as all threads share it: open, or being reopened after a failure.
//!
//! RocksDB refuses all writes after a failed one until it is opened again. This module reopens it once a write is
//! likely to succeed. Callers hold the database for one operation only, so the module can take it away, close it and
//! replace it while the process runs.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::{Condvar, Mutex};

use crate::{
    Options, StoreError,
    directory::data_dir::OpenMode,
    directory::meta,
    engine::db::{Db, How, Recovery},
    engine::durable_index::DurableIndex,
    engine::space::{self, Reserve},
    engine::watermark,
    limited,
    read::visibility::SlotVisibility,
    shared::Shared,
    write::staging,
};

/// How long an operation waits while the database is being reopened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long closing waits for the operations that still use the database.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the thread checks whether the database failed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long to wait before reopening a database that failed again soon after the previous reopening, at first and at
/// most.
const FIRST_BACKOFF: Duration = Duration::from_secs(2);
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// How often damaged files may cause a reopening before the database counts as failed permanently.
const MAX_DAMAGED_REOPENS: u32 = 3;

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
    fn reopen(&self) -> Result<(), StoreError> {
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

    fn fail_for_good(&self) {
        self.has_failed_for_good.store(true, Ordering::Relaxed);
        tracing::error!(
            "files are damaged that cannot be done without: this node writes and serves nothing any more; replace its data \
             directory"
        );
    }

    /// Returns why the database refuses writes, if it does.
    fn failure(&self) -> Option<StoreError> {
        self.current.lock().as_ref().and_then(|db| db.failure())
    }

    fn stop_compacting(&self) {
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

/// Returns whether there is too little disk space to open the database; releases the reserve if opening needs it.
fn is_short_of_space(path: &Path, reserve: &Reserve) -> bool {
    let is_short_of = |bytes| space::free(path).is_ok_and(|free| free < bytes);
    let needed = space::logged(path) + space::HEADROOM;
    if !is_short_of(needed) {
        return false;
    }
    let gave_up = is_short_of(space::HEADROOM) && reserve.give_up();
    tracing::warn!(
        needed,
        gave_up,
        "there is hardly any space left: this node starts, and appends nothing before there is"
    );
    true
}

/// Opens the database for the first time in this process.
fn open_checked(
    path: &Path,
    options: &Options,
    readable: &Arc<SlotVisibility>,
    marks: &Arc<DurableIndex>,
    opening: OpenMode,
    is_tight: bool,
) -> Result<Db, StoreError> {
    let open = |recovery| {
        let how = How { opening, recovery, generation: 0, compacts: true, is_tight };
        Db::open(path, options, Arc::clone(readable), Arc::clone(marks), how)
    };
    let expected = marks.expected();
    let db = match open(Recovery::Whole) {
        Ok(db) => db,
        Err(error) => match Db::readable_up_to(path, options) {
            // A power cut may leave half of the last record, or older bytes: nothing there was acknowledged.
            Some(number) if expected > 0 && number >= expected => {
                let db = open(Recovery::ToLastWhole).map_err(|_| error)?;
                tracing::warn!(
                    expected,
                    number,
                    "the write-ahead log ends with a record that is not whole: it was never acknowledged, and is left out"
                );
                db
            }
            Some(number) if expected > 0 => return Err(with_numbers(error, number, expected)),
            _ => return Err(error),
        },
    };
    let number = marks.opening();
    if number >= expected {
        return Ok(db);
    }
    let missing = expected - number;
    if options.accept_lost_writes == Some(number) {
        let refused = |reason: std::io::Error| StoreError::Io(format!("{}: {reason}", watermark::FILE));
        meta::record_lost_writes(&db, number, expected)?;
        marks.accept_loss_after(number).map_err(refused)?;
        tracing::error!(
            number,
            expected,
            missing,
            "the write-ahead log was cut short, and what is missing is given up as accept_lost_writes says"
        );
        return Ok(db);
    }
    Err(StoreError::NotWhole {
        path: path.display().to_string(),
        reason: format!(
            "its write-ahead log was cut short: changes up to number {expected} were durable, and it goes up to {number}, so \
             the last {missing} are missing, and with them entries that were acknowledged; restore the directory from a copy, \
             or remove it if this is a member of a cluster and the others have all; to go on without what is missing, for good, \
             start with accept_lost_writes = {number}"
        ),
    })
}

/// Adds to the error of a log that is damaged before its end how much would be lost.
fn with_numbers(error: StoreError, number: u64, expected: u64) -> StoreError {
    match error {
        StoreError::NotWhole { path, reason } => StoreError::NotWhole {
            path,
            reason: format!(
                "{reason} (changes up to number {expected} were durable, and can be read up to {number})"
            ),
        },
        other => other,
    }
}

/// Waits until no operation uses the database. Operations are short: pages, single reads, one write.
fn wait_until_unused(db: &Weak<Db>) {
    while db.strong_count() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs the thread that reopens the database after a failed write, until `stop`.
pub(crate) fn keep_open(database: &ReopenableDb, shared: &Shared, stop: &Receiver<()>) {
    let mut tries = ReopenBackoff::default();
    let mut damaged = 0;
    while stop.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        // The first failure may have been a write other than a commit.
        if shared.failure().is_none()
            && let Some(error) = database.failure()
        {
            shared.commit_failed(&error);
        }
        let due = match shared.failure() {
            None => continue,
            Some(StoreError::DiskFull { .. }) => {
                let needed = database.needed();
                let has_space = database.free() >= needed;
                if !has_space {
                    shared.is_short_of(Some(needed));
                }
                has_space.then_some(needed)
            }
            Some(_) => Some(space::HEADROOM),
        };
        let Some(needed) = due.filter(|_| tries.are_due(Instant::now())) else { continue };
        // Readers lose this database while it is reopened, so probe the disk before closing it.
        if let Err(error) = space::probe(database.directory(), needed) {
            tries.wait(Instant::now());
            if space::is_no_space_io(&error) {
                shared.is_short_of(None);
            }
            limited!(
                warn, %error,
                "the data directory takes no new files, whatever space there is (look at inodes and quotas): appends wait, and reads go \
                 on"
            );
            continue;
        }
        tries.begin(Instant::now());
        if matches!(shared.failure(), Some(StoreError::FileDamaged(_))) {
            damaged += 1;
            if damaged > MAX_DAMAGED_REOPENS {
                // Operations other than compaction meet the damage too.
                database.fail_for_good();
                return;
            }
            database.stop_compacting();
        }
        match database.reopen() {
            Ok(()) => {
                shared.on_reopened();
                limited!(info, "the database was opened anew after a failure: appends go on");
            }
            Err(error) => limited!(error, %error, "the database cannot be opened anew yet"),
        }
    }
}

/// Decides when to reopen the database: at once, then ever less often if it keeps failing.
#[derive(Debug, Default)]
struct ReopenBackoff {
    /// The last attempt, and how long after it the next one must wait.
    last: Option<(Instant, Duration)>,
}

impl ReopenBackoff {
    fn are_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|(at, pause)| now.saturating_duration_since(at) >= pause)
    }

    /// Records a reopening that begins now.
    fn begin(&mut self, now: Instant) {
        let lately = |(at, _): &(Instant, _)| now.saturating_duration_since(*at) < 2 * MAX_BACKOFF;
        let pause = self.last.filter(lately).map_or(FIRST_BACKOFF, |(_, pause)| (2 * pause).min(MAX_BACKOFF));
        self.last = Some((now, pause));
    }

    /// Records that the disk did not allow an attempt: the next one waits only the shortest pause.
    fn wait(&mut self, now: Instant) {
        self.last = Some((now, FIRST_BACKOFF));
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::{ContextId, Key, Sequence, entry::Draft, slot::Slot};

    use super::*;
    use crate::{read::pages::damaged, testing};

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
    fn a_database_that_fails_again_and_again_is_opened_less_and_less_often() {
        let (mut tries, start) = (ReopenBackoff::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(tries.are_due(start), "the first time at once");
        let (mut now, mut pauses) = (0, Vec::new());
        for _ in 0..8 {
            tries.begin(at(now));
            let due = (now..=now + 60).find(|second| tries.are_due(at(*second))).unwrap();
            pauses.push(due - now);
            now = due;
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        tries.begin(at(now + 600));
        assert!(tries.are_due(at(now + 602)), "one that went well for long is as any other");
    }

    #[test]
    fn what_was_staged_before_a_failure_is_gone_once_the_database_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = crate::Ledger::open_with(dir.path(), testing::options()).unwrap();
        let database = &ledger.inner().database;
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
        let (database, context) = (&ledger.inner().database, ContextId::new("c").unwrap());
        let draft = Draft { key: Key::new("k").unwrap(), payload: "x".into(), metadata: [].into() };
        ledger.append(&context, draft).unwrap();
        let whole = ledger.stats();
        assert!(
            whole.compacts && whole.appended == 1 && whole.disk_bytes.is_some() && whole.contexts.is_some()
        );
        ledger.inner().shared.quarantine.record(&damaged(&context, Sequence(1), "by this test"));

        let taken = database.current.lock().take();
        let known = ledger.stats();
        assert!(known.compacts, "nothing of it is damaged");
        assert_eq!((known.appended, known.commits, known.quarantined), (1, 1, 1));
        assert_eq!((known.contexts, known.disk_bytes, known.memory_bytes), (None, None, None));
        *database.current.lock() = taken;
        assert_eq!(ledger.stats().contexts, whole.contexts);
    }
}
