//! The path between clients and nodes.

use super::{
    broken::DisabledRule,
    client::{self, Client},
    counts::Counted,
    message::{Index, Request, Response},
    node::Node,
    run::{ScheduledEvent, World},
};

/// Clock error: clocks count whole milliseconds.
const CLOCK_ERROR: u64 = 5;

impl World {
    pub(super) fn wake(&mut self, number: usize) {
        let (nodes, contexts) = (self.named(), self.plan.contexts);
        let now = self.now / 1000;
        let (asked, again) = match &mut self.clients[number] {
            Client::Writer(writer) => {
                (writer.wake(now, &nodes, &mut self.random, &mut self.next_request), (20_000, 150_000))
            }
            Client::Loader(loader) => {
                let asked = loader.wake(now, &nodes, &mut self.random, &mut self.next_request);
                (asked.into_iter().collect(), (20_000, 150_000))
            }
            Client::Watcher(watcher) => {
                (vec![watcher.wake(&nodes, &mut self.random, &mut self.next_request)], (50_000, 300_000))
            }
            Client::Reader => {
                let asked = client::read(&nodes, contexts, &mut self.random, &mut self.next_request);
                (vec![asked], (50_000, 300_000))
            }
        };
        self.ask(number, asked);
        let again = self.random.between(again.0, again.1);
        self.after(again, ScheduledEvent::Client(number));
    }

    /// Returns the nodes that clients know: an SDK drops those that are gone for good.
    fn named(&self) -> Vec<Index> {
        (0..self.hosts.len()).filter(|index| !self.hosts[*index].is_gone).collect()
    }

    pub(super) fn ask(&mut self, client: usize, asked: Vec<client::SentRequest>) {
        for (to, request, body) in asked {
            self.counts.add(Counted::Attached, u64::from(matches!(body, Request::Attach { .. })));
            if !self.random.chance(self.network.loss / 4) {
                let delay = self.random.between(200, 3000);
                self.after(delay, ScheduledEvent::Request { to, client, request, body });
            }
        }
    }

    /// Checks a node's response to a reader: it must not be outdated.
    pub(super) fn answered(&mut self, index: Index, response: &Response) {
        let &Response::Read { context, size, .. } = response else {
            let is_refused = matches!(response, Response::NotReadable);
            return self.counts.add(Counted::NotRead, is_refused.into());
        };
        let Some(bound) = self.config.settings.max_staleness else { return };
        let clock = self.clock(index);
        let slot = self.config.contexts.slot(context);
        let is_current = |node: &Node| node.slot_manager.current_until(clock, slot) > clock;
        // Without an owner nobody determines what was committed last; and with a stopped clock every lease lasts.
        let is_current = self.hosts[index].node.as_ref().is_some_and(is_current);
        let stands_still = self.hosts.iter().any(|host| !host.clock_runs);
        let stood_still = self.clock_stood_still.is_some_and(|at| self.now < at + 3000 * bound);
        let is_unleased = self.config.broken == DisabledRule::NoLease;
        if !self.invariants.is_strict || stands_still || stood_still || !(is_current || is_unleased) {
            return;
        }
        let since = (self.now / 1000).saturating_sub(bound + CLOCK_ERROR);
        if let Err(violation) = self.invariants.read(index, context, size, since) {
            self.violate(violation);
        }
    }

    pub(super) fn respond(&mut self, number: usize, request: u64, response: Response) {
        let (now, nodes) = (self.now / 1000, self.named());
        match &mut self.clients[number] {
            Client::Writer(writer) => {
                let asked = writer.answered(now, request, response, &mut self.random, &mut self.next_request);
                self.ask(number, asked);
            }
            Client::Loader(loader) => match loader.answered(now, request, &response, &mut self.random) {
                Ok(is_loaded) => self.counts.add(Counted::Loaded, is_loaded.into()),
                Err(what) => self.violate(format!("client {number}: {what}")),
            },
            Client::Watcher(watcher) => {
                match watcher.answered(request, response, &nodes, &mut self.random) {
                    Ok(entries) => self.counts.add(Counted::Watched, entries.len() as u64),
                    // The watcher is notified and starts over, which is allowed only if availability comes first.
                    Err(what) if self.invariants.is_strict && !self.may_change(number) => {
                        self.violate(format!("client {number}: {what}"));
                    }
                    Err(_) => {}
                }
            }
            Client::Reader => {
                let Response::Read { context, size, root } = response else { return };
                self.counts.add(Counted::Read, 1);
                if self.invariants.is_strict && !self.invariants.was_stable(context, size, root) {
                    self.violate(format!("a reader saw what was never stable of context {context}"));
                }
            }
        }
    }
}
