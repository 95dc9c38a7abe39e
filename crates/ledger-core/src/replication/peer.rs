//! The numbers that a node gives to its peers, and sets of peers as bits.

/// Another node. This node gives it a number, 0 to [`MAX_PEERS`] − 1, which it keeps while this process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(u8);

/// The number of peers that a node can number: each is one bit of a [`PeerSet`]. With the node itself they are 256 nodes.
pub const MAX_PEERS: u8 = u8::MAX;

impl Peer {
    /// Returns the peer of a number; `None` if the number is not below [`MAX_PEERS`].
    pub fn new(number: u8) -> Option<Self> {
        (number < MAX_PEERS).then_some(Self(number))
    }

    /// Returns its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Returns the word that its bit is in, and the bit.
    const fn bit(self) -> (usize, u64) {
        ((self.0 / 64) as usize, 1 << (self.0 % 64))
    }
}

/// A set of peers, one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PeerSet([u64; MAX_PEERS.div_ceil(64) as usize]);

impl PeerSet {
    /// The set of no peer.
    pub const EMPTY: Self = Self([0; MAX_PEERS.div_ceil(64) as usize]);

    /// Adds a peer.
    pub fn insert(&mut self, peer: Peer) {
        let (word, bit) = peer.bit();
        self.0[word] |= bit;
    }

    /// Removes a peer.
    pub fn remove(&mut self, peer: Peer) {
        let (word, bit) = peer.bit();
        self.0[word] &= !bit;
    }

    /// Returns whether the set contains a peer.
    pub const fn contains(self, peer: Peer) -> bool {
        let (word, bit) = peer.bit();
        self.0[word] & bit != 0
    }

    /// Returns whether the set contains no peer.
    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    /// Returns the peers of this set that another set does not contain.
    #[must_use]
    pub fn without(mut self, other: Self) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word &= !other;
        }
        self
    }

    /// Returns the number of peers.
    pub fn len(self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Adds all peers of another set.
    pub fn extend(&mut self, other: Self) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
    }

    /// Iterates over the peers, in the order of their numbers. It takes as long as there are peers in the set.
    pub fn iter(self) -> impl Iterator<Item = Peer> {
        self.0.into_iter().zip((0..MAX_PEERS).step_by(64)).flat_map(|(mut word, first)| {
            std::iter::from_fn(move || {
                let bit = u8::try_from(word.trailing_zeros()).ok().filter(|bit| *bit < 64)?;
                word &= word - 1;
                Some(Peer(first + bit))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_every_peer_that_has_a_number() {
        let mut set = PeerSet::default();
        let all: Vec<Peer> = (0..MAX_PEERS).filter_map(Peer::new).collect();
        assert_eq!((all.len(), Peer::new(MAX_PEERS)), (usize::from(MAX_PEERS), None));
        for peer in &all {
            assert!(!set.contains(*peer));
            set.insert(*peer);
            assert!(set.contains(*peer));
        }
        assert_eq!((set.len(), set.iter().collect::<Vec<_>>()), (all.len(), all.clone()));
        let mut some = PeerSet::EMPTY;
        for number in [0, 63, 64, 127, 128, 254] {
            some.insert(Peer::new(number).unwrap());
        }
        let rest = set.without(some);
        assert_eq!(rest.len(), all.len() - 6);
        assert!(some.iter().all(|peer| !rest.contains(peer)));
        assert_eq!(some.iter().map(Peer::number).collect::<Vec<_>>(), [0, 63, 64, 127, 128, 254]);
        let mut both = rest;
        both.extend(some);
        assert_eq!(both, set);
        for peer in all {
            both.remove(peer);
        }
        assert!(both.is_empty() && some.without(set).is_empty());
    }
}
