//! Slots: the unit of ownership. Every context belongs to one, by its name alone.

use crate::ContextId;

/// Number of slots of a cluster, fixed when it is formed.
pub const SLOTS: u16 = 1024;

/// A slot, 0 to [`SLOTS`] − 1: a group of contexts, by the hash of their names. Redis Cluster: hash slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

impl Slot {
    /// The slot that a cluster forms first: with it the cluster gets its identity.
    pub const FIRST: Self = Self(0);

    /// Returns the slot of a context: the first two bytes of BLAKE3 of its id, big-endian, modulo [`SLOTS`].
    pub fn of(context: &ContextId) -> Self {
        let hash = blake3::hash(context.as_str().as_bytes());
        let [first, second, ..] = *hash.as_bytes();
        Self(u16::from_be_bytes([first, second]) % SLOTS)
    }

    /// Returns the slot of a number below [`SLOTS`].
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// Returns the slot's number.
    pub const fn number(self) -> u16 {
        self.0
    }
}
