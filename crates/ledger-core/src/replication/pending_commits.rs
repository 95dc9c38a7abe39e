//! The owner's side of replication: which commits have enough copies, and which writers can be answered.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use super::{MAX_PEERS, Peer, PeerSet};
use crate::slot::Slot;

/// Copies that must be durable before a node acknowledges an append. Kafka calls it `acks`.
///
/// It does not change when readers see the entry: they see it once its commit has the configured copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum WriteQuorum {
    /// As many copies as the cluster is configured for (the setting `min_copies`).
    #[default]
    Configured,
    /// This node's copy.
    One,
    /// Copies of more than half of the slot's members.
    Majority,
    /// Copies of all members.
    All,
}

/// What the owner counts for one slot.
#[derive(Debug, Clone, Copy, Default)]
struct OwnedSlot {
    /// Peers whose copies count: members that accepted the owner's epoch on the stream that is up.
    in_sync: PeerSet,
    /// Copies that a commit needs, this node's included; 0: this node does not own the slot.
    write_quorum: usize,
    /// Number of members of the slot, this node included.
    replication_factor: usize,
    /// Number of the slot's newest commit; 0: none.
    newest_commit: u64,
    /// How many of the slot's commits and barriers wait for copies.
    pending: usize,
}

impl OwnedSlot {
    /// Counts the copies of a commit. This node is durable up to `durable_here`, each peer up to `durable_at`.
    fn count_copies(&self, number: u64, durable_here: u64, durable_at: &[u64]) -> usize {
        let peers =
            self.in_sync.iter().filter(|peer| durable_at[usize::from(peer.number())] >= number).count();
        peers + usize::from(durable_here >= number)
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
    /// This node is durable up to this commit.
    durable_here: u64,
    /// Each peer is durable up to this commit, by the peer's number.
    durable_at: [u64; MAX_PEERS as usize],
    owned: HashMap<Slot, OwnedSlot, RandomState>,
    /// Number, slot and item of each commit, in the order of the numbers.
    queue: VecDeque<(u64, Slot, T)>,
    /// Number of the commit that each answer waits for, its slot, and the copies that it waits for.
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
        if owned_slot.pending > 0 { self.take_committed() } else { Vec::new() }
    }

    /// Counts a peer's copies of a slot from now on, and returns the commits that have enough copies with them.
    ///
    /// The peer accepted the owner's epoch: it holds everything of the slot up to where it is durable.
    pub fn add_in_sync(&mut self, slot: Slot, peer: Peer) -> Vec<Committed<T>> {
        self.owned.entry(slot).or_default().in_sync.insert(peer);
        self.take_committed()
    }

