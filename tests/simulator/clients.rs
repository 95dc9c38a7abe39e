//! The path between clients and nodes.

use super::{
    client::{Client, Sdk},
    message::{Request, Response},
    network::DELAY,
    prelude::*,
};

/// Clock error: clocks count whole milliseconds.
const CLOCK_ERROR: u64 = 5;

impl World {
    pub(super) fn add_clients(&mut self) {
        self.clients = Client::all(&self.plan, &mut self.random);
        for client in 0..self.clients.len() {
            self.after(client as u64 * 1000, move |world| world.wake(client));
        }
    }

    fn wake(&mut self, number: usize) {
        let contexts = self.plan.contexts;
        self.act(number, |client, sdk| client.wake(sdk, contexts));
        let (low, high) =
            if self.clients[number].acknowledged().is_some() { (20_000, 150_000) } else { (50_000, 300_000) };
        let again = self.random.between(low, high);
        self.after(again, move |world| world.wake(number));
    }

    /// Lets a client act, and sends its requests.
    pub(super) fn act<T>(&mut self, number: usize, act: impl FnOnce(&mut Client, &mut Sdk<'_>) -> T) -> T {
        // An SDK drops the nodes that are gone for good.
        let (nodes, now, sent) = (self.present(), self.now / 1000, Vec::new());
        let (random, next_request) = (&mut self.random, &mut self.next_request);
        let mut sdk = Sdk { now, nodes, random, next_request, sent };
        let result = act(&mut self.clients[number], &mut sdk);
        for (to, request, body) in sdk.sent {
            // A connection that ends without a word ends the requests on it as well.
            let is_lost = self.random.chance(self.network.link.lost / 4);
            let delay = self.random.between(DELAY.0, DELAY.1);
            if !is_lost || matches!(body, Request::Cancel { .. }) {
                self.at(self.now + delay, Some(to), move |world| {
                    world.with(to, |node| node.request(number, request, body));
                });
            }
        }
        result
    }

    /// Sends a response, which the node keeps until the client has read it.
    pub(super) fn send_response(&mut self, index: Index, client: usize, request: u64, response: Response) {
        let (life, cost) = (self.hosts[index].life, response.cost());
        if let Some(node) = &mut self.hosts[index].node {
            *node.unread.entry(client).or_default() += cost;
        }
        let is_lost = self.random.chance(self.network.link.lost / 4);
        let arrives = self.now + self.random.between(DELAY.0, DELAY.1);
        let at = self.reads_from.get(&client).map_or(arrives, |from| arrives.max(*from));
        self.at(at, None, move |world| {
            let host = &mut world.hosts[index];
            if let Some(node) = host.node.as_mut().filter(|_| host.life == life) {
                *node.unread.entry(client).or_default() -= cost;
            }
            if !is_lost {
                world.respond(client, request, response);
            }
        });
    }

    /// Checks that a node keeps no more for clients than it may.
    pub(super) fn check_kept(&mut self, index: Index) {
        let (max_kept, kept) = (self.max_kept(), self.hosts[index].node.as_mut().map_or(0, Node::kept));
        self.counts.most(Counted::MostKept, kept);
        if kept > max_kept {
            self.violate(format!("node {index} keeps {kept} entries for clients: more than {max_kept}"));
        }
    }

    pub(super) fn respond(&mut self, number: usize, request: u64, response: Response) {
        let is_strict = self.plan.is_strict();
        if let (Client::Reader, Response::Read { context, size, root }) = (&self.clients[number], &response)
            && is_strict
            && !self.invariants.was_stable(*context, *size, *root)
        {
            self.violate(format!("a reader saw what was never stable of context {context}"));
        }
        match self.act(number, |client, sdk| client.on_response(sdk, request, response)) {
            // Allowed only if availability comes first, or disks were lost.
            Ok((Counted::StartedOver, _)) if is_strict && !self.may_change(number) => {
                self.violate(format!("client {number}: a watcher finds that what it saw is no longer there"));
            }
            Ok((what, count)) => self.counts.add(what, count),
            Err(what) => self.violate(format!("client {number}: {what}")),
        }
    }

    /// Returns whether a watcher may find that what it saw is gone.
    fn may_change(&self, client: usize) -> bool {
        matches!(&self.clients[client], Client::Watcher(watcher) if self.changed.contains(&watcher.context))
    }

    /// Checks a node's response to a reader: it must not be outdated.
    pub(super) fn check_response(&mut self, index: Index, response: &Response) {
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
        if self.plan.is_strict() && !stands_still && !stood_still && (is_current || is_unleased) {
            let since = (self.now / 1000).saturating_sub(bound + CLOCK_ERROR);
            let checked = self.invariants.read(index, context, size, since);
            self.check(checked);
        }
    }
}
