//! Makes committed writes visible to readers and watchers.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    budget::Share, engine::db::Db, engine::families::RowLocation, engine::reopenable_db::ReopenableDb,
    limited, read::tail::Tails, read::visibility::SlotVisibility, replicate::replica::OutboxCell,
    write::staging, write::uncommitted_loads::UncommittedLoads, write::written_context::WrittenContext,
};

/// What a commit has to reach to be published: readers, watchers and, in a cluster, the other nodes.
#[derive(Debug)]
pub(crate) struct Publisher {
    pub(crate) database: Arc<ReopenableDb>,
    pub(crate) visibility: Arc<SlotVisibility>,
    /// The tails of watched contexts.
    pub(crate) tails: Arc<Tails>,
    /// In a cluster: the loads that are not known to be committed.
    pub(crate) uncommitted_loads: UncommittedLoads,
    /// In a cluster: carries what lanes send.
    pub(crate) outbox: OutboxCell,
    appended: AtomicU64,
    commits: AtomicU64,
}

impl Publisher {
    /// `tail_bytes` is the memory for the newest entries of watched contexts.
    pub(crate) fn new(
        database: Arc<ReopenableDb>,
        visibility: Arc<SlotVisibility>,
        uncommitted_loads: UncommittedLoads,
        tail_bytes: usize,
    ) -> Self {
        Self {
            database,
            visibility,
            tails: Tails::new(Share::new("tails", tail_bytes)),
            uncommitted_loads,
            outbox: OutboxCell::new(),
            appended: AtomicU64::new(0),
            commits: AtomicU64::new(0),
        }
    }

    /// Counts a commit.
    pub(crate) fn count_commit(&self, entries: u64) {
        self.appended.fetch_add(entries, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of entries appended, and the number of commits.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.appended.load(Ordering::Relaxed), self.commits.load(Ordering::Relaxed))
    }
}

/// Unpins the heads of contexts of a hidden slot. Does not notify watchers: the history may be forked off.
pub(crate) fn unpin(db: &Db, contexts: Vec<WrittenContext>) {
    for WrittenContext { context, rows, head, mut replaced_rows, .. } in contexts {
        db.committed_heads().unpin(&context, (rows, head));
        remove_replaced_rows(db, &mut replaced_rows);
    }
}

/// Publishes pinned writes to readers and watchers. Returns how many entries they are.
pub(crate) fn publish(db: &Db, publisher: &Publisher, contexts: &mut [WrittenContext]) -> u64 {
    let mut entries = 0;
    for written_context in contexts.iter_mut().filter(|written_context| written_context.appended > 0) {
        entries += written_context.appended;
        publish_context(db, publisher, written_context);
    }
    entries
}

fn publish_context(db: &Db, publisher: &Publisher, written_context: &mut WrittenContext) {
    let position = written_context.position();
    let WrittenContext { context, rows, head, watched, is_load, replaced_rows, .. } = written_context;
    db.committed_heads().unpin(context, (*rows, head.clone()));
    if let Some(entries) = watched.take() {
        publisher.tails.committed(context, entries.into_iter(), position);
    } else if !publisher.tails.is_idle()
        && let Some(tail) = publisher.tails.find(context)
    {
        // A watcher joined after the commit was staged: it reads the entries from the store.
        tail.reach(position.size);
    }
    if *is_load {
        publisher.uncommitted_loads.forget(db, *rows);
    }
    remove_replaced_rows(db, replaced_rows);
}

/// Removes the rows that a load replaced.
fn remove_replaced_rows(db: &Db, left: &mut Option<RowLocation>) {
    if let Some(place) = left.take()
        && let Err(error) = staging::abandon(db, place)
    {
        // Opening the ledger again removes them.
        limited!(warn, %error, "rows that a load replaced stay until restart");
    }
}
