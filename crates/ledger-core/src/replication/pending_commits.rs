//! The owner's side of replication: which commits have enough copies, and which writers can be answered.
//!
//! A step takes as long as what it releases. When a node is durable from one number up to another, only a slot whose oldest commit
//! lies between them can have gained a copy that matters: the commits behind it wait for it, and those of the other slots had
//! the copy before, or do not have it yet.

use std::collections::{BTreeSet, HashMap, VecDeque};

use foldhash::fast::RandomState;

use super::{
    MAX_PEERS, Peer, PeerSet, WriteQuorum,
    quorum_waiters::{QuorumWaiters, between},
};
use crate::slot::Slot;

/// What the owner counts for one slot.
#[derive(Debug)]
struct OwnedSlot<T> {
    /// Peers whose copies count: members that accepted the owner's epoch on the stream that is up.
    in_sync: PeerSet,
    /// Copies that a commit needs, this node's included; 0: this node does not own the slot.
    write_quorum: usize,
    /// Number of members of the slot, this node included.
    replication_factor: usize,
    /// Number of the slot's newest commit; 0: none.
    newest_commit: u64,
    /// Number and item of each commit and barrier that waits for copies, in order.
    queue: VecDeque<(u64, T)>,
}

impl<T> Default for OwnedSlot<T> {
    fn default() -> Self {
        Self {
            in_sync: PeerSet::EMPTY,
            write_quorum: 0,
            replication_factor: 0,
            newest_commit: 0,
            queue: VecDeque::new(),
        }
    }
}

/// How far each node is durable.
#[derive(Debug)]
struct Durable {
    /// This node.
    here: u64,
    /// Each peer, by the peer's number.
    at: [u64; MAX_PEERS as usize],
}

impl<T> OwnedSlot<T> {
    fn count_copies(&self, number: u64, durable: &Durable) -> usize {
        let peers =
            self.in_sync.iter().filter(|peer| durable.at[usize::from(peer.number())] >= number).count();
        peers + usize::from(durable.here >= number)
    }

    /// Returns how many copies a commit has, if they are as many as it needs.
    fn enough_copies(&self, number: u64, durable: &Durable) -> Option<usize> {
        let copies = self.count_copies(number, durable);
        (self.write_quorum > 0 && copies >= self.write_quorum).then_some(copies)
    }
}

/// An owner's commits that wait for copies, and the answers that wait for them.
///
/// The machine keeps a `T` with each commit and returns it once the commit has its copies. An `A` is the answer to a writer:
/// it waits for the copies that this writer asked for.
///
/// Counterparts: the part of Raft's log above `commitIndex` together with `matchIndex`; Kafka's produce purgatory.
#[derive(Debug)]
pub struct PendingCommits<T, A = ()> {
    durable: Durable,
    owned: HashMap<Slot, OwnedSlot<T>, RandomState>,
    /// The oldest commit of each slot that waits, and the slot.
    oldest: BTreeSet<(u64, Slot)>,
    waiters: QuorumWaiters<A>,
}

impl<T, A> Default for PendingCommits<T, A> {
    fn default() -> Self {
        Self {
            durable: Durable { here: 0, at: [0; MAX_PEERS as usize] },
            owned: HashMap::default(),
            oldest: BTreeSet::new(),
            waiters: QuorumWaiters::default(),
        }
    }
}

/// A commit that has enough copies: the caller may show its entries to readers.
#[derive(Debug, PartialEq, Eq)]
pub struct Committed<T> {
    /// The slot.
    pub slot: Slot,
    /// The number of the commit; 0: a barrier that had nothing to wait for.
    pub number: u64,
    /// How many copies are durable, this node's included.
    pub copies: usize,
    /// What the caller kept with the commit.
    pub item: T,
}

impl<T, A> PendingCommits<T, A> {
    /// Begins to count copies for a slot that this node owns. The slot has `members` members, this node included; its commits
    /// need `needed` copies, this node's included. Peers that are in sync already stay so. Returns the commits that waited and
    /// have enough copies.
    pub fn begin_ownership(&mut self, slot: Slot, needed: usize, members: usize) -> Vec<Committed<T>> {
        let owned_slot = self.owned.entry(slot).or_default();
        (owned_slot.write_quorum, owned_slot.replication_factor) = (needed.max(1), members.max(1));
        self.release_slot(slot)
    }

    /// Counts a peer's copies of a slot from now on, and returns the commits that have enough copies with them.
    ///
    /// The peer accepted the owner's epoch: it holds everything of the slot up to where it is durable.
    pub fn add_in_sync(&mut self, slot: Slot, peer: Peer) -> Vec<Committed<T>> {
        self.owned.entry(slot).or_default().in_sync.insert(peer);
        self.release_slot(slot)
    }

    /// Counts a peer's copies of a slot no longer, because it is no longer sent the slot.
    pub fn remove_in_sync(&mut self, slot: Slot, peer: Peer) {
        if let Some(owned_slot) = self.owned.get_mut(&slot) {
            owned_slot.in_sync.remove(peer);
        }
    }

