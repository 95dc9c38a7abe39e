//! Copies of what an owner writes: when there are enough, and what a replica does with what it is sent.
//!
//! An owner numbers its commits 1, 2, 3, … A replica that is sent commits is sent them in order, and says up to which
//! number all that it was sent is durable. So one number for each replica says it all, for all slots.
//!
//! | question | answered by |
//! | --- | --- |
//! | Owner: which commits have enough copies? | [`Waiting`] |
//! | Owner: which appends have the copies that they asked for? | [`Needed`] |
//! | Replica: does a part of a commit fit what is here? | [`fit`] |
//! | Replica: which commits may be shown? | [`Unstable`] |

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
pub enum Needed {
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
struct Led {
    /// Peers whose copies count: members that accepted the epoch.
    counting: PeerSet,
    /// Copies needed, this node's included.
    needed: usize,
    /// Members of the slot, this node included.
    members: usize,
    /// The number of the slot's newest commit.
    newest: u64,
    /// Commits of the slot that wait.
    waiting: usize,
}

impl Led {
    /// Copies of a commit, given how far this node and each peer hold everything.
    fn copies(&self, number: u64, synced: u64, held: &[u64]) -> usize {
        let peers = self.counting.iter().filter(|peer| held[usize::from(peer.0)] >= number).count();
        peers + usize::from(synced >= number)
    }
}

/// Commits that wait for copies, each with what is to be done once it has enough; and answers `A` to those who asked
/// for other than the configured number of copies.
#[derive(Debug)]
pub struct Waiting<T, A = ()> {
    synced: u64,
    held: [u64; MAX_PEERS as usize],
    led: HashMap<Slot, Led, RandomState>,
    /// In the order of their numbers.
    queue: VecDeque<(u64, Slot, T)>,
    asked: VecDeque<(u64, Slot, Needed, A)>,
}

impl<T, A> Default for Waiting<T, A> {
    fn default() -> Self {
        Self {
            synced: 0,
            held: [0; MAX_PEERS as usize],
            led: HashMap::default(),
            queue: VecDeque::new(),
            asked: VecDeque::new(),
        }
    }
}

/// A commit that has enough copies.
#[derive(Debug, PartialEq, Eq)]
pub struct Stable<T> {
    /// Of which slot.
    pub slot: Slot,
    /// Its number.
    pub number: u64,
    /// How many copies there are.
    pub copies: usize,
    /// What was kept with it.
    pub item: T,
}

impl<T, A> Waiting<T, A> {
    /// This node owns a slot of so many members: its commits need so many copies, this node's included. Peers that
    /// count stay.
    pub fn lead(&mut self, slot: Slot, needed: usize, members: usize) {
        let led = self.led.entry(slot).or_default();
        (led.needed, led.members) = (needed.max(1), members.max(1));
    }

    /// Counts a peer's copies of a slot, which it holds up to wherever it is.
    pub fn count(&mut self, slot: Slot, peer: Peer) -> Vec<Stable<T>> {
        self.led.entry(slot).or_default().counting.insert(peer);
        self.settle()
    }

    /// Whether a peer's copies of a slot count.
    pub fn counts(&self, slot: Slot, peer: Peer) -> bool {
        self.led.get(&slot).is_some_and(|led| led.counting.contains(peer))
    }

    /// Copies that a slot's commits need, this node's included, and the peers whose copies count.
    pub fn needs(&self, slot: Slot) -> (usize, PeerSet) {
        self.led.get(&slot).map_or((0, PeerSet::default()), |led| (led.needed, led.counting))
    }

    /// A peer's stream is lost: nothing more of it counts until it is counted again.
    pub fn lose(&mut self, peer: Peer) {
        self.led.values_mut().for_each(|led| led.counting.remove(peer));
    }

    /// This node no longer owns a slot: gives back what waited.
    pub fn end(&mut self, slot: Slot) -> (Vec<T>, Vec<A>) {
        self.led.remove(&slot);
        let mut unanswered = Vec::new();
        let mut asked = VecDeque::new();
        for (number, of, needed, answer) in self.asked.drain(..) {
            if of == slot { unanswered.push(answer) } else { asked.push_back((number, of, needed, answer)) }
        }
        self.asked = asked;
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
        let led = self.led.entry(slot).or_default();
        (led.newest, led.waiting) = (number, led.waiting + 1);
        self.queue.push_back((number, slot, item));
    }

    /// Adds an answer to what a slot's newest commit, or an earlier one, wrote: [`Self::answered`] gives it back once
    /// that has the copies needed.
    pub fn ask(&mut self, slot: Slot, needed: Needed, answer: A) {
        let newest = self.led.get(&slot).map_or(0, |led| led.newest);
        self.asked.push_back((newest, slot, needed, answer));
    }

    /// Takes the answers that can be given, each with the number of copies there are.
    pub fn answered(&mut self) -> Vec<(usize, A)> {
        let mut answered = Vec::new();
        for (number, slot, needed, answer) in std::mem::take(&mut self.asked) {
            let led = self.led.get(&slot).copied().unwrap_or_default();
            let copies = led.copies(number, self.synced, &self.held);
            let is_done = led.needed > 0
                && match needed {
                    Needed::Configured => copies >= led.needed,
                    Needed::One => self.synced >= number,
                    Needed::Majority => copies > led.members / 2,
                    Needed::All => copies >= led.members,
                };
            if is_done {
                answered.push((copies, answer));
            } else {
                self.asked.push_back((number, slot, needed, answer));
            }
        }
        answered
    }

