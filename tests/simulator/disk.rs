//! A disk in memory: writes are seen at once, and survive a crash once they are synced. Of those that are not, the
//! first few survive, in order, as in a log that is written from the front.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ledger_core::{Hash, node::ClusterId, ownership::SlotRecord, slot::Slot};

use super::{
    history::{Context, Entry, History},
    random::Random,
};

/// What a load brought: the entries after a size, up to another.
pub type Span = (u64, u64);

/// What a disk holds.
#[derive(Debug, Clone, Default)]
pub struct Store {
    /// The cluster that it belongs to.
    pub cluster: Option<ClusterId>,
    pub records: BTreeMap<Slot, SlotRecord>,
    pub histories: Vec<History>,
    /// Contexts whose histories are there and cannot be read: what stands here of them is empty.
    pub damaged: BTreeSet<Context>,
    /// What loads brought that may not be stable: after a size, up to another.
    pub loaded: BTreeMap<Context, Span>,
    pub forks: Vec<Fork>,
}

/// A suffix that was left for the owner's, with the evidence.
#[derive(Debug, Clone)]
pub struct Fork {
    pub context: Context,
    /// What both have in common.
    pub common: u64,
    pub entries: Vec<Entry>,
    /// Both heads, as they were compared: size and root.
    pub heads: [(u64, Hash); 2],
}

/// A write.
#[derive(Debug, Clone)]
pub enum Write {
    Cluster(ClusterId),
    Record(Slot, SlotRecord),
    Append(Context, Vec<Entry>),
    /// What a load brings: all of it or nothing.
    Load(Context, Vec<Entry>),
    /// A load is stable, or was left.
    Stable(Context),
    /// A history in the place of one that cannot be read, with what of it a load brought.
    Restore(Context, Vec<Entry>, Option<Span>),
    Fork(Fork),
    /// Only in the variant that drops forks.
    Drop {
        context: Context,
        common: u64,
    },
}

impl Store {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Cluster(id) => self.cluster = Some(*id),
            Write::Record(slot, record) => _ = self.records.insert(*slot, record.clone()),
            Write::Append(context, entries) => self.histories[*context].0.extend_from_slice(entries),
            Write::Load(context, entries) => {
                let history = &mut self.histories[*context].0;
                let (after, to) = (history.len() as u64, (history.len() + entries.len()) as u64);
                history.extend_from_slice(entries);
                // One before that may not be stable either belongs to it.
                let after = self.loaded.get(context).map_or(after, |known| known.0.min(after));
                self.loaded.insert(*context, (after, to));
            }
            Write::Stable(context) => _ = self.loaded.remove(context),
            Write::Restore(context, entries, loaded) => {
                self.histories[*context].0.clone_from(entries);
                self.damaged.remove(context);
                self.loaded.remove(context);
                self.loaded.extend(loaded.map(|span| (*context, span)));
            }
            Write::Fork(fork) => {
                self.histories[fork.context].0.truncate(fork.common as usize);
                self.forks.push(fork.clone());
            }
            Write::Drop { context, common } => self.histories[*context].0.truncate(*common as usize),
        }
    }
}

/// A disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// What a crash leaves at least.
    pub durable: Store,
    /// What is read.
    pub now: Store,
    unsynced: VecDeque<Write>,
    /// Writes there ever were.
    pub written: u64,
    /// Of these, those that are durable.
    pub synced: u64,
    pub is_syncing: bool,
    /// It takes no writes.
    pub is_full: bool,
}

impl Disk {
    pub fn new(contexts: usize) -> Self {
        let empty = Store { histories: vec![History::default(); contexts], ..Store::default() };
        Self {
            durable: empty.clone(),
            now: empty,
            unsynced: VecDeque::new(),
            written: 0,
            synced: 0,
            is_syncing: false,
            is_full: false,
        }
    }

    pub fn write(&mut self, write: Write) {
        self.now.apply(&write);
        self.unsynced.push_back(write);
        self.written += 1;
    }

    /// Everything up to a write is durable.
    pub fn synced(&mut self, up_to: u64) {
        self.is_syncing = false;
        while self.synced < up_to {
            let Some(write) = self.unsynced.pop_front() else { break };
            self.durable.apply(&write);
            self.synced += 1;
        }
    }

    /// A context cannot be read any more: what was written of it is lost. Only while nothing waits to be written.
    pub fn damage(&mut self, context: Context) {
        for store in [&mut self.now, &mut self.durable] {
            store.histories[context].0.clear();
            store.damaged.insert(context);
        }
    }

    /// The power fails. Gives how many writes are lost.
    pub fn crash(&mut self, random: &mut Random) -> u64 {
        let survive = random.below(self.unsynced.len() as u64 + 1);
        self.synced(self.synced + survive);
        let lost = self.unsynced.len() as u64;
        self.unsynced.clear();
        self.written = self.synced;
        self.now = self.durable.clone();
        lost
    }
}
