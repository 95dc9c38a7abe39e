//! Between clients and nodes.

use super::{
    client::{self, Client},
    counts::Counted,
    message::{Request, Response},
    run::{Happening, World},
};

impl World {
    pub(super) fn wake(&mut self, number: usize) {
        let (nodes, contexts) = (self.hosts.len(), self.plan.contexts);
        let now = self.now / 1000;
        let (asked, again) = match &mut self.clients[number] {
            Client::Writer(writer) => {
                (writer.wake(now, nodes, &mut self.random, &mut self.next_request), (20_000, 150_000))
            }
            Client::Watcher(watcher) => {
                (vec![watcher.wake(nodes, &mut self.random, &mut self.next_request)], (50_000, 300_000))
            }
            Client::Reader => {
                let asked = client::read(nodes, contexts, &mut self.random, &mut self.next_request);
                (vec![asked], (50_000, 300_000))
            }
        };
        self.ask(number, asked);
        let again = self.random.between(again.0, again.1);
        self.after(again, Happening::Client(number));
    }

    pub(super) fn ask(&mut self, client: usize, asked: Vec<client::Asked>) {
        for (to, request, body) in asked {
            self.counts.add(Counted::Attached, u64::from(matches!(body, Request::Attach { .. })));
            if !self.random.chance(self.network.loss / 4) {
                let delay = self.random.between(200, 3000);
                self.after(delay, Happening::Request { to, client, request, body });
            }
        }
    }

    pub(super) fn respond(&mut self, number: usize, request: u64, response: Response) {
        let now = self.now / 1000;
        match &mut self.clients[number] {
            Client::Writer(writer) => {
                let asked = writer.answered(now, request, response, &mut self.random, &mut self.next_request);
                self.ask(number, asked);
            }
            Client::Watcher(watcher) => {
                match watcher.answered(request, response, self.hosts.len(), &mut self.random) {
                    Ok(entries) => self.counts.add(Counted::Watched, entries.len() as u64),
                    // It is told so, and begins again: allowed only if availability comes first.
                    Err(what) if self.invariants.is_strict => {
                        self.violate(format!("client {number}: {what}"));
                    }
                    Err(_) => {}
                }
            }
            Client::Reader => {
                let Response::Read { context, size, root } = response else { return };
                self.counts.add(Counted::Read, 1);
                if self.invariants.is_strict && self.invariants.stable[context].root_at(size) != Some(root) {
                    self.violate(format!("a reader saw what was never stable of context {context}"));
                }
            }
        }
    }
}
