//! The network: which links are cut, how long messages take, and the streams.

use std::collections::BTreeMap;

use super::{message::Index, random::Random};

/// Most nodes of a simulation.
pub const MAX_NODES: usize = 9;

/// A stream, as the network knows it.
#[derive(Debug)]
pub struct Stream {
    pub from: Index,
    pub to: Index,
    pub from_life: u64,
    /// Known once it is answered.
    pub to_life: Option<u64>,
    /// When the newest message of each direction arrives: none overtakes it.
    pub down_at: u64,
    pub up_at: u64,
    /// Something was lost, and so is everything after it.
    pub is_broken: bool,
}

#[derive(Debug)]
pub struct Network {
    /// From, to: nothing arrives.
    pub cut: [[bool; MAX_NODES]; MAX_NODES],
    /// Of a thousand.
    pub loss: u64,
    pub duplicates: u64,
    /// Of a thousand messages, those that are very late.
    pub late: u64,
    /// Microseconds.
    pub delay: (u64, u64),
    pub streams: BTreeMap<u64, Stream>,
    messages: u64,
    /// From, to: the newest message that arrived.
    newest: [[u64; MAX_NODES]; MAX_NODES],
}

impl Network {
    pub fn new() -> Self {
        Self {
            cut: [[false; MAX_NODES]; MAX_NODES],
            loss: 0,
            duplicates: 0,
            late: 0,
            delay: (200, 3000),
            streams: BTreeMap::new(),
            messages: 0,
            newest: [[0; MAX_NODES]; MAX_NODES],
        }
    }

    /// The number of a message.
    pub fn number(&mut self) -> u64 {
        self.messages += 1;
        self.messages
    }

    /// Whether a message arrives after one that was sent later.
    pub fn is_overtaken(&mut self, from: Index, to: Index, number: u64) -> bool {
        let newest = &mut self.newest[from][to];
        *newest = number.max(*newest);
        *newest > number
    }

    /// How long a message takes, microseconds.
    pub fn delay(&self, random: &mut Random) -> u64 {
        if random.chance(self.late) {
            return random.between(50_000, 1_500_000);
        }
        random.between(self.delay.0, self.delay.1)
    }

    /// When something on a stream arrives.
    pub fn arrives(&mut self, now: u64, stream: u64, is_up: bool, random: &mut Random) -> Option<u64> {
        // A long delay holds up everything after it: they are rarer.
        let late =
            if random.chance(100) { self.delay(random) } else { random.between(self.delay.0, self.delay.1) };
        let stream = self.streams.get_mut(&stream)?;
        let last = if is_up { &mut stream.up_at } else { &mut stream.down_at };
        *last = (now + late).max(*last + 1);
        Some(*last)
    }

    /// Cuts the nodes in two, in both directions or one.
    pub fn partition(&mut self, nodes: usize, one_way: bool, random: &mut Random) {
        let side: Vec<bool> = (0..nodes).map(|_| random.chance(500)).collect();
        for from in 0..nodes {
            for to in 0..nodes {
                if side[from] != side[to] && (!one_way || side[from]) {
                    self.cut[from][to] = true;
                }
            }
        }
    }

    pub fn heal(&mut self) {
        self.cut = [[false; MAX_NODES]; MAX_NODES];
    }
}
