//! The node's memory, shared out: one budget, from which everything that grows with use takes its part.
//!
//! | share | holds | over it |
//! | --- | --- | --- |
//! | block cache, write buffer, head cache | what the store keeps in memory | it keeps less |
//! | `in_flight` | appends accepted and not yet acknowledged | appends wait, then are refused |
//! | `forwarding` | appends sent on to their owners | they wait |
//! | `receiving` | messages whose bytes are arriving | clients are read later, then refused |
//! | `answers` | answers built, and not yet taken by their clients | calls wait; who takes nothing is ended |
//! | `calls` | what a call takes by being open | calls are refused |
//! | `replication` | commits that wait for other nodes | the slowest of them catches up instead |
//! | `replicated` | commits of other nodes that are being written | their streams are read no further |
//! | `out_of_order` | commits of other nodes that arrived before what they continue | catch-up fetches them |
//! | `serving` | entries on their way to nodes that catch up | those nodes wait |
//! | `tails` | the newest entries of watched contexts | watchers read the store |
//! | `events` | events that wait for observers | broadcasts are dropped, who is there is told anew |
//! | `loads` | what loads read, and snapshots of the predecessor as a whole | they are refused |
//!
//! A share is never lent to another: calls hold one while they wait for the next, always in this order (receiving, in
//! flight), so that none of them waits for itself.

mod charge;

use std::sync::Arc;

use ledger_store::budget::Share;

pub use charge::Charge;

use crate::{
    limits,
    settings::config::Config,
    settings::memory_plan::{MemoryPlan, reads},
};

/// The shares of what clients make the node hold.
#[derive(Debug)]
pub struct Memory {
    /// Bytes of appends accepted and not yet acknowledged.
    pub in_flight: Arc<Share>,
    /// Bytes of appends sent on to their owners. Apart from the others: two nodes that send on to each other would wait
    /// for each other.
    pub forwarding: Arc<Share>,
    /// Bytes of messages that are arriving.
    pub receiving: Arc<Share>,
    /// Bytes of answers that are not yet taken.
    pub answers: Arc<Share>,
    /// Those of them that large ones may take: small ones do not wait behind them.
    large: Arc<Share>,
    /// Bytes that open calls take.
    pub calls: Arc<Share>,
    /// Bytes of events that wait for observers.
    pub events: Arc<Share>,
    /// What the store and the cluster hold within shares of their own.
    others: Vec<Arc<Share>>,
    /// Reads of the store at the same time: each thread that reads keeps some MiB from one to the next.
    pub reads: usize,
}

/// What one connection may take of the shares: a part, so that others go on.
#[derive(Debug)]
pub struct ClientMemory {
    /// Bytes of its messages that are arriving.
    pub receiving: Arc<Share>,
    /// Bytes of answers that it has not yet taken.
    pub answers: Arc<Share>,
    /// Those of them that large ones may take.
    large: Arc<Share>,
}

/// Which of the shares that a connection has a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientShare {
    /// Messages that are arriving.
    Receiving,
    /// Answers that are not yet taken.
    Answers,
    /// The same of appends: however many there are, they do not wait behind large ones.
    Results,
}

impl ClientMemory {
    fn share(&self, of: ClientShare) -> &Arc<Share> {
        match of {
            ClientShare::Receiving => &self.receiving,
            ClientShare::Answers | ClientShare::Results => &self.answers,
        }
    }
}

impl Memory {
    /// The shares of a node.
    pub fn new(config: &Config, others: Vec<Arc<Share>>) -> Self {
        let plan = MemoryPlan::of(config.memory);
        let answers = plan.answers.get().max(2 * config.max_entry.get());
        Self {
            in_flight: Share::new("in_flight", config.max_in_flight.get()),
            forwarding: Share::new("forwarding", plan.forwarding.get().max(config.max_entry.get())),
            receiving: Share::new("receiving", plan.receiving.get().max(2 * config.max_entry.get())),
            answers: Share::new("answers", answers),
            large: Share::new("large answers", large_part(answers)),
            calls: Share::new("calls", plan.calls.get()),
            events: Share::new("events", plan.events.get()),
            others,
            reads: reads(config.memory),
        }
    }

    /// All shares, for metrics.
    pub fn shares(&self) -> impl Iterator<Item = &Arc<Share>> {
        let own =
            [&self.in_flight, &self.forwarding, &self.receiving, &self.answers, &self.calls, &self.events];
        own.into_iter().chain(&self.others)
    }

