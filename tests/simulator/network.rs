//! The network: which links are cut, how long messages take, and the streams.

use std::collections::BTreeMap;

use super::{message::Index, random::Random};

/// Most nodes in a simulation.
pub const MAX_NODES: usize = 33;

/// The network's state of a stream.
#[derive(Debug)]
pub struct Stream {
    pub from: Index,
    pub to: Index,
    pub from_life: u64,
    /// Incarnation of the receiver, known once it responds.
    pub to_life: Option<u64>,
    /// When the newest message of each direction arrives; no message overtakes it.
    pub down_at: u64,
    pub up_at: u64,
    /// Something was lost, and everything after it is lost too.
    pub is_broken: bool,
}

#[derive(Debug)]
pub struct Network {
    /// By sender and receiver: whether nothing arrives.
    pub cut: [[bool; MAX_NODES]; MAX_NODES],
    /// Lost messages per thousand.
    pub loss: u64,
    pub duplicates: u64,
    /// Very late messages per thousand.
    pub late: u64,
    /// Messages per thousand after which the response to a fetch is cut short.
    pub cuts: u64,
    /// Bounds of a message's delay, in microseconds.
    pub delay: (u64, u64),
    pub streams: BTreeMap<u64, Stream>,
    messages: u64,
    /// By sender and receiver: the newest message that arrived.
    newest: [[u64; MAX_NODES]; MAX_NODES],
}

impl Network {
    pub fn new() -> Self {
        Self {
            cut: [[false; MAX_NODES]; MAX_NODES],
            loss: 0,
            duplicates: 0,
            late: 0,
            cuts: 0,
            delay: (200, 3000),
            streams: BTreeMap::new(),
            messages: 0,
            newest: [[0; MAX_NODES]; MAX_NODES],
        }
    }

    /// Returns a new message number.
    pub fn number(&mut self) -> u64 {
        self.messages += 1;
        self.messages
    }

    /// Returns whether a message arrives after one that was sent later.
    pub fn is_overtaken(&mut self, from: Index, to: Index, number: u64) -> bool {
        let newest = &mut self.newest[from][to];
        *newest = number.max(*newest);
        *newest > number
    }

    /// Draws how long a message takes, in microseconds.
    pub fn delay(&self, random: &mut Random) -> u64 {
        if random.chance(self.late) {
            return random.between(50_000, 1_500_000);
        }
        random.between(self.delay.0, self.delay.1)
    }

    /// Returns when a message on a stream arrives; `None` if it is lost.
    pub fn arrives(&mut self, now: u64, stream: u64, is_up: bool, random: &mut Random) -> Option<u64> {
        // A long delay delays everything after it, so it is rarer than for single messages.
        let late =
            if random.chance(100) { self.delay(random) } else { random.between(self.delay.0, self.delay.1) };
        let stream = self.streams.get_mut(&stream)?;
        let last = if is_up { &mut stream.up_at } else { &mut stream.down_at };
        *last = (now + late).max(*last + 1);
        Some(*last)
    }

    /// Cuts the network into two parts, in both directions or one.
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
