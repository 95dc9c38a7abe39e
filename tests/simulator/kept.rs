//! What a node keeps for clients and other nodes, and what bounds it: requests whose caller is gone are dropped, who does
//! not read is not answered any more, and other nodes are asked a few things at a time.

use ledger_core::replication::replica::MAX_OUT_OF_ORDER_BYTES;

use super::{message::Response, prelude::*, replicate::BUFFERED_PART, source::MAX_SERVED};

/// A client with more unread than this, in entries, is not answered. Each response has at most as many as a watch.
const MAX_UNREAD: u64 = 64;
const MAX_WATCHED: u64 = 64;
/// Most appends of a writer that wait: what it sent, and what it puts back.
const MAX_WAITING: u64 = 70;
/// Most entries of a load.
const MAX_LOAD: usize = 80;

impl Response {
    /// Returns what it costs to keep, in entries.
    pub fn cost(&self) -> u64 {
        if let Self::Watched { entries } = self { 1 + entries.len() as u64 } else { 1 }
    }
}

impl Node {
    /// A client gave up its requests up to a number.
    pub(super) fn cancel(&mut self, client: usize, up_to: u64) {
        if self.is_broken(DisabledRule::GoneKept) {
            return;
        }
        let is_gone = |(of, request): ClientRequest| of == client && request <= up_to;
        let queued = self.queue.len();
        self.queue.retain(|(of, _)| !is_gone(*of));
        let gone = self.take_waiters(|waiter| is_gone(waiter.client)).len() + queued - self.queue.len();
        self.count(Counted::Cancelled, gone as u64);
    }

    /// Returns whether a client must read before it is answered again.
    pub(super) fn must_read(&mut self, client: usize) -> bool {
        let must_read = self.unread.get(&client).is_some_and(|unread| *unread > MAX_UNREAD)
            && !self.is_broken(DisabledRule::GoneKept);
        self.count(Counted::Unanswered, must_read.into());
        must_read
    }

    /// Returns how much it keeps for clients, in entries.
    pub fn kept(&mut self) -> u64 {
        let mut kept = self.queue.len();
        self.commits.for_each_pending(|_, waiters| kept += waiters.len());
        kept as u64 + self.unread.values().sum::<u64>()
    }

    /// Checks that what this node keeps for other nodes is within its bounds.
    pub(super) fn check_kept_for_nodes(&mut self) {
        let (contexts, slots) = (self.config.contexts.len(), self.config.contexts.slots.len());
        let staged = self.loads.values().map(|load| load.range.entries.len());
        let staged = staged.chain(self.arrived.values().map(|range| range.entries.len())).sum();
        let buffered = self.replica.buffered_bytes() / BUFFERED_PART;
        let kept: [(&str, usize, usize); 4] = [
            ("parts out of order", buffered, MAX_OUT_OF_ORDER_BYTES / BUFFERED_PART),
            ("entries of staged loads", staged, 2 * contexts * MAX_LOAD),
            // A slot is fetched in few claims at a time, and a context healed for each and once for itself.
            ("questions", self.questions.len(), 8 * (slots + contexts)),
            ("fetches served", self.fetches.len(), MAX_SERVED),
        ];
        if let Some((what, count, bound)) = kept.iter().find(|(_, count, bound)| count > bound) {
            self.note(Note::Violated(format!("it keeps {count} {what}: more than {bound}")));
        }
    }
}

impl World {
    /// Returns the most that a node may keep.
    pub(super) fn max_kept(&self) -> u64 {
        let writers = self.plan.writers as u64;
        writers * MAX_WAITING + (self.clients.len() as u64 - writers) * (MAX_UNREAD + 1 + MAX_WATCHED)
    }
}