    /// Counts no peer's copies of a slot any more, until [`Self::add_in_sync`].
    pub fn clear_in_sync(&mut self, slot: Slot) {
        if let Some(owned_slot) = self.owned.get_mut(&slot) {
            owned_slot.in_sync = PeerSet::EMPTY;
        }
    }

    /// Returns whether a peer's copies of a slot count.
    pub fn is_in_sync(&self, slot: Slot, peer: Peer) -> bool {
        self.owned.get(&slot).is_some_and(|owned_slot| owned_slot.in_sync.contains(peer))
    }

    /// Returns how many copies the slot's commits need, this node's included, and the peers whose copies count.
    pub fn quorum_and_in_sync(&self, slot: Slot) -> (usize, PeerSet) {
        self.owned
            .get(&slot)
            .map_or((0, PeerSet::default()), |owned_slot| (owned_slot.write_quorum, owned_slot.in_sync))
    }

    /// The stream to a peer broke: stops counting its copies, of all slots, until [`Self::add_in_sync`].
    pub fn peer_disconnected(&mut self, peer: Peer) {
        self.owned.values_mut().for_each(|owned_slot| owned_slot.in_sync.remove(peer));
    }

    /// Ends this node's ownership of a slot. Returns the items and the answers that waited, in order.
    pub fn end_ownership(&mut self, slot: Slot) -> (Vec<T>, Vec<A>) {
        let queue = self.owned.remove(&slot).map_or_else(VecDeque::new, |owned_slot| owned_slot.queue);
        if let Some((number, _)) = queue.front() {
            self.oldest.remove(&(*number, slot));
        }
        (queue.into_iter().map(|(_, item)| item).collect(), self.waiters.take_slot(slot))
    }

    /// Ends this node's ownership of all slots. Returns the items and the answers that waited, each slot's in order.
    pub fn end_all_ownership(&mut self) -> (Vec<T>, Vec<A>) {
        self.oldest.clear();
        let mut slots: Vec<_> = self.owned.drain().collect();
        slots.sort_unstable_by_key(|(slot, _)| *slot);
        let items = slots.into_iter().flat_map(|(_, owned_slot)| owned_slot.queue).map(|(_, item)| item);
        (items.collect(), self.waiters.take_all())
    }

    /// Adds a commit to a slot. The caller never passes a lower number than before.
    pub fn push(&mut self, number: u64, slot: Slot, item: T) {
        let owned_slot = self.owned.entry(slot).or_default();
        owned_slot.newest_commit = number;
        if owned_slot.queue.is_empty() {
            self.oldest.insert((number, slot));
        }
        owned_slot.queue.push_back((number, item));
    }

    /// Adds an answer that waits for the slot's newest commit. [`Self::take_ready_waiters`] returns it once that commit has the
    /// copies `needed`.
    pub fn push_waiter(&mut self, slot: Slot, needed: WriteQuorum, answer: A) {
        let number = self.owned.get(&slot).map_or(0, |owned_slot| owned_slot.newest_commit);
        self.waiters.push(slot, number, needed, answer);
        // What a repeated append waits for may have its copies already.
        self.settle_waiters(slot, number);
    }

    /// Takes the answers whose commits have the copies they wait for, each with the number of copies there are.
    pub fn take_ready_waiters(&mut self) -> Vec<(usize, A)> {
        self.waiters.take_ready()
    }

    /// Calls `visit` with the item of each commit that waits, those of a slot one after the other.
    pub fn for_each_mut(&mut self, mut visit: impl FnMut(&mut T)) {
        for (_, slot) in &self.oldest {
            let queue = self.owned.get_mut(slot).into_iter().flat_map(|owned_slot| &mut owned_slot.queue);
            queue.for_each(|(_, item)| visit(item));
        }
    }

    /// Takes the answers for which `is_over` returns true, such as those whose writers gave up.
    pub fn take_waiters_if(&mut self, is_over: impl Fn(&A) -> bool) -> Vec<A> {
        self.waiters.take_if(is_over)
    }

    /// Adds an item that wrote nothing, such as the answer to a repeated append. It is committed once all commits of the slot
    /// that wait now are; it is returned at once if none wait and this node owns the slot.
    ///
    /// It takes the number of the slot's last commit, and has none of its own: that number might belong to a commit to other
    /// slots only, which the slot's peers are never sent.
    pub fn push_barrier(&mut self, slot: Slot, item: T) -> Option<Committed<T>> {
        let owned_slot = self.owned.entry(slot).or_default();
        let number = owned_slot.queue.back().map(|(number, _)| *number);
        if number.is_none() && owned_slot.write_quorum > 0 {
            let copies = owned_slot.count_copies(0, &self.durable);
            return Some(Committed { slot, number: 0, copies, item });
        }
        if number.is_none() {
            self.oldest.insert((0, slot));
        }
        owned_slot.queue.push_back((number.unwrap_or(0), item));
        None
    }

    /// This node made everything up to a number durable: returns the commits that have enough copies with it, those of a slot one
    /// after the other.
    pub fn advance_durable_here(&mut self, number: u64) -> Vec<Committed<T>> {
        let before = self.durable.here;
        self.durable.here = before.max(number);
        self.release_between(before, number)
    }

