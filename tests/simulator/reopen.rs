//! A database whose write failed: the node owns nothing, takes no writes, and opens the database anew once writes are
//! likely to succeed, as in `ledger_store::engine::reopenable_db`. Nobody knows which of the last writes it then has.

use ledger_core::catch_up::Event as RunEvent;

use super::{
    lane::{Commits, Pins},
    prelude::*,
};

impl Node {
    /// A sync failed.
    pub(super) fn on_write_failed(&mut self) {
        self.disk.is_syncing = false;
        self.has_failed = true;
        self.can_write();
        self.after_sync.clear();
        let lost = self.step(Commits::on_write_failed);
        self.events.extend(lost.into_iter().map(Event::OwnershipLost));
        // Whether what they fetched is durable, nobody knows.
        for run in self.runs.keys().copied().collect::<Vec<_>>() {
            self.tell(run, RunEvent::DiskRefuses("a write failed".to_owned()));
        }
    }

    /// Opens the database anew.
    pub(super) fn reopen(&mut self) {
        let lost = self.disk.crash(&mut self.random);
        self.count(Counted::WritesLost, lost);
        self.count(Counted::Reopened, 1);
        self.after_sync.clear();
        self.replica.on_reopened();
        let lost = self.step(Commits::on_reopened);
        self.events.extend(lost.into_iter().map(Event::OwnershipLost));
        self.pins = Pins::default();
        for context in self.loads.keys().copied().collect::<Vec<_>>() {
            self.end_load(context);
        }
        self.arrived.clear();
        self.fetches.clear();
        self.scan();
        for slot in self.config.contexts.slots.clone() {
            self.events.push_back(Event::RecordChanged(slot, Some(self.record(slot))));
        }
        self.has_failed = false;
    }
}
