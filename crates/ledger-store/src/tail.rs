//! The tails of watched contexts: how far each is durable, and its newest entries.
//!
//! There is no publishing: a lane moves the tail after the commit, and watchers that wait for it read.
//! What they read is in memory when they keep up and in the store when they do not, so a slow watcher
//! costs nobody anything.

use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use ledger_core::{ContextId, Entry, Sequence, Size, slot::Slot};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::read::weight;

/// Most entries kept of a watched context.
const RECENT_ENTRIES: usize = 1024;
/// Most bytes kept of a watched context.
const RECENT_BYTES: usize = 1 << 20;
const SHARDS: usize = 64;

/// The tail of one watched context.
#[derive(Debug)]
pub(crate) struct Tail {
    size: watch::Sender<Size>,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
}

impl Tail {
    /// Follows the size.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Size> {
        self.size.subscribe()
    }

    /// Says that the context is at least this long.
    pub(crate) fn reach(&self, size: Size) {
        self.size.send_if_modified(|now| {
            let longer = size > *now;
            *now = size.max(*now);
            longer
        });
    }

    /// The entries after a sequence, if the memory reaches back so far. At most `limit` are looked at.
    pub(crate) fn recent_after(&self, after: Sequence, limit: usize) -> Option<Vec<Arc<Entry>>> {
        let recent = self.recent.lock();
        let first = recent.entries.front()?.sequence.0;
        let skip = (after.0 + 1).checked_sub(first)? as usize;
        Some(recent.entries.iter().skip(skip).take(limit).cloned().collect())
    }

    /// Adds committed entries, in order.
    fn extend(&self, entries: impl Iterator<Item = Arc<Entry>>) -> Option<Sequence> {
        let mut recent = self.recent.lock();
        for entry in entries {
            if recent.entries.back().is_some_and(|last| last.sequence.0 + 1 != entry.sequence.0) {
                *recent = Recent::default();
            }
            recent.bytes += weight(&entry);
            recent.entries.push_back(entry);
            while recent.entries.len() > RECENT_ENTRIES || recent.bytes > RECENT_BYTES {
                match recent.entries.pop_front() {
                    Some(old) => recent.bytes -= weight(&old),
                    None => break,
                }
            }
        }
        recent.entries.back().map(|entry| entry.sequence)
    }
}

/// Tails with the number of their watchers.
type Shard = Mutex<HashMap<ContextId, (Arc<Tail>, usize)>>;

/// The tails of all contexts that have watchers.
#[derive(Debug)]
pub(crate) struct Tails {
    shards: Vec<Shard>,
    watched: AtomicUsize,
    hasher: RandomState,
}

impl Tails {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            watched: AtomicUsize::new(0),
            hasher: RandomState::new(),
        })
    }

    /// Whether nobody watches anything: then a lane has nothing to do here.
    pub(crate) fn is_idle(&self) -> bool {
        self.watched.load(Ordering::SeqCst) == 0
    }

    /// Joins the watchers of a context. Pair with [`Tails::leave`].
    pub(crate) fn join(&self, context: &ContextId) -> Arc<Tail> {
        let mut shard = self.shard(context).lock();
        let (tail, watchers) = shard.entry(context.clone()).or_insert_with(|| {
            let tail = Tail { size: watch::Sender::new(Size(0)), recent: Mutex::default() };
            (Arc::new(tail), 0)
        });
        *watchers += 1;
        self.watched.fetch_add(1, Ordering::SeqCst);
        Arc::clone(tail)
    }

    /// Leaves the watchers of a context; the last one takes the tail along.
    pub(crate) fn leave(&self, context: &ContextId) {
        let mut shard = self.shard(context).lock();
        if let Some((_, watchers)) = shard.get_mut(context) {
            *watchers -= 1;
            if *watchers == 0 {
                shard.remove(context);
            }
            self.watched.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The tail of a context, if anybody watches it.
    pub(crate) fn find(&self, context: &ContextId) -> Option<Arc<Tail>> {
        self.shard(context).lock().get(context).map(|(tail, _)| Arc::clone(tail))
    }

    /// The watched contexts of slots, with their tails.
    pub(crate) fn of_slots(&self, is_asked: impl Fn(Slot) -> bool) -> Vec<(ContextId, Arc<Tail>)> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let asked = shard.iter().filter(|(context, _)| is_asked(Slot::of(context)));
            found.extend(asked.map(|(context, (tail, _))| (context.clone(), Arc::clone(tail))));
        }
        found
    }

    /// Moves a tail past newly committed entries.
    pub(crate) fn committed(&self, context: &ContextId, entries: impl Iterator<Item = Entry>, size: Size) {
        if let Some(tail) = self.find(context) {
            // A payload is a part of the message it came in, which must not stay for as long.
            let own = |entry: Entry| Entry { payload: Bytes::copy_from_slice(&entry.payload), ..entry };
            tail.extend(entries.map(|entry| Arc::new(own(entry))));
            tail.reach(size);
        }
    }

    fn shard(&self, context: &ContextId) -> &Shard {
        &self.shards[self.hasher.hash_one(context) as usize % SHARDS]
    }
}
