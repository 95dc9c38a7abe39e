//! What a node keeps for clients, and what bounds it: requests whose caller is gone are dropped, and who does not read
//! is not answered any more.

use super::{message::Response, prelude::*};

/// A client with more unread than this, in entries, is not answered. Each response has at most as many as a watch.
const MAX_UNREAD: u64 = 64;
const MAX_WATCHED: u64 = 64;
/// Most appends of a writer that wait: what it sent, and what it puts back.
const MAX_WAITING: u64 = 70;

impl Response {
    /// Returns what it costs to keep, in entries.
    pub fn cost(&self) -> u64 {
        if let Self::Watched { entries } = self { 1 + entries.len() as u64 } else { 1 }
    }
}

impl Node {
    /// A client gave up its requests up to a number.
    pub(super) fn cancel(&mut self, client: usize, up_to: u64) {
        if self.config.broken == DisabledRule::GoneKept {
            return;
        }
        let is_gone = |of: usize, request: u64| of == client && request <= up_to;
        let queued = self.queue.len();
        self.queue.retain(|queued| !is_gone(queued.client, queued.request));
        let mut gone = queued - self.queue.len();
        gone += self.commits.take_waiters_if(|(queued, _)| is_gone(queued.client, queued.request)).len();
        self.commits.for_each_pending(|_, answers| gone += answers.drop_if(is_gone));
        self.out.push(NodeOutput::Note(Note::Counted(Counted::Cancelled, gone as u64)));
    }

    /// Returns whether a client must read before it is answered again.
    pub(super) fn must_read(&mut self, client: usize) -> bool {
        let must_read = self.unread.get(&client).is_some_and(|unread| *unread > MAX_UNREAD)
            && self.config.broken != DisabledRule::GoneKept;
        if must_read {
            self.out.push(NodeOutput::Note(Note::Counted(Counted::Unanswered, 1)));
        }
        must_read
    }

    /// Returns how much it keeps for clients, in entries.
    pub fn kept(&mut self) -> u64 {
        let mut kept = self.queue.len();
        self.commits.for_each_pending(|_, answers| kept += answers.len());
        kept as u64 + self.unread.values().sum::<u64>()
    }
}

impl World {
    /// Returns the most that a node may keep.
    pub(super) fn max_kept(&self) -> u64 {
        let writers = self.plan.writers as u64;
        writers * MAX_WAITING + (self.clients.len() as u64 - writers) * (MAX_UNREAD + 1 + MAX_WATCHED)
    }
}