    /// Looks at all commits that wait.
    pub fn visit(&mut self, mut visit: impl FnMut(&mut T)) {
        self.queue.iter_mut().for_each(|(_, _, item)| visit(item));
    }

    /// Takes the answers that nobody waits for any more: those that `is_over`.
    pub fn take_asked(&mut self, is_over: impl Fn(&A) -> bool) -> Vec<A> {
        let (over, asked): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.asked).into_iter().partition(|(_, _, _, answer)| is_over(answer));
        self.asked = asked;
        over.into_iter().map(|(_, _, _, answer)| answer).collect()
    }

    /// Adds what wrote nothing, such as the answer to a repeated append: it is done once all that waits of the slot
    /// is. It has no number of its own, which might be that of a commit to other slots only: the slot's peers are
    /// never sent that one.
    pub fn push_behind(&mut self, slot: Slot, item: T) -> Option<Stable<T>> {
        let led = self.led.entry(slot).or_default();
        if led.waiting > 0
            && let Some(last) = self.queue.iter().rposition(|(_, of, _)| *of == slot)
        {
            led.waiting += 1;
            let number = self.queue[last].0;
            self.queue.insert(last + 1, (number, slot, item));
            return None;
        }
        if led.needed > 0 {
            let copies = led.copies(0, self.synced, &self.held);
            return Some(Stable { slot, number: 0, copies, item });
        }
        led.waiting += 1;
        self.queue.push_front((0, slot, item));
        None
    }

    /// Everything up to a number is durable here.
    pub fn synced(&mut self, number: u64) -> Vec<Stable<T>> {
        self.synced = self.synced.max(number);
        self.settle()
    }

    /// Everything up to a number is durable at a peer.
    pub fn holds(&mut self, peer: Peer, number: u64) -> Vec<Stable<T>> {
        let held = &mut self.held[usize::from(peer.0)];
        if number <= *held {
            return Vec::new();
        }
        *held = number;
        self.settle()
    }

    /// Whether a slot has commits that wait.
    pub fn is_waiting(&self, slot: Slot) -> bool {
        self.led.get(&slot).is_some_and(|led| led.waiting > 0)
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
    fn settle(&mut self) -> Vec<Stable<T>> {
        // Nobody holds more than this: what comes after need not be looked at.
        let highest = self.held.iter().copied().max().unwrap_or_default().max(self.synced);
        let beyond = self.queue.partition_point(|(number, _, _)| *number <= highest);
        let mut stable = Vec::new();
        let mut kept = Vec::new();
        let mut blocked = std::collections::HashSet::<Slot, RandomState>::default();
        for (number, slot, item) in self.queue.drain(..beyond) {
            let led = self.led.get(&slot).copied().unwrap_or_default();
            let copies = led.copies(number, self.synced, &self.held);
            if led.needed > 0 && copies >= led.needed && !blocked.contains(&slot) {
                if let Some(led) = self.led.get_mut(&slot) {
                    led.waiting -= 1;
                }
                stable.push(Stable { slot, number, copies, item });
            } else {
                blocked.insert(slot);
                kept.push((number, slot, item));
            }
        }
        for commit in kept.into_iter().rev() {
            self.queue.push_front(commit);
        }
        stable
    }
}

/// How a part of a commit, or a fetched range, fits a context of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It continues what is here, after this many of its entries that are here already.
    Continues {
        /// Entries to skip.
        skip: u64,
    },
    /// All of it is here already, or other entries in its place: the root at its end tells.
    Known,
    /// So many entries are missing before it.
    Gap {
        /// How many.
        missing: u64,
    },
}

/// How entries after one size, `count` of them, fit a history of a size. Whether they are the same history
/// is for the roots to say.
pub fn fit(here: Size, after: Size, count: u64) -> Fit {
    if after.0 > here.0 {
        return Fit::Gap { missing: after.0 - here.0 };
    }
    match here.0 - after.0 {
        skip if skip < count => Fit::Continues { skip },
        _ => Fit::Known,
    }
}

/// What a replica wrote and may not show yet: the owner says when it is stable.
#[derive(Debug)]
pub struct Unstable<T> {
    /// By slot: the epoch, and its commits in order.
    slots: BTreeMap<Slot, (Epoch, VecDeque<(u64, T)>)>,
}

impl<T> Default for Unstable<T> {
    fn default() -> Self {
        Self { slots: BTreeMap::new() }
    }
}

impl<T> Unstable<T> {
    /// Keeps what a commit of an epoch's owner left.
    pub fn push(&mut self, slot: Slot, epoch: Epoch, number: u64, item: T) {
        let (of, queue) = self.slots.entry(slot).or_insert_with(|| (epoch, VecDeque::new()));
        *of = epoch;
        queue.push_back((number, item));
    }

    /// Everything of the slot up to a number is stable, says the owner of an epoch: gives back what was kept, in order.
    pub fn stable(&mut self, slot: Slot, epoch: Epoch, number: u64) -> Vec<T> {
        match self.slots.get_mut(&slot) {
            Some((of, queue)) if *of == epoch => {
                let end = queue.partition_point(|(kept, _)| *kept <= number);
                queue.drain(..end).map(|(_, item)| item).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Gives back all that was kept of a slot, in order.
    pub fn take(&mut self, slot: Slot) -> Vec<T> {
        self.slots
            .remove(&slot)
            .map_or_else(Vec::new, |(_, queue)| queue.into_iter().map(|(_, item)| item).collect())
    }
}