    /// A peer made everything up to a number durable: returns the commits that have enough copies with it.
    pub fn advance_durable_at(&mut self, peer: Peer, number: u64) -> Vec<Committed<T>> {
        let durable = &mut self.durable.at[usize::from(peer.number())];
        let before = *durable;
        *durable = before.max(number);
        self.release_between(before, number)
    }

    /// Returns whether commits of a slot wait for copies.
    pub fn has_pending(&self, slot: Slot) -> bool {
        self.owned.get(&slot).is_some_and(|owned_slot| !owned_slot.queue.is_empty())
    }

    /// Returns whether no commit waits for copies.
    pub fn is_empty(&self) -> bool {
        self.oldest.is_empty()
    }

    /// Returns the slots for which this node counts copies, each with the peers whose copies count and with the number of
    /// commits that wait.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, PeerSet, usize)> {
        self.owned.iter().map(|(slot, owned_slot)| (*slot, owned_slot.in_sync, owned_slot.queue.len()))
    }

    /// Checks what always holds, where `newest_commit` is the highest number that was ever given. It takes as long as there are
    /// commits that wait, so only simulations and tests call it.
    ///
    /// # Errors
    ///
    /// What does not hold.
    pub fn check(&self, newest_commit: u64) -> Result<(), String> {
        let durable = self.durable.at.iter().copied().max().unwrap_or_default().max(self.durable.here);
        let waiting = self.owned.iter().filter(|(_, owned_slot)| !owned_slot.queue.is_empty());
        let mut oldest = BTreeSet::new();
        for (slot, owned_slot) in waiting {
            let queue = &owned_slot.queue;
            if !queue.iter().is_sorted_by_key(|(number, _)| number) {
                return Err(format!(
                    "the commits of {slot:?} that wait are not in the order of their numbers"
                ));
            }
            let (first, last) = (queue[0].0, queue[queue.len() - 1].0);
            oldest.insert((first, *slot));
            if last.max(durable) > newest_commit {
                return Err(format!(
                    "commit {last} waits and {durable} is durable, of {newest_commit} commits"
                ));
            }
            if owned_slot.enough_copies(first, &self.durable).is_some() {
                return Err(format!("the oldest commit to {slot:?} that waits has its copies"));
            }
        }
        if oldest != self.oldest || !self.waiters.is_consistent() {
            return Err("an order of what waits is of something else than what waits".to_owned());
        }
        Ok(())
    }

    /// A node is durable up to a number, and was up to another: takes the commits that have enough copies with it, and settles
    /// those who wait for a commit between the numbers.
    fn release_between(&mut self, before: u64, number: u64) -> Vec<Committed<T>> {
        if number <= before {
            return Vec::new();
        }
        let mut committed = Vec::new();
        for (_, slot) in between(&self.oldest, before, number) {
            self.take_committed(slot, &mut committed);
        }
        for (commit, slot) in self.waiters.commits_between(before, number) {
            self.settle_waiters(slot, commit);
        }
        committed
    }

    /// More copies of a slot count, or fewer are needed: takes its commits that have enough, and settles those who wait for them.
    fn release_slot(&mut self, slot: Slot) -> Vec<Committed<T>> {
        let mut committed = Vec::new();
        self.take_committed(slot, &mut committed);
        for number in self.waiters.commits_of(slot) {
            self.settle_waiters(slot, number);
        }
        committed
    }

    /// Takes the commits of a slot that have enough copies. They come in order: one that lacks copies blocks those after it.
    fn take_committed(&mut self, slot: Slot, committed: &mut Vec<Committed<T>>) {
        let Some(owned_slot) = self.owned.get_mut(&slot) else { return };
        let Some(oldest) = owned_slot.queue.front().map(|(number, _)| *number) else { return };
        while let Some((number, _)) = owned_slot.queue.front()
            && let Some(copies) = owned_slot.enough_copies(*number, &self.durable)
            && let Some((number, item)) = owned_slot.queue.pop_front()
        {
            committed.push(Committed { slot, number, copies, item });
        }
        let next = owned_slot.queue.front().map(|(number, _)| *number);
        if next != Some(oldest) {
            self.oldest.remove(&(oldest, slot));
            self.oldest.extend(next.map(|number| (number, slot)));
        }
    }

    /// Answers those who wait for a commit and are content with the copies that it has.
    fn settle_waiters(&mut self, slot: Slot, number: u64) {
        let Some(owned_slot) = self.owned.get(&slot).filter(|owned_slot| owned_slot.write_quorum > 0) else {
            return;
        };
        let copies = owned_slot.count_copies(number, &self.durable);
        let (quorum, members) = (owned_slot.write_quorum, owned_slot.replication_factor);
        let is_here = self.durable.here >= number;
        self.waiters.settle(slot, number, copies, |needed| match needed {
            WriteQuorum::Configured => copies >= quorum,
            WriteQuorum::One => is_here,
            WriteQuorum::Majority => copies > members / 2,
            WriteQuorum::All => copies >= members,
        });
    }
}
