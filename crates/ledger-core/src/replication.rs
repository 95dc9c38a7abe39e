//! Copies of what an owner writes: when there are enough, and what a replica does with what it is sent.
//!
//! An owner numbers its commits 1, 2, 3, … A replica that is sent commits is sent them in order, and says up to which
//! number all that it was sent is durable. So one number for each replica says it all, for all slots.
//!
//! | question | answered by |
//! | --- | --- |
//! | Owner: which commits have enough copies? | [`PendingCommits`] |
//! | Owner: which appends have the copies that they asked for? | [`WriteQuorum`] |
//! | Replica: does a part of a commit fit what is here? | [`fit`] |
//! | Replica: which commits may be shown? | [`UncommittedWrites`] |

use std::collections::{BTreeMap, HashMap, VecDeque};

use foldhash::fast::RandomState;

use crate::{Epoch, Size, slot::Slot};

#[cfg(test)]
mod tests;

/// Another node, as numbered by this one while it runs: 0 to [`MAX_PEERS`] − 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(u8);

/// Most peers that a node numbers.
pub const MAX_PEERS: u8 = 64;

impl Peer {
    /// The peer of a number below [`MAX_PEERS`].
    pub fn new(number: u8) -> Option<Self> {
        (number < MAX_PEERS).then_some(Self(number))
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// A set of peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PeerSet(u64);

impl PeerSet {
    /// Adds a peer.
    pub fn insert(&mut self, peer: Peer) {
        self.0 |= 1 << peer.0;
    }

    /// Removes a peer.
    pub fn remove(&mut self, peer: Peer) {
        self.0 &= !(1 << peer.0);
    }

    /// Whether a peer is in it.
    pub const fn contains(self, peer: Peer) -> bool {
        self.0 & (1 << peer.0) != 0
    }

    /// Whether nobody is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that are not in another set.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// How many they are.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// The peers, by number.
    pub fn iter(self) -> impl Iterator<Item = Peer> {
        (0..MAX_PEERS).map(Peer).filter(move |peer| self.contains(*peer))
    }
}

/// Copies that an append is acknowledged with. What readers are shown does not depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum WriteQuorum {
    /// As many as the cluster is configured for.
    #[default]
    Configured,
    /// This node's.
    One,
    /// More than half of the slot's members'.
    Majority,
    /// All members'.
    All,
}

/// A slot that this node owns.
#[derive(Debug, Clone, Copy, Default)]
struct OwnedSlot {
    /// Peers whose copies count: members that accepted the epoch.
    in_sync: PeerSet,
    /// Copies needed, this node's included.
    write_quorum: usize,
    /// Members of the slot, this node included.
    replication_factor: usize,
    /// The number of the slot's newest commit.
    newest_commit: u64,
    /// Commits of the slot that wait.
    pending: usize,
}

impl OwnedSlot {
    /// Copies of a commit, given how far this node and each peer hold everything.
    fn count_copies(&self, number: u64, synced: u64, held: &[u64]) -> usize {
        let peers = self.in_sync.iter().filter(|peer| held[usize::from(peer.0)] >= number).count();
        peers + usize::from(synced >= number)
    }
}

/// Commits that wait for copies, each with what is to be done once it has enough; and answers `A` to those who asked
/// for other than the configured number of copies.
#[derive(Debug)]
pub struct PendingCommits<T, A = ()> {
    durable_here: u64,
    durable_at: [u64; MAX_PEERS as usize],
    owned: HashMap<Slot, OwnedSlot, RandomState>,
    /// In the order of their numbers.
    queue: VecDeque<(u64, Slot, T)>,
    waiters: VecDeque<(u64, Slot, WriteQuorum, A)>,
}

impl<T, A> Default for PendingCommits<T, A> {
    fn default() -> Self {
        Self {
            durable_here: 0,
            durable_at: [0; MAX_PEERS as usize],
            owned: HashMap::default(),
            queue: VecDeque::new(),
            waiters: VecDeque::new(),
        }
    }
}

/// A commit that has enough copies.
#[derive(Debug, PartialEq, Eq)]
pub struct Committed<T> {
    /// Of which slot.
    pub slot: Slot,
    /// Its number.
    pub number: u64,
    /// How many copies there are.
    pub copies: usize,
    /// What was kept with it.
    pub item: T,
}

impl<T, A> PendingCommits<T, A> {
    /// This node owns a slot of so many members: its commits need so many copies, this node's included. Peers that
    /// count stay.
    pub fn begin_ownership(&mut self, slot: Slot, needed: usize, members: usize) {
        let owned_slot = self.owned.entry(slot).or_default();
        (owned_slot.write_quorum, owned_slot.replication_factor) = (needed.max(1), members.max(1));
    }

