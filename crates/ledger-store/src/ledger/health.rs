//! The state of the store: figures, memory, and whether it takes appends.

use std::sync::{Arc, atomic::Ordering};

use tokio::sync::watch;

use super::Ledger;
use crate::{Stats, StoreError, budget::Share, engine::families};

impl Ledger {
    /// Returns how many commands wait for the lanes: none if these keep up easily.
    pub fn waiting(&self) -> usize {
        self.store.lanes.read().iter().map(|queue| queue.max_capacity() - queue.capacity()).sum()
    }

    /// Returns the number of entries appended since opening.
    pub fn appended(&self) -> u64 {
        self.store.shared.counts().0
    }

    /// Returns the store's figures without waiting: those that only the database knows are `None` while it is being
    /// reopened.
    pub fn stats(&self) -> Stats {
        let shared = &self.store.shared;
        let db = self.store.database.if_open();
        let db = db.as_deref();
        let (appended, commits, failed_commits) = shared.counts();
        Stats {
            appended,
            commits,
            failed_commits,
            scrubbed: shared.scrubbed.load(Ordering::Relaxed),
            quarantined: shared.quarantine.list().len() as u64,
            damaged_families: shared.quarantine.families().len() as u64,
            damaged_slots: shared.damaged_slots() as u64,
            compacts: self.store.database.compacts(),
            contexts: match &shared.digests {
                Some(digests) => Some(digests.contexts(|slot| shared.publisher.visibility.is_member(slot))),
                None => db.map(|db| db.family_property(families::HEADS, "rocksdb.estimate-num-keys")),
            },
            disk_bytes: db.map(|db| db.property("rocksdb.total-sst-files-size")),
            memory_bytes: db.map(|db| {
                db.cache_usage()
                    + db.property("rocksdb.cur-size-all-mem-tables")
                    + db.property("rocksdb.estimate-table-readers-mem")
            }),
        }
    }

    /// Returns the memory for loads, for the tails of watched contexts, and for parts that arrived out of order.
    pub fn shares(&self) -> [Arc<Share>; 3] {
        let shared = &self.store.shared;
        [
            Arc::clone(&shared.loads),
            Arc::clone(shared.publisher.tails.share()),
            Arc::clone(&shared.out_of_order),
        ]
    }

    /// Completes with the name of an essential thread once that thread panicked. From then on calls fail with
    /// [`StoreError::Closed`]. Nothing acknowledged is lost: open the ledger again.
    pub async fn broken(&self) -> String {
        let mut broken = self.store.shared.broken.subscribe();
        match broken.wait_for(Option::is_some).await.map(|name| name.clone()) {
            Ok(Some(name)) => name,
            // The ledger is closed.
            _ => std::future::pending().await,
        }
    }

    /// Checks whether appends can be acknowledged.
    ///
    /// # Errors
    /// The error of the last commit, if it failed; [`StoreError::Closed`].
    pub fn writable(&self) -> Result<(), StoreError> {
        if self.store.lanes.read().is_empty() {
            return Err(StoreError::Closed);
        }
        self.store.shared.failure().map_or(Ok(()), Err)
    }

    /// Watches whether commits can be written: false after one failed, until the database was reopened.
    pub fn watch_writable(&self) -> watch::Receiver<bool> {
        self.store.shared.watch_writable()
    }
}
