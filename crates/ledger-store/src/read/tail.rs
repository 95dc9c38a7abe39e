//! The tails of watched contexts: how far each is durable, and its newest entries.
//!
//! Nobody pushes entries to watchers: publishing a commit moves the tail, and watchers that wait for it read. Those
//! that keep up read from memory and the others from the store, so a slow watcher costs nobody anything.

use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
    mem::size_of,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use ledger_core::{ContextId, Entry, Position, Sequence, Size, slot::Slot};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    budget::{Permit, Share},
    read::pages::weight,
};

/// Most entries kept of a watched context.
const RECENT_ENTRIES: usize = 1024;
/// Most bytes kept of a watched context …
const RECENT_BYTES: usize = 1 << 20;
/// … and at most this part of the memory for all tails, so that at least this many keep something.
const PART: usize = 16;
const SHARDS: usize = 64;

/// The tail of one watched context.
#[derive(Debug)]
pub(crate) struct Tail {
    size: watch::Sender<Size>,
    recent: Mutex<Recent>,
    /// The newest known committed position, computed once for all watchers because a root costs a hash for each
    /// level of the tree.
    position: Mutex<Option<Position>>,
    /// Memory for all tails.
    share: Arc<Share>,
}

#[derive(Debug, Default)]
struct Recent {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// The permit for their memory.
    held: Option<Permit>,
}

impl Recent {
    fn push(&mut self, entry: Arc<Entry>) {
        self.bytes += kept(&entry);
        self.entries.push_back(entry);
    }

    /// Drops the oldest entry.
    fn pop(&mut self) {
        if let Some(old) = self.entries.pop_front() {
            self.bytes -= kept(&old);
        }
    }

    /// Acquires the memory that the entries take. While too little is free it drops the oldest, if need be all:
    /// watchers then read the store.
    fn pay(&mut self, share: &Arc<Share>) {
        loop {
            let held = self.held.as_ref().map_or(0, Permit::amount);
            if self.bytes <= held {
                break;
            }
            match (share.try_acquire(self.bytes - held), &mut self.held) {
                (Some(more), Some(held)) => held.merge(more),
                (Some(more), none) => *none = Some(more),
                (None, _) => self.pop(),
            }
        }
        if let Some(held) = &mut self.held {
            held.resize(self.bytes);
        }
    }
}

/// Returns the memory that a kept entry takes, in bytes.
fn kept(entry: &Entry) -> usize {
    size_of::<Entry>() + weight(entry)
}

impl Tail {
    /// Watches the committed size.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Size> {
        self.size.subscribe()
    }

    /// Records that the context has at least this committed size, and wakes its watchers.
    pub(crate) fn reach(&self, size: Size) {
        self.size.send_if_modified(|now| {
            let longer = size > *now;
            *now = size.max(*now);
            longer
        });
    }

    /// Records a committed position, unless a newer one is known.
    pub(crate) fn record_position(&self, position: Position) {
        let mut newest = self.position.lock();
        if newest.is_none_or(|newest| newest.size <= position.size) {
            *newest = Some(position);
        }
    }

    /// Returns the committed position at a size, if it is the newest one that is known.
    pub(crate) fn position_at(&self, size: Size) -> Option<Position> {
        self.position.lock().filter(|newest| newest.size == size)
    }

    /// Returns the entries after a sequence; `None` if the memory does not reach back so far. Looks at no more than
    /// `limit` entries.
    pub(crate) fn recent_after(&self, after: Sequence, limit: usize) -> Option<Vec<Arc<Entry>>> {
        let recent = self.recent.lock();
        let first = recent.entries.front()?.sequence.0;
        let skip = (after.0 + 1).checked_sub(first)? as usize;
        Some(recent.entries.iter().skip(skip).take(limit).cloned().collect())
    }

    /// Adds committed entries, in order.
    fn extend(&self, entries: impl Iterator<Item = Arc<Entry>>) -> Option<Sequence> {
        let most = RECENT_BYTES.min(self.share.capacity() / PART);
        let mut recent = self.recent.lock();
        for entry in entries {
            if recent.entries.back().is_some_and(|last| last.sequence.0 + 1 != entry.sequence.0) {
                *recent = Recent::default();
            }
            recent.push(entry);
            while recent.entries.len() > RECENT_ENTRIES || recent.bytes > most {
                recent.pop();
            }
        }
        recent.pay(&self.share);
        recent.entries.back().map(|entry| entry.sequence)
    }
}

/// Tails, each with the number of its watchers.
type Shard = Mutex<HashMap<ContextId, (Arc<Tail>, usize)>>;

/// The tails of all contexts that have watchers.
#[derive(Debug)]
pub(crate) struct Tails {
    shards: Vec<Shard>,
    watched: AtomicUsize,
    hasher: RandomState,
    share: Arc<Share>,
}

