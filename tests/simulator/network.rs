//! The network, and the path through it: delivers messages and streams with everything that may happen to them.

use super::{
    message::{Message, OwnerMessage, PeerResponse, ReplicaMessage},
    plan::Link,
    prelude::*,
};

/// Most nodes in a simulation.
pub const MAX_NODES: usize = 33;
/// Bounds of a message's delay, in microseconds: of most, and of very late ones.
pub const DELAY: (u64, u64) = (200, 3000);
const LATE: (u64, u64) = (50_000, 1_500_000);

/// A stream: what is sent on it arrives in order, or the stream breaks.
#[derive(Debug)]
pub struct Stream {
    pub from: Index,
    pub to: Index,
    from_life: u64,
    /// Incarnation of the receiver, known once it responds.
    to_life: Option<u64>,
    /// When the newest message of each direction arrives: down, and up.
    newest: [u64; 2],
    /// Something was lost, and everything after it is lost too.
    is_broken: bool,
}

#[derive(Debug, Default)]
pub struct Network {
    /// By sender and receiver: whether nothing arrives.
    pub cut: Pairs<bool>,
    pub link: Link,
    pub streams: BTreeMap<u64, Stream>,
    messages: u64,
    /// By sender and receiver: the newest message that arrived.
    newest: Pairs<u64>,
}

/// A value for each sender and receiver.
type Pairs<T> = Vec<[T; MAX_NODES]>;

impl Network {
    pub fn new(link: Link) -> Self {
        let newest = vec![[0; MAX_NODES]; MAX_NODES];
        Self { cut: vec![[false; MAX_NODES]; MAX_NODES], link, newest, ..Self::default() }
    }

    /// Cuts the network into two parts, in both directions or one.
    pub fn partition(&mut self, nodes: usize, one_way: bool, random: &mut Random) {
        let side: Vec<bool> = (0..nodes).map(|_| random.chance(500)).collect();
        for from in 0..nodes {
            for to in 0..nodes {
                self.cut[from][to] |= side[from] != side[to] && (!one_way || side[from]);
            }
        }
    }

    pub fn heal(&mut self) {
        self.cut = vec![[false; MAX_NODES]; MAX_NODES];
    }
}

impl World {
    /// Carries out a node's output.
    pub(super) fn want(&mut self, index: Index, out: NodeOutput) {
        match out {
            NodeOutput::Message { to, message } => self.send(index, to, message),
            NodeOutput::Down { stream, body } => {
                self.send_on(stream, 0, move |world| world.deliver_down(stream, body));
            }
            NodeOutput::Up { stream, body } => {
                self.send_on(stream, 1, move |world| world.deliver_up(stream, body));
            }
            NodeOutput::Break { stream } => _ = self.break_stream(stream, 20_000),
            NodeOutput::Respond { client, request, response } => {
                self.check_response(index, &response);
                self.send_response(index, client, request, response);
            }
            NodeOutput::Timer { after, timer } => {
                self.node_after(after * 1000, index, move |node| node.timer(timer));
            }
            NodeOutput::Sync => {
                let host = &self.hosts[index];
                let up_to = host.disk().written;
                let slow = if host.slow_until > self.now { 200 } else { 1 };
                let after = self.random.between(self.plan.sync.0, self.plan.sync.1) * slow;
                self.node_after(after, index, move |node| node.synced(up_to));
            }
            NodeOutput::Note(note) => {
                let checked = self.noted(index, note);
                self.check(checked);
            }
        }
    }

    /// Draws how long a message takes, in microseconds.
    fn delay(&mut self) -> u64 {
        let (low, high) = if self.random.chance(self.network.link.late) { LATE } else { DELAY };
        self.random.between(low, high)
    }

