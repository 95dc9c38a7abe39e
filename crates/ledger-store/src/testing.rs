//! What unit tests share: a database, and contexts written to it without lanes.

use std::{path::Path, sync::Arc};

use ledger_core::{
    ContextId, Entry, EntryId, Epoch, HashSuite, Head, Key, Lineage, Position,
    digest::{ContextSummary, TreeHead},
    entry::Draft,
    log::Stamp,
    slot::Slot,
};
use rocksdb::WriteBatch;

use crate::{
    Options,
    directory::data_dir::OpenMode,
    engine::db::{Db, How, Recovery},
    engine::families::RowLocation,
    read::visibility::SlotVisibility,
    shared::Shared,
    write::state::ContextState,
};

/// Small caches: much happens early.
pub(crate) fn options() -> Options {
    Options { block_cache: 8 << 20, write_buffer: 8 << 20, ..Options::default() }
}

/// Opens or creates a database.
pub(crate) fn open(dir: &Path) -> Db {
    open_with(dir, &options())
}

pub(crate) fn open_with(dir: &Path, options: &Options) -> Db {
    Db::open(dir, options, SlotVisibility::new(false).into(), Arc::default(), created()).unwrap()
}

/// The writer of a context.
pub(crate) struct Writer<'a> {
    db: &'a Db,
    pub(crate) context: ContextId,
    pub(crate) state: ContextState,
    /// Everything it wrote.
    pub(crate) all: Vec<Entry>,
    epoch: Epoch,
}

impl<'a> Writer<'a> {
    /// Of a new context, whose rows are under a number.
    pub(crate) fn new(db: &'a Db, name: &str, number: u64) -> Self {
        Self::of(db, name, number, HashSuite::Blake3)
    }

    pub(crate) fn of(db: &'a Db, name: &str, number: u64, suite: HashSuite) -> Self {
        let context = ContextId::new(name).unwrap();
        let place = RowLocation { slot: Slot::of(&context), number };
        let state = ContextState::new(place, Head::new(suite, Lineage([7; 16]), 11));
        Self { db, context, state, all: Vec::new(), epoch: Epoch::new(1, 1) }
    }

    /// Goes on with a context that is stored.
    pub(crate) fn resume(db: &'a Db, context: &ContextId, all: &[Entry]) -> Self {
        let state = ContextState::load(db, context).unwrap().unwrap();
        Self { db, context: context.clone(), state, all: all.to_vec(), epoch: Epoch::new(1, 1) }
    }

    /// Writes in an epoch from now on.
    pub(crate) fn in_epoch(&mut self, epoch: Epoch) -> &mut Self {
        self.epoch = epoch;
        self
    }

    /// Appends entries whose content says which they are.
    pub(crate) fn append(&mut self, count: usize) -> &mut Self {
        self.append_saying(count, "entry")
    }

    /// Appends entries with a text of their own; every third has an id that its writer chose.
    pub(crate) fn append_saying(&mut self, count: usize, text: &str) -> &mut Self {
        let (mut batch, mut buffer) = (WriteBatch::default(), Vec::new());
        for _ in 0..count {
            let number = self.all.len() + 1;
            let is_chosen = number.is_multiple_of(3);
            let draft = Draft {
                key: Key::new(if number.is_multiple_of(50) { "rare" } else { "facts" }).unwrap(),
                payload: format!("{text} {number}").into(),
                metadata: [].into(),
            };
            let id = match number % 6 {
                // One that looks like the ledger's own.
                0 => EntryId::new(&hex::encode((number as u128).to_be_bytes())).unwrap(),
                3 => EntryId::new(&format!("{text:.20}-{number}")).unwrap(),
                _ => Shared::new_entry_id(),
            };
            let stamp = Stamp { id, now_ns: number as u64, received_lamport: 0, epoch: self.epoch };
            let (db, context) = (self.db, &self.context);
            let entry =
                self.state.append(db, &mut batch, context, draft, stamp, is_chosen, &mut buffer).unwrap();
            self.all.push(entry);
        }
        self.state.put_head(self.db, &mut batch, &self.context, &mut buffer).unwrap();
        self.db.write_unsynced(batch).unwrap();
        self
    }

    pub(crate) fn position(&self) -> Position {
        self.state.head.position()
    }

    pub(crate) fn extent(&self) -> TreeHead {
        self.state.head.tree_head()
    }

    pub(crate) fn summary(&self) -> ContextSummary {
        let Position { size, root, epoch, .. } = self.position();
        ContextSummary { context: self.context.clone(), size, root, epoch }
    }
}

/// How a database is opened where there was none.
pub(crate) fn created() -> How {
    How {
        opening: OpenMode::Create,
        recovery: Recovery::Whole,
        generation: 0,
        compacts: true,
        is_tight: false,
    }
}