    /// Counts a peer's copies of a slot, which it holds up to wherever it is.
    pub fn add_in_sync(&mut self, slot: Slot, peer: Peer) -> Vec<Committed<T>> {
        self.owned.entry(slot).or_default().in_sync.insert(peer);
        self.take_committed()
    }

    /// Whether a peer's copies of a slot count.
    pub fn is_in_sync(&self, slot: Slot, peer: Peer) -> bool {
        self.owned.get(&slot).is_some_and(|owned_slot| owned_slot.in_sync.contains(peer))
    }

    /// Copies that a slot's commits need, this node's included, and the peers whose copies count.
    pub fn quorum_and_in_sync(&self, slot: Slot) -> (usize, PeerSet) {
        self.owned
            .get(&slot)
            .map_or((0, PeerSet::default()), |owned_slot| (owned_slot.write_quorum, owned_slot.in_sync))
    }

    /// A peer's stream is lost: nothing more of it counts until it is counted again.
    pub fn peer_disconnected(&mut self, peer: Peer) {
        self.owned.values_mut().for_each(|owned_slot| owned_slot.in_sync.remove(peer));
    }

    /// This node no longer owns a slot: gives back what waited.
    pub fn end_ownership(&mut self, slot: Slot) -> (Vec<T>, Vec<A>) {
        self.owned.remove(&slot);
        let mut unanswered = Vec::new();
        let mut unanswered_waiters = VecDeque::new();
        for (number, of, needed, answer) in self.waiters.drain(..) {
            if of == slot {
                unanswered.push(answer);
            } else {
                unanswered_waiters.push_back((number, of, needed, answer));
            }
        }
        self.waiters = unanswered_waiters;
        let mut ended = Vec::new();
        let mut rest = VecDeque::with_capacity(self.queue.len());
        for (number, of, item) in self.queue.drain(..) {
            if of == slot { ended.push(item) } else { rest.push_back((number, of, item)) }
        }
        self.queue = rest;
        (ended, unanswered)
    }

    /// Adds a commit to a slot. Numbers never fall.
    pub fn push(&mut self, number: u64, slot: Slot, item: T) {
        let owned_slot = self.owned.entry(slot).or_default();
        (owned_slot.newest_commit, owned_slot.pending) = (number, owned_slot.pending + 1);
        self.queue.push_back((number, slot, item));
    }

    /// Adds an answer to what a slot's newest commit, or an earlier one, wrote: [`Self::take_ready_waiters`] gives it back once
    /// that has the copies needed.
    pub fn push_waiter(&mut self, slot: Slot, needed: WriteQuorum, answer: A) {
        let newest = self.owned.get(&slot).map_or(0, |owned_slot| owned_slot.newest_commit);
        self.waiters.push_back((newest, slot, needed, answer));
    }

    /// Takes the answers that can be given, each with the number of copies there are.
    pub fn take_ready_waiters(&mut self) -> Vec<(usize, A)> {
        let mut answered = Vec::new();
        for (number, slot, needed, answer) in std::mem::take(&mut self.waiters) {
            let owned_slot = self.owned.get(&slot).copied().unwrap_or_default();
            let copies = owned_slot.count_copies(number, self.durable_here, &self.durable_at);
            let is_done = owned_slot.write_quorum > 0
                && match needed {
                    WriteQuorum::Configured => copies >= owned_slot.write_quorum,
                    WriteQuorum::One => self.durable_here >= number,
                    WriteQuorum::Majority => copies > owned_slot.replication_factor / 2,
                    WriteQuorum::All => copies >= owned_slot.replication_factor,
                };
            if is_done {
                answered.push((copies, answer));
            } else {
                self.waiters.push_back((number, slot, needed, answer));
            }
        }
        answered
    }

    /// Looks at all commits that wait.
    pub fn for_each_mut(&mut self, mut visit: impl FnMut(&mut T)) {
        self.queue.iter_mut().for_each(|(_, _, item)| visit(item));
    }

    /// Takes the answers that nobody waits for any more: those that `is_over`.
    pub fn take_waiters_if(&mut self, is_over: impl Fn(&A) -> bool) -> Vec<A> {
        let (over, unanswered_waiters): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiters).into_iter().partition(|(_, _, _, answer)| is_over(answer));
        self.waiters = unanswered_waiters;
        over.into_iter().map(|(_, _, _, answer)| answer).collect()
    }

    /// Adds what wrote nothing, such as the answer to a repeated append: it is done once all that waits of the slot
    /// is. It has no number of its own, which might be that of a commit to other slots only: the slot's peers are
    /// never sent that one.
    pub fn push_barrier(&mut self, slot: Slot, item: T) -> Option<Committed<T>> {
        let owned_slot = self.owned.entry(slot).or_default();
        if owned_slot.pending > 0
            && let Some(last) = self.queue.iter().rposition(|(_, of, _)| *of == slot)
        {
            owned_slot.pending += 1;
            let number = self.queue[last].0;
            self.queue.insert(last + 1, (number, slot, item));
            return None;
        }
        if owned_slot.write_quorum > 0 {
            let copies = owned_slot.count_copies(0, self.durable_here, &self.durable_at);
            return Some(Committed { slot, number: 0, copies, item });
        }
        owned_slot.pending += 1;
        self.queue.push_front((0, slot, item));
        None
    }

