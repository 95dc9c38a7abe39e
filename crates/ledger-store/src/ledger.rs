//! The ledger: what an embedding program holds. Its methods are grouped by operation.

use std::{path::Path, sync::Arc};

use ledger_core::node::ClusterId;

use crate::{
    Options, StoreError,
    directory::data_dir::DataDir,
    directory::meta::{self, Meta, Numbers},
    engine::durable_index::DurableIndex,
    engine::index,
    engine::reopenable_db::ReopenableDb,
    engine::space,
    engine::watermark::{self, Watermark},
    integrity::forks,
    integrity::quarantine::Quarantine,
    read::visibility::SlotVisibility,
    replicate::digests::Digests,
    shared::{OpenedState, Shared},
    store::Store,
    write::staging,
    write::uncommitted_loads::UncommittedLoads,
};

mod appends;
mod directory;
mod health;
mod integrity;
mod loads;
mod reads;
mod replication;

/// A durable ledger in a data directory. Cheap to clone; all methods may be called from any thread.
///
/// Methods that are not `async` may wait for the disk: call them from a thread that may block.
#[derive(Debug, Clone)]
pub struct Ledger {
    store: Arc<Store>,
}

impl Ledger {
    /// Opens or creates a ledger with the default options.
    ///
    /// # Errors
    /// As [`Ledger::open_with`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_with(dir, Options::default())
    }

    /// Opens or creates a ledger.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`] if something essential of the directory is lost or damaged; [`StoreError::Open`] if
    /// it cannot be used for another reason.
    pub fn open_with(dir: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        Self::try_open(dir, options).map_err(|error| match error {
            StoreError::FileDamaged(_) => {
                StoreError::NotWhole { path: dir.display().to_string(), reason: error.to_string() }
            }
            other => other,
        })
    }

    fn try_open(dir: &Path, options: Options) -> Result<Self, StoreError> {
        let open = |reason: String| StoreError::Open { path: dir.display().to_string(), reason };
        let home = DataDir::new(dir)?;
        let opening = home.prepare()?;
        let watermark = Watermark::open(dir).map_err(|error| {
            let remedy = if space::is_no_space_io(&error) {
                "free some space and start again"
            } else {
                "give this user the right to write there"
            };
            open(format!("its file {} cannot be written ({error}); {remedy}", watermark::FILE))
        })?;
        let readable = Arc::new(SlotVisibility::new(options.clustered));
        let (path, marks) = (home.database(), DurableIndex::new(watermark));
        let database = ReopenableDb::open(path, options.clone(), Arc::clone(&readable), marks, opening)?;
        let database = Arc::new(database);
        let db = database.get()?;
        let meta = Meta::open(&db, dir)?;
        home.is_in_use()?;
        staging::clean_up(&db)?;
        forks::clean_up(&db);
        index::ensure(&db)?;
        let numbers = Numbers::open(&db)?;
        let quarantine = Quarantine::default();
        let digests = options.clustered.then(|| Digests::scan(&db, &quarantine)).transpose()?;
        let known = OpenedState { digests, quarantine, loaded: UncommittedLoads::open(&db)? };
        let shared = Shared::new(options, meta, numbers, Arc::clone(&database), readable, known);
        if database.was_short_of_space() {
            shared.commit_failed(&StoreError::DiskFull { needed: Some(database.needed()) });
        }
        shared.cluster.send_replace(meta::read(&db, meta::CLUSTER_ID_KEY)?.map(ClusterId));
        let ledger = Self { store: Arc::new(Store::new(database, Arc::new(shared))) };
        ledger.store.start().map_err(|error| open(format!("a thread cannot be started: {error}")))?;
        Ok(ledger)
    }

    /// Finishes accepted appends, syncs and closes. From then on appends, watchers and reads fail with
    /// [`StoreError::Closed`]. The directory is free when this returns, unless something goes on reading for
    /// seconds.
    ///
    /// # Errors
    /// [`StoreError`] if the rest cannot be written, or a thread panicked.
    pub fn close(&self) -> Result<(), StoreError> {
        self.store.close()
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }
}