impl Tails {
    /// Creates the tails, which take their memory from this share.
    pub(crate) fn new(share: Arc<Share>) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            watched: AtomicUsize::new(0),
            hasher: RandomState::new(),
            share,
        })
    }

    /// Returns whether no context is watched, so that lanes have nothing to do here.
    pub(crate) fn is_idle(&self) -> bool {
        self.watched.load(Ordering::SeqCst) == 0
    }

    /// Joins the watchers of a context. Pair with [`Tails::leave`].
    pub(crate) fn join(&self, context: &ContextId) -> Arc<Tail> {
        let mut shard = self.shard(context).lock();
        let (tail, watchers) = shard.entry(context.clone()).or_insert_with(|| {
            let (size, recent, position) = (watch::Sender::new(Size(0)), Mutex::default(), Mutex::default());
            let tail = Tail { size, recent, position, share: Arc::clone(&self.share) };
            (Arc::new(tail), 0)
        });
        *watchers += 1;
        self.watched.fetch_add(1, Ordering::SeqCst);
        Arc::clone(tail)
    }

    /// Leaves the watchers of a context; removes the tail with the last one.
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

    /// Returns the share that the kept entries take their memory from.
    pub(crate) const fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Returns the tail of a context, if it is watched.
    pub(crate) fn find(&self, context: &ContextId) -> Option<Arc<Tail>> {
        self.shard(context).lock().get(context).map(|(tail, _)| Arc::clone(tail))
    }

    /// Returns the watched contexts of the slots that `is_asked` selects, with their tails.
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
    pub(crate) fn committed(
        &self,
        context: &ContextId,
        entries: impl Iterator<Item = Entry>,
        position: Position,
    ) {
        if let Some(tail) = self.find(context) {
            // Copy the payload: it is a slice of the message it came in, and would keep the whole message in memory.
            let own = |entry: Entry| Entry { payload: Bytes::copy_from_slice(&entry.payload), ..entry };
            tail.extend(entries.map(|entry| Arc::new(own(entry))));
            tail.record_position(position);
            tail.reach(position.size);
        }
    }

    fn shard(&self, context: &ContextId) -> &Shard {
        &self.shards[self.hasher.hash_one(context) as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::{EntryId, Epoch, Hash, Key, Lineage, clock::LamportClock, entry::Metadata};

    use super::*;

    fn entry(context: &ContextId, sequence: u64, payload: usize) -> Entry {
        Entry {
            context_id: context.clone(),
            sequence: Sequence(sequence),
            id: EntryId::new(&sequence.to_string()).unwrap(),
            key: Key::new("k").unwrap(),
            payload: vec![7; payload].into(),
            appended_at_ns: 0,
            metadata: Metadata::new(),
            lamport: LamportClock(sequence),
            epoch: Epoch(1),
            content_hash: Hash([0; 32]),
        }
    }

    fn position(size: u64) -> Position {
        Position { size: Size(size), root: Hash([1; 32]), epoch: Epoch(1), lineage: Lineage([2; 16]) }
    }

    fn context(n: usize) -> ContextId {
        ContextId::new(format!("c{n}")).unwrap()
    }

    #[test]
    fn all_tails_together_keep_what_there_is_for_them_and_the_oldest_go() {
        let share = Share::new("tails", 1 << 20);
        let tails = Tails::new(Arc::clone(&share));
        let watched: Vec<_> = (0..100).map(|n| (context(n), tails.join(&context(n)))).collect();
        for round in 0..3 {
            for (context, _) in &watched {
                let entries = (1..=10).map(|n| entry(context, round * 10 + n, 4000));
                tails.committed(context, entries, position(round * 10 + 10));
                assert!(share.used() <= share.capacity());
            }
        }
        assert!(share.used() > share.capacity() / 2, "{}", share.used());
        for (context, tail) in &watched {
            assert_eq!(*tail.subscribe().borrow(), Size(30), "{context} goes on all the same");
            assert_eq!(tail.position_at(Size(30)), Some(position(30)));
            assert_eq!(tail.position_at(Size(20)), None, "only the newest position is kept");
            // Whatever is kept is the newest, without a gap.
            let kept: Vec<u64> = tail.recent.lock().entries.iter().map(|entry| entry.sequence.0).collect();
            assert_eq!(kept, (31 - kept.len() as u64..=30).collect::<Vec<_>>(), "{context}");
            assert!(
                tail.recent_after(Sequence(0), 100).is_none(),
                "from the beginning only the store knows it"
            );
        }
        for (context, _) in &watched {
            tails.leave(context);
        }
        drop(watched);
        assert_eq!(share.used(), 0);
    }

    #[test]
    fn a_tail_for_which_nothing_is_left_keeps_nothing_until_there_is() {
        let share = Share::new("tails", 1 << 20);
        let tails = Tails::new(Arc::clone(&share));
        let (context, tail) = (context(0), tails.join(&context(0)));
        let all = share.try_acquire(share.capacity()).unwrap();
        tails.committed(&context, [entry(&context, 1, 10)].into_iter(), position(1));
        assert!(tail.recent.lock().entries.is_empty());
        drop(all);
        tails.committed(&context, [entry(&context, 2, 10)].into_iter(), position(2));
        assert!(tail.recent_after(Sequence(0), 10).is_none());
        assert_eq!(tail.recent_after(Sequence(1), 10).unwrap().len(), 1);
        assert_eq!(share.used(), tail.recent.lock().bytes);
    }
}