    /// The HTTP/2 windows for what clients send ahead, of a connection and of a stream: what arrives while a message
    /// waits for its memory stays in them.
    pub fn windows(&self) -> (u32, u32) {
        let connection = (self.receiving.capacity() / 16)
            .clamp(limits::SMALL_WINDOW as usize, limits::CONNECTION_WINDOW as usize);
        let connection = u32::try_from(connection).unwrap_or(limits::SMALL_WINDOW);
        (connection, (connection / 4).min(limits::STREAM_WINDOW))
    }

    /// Bytes of a page for a client: fewer while there is little left.
    pub fn page_bytes(&self, client: Option<&ClientMemory>, most: usize) -> usize {
        self.part_of_free(client, [32, 8], most)
    }

    /// Bytes of an answer to a client that is built at once: fewer while there is little left.
    pub fn answer_bytes(&self, client: Option<&ClientMemory>, most: usize) -> usize {
        self.part_of_free(client, [4, 2], most)
    }

    /// The most that a large answer may hold without waiting for more than there is.
    pub fn largest_answer(&self) -> usize {
        large_part(self.answers.capacity() / 4)
    }

    /// Such a part of what is free, and of what is free of a connection's part. What waits for nobody while others wait with
    /// large answers is small.
    fn part_of_free(
        &self,
        client: Option<&ClientMemory>,
        [of_all, of_its]: [usize; 2],
        most: usize,
    ) -> usize {
        let free = |share: &Share| share.capacity().saturating_sub(share.used());
        let all = free(&self.answers).min(free(&self.large)) / of_all;
        let its = client.map(|client| free(&client.answers).min(free(&client.large)) / of_its);
        its.map_or(all, |its| all.min(its)).clamp(limits::SMALL_PAGE.min(most), most)
    }

    /// The part of a connection.
    pub fn client(&self) -> ClientMemory {
        let (receiving, answers) = (self.receiving.capacity() / 4, self.answers.capacity() / 4);
        ClientMemory {
            receiving: Share::new(self.receiving.name(), receiving),
            answers: Share::new(self.answers.name(), answers),
            large: Share::new(self.large.name(), large_part(answers)),
        }
    }

    fn share(&self, of: ClientShare) -> &Arc<Share> {
        match of {
            ClientShare::Receiving => &self.receiving,
            ClientShare::Answers | ClientShare::Results => &self.answers,
        }
    }

    /// Waits for so many bytes, of the connection's part first.
    pub async fn acquire(&self, client: &ClientMemory, of: ClientShare, bytes: usize) -> Charge {
        let large = large(of, bytes);
        let (its_large, its) = (client.large.acquire(large).await, client.share(of).acquire(bytes).await);
        let large = [its_large, self.large.acquire(large).await];
        Charge { large, all: [its, self.share(of).acquire(bytes).await] }
    }

    /// So many bytes, if nobody has to wait for them.
    pub fn try_acquire(&self, client: &ClientMemory, of: ClientShare, bytes: usize) -> Option<Charge> {
        let large = large(of, bytes);
        let large = [client.large.try_acquire(large)?, self.large.try_acquire(large)?];
        Some(Charge {
            large,
            all: [client.share(of).try_acquire(bytes)?, self.share(of).try_acquire(bytes)?],
        })
    }

    /// So many bytes of answers at once.
    pub fn charge_answer(&self, client: &ClientMemory, bytes: usize) -> Charge {
        let large = large(ClientShare::Answers, bytes);
        let large = [client.large.charge(large), self.large.charge(large)];
        Charge { large, all: [client.answers.charge(bytes), self.answers.charge(bytes)] }
    }
}

/// What large answers may take of a share for answers: a quarter of it is for small ones.
const fn large_part(answers: usize) -> usize {
    answers - answers / 4
}

/// How much of a charge large ones share among themselves.
const fn large(of: ClientShare, bytes: usize) -> usize {
    match of {
        ClientShare::Answers if bytes > 2 * limits::SMALL_PAGE => bytes,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_small_while_there_is_little_left() {
        let memory = Memory::new(&Config::default(), Vec::new());
        assert_eq!(memory.page_bytes(None, limits::PAGE_BYTES), limits::PAGE_BYTES);
        let held = memory.answers.charge(memory.answers.capacity());
        assert_eq!(memory.page_bytes(None, limits::PAGE_BYTES), limits::SMALL_PAGE);
        drop(held);
    }
}