    fn send(&mut self, from: Index, to: Index, mut message: Message) {
        let life = self.hosts[from].life;
        match &mut message {
            Message::Reply { reply: reply @ PeerResponse::Ranges(_), .. }
                if self.random.chance(self.network.link.cut_short) =>
            {
                *reply = PeerResponse::Cut { is_clean: self.random.chance(500) };
            }
            Message::Hello { stream, .. } => {
                let known =
                    Stream { from, to, from_life: life, to_life: None, newest: [0; 2], is_broken: false };
                self.network.streams.insert(*stream, known);
            }
            Message::Welcome { stream } => {
                if let Some(known) = self.network.streams.get_mut(stream) {
                    known.to_life = Some(life);
                }
            }
            _ => {}
        }
        if self.random.chance(self.network.link.lost) {
            return self.counts.add(Counted::Lost, 1);
        }
        self.network.messages += 1;
        let number = self.network.messages;
        if self.random.chance(self.network.link.doubled) {
            self.counts.add(Counted::Duplicated, 1);
            self.deliver(from, to, number, message.clone());
        }
        self.deliver(from, to, number, message);
    }

    /// Delivers a message after a while.
    fn deliver(&mut self, from: Index, to: Index, number: u64, message: Message) {
        let at = self.now + self.delay();
        self.at(at, Some(to), move |world| {
            if world.network.cut[from][to] {
                return world.counts.add(Counted::Cut, 1);
            }
            let newest = &mut world.network.newest[from][to];
            *newest = number.max(*newest);
            if *newest > number {
                world.counts.add(Counted::Overtaken, 1);
            }
            world.with(to, |node| node.message(from, message));
        });
    }

    /// Sends a message down or up a stream.
    fn send_on(&mut self, stream: u64, way: usize, deliver: impl FnOnce(&mut Self) + 'static) {
        // A long delay delays everything after it, so it is rarer than for single messages.
        let delay =
            if self.random.chance(100) { self.delay() } else { self.random.between(DELAY.0, DELAY.1) };
        let Some(known) = self.network.streams.get_mut(&stream) else { return };
        known.newest[way] = (self.now + delay).max(known.newest[way] + 1);
        let (at, node) = (known.newest[way], [known.to, known.from][way]);
        self.at(at, Some(node), deliver);
    }

    fn deliver_down(&mut self, stream: u64, body: OwnerMessage) {
        let Some(known) = self.network.streams.get(&stream).filter(|known| !known.is_broken) else { return };
        let (from, to) = (known.from, known.to);
        if self.network.cut[from][to] || known.to_life.is_none_or(|life| !self.is_alive(to, life)) {
            self.break_stream(stream, 1_000_000);
        } else {
            self.with(to, |node| node.down(from, stream, body));
        }
    }

    fn deliver_up(&mut self, stream: u64, body: ReplicaMessage) {
        let Some(known) = self.network.streams.get(&stream).filter(|known| !known.is_broken) else { return };
        let (from, to) = (known.from, known.to);
        if !self.is_alive(from, known.from_life) {
            self.network.streams.remove(&stream);
        } else if self.network.cut[to][from] {
            self.break_stream(stream, 1_000_000);
        } else {
            self.with(from, |node| node.up(to, stream, body));
        }
    }

    /// Breaks a stream: nothing more arrives on it, and its opener notices within so many microseconds. Returns false
    /// if it is broken.
    pub fn break_stream(&mut self, stream: u64, within: u64) -> bool {
        let known = self.network.streams.get_mut(&stream).filter(|known| !known.is_broken);
        let Some(Stream { from, is_broken, .. }) = known else { return false };
        *is_broken = true;
        let (from, after) = (*from, self.random.below(within));
        self.at(self.now + after, Some(from), move |world| {
            if let Some(gone) = world.network.streams.remove(&stream)
                && world.is_alive(gone.from, gone.from_life)
            {
                world.note(|| format!("n{} loses its stream to n{}", gone.from, gone.to));
                world.with(gone.from, |node| node.stream_lost(stream));
            }
        });
        true
    }
}
