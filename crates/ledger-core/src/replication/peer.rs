//! The numbers that a node gives to its peers, and sets of peers as bits.

/// Another node. This node gives it a number, 0 to [`MAX_PEERS`] − 1, which it keeps while this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(u8);

/// The number of peers that a node can number: each is one bit of a [`PeerSet`].
pub const MAX_PEERS: u8 = 64;

impl Peer {
    /// Returns the peer of a number; `None` if the number is not below [`MAX_PEERS`].
    pub fn new(number: u8) -> Option<Self> {
        (number < MAX_PEERS).then_some(Self(number))
    }

    /// Returns its number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// A set of peers, one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PeerSet(u64);

impl PeerSet {
    /// The set of no peer.
    pub const EMPTY: Self = Self(0);

    /// Adds a peer.
    pub fn insert(&mut self, peer: Peer) {
        self.0 |= 1 << peer.0;
    }

    /// Removes a peer.
    pub fn remove(&mut self, peer: Peer) {
        self.0 &= !(1 << peer.0);
    }

    /// Returns whether the set contains a peer.
    pub const fn contains(self, peer: Peer) -> bool {
        self.0 & (1 << peer.0) != 0
    }

    /// Returns whether the set contains no peer.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the peers of this set that another set does not contain.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Returns the number of peers.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Adds all peers of another set.
    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Iterates over the peers, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Peer> {
        (0..MAX_PEERS).map(Peer).filter(move |peer| self.contains(*peer))
    }
}
