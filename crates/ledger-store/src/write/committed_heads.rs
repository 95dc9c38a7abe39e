//! Keeps the committed heads of contexts whose row in the database is ahead of them.
//!
//! A commit reaches the database before it reaches the disk, so that the lane can stage the next one while the disk
//! works. Readers must not see what a crash could undo: they get the head pinned here, and with it the history up to
//! its size.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use foldhash::fast::RandomState;
use ledger_core::{ContextId, Head};
use parking_lot::Mutex;
use std::hash::BuildHasher as _;

use crate::engine::families::RowLocation;

const SHARDS: usize = 16;

/// A context's row, as decoded; `None`: it does not exist.
pub(crate) type Row = Option<(RowLocation, Head)>;

/// A context with uncommitted commits in its row.
struct UncommittedHead {
    committed: Row,
    commits: usize,
    /// Rows that moved meanwhile: from where, and to where.
    moved: Vec<(RowLocation, RowLocation)>,
}

type Shard = Mutex<HashMap<ContextId, UncommittedHead, RandomState>>;

/// The pinned heads.
pub(crate) struct CommittedHeads {
    shards: [Shard; SHARDS],
    hasher: RandomState,
    pinned: AtomicUsize,
}

impl CommittedHeads {
    pub(crate) fn new() -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { shards, hasher: RandomState::default(), pinned: AtomicUsize::new(0) }
    }

    /// Pins `before` as the head that readers see, until the commit about to be written is committed.
    pub(crate) fn pin(&self, context: &ContextId, before: Row) {
        // Pin before the row can be read: a reader that finds no pinned head must have read a committed row.
        self.pinned.fetch_add(1, Ordering::SeqCst);
        let mut shard = self.shard(context).lock();
        shard
            .entry(context.clone())
            .or_insert(UncommittedHead { committed: before, commits: 0, moved: Vec::new() })
            .commits += 1;
    }

    /// Records that the oldest pinned commit of a context is committed and left the context at `after`.
    pub(crate) fn unpin(&self, context: &ContextId, mut after: (RowLocation, Head)) {
        let mut shard = self.shard(context).lock();
        // In a cluster nothing may be pinned: the slot was hidden when the commit was written.
        let Some(uncommitted) = shard.get_mut(context) else { return };
        uncommitted.commits -= 1;
        for (from, to) in &uncommitted.moved {
            if after.0 == *from {
                after.0 = *to;
            }
        }
        uncommitted.committed = Some(after);
        if uncommitted.commits == 0 {
            shard.remove(context);
        }
        drop(shard);
        self.pinned.fetch_sub(1, Ordering::SeqCst);
    }

    /// Records that a context's rows moved, with the same content.
    pub(crate) fn relocate(&self, context: &ContextId, from: RowLocation, to: RowLocation) {
        let mut shard = self.shard(context).lock();
        let Some(uncommitted) = shard.get_mut(context) else { return };
        if let Some((place, _)) = uncommitted.committed.as_mut().filter(|(place, _)| *place == from) {
            *place = to;
        }
        uncommitted.moved.push((from, to));
    }

    /// Does what [`CommittedHeads::relocate`] does when the previous location is unknown.
    pub(crate) fn relocate_all(&self, context: &ContextId, to: RowLocation) {
        let from = self
            .shard(context)
            .lock()
            .get(context)
            .and_then(|uncommitted| uncommitted.committed.as_ref().map(|row| row.0));
        if let Some(from) = from {
            self.relocate(context, from, to);
        }
    }

    /// Returns the committed head of a context, given its row as read *before* this call.
    pub(crate) fn of(&self, context: &ContextId, row: Row) -> Row {
        if self.pinned.load(Ordering::SeqCst) == 0 {
            return row;
        }
        match self.shard(context).lock().get(context) {
            Some(uncommitted) => uncommitted.committed.clone(),
            None => row,
        }
    }

    fn shard(&self, context: &ContextId) -> &Shard {
        &self.shards[self.hasher.hash_one(context) as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::{
        HashSuite, Key, Lineage, Sequence,
        clock::LamportClock,
        entry::{Draft, Metadata},
        log::Stamp,
        slot::Slot,
    };
    use rocksdb::WriteBatch;

    use super::*;
    use std::sync::Arc;

    use crate::{
        Filter, Options, engine::db::Db, ids, read::pages, read::visibility::SlotVisibility,
        write::state::ContextState,
    };

    fn context() -> ContextId {
        ContextId::new("c").unwrap()
    }

    /// Appends an entry and writes it as a lane does. Returns the row before and after.
    fn write(db: &Db, state: &mut ContextState) -> (Row, (RowLocation, Head)) {
        let before = (state.head.size().0 > 0).then(|| (state.place, state.head.clone()));
        let (mut batch, mut buffer) = (WriteBatch::default(), Vec::new());
        let draft = Draft { key: Key::new("facts").unwrap(), payload: "x".into(), metadata: Metadata::new() };
        let stamp = Stamp {
            id: ids::new_entry_id(),
            now_ns: 1,
            received_lamport: 0,
            epoch: ledger_core::Epoch::new(1, 1),
        };
        state.append(db, &mut batch, &context(), draft, stamp, false, &mut buffer).unwrap();
        state.put_head(db, &mut batch, &context(), &mut buffer).unwrap();
        db.committed_heads().pin(&context(), before.clone());
        db.write_unsynced(batch).unwrap();
        (before, (state.place, state.head.clone()))
    }

    #[test]
    fn readers_see_a_commit_when_it_is_durable_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let readable = Arc::new(SlotVisibility::new(false));
        let db =
            Db::open(dir.path(), &Options::default(), readable, Arc::default(), crate::testing::created())
                .unwrap();
        let place = RowLocation { slot: Slot::of(&context()), number: 1 };
        let head = Head::new(HashSuite::Blake3, Lineage([7; 16]), 1);
        let mut state = ContextState::new(place, head);
        let read = || pages::page(&db, &context(), &Filter::default()).unwrap();
        let seen = || read().entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>();

        let (_, first) = write(&db, &mut state);
        assert_eq!(seen(), [], "the first entry is in the database and not on the disk");
        assert_eq!(db.head(&context()).unwrap(), None);
        let (_, second) = write(&db, &mut state);
        db.sync().unwrap();
        db.committed_heads().unpin(&context(), first.clone());
        assert_eq!(seen(), [Sequence(1)], "the second commit is still held");
        assert_eq!(read().latest, ledger_core::Size(1));
        assert_eq!(db.head(&context()).unwrap(), Some(first));
        db.committed_heads().unpin(&context(), second.clone());
        assert_eq!(seen(), [Sequence(1), Sequence(2)]);
        assert_eq!(db.head(&context()).unwrap(), Some(second));
        assert_eq!(db.committed_heads().pinned.load(Ordering::SeqCst), 0);
        assert_eq!(state.head.lamport, LamportClock(2));
    }

    #[test]
    fn nobody_reads_what_is_held_back_while_its_slot_goes_dark() {
        let dir = tempfile::tempdir().unwrap();
        let readable = Arc::new(SlotVisibility::new(true));
        let (created, options) = (crate::testing::created(), Options::default());
        let db = Db::open(dir.path(), &options, Arc::clone(&readable), Arc::default(), created).unwrap();
        let slot = Slot::of(&context());
        let place = RowLocation { slot, number: 1 };
        let first = || ContextState::new(place, Head::new(HashSuite::Blake3, Lineage([7; 16]), 1));
        readable.publish(slot);
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut read = 0;
                while !is_over.load(Ordering::Relaxed) {
                    if let Ok(row) = db.head(&context()) {
                        assert_eq!(row, None, "nothing was ever stable");
                        read += 1;
                    }
                }
                read
            });
            for _ in 0..20_000 {
                let (_, after) = write(&db, &mut first());
                readable.hide(slot);
                db.committed_heads().unpin(&context(), after);
                // The history is forked off for another one.
                let mut batch = WriteBatch::default();
                batch.delete_cf(db.family(crate::engine::families::HEADS).unwrap(), context().as_str());
                db.write_unsynced(batch).unwrap();
                readable.publish(slot);
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 0);
        });
    }
}
