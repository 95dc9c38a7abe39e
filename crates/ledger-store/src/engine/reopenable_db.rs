//! The database as everybody holds it: open, or being reopened after a failure.
//!
//! After a failed write RocksDB takes no more writes until it is opened again. That is done here, once
//! there is reason to hope: whoever works with the database holds it for one operation only, so it can
//! be taken away, closed and replaced while the process goes on.

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

/// How long an operation waits for a database that is being reopened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long whoever still works with a database that closes is waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a failed database is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long to wait before a database is reopened that failed again soon after the last time, at first and at most.
const FIRST_BACKOFF: Duration = Duration::from_secs(2);
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// How often a database is reopened because of damaged files, before it is given up.
const MAX_DAMAGED_REOPENS: u32 = 3;

/// The database, replaceable.
#[derive(Debug)]
pub(crate) struct ReopenableDb {
    path: PathBuf,
    options: Options,
    visibility: Arc<SlotVisibility>,
    durable_index: Arc<DurableIndex>,
    current: Mutex<Option<Arc<Db>>>,
    reopened: Condvar,
    /// How often it was tried to open it anew.
    generation: AtomicU64,
    /// Whether RocksDB compacts table files.
    compacts: AtomicBool,
    has_failed_for_good: AtomicBool,
    is_closed: AtomicBool,
    was_short_of_space: bool,
    reserve: Reserve,
}

impl ReopenableDb {
    /// Opens or creates the database, and holds how far it goes against how far it was durable.
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

    /// The directory that it lies in.
    pub(crate) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// How far the directory goes.
    pub(crate) fn durable_index(&self) -> &DurableIndex {
        &self.durable_index
    }

    /// The open database: hold it for one operation, not longer. Waits while it is being reopened.
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

    /// The database if it is open now: for what must not wait.
    pub(crate) fn if_open(&self) -> Option<Arc<Db>> {
        self.current.lock().clone()
    }

    /// Closes the database for good: its files are closed, and its threads have ended, when this returns. A process may
    /// not end before: what RocksDB's threads work with is gone then. Nobody opens it anew any more.
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

    /// Takes the database away, waits until nobody works with it, and opens it again.
    fn reopen(&self) -> Result<(), StoreError> {
        let taken = self.current.lock().take();
        // An earlier try may have taken it away already.
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(db) = taken {
            let watch = Arc::downgrade(&db);
            drop(db);
            wait_until_unused(&watch);
        }
        if self.options.clustered {
            // What was held back is no more: until the lanes have looked at it anew, nothing is shown.
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
                // It is tried again with the next opening, which this failure leads to.
                limited!(warn, %error, "what loads had staged before the failure stays for now");
            }
            *self.current.lock() = Some(Arc::new(db));
            self.reopened.notify_all();
            self.reserve.keep();
            return Ok(());
        }
        opened.map(|_| ())
    }

    /// Whether RocksDB compacts table files. It does not after it met a damaged one: it would meet it again, and
    /// take no writes then.
    pub(crate) fn compacts(&self) -> bool {
        self.compacts.load(Ordering::Relaxed)
    }

    /// Whether files are damaged that cannot be done without: nothing is written, nor reopened, any more.
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

    /// Why it takes no more writes.
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

    /// Free bytes that there must be before a full disk is tried again: for what is in memory, and then some.
    pub(crate) fn needed(&self) -> u64 {
        let in_memory =
            self.current.lock().as_ref().map_or(0, |db| db.property("rocksdb.cur-size-all-mem-tables"));
        in_memory + space::HEADROOM
    }

    /// Refuses to write so much of a load if that left appends too little space: a disk that a load fills holds, until it
    /// was reopened, the space that this waits for.
    pub(crate) fn check_space_for_load(&self, bytes: u64) -> Result<(), StoreError> {
        let needed = space::needed_to_load(self.needed()) + bytes;
        match space::free(&self.path) {
            Ok(free) if free < needed => Err(StoreError::DiskFull { needed: Some(needed) }),
            _ => Ok(()),
        }
    }

    /// Free bytes.
    pub(crate) fn free(&self) -> u64 {
        space::free(&self.path).unwrap_or_default()
    }

    /// Whether it was opened with hardly any space: nothing is written then before there is more.
    pub(crate) fn was_short_of_space(&self) -> bool {
        self.was_short_of_space
    }
}

/// Whether there is hardly any space to open a database; gives the reserve up if it takes that.
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
            // A power cut may leave half of the last record, or what was there before: nobody was told of it.
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

/// The error of a log that is damaged before its end, with what would be lost.
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

/// Operations are short: pages, points, one write.
fn wait_until_unused(db: &Weak<Db>) {
    while db.strong_count() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The thread: opens the database anew after a failed write, until told to stop.
pub(crate) fn keep_open(database: &ReopenableDb, shared: &Shared, stop: &Receiver<()>) {
    let mut tries = ReopenBackoff::default();
    let mut damaged = 0;
    while stop.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        // It may not have been a commit that failed first.
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
        // Until it can be opened again, nothing can be read without this one.
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
                // It is not only compacting that meets it.
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

/// When the database is reopened: at once, and less and less often if it fails again and again.
#[derive(Debug, Default)]
struct ReopenBackoff {
    /// When it was tried, and how long nothing is tried from then on.
    last: Option<(Instant, Duration)>,
}

impl ReopenBackoff {
    fn are_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|(at, pause)| now.saturating_duration_since(at) >= pause)
    }

    /// It is opened now.
    fn begin(&mut self, now: Instant) {
        let lately = |(at, _): &(Instant, _)| now.saturating_duration_since(*at) < 2 * MAX_BACKOFF;
        let pause = self.last.filter(lately).map_or(FIRST_BACKOFF, |(_, pause)| (2 * pause).min(MAX_BACKOFF));
        self.last = Some((now, pause));
    }

    /// It was not worth a try: one that takes nothing away.
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

        // By this lanes know that what they remember is of another one.
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
        // Whoever staged it cannot remove it: nothing is written any more.
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