    /// Counts a peer's copies of a slot no longer, because it is no longer sent the slot.
    pub fn remove_in_sync(&mut self, slot: Slot, peer: Peer) {
        if let Some(owned_slot) = self.owned.get_mut(&slot) {
            owned_slot.in_sync.remove(peer);
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

    /// Ends this node's ownership of all slots. Returns the items and the answers that waited, in order.
    pub fn end_all_ownership(&mut self) -> (Vec<T>, Vec<A>) {
        self.owned.clear();
        let items = self.queue.drain(..).map(|(_, _, item)| item).collect();
        (items, self.waiters.drain(..).map(|(_, _, _, answer)| answer).collect())
    }

    /// Adds a commit to a slot. The caller never passes a lower number than before.
    pub fn push(&mut self, number: u64, slot: Slot, item: T) {
        let owned_slot = self.owned.entry(slot).or_default();
        (owned_slot.newest_commit, owned_slot.pending) = (number, owned_slot.pending + 1);
        self.queue.push_back((number, slot, item));
    }

    /// Adds an answer that waits for the slot's newest commit. [`Self::take_ready_waiters`] returns it once that commit has the
    /// copies `needed`.
    pub fn push_waiter(&mut self, slot: Slot, needed: WriteQuorum, answer: A) {
        let newest = self.owned.get(&slot).map_or(0, |owned_slot| owned_slot.newest_commit);
        self.waiters.push_back((newest, slot, needed, answer));
    }

    /// Takes the answers whose commits have the copies they wait for, each with the number of copies there are.
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

    /// Calls `visit` with the item of each commit that waits.
    pub fn for_each_mut(&mut self, mut visit: impl FnMut(&mut T)) {
        self.queue.iter_mut().for_each(|(_, _, item)| visit(item));
    }

    /// Takes the answers for which `is_over` returns true, such as those whose writers gave up.
    pub fn take_waiters_if(&mut self, is_over: impl Fn(&A) -> bool) -> Vec<A> {
        let (over, unanswered_waiters): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.waiters).into_iter().partition(|(_, _, _, answer)| is_over(answer));
        self.waiters = unanswered_waiters;
        over.into_iter().map(|(_, _, _, answer)| answer).collect()
    }

    /// Adds an item that wrote nothing, such as the answer to a repeated append. It is committed once all commits of the slot
    /// that wait now are; it is returned at once if none wait and this node owns the slot.
    ///
    /// It takes the number of the slot's last commit, and has none of its own: that number might belong to a commit to other
    /// slots only, which the slot's peers are never sent.
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

    /// This node made everything up to a number durable: returns the commits that have enough copies with it.
    pub fn advance_durable_here(&mut self, number: u64) -> Vec<Committed<T>> {
        self.durable_here = self.durable_here.max(number);
        self.take_committed()
    }

    /// A peer made everything up to a number durable: returns the commits that have enough copies with it.
    pub fn advance_durable_at(&mut self, peer: Peer, number: u64) -> Vec<Committed<T>> {
        let durable = &mut self.durable_at[usize::from(peer.number())];
        if number <= *durable {
            return Vec::new();
        }
        *durable = number;
        self.take_committed()
    }

    /// Returns whether commits of a slot wait for copies.
    pub fn has_pending(&self, slot: Slot) -> bool {
        self.owned.get(&slot).is_some_and(|owned_slot| owned_slot.pending > 0)
    }

    /// Returns the number of commits that wait for copies.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether no commit waits for copies.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns the slots for which this node counts copies, each with the peers whose copies count and with the number of
    /// commits that wait.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, PeerSet, usize)> {
        self.owned.iter().map(|(slot, owned_slot)| (*slot, owned_slot.in_sync, owned_slot.pending))
    }

    /// Checks what always holds, where `newest_commit` is the highest number that was ever given. It takes as long as there are
    /// commits that wait, so only simulations and tests call it.
    ///
    /// # Errors
    ///
    /// What does not hold.
    pub fn check(&self, newest_commit: u64) -> Result<(), String> {
        if !self.queue.iter().is_sorted_by_key(|(number, ..)| number) {
            return Err("the commits that wait are not in the order of their numbers".to_owned());
        }
        let highest = self.queue.back().map_or(0, |(number, ..)| *number);
        let durable = self.durable_at.iter().copied().max().unwrap_or_default().max(self.durable_here);
        if highest.max(durable) > newest_commit {
            return Err(format!(
                "commit {highest} waits and {durable} is durable, of {newest_commit} commits"
            ));
        }
        for (slot, owned_slot) in &self.owned {
            let count = self.queue.iter().filter(|(_, of, _)| of == slot).count();
            if count != owned_slot.pending {
                return Err(format!("{count} commits to {slot:?} wait, {} are counted", owned_slot.pending));
            }
            let can_commit = |(number, of, _): &(u64, Slot, T)| {
                let copies = owned_slot.count_copies(*number, self.durable_here, &self.durable_at);
                of == slot && owned_slot.write_quorum > 0 && copies >= owned_slot.write_quorum
            };
            if self.queue.iter().find(|(_, of, _)| of == slot).is_some_and(can_commit) {
                return Err(format!("the oldest commit to {slot:?} that waits has its copies"));
            }
        }
        Ok(())
    }

    /// Takes the commits that have enough copies. A slot's commits come in order: one that lacks copies blocks those after it.
    fn take_committed(&mut self) -> Vec<Committed<T>> {
        // Nobody is durable beyond this number: no commit after it can have copies.
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