    /// Everything up to a number is durable here.
    pub fn advance_durable_here(&mut self, number: u64) -> Vec<Committed<T>> {
        self.durable_here = self.durable_here.max(number);
        self.take_committed()
    }

    /// Everything up to a number is durable at a peer.
    pub fn advance_durable_at(&mut self, peer: Peer, number: u64) -> Vec<Committed<T>> {
        let held = &mut self.durable_at[usize::from(peer.0)];
        if number <= *held {
            return Vec::new();
        }
        *held = number;
        self.take_committed()
    }

    /// Whether a slot has commits that wait.
    pub fn has_pending(&self, slot: Slot) -> bool {
        self.owned.get(&slot).is_some_and(|owned_slot| owned_slot.pending > 0)
    }

    /// Number of commits that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes the commits that have enough copies, in order for each slot.
    fn take_committed(&mut self) -> Vec<Committed<T>> {
        // Nobody holds more than this: what comes after need not be looked at.
        let highest = self.durable_at.iter().copied().max().unwrap_or_default().max(self.durable_here);
        let beyond = self.queue.partition_point(|(number, _, _)| *number <= highest);
        let mut committed = Vec::new();
        let mut kept = Vec::new();
        let mut blocked = std::collections::HashSet::<Slot, RandomState>::default();
        for (number, slot, item) in self.queue.drain(..beyond) {
            let owned_slot = self.owned.get(&slot).copied().unwrap_or_default();
            let copies = owned_slot.count_copies(number, self.durable_here, &self.durable_at);
            if owned_slot.write_quorum > 0 && copies >= owned_slot.write_quorum && !blocked.contains(&slot) {
                if let Some(owned_slot) = self.owned.get_mut(&slot) {
                    owned_slot.pending -= 1;
                }
                committed.push(Committed { slot, number, copies, item });
            } else {
                blocked.insert(slot);
                kept.push((number, slot, item));
            }
        }
        for commit in kept.into_iter().rev() {
            self.queue.push_front(commit);
        }
        committed
    }
}

/// How a part of a commit, or a fetched range, fits a context of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeFit {
    /// It continues what is here, after this many of its entries that are here already.
    Continues {
        /// Entries to skip.
        skip: u64,
    },
    /// All of it is here already, or other entries in its place: the root at its end tells.
    AlreadyHere,
    /// So many entries are missing before it.
    Gap {
        /// How many.
        missing: u64,
    },
}

/// How entries after one size, `add_in_sync` of them, fit a history of a size. Whether they are the same history
/// is for the roots to say.
pub fn fit(here: Size, after: Size, count: u64) -> RangeFit {
    if after.0 > here.0 {
        return RangeFit::Gap { missing: after.0 - here.0 };
    }
    match here.0 - after.0 {
        skip if skip < count => RangeFit::Continues { skip },
        _ => RangeFit::AlreadyHere,
    }
}

/// What a replica wrote and may not show yet: the owner says when it is stable.
#[derive(Debug)]
pub struct UncommittedWrites<T> {
    /// By slot: the epoch, and its commits in order.
    slots: BTreeMap<Slot, (Epoch, VecDeque<(u64, T)>)>,
}

impl<T> Default for UncommittedWrites<T> {
    fn default() -> Self {
        Self { slots: BTreeMap::new() }
    }
}

impl<T> UncommittedWrites<T> {
    /// Keeps what a commit of an epoch's owner left.
    pub fn push(&mut self, slot: Slot, epoch: Epoch, number: u64, item: T) {
        let (of, queue) = self.slots.entry(slot).or_insert_with(|| (epoch, VecDeque::new()));
        *of = epoch;
        queue.push_back((number, item));
    }

    /// Everything of the slot up to a number is stable, says the owner of an epoch: gives back what was kept, in order.
    pub fn take_committed(&mut self, slot: Slot, epoch: Epoch, number: u64) -> Vec<T> {
        match self.slots.get_mut(&slot) {
            Some((of, queue)) if *of == epoch => {
                let end = queue.partition_point(|(kept, _)| *kept <= number);
                queue.drain(..end).map(|(_, item)| item).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Gives back all that was kept of a slot, in order.
    pub fn take_slot(&mut self, slot: Slot) -> Vec<T> {
        self.slots
            .remove(&slot)
            .map_or_else(Vec::new, |(_, queue)| queue.into_iter().map(|(_, item)| item).collect())
    }
}
