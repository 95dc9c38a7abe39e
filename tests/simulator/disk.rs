//! A disk in memory. Reads see a write at once, and a crash keeps every synced write. Of the unsynced ones a crash
//! keeps the first few, in order, like a log that is written from the front.

use super::prelude::*;

/// The content of a disk.
#[derive(Debug, Clone, Default)]
pub struct Store {
    /// The cluster that the disk belongs to.
    pub cluster: Option<ClusterId>,
    pub records: BTreeMap<Slot, SlotRecord>,
    pub histories: Vec<History>,
    /// What cannot be read of contexts.
    pub damaged: BTreeMap<Context, Damage>,
    /// The slots whose records cannot be read. A node that runs knows them from memory.
    pub damaged_records: BTreeSet<Slot>,
    /// What uncommitted loads brought: after one size, up to another.
    pub loaded: BTreeMap<Context, LoadSpan>,
    pub forks: Vec<Fork>,
}

/// What cannot be read of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The head: nobody here knows how far the history goes. The history is lost.
    Head,
    /// The entries up to a sequence. The head says how far the history goes.
    Entries(u64),
    /// The nodes of the tree over the entries.
    Tiles,
}

/// A forked-off suffix, with the evidence.
#[derive(Debug, Clone)]
pub struct Fork {
    pub context: Context,
    /// The size that both histories share.
    pub common: u64,
    pub entries: Vec<Entry>,
    /// Both heads, as they were compared.
    pub heads: [TreeHead; 2],
}

/// A write.
#[derive(Debug, Clone)]
pub enum Write {
    Cluster(ClusterId),
    Record(Slot, SlotRecord),
    Append(Context, Vec<Entry>),
    /// What a load brings: all of it or nothing.
    Load(Context, Vec<Entry>),
    /// A load is committed, or was forked off.
    Stable(Context),
    /// A history that replaces an unreadable one, with the part of it that a load brought.
    Restore(Context, Vec<Entry>, Option<LoadSpan>),
    /// Leaves a suffix, and keeps it unless the variant drops forks.
    Fork(Fork, bool),
}

impl Store {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Cluster(id) => self.cluster = Some(*id),
            Write::Record(slot, record) => {
                self.records.insert(*slot, record.clone());
                self.damaged_records.remove(slot);
            }
            Write::Append(context, entries) => self.histories[*context].0.extend_from_slice(entries),
            Write::Load(context, entries) => {
                let history = &mut self.histories[*context].0;
                let after = Size(history.len() as u64);
                history.extend_from_slice(entries);
                let span = LoadSpan { after, to: Size(history.len() as u64) };
                let span = self.loaded.get(context).map_or(span, |before| span.with(*before));
                self.loaded.insert(*context, span);
            }
            Write::Stable(context) => _ = self.loaded.remove(context),
            Write::Restore(context, entries, loaded) => {
                self.histories[*context].0.clone_from(entries);
                self.damaged.remove(context);
                self.loaded.remove(context);
                self.loaded.extend(loaded.map(|span| (*context, span)));
            }
            Write::Fork(fork, is_kept) => {
                self.histories[fork.context].0.truncate(fork.common as usize);
                self.forks.extend(is_kept.then(|| fork.clone()));
            }
        }
    }
}

/// A disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The least that a crash leaves.
    pub durable: Store,
    /// What reads see.
    pub now: Store,
    unsynced: VecDeque<Write>,
    /// Number of writes ever made.
    pub written: u64,
    /// Number of these that are durable.
    pub synced: u64,
    pub is_syncing: bool,
    /// Whether it refuses writes.
    pub is_full: bool,
    /// Whether writes fail.
    pub fails: bool,
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
            fails: false,
        }
    }

    pub fn write(&mut self, write: Write) {
        self.now.apply(&write);
        self.unsynced.push_back(write);
        self.written += 1;
    }

    /// Makes everything up to a write durable.
    pub fn synced(&mut self, up_to: u64) {
        self.is_syncing = false;
        while self.synced < up_to {
            let Some(write) = self.unsynced.pop_front() else { break };
            self.durable.apply(&write);
            self.synced += 1;
        }
    }

    /// Damages a context. For [`Damage::Head`] call it only while no write is pending.
    pub fn damage(&mut self, context: Context, damage: Damage) {
        for store in [&mut self.now, &mut self.durable] {
            if damage == Damage::Head {
                store.histories[context].0.clear();
            }
            store.damaged.insert(context, damage);
        }
    }

    /// Damages the record of a slot.
    pub fn damage_record(&mut self, slot: Slot) {
        for store in [&mut self.now, &mut self.durable] {
            store.damaged_records.insert(slot);
        }
    }

    /// Gives the disk a new identity if it forgot what it promised, as `ledger_store::directory::reidentify`. Returns whether
    /// it did.
    pub fn reidentify(&mut self) -> bool {
        let is_forgotten = !self.now.damaged_records.is_empty();
        for store in [&mut self.now, &mut self.durable].into_iter().filter(|_| is_forgotten) {
            let lost = std::mem::take(&mut store.damaged_records);
            let slots: Vec<Slot> = store.records.keys().copied().collect();
            for slot in slots {
                let known = store.records.get(&slot).filter(|_| !lost.contains(&slot));
                let left = SlotRecord::after_new_identity(known);
                store.records.insert(slot, left);
            }
        }
        is_forgotten
    }

    /// Cuts the power. Returns how many writes are lost.
    pub fn crash(&mut self, random: &mut Random) -> u64 {
        let survive = random.below(self.unsynced.len() as u64 + 1);
        self.synced(self.synced + survive);
        let lost = self.unsynced.len() as u64;
        self.unsynced.clear();
        // What is lost keeps its numbers: a sync of them that is under way ends with nothing.
        (self.synced, self.is_syncing) = (self.written, false);
        self.now = self.durable.clone();
        lost
    }
}
