//! The path between nodes: carries out their outputs, and delivers messages and streams with everything that may
//! happen to them.

use super::{
    counts::Counted,
    message::{CatchUpResponse, Index, Message, OwnerMessage, ReplicaMessage},
    network::Stream,
    node_output::NodeOutput,
    run::{ScheduledEvent, World},
};

impl World {
    pub(super) fn want(&mut self, index: Index, out: NodeOutput) {
        match out {
            NodeOutput::Message { to, message } => self.send(index, to, message),
            NodeOutput::Down { stream, body } => {
                if let Some(at) = self.network.arrives(self.now, stream, false, &mut self.random) {
                    self.at(at, ScheduledEvent::Down { stream, body });
                }
            }
            NodeOutput::Up { stream, body } => {
                if let Some(at) = self.network.arrives(self.now, stream, true, &mut self.random) {
                    self.at(at, ScheduledEvent::Up { stream, body });
                }
            }
            NodeOutput::Break { stream } => self.break_stream(stream, 20_000),
            NodeOutput::Respond { client, request, response } => {
                self.answered(index, &response);
                if !self.random.chance(self.network.loss / 4) {
                    let delay = self.random.between(200, 3000);
                    self.after(delay, ScheduledEvent::Response { client, request, response });
                }
            }
            NodeOutput::Timer { after, timer } => {
                let life = self.hosts[index].life;
                self.after(after * 1000, ScheduledEvent::Timer { node: index, life, timer });
            }
            NodeOutput::Sync => {
                let (low, high) = self.plan.sync;
                let host = &self.hosts[index];
                let (life, up_to) = (host.life, host.node.as_ref().map_or(0, |node| node.disk.written));
                let slow = if host.slow_until > self.now { 200 } else { 1 };
                let after = self.random.between(low, high) * slow;
                self.after(after, ScheduledEvent::Synced { node: index, life, up_to });
            }
            NodeOutput::Note(note) => {
                if let Err(violation) = self.noted(index, note) {
                    self.violate(violation);
                }
            }
        }
    }

    pub(super) fn send(&mut self, from: Index, to: Index, mut message: Message) {
        if let Message::Reply { reply: reply @ CatchUpResponse::Ranges(_), .. } = &mut message
            && self.random.chance(self.network.cuts)
        {
            *reply = CatchUpResponse::Cut { is_clean: self.random.chance(500) };
        }
        if let Message::Hello { stream, .. } = &message {
            let from_life = self.hosts[from].life;
            let known = Stream { from, to, from_life, to_life: None, down_at: 0, up_at: 0, is_broken: false };
            self.network.streams.insert(*stream, known);
        }
        if let Message::Welcome { stream } = &message
            && let Some(known) = self.network.streams.get_mut(stream)
        {
            known.to_life = Some(self.hosts[from].life);
        }
        if self.random.chance(self.network.loss) {
            return self.counts.add(Counted::Lost, 1);
        }
        let number = self.network.number();
        if self.random.chance(self.network.duplicates) {
            self.counts.add(Counted::Duplicated, 1);
            let delay = self.network.delay(&mut self.random);
            self.after(delay, ScheduledEvent::Message { from, to, number, message: message.clone() });
        }
        let delay = self.network.delay(&mut self.random);
        self.after(delay, ScheduledEvent::Message { from, to, number, message });
    }

    pub(super) fn deliver(&mut self, from: Index, to: Index, number: u64, message: Message) {
        if self.network.cut[from][to] {
            return self.counts.add(Counted::Cut, 1);
        }
        if self.network.is_overtaken(from, to, number) {
            self.counts.add(Counted::Overtaken, 1);
        }
        self.with(to, |node| node.message(from, message));
    }

    pub(super) fn deliver_down(&mut self, stream: u64, body: OwnerMessage) {
        let Some(known) = self.network.streams.get(&stream).filter(|known| !known.is_broken) else { return };
        let (from, to) = (known.from, known.to);
        if self.network.cut[from][to] || known.to_life.is_none_or(|life| !self.is_alive(to, life)) {
            return self.break_stream(stream, 1_000_000);
        }
        self.with(to, |node| node.down(from, stream, body));
    }

    pub(super) fn deliver_up(&mut self, stream: u64, body: ReplicaMessage) {
        let Some(known) = self.network.streams.get(&stream).filter(|known| !known.is_broken) else { return };
        let (from, to) = (known.from, known.to);
        if !self.is_alive(from, known.from_life) {
            self.network.streams.remove(&stream);
            return;
        }
        if self.network.cut[to][from] {
            return self.break_stream(stream, 1_000_000);
        }
        self.with(from, |node| node.up(to, stream, body));
    }

    /// Breaks a stream: nothing more arrives on it, and its opener notices within so many microseconds.
    pub fn break_stream(&mut self, stream: u64, within: u64) {
        let Some(known) = self.network.streams.get_mut(&stream).filter(|known| !known.is_broken) else {
            return;
        };
        known.is_broken = true;
        let after = self.random.below(within);
        self.after(after, ScheduledEvent::Lost { stream });
    }
}
